"""Views of a batch that shows everything twice."""

import dataclasses
import re
from pathlib import Path

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


def test_the_programs_of_the_guide_run():
    text = (Path(__file__).parents[2] / "docs" / "guides" / "views.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)

    def run(key, ids, images):  # is traced, which takes a tenth of compiling
        found = {"key": key, "step": 3, "ids": ids, "images": images}
        for program in programs:
            exec(program, found)
        return [found[name] for name in ("a", "b", "clean", "c")]

    images = np.zeros((4, 40, 40, 3), np.uint8)
    shapes = [x.shape for x in jax.eval_shape(run, jax.random.key(0), np.arange(4), images)]
    assert shapes == [(4, 32, 32, 3)] * 3 + [(4, 96, 96, 3)]


def test_what_is_no_recipe_and_no_section_is_named():
    keys = views.example_keys(jax.random.key(0), np.arange(2))
    for recipe in (PLAIN, "simclr", None):
        for f in (
            lambda x, recipe=recipe: views.augment([recipe], keys, x),
            lambda x, recipe=recipe: views.evaluate(recipe, x),
        ):
            with pytest.raises(ValueError, match=r"expected a Recipe, such as views\.presets"):
                f(np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="expected uint8"):
        views.augment([PLAIN.recipe], keys, [[1, 2]])
    with pytest.raises(ValueError, match="the section of a view is 'simclr'"):
        views.make("simclr")
