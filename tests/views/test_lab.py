"""Colour spaces at known colours."""

import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.views import lab

CORNERS = jnp.array([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], jnp.float32).T.reshape(
    3, 5, 1
)


def test_lab_of_known_colours():
    expected = [
        [0, 0, 0],
        [100, 0, 0],
        [53.24, 80.09, 67.20],
        [87.74, -86.18, 83.18],
        [32.30, 79.19, -107.86],
    ]
    np.testing.assert_allclose(lab.rgb_to_lab(CORNERS)[..., 0].T, expected, atol=0.02)
    grey = jnp.broadcast_to(jnp.linspace(0, 1, 256).reshape(1, 16, 16), (3, 16, 16))
    l, a, b = lab.rgb_to_lab(grey)
    assert (np.diff(l.ravel()) > 0).all() and np.abs(a).max() < 1e-2 and np.abs(b).max() < 1e-2


def test_ycbcr_and_ydbdr_of_known_colours():
    np.testing.assert_allclose(
        lab.rgb_to_ycbcr(CORNERS)[:, :3, 0].T,
        [[16, 128, 128], [235, 128, 128], [81.481, 90.203, 240]],
        atol=1e-3,
    )
    np.testing.assert_allclose(
        lab.rgb_to_ydbdr(CORNERS)[:, :3, 0].T,
        [[0, 0, 0], [1, 0, 0], [0.299, -0.45, -1.333]],
        atol=1e-6,
    )


def test_split_and_errors():
    view = jnp.arange(24.0).reshape(2, 2, 2, 3)
    luminance, colours = lab.split(view)
    assert luminance.shape == (2, 2, 2, 1) and colours.shape == (2, 2, 2, 2)
    np.testing.assert_array_equal(jnp.concatenate([luminance, colours], -1), view)
    with pytest.raises(ValueError, match="luminance and two of colour"):
        lab.split(jnp.zeros((2, 3, 4, 4)))
    with pytest.raises(ValueError, match="Only colour images"):
        lab.convert(jnp.zeros((1, 4, 4)), "lab")
    with pytest.raises(ValueError, match="'xyz' is not known; expected one of rgb, lab"):
        lab.convert(jnp.zeros((3, 4, 4)), "xyz")
