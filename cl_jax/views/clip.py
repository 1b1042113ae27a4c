"""Views of clips: some frames, all cut and coloured alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cl_jax.views import planes, recipe
from cl_jax.views.presets import Recipe

Batch = Mapping[str, jax.Array]


@dataclass(frozen=True)
class ClipView:
    """`frames` consecutive frames of batch["clip"], uint8 [B, T, H, W, C], from a random one on:
    [B, frames, size, size, C] float32.

    All random numbers of the recipe are drawn once for a clip, so that its frames have one crop,
    one flip and one change of colours. Clean are the frames in the middle.

    every: frames from one to the next.
    """

    recipe: Recipe
    frames: int = 0
    every: int = 1
    needs: ClassVar[tuple[str, ...]] = ("clip",)
    wants: ClassVar[tuple[str, ...]] = ()

    def draw(self, keys: jax.Array, batch: Batch) -> jax.Array:
        """Views of a batch. keys: [B] typed keys, one for each clip."""
        clips = checked(batch["clip"])
        count, room = self._span(clips)

        def one(key: jax.Array, clip: jax.Array) -> jax.Array:
            when, how = jax.random.split(key)
            start = jax.random.randint(when, (), 0, room + 1)
            return transform(self.recipe, how, self._cut(clip, start, count))

        return jax.vmap(one)(keys, clips)

    def clean(self, batch: Batch) -> jax.Array:
        """The frames in the middle, without augmentation."""
        clips = checked(batch["clip"])
        count, room = self._span(clips)
        return evaluate(
            self.recipe, jax.vmap(lambda clip: self._cut(clip, room // 2, count))(clips)
        )

    def _span(self, clips: jax.Array) -> tuple[int, int]:
        """(frames, places after the first at which they may start)."""
        stored = clips.shape[1]
        count = self.frames or -(-stored // self.every)
        room = stored - 1 - (count - 1) * self.every
        if room < 0:
            raise ValueError(
                f"frames={count}, every={self.every} of clips with {stored} frames; expected at "
                f"most {-(-stored // self.every)}. Store longer clips, or lower one of them."
            )
        return count, room

    def _cut(self, clip: jax.Array, start: jax.Array | int, count: int) -> jax.Array:
        return jnp.take(clip, start + self.every * jnp.arange(count), axis=0)


def checked(clips: jax.Array) -> jax.Array:
    """The clips of a batch.

    Raises:
      ValueError: another type or rank than uint8 [B, T, H, W, C].
    """
    if clips.ndim != 5 or clips.dtype != jnp.uint8:
        raise ValueError(
            f"clips are {clips.dtype}{list(clips.shape)}; expected uint8 [B, T, H, W, C]. Grey "
            "clips need a channel axis, clips[..., None]."
        )
    return clips


def transform(recipe_: Recipe, key: jax.Array, clip: jax.Array) -> jax.Array:
    """One clip uint8 [T, H, W, C], every frame by the same draw of a recipe: [T, size, size, C]."""
    drawn = recipe.draw(recipe_, key, *clip.shape[1:3])
    frames = jax.vmap(lambda x: recipe.transform(recipe_, drawn, x))(planes.planes(clip))
    return planes.pixels(frames)


def evaluate(recipe_: Recipe, clips: jax.Array) -> jax.Array:
    """The clean frames [B, T, size, size, C] of clips uint8 [B, T, H, W, C]."""
    flat = clips.reshape(-1, *clips.shape[2:])
    frames = recipe.evaluate(recipe_, flat)
    return frames.reshape(*clips.shape[:2], *frames.shape[1:])


def make(*, frames: int = 0, every: int = 1, **section: Any) -> ClipView:
    """A `ClipView` from a config section; 0 frames are all of them. The other keys are those of a
    view of images: "name" is a preset of `views.presets`, the others change it.

    Raises:
      ValueError: a number of frames below 0, a step below 1; as `recipe.of_section`.
    """
    if frames < 0 or every < 1:
        raise ValueError(f"frames={frames}, every={every}; expected 0 or more, and 1 or more.")
    return ClipView(recipe.of_section(section), frames, every)
