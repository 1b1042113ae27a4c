"""Windows of a recording."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

LEVELS = ("none", "rms")
_QUIET = 1e-4  # of full scale: a window below this is not amplified further


@dataclasses.dataclass(frozen=True)
class AudioView:
    """A window of `samples` samples at a random place of each recording.

    From "audio", int16 [B, S], of which the first "length" [B] samples are real, to float32 [B,
    samples], full scale 1. A recording shorter than the window is repeated from its start until it
    fills it. Clean is the middle of the recording.

    span: where a window may begin, as shares of the room that the recording leaves: (0, 1) is
      anywhere, (0, 0.5) and (0.5, 1) in two views make them one from the earlier, one from the
      later part.
    level: "none", or "rms": each window is divided by its root mean square.
    """

    samples: int = 20480
    span: tuple[float, float] = (0.0, 1.0)
    level: str = "none"
    needs: ClassVar[tuple[str, ...]] = ("audio", "length")
    wants: ClassVar[tuple[str, ...]] = ()

    def draw(self, keys: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Windows of a batch. keys: [B] typed keys, one for each recording."""
        low, high = self.span
        share = jax.vmap(lambda key: jax.random.uniform(key, (), minval=low, maxval=high))(keys)
        # One place more than the room, so that the last one is as likely as the others.
        start = jnp.floor(share * (self._room(batch) + 1)).astype(jnp.int32)
        return self._cut(batch, jnp.minimum(start, self._room(batch)))

    def clean(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The windows in the middle."""
        return self._cut(batch, self._room(batch) // 2)

    def _room(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        return jnp.maximum(batch["length"].astype(jnp.int32) - self.samples, 0)

    def _cut(self, batch: Mapping[str, jax.Array], start: jax.Array) -> jax.Array:
        length = jnp.maximum(batch["length"].astype(jnp.int32), 1)
        at = (start[:, None] + jnp.arange(self.samples)[None]) % length[:, None]
        wave = jnp.take_along_axis(batch["audio"], at, axis=1).astype(jnp.float32) / 2**15
        if self.level == "rms":
            rms = jnp.sqrt(jnp.square(wave).mean(1, keepdims=True))
            wave = wave / jnp.maximum(rms, _QUIET)
        return wave


def make(
    *, samples: int = 20480, span: Sequence[float] = (0.0, 1.0), level: str = "none"
) -> AudioView:
    """An `AudioView` from a config section; 20480 samples are CPC's 1.28 s at 16 kHz.

    Raises:
      ValueError: no samples, a span that is not a range of shares, an unknown level.
    """
    if samples < 1:
        raise ValueError(f"samples={samples}; expected at least 1.")
    if len(span) != 2 or not 0 <= span[0] <= span[1] <= 1:
        raise ValueError(f"span={list(span)}; expected two shares, 0 <= first <= second <= 1.")
    if level not in LEVELS:
        raise ValueError(f"level={level!r}; expected one of {', '.join(LEVELS)}.")
    return AudioView(samples, (float(span[0]), float(span[1])), level)
