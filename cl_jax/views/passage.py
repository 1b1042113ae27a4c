"""The sentences of a passage, as they are: CPC on text augments nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax

Batch = Mapping[str, jax.Array]


@dataclass(frozen=True)
class Passage:
    """batch[field], token numbers [B, n, T], drawn and clean alike."""

    field: str = "passage"
    wants: ClassVar[tuple[str, ...]] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.field,)

    def draw(self, keys: jax.Array, batch: Batch) -> jax.Array:
        return batch[self.field]

    def clean(self, batch: Batch) -> jax.Array:
        return batch[self.field]


def make(*, field: str = "passage") -> Passage:
    """A view of the passages in a field."""
    return Passage(field)
