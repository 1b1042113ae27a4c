"""An agent's network up to its heads: an encoder of what it observes, and a recurrent memory."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.names import nearest

CELLS = {"gru": nn.GRUCell, "lstm": nn.OptimizedLSTMCell}
TORSOS = ("mlp", "conv")


class Agent(nn.Module):
    """Observations to latents `z`, and latents to the memory's output `h`, one time after another.

    `encode` takes any leading axes, so that a whole unroll is encoded at once; `remember` takes one
    time. A call does both for one time: (memory, observation [B, ...], first [B]) -> (memory, z,
    h).

    Args:
      torso: "mlp" flattens the observation; "conv" takes maps [H, W] or [H, W, C] through 3x3
        convolutions of stride 2, then a dense layer of the last width. An MLP is faster on a CPU,
        which is slow at convolutions inside the loop over time.
      widths: of the torso's layers, ReLU after each; the last is the width of `z`.
      memory: width of `h`.
      cell: "gru" or "lstm".
      dtype: of the torso's computation; the memory is float32.
    """

    torso: str = "mlp"
    widths: Sequence[int] = (64, 64)
    memory: int = 64
    cell: str = "gru"
    dtype: Any = None

    def setup(self) -> None:
        last = len(self.widths) - 1
        self.layers = [
            nn.Dense(width, dtype=self.dtype)
            if self.torso == "mlp" or i == last
            else nn.Conv(width, (3, 3), (2, 2), dtype=self.dtype)
            for i, width in enumerate(self.widths)
        ]
        self.recurrent = CELLS[self.cell](self.memory)

    def __call__(
        self, memory: Any, observation: jax.Array, first: jax.Array
    ) -> tuple[Any, jax.Array, jax.Array]:
        z = self.encode(observation, 1)
        memory, h = self.remember(memory, z, first)
        return memory, z, h

    def encode(self, observation: jax.Array, leading: int) -> jax.Array:
        """[*leading axes, ...] -> z [*leading axes, D], float32 at least."""
        lead, seen = observation.shape[:leading], observation.shape[leading:]
        x = lax.collapse(observation, 0, leading)
        if self.torso == "conv" and len(seen) == 2:
            x = x[..., None]
        elif self.torso == "conv" and len(seen) != 3:
            raise ValueError(
                f"an observation of shape {seen} for torso='conv'; expected a map [H, W] or "
                "[H, W, C]. Use torso='mlp'."
            )
        for i, layer in enumerate(self.layers):
            flat = self.torso == "mlp" or i == len(self.layers) - 1
            x = nn.relu(layer(lax.collapse(x, 1) if flat else x))
        return x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(*lead, x.shape[-1])

    def remember(self, memory: Any, z: jax.Array, first: jax.Array) -> tuple[Any, jax.Array]:
        """(memory, h [B, M]) after latents [B, D]; the memory of worlds [B] that start an episode
        is emptied first."""
        empty = self.start(z.shape[0])
        memory = jax.tree.map(lambda old, new: jnp.where(first[:, None], new, old), memory, empty)
        memory, h = self.recurrent(memory, z)
        return memory, h

    def start(self, batch: int) -> Any:
        """The empty memory of `batch` worlds."""
        empty = jnp.zeros((batch, self.memory), jnp.float32)
        return (empty, empty) if self.cell == "lstm" else empty


def make(
    *,
    torso: str = "mlp",
    widths: Sequence[int] = (64, 64),
    memory: int = 64,
    cell: str = "gru",
    dtype: str | None = "float32",
    axis_name: str | None = None,
) -> Agent:
    """An `Agent` from a config section; `dtype` by name. Nothing in it is shared over `axis_name`.

    Raises:
      ValueError: an unknown torso or cell, no width, or one below 1.
    """
    for name, value, known in (("torso", torso, TORSOS), ("cell", cell, tuple(CELLS))):
        if value not in known:
            raise ValueError(
                f"{name}={value!r} is unknown; have {', '.join(known)}{nearest(value, known)}."
            )
    if not widths or min(*widths, memory) < 1:
        raise ValueError(
            f"widths={tuple(widths)}, memory={memory}; expected one positive width or more."
        )
    return Agent(torso, tuple(widths), memory, cell, None if dtype is None else jnp.dtype(dtype))
