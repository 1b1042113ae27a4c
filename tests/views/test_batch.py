"""Views of a batch that shows everything twice."""

import jax
import numpy as np

from cl_jax import views
from cl_jax.views.batch import of_batch

PLAIN = views.make({"crop": "none", "flip": 0.0, "size": 8, "test_crop": 1.0})


def batch(rows):
    return {"id": np.arange(rows, dtype=np.int32), "image": np.zeros((rows, 8, 8, 3), np.uint8),
            "image_b": np.full((rows, 8, 8, 3), 255, np.uint8)}


def test_every_second_view_is_of_the_second_picture():
    a, b, c = of_batch([PLAIN] * 3, batch(4), jax.random.key(0))
    assert (a == c).all() and (a < b).all()


def test_a_single_view_is_of_either_picture_by_the_examples_own_coin():
    both = batch(64)
    (whole,) = of_batch([PLAIN], both, jax.random.key(0))
    second = np.asarray(whole[:, 0, 0, 0] > whole.min())
    assert 16 < second.sum() < 48
    (half,) = of_batch([PLAIN], {name: rows[32:] for name, rows in both.items()}, jax.random.key(0))
    np.testing.assert_array_equal(half, whole[32:])
    (later,) = of_batch([PLAIN], both, jax.random.key(1))
    assert (np.asarray(later) != np.asarray(whole)).any()
