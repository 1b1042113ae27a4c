"""Views of leave-one-out contrast: a left-out augmentation has the query's very numbers."""

import jax
import numpy as np
import pytest

from cl_jax.views import augment, leave_one_out, recipe
from cl_jax.views.recipe import of_section

# Without a crop, views differ in turns and colour alone.
TURNED = of_section(
    {
        "name": "moco_cifar",
        "size": 8,
        "crop": "none",
        "flip": 0.0,
        "jitter": 1.0,
        "gray": 0.0,
        "quarter_turns": True,
    }
)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
KEYS = jax.vmap(jax.random.key)(np.arange(6))


@pytest.mark.slow
def test_a_key_shares_its_augmentation_with_the_query_and_nothing_else():
    draw = jax.jit(
        lambda keys, images: leave_one_out.draw(TURNED, keys, images, ("rotation", "colour"))
    )
    query, redrawn, turned, coloured = map(np.asarray, draw(KEYS, IMAGES))

    def numbers(view):
        return jax.vmap(lambda key: recipe.draw(TURNED, jax.random.fold_in(key, view), 8, 8))(KEYS)

    drawn = [numbers(v) for v in range(4)]
    for row in range(6):
        turn = int(drawn[0].turns[row])
        upright = np.rot90(query[row], -turn)
        # The same colours as the query's, turned by its own number.
        own = np.rot90(coloured[row], -int(drawn[3].turns[row]))
        np.testing.assert_allclose(own, upright, atol=1e-5)
        # Turned like the query, with colours of its own.
        expected = recipe.transform(
            TURNED,
            jax.tree.map(lambda x: x[row], drawn[2])._replace(turns=turn),
            np.moveaxis(IMAGES[row] / np.float32(255), -1, 0),
        )
        np.testing.assert_allclose(turned[row], np.moveaxis(expected, 0, -1), atol=1e-5)
        assert np.abs(turned[row] - query[row]).max() > 0.05
        assert np.abs(redrawn[row] - query[row]).max() > 0.05


@pytest.mark.slow
def test_without_augmentations_it_is_an_ordinary_pair():
    found = leave_one_out.draw(TURNED, KEYS, IMAGES, ())
    for a, b in zip(found, augment([TURNED, TURNED], KEYS, IMAGES), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_quarter_turns_are_exact_and_leave_other_draws_alone():
    still = of_section({"name": "moco_cifar", "size": 8})
    turning = of_section({"name": "moco_cifar", "size": 8, "quarter_turns": True})
    key = jax.random.key(3)
    for a, b in zip(recipe.draw(still, key, 8, 8), recipe.draw(turning, key, 8, 8)[:-1]):
        np.testing.assert_array_equal(a, b)
    a, b = augment([still], KEYS, IMAGES)[0], augment([turning], KEYS, IMAGES)[0]
    folded = jax.vmap(lambda key: jax.random.fold_in(key, 0))(KEYS)
    turns = jax.vmap(lambda key: recipe.draw(turning, key, 8, 8).turns)(folded)
    assert len(set(np.asarray(turns).tolist())) > 1
    for row in range(6):
        np.testing.assert_array_equal(np.rot90(a[row], int(turns[row])), b[row])


@pytest.mark.parametrize("left_out", [(), ("colour",)])
def test_a_recipe_without_quarter_turns_is_drawn_too(left_out):
    plain = of_section({"name": "moco_cifar", "size": 8})
    drawn = jax.eval_shape(
        lambda keys, images: leave_one_out.draw(plain, keys, images, left_out), KEYS, IMAGES
    )
    assert [x.shape for x in drawn] == [(6, 8, 8, 3)] * (2 + len(left_out))


def test_what_a_recipe_never_changes_cannot_be_left_out():
    plain = of_section({"name": "moco_cifar", "size": 8})
    with pytest.raises(ValueError, match="quarter_turns=True"):
        leave_one_out.check(plain, ("rotation",))
    with pytest.raises(ValueError, match="expected names among rotation, colour"):
        leave_one_out.check(plain, ("hue",))
    with pytest.raises(ValueError, match="expected each augmentation once"):
        leave_one_out.check(plain, ("colour", "colour"))
