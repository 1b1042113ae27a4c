"""Norms, softmaxes and types: what stays finite, and where gradient is zero."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.core.numerics import common_type, dots, log_softmax, log_sum_exp, softmax, unit
from cl_jax.losses.nce import init_normalizer
from cl_jax.losses.positives import supcon


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("eps", [1e-12, 1e-6])
def test_a_row_shorter_than_eps_has_zero_gradient(dtype, eps):
    x = jnp.stack([jnp.zeros(4), jnp.full(4, eps / 8), jnp.ones(4)]).astype(dtype)
    weight = jnp.arange(12.0).reshape(3, 4)
    value, grad = jax.jit(jax.value_and_grad(lambda x: (unit(x, eps) * weight).sum()))(x)
    assert np.isfinite(value)
    np.testing.assert_array_equal(grad[:2], 0)
    assert np.isfinite(grad.astype(jnp.float32)).all() and (grad[2] != 0).any()


def test_gradient_of_a_short_row_in_float16_fits_the_type():
    x = jnp.full((1, 4), 6e-8, jnp.float16)  # the smallest number: 1 / norm is above 65,504
    assert np.isfinite(jax.grad(lambda x: unit(x).sum())(x).astype(np.float32)).all()


def test_unit_rows_along_any_axis():
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(unit(x, axis=0), axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(unit(x), x / np.linalg.norm(x, axis=1, keepdims=True), rtol=1e-6)


def test_log_sum_exp_and_softmax_against_float64():
    x = np.random.default_rng(0).normal(size=(4, 5)) * 30
    exact = np.log(np.exp(x - x.max(1, keepdims=True)).sum(1)) + x.max(1)
    np.testing.assert_allclose(log_sum_exp(x.astype(np.float32), axis=1), exact, rtol=1e-6)
    np.testing.assert_allclose(
        log_softmax(x.astype(np.float32), 2.0),
        x / 2 - np.log(np.exp(x / 2).sum(1, keepdims=True)),
        rtol=1e-5,
        atol=1e-5,
    )
    keep = x > -20
    some = np.where(keep, np.exp(x), 0)
    np.testing.assert_allclose(
        softmax(x.astype(np.float32), where=keep), some / some.sum(1, keepdims=True), atol=1e-6
    )


def test_nothing_to_sum_is_minus_infinity_without_nan():
    x = jnp.array([[-jnp.inf, -jnp.inf], [0.0, -jnp.inf]])
    np.testing.assert_array_equal(log_sum_exp(x, axis=1), [-np.inf, 0])
    grad = jax.grad(lambda x: log_sum_exp(x, axis=1)[1])(x)
    np.testing.assert_array_equal(grad, [[0, 0], [1, 0]])


def test_logits_whose_rounding_step_is_large_stay_finite():
    """XLA may compute the maximum and what is subtracted from it in kernels that round apart."""
    q = 1e5 * np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    f = jax.jit(
        jax.value_and_grad(lambda q: log_sum_exp(dots("bd,kd->bk", q, q) / 0.07, axis=1)[0])
    )
    value, grad = f(q)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_common_type_under_strict_promotion():
    with jax.numpy_dtype_promotion("strict"):
        a, b = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((2, 3), jnp.float32)
        assert common_type(a, b) == jnp.float32
        assert dots("bd,kd->bk", a, b).dtype == jnp.float32


def test_the_normaliser_has_jax_default_type():
    assert init_normalizer().log_z.dtype == jnp.float32
    with jax.enable_x64(True):
        assert init_normalizer(2.0).log_z.dtype == jnp.float64


def test_rows_that_are_not_unit_are_warned_of_in_debug_mode():
    z = jnp.ones((4, 3))
    loss = partial(supcon, z[:, None], jnp.array([0, 0, 1, 1]), temperature=0.1)
    with jax.debug_nans(True):
        with pytest.warns(UserWarning, match=r"features has a row whose length is 0.732 off 1"):
            jax.block_until_ready(jax.jit(partial(loss, normalise=False))())
            jax.effects_barrier()
        jax.block_until_ready(jax.jit(loss)())  # normalised here: nothing to say
        unit_rows = partial(supcon, unit(z)[:, None], temperature=0.1, normalise=False)
        jax.block_until_ready(jax.jit(unit_rows)())
        jax.effects_barrier()
    jax.block_until_ready(jax.jit(partial(loss, normalise=False))())


def test_normalising_here_is_normalising_before():
    z = jax.random.normal(jax.random.key(0), (6, 2, 5))
    labels = jnp.array([0, 0, 1, 1, 2, -1])
    loss = partial(supcon, labels=labels, temperature=0.1)

    @jax.jit
    def both(z):
        here = jax.value_and_grad(loss)(z)
        return here, jax.value_and_grad(lambda z: loss(unit(z), normalise=False))(z)

    for a, b in zip(*both(z)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
