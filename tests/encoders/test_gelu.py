"""GELU: jax's values and derivatives, and a gradient on a CPU that needs no error function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from cl_jax.core import parallel
from cl_jax.encoders.gelu import gelu

X = jnp.asarray([-1e30, -40.0, -5.0, -1.5, -1e-3, -1e-35, 0.0, 1e-42, 1e-6, 0.3, 2.0, 6.0, 1e30])


def plain(x):
    return jax.nn.gelu(x, approximate=False)


def both(f):
    def twice(x):
        return jnp.square(jax.grad(lambda x: jnp.sin(f(x)).sum())(x)).sum()

    def forward(x):
        return jax.jvp(f, (x,), (jnp.ones_like(x),))[1]

    return jax.jit(
        lambda x: (f(x), jax.grad(lambda x: f(x).sum())(x), forward(x), jax.grad(twice)(x))
    )


def test_values_tangents_gradients_and_second_gradients_are_jaxs():
    ordinary = X[1:-1]
    for a, b in zip(both(gelu)(ordinary), both(plain)(ordinary)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(gelu(X[np.array([0, -1])]), [0, X[-1]])
    np.testing.assert_array_equal(jax.grad(lambda x: gelu(x).sum())(X)[np.array([0, -1])], [0, 1])


def test_sixteen_bits_keep_their_type_and_precision():
    x = jnp.linspace(-4, 4, 101, dtype=jnp.bfloat16)
    found, exact = both(gelu)(x)[:3], both(plain)(x.astype(jnp.float32))[:3]
    for a, b in zip(found, exact):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0.005, atol=0.005)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_a_gradient_on_a_cpu_needs_no_error_function(platform):
    back = jax.jit(lambda x, dy: jax.vjp(gelu, x)[1](dy)).trace(X, X)
    text = back.lower(lowering_platforms=(platform,)).as_text()
    _, saved = jax.vjp(gelu, X)
    alone = jax.jit(lambda saved, dy: saved(dy)).trace(saved, X)
    gradient = alone.lower(lowering_platforms=(platform,)).as_text()
    assert "erf" in text
    assert ("erf" in gradient) == (platform == "cuda")


@pytest.mark.parametrize("check_vma", [True, False])
def test_across_devices(check_vma):
    x = X[1:-2]
    mapped = jax.shard_map(
        gelu,
        mesh=parallel.make_mesh(2),
        in_specs=P(parallel.AXIS),
        out_specs=P(parallel.AXIS),
        check_vma=check_vma,
    )
    found = jax.jit(jax.grad(lambda x: mapped(x).sum()))(x)
    np.testing.assert_allclose(found, jax.grad(lambda x: gelu(x).sum())(x), rtol=1e-6)
