"""The product of dense layers: JAX's values and gradients, and no transposed copy on the way."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cl_jax.encoders.dense import dot_general


def value(product, x, kernel):
    numbers = (((x.ndim - 1,), (0,)), ((), ()))
    return jnp.sin(product(x, kernel, numbers).astype(jnp.float32)).sum()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_are_those_of_jax(dtype):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((2, 3, 5, 4), (2, 4, 6)))
    ours, theirs = (
        jax.jit(jax.vmap(jax.value_and_grad(lambda x, k, f=f: value(f, x, k), (0, 1))))(x, kernel)
        for f in (dot_general, lax.dot_general)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(
            np.float32(a), np.float32(b), rtol=1e-5 if dtype == jnp.float32 else 2e-2, atol=1e-2
        )


def test_nothing_is_transposed():
    x, kernel = jnp.ones((3, 5, 4)), jnp.ones((4, 6))

    def program(product):
        return str(jax.make_jaxpr(jax.grad(lambda k: value(product, x, k)))(kernel))

    assert "transpose" in program(lax.dot_general)
    assert "transpose[" not in program(dot_general)


def test_other_products_are_refused():
    x, kernel = jnp.ones((3, 4)), jnp.ones((4, 6))
    with pytest.raises(ValueError, match="Use lax"):
        dot_general(x, kernel.T, (((1,), (1,)), ((), ())))
    with pytest.raises(ValueError, match="precision"):
        nn.Dense(6, precision="highest", dot_general=dot_general).init(jax.random.key(0), x)
