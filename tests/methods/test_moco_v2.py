"""What is MoCo's own: the order of EMA, logits and queue; keys in shuffled order; the symmetric
form."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run
from cl_jax.encoders import vit
from cl_jax.losses import nce
from cl_jax.methods import moco_v2
from cl_jax.views import make as recipe
from tests.small import Pixels, started

RUN = Run(None, 8, 32, 4, 8, {"label": 2})
VIEWS = (recipe({"name": "crop_flip", "crop": "none", "size": 8}),) * 2
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
BATCH = {"image": IMAGES, "id": np.arange(3, 11, dtype=np.int32)}
NETWORK = Pixels(norm=True, splits=2)
MOMENTUM = 0.9


def build(**settings):
    settings = {"queue_size": 20, "momentum": MOMENTUM, "out_dim": 8, "head": "linear"} | settings
    method = moco_v2.make(encoder=NETWORK, tx=optax.sgd(0.5), views=VIEWS, run=RUN, **settings)
    return method, started(method, BATCH), jax.jit(method.update)


def test_a_step_against_the_authors_order():
    """theta_k <- m theta_k + (1 - m) theta_q of before the step, then keys, logits, enqueue,
    optimiser."""
    _, state, update = build()
    theta_k, key = state.params, jax.random.key(1)
    for step in range(3):
        theta_k = jax.tree.map(
            lambda k, q: MOMENTUM * k + (1 - MOMENTUM) * q, theta_k, state.params
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), theta_k, state.target.params
        )
        before = state
        state, metrics = update(state, BATCH, jax.random.fold_in(key, step))
        new, at = state.memory.rows, (8 * step + np.arange(8)) % 20
        kept = np.setdiff1d(np.arange(20), at)
        np.testing.assert_array_equal(new[kept], before.memory.rows[kept])
        np.testing.assert_allclose(np.linalg.norm(new[at], axis=1), 1, atol=1e-5)
        assert np.abs(new[at] - before.memory.rows[at]).max() > 0.01
        assert state.memory.pointer == 8 * (step + 1) % 20
        assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.target.stats, before.target.stats)
    assert min(jax.tree.leaves(moved)) > 0, (
        "the key encoder's batch statistics follow its own passes"
    )


def test_keys_of_the_step_are_no_negatives_of_it(monkeypatch):
    seen = []
    softmax = nce.queue_softmax

    def recorded(q, k, queue, **settings):
        jax.debug.callback(lambda *arrays: seen.append(arrays), q, k, queue)
        return softmax(q, k, queue, **settings)

    monkeypatch.setattr(nce, "queue_softmax", recorded)
    _, state, update = build(temperature=0.2)
    after, metrics = update(state, BATCH, jax.random.key(1))
    jax.effects_barrier()
    q, k, queue = map(np.asarray, seen[0])
    np.testing.assert_array_equal(queue, state.memory.rows)
    np.testing.assert_allclose(after.memory.rows[:8], k, atol=1e-6)
    logits = np.concatenate([(q * k).sum(1, keepdims=True), q @ queue.T], 1) / 0.2
    np.testing.assert_allclose(
        metrics["loss"], (np.log(np.exp(logits).sum(1)) - logits[:, 0]).mean(), rtol=1e-5
    )


@pytest.mark.slow
def test_shuffling_changes_the_groups_and_not_the_order_of_the_keys():
    """With no groups to change it does nothing; with groups, keys come out other than without, yet
    in place."""
    whole = NETWORK.clone(splits=1)

    def keys(network, shuffle):
        net = moco_v2.Network(network, moco_v2.mlp.make(variant="linear", out_dim=8))
        apply = moco_v2.applier(net)

        @jax.jit
        def run(images):
            start = net.init(jax.random.key(0), images, True)
            return moco_v2.momentum_keys(
                apply,
                start["params"],
                start["batch_stats"],
                images,
                jax.random.key(2) if shuffle else None,
                None,
            )[0]

        return run(jnp.asarray(BATCH["image"], jnp.float32) / 255)

    np.testing.assert_allclose(keys(whole, True), keys(whole, False), atol=1e-5)
    grouped = keys(NETWORK, True)
    assert np.abs(grouped - keys(NETWORK, False)).max() > 1e-3
    nearest = np.argmax(grouped @ keys(whole, False).T, axis=1)
    assert (nearest == np.arange(8)).mean() > 0.5


@pytest.mark.slow
def test_symmetric_adds_both_directions_and_enqueues_both_views():
    _, state, update = build(symmetric=True, shuffle=False)
    _, one, single = build(shuffle=False)
    after, metrics = update(state, BATCH, jax.random.key(1))
    half, alone = single(one, BATCH, jax.random.key(1))
    assert after.memory.pointer == 16
    # Asymmetric keys are those of view 2, which lie behind those of view 1.
    np.testing.assert_allclose(after.memory.rows[8:16], half.memory.rows[:8], atol=1e-5)
    assert metrics["loss"] > alone["loss"] > 0


def test_errors():
    with pytest.raises(ValueError, match="queue_size=33 is more than the 32 examples"):
        build(queue_size=33)
    with pytest.raises(ValueError, match="config has 1 views"):
        moco_v2.make(encoder=NETWORK, tx=optax.sgd(0.1), views=VIEWS[:1], run=RUN, queue_size=8)


def test_networks_without_batch_norm_train_too():
    encoder = vit.make(width=8, depth=1, heads=1, patch=4, image_size=8)
    method = moco_v2.make(
        encoder=encoder, tx=optax.sgd(0.5), views=VIEWS, run=RUN, queue_size=20, out_dim=8
    )
    state = jax.eval_shape(method.init, jax.random.key(0), BATCH)
    after, metrics = jax.eval_shape(method.update, state, BATCH, jax.random.key(1))
    assert jax.tree.structure(after) == jax.tree.structure(state) and metrics["loss"].shape == ()
