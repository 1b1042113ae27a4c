"""What is DeepCluster's own: the front end, dropout by example, the E-step, the fresh top layer and
its optimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from cl_jax.cluster.kmeans import assign
from cl_jax.cluster.whitening import pca_whiten
from cl_jax.core.method import Run
from cl_jax.data.batches import balanced_order
from cl_jax.encoders.alexnet import AlexNet
from cl_jax.methods import deepcluster
from cl_jax.training import optim
from cl_jax.training.steps import refreshed
from cl_jax.views import make as recipe
from tests.small import Pixels

RUN = Run(None, 8, 32, 4, 8, {"label": 2})
VIEWS = (recipe({"name": "crop_flip", "crop": "none", "size": 8, "test_crop": 1.0}),)
IMAGES = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), np.uint8)
BATCH = {"image": IMAGES[3:11], "id": np.arange(3, 11, dtype=np.int32)}
NETWORK = Pixels(norm=True)


def build(**settings):
    settings = {"num_clusters": 5, "pca_dim": 6, "hidden_dims": (16,)} | settings
    return deepcluster.make(encoder=NETWORK, tx=optim.sgd(0.1), views=VIEWS, run=RUN, **settings)


@pytest.fixture(scope="module")
def trained():
    """(method, compiled update, State after a step, the same after an E-step, encode_all and its
    features)."""
    method = build()
    update = jax.jit(method.update)
    start = jax.device_put(jax.jit(method.init)(jax.random.key(0), BATCH), jax.devices()[0])
    state, metrics = update(start, BATCH, jax.random.key(1))
    np.testing.assert_allclose(metrics["chance"], np.log(5), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], np.log(5), atol=0.1)
    found = {}

    def encode_all(f):
        found["rows"] = np.asarray(jax.jit(f)(state, {"image": IMAGES}))
        return found["rows"]

    return (
        method,
        update,
        state,
        refreshed(method.refresh, state, encode_all, 1),
        encode_all,
        found["rows"],
    )


def test_e_step(trained):
    method, _, state, after, _, rows = trained
    assert rows.shape == (32, 16) and (rows < 0).any()  # before the last ReLU
    assignment = np.asarray(after.memory.assignment)
    whitened = pca_whiten(jnp.asarray(rows), 6)
    assert len(np.unique(assignment)) == 5
    means = jnp.stack(
        [whitened[assignment == c].mean(0) for c in range(5)]
    )  # 20 iterations are enough for a fixed point
    np.testing.assert_array_equal(assign(whitened, means)[0], assignment)
    order = method.order(after, 3, 0)
    np.testing.assert_array_equal(order, balanced_order(0, 3, assignment)[: len(order)])
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )


def test_only_the_top_layer_is_new(trained):
    _, _, state, after, *_ = trained
    kernel = np.asarray(after.params["top"]["kernel"])
    assert abs(kernel.std() - 0.01) < 0.003 and not np.any(after.params["top"]["bias"])
    assert np.abs(kernel - state.params["top"]["kernel"]).max() > 0.01
    for kept in (lambda s: s.params["network"], lambda s: s.opt, lambda s: s.stats):
        jax.tree.map(np.testing.assert_array_equal, kept(after), kept(state))
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.opt)]
    assert (16, 5) not in shapes and (5,) not in shapes  # no momentum of the top layer
    assert state.params["network"]["dense1"]["kernel"].shape in shapes


def test_every_epoch_has_its_own_start_and_the_same_one_again(trained):
    method, _, _, after, encode_all, _ = trained
    again = method.refresh(after, encode_all, 1)
    np.testing.assert_array_equal(again.memory.assignment, after.memory.assignment)
    assert after.memory.agreement == 0
    np.testing.assert_allclose(again.memory.agreement, 1, atol=1e-6)
    other = method.refresh(after, encode_all, 2)
    assert np.any(np.asarray(other.params["top"]["kernel"]) != after.params["top"]["kernel"])
    assert 0 < other.memory.agreement < 1


def test_labels_are_those_of_the_ids(trained):
    _, update, _, after, *_ = trained

    def loss_with(ids):
        assignment = after.memory.assignment.at[ids].set((after.memory.assignment[ids] + 1) % 5)
        moved = after.replace(memory=after.memory._replace(assignment=assignment))
        return update(moved, BATCH, jax.random.key(2))[1]["loss"]

    plain = update(after, BATCH, jax.random.key(2))[1]["loss"]
    assert loss_with(np.arange(11, 32)) == plain
    assert loss_with(np.arange(3, 11)) != plain
    assert update._cache_size() == 1  # the E-step's State runs in the compiled step


def test_sobel_is_that_of_the_mean_channel():
    images = np.random.default_rng(1).normal(size=(2, 6, 7, 3)).astype(np.float32)
    found = deepcluster.sobel(jnp.asarray(images))
    across, down = [[1, 0, -1], [2, 0, -2], [1, 0, -1]], [[1, 2, 1], [0, 0, 0], [-1, -2, -1]]
    for image, got in zip(images.mean(3), found):
        for channel, weights in enumerate((across, down)):
            np.testing.assert_allclose(
                got[..., channel], signal.correlate2d(image, weights, "same"), atol=1e-5
            )


def test_dropout_is_of_the_example():
    keys, rows = jax.random.split(jax.random.key(0), 4), jnp.ones((4, 400))
    dropped = deepcluster.drop(rows, keys, 0.25)
    np.testing.assert_array_equal(dropped[::-1], deepcluster.drop(rows, keys[::-1], 0.25))
    np.testing.assert_allclose(np.unique(dropped), [0, 4 / 3], rtol=1e-6)
    assert abs(float(dropped.mean()) - 1) < 0.1 and np.any(dropped[0] != dropped[1])


def test_the_authors_network():
    encoder = AlexNet(width=1.0, fully_connected=False, kernel_init="he_fan_out")
    network = deepcluster.Network(encoder, (4096, 4096), 0.5, True)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    (before, _, named), start = jax.eval_shape(
        lambda x: network.init_with_output(jax.random.key(0), x, True), image
    )
    assert before.shape == (1, 4096) and named["h"].shape == (1, 256 * 6 * 6)
    maps = (
        2 * 96 * 121
        + 96 * 256 * 25
        + 9 * (256 * 384 + 384 * 384 + 384 * 256)
        + 2 * (96 + 256 + 384 + 384 + 256)
    )
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(start["params"]))
        == maps + 9217 * 4096 + 4097 * 4096
    )


def test_errors():
    with pytest.raises(ValueError, match=r"num_clusters=33.*at most the 32 examples"):
        build(num_clusters=33)
    with pytest.raises(ValueError, match="dropout is 1"):
        build(dropout=1)
    with pytest.raises(ValueError, match="pca_dim=17; expected 1 to 16"):
        jax.eval_shape(build(pca_dim=17).init, jax.random.key(0), BATCH)
