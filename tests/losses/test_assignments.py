"""Sinkhorn, SwAV and DeepCluster v2 against loops, closed forms, stop-gradients, edges, and devices
against one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cl_jax.losses import _blocks, assignments
from cl_jax.memory import crop_queue
from tests.losses.compiled import compiled
from tests.losses.parity import assert_parity, unit

module = compiled(assignments)

SINKHORN = {"epsilon": 0.05, "iterations": 3}


def features(*shape, seed=0):
    return unit(np.random.default_rng(seed).normal(size=shape))


def oracle_sinkhorn(scores, epsilon, iterations):
    rows, columns = scores.shape
    q = np.exp(scores / epsilon)
    q /= q.sum()
    for _ in range(iterations):
        for k in range(columns):
            q[:, k] /= q[:, k].sum() * columns
        for b in range(rows):
            q[b] /= q[b].sum() * rows
    return q * rows


def oracle_cross_entropy(logits, label):
    return np.log(np.exp(logits).sum()) - logits[label]


def oracle_swav(scores, codes, temperature, assigned):
    terms = []
    for a, owner in enumerate(assigned):
        for v, s in enumerate(scores):
            if v != owner:
                for i in range(len(s)):
                    terms.append(
                        sum(
                            codes[a, i, k] * oracle_cross_entropy(s[i] / temperature, k)
                            for k in range(s.shape[1])
                        )
                    )
    return np.mean(terms)


@pytest.mark.parametrize("iterations", [0, pytest.param(1, marks=pytest.mark.slow), 3])
def test_sinkhorn_equals_loops(iterations):
    scores, queued = features(6, 8), features(4, 8, seed=1)
    with jax.enable_x64(True):
        alone = module.sinkhorn(scores, epsilon=0.05, iterations=iterations)
        both = module.sinkhorn(scores, queued, epsilon=0.05, iterations=iterations)
        unused = module.sinkhorn(
            scores, queued, epsilon=0.05, iterations=iterations, use_queued=jnp.array(False)
        )
    np.testing.assert_allclose(alone, oracle_sinkhorn(scores, 0.05, iterations), atol=1e-12)
    np.testing.assert_allclose(unused, alone, atol=1e-12)
    together = oracle_sinkhorn(np.concatenate([queued, scores]), 0.05, iterations)
    np.testing.assert_allclose(both, together[4:], atol=1e-12)


def test_sinkhorn_balances_and_forgets_constants():
    scores = features(12, 4)
    sinkhorn = jax.jit(partial(assignments.sinkhorn, **SINKHORN))
    codes = module.sinkhorn(scores, epsilon=0.1, iterations=40)
    np.testing.assert_allclose(codes.sum(0), 3, rtol=1e-3)
    np.testing.assert_allclose(codes.sum(1), 1, rtol=1e-6)
    # A score added to all examples of one prototype is divided out by the first step.
    np.testing.assert_allclose(sinkhorn(scores + np.arange(4)[None]), sinkhorn(scores), atol=1e-5)
    np.testing.assert_allclose(sinkhorn(np.ones((12, 4))), 0.25, rtol=1e-6)


def test_sinkhorn_keeps_float32_at_small_epsilon():
    """exp(scores / epsilon) overflows float32 here; with one global maximum taken off, the low rows
    would underflow."""
    scores = np.concatenate([features(6, 5), features(6, 5, seed=1) - 2])
    with jax.enable_x64(True):
        exact = module.sinkhorn(
            jnp.asarray(scores, jnp.float32).astype(jnp.float64), epsilon=0.01, iterations=3
        )
    np.testing.assert_allclose(
        module.sinkhorn(jnp.asarray(scores, jnp.float32), epsilon=0.01, iterations=3),
        exact,
        atol=2e-5,
    )


@pytest.mark.parametrize("epsilon", [0.05, 0.02])
def test_both_forms_of_sinkhorn_agree(epsilon, monkeypatch):
    """Of the last column the largest entry is exp(-2 / epsilon) of its row's, which float32 factors
    hold at an epsilon of 0.05; at 0.02 the sums are in logarithms. Of two crops, some of their rows
    at a time."""
    monkeypatch.setattr(_blocks, "BLOCK", 40)
    scores = features(2, 6, 5)
    scores[:, :, 4] = scores[:, :, :4].max(axis=2) - 2
    codes = partial(assignments.swav_codes, epsilon=epsilon, iterations=3)
    with jax.enable_x64(True):
        exact = jax.jit(codes)(scores)
    found = jax.jit(codes)(jnp.asarray(scores, jnp.float32))
    expected = np.stack([oracle_sinkhorn(crop, epsilon, 3) for crop in scores])
    np.testing.assert_allclose(exact, expected, atol=1e-10)
    np.testing.assert_allclose(found, exact, atol=2e-5)


def test_swav_equals_loops():
    scores, codes = features(4, 6, 5), module.swav_codes(features(2, 6, 5, seed=1), **SINKHORN)
    with jax.enable_x64(True):
        ours = [
            module.swav(scores, codes, temperature=0.1),
            module.swav(scores, codes, temperature=0.1, assigned=(3, 1)),
            module.swav(scores, codes[:1], temperature=0.1),
        ]
        loss = jax.jit(lambda s: assignments.swav(s, codes, temperature=0.1))
        check_grads(loss, (scores,), order=1, modes="rev")
    codes = np.asarray(codes, np.float64)
    expected = [
        oracle_swav(scores, codes, 0.1, (0, 1)),
        oracle_swav(scores, codes, 0.1, (3, 1)),
        oracle_swav(scores, codes[:1], 0.1, (0,)),
    ]
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    np.testing.assert_allclose(
        module.swav(0 * scores, codes, temperature=0.1), np.log(5), rtol=1e-6
    )


def test_swav_of_several_blocks_equals_loops(monkeypatch):
    """Blocks of five rows of the twelve; and the gradient of a temperature."""
    monkeypatch.setattr(_blocks, "BLOCK", 5 * 25)
    with jax.enable_x64(True):
        scores = features(3, 12, 5)
        codes = module.swav_codes(features(2, 12, 5, seed=1), **SINKHORN)

        @jax.jit
        def loss(scores, temperature):
            return assignments.swav(scores, codes, temperature=temperature)

        value = loss(scores, jnp.asarray(0.1))
        check_grads(loss, (scores, jnp.asarray(0.1)), order=1, modes=("fwd", "rev"), rtol=1e-4)
    expected = oracle_swav(scores, np.asarray(codes), 0.1, (0, 1))
    np.testing.assert_allclose(value, expected, atol=1e-12)


def test_no_gradient_through_codes():
    z, prototypes, queue = features(3, 6, 4), features(5, 4, seed=1), features(2, 8, 4, seed=2)

    def codes(z, prototypes, queue):
        scores = jnp.einsum("vbd,kd->vbk", z[:2], prototypes)
        return module.swav_codes(
            scores, queue, prototypes, crop_queue.filled(queue), **SINKHORN
        ).max()

    for grad in jax.jit(jax.grad(codes, argnums=(0, 1, 2)))(z, prototypes, queue):
        assert not np.any(grad)
    swav = partial(assignments.swav, temperature=0.1)
    grads = jax.jit(jax.grad(swav, argnums=(0, 1)))(z, features(2, 6, 4))
    assert np.any(grads[0]) and not np.any(grads[1])


def test_codes_use_a_filled_queue_alone():
    z, prototypes, queue = features(2, 6, 4), features(5, 4, seed=1), features(2, 8, 4, seed=2)
    queue[1, -1] = 0
    scores = np.einsum("vbd,kd->vbk", z, prototypes)
    codes = module.swav_codes(
        scores, queue, prototypes, crop_queue.filled(jnp.asarray(queue)), **SINKHORN
    )
    with_queue = oracle_sinkhorn(np.concatenate([queue[0] @ prototypes.T, scores[0]]), 0.05, 3)[8:]
    np.testing.assert_allclose(
        codes, np.stack([with_queue, oracle_sinkhorn(scores[1], 0.05, 3)]), atol=1e-5
    )


def test_deepcluster_v2_equals_loops_and_skips_examples_without_cluster():
    scores = [features(3, 5, 4), features(3, 5, 7, seed=1)]
    labels = np.array([[0, 3, -100, 1, 2], [6, -100, -100, 2, 0]])
    expected = np.mean(
        [
            np.mean(
                [
                    oracle_cross_entropy(s[v, i] / 0.1, y[i])
                    for v in range(3)
                    for i in range(5)
                    if y[i] >= 0
                ]
            )
            for s, y in zip(scores, labels)
        ]
    )
    with jax.enable_x64(True):
        loss = jax.jit(lambda *s: assignments.deepcluster_v2(s, labels, temperature=0.1))
        np.testing.assert_allclose(loss(*scores), expected, atol=1e-12)
        check_grads(loss, tuple(scores), order=1, modes="rev", rtol=1e-4)

    @jax.jit
    @jax.value_and_grad
    def one(s, labels):
        return assignments.deepcluster_v2([s], labels, temperature=0.1)

    _, grads = one(scores[0], labels[:1])
    assert not np.any(grads[:, 2]) and np.any(grads[:, 0])
    value, grads = one(scores[0], np.full((1, 5), -100))
    assert value == 0 and not np.any(grads)


def test_bfloat16_is_summed_in_float32():
    half = jnp.asarray(features(3, 6, 5), jnp.bfloat16)
    full, codes = half.astype(jnp.float32), module.swav_codes(half[:2], **SINKHORN)
    assert codes.dtype == jnp.float32
    np.testing.assert_allclose(codes, module.swav_codes(full[:2], **SINKHORN), atol=1e-6)
    labels = np.zeros((1, 6), int)
    for ours, expected in (
        (module.swav(half, codes, temperature=0.1), module.swav(full, codes, temperature=0.1)),
        (
            module.deepcluster_v2([half], labels, temperature=0.1),
            module.deepcluster_v2([full], labels, temperature=0.1),
        ),
    ):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("block", [1 << 17, 8])
def test_swav_parity_over_devices(block, monkeypatch):
    """The whole of a step's mathematics: the global queue makes it the same on any number of
    devices."""
    monkeypatch.setattr(_blocks, "BLOCK", block)
    z, prototypes, queue = features(8, 3, 4), features(5, 4, seed=1), features(2, 6, 4, seed=2)

    def loss(z, prototypes, queue, axis_name):
        scores = jnp.einsum("bvd,kd->vbk", z, prototypes)
        codes = assignments.swav_codes(
            scores[:2], queue, prototypes, crop_queue.filled(queue), **SINKHORN, axis_name=axis_name
        )
        return assignments.swav(scores, codes, temperature=0.1, axis_name=axis_name)

    assert_parity(loss, (z, prototypes, queue), [True, False, False])


def test_sinkhorn_over_devices_and_queues_of_devices():
    scores, queued = features(2, 4, 5), features(2, 3, 5, seed=1)

    def codes(per_device, **knobs):
        return jax.jit(
            jax.vmap(
                lambda s, q: module.sinkhorn(
                    s, q, queued_per_device=per_device, axis_name="i", **knobs
                ),
                axis_name="i",
            )
        )

    rows = np.concatenate(scores)
    for iterations in (0, 3):
        knobs = {"epsilon": 0.05, "iterations": iterations}
        local = codes(True, **knobs)(scores, queued).reshape(8, 5)
        shared = codes(False, **knobs)(scores, np.stack([queued[0]] * 2)).reshape(8, 5)
        np.testing.assert_allclose(
            local, oracle_sinkhorn(np.concatenate([*queued, rows]), **knobs)[6:], atol=1e-5
        )
        np.testing.assert_allclose(
            shared, oracle_sinkhorn(np.concatenate([queued[0], rows]), **knobs)[3:], atol=1e-5
        )


def test_queues_of_devices_and_of_the_global_batch_give_the_same_codes():
    """Where the global batch divides the length: 3 batches of 4 rows on 2 devices, in queues of 2 x
    4 or 8 rows."""
    prototypes, steps = (
        features(5, 4),
        features(3, 2, 1, 2, 4, seed=1),
    )  # steps, devices, crops, rows, width

    def run(length, per_device):
        def step(z, queue):
            codes = module.swav_codes(
                jnp.einsum("abd,kd->abk", z, prototypes),
                queue,
                prototypes,
                crop_queue.filled(queue),
                **SINKHORN,
                queue_per_device=per_device,
                axis_name="i",
            )
            return codes, crop_queue.push(queue, z, axis_name=None if per_device else "i")

        queue, out = jnp.zeros((2, 1, length, 4)), []
        mapped = jax.jit(jax.vmap(step, axis_name="i"))
        for z in steps:
            codes, queue = mapped(jnp.asarray(z, jnp.float32), queue)
            out.append(codes)
        return out

    for local, shared in zip(run(4, True), run(8, False)):
        np.testing.assert_allclose(local, shared, atol=1e-6)


def test_deepcluster_v2_parity_over_devices():
    labels = np.array([0, 3, -100, 1, 2, -100, 0, 1])  # devices with and without assigned examples

    def loss(scores, labels, axis_name):
        return module.deepcluster_v2(
            [jnp.moveaxis(scores, 0, 1)], [labels], temperature=0.1, axis_name=axis_name
        )

    assert_parity(loss, (features(8, 2, 4), labels), [True, True])


def test_errors():
    scores, codes, queue = features(3, 6, 5), features(2, 6, 5), features(2, 8, 4)
    with pytest.raises(ValueError, match=r"codes has shape \(2, 6, 4\).*k = 5"):
        module.swav(scores, codes[..., :4], temperature=0.1)
    with pytest.raises(ValueError, match=r"views \[0, 3\]; expected 2 numbers from 0 to 2"):
        module.swav(scores, codes, temperature=0.1, assigned=(0, 3))
    with pytest.raises(ValueError, match="There are 1 views"):
        module.swav(scores[:1], codes[:1], temperature=0.1)
    with pytest.raises(ValueError, match="epsilon is 0"):
        module.sinkhorn(scores[0], epsilon=0, iterations=3)
    with pytest.raises(ValueError, match="iterations is -1; expected 0 or more"):
        module.sinkhorn(scores[0], epsilon=0.05, iterations=-1)
    with pytest.raises(ValueError, match="A queue needs the prototypes"):
        module.swav_codes(codes, queue, **SINKHORN)
    with pytest.raises(ValueError, match="axis_name='i' is not mapped"):
        module.sinkhorn(scores[0], **SINKHORN, axis_name="i")
    with pytest.raises(ValueError, match="scores of 1 clusterings and 2 assignments"):
        module.deepcluster_v2([scores], np.zeros((2, 6), int), temperature=0.1)
    with pytest.raises(ValueError, match="assignments has dtype float"):
        module.deepcluster_v2([scores], np.zeros((1, 6)), temperature=0.1)
    with pytest.raises(ValueError, match=r"labels has shape \(5,\).*b = 6"):
        module.cross_entropy(scores[0], np.zeros(5, int))
