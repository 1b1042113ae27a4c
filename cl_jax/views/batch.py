"""The views of a training batch."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from cl_jax.views.keys import example_keys
from cl_jax.views.presets import Recipe
from cl_jax.views.recipe import apply, augment


def of_batch(recipes: Sequence[Recipe], batch: Mapping[str, jax.Array], key: jax.Array) -> list[jax.Array]:
    """One array [B, size, size, C] per recipe from batch["image"], drawn by the step's key and batch["id"].

    Data sets that show one thing twice also bring "image_b", a second picture of it, which every second view is of. A single
    view is of either, by a coin for each example.
    """
    keys = example_keys(key, batch["id"])
    if "image_b" not in batch:
        return augment(recipes, keys, batch["image"])
    pictures = (batch["image"], batch["image_b"])
    if len(recipes) == 1:
        heads = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, 1)))(keys)
        return augment(recipes, keys, jnp.where(heads[:, None, None, None], *pictures))
    return [apply(recipe, jax.vmap(jax.random.fold_in, (0, None))(keys, v), pictures[v % 2])
            for v, recipe in enumerate(recipes)]
