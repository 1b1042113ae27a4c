"""Max pooling: Flax's values and gradient, also where windows hold equal values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.encoders.pool import max_pool

RNG = np.random.default_rng(0)
IMAGES = {
    "distinct": RNG.normal(size=(2, 7, 8, 3)),
    "rectified": np.maximum(RNG.normal(size=(2, 7, 8, 3)), 0),
    "equal": RNG.integers(0, 2, (2, 7, 8, 3)),
}


@pytest.mark.parametrize("padding", ["VALID", "SAME", ((1, 1), (1, 1)), ((0, 1), (0, 1))])
@pytest.mark.parametrize("window, strides", [((3, 3), (2, 2)), ((2, 3), (3, 1))])
def test_value_and_gradient_are_flax_s(window, strides, padding):
    def both(pool, x):
        y, vjp = jax.vjp(lambda x: pool(x, window, strides, padding), x)
        return y, vjp(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))[0]

    for x in IMAGES.values():
        x = jnp.asarray(x, jnp.float32)
        (y, dx), (expected, d_expected) = (
            jax.jit(both, static_argnums=0)(max_pool, x),
            both(nn.max_pool, x),
        )
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_allclose(dx, d_expected, atol=1e-6)


def test_bfloat16_stays():
    x = jnp.asarray(IMAGES["distinct"], jnp.bfloat16)
    y, vjp = jax.vjp(lambda x: max_pool(x, (3, 3), (2, 2)), x)
    assert y.dtype == vjp(y)[0].dtype == jnp.bfloat16


def test_forward_mode_and_products_with_the_hessian_are_flax_s():
    x = jnp.asarray(IMAGES["distinct"], jnp.float32)

    def derivatives(pool, x):
        def value(x):
            return jnp.sin(pool(x, (3, 3), (2, 2))).sum()

        return jax.jvp(value, (x,), (x + 1,)), jax.jvp(jax.grad(value), (x,), (x + 1,))[1]

    ours, theirs = (
        jax.tree.leaves(jax.jit(derivatives, static_argnums=0)(f, x))
        for f in (max_pool, nn.max_pool)
    )
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
