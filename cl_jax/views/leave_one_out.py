"""Views that differ from a query in every augmentation but one: those of leave-one-out contrast
(Xiao et al. 2021, arXiv 2008.05659)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cl_jax.core.keys import view_keys
from cl_jax.core.names import nearest
from cl_jax.views import planes, recipe
from cl_jax.views.presets import Recipe

AUGMENTATIONS = {  # what can be left out: the random numbers of a view that belong to it
    "rotation": ("turns",),
    "colour": ("jitter", "order", "factors", "gray"),
    "crop": ("box",),
    "flip": ("flip",),
    "blur": ("blur", "sigma"),
    "solarize": ("solarize",),
}


def check(of: Recipe, left_out: Sequence[str]) -> None:
    """Checks that each augmentation is known, named once, and random in the recipe.

    Raises:
      ValueError: says which is not, and what to change.
    """
    random = {
        "rotation": of.quarter_turns,
        "colour": of.jitter > 0 or 0 < of.gray < 1,
        "crop": of.crop != "none",
        "flip": 0 < of.flip < 1,
        "blur": of.blur > 0,
        "solarize": 0 < of.solarize < 1,
    }
    for name in left_out:
        if name not in AUGMENTATIONS:
            raise ValueError(
                f"left_out has {name!r}{nearest(name, AUGMENTATIONS)}; expected names among "
                f"{', '.join(AUGMENTATIONS)}."
            )
        if not random[name]:
            where = "quarter_turns=True" if name == "rotation" else "it on"
            raise ValueError(
                f"left_out has {name!r}, which the recipe of the views never changes: its space "
                f"would have false negatives alone. Switch {where} in config.views, or leave "
                "the name out."
            )
    if len(set(left_out)) != len(left_out):
        raise ValueError(f"left_out is {tuple(left_out)}; expected each augmentation once.")


def draw(
    of: Recipe, keys: jax.Array, images: jax.Array, left_out: Sequence[str]
) -> list[jax.Array]:
    """A query, a key that draws everything itself, and for each augmentation of `left_out` a key
    that has it from the query, with the very same numbers, and draws the rest itself.

    Args:
      of: the recipe of all views.
      keys: [B] typed keys of the examples. View v is drawn by `fold_in(key, v)`: without
        `left_out`, the two are those of `augment([of, of], keys, images)`.
      images: [B, H, W, C] uint8.
      left_out: names of AUGMENTATIONS.

    Returns:
      2 + len(left_out) arrays [B, size, size, C]: query, key 0, key 1, ...

    Raises:
      ValueError: see `check`.
    """
    check(of, left_out)
    groups = jnp.array(
        [[field in AUGMENTATIONS[name] for name in left_out] for field in recipe.Draw._fields], bool
    )

    def view(key: jax.Array, own: jax.Array, shared: jax.Array, pixels: jax.Array) -> jax.Array:
        query, other = (recipe.draw(of, k, *pixels.shape[:2]) for k in (key, own))
        mixed = [  # None: turns of a recipe without them
            a if a is None else jnp.where(keep, a, b) for keep, a, b in zip(shared, query, other)
        ]
        drawn = recipe.Draw(*mixed)
        return planes.pixels(recipe.transform(of, drawn, planes.planes(pixels)))

    number = 2 + len(left_out)
    shared = jnp.zeros((number, len(recipe.Draw._fields)), bool).at[2:].set(groups.T)
    folded = jnp.stack([view_keys(keys, v) for v in range(number)])
    drawn = jax.vmap(  # over views, then examples
        lambda own, shared: jax.vmap(lambda k, o, x: view(k, o, shared, x))(folded[0], own, images)
    )(folded, shared)
    return [drawn[v] for v in range(number)]
