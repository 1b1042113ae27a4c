"""GIN: against loops over one graph at a time, blind to padding and to names of nodes; parameters;
devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from cl_jax.core.graphs import Graphs
from cl_jax.encoders import gin
from cl_jax.views import graph
from tests.losses.parity import AXIS

TAGS = 3


def _batch(rng, count=6, nodes=7, edges=14):
    node, edge = np.zeros((count, nodes), np.uint8), np.full((count, edges, 2), -1, np.int16)
    for i in range(count):
        n = 1 if i == 1 else int(rng.integers(3, nodes - 1))
        node[i, :n] = rng.integers(1, TAGS + 1, n)
        pairs = [(a, b) for a in range(n) for b in range(a + 1, n) if rng.uniform() < 0.5]
        if pairs:
            edge[i, : len(pairs)] = pairs[:edges]
    return {"node": node, "edge": edge}


VIEW = graph.make(sizes={"node": TAGS + 1})


def _network(batch, seed=0, **section):
    module = gin.make(**({"width": 5, "depth": 2} | section))
    variables = jax.jit(lambda key: module.init(key, VIEW.clean(batch), train=True))(
        jax.random.key(seed)
    )
    rng = np.random.default_rng(seed)
    return module, jax.tree.map(
        lambda x: jnp.asarray(rng.uniform(0.3, 1.2, x.shape), x.dtype), variables
    )


@partial(jax.jit, static_argnums=(0, 3))
def _apply(module, variables, batch, train):
    return module.apply(variables, VIEW.clean(batch), train=train, mutable=["batch_stats"])


def _expected(variables, batch, train):
    """{name: [B, ...]} in loops; moments over all nodes of the batch."""
    p, stats = variables["params"], variables["batch_stats"]
    graphs = []
    for tags, pairs in zip(batch["node"], batch["edge"]):
        n = int((tags > 0).sum())
        a = np.zeros((n, n))
        for u, v in pairs[pairs[:, 0] >= 0]:
            a[u, v] = a[v, u] = 1
        graphs.append((np.eye(TAGS)[tags[:n] - 1], a))
    found = {}
    for i in (1, 2):
        y = [x + a @ x for x, a in graphs]
        for name in ("in", "out"):
            w = p[f"layer{i}_{name}"]
            y = [np.maximum(one @ w["kernel"] + w["bias"], 0) for one in y]
        norm, kept = p[f"layer{i}_norm"], stats[f"layer{i}_norm"]
        all_nodes = np.concatenate(y)
        mean, var = (all_nodes.mean(0), all_nodes.var(0)) if train else (kept["mean"], kept["var"])
        y = [(one - mean) / np.sqrt(var + 1e-5) * norm["scale"] + norm["bias"] for one in y]
        found[f"block{i}"] = np.stack([one.sum(0) for one in y])
        graphs = [(one, a) for one, (_, a) in zip(y, graphs)]
    return found | {"h": np.concatenate(list(found.values()), axis=1)}


@pytest.mark.parametrize("train", [True, False])
def test_equals_the_definition(train):
    batch = _batch(np.random.default_rng(0))
    module, variables = _network(batch)
    ours, _ = _apply(module, variables, batch, train)
    expected = _expected(jax.device_get(variables), batch, train)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=2e-4, atol=2e-4, err_msg=name)


def test_names_of_nodes_and_padding_do_not_count():
    batch = _batch(np.random.default_rng(3))
    module, variables = _network(batch)
    expected, stats = _apply(module, variables, batch, True)
    turned = {"node": batch["node"].copy(), "edge": batch["edge"].copy()}
    for i in range(len(turned["node"])):
        n = int((batch["node"][i] > 0).sum())
        order = np.random.default_rng(i).permutation(n)
        turned["node"][i, order] = batch["node"][i, :n]
        real = batch["edge"][i, :, 0] >= 0
        turned["edge"][i, real] = order[batch["edge"][i, real]][:, ::-1]
    padded = {
        "node": np.pad(batch["node"], ((0, 0), (0, 9))),
        "edge": np.pad(batch["edge"], ((0, 0), (0, 5), (0, 0)), constant_values=-1),
    }
    for other in (turned, padded):
        found, changed = _apply(module, variables, other, True)
        np.testing.assert_allclose(found["h"], expected["h"], atol=2e-4)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), changed, stats)


def test_a_graph_without_a_place_is_nan_and_the_others_are_not():
    batch = _batch(np.random.default_rng(3))
    module, variables = _network(batch)
    graphs = jax.jit(VIEW.clean)(batch)
    cut = Graphs(*graphs)._replace(fits=graphs.fits.at[5].set(False))
    found = jax.jit(lambda graphs: module.apply(variables, graphs, train=False)["h"])(cut)
    np.testing.assert_array_equal(np.isnan(np.asarray(found)).any(1), [False] * 5 + [True])


@pytest.mark.parametrize(
    "width, depth, tags, expected",
    # Layers of GINConv(d-w-w) and batch norm: (d + 1) w + (w + 1) w + 2 w.
    [(32, 3, 7, 1376 + 2 * 2176), (32, 5, 37, 2336 + 4 * 2176), (300, 5, 1, 91_500 + 4 * 181_200)],
)
def test_parameters(width, depth, tags, expected):
    graphs = Graphs(
        *(jnp.zeros(s, d) for s, d in (((4, tags), float), ((4,), int), ((2,), int))),
        jnp.zeros(2, int),
        jnp.ones(1, bool),
    )
    module = gin.make(width=width, depth=depth)
    shapes = jax.eval_shape(partial(module.init, train=True), jax.random.key(0), graphs)
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == expected


def test_devices_agree():
    """Devices hold graphs of different sizes, so that their nodes weigh differently."""
    batch = _batch(np.random.default_rng(4), count=8)
    module, variables = _network(batch, axis_name=AXIS)
    mesh = jax.make_mesh((4,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    def apply(variables, batch):
        out, changed = module.apply(
            variables, VIEW.clean(batch), train=True, mutable=["batch_stats"]
        )
        return out["h"], changed

    split = PartitionSpec(AXIS)
    h, stats = jax.jit(
        jax.shard_map(
            apply,
            mesh=mesh,
            in_specs=(PartitionSpec(), split),
            out_specs=(split, PartitionSpec()),
            check_vma=False,
        )
    )(variables, batch)
    expected = _apply(gin.make(width=5, depth=2), variables, batch, True)
    np.testing.assert_allclose(h, expected[0]["h"], atol=2e-4)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), stats, dict(expected[1]))
