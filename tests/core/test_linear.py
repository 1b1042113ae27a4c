"""A linear function with a transpose by hand equals the plain one under every transformation."""

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.core.linear import linear

MATRIX = jnp.array([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]])


def by_hand(matrix, x):
    return linear(lambda a, x: a @ x, lambda a, y: a.T @ y, matrix, x)


def plain(matrix, x):
    return matrix @ x


X = jnp.array([0.3, -2.0])
TRANSFORMATIONS = {
    "value": lambda f: f(MATRIX, X),
    "jit": lambda f: jax.jit(f)(MATRIX, X),
    "forward": lambda f: jax.jvp(lambda x: f(MATRIX, x), (X,), (X + 1,)),
    "reverse": lambda f: jax.grad(lambda x: jnp.sum(f(MATRIX, x) ** 2))(X),
    "hessian": lambda f: jax.hessian(lambda x: jnp.sum(f(MATRIX, x) ** 3))(X),
    "vmap": lambda f: jax.vmap(f, (None, 0))(MATRIX, jnp.stack([X, 2 * X, 3 * X])),
    "vmap of gradient": lambda f: jax.vmap(jax.grad(lambda x: jnp.sum(f(MATRIX, x) ** 2)))(
        jnp.stack([X, 2 * X])
    ),
    "scan": lambda f: jax.lax.scan(lambda c, x: (c + f(MATRIX, x), None), jnp.zeros(3), X[None])[0],
}


def test_equal_to_the_plain_function():
    for name, how in TRANSFORMATIONS.items():
        for ours, theirs in zip(jax.tree.leaves(how(by_hand)), jax.tree.leaves(how(plain))):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, err_msg=name)


def test_the_transpose_that_was_given_is_the_one_that_runs():
    wrong = jax.grad(
        lambda x: jnp.sum(linear(lambda a, x: a @ x, lambda a, y: 10 * (a.T @ y), MATRIX, x))
    )(X)
    np.testing.assert_allclose(wrong, 10 * MATRIX.sum(0), rtol=1e-6)
