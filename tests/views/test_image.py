"""Views of images: which of two pictures of an example is seen."""

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax import views
from cl_jax.core.keys import example_keys
from cl_jax.views.image import ImageView, make

KEYS = example_keys(jax.random.key(0), jnp.arange(400))
BLACK = jnp.zeros((400, 4, 4, 3), jnp.uint8)
WHITE = jnp.full((400, 4, 4, 3), 255, jnp.uint8)


def plain(**changes):
    return make(name="crop_flip", size=4, mean=(0.0,) * 3, std=(1.0,) * 3, **changes)


def test_a_view_is_of_the_second_picture_with_its_probability():
    for second in (0.0, 0.25, 1.0):
        seen = plain(second=second).draw(KEYS, {"image": BLACK, "image_b": WHITE})
        share = float(seen.mean(axis=(1, 2, 3)).round().mean())
        assert abs(share - second) < 0.07
    assert (plain(second=1.0).draw(KEYS, {"image": BLACK}) == 0).all()


def test_the_coin_is_the_examples_own():
    view, batch = plain(second=0.5), {"image": BLACK, "image_b": WHITE}
    order = np.random.default_rng(0).permutation(400)
    np.testing.assert_array_equal(view.draw(KEYS, batch)[order], view.draw(KEYS[order], batch))


def test_clean_is_the_first_picture_without_chance():
    view = plain(second=1.0)
    assert isinstance(view, ImageView) and views.ImageView is ImageView
    assert (view.clean({"image": WHITE, "image_b": BLACK}) == 1).all()
