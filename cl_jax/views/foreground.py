"""Features of clips without a network: where each frame differs from the clip's still ground, and
in which colour."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from cl_jax.core.shapes import check_count
from cl_jax.views.clip import checked

Batch = Mapping[str, jax.Array]
_FEW = 16  # frames


@dataclass(frozen=True)
class ForegroundView:
    """Rows of numbers, one for each kept frame of batch["clip"], uint8 [B, T, H, W, C]:
    [B, T', cells^2 + 2 C] float32.

    The ground is the median of each pixel over all frames. A row has the share of the change
    against it that lies in each cell of a grid, times cells^2 / 4; the mean colour where it
    changes, weighted by how much; and the mean colour of the ground; colours from -1 to 1. Where
    nothing changes the shares are 0. Nothing is drawn: an example has one view.

    every: frames from one that is kept to the next, from the first on.
    """

    cells: int = 8
    every: int = 1
    needs: ClassVar[tuple[str, ...]] = ("clip",)
    wants: ClassVar[tuple[str, ...]] = ()

    def draw(self, keys: jax.Array, batch: Batch) -> jax.Array:
        """As `clean`."""
        return self.clean(batch)

    def clean(self, batch: Batch) -> jax.Array:
        """The rows of a batch.

        Raises:
          ValueError: clips of another type or rank; a side that `cells` does not divide.
        """
        clips = checked(batch["clip"])
        height, width = clips.shape[2:4]
        if height % self.cells or width % self.cells:
            raise ValueError(
                f"clips have {height}x{width} pixels, which cells={self.cells} does not divide; "
                "expected a common divisor of both sides."
            )
        x = clips.astype(jnp.float32) / 127.5 - 1
        ground = _median(x)[:, None]
        kept = x[:, :: self.every]
        change = jnp.abs(kept - ground).sum(axis=-1)
        change = change / jnp.maximum(change.sum(axis=(2, 3), keepdims=True), 1e-6)
        rows = change.shape[:2]
        sides = (self.cells, height // self.cells, self.cells, width // self.cells)
        shares = change.reshape(*rows, *sides).sum(axis=(3, 5)).reshape(*rows, -1)
        colour = jnp.einsum("bthw,bthwc->btc", change, kept, precision="highest")
        still = jnp.broadcast_to(ground.mean(axis=(2, 3)), colour.shape)
        return jnp.concatenate([shares * (self.cells**2 / 4), colour, still], axis=-1)


def _median(frames: jax.Array) -> jax.Array:
    """The median over axis 1, of a few frames by a sorting network: XLA's sort of many short rows
    takes a hundred times as long on a CPU."""
    if frames.shape[1] > _FEW:
        return jnp.median(frames, axis=1)
    rows = list(jnp.moveaxis(frames, 1, 0))
    for turn in range(len(rows)):
        for i in range(turn % 2, len(rows) - 1, 2):
            rows[i : i + 2] = jnp.minimum(*rows[i : i + 2]), jnp.maximum(*rows[i : i + 2])
    middle = len(rows) // 2
    return rows[middle] if len(rows) % 2 else (rows[middle - 1] + rows[middle]) / 2


def make(*, cells: int = 8, every: int = 1) -> ForegroundView:
    """A `ForegroundView` from a config section.

    Raises:
      ValueError: a count below 1.
    """
    check_count(cells=cells, every=every)
    return ForegroundView(cells, every)
