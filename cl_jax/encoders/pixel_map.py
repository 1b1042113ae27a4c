"""Maps of each pixel's channels: generators of views that change colours and leave shapes where
they are (Tian et al. 2020, arXiv 2005.10243, section 4)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

KINDS = ("flow", "convolutions")


class PixelMap(nn.Module):
    """Images [B, H, W, C] to images of the same shape; what a pixel becomes depends on it alone.

    "flow": additive couplings, x_rest + m(x_one), which are invertible and keep volumes: nothing of
    the image is lost. They start at the identity. "convolutions": 1x1 convolutions with ReLU, which
    may lose information.

    Args:
      kind: one of KINDS.
      layers: couplings, or convolutions. A flow of as many layers as channels changes each by the
        others.
      width: hidden channels.
    """

    kind: str = "flow"
    layers: int = 6
    width: int = 16

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; expected one of {', '.join(KINDS)}.")
        if self.layers < 1:
            raise ValueError(f"layers={self.layers}; expected at least 1.")
        channels = x.shape[-1]
        if self.kind == "convolutions":
            for layer in range(self.layers - 1):
                x = nn.relu(nn.Dense(self.width, name=f"dense{layer}")(x))
            return nn.Dense(channels, name=f"dense{self.layers - 1}")(x)
        if channels < 2:
            raise ValueError("a flow couples channels and the images have one; use colour images.")
        for layer in range(self.layers):
            one, rest = x[..., :1], x[..., 1:]
            hidden = nn.tanh(nn.Dense(self.width, name=f"hidden{layer}")(one))
            shift = nn.Dense(channels - 1, kernel_init=nn.initializers.zeros, name=f"shift{layer}")
            # The channel that moved nothing comes last, so that the next moves the others.
            x = jnp.concatenate([rest + shift(hidden), one], axis=-1)
        back = self.layers % channels
        return jnp.roll(x, back, axis=-1)
