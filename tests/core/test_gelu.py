import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from cl_jax.core.gelu import gelu

X = np.linspace(-12, 12, 961)


def test_values_and_gradient_are_those_of_the_normal_distribution():
    x = jnp.asarray(X, jnp.float32)
    value, gradient = jax.jit(lambda x: (gelu(x), jax.vjp(gelu, x)[1](jnp.ones_like(x))[0]))(x)
    np.testing.assert_allclose(value, X * special.ndtr(X), rtol=3e-7, atol=1e-6)
    density = np.exp(-(X**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(gradient, special.ndtr(X) + X * density, rtol=3e-7, atol=1e-6)


def test_half_precision_is_the_rounded_result():
    x = jnp.asarray(X, jnp.bfloat16)
    rounded = gelu(x.astype(jnp.float32)).astype(jnp.bfloat16)
    assert gelu(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(gelu(x).astype(jnp.float32), rounded.astype(jnp.float32))
