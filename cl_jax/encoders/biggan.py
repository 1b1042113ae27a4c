"""BigGAN's generator and discriminator (Brock et al., arXiv 1809.11096), as ContraGAN trains them:
the discriminator's score does not see the class, which an embedding and class proxies carry."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.shapes import check, check_integer, check_real
from cl_jax.encoders.norm import BatchNorm
from cl_jax.encoders.pool import max_pool
from cl_jax.encoders.spectral import KERNEL, SpectralConv, SpectralDense

ROLES = ("generator", "discriminator")


class Generator(nn.Module):
    """Noise [B, Z] and classes [B] to images [B, S, S, channels] between -1 and 1.

    A linear layer to a map of `bottom` x `bottom`, then residual blocks that each double its side,
    batch norm, ReLU, a 3x3 convolution, tanh. The noise is cut into one part for the linear layer
    and one for each block; a block's batch norms are scaled and shifted by its part and the class's
    embedding. All kernels but the class embedding are spectrally normalised.

    Args:
      widths: channels of the first map, then of each block's result: one number more than blocks.
        The side of the image is bottom * 2^blocks.
      num_classes: rows of the class embedding.
      channels: of the images.
      bottom: side of the first map.
      noise_dim: Z, divisible by the number of blocks + 1.
      shared_dim: of the class embedding.
      attention: the block (from 1) after which a self-attention layer comes; 0 for none.
      dtype: of the computation; None follows the input.
      axis_name: of every batch norm.

    Raises:
      ValueError: shapes that disagree with the above.
    """

    widths: Sequence[int]
    num_classes: int
    channels: int = 3
    bottom: int = 4
    noise_dim: int = 80
    shared_dim: int = 128
    attention: int = 0
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, noise: jax.Array, labels: jax.Array, *, train: bool) -> jax.Array:
        blocks = len(self.widths) - 1
        sizes = check("b z", {"z": self.noise_dim}, noise=noise)
        check_integer("b", sizes, labels=labels)
        parts = jnp.split(noise, blocks + 1, axis=1)
        embed = nn.Embed(self.num_classes, self.shared_dim, embedding_init=KERNEL, name="shared")
        classes = embed(labels)
        x = SpectralDense(self.bottom**2 * self.widths[0], dtype=self.dtype, name="linear")(
            parts[0], train=train
        )
        x = x.reshape(-1, self.bottom, self.bottom, self.widths[0])
        for i in range(1, blocks + 1):
            condition = jnp.concatenate([classes, parts[i]], axis=1)
            x = UpBlock(self.widths[i], self.dtype, self.axis_name, name=f"block{i}")(
                x, condition, train=train
            )
            if i == self.attention:
                x = Attention(self.dtype, name="attention")(x, train=train)
        x = BatchNorm(axis_name=self.axis_name, epsilon=1e-4, dtype=self.dtype, name="norm")(
            x, train=train
        )
        x = SpectralConv(self.channels, dtype=self.dtype, name="conv")(nn.relu(x), train=train)
        return jnp.tanh(x.astype(jnp.promote_types(x.dtype, jnp.float32)))


class Discriminator(nn.Module):
    """Images [B, H, W, C] between -1 and 1 to {"score": [B], "z": [B, E], "h": [B, D]}.

    Residual blocks, the first `down` of which halve the side; "h" is the ReLU of the last map,
    summed over space. "score" and "z" are linear in it. All kernels are spectrally normalised. The
    class proxies, parameter "proxies" [num_classes, E], are only kept here: the loss reads them.

    Args:
      widths: channels of each block's result.
      num_classes: number of proxies.
      down: how many blocks, from the first, halve the side.
      embed_dim: E.
      attention: the block (from 1) after which a self-attention layer comes; 0 for none.
      dtype: of the computation; results are float32 at least. None follows the input.

    Raises:
      ValueError: images of another rank, or of a side that `down` halvings do not divide.
    """

    widths: Sequence[int]
    num_classes: int
    down: int = 2
    embed_dim: int = 512
    attention: int = 0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        check_real(x=x)
        if x.ndim != 4 or x.shape[1] % 2**self.down or x.shape[2] % 2**self.down:
            raise ValueError(
                f"x has shape {x.shape}; the discriminator expects images [B, H, W, C] whose sides "
                f"are multiples of {2**self.down}, since {self.down} blocks halve them. Lower down."
            )
        # A spectral norm of this table would cancel: the loss normalises each proxy.
        self.param("proxies", KERNEL, (self.num_classes, self.embed_dim), jnp.float32)
        if self.dtype is not None:
            x = x.astype(self.dtype)
        for i, width in enumerate(self.widths, start=1):
            block = DownBlock(width, i <= self.down, i == 1, self.dtype, name=f"block{i}")
            x = block(x, train=train)
            if i == self.attention:
                x = Attention(self.dtype, name="attention")(x, train=train)
        x = nn.relu(x)
        h = x.astype(jnp.promote_types(x.dtype, jnp.float32)).sum((1, 2))
        score = SpectralDense(1, name="score")(h, train=train)[:, 0]
        return {
            "score": score,
            "z": SpectralDense(self.embed_dim, name="embed")(h, train=train),
            "h": h,
        }


class UpBlock(nn.Module):
    """A residual block of the generator: [B, H, W, C] and a condition [B, A] to [B, 2H, 2W,
    features]."""

    features: int
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array, *, train: bool) -> jax.Array:
        # A 1x1 convolution before the upsampling instead of after it: the same values.
        shortcut = SpectralConv(self.features, 1, dtype=self.dtype, name="shortcut")(x, train=train)
        for i in (1, 2):
            norm = ConditionalBatchNorm(self.dtype, self.axis_name, name=f"norm{i}")
            x = nn.relu(norm(x, condition, train=train))
            x = _double(x) if i == 1 else x
            x = SpectralConv(self.features, dtype=self.dtype, name=f"conv{i}")(x, train=train)
        return x + _double(shortcut)


class DownBlock(nn.Module):
    """A residual block of the discriminator: [B, H, W, C] to [B, H, W, features], or half the side.

    The first block of the network takes the image itself, without a ReLU before.
    """

    features: int
    down: bool
    first: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        shortcut = _halve(x) if self.down else x
        if self.down or self.first or x.shape[-1] != self.features:
            # A 1x1 convolution after the mean instead of before it: the same values.
            project = SpectralConv(self.features, 1, dtype=self.dtype, name="shortcut")
            shortcut = project(shortcut, train=train)
        for i in (1, 2):
            x = x if self.first and i == 1 else nn.relu(x)
            x = SpectralConv(self.features, dtype=self.dtype, name=f"conv{i}")(x, train=train)
        return (_halve(x) if self.down else x) + shortcut


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose scale is 1 + a linear map, and whose shift is a linear map, of a condition
    [B, A]; both spectrally normalised and without bias."""

    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array, *, train: bool) -> jax.Array:
        norm = BatchNorm(
            axis_name=self.axis_name,
            epsilon=1e-4,
            use_scale=False,
            use_bias=False,
            dtype=self.dtype,
            name="norm",
        )
        gain, bias = (
            SpectralDense(x.shape[-1], use_bias=False, dtype=self.dtype, name=name)(
                condition, train=train
            )[:, None, None]
            for name in ("gain", "bias")
        )
        return norm(x, train=train) * (1 + gain) + bias


class Attention(nn.Module):
    """Self-attention over the places of a map [B, H, W, C], added with a gain that starts at 0.

    Queries and keys have C/8 channels, values C/2; keys and values are max-pooled 2x2.

    Reference: Zhang et al., Self-attention generative adversarial networks, ICML 2019.
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        batch, height, width, channels = x.shape
        if channels < 8 or height % 2 or width % 2:
            raise ValueError(
                f"attention on a map of shape {x.shape}; expected 8 channels or more and even "
                "sides. Choose another block, or attention=0."
            )

        def project(name: str, features: int, pool: bool) -> jax.Array:
            y = SpectralConv(features, 1, use_bias=False, dtype=self.dtype, name=name)(
                x, train=train
            )
            y = max_pool(y, (2, 2), (2, 2)) if pool else y
            return lax.collapse(y, 1, 3)

        query = project("query", channels // 8, False)
        key = project("key", channels // 8, True)
        value = project("value", channels // 2, True)
        weights = jnp.einsum("bpc,bqc->bpq", query, key, preferred_element_type=jnp.float32)
        mixed = jax.nn.softmax(weights).astype(value.dtype) @ value
        out = SpectralConv(channels, 1, use_bias=False, dtype=self.dtype, name="out")(
            mixed.reshape(batch, height, width, mixed.shape[-1]), train=train
        )
        gain = self.param("gain", nn.initializers.zeros, (), jnp.float32)
        return x + gain.astype(x.dtype) * out


def _double(x: jax.Array) -> jax.Array:
    """Nearest neighbours: each pixel becomes 2x2."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def _halve(x: jax.Array) -> jax.Array:
    """Means of 2x2 pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def make(
    *,
    role: str,
    widths: Sequence[int],
    sizes: Mapping[str, int],
    label: str = "label",
    channels: int = 3,
    bottom: int = 4,
    noise_dim: int = 80,
    shared_dim: int = 128,
    down: int = 2,
    embed_dim: int = 512,
    attention: int = 0,
    dtype: str | None = "float32",
    axis_name: str | None = None,
) -> Generator | Discriminator:
    """A `Generator` or a `Discriminator`, by `role`, from a config section.

    `sizes[label]` is the number of classes. Each role reads its own keywords and ignores the
    others: the generator `channels`, `bottom`, `noise_dim` and `shared_dim`, the discriminator
    `down` and `embed_dim`.

    Raises:
      ValueError: an unknown role, data without that label, widths, noise or attention that do not
        fit each other.
    """
    if role not in ROLES:
        raise ValueError(f"role={role!r} is unknown; have {', '.join(ROLES)}.")
    if label not in sizes:
        known = ", ".join(sorted(sizes)) or "none"
        raise ValueError(
            f"the {role} needs the number of classes of {label!r}; the data have the labels: "
            f"{known}. Set label to one of them."
        )
    kind, widths = None if dtype is None else jnp.dtype(dtype), tuple(widths)
    blocks = len(widths) - (role == "generator")
    if blocks < 1 or min(widths) < 1:
        raise ValueError(
            f"widths={widths} of the {role}; expected positive numbers, one for each block"
            + (" and one for the first map." if role == "generator" else ".")
        )
    if not 0 <= attention <= blocks:
        raise ValueError(f"attention={attention} of {blocks} blocks; expected a block, or 0.")
    if role == "discriminator":
        if not 0 <= down <= blocks:
            raise ValueError(f"down={down} of {blocks} blocks; expected 0 to {blocks}.")
        return Discriminator(widths, sizes[label], down, embed_dim, attention, kind)
    if noise_dim % (blocks + 1):
        raise ValueError(
            f"noise_dim={noise_dim} is not divisible into {blocks + 1} parts, one for the first "
            f"map and one for each block; try {-(-noise_dim // (blocks + 1)) * (blocks + 1)}."
        )
    return Generator(
        widths, sizes[label], channels, bottom, noise_dim, shared_dim, attention, kind, axis_name
    )
