import numpy as np
import pytest

from cl_jax.reports import findings, layouts


@pytest.fixture(scope="module")
def x():
    """Three groups of 20 unit rows, close together inside a group."""
    rng = np.random.default_rng(0)
    centres = np.eye(3, 8)
    rows = np.repeat(centres, 20, 0) + 0.1 * rng.normal(size=(60, 8))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


GROUP = np.repeat(np.arange(3), 20)


def test_neighbours_are_the_nearest_others(x):
    similarity, rows = findings.neighbours_of(x, 5)
    cosine = x @ x.T
    np.fill_diagonal(cosine, -2)
    np.testing.assert_array_equal(rows, np.argsort(-cosine, axis=1)[:, :5])
    np.testing.assert_allclose(similarity, -np.sort(-cosine, axis=1)[:, :5], atol=1e-5)
    same = np.ones((7, 4), np.float32)  # more equals than neighbours
    _, rows = findings.neighbours_of(same, 2)
    assert rows.shape == (7, 2) and (rows != np.arange(7)[:, None]).all()


def test_a_planted_wrong_label_is_doubted_alone(x):
    labels = GROUP.copy()
    labels[7], labels[30] = 2, -1
    votes = findings.votes(labels, *findings.neighbours_of(x, 8))
    assert [(d.row, d.label, d.vote) for d in findings.doubtful(labels, votes)] == [(7, 2, 0)]
    table, kept = findings.confusion(labels, votes)
    np.testing.assert_array_equal(kept, [0, 1, 2])
    np.testing.assert_array_equal(table, [[19, 0, 0], [0, 19, 0], [1, 0, 20]])
    table, kept = findings.confusion(labels, votes, most=1)
    np.testing.assert_array_equal((kept, table.ravel()), [[2], [20]])
    none = findings.votes(np.full(60, -1), *findings.neighbours_of(x, 8))
    assert none.shape == (60, 1) and not none.any()


def test_false_negatives_are_alike_pairs_once_and_no_duplicates(x):
    x = np.concatenate([x, x[:1]])
    labels = np.append(GROUP, 0)
    similarity, rows = findings.neighbours_of(x, 6)
    pairs = findings.false_negatives(labels, similarity, rows, 0.999, most=10)
    assert len(pairs) == 10 and all(p.first < p.second for p in pairs)
    assert len({p[:2] for p in pairs}) == 10 and (0, 60) not in {p[:2] for p in pairs}
    cosine = np.triu(x @ x.T, 1)
    cosine[(cosine >= 0.999) | (labels[:, None] != labels)] = 0
    best = np.sort(cosine.ravel())[::-1][:10]
    np.testing.assert_allclose([p.similarity for p in pairs], best, atol=1e-5)
    found = findings.duplicates(x, 0.999)
    assert [group.tolist() for group in found] == [[0, 60]]
    x[3:53] = x[3]  # one picture 50 times is 1,225 pairs, and one group
    found = findings.duplicates(x, 0.999)
    assert [group.tolist() for group in found] == [list(range(3, 53)), [0, 60]]


def test_clusters_are_the_groups_with_their_middle_first(x):
    x, group = x[5:], GROUP[5:]  # the first group is the smallest
    label, members = findings.clusters(x, 3)
    assert [len(rows) for rows in members] == [20, 20, 15]
    for c, rows in enumerate(members):
        assert len(np.unique(group[rows])) == 1 and (label[rows] == c).all()
        distance = np.linalg.norm(x[rows] - x[rows].mean(0), axis=1)
        assert distance[0] == distance.min()


def test_shares_of_the_gradient_are_those_of_the_softmax():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 6, 4))
    positive, negative = findings.pair_similarities(a, b)
    assert positive.shape == (6,) and negative.shape == (30,)
    share, carried = findings.hardest_share(a, b, 0.2)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b)]
    first = []
    for i in range(6):
        weight = np.exp(np.delete(unit[0][i] @ unit[1].T, i) / 0.2)
        first.append(weight.max() / weight.sum())
    np.testing.assert_allclose(carried[0], np.mean(first))
    np.testing.assert_allclose((share[0], share[-1], carried[-1]), (0.2, 1, 1))


def test_layouts_keep_groups_together_also_of_rows_that_neighbours_place(x, monkeypatch):
    monkeypatch.setattr(layouts, "PLACED_ROWS", 40)
    monkeypatch.setattr(layouts, "UMAP", False)
    found = layouts.layouts(x)
    assert found.keys() == {"PCA", "t-SNE"}
    for places in found.values():
        assert places.shape == (60, 2) and np.isfinite(places).all()
        centres = np.array([places[GROUP == g].mean(0) for g in range(3)])
        inside = np.linalg.norm(places - centres[GROUP], axis=1)
        apart = min(np.linalg.norm(centres[i] - centres[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
        assert np.median(inside) < apart / 2
    assert not layouts.layouts(np.ones((5, 3)))["PCA"].any()
