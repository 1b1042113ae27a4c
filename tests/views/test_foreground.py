"""Features of clips by their changes against the ground."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.views import foreground


def test_rows_are_those_of_a_loop():
    """A square that moves over a plain ground: its cell, its colour, the ground's."""
    clips = np.full((2, 5, 8, 8, 3), 100, np.uint8)
    for t in range(5):
        clips[0, t, 2, t] = (200, 0, 50)
    clips[0, 1, 6, 6] = 130
    view = foreground.make(cells=4, every=2)
    found = jax.jit(view.clean)({"clip": jnp.asarray(clips)})
    assert found.shape == (2, 3, 22) and found.dtype == jnp.float32
    for row, t in zip(found[0], (0, 2, 4)):
        shares = np.zeros((4, 4))
        shares[1, t // 2] = 1
        np.testing.assert_allclose(row[:16], 4 * shares.reshape(-1), atol=1e-6)
        np.testing.assert_allclose(row[16:19], np.array([200, 0, 50]) / 127.5 - 1, atol=1e-5)
        np.testing.assert_allclose(row[19:], 100 / 127.5 - 1, atol=1e-5)
    np.testing.assert_allclose(found[1, :, :19], 0, atol=1e-6)
    two = foreground.make(cells=4).clean({"clip": jnp.asarray(clips)})[0, 1]
    change = np.zeros((8, 8))
    change[2, 1], change[6, 6] = 100 + 100 + 50, 90
    expected = change.reshape(4, 2, 4, 2).sum((1, 3)).reshape(-1) / change.sum()
    np.testing.assert_allclose(two[:16], 4 * expected, atol=1e-6)
    drawn = view.draw(jax.random.split(jax.random.key(0), 2), {"clip": jnp.asarray(clips)})
    np.testing.assert_allclose(drawn, found, atol=1e-6)


@pytest.mark.parametrize("frames", [1, 4, 7, 18])
def test_the_ground_is_the_median(frames):
    clips = np.random.default_rng(0).integers(0, 256, (2, frames, 4, 4, 3), np.uint8)
    found = foreground.make(cells=2).clean({"clip": jnp.asarray(clips)})
    ground = np.median(clips / 127.5 - 1, axis=1).mean((1, 2))
    np.testing.assert_allclose(found[:, 0, -3:], ground, atol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="cells=3 does not divide"):
        foreground.make(cells=3).clean({"clip": jnp.zeros((1, 2, 8, 8, 3), jnp.uint8)})
    with pytest.raises(ValueError, match="every"):
        foreground.make(every=0)
