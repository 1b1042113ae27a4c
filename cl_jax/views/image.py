"""Views of images: a recipe of augmentation operators, drawn for each example by its key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cl_jax.views.presets import Recipe
from cl_jax.views.recipe import apply, augment, evaluate, of_section

Batch = Mapping[str, jax.Array]
_PICTURE = 1 << 20  # number of the coin's key among those folded from a view's: far from a recipe's


@dataclass(frozen=True)
class ImageView:
    """One view of batch["image"], uint8 [B, H, W, C], by a recipe: [B, size, size, C] float32.

    Data sets that show one thing twice also have "image_b", a second picture of it. Each view of
    each example is then of that one with the recipe's probability `second`, by a coin of its own.
    So half of the pairs of two views with the default 0.5 are of two pictures and half are two
    views of one.
    """

    recipe: Recipe
    needs: ClassVar[tuple[str, ...]] = ("image",)
    wants: ClassVar[tuple[str, ...]] = ("image_b",)

    def draw(self, keys: jax.Array, batch: Batch) -> jax.Array:
        """The view of each example, drawn by its key; `keys` are [B] typed keys."""
        image = batch["image"]
        if "image_b" in batch:

            def coin(key: jax.Array) -> jax.Array:
                return jax.random.bernoulli(jax.random.fold_in(key, _PICTURE), self.recipe.second)

            second = jax.vmap(coin)(keys)
            image = jnp.where(second[:, None, None, None], batch["image_b"], image)
        return apply(self.recipe, keys, image)

    def clean(self, batch: Batch) -> jax.Array:
        """The test image, without augmentation."""
        return evaluate(self.recipe, batch["image"])


def make(**section: Any) -> ImageView:
    """A view from a config section: "name" is a preset of `views.presets`, the other keys change
    it. See `recipe.of_section`."""
    return ImageView(of_section(section))


def together(views: Sequence[ImageView], keys: jax.Array, batch: Batch) -> list[jax.Array]:
    """The views of a batch without second pictures; equal recipes share one program."""
    return augment([view.recipe for view in views], keys, batch["image"])
