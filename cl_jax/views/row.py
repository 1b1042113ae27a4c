"""Rows of a table: as they are, with columns left out, or with noise."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class RowView:
    """Standardised rows, "row" float32 [B, D], to [B, D]. Clean is the row itself.

    drop: the probability of each column of each row to be set to 0, its mean (masking noise).
    noise: the standard deviation of what is added, in deviations of the column.
    """

    drop: float = 0.0
    noise: float = 0.0
    needs: ClassVar[tuple[str, ...]] = ("row",)
    wants: ClassVar[tuple[str, ...]] = ()

    def draw(self, keys: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The rows of a batch. keys: [B] typed keys, one for each row."""

        def one(key: jax.Array, row: jax.Array) -> jax.Array:
            chosen, added = jax.random.split(key)
            if self.noise:
                row = row + self.noise * jax.random.normal(added, row.shape)
            if self.drop:
                row = jnp.where(jax.random.bernoulli(chosen, self.drop, row.shape), 0.0, row)
            return row

        return jax.vmap(one)(keys, self.clean(batch))

    def clean(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The rows as they are."""
        return jnp.asarray(batch["row"], jnp.float32)


def make(*, drop: float = 0.0, noise: float = 0.0) -> RowView:
    """A `RowView` from a config section.

    Raises:
      ValueError: a probability outside [0, 1), a negative deviation.
    """
    if not 0 <= drop < 1:
        raise ValueError(f"drop={drop}; expected a probability, at least 0 and below 1.")
    if not noise >= 0:
        raise ValueError(f"noise={noise}; expected a standard deviation, at least 0.")
    return RowView(float(drop), float(noise))
