"""Views of a batch that shows everything twice."""

import dataclasses

import jax
import numpy as np
import pytest

from cl_jax import views

PLAIN = views.make({"crop": "none", "flip": 0.0, "size": 8, "test_crop": 1.0})


def batch(rows):
    return {
        "id": np.arange(rows, dtype=np.int32),
        "image": np.zeros((rows, 8, 8, 3), np.uint8),
        "image_b": np.full((rows, 8, 8, 3), 255, np.uint8),
    }


def of_second(view):
    return np.asarray(view[:, 0, 0, 0]) > 0  # the second picture is white


def test_each_view_is_of_either_picture_by_a_coin_of_its_own():
    drawn = np.stack(
        [of_second(view) for view in views.draw([PLAIN] * 3, batch(400), jax.random.key(0))]
    )
    assert (np.abs(drawn.mean(axis=1) - 0.5) < 0.1).all()
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs((drawn[a] == drawn[b]).mean() - 0.5) < 0.1


def test_recipes_say_how_often():
    never, always, seldom = (
        views.ImageView(dataclasses.replace(PLAIN.recipe, second=second))
        for second in (0.0, 1.0, 0.1)
    )
    a, b, c = (
        of_second(view)
        for view in views.draw([never, always, seldom], batch(400), jax.random.key(0))
    )
    assert not a.any() and b.all() and 0.04 < c.mean() < 0.18
    with pytest.raises(ValueError, match="second"):
        dataclasses.replace(PLAIN.recipe, second=1.5)


@pytest.mark.slow
def test_a_single_view_is_of_either_picture_by_the_examples_own_coin():
    both = batch(64)
    (whole,) = views.draw([PLAIN], both, jax.random.key(0))
    second = np.asarray(whole[:, 0, 0, 0] > whole.min())
    assert 16 < second.sum() < 48
    (half,) = views.draw(
        [PLAIN], {name: rows[32:] for name, rows in both.items()}, jax.random.key(0)
    )
    np.testing.assert_array_equal(half, whole[32:])
    (later,) = views.draw([PLAIN], both, jax.random.key(1))
    assert (np.asarray(later) != np.asarray(whole)).any()
