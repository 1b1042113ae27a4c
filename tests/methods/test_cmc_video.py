"""CMC on film: what its losses are made of, its banks, the probe of order, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run
from cl_jax.encoders import conv
from cl_jax.evals import frame_order
from cl_jax.methods import cmc_video
from cl_jax.views import streams
from tests.small import started, updates

RUN = Run(None, 4, 16, 4, 8, {})
VIEW = streams.make(gap=1, fields=1, levels=1, size=8, flip=0.0, test_crop=1.0, mean=None, std=None)
RNG = np.random.default_rng(0)
BATCH = {
    "clip": RNG.integers(0, 256, (4, 4, 8, 8, 3), np.uint8),
    "id": np.array([3, 1, 14, 9], np.int32),
}
TOWER = conv.ConvNet([(4, 4, 4, 0, False)])
ENCODER = {"frame": TOWER, "flow": TOWER}
ROLES = list(cmc_video.ROLES)


def build(**settings):
    settings = {"encoder": ENCODER, "views": (VIEW,), "run": RUN, "out_dim": 6} | settings
    return cmc_video.make(tx=optax.sgd(0.1), temperature=0.5, **settings)


def cross_entropies(a, b):
    logits = a @ b.T / 0.5
    own = np.diag(logits)
    return sum(np.log(np.exp(x).sum(1)).mean() - own.mean() for x in (logits, logits.T))


@pytest.mark.slow
def test_the_loss_is_the_sum_over_edges_and_directions():
    method = build()
    state = jax.jit(method.init)(jax.random.key(0), BATCH)
    key = jax.random.key(5)
    after, metrics = updates(method)(state, BATCH, key)
    (inputs,) = method.views({k: jnp.asarray(v) for k, v in BATCH.items()}, key)
    one, _ = method.features(state.params, state.stats, inputs, True)
    frame, flow = np.split(np.asarray(one["z"], np.float64), 2, axis=-1)
    moved = inputs | {"frame": inputs["neighbour"]}
    near, _ = method.features(state.params, state.stats, moved, True)
    neighbour = np.asarray(near["z"], np.float64)[:, :6]
    expected = cross_entropies(frame, neighbour), cross_entropies(frame, flow)
    np.testing.assert_allclose(metrics["loss_neighbour"], expected[0], rtol=1e-4)
    np.testing.assert_allclose(metrics["loss_flow"], expected[1], rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], sum(expected), rtol=1e-4)
    np.testing.assert_allclose(metrics["chance"], 4 * np.log(4), rtol=1e-6)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.params, state.params)
    heads = [moved[role]["head"] for role in ("frame", "flow")]
    assert all(change > 0 for change in jax.tree.leaves(heads))
    found = jax.jit(method.functions["frames"])(state, BATCH)
    assert found.shape[:2] == (4, 4)


@pytest.mark.parametrize("edges, roles", [(("neighbour",), ["frame"]), (("flow",), ROLES)])
def test_a_network_that_no_edge_trains_is_in_no_feature(edges, roles):
    method = build(edges=edges)
    state = jax.eval_shape(method.init, jax.random.key(0), BATCH)
    found = jax.eval_shape(method.functions["encode"], state, BATCH)
    assert sorted(found) == sorted([*roles, "h", "z"])
    widths = {name: rows.shape[-1] for name, rows in found.items()}
    assert widths["h"] == sum(widths[role] for role in roles) and widths["z"] == 6 * len(roles)


def test_the_bank_keeps_the_batch_and_nothing_else():
    method = build(negatives="bank", num_negatives=5)
    state = started(method, BATCH)
    after, metrics = updates(method)(state, BATCH, jax.random.key(5))
    assert np.isfinite(metrics["loss"])
    for role in ("frame", "flow"):
        moved = np.abs(np.asarray(after.memory[role].rows - state.memory[role].rows)).max(1)
        assert np.flatnonzero(moved > 1e-3).tolist() == [1, 3, 9, 14]
    np.testing.assert_allclose(metrics["chance"], 4 * np.log(6), rtol=1e-6)


def test_the_probe_of_order_tells_paths_from_jumps():
    start, step = RNG.normal(size=(200, 1, 5)), RNG.normal(size=(200, 1, 5))
    paths = start + step * np.arange(6)[None, :, None]
    x, y = frame_order.products(paths, 0)
    assert ((x > 0).all(1) == y).all() and y.sum() == 100
    with pytest.raises(ValueError, match="clips have 2 frames"):
        frame_order.products(paths[:, :2], 0)


def test_errors_say_what_was_expected():
    for settings, text in (
        (dict(encoder=TOWER), "sections frame and flow"),
        (dict(views=()), "one view of kind='streams'; the config has 0"),
        (dict(negatives="none"), "negatives='none'"),
        (dict(edges=("depth",)), r"edges=\['depth'\]"),
    ):
        with pytest.raises(ValueError, match=text):
            build(**settings)
