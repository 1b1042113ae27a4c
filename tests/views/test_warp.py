"""Warps: where pixels come from, against the formulas in NumPy and SciPy's sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from cl_jax.views import warp

IMAGE = np.random.default_rng(0).uniform(size=(3, 9, 9)).astype(np.float32)
KEYS = jax.random.split(jax.random.key(0), 64)


def coordinates(**section):
    made = warp.make(**section)
    return np.asarray(jax.jit(jax.vmap(lambda key: warp.coordinates(made, key, 9)))(KEYS))


def places():
    return np.stack(np.meshgrid(np.arange(9), np.arange(9), indexing="ij")).astype(np.float32)


def test_what_is_not_bent_stays_bit_for_bit():
    at = coordinates(probability=0.0)
    np.testing.assert_array_equal(at, np.broadcast_to(places(), at.shape))
    np.testing.assert_array_equal(warp.sample(jnp.asarray(IMAGE), jnp.asarray(at[0])), IMAGE)


def test_about_as_many_are_bent_as_asked():
    bent = (coordinates(probability=0.25) != places()).any((1, 2, 3))
    assert 0.1 < bent.mean() < 0.4


def test_a_turn_keeps_distances_and_the_middle():
    at = coordinates(probability=1.0, degrees=30.0, shear=0.0, elastic=0.0)
    np.testing.assert_allclose(at[:, :, 4, 4], 4.0, atol=1e-6)
    away, before = at - 4.0, places() - 4.0
    np.testing.assert_allclose(
        np.hypot(*away.transpose(1, 0, 2, 3)),
        np.broadcast_to(np.hypot(*before), (64, 9, 9)),
        atol=1e-5,
    )
    # of the pixel right of the middle
    angles = np.degrees(np.arctan2(*away[:, :, 4, 5].T))
    assert 25 < np.abs(angles).max() <= 30 and angles.min() < -20 and angles.max() > 20
    radians = np.radians(angles)[:, None, None]
    rows, columns = before
    expected = np.stack(
        [
            np.cos(radians) * rows + np.sin(radians) * columns,
            -np.sin(radians) * rows + np.cos(radians) * columns,
        ],
        axis=1,
    )
    np.testing.assert_allclose(away, expected, atol=1e-4)


def test_a_shear_moves_rows_by_their_height_and_columns_by_their_width():
    away = coordinates(probability=1.0, degrees=0.0, shear=0.3, elastic=0.0) - 4.0
    rows, columns = places() - 4.0
    down, across = away[:, 0, 4, 5], away[:, 1, 5, 4]  # one pixel right of and below the middle
    np.testing.assert_allclose(away[:, 0], rows + down[:, None, None] * columns, atol=1e-5)
    np.testing.assert_allclose(away[:, 1], columns + across[:, None, None] * rows, atol=1e-5)
    for amount in (down, across):
        assert 0.2 < np.abs(amount).max() <= 0.3 and amount.min() < 0 < amount.max()


def test_elastic_displacements_are_smooth_and_of_their_size():
    at = coordinates(probability=1.0, degrees=0.0, shear=0.0, elastic=0.1, points=3)
    pulls = at - places()
    assert 0.4 < pulls.std() / (0.1 * 9) < 1.1
    assert np.abs(np.diff(pulls, axis=-1)).mean() < np.abs(pulls).mean()
    assert np.abs(pulls.mean((0, 2, 3))).max() < 0.3 * pulls.std()


def test_sampling_is_scipys():
    at = coordinates(probability=1.0)[3] + 2.0  # beyond the edge, too
    ours = warp.sample(jnp.asarray(IMAGE), jnp.asarray(at))
    theirs = [ndimage.map_coordinates(x, at, order=1, mode="nearest") for x in IMAGE]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"probability": 2.0}, "probability is 2.0; expected a number from 0 to 1"),
        ({"shear": -0.1}, "shear is -0.1; expected 0 or more"),
        ({"degrees": "30"}, "degrees is '30'; expected a number"),
        ({"elastic": float("nan")}, "elastic is nan; expected 0 or more"),
        ({"points": 1}, "points is 1; expected an integer of at least 2"),
        ({"angle": 3.0}, "warp has no angle; expected some of probability, degrees"),
    ],
)
def test_errors(section, words):
    with pytest.raises(ValueError, match=words):
        warp.make(**section)
