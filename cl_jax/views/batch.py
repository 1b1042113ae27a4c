"""The views of a training batch."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from cl_jax.core.keys import example_keys
from cl_jax.views.presets import Recipe
from cl_jax.views.recipe import apply, augment

_PICTURE = (
    1 << 20
)  # number of the coin's key among those folded from a view's: far from `recipe.draw`'s own


def of_batch(
    recipes: Sequence[Recipe], batch: Mapping[str, jax.Array], key: jax.Array
) -> list[jax.Array]:
    """One array [B, size, size, C] per recipe from batch["image"], drawn by the step's key and
    batch["id"].

    Data sets that show one thing twice also bring "image_b", a second picture of it: each view of
    each example is of that one with the recipe's probability `second`, by a coin of its own. So
    half of the pairs of two views with the default 0.5 are of two pictures and half are two views
    of one.
    """
    with jax.named_scope("views"):
        keys = example_keys(key, batch["id"])
        if "image_b" not in batch:
            return augment(recipes, keys, batch["image"])
        return [
            _of_either(recipe, jax.vmap(jax.random.fold_in, (0, None))(keys, v), batch)
            for v, recipe in enumerate(recipes)
        ]


def _of_either(recipe: Recipe, keys: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
    second = jax.vmap(
        lambda key: jax.random.bernoulli(jax.random.fold_in(key, _PICTURE), recipe.second)
    )(keys)
    return apply(
        recipe, keys, jnp.where(second[:, None, None, None], batch["image_b"], batch["image"])
    )
