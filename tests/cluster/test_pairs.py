"""Pairs above a similarity: all of them, whatever the cells; and the groups that they make."""

import numpy as np
import pytest

from cl_jax.cluster import pairs
from cl_jax.cluster.coreset import coreset


def data(size=600, width=8, seed=0):
    """Rows in clusters, with copies, rows of other lengths and a zero row."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((12, width))
    rows = centres[rng.integers(0, 12, size)] + 0.3 * rng.standard_normal((size, width))
    rows[50:60] = 3 * rows[:10]
    rows[-1] = 0
    return rows.astype(np.float32)


def by_hand(x, threshold):
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    cosine = np.triu(unit @ unit.T, 1)
    return np.argwhere(cosine >= threshold), cosine


@pytest.mark.parametrize("cells", [1, 7, 40])
@pytest.mark.parametrize("threshold", [0.5, 0.9013, 0.99])
def test_all_pairs_are_found_whatever_the_cells(cells, threshold):
    x = data()
    wanted, cosine = by_hand(x, threshold)
    edge = np.abs(cosine[cosine > 0] - threshold).min()
    assert edge > 2e-7  # no pair where rounding decides
    found = pairs.pairs_above(x, threshold, cells=cells)
    np.testing.assert_array_equal(np.stack([found.first, found.second], 1), wanted)
    np.testing.assert_allclose(found.similarity, cosine[tuple(wanted.T)], atol=1e-6)


def test_tiles_are_cut_without_a_loss(monkeypatch):
    x = data()
    whole = pairs.pairs_above(x, 0.8, cells=5)
    monkeypatch.setattr(pairs, "ROWS", 64)
    monkeypatch.setattr(pairs, "COLUMNS", 64)
    cut = pairs.pairs_above(x, 0.8, cells=5)
    np.testing.assert_array_equal(cut.first, whole.first)
    np.testing.assert_array_equal(cut.second, whole.second)


@pytest.mark.parametrize("threshold", [0.6, 0.95])
def test_a_bound_by_few_coordinates_loses_nothing(threshold, monkeypatch):
    x = data(width=24)
    wanted, _ = by_hand(x, threshold)
    monkeypatch.setattr(pairs, "HEAD", 3)
    rows = pairs._unit_and_zero(x)
    heads = np.asarray(pairs._heads(rows))
    cosine = np.asarray(rows) @ np.asarray(rows).T
    assert heads.shape == (601, 4) and (heads @ heads.T > cosine - 1e-6).all()
    found = pairs.pairs_above(x, threshold, cells=9)
    assert len(wanted) > 9
    np.testing.assert_array_equal(np.stack([found.first, found.second], 1), wanted)


def test_groups_join_what_pairs_join():
    found = pairs.Pairs(np.array([0, 4, 1]), np.array([1, 5, 7]), np.ones(3, np.float32))
    assert [list(rows) for rows in pairs.groups(9, found)] == [[0, 1, 7], [4, 5]]
    none = pairs.pairs_above(np.eye(4, dtype=np.float32), 0.9)
    assert len(none.first) == 0 and pairs.groups(4, none) == []


@pytest.mark.parametrize("max_pairs", [10**9, 40])
def test_groups_of_many_pairs_are_those_of_all_pairs(max_pairs, monkeypatch):
    """Of tiles so small that some are of rows which are joined already."""
    monkeypatch.setattr(pairs, "ROWS", 64)
    monkeypatch.setattr(pairs, "COLUMNS", 64)
    monkeypatch.setattr(pairs, "WAITING", 1)
    x = data()
    x[100:580] = x[100]  # 114,960 pairs of one picture
    compared = []
    cosines = pairs._cosines
    monkeypatch.setattr(pairs, "_cosines", lambda *of: compared.append(0) or cosines(*of))
    every = pairs.pairs_above(x, 0.99)
    wanted, whole = pairs.groups(len(x), every), len(compared)
    found = pairs.groups_above(x, 0.99, max_pairs=max_pairs)
    assert len(wanted) > 5 and len(wanted[0]) >= 480
    assert [rows.tolist() for rows in found.groups] == [rows.tolist() for rows in wanted]
    assert (3 * (len(compared) - whole) < 2 * whole) == (max_pairs == 40)
    best = np.zeros(len(x), np.float32)
    for rows in every[:2]:
        np.maximum.at(best, rows, every.similarity)
    if max_pairs > 40:
        np.testing.assert_array_equal(found.similarity, best)
    else:
        assert ((found.similarity > 0) == (best > 0)).all()
        assert (found.similarity <= best).all() and found.similarity[150] >= 0.99


def test_wrong_settings_are_refused():
    x = data(80)
    with pytest.raises(ValueError, match=r"threshold is 1\.5"):
        pairs.pairs_above(x, 1.5)
    with pytest.raises(ValueError, match="more than 5 pairs"):
        pairs.pairs_above(np.ones((9, 2), np.float32), 0.9, max_pairs=5)
    with pytest.raises(ValueError, match="NaN"):
        pairs.pairs_above(np.full((3, 2), np.nan, np.float32), 0.9)
    with pytest.raises(ValueError, match="x has no row"):
        pairs.pairs_above(x[:0], 0.9)
    with pytest.raises(ValueError, match="size is 3, and a pair has row 8"):
        pairs.groups(3, pairs.Pairs(np.array([1]), np.array([8]), np.ones(1, np.float32)))


def test_a_coreset_is_the_greedy_one():
    x = data(80)
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    found = coreset(x, 9)
    rows, radius = np.asarray(found.rows), np.asarray(found.radius)
    assert rows[0] == np.argmin(((unit - unit.mean(0)) ** 2).sum(1)) and len(set(rows)) == 9
    for m in range(1, 9):
        distance = np.linalg.norm(unit[:, None] - unit[rows[:m]][None], axis=-1).min(1)
        np.testing.assert_allclose(distance[rows[m]], distance.max(), atol=1e-6)
        np.testing.assert_allclose(radius[m - 1], distance.max(), atol=1e-5)


def test_a_coreset_goes_on_from_what_is_chosen():
    x = data(80)
    ten = np.asarray(coreset(x, 10).rows)
    rest = np.asarray(coreset(x, 6, chosen=ten[:4]).rows)
    np.testing.assert_array_equal(rest, ten[4:])
    copies = np.ones((5, 3), np.float32)
    assert sorted(np.asarray(coreset(copies, 5).rows)) == list(range(5))
    with pytest.raises(ValueError, match="count is 78 and 4 rows are chosen"):
        coreset(x, 78, chosen=ten[:4])


@pytest.mark.parametrize("spread, wanted", [(10.0, 0.98), (0.4, None), (1e-3, 0.9999)])
def test_copies_are_much_more_alike_than_unrelated_rows(spread, wanted):
    rows = 1 + spread * np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
    found, usual = pairs.likely_copies(rows), pairs.usual(rows)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    every = (unit @ unit.T)[np.triu_indices(400, 1)]
    assert usual == pytest.approx(np.quantile(every, 0.999), abs=0.02 * min(spread, 1))
    assert found == (wanted or pytest.approx(1 - (1 - usual) / 6, abs=1e-4))
