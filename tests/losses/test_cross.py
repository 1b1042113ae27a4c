"""Cross-entropies with derivatives by hand: those of the formulas, which JAX differentiates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.losses import _cross

RNG = np.random.default_rng(0)
X, MOVED = RNG.normal(size=(2, 4, 5))
TARGETS, TARGETS_MOVED = RNG.random((2, 4, 5))
LABELS = np.array([0, 4, 2, 2], np.int32)


def derivatives(f, at, along):
    gradient = jax.grad(f, argnums=tuple(range(len(at))))

    def slope(*at):
        return sum(jnp.vdot(g, d) for g, d in zip(gradient(*at), along))

    return f(*at), jax.jvp(f, at, along), jax.jvp(gradient, at, along), jax.grad(slope)(*at)


@pytest.mark.parametrize("of", ["labels", "targets"])
def test_derivatives(of):
    weights = np.arange(1.0, 5.0)
    if of == "labels":
        at, along = (X,), (MOVED,)

        def ours(x):
            return jnp.sum(weights * _cross.of_labels(x, LABELS))

        def exact(x):
            return -jnp.sum(weights * jax.nn.log_softmax(x)[np.arange(4), LABELS])

    else:
        at, along = (X, TARGETS), (MOVED, TARGETS_MOVED)

        def ours(x, targets):
            return jnp.sum(weights * _cross.of_targets(x, targets))

        def exact(x, targets):
            return -jnp.sum(weights * jnp.sum(targets * jax.nn.log_softmax(x), axis=1))

    with jax.enable_x64(True):
        found, expected = (jax.jit(partial(derivatives, f))(at, along) for f in (ours, exact))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
