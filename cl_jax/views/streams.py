"""The two streams of a film: a frame, one near it, and the optical flow around it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cl_jax.views import planes, recipe
from cl_jax.views.clip import checked, evaluate
from cl_jax.views.flow import grey, lucas_kanade
from cl_jax.views.presets import Recipe

Batch = Mapping[str, jax.Array]


@dataclass(frozen=True)
class StreamsView:
    """Of batch["clip"], uint8 [B, T, H, W, C]: {"frame": [B, size, size, C], "neighbour": the same
    shape, "flow": [B, size, size, 2 fields]}, float32.

    The frame is at a random time; the neighbour is `gap` frames later or earlier, by a draw of the
    recipe of its own. "flow" is `fields` flows from each frame to the next around the frame, x and
    y of each in turn, in pixels of the view divided by `flow_scale`; it is computed on the frame's
    own crop, before any change of colours. Clean is the frame in the middle.

    levels: of the flow's pyramid, see `views.flow.lucas_kanade`.
    """

    recipe: Recipe
    gap: int = 2
    fields: int = 3
    flow_scale: float = 1.0
    levels: int = 3
    needs: ClassVar[tuple[str, ...]] = ("clip",)
    wants: ClassVar[tuple[str, ...]] = ()

    def draw(self, keys: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Views of a batch. keys: [B] typed keys, one for each clip."""
        clips = checked(batch["clip"])
        first, last = self._times(clips.shape[1])

        def one(key: jax.Array, clip: jax.Array) -> dict[str, jax.Array]:
            when, side, how, other = jax.random.split(key, 4)
            at = jax.random.randint(when, (), first, last + 1)
            step = jnp.where(jax.random.bernoulli(side), self.gap, -self.gap)
            step = jnp.where((at + step < 0) | (at + step >= clip.shape[0]), -step, step)
            size = clip.shape[1:3]
            drawn, again = (recipe.draw(self.recipe, k, *size) for k in (how, other))
            frame, neighbour = (
                planes.pixels(recipe.transform(self.recipe, by, planes.planes(clip[place])))
                for by, place in ((drawn, at), (again, at + step))
            )
            still = jax.vmap(lambda x: recipe.transform(self._plain, drawn, x))(
                planes.planes(self._around(clip, at))
            )
            flow = self._flow(planes.pixels(still))
            return {"frame": frame, "neighbour": neighbour, "flow": flow}

        return jax.vmap(one)(keys, clips)

    def clean(self, batch: Batch) -> dict[str, jax.Array]:
        """The frame in the middle with its flow, without augmentation."""
        clips = checked(batch["clip"])
        first, last = self._times(clips.shape[1])
        at = (first + last) // 2
        step = self.gap if at + self.gap < clips.shape[1] else -self.gap
        both = evaluate(self.recipe, jnp.stack([clips[:, at], clips[:, at + step]], 1))
        around = jax.vmap(lambda clip: self._around(clip, at))(clips)
        flow = jax.vmap(self._flow)(evaluate(self._plain, around))
        return {"frame": both[:, 0], "neighbour": both[:, 1], "flow": flow}

    def frames(self, batch: Batch) -> jax.Array:
        """All frames [B, T, size, size, C], without augmentation."""
        return evaluate(self.recipe, checked(batch["clip"]))

    @property
    def _plain(self) -> Recipe:
        """The recipe's crop and flip alone, in the numbers of the picture."""
        return replace(
            self.recipe,
            jitter=0.0,
            gray=0.0,
            blur=0.0,
            solarize=0.0,
            mean=None,
            std=None,
            colour_space="rgb",
        )

    def _times(self, stored: int) -> tuple[int, int]:
        """The first and the last time that has all its flows."""
        before = self.fields // 2
        first, last = before, stored - 1 - (self.fields - before)
        if last < first or stored <= self.gap:
            raise ValueError(
                f"fields={self.fields}, gap={self.gap} of clips with {stored} frames; expected "
                f"more than {max(self.fields, self.gap)} frames. Store longer clips, or lower them."
            )
        reach = [at for at in range(first, last + 1) if at >= self.gap or at + self.gap < stored]
        if len(reach) < last - first + 1:
            raise ValueError(
                f"gap={self.gap} of clips with {stored} frames: a frame in the middle has no "
                f"neighbour. Expected at most {stored // 2}."
            )
        return first, last

    def _around(self, clip: jax.Array, at: jax.Array | int) -> jax.Array:
        """The frames of the flows at a time."""
        start = at - self.fields // 2
        return jnp.take(clip, start + jnp.arange(self.fields + 1), axis=0)

    def _flow(self, frames: jax.Array) -> jax.Array:
        """Flows [H, W, 2 fields] of frames [1 + fields, H, W, C] in [0, 1]."""
        pictures = grey(frames)
        found = jax.vmap(lambda a, b: lucas_kanade(a, b, levels=self.levels))(
            pictures[:-1], pictures[1:]
        )
        return jnp.moveaxis(found.reshape(-1, *found.shape[2:]), 0, -1) / self.flow_scale


def make(
    *,
    gap: int = 2,
    fields: int = 3,
    flow_scale: float = 1.0,
    levels: int = 3,
    **section: Any,
) -> StreamsView:
    """A `StreamsView` from a config section. The other keys are those of a view of images: "name"
    is a preset of `views.presets`, the others change it.

    Raises:
      ValueError: no gap, field or level, a scale that is not above 0; as `recipe.of_section`.
    """
    if min(gap, fields, levels) < 1 or flow_scale <= 0:
        raise ValueError(
            f"gap={gap}, fields={fields}, levels={levels}, flow_scale={flow_scale}; expected at "
            "least 1 of the first three, and a scale above 0."
        )
    return StreamsView(recipe.of_section(section), gap, fields, flow_scale, levels)
