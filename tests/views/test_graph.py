"""Views of graphs: packing, and each operator against a loop over one graph at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.core.keys import example_keys
from cl_jax.views import graph

TAGS = 3


def _some(rng, count, most=9, places=None):
    """Padded random graphs: node [B, N], edge [B, E, 2]."""
    rows = []
    for _ in range(count):
        n = int(rng.integers(1, most + 1))
        pairs = [(a, b) for a in range(n) for b in range(a + 1, n) if rng.uniform() < 0.4]
        rows.append((rng.integers(1, TAGS + 1, n), pairs))
    nodes, edges = places or (most, most * (most - 1) // 2)
    node, edge = np.zeros((count, nodes), np.uint8), np.full((count, edges, 2), -1, np.int16)
    for i, (tags, pairs) in enumerate(rows):
        node[i, : len(tags)] = tags
        if pairs:
            edge[i, : len(pairs)] = pairs
    return node, edge


def _view(**section):
    return graph.make(**section, sizes={"node": TAGS + 1})


@jax.jit
def _keys(ids):
    return example_keys(jax.random.key(3), ids)


@partial(jax.jit, static_argnums=0)
def _drawn(view, keys, node, edge):
    packed = graph.pack(node, edge, view.values, view.budget and view.budget.of(len(node)))
    draw = graph.draw(view, keys, packed)
    return packed, draw, graph.transform(view, draw, packed)


def _split(graphs, rows):
    """Per graph (places of its nodes, features, multiset of directed edges in own places)."""
    found = []
    for i in range(rows):
        at = np.flatnonzero(np.asarray(graphs.graph) == i)
        inside = np.isin(graphs.send, at)
        assert (inside == np.isin(graphs.receive, at)).all(), "an edge leaves its graph"
        pairs = zip(np.asarray(graphs.send)[inside], np.asarray(graphs.receive)[inside])
        found.append((at, np.asarray(graphs.x)[at], sorted((int(a), int(b)) for a, b in pairs)))
    return found


def _directed(pairs):
    return sorted([(int(a), int(b)) for a, b in pairs] + [(int(b), int(a)) for a, b in pairs])


def _expected(view, draw, node, edge):
    """The definition, graph by graph: [(nodes kept, features of all, edges)], in own numbers."""
    found, node_at, edge_at = [], 0, 0
    for i, (tags, pairs) in enumerate(zip(node, edge)):
        tags, pairs = tags[tags > 0], [tuple(map(int, p)) for p in pairs if p[0] >= 0]
        n, e = len(tags), len(pairs)
        score, wait, start = (
            np.asarray(a)[node_at : node_at + n] for a in (draw.node, draw.wait, draw.start)
        )
        moved, ends = (np.asarray(a)[edge_at : edge_at + e] for a in (draw.edge, draw.ends))
        x, keep = np.eye(TAGS)[tags - 1], set(range(n))
        operator = view.operators[int(draw.operator[i])]
        few = np.argsort(score)[: int(view.ratio * n + 1e-6)]
        if operator == "drop":
            keep -= set(few.tolist())
        elif operator == "mask":
            x[few] = x.mean(0) if view.fill == "mean" else np.asarray(draw.noise)[node_at + few]
        elif operator == "edges":
            for k in np.argsort(moved)[: int(view.ratio * e + 1e-6)]:
                a = int(ends[k, 0] * n)
                b = (a + 1 + int(ends[k, 1] * (n - 1))) % n
                assert a != b
                pairs[k] = (a, b)
        elif operator == "subgraph":
            keep = _grown(pairs, wait, int(np.argmin(start)), max(1, int(view.keep * n + 1e-6)))
        pairs = [p for p in pairs if set(p) <= keep]
        found.append((sorted(keep), x, pairs))
        node_at, edge_at = node_at + n, edge_at + e
    return found


def _grown(pairs, wait, start, size):
    """A node joins once it has waited for its time since its first neighbour joined."""
    joined, due, now = {start}, {}, 0.0
    while len(joined) < size:
        border = {b for a, b in [*pairs, *((b, a) for a, b in pairs)] if a in joined} - joined
        for node in border:
            due.setdefault(node, now + float(wait[node]))
        if not border:
            break
        node = min(border, key=due.__getitem__)
        now = due[node]
        joined.add(node)
    return joined


EVERY = dict(operators=("drop", "edges", "mask", "subgraph", "none"), ratio=0.4, keep=0.6)
SECTIONS = {
    "every": EVERY,
    "drop": dict(operators=("drop",), ratio=0.3),
    "edges": dict(operators=("edges",), ratio=0.4),
    "mask": dict(operators=("mask",), ratio=0.5),
    "noise": dict(operators=("mask",), fill="noise"),
    "subgraph": dict(operators=("subgraph",), keep=0.6),
    "none": dict(operators=("none",)),
    "random4": dict(),
}


# Each is a program to compile; a view of several operators has those of each alone.
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("every", "noise") else pytest.param(name, marks=pytest.mark.slow)
        for name in SECTIONS
    ],
)
def test_each_operator_equals_its_definition(name):
    view, (node, edge) = _view(**SECTIONS[name]), _some(np.random.default_rng(5), 24)
    packed, draw, graphs = _drawn(view, _keys(np.arange(24)), node, edge)
    chosen = set(np.asarray(draw.operator).tolist())
    assert chosen == set(range(len(view.operators)))
    expected = _expected(view, draw, node, edge)
    for i, ((at, x, edges), (keep, features, pairs)) in enumerate(
        zip(_split(graphs, 24), expected)
    ):
        first = int(packed.first[i])
        assert (at - first).tolist() == keep, i
        np.testing.assert_allclose(x, features[keep], atol=1e-6)
        assert edges == _directed([(first + a, first + b) for a, b in pairs]), i


def test_clean_is_the_graph_itself():
    node, edge = _some(np.random.default_rng(1), 6)
    graphs = jax.jit(_view().clean)({"node": node, "edge": edge})
    for i, (at, x, edges) in enumerate(_split(graphs, 6)):
        real = node[i][node[i] > 0]
        np.testing.assert_array_equal(x, np.eye(TAGS)[real - 1])
        assert len(at) == len(real)
        assert edges == _directed(at[0] + edge[i][edge[i, :, 0] >= 0])


def test_a_subgraph_grows_by_any_of_its_neighbours_alike():
    """A star with an arm: from the hub, the first of three neighbours is each as likely."""
    count = 3000
    node = np.tile(np.array([1, 1, 1, 1, 1], np.uint8), (count, 1))
    edge = np.tile(np.array([[0, 1], [0, 2], [0, 3], [3, 4]], np.int16), (count, 1, 1))
    _, draw, graphs = _drawn(
        _view(operators=("subgraph",), keep=0.4), _keys(np.arange(count)), node, edge
    )
    start = np.argmin(np.asarray(draw.start).reshape(count, 5), axis=1)
    kept = np.asarray(graphs.graph < count).reshape(count, 5)
    assert (kept.sum(1) == 2).all()
    second = kept[start == 0][:, 1:4].mean(0)
    np.testing.assert_allclose(second, 1 / 3, atol=0.06)
    np.testing.assert_allclose(np.bincount(start) / count, 0.2, atol=0.03)
    assert kept[start == 4][:, 3].all(), "the end of the arm has one neighbour"


def test_padding_place_and_company_change_nothing():
    """A graph's view depends on the graph and its key alone."""
    small, view = _some(np.random.default_rng(2), 24), _view(**EVERY)  # a program of the above
    large = _some(np.random.default_rng(2), 24, places=(14, 60))
    keys = _keys(np.arange(24))
    a = _split(_drawn(view, keys, *small)[2], 24)
    b = _split(_drawn(view, keys, *large)[2], 24)
    back = _split(_drawn(view, keys[::-1], small[0][::-1], small[1][::-1])[2], 24)[::-1]
    for one, padded, turned in zip(a, b, back):
        for other in (padded, turned):
            shift = (other[0] - one[0])[0] if len(one[0]) else 0
            np.testing.assert_array_equal(one[0] + shift, other[0])
            np.testing.assert_array_equal(one[1], other[1])
            assert [(x + shift, y + shift) for x, y in one[2]] == other[2]


def test_the_budget_holds_any_batch_and_is_small():
    rng = np.random.default_rng(7)
    counts = rng.integers(1, 60, 50)
    budget = graph.budget_of(counts, 2 * counts)
    for rows in range(1, 51):
        most = np.sort(counts)[::-1][:rows].sum()
        nodes, edges = budget.of(rows)
        assert most <= nodes <= min(1.4 * most, rows * counts.max())
        assert edges >= 2 * most
    assert graph.budget_of(counts, counts).of(64) == (counts.sum(),) * 2


def test_what_does_not_fit_is_marked():
    node, edge = _some(np.random.default_rng(2), 4)
    sizes, pack = (node > 0).sum(1), jax.jit(graph.pack, static_argnums=(2, 3))
    tight = pack(node, edge, TAGS + 1, (int(sizes[:3].sum()), edge[..., 0].size))
    np.testing.assert_array_equal(tight.graphs.fits, [True, True, True, False])
    assert not (np.asarray(tight.graphs.graph) == 3).any()
    few = pack(node, edge, TAGS + 1, (node.size, int((edge[:2, :, 0] >= 0).sum())))
    np.testing.assert_array_equal(few.graphs.fits, [True, True, False, False])


def test_errors_say_what_was_expected():
    for section, text in (
        (dict(operators=("dropN",)), "none, drop, edges, mask, subgraph"),
        (dict(operators=()), "one or more"),
        (dict(ratio=1.0), "below 1"),
        (dict(keep=0.0), "above 0"),
        (dict(fill="zero"), "mean, noise"),
    ):
        with pytest.raises(ValueError, match=text):
            graph.make(**section)
    node, edge = _some(np.random.default_rng(2), 2)
    with pytest.raises(ValueError, match=r"sizes=source\.sizes"):
        graph.make().clean({"node": jnp.asarray(node), "edge": jnp.asarray(edge)})
    with pytest.raises(ValueError, match=r"\[B, E, 2\]"):
        graph.pack(node, edge[:, :, 0], 3)
