"""CALM's token losses against loops, and what padding, weights and devices may not change."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.losses import calm
from tests.losses.compiled import compiled
from tests.losses.parity import assert_parity

module = compiled(calm)


def batch(seed=0, rows=8, steps=5, words=7):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, words, (rows, steps))
    for i in range(rows):
        labels[i, rng.integers(1, steps + 1) :] = -100
    return rng.normal(size=(rows, steps, words)), labels


def oracle_rows(logits, labels):
    rows = []
    for scores, targets in zip(logits, labels):
        rows.append(
            sum(s[t] - np.log(np.exp(s).sum()) for s, t in zip(scores, targets) if t != -100)
        )
    return np.array(rows)


def test_equals_loops():
    logits, labels = batch()
    logits_dis, labels_dis = batch(1, steps=3)
    rows, rows_dis = oracle_rows(logits, labels), oracle_rows(logits_dis, labels_dis)
    mean, mean_dis = -rows.sum() / (labels >= 0).sum(), -rows_dis.sum() / (labels_dis >= 0).sum()
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            module.token_log_likelihood(logits, jnp.asarray(labels)), rows, atol=1e-12
        )
        np.testing.assert_allclose(
            module.token_cross_entropy(jnp.asarray(logits), labels), mean, atol=1e-12
        )
        joint = module.calm(
            jnp.asarray(logits),
            labels,
            jnp.asarray(logits_dis),
            labels_dis,
            weight_gen=0.5,
            weight_dis=2,
        )
    np.testing.assert_allclose(joint, 0.5 * mean + 2 * mean_dis, atol=1e-12)


def test_uniform_logits_know_nothing_and_padding_takes_no_gradient():
    logits, labels = batch()
    np.testing.assert_allclose(
        module.token_cross_entropy(jnp.full_like(logits, 3.0), labels), np.log(7), rtol=1e-6
    )
    grad = jax.grad(module.token_cross_entropy)(jnp.asarray(logits), labels)
    assert not np.any(np.asarray(grad)[labels == -100]) and np.all(
        np.any(np.asarray(grad)[labels >= 0], axis=-1)
    )


def test_a_batch_without_targets_is_zero():
    logits, labels = batch()
    value, grad = jax.value_and_grad(module.token_cross_entropy)(
        jnp.asarray(logits), np.full_like(labels, -100)
    )
    assert value == 0 and not np.any(grad)


def test_shift_right():
    labels = np.array([[5, 2, -100, -100], [-100, -100, -100, -100], [1, 2, 3, 4]])
    np.testing.assert_array_equal(
        module.shift_right(labels, pad_id=9), [[9, 5, 2, 9], [9, 9, 9, 9], [9, 1, 2, 3]]
    )


def test_bfloat16_logits_are_summed_in_float32():
    logits, labels = batch()
    low = jnp.asarray(logits, jnp.bfloat16)
    value = module.token_cross_entropy(low, labels)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(
        value, module.token_cross_entropy(low.astype(jnp.float32), labels), rtol=1e-6
    )


def test_devices_agree():
    logits, labels = batch()

    def loss(logits, labels, logits_dis, labels_dis, axis_name):
        return module.calm(
            logits,
            labels,
            logits_dis,
            labels_dis,
            weight_gen=1.0,
            weight_dis=0.5,
            axis_name=axis_name,
        )

    assert_parity(loss, (logits, labels, *batch(1, steps=3)), (True,) * 4)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x, y: module.token_cross_entropy(x, y[:3]), "labels"),
        (lambda x, y: module.token_cross_entropy(x, y.astype(float)), "integers"),
        (lambda x, y: module.token_cross_entropy(x.astype(int), y), "floating-point"),
        (lambda x, y: module.token_cross_entropy(x, y, axis_name="nowhere"), "not mapped"),
        (partial(module.token_log_likelihood), None),
    ],
)
def test_errors(call, words):
    logits, labels = batch()
    if words is None:
        assert call(logits, labels).shape == (8,)
        return
    with pytest.raises(ValueError, match=words):
        call(logits, labels)
