"""Cross-entropies with derivatives by hand: those of the formulas, which JAX differentiates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.losses import _blocks, _cross, _views

RNG = np.random.default_rng(0)
LABELS = np.array([0, 4, 2, 2], np.int32)


def derivatives(f, at, along):
    gradient = jax.grad(f, argnums=tuple(range(len(at))))

    def slope(*at):
        return sum(jnp.vdot(g, d) for g, d in zip(gradient(*at), along))

    return f(*at), jax.jvp(f, at, along), jax.jvp(gradient, at, along), jax.grad(slope)(*at)


def assert_same(ours, exact, at, along):
    with jax.enable_x64(True):
        at, along = (tuple(jnp.asarray(x, float) for x in given) for given in (at, along))
        found, expected = (jax.jit(partial(derivatives, f))(at, along) for f in (ours, exact))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_of_labels():
    x, moved = RNG.normal(size=(2, 4, 5))
    weights = np.arange(1.0, 5.0)

    def ours(x, scale):
        return jnp.sum(weights * _cross.of_labels(x, LABELS, scale))

    def exact(x, scale):
        return -jnp.sum(weights * jax.nn.log_softmax(scale * x)[np.arange(4), LABELS])

    assert_same(ours, exact, (x, 2.0), (moved, 0.5))


@pytest.mark.parametrize(
    "codes, stacked, block",
    [
        (False, True, 1 << 17),
        (False, False, 40),
        pytest.param(False, True, 40, marks=pytest.mark.slow),
        pytest.param(True, True, 40, marks=pytest.mark.slow),
        pytest.param(True, False, 1 << 17, marks=pytest.mark.slow),
    ],
)
def test_of_views(codes, stacked, block, monkeypatch):
    """Of all rows at once, and of two of five at a time; with the derivatives of both temperatures,
    of the centre and of the targets."""
    monkeypatch.setattr(_blocks, "BLOCK", block)
    predicts = [[1], [0], [0, 1]]
    (views, d_views), (seen, d_seen) = (RNG.normal(size=(2, n, 5, 4)) for n in (3, 2))
    centre, d_centre = RNG.normal(size=(2, 4))
    weights = RNG.random((3, 5))

    def as_given(x):
        return x if stacked else list(x)

    def ours(views, scale, seen, of_seen, centre):
        targets = _views.Softmaxes(as_given(seen), centre, of_seen)
        if codes:
            targets = _views.Codes(as_given(jnp.exp(seen)))
        rows = _views.cross_entropies(as_given(views), scale, targets, predicts)
        return jnp.sum(weights * rows)

    def exact(views, scale, seen, of_seen, centre):
        targets = (
            jnp.exp(seen)
            if codes
            else jax.nn.softmax(of_seen * (seen - centre[None, None]), axis=2)
        )
        log_p = jax.nn.log_softmax(scale * views, axis=2)
        predicted = jnp.stack([sum(targets[a] for a in of_view) for of_view in predicts])
        return -jnp.sum(weights * jnp.sum(predicted * log_p, axis=2))

    at = views, 3.0, seen, 2.0, centre
    assert_same(ours, exact, at, (d_views, 0.5, d_seen, 0.25, d_centre))
