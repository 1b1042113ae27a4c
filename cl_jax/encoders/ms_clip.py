"""One transformer for images and words: MS-CLIP (also called MA-CLIP), and CLIP's pair as the case
in which nothing is shared.

You et al. 2022, arXiv 2207.12661. Attention and MLP weights serve patches and tokens alike; the
embeddings, the class token, the norms and the projections are each modality's own. Weights that are
shared have paths that begin with "shared", for an optimiser's parts.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cl_jax.core.shapes import check_integer, check_real
from cl_jax.core.tokens import PAD
from cl_jax.encoders import initializers
from cl_jax.encoders.layer_norm import LayerNorm
from cl_jax.encoders.norm import BatchNorm
from cl_jax.encoders.transformer import (
    STYLES,
    Block,
    at_end,
    attended,
    check_settings,
    token_table,
)

SHARES = ("none", "blocks", "blocks+norms")
STEMS = ("patch", "early")
_STAGES = 5  # of the early convolutions and of the branch: widths / 16, / 8, ..., / 1


class ImageText(nn.Module):
    """Images and tokens, of which either may be missing, to {"image": [B, D], "text": [B, D]}.

    `__call__(inputs, *, train)`: inputs have "image" [B, H, W, C] float, "tokens" [B, T] integers,
    or both. "image" is the class token after the last norm, "text" the state at the end token after
    its own; words see those before them alone.

    Args:
      vocab_size, length: of the tokens.
      image_size, patch: pixels of a side, of the image and of a patch.
      width, depth, heads: of both transformers.
      share: "none" is CLIP's pair; "blocks" shares attention and MLPs, MS-CLIP; "blocks+norms" the
        norms of the blocks too.
      specific: how many of the first blocks are each modality's own, whatever `share`.
      stem: "patch", or "early": convolutions in the place of patches and of the image's first block
        (MS-CLIP-S), which is then own to the text.
      stem_width: channels of the first convolution of the stem and of the branch, which double up
        to `width`; None is width / 16, the authors'.
      branch: a parallel branch of convolutions over the image, added to its tokens before blocks 2,
        4, ..., 10 (MS-CLIP-S).
      epsilon: of the layer norms; 1e-12 in the authors' code, 1e-5 in CLIP.
      dtype: of matrix products; parameters, norms, softmax and the residual stream are float32.
      axis_name: of batch norm, in the stem and the branch.
    """

    vocab_size: int
    length: int
    image_size: int
    patch: int
    width: int
    depth: int
    heads: int
    share: str = "blocks"
    specific: int = 0
    stem: str = "patch"
    stem_width: int | None = None
    branch: bool = False
    epsilon: float = 1e-5
    dtype: Any = None
    axis_name: str | None = None

    def setup(self) -> None:
        scale, normal = self.width**-0.5, nn.initializers.normal
        self.token_table = token_table(self.vocab_size, self.width, "clip")
        self.text_positions = self.param("text_positions", normal(0.01), (self.length, self.width))
        self.class_token = self.param("class_token", normal(scale), (self.width,))
        patches = (self.image_size // self.patch) ** 2
        self.image_positions = self.param(
            "image_positions", normal(scale), (1 + patches, self.width)
        )
        if self.stem == "patch":
            self.patches = nn.Conv(
                self.width,
                (self.patch,) * 2,
                (self.patch,) * 2,
                "VALID",
                use_bias=False,
                dtype=self.dtype,
                kernel_init=initializers.kernel("torch"),
            )
        else:
            self.early = EarlyStem(
                self.width, self.patch, self.stem_width, self.dtype, self.axis_name
            )
        if self.branch:
            self.side = SideBranch(
                self.width,
                self.patch,
                self.depth,
                self.stem_width,
                self.epsilon,
                self.dtype,
                self.axis_name,
            )
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=jnp.float32)
        block = partial(Block, self.width, self.heads, STYLES["clip"], self.depth, 4 * self.width)
        first = max(self.specific, int(self.stem == "early"))
        shared = self.share != "none"
        own = range(self.depth if not shared else first)
        skipped = int(self.stem == "early")  # the convolutions are the image's first block
        self.shared_blocks = {
            str(i): block(dtype=self.dtype) for i in range(first, self.depth) if shared
        }
        self.image_blocks = {str(i): block(dtype=self.dtype) for i in own if i >= skipped}
        self.text_blocks = {str(i): block(dtype=self.dtype) for i in own}

        def norms(numbers: Any) -> dict[str, list[nn.Module]]:
            return {str(i): [norm(), norm()] for i in numbers}

        both = range(first, self.depth) if self.share == "blocks+norms" else range(0)
        self.shared_norms = norms(both)
        self.image_norms = norms(i for i in range(skipped, self.depth) if i not in both)
        self.text_norms = norms(i for i in range(self.depth) if i not in both)
        self.image_first, self.image_last, self.text_last = norm(), norm(), norm()

    def __call__(self, inputs: Mapping[str, jax.Array], *, train: bool) -> dict[str, jax.Array]:
        found = {}
        if "image" in inputs:
            found["image"] = self._image(inputs["image"], train)
        if "tokens" in inputs:
            found["text"] = self._text(inputs["tokens"])
        return found

    def _image(self, images: jax.Array, train: bool) -> jax.Array:
        check_real(image=images)
        if images.ndim != 4 or images.shape[1:3] != (self.image_size,) * 2:
            raise ValueError(
                f"image has shape {images.shape}; expected [B, {self.image_size}, "
                f"{self.image_size}, C], the encoder's image_size. Set the view's size alike."
            )
        if self.stem == "patch":
            grid = self.patches(images)
        else:
            grid = self.early(images, train=train)
        rows = grid.shape[1]
        x = grid.reshape(len(images), rows * rows, self.width).astype(jnp.float32)
        token = jnp.broadcast_to(self.class_token, (len(images), 1, self.width))
        x = jnp.concatenate([token.astype(x.dtype), x], axis=1)
        x = self.image_first(x + jnp.broadcast_to(self.image_positions[None], x.shape))
        maps = self.side.stages(images, train=train) if self.branch else []
        for i in range(int(self.stem == "early"), self.depth):
            if self.branch and i in self.side.places:
                x = self.side.fuse(x, maps, self.side.places.index(i), train=train)
            x = self._block("image", i)(x, self._norms("image", i))
        return self.image_last(x[:, 0])

    def _text(self, tokens: jax.Array) -> jax.Array:
        check_integer("b t", tokens=tokens)
        length = tokens.shape[1]
        if length > self.length:
            raise ValueError(
                f"tokens have shape {tokens.shape}; this encoder has positions for "
                f"length={self.length}. Raise it, or shorten the sentences of the data."
            )
        x = self.token_table(tokens.astype(jnp.int32))
        x = x + jnp.broadcast_to(self.text_positions[None, :length], x.shape)
        mask = attended(tokens != PAD, causal=True)
        for i in range(self.depth):
            x = self._block("text", i)(x, self._norms("text", i), mask=mask)
        return at_end(self.text_last(x), tokens)

    def _block(self, modality: str, i: int) -> nn.Module:
        own = self.image_blocks if modality == "image" else self.text_blocks
        return self.shared_blocks.get(str(i)) or own[str(i)]

    def _norms(self, modality: str, i: int) -> list[nn.Module]:
        own = self.image_norms if modality == "image" else self.text_norms
        return self.shared_norms.get(str(i)) or own[str(i)]


class EarlyStem(nn.Module):
    """Images [B, H, W, C] to a grid of tokens [B, H / patch, W / patch, width]: a 3x3 convolution
    with batch norm and ReLU, four residual blocks of one convolution each that double the channels,
    and a 1x1 convolution (MS-CLIP's early specialisation)."""

    width: int
    patch: int
    first: int | None = None
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        strides = _strides(self.patch)
        conv, norm = _layers(self.dtype, self.axis_name, train)
        x = nn.relu(
            norm("norm0")(conv("conv0", _widths(self.width, self.first)[0], 3, strides[0])(x))
        )
        for j in range(1, _STAGES):
            channels = _widths(self.width, self.first)[j]
            y = norm(f"norm{j}")(conv(f"conv{j}", channels, 3, strides[j])(x))
            shortcut = norm(f"shortcut_norm{j}")(conv(f"shortcut{j}", channels, 1, strides[j])(x))
            x = nn.relu(y + shortcut)
        return conv("out", self.width, 1, 1)(x)


class SideBranch(nn.Module):
    """MS-CLIP's parallel branch: maps of the raw image by five stages, each brought to the grid of
    the tokens and added to what a depthwise convolution makes of these, under a norm. The tokens do
    not pass around the fusion.

    `stages(images, train)` -> maps; `fuse(x, maps, j, train)` -> tokens [B, 1 + P, D].
    """

    width: int
    patch: int
    depth: int
    first: int | None = None
    epsilon: float = 1e-5
    dtype: Any = None
    axis_name: str | None = None

    @property
    def places(self) -> tuple[int, ...]:
        """The blocks before which there is a fusion."""
        return tuple(range(2, self.depth, 2))[:_STAGES]

    @nn.compact
    def stages(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        strides = _strides(self.patch)
        conv, norm = _layers(self.dtype, self.axis_name, train)
        x = nn.relu(
            norm("norm0")(conv("conv0", _widths(self.width, self.first)[0], 3, strides[0])(x))
        )
        maps = [x]
        for j in range(1, len(self.places)):
            channels = _widths(self.width, self.first)[j]
            y = nn.relu(norm(f"norm{j}a")(conv(f"conv{j}a", channels // 2, 1, 1)(x)))
            y = nn.relu(norm(f"norm{j}b")(conv(f"conv{j}b", channels // 2, 3, strides[j])(y)))
            y = norm(f"norm{j}c")(conv(f"conv{j}c", channels, 1, 1)(y))
            x = nn.relu(y + norm(f"norm{j}d")(conv(f"conv{j}d", channels, 1, strides[j])(x)))
            maps.append(x)
        return maps

    @nn.compact
    def fuse(self, x: jax.Array, maps: list[jax.Array], j: int, *, train: bool) -> jax.Array:
        conv, norm = _layers(self.dtype, self.axis_name, train)
        side = round((x.shape[1] - 1) ** 0.5)
        grid = x[:, 1:].reshape(len(x), side, side, self.width)
        kernel = maps[j].shape[1] // side
        pooled = norm(f"fuse_norm{j}a")(
            conv(f"fuse{j}a", maps[j].shape[-1], kernel, kernel, depthwise=True)(maps[j])
        )
        tokens = norm(f"fuse_norm{j}b")(conv(f"fuse{j}b", self.width, 3, 1, depthwise=True)(grid))
        added = tokens + conv(f"fuse{j}c", self.width, 1, 1)(pooled)
        flat = added.reshape(len(x), side * side, self.width).astype(jnp.float32)
        joined = jnp.concatenate([2 * x[:, :1], flat], axis=1)
        return LayerNorm(epsilon=self.epsilon, dtype=jnp.float32, name=f"fuse_norm{j}c")(joined)


def _layers(dtype: Any, axis_name: str | None, train: bool) -> Any:
    """Makers of a convolution and of a batch norm by name."""

    def conv(name: str, channels: int, kernel: int, stride: int, depthwise: bool = False) -> Any:
        return nn.Conv(
            channels,
            (kernel,) * 2,
            (stride,) * 2,
            [((kernel - 1) // 2,) * 2] * 2 if kernel != stride else "VALID",
            use_bias=False,
            feature_group_count=channels if depthwise else 1,
            dtype=dtype,
            kernel_init=initializers.kernel("he_fan_out"),
            name=name,
        )

    def norm(name: str) -> Any:
        return partial(BatchNorm(axis_name=axis_name, dtype=dtype, name=name), train=train)

    return conv, norm


def _strides(patch: int) -> list[int]:
    """Of the five convolutions, whose product is the patch: the first ones halve the image."""
    halvings = patch.bit_length() - 1
    return [2] * halvings + [1] * (_STAGES - halvings)


def _widths(width: int, first: int | None) -> list[int]:
    first = first or width >> (_STAGES - 1)
    return [min(first << j, width) for j in range(_STAGES)]


def make(
    *,
    sizes: Mapping[str, int] | None = None,
    vocab_size: int | None = None,
    length: int = 77,
    image_size: int = 224,
    patch: int = 32,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    share: str = "blocks",
    specific: int = 0,
    stem: str = "patch",
    stem_width: int | None = None,
    branch: bool = False,
    epsilon: float = 1e-5,
    dtype: str | None = "float32",
    axis_name: str | None = None,
) -> ImageText:
    """An `ImageText` from a config section; `vocab_size` None is that of the data's "tokens".

    Raises:
      ValueError: an unknown share or stem; heads or a patch that do not divide; more own blocks
        than blocks; convolutions that the patch or the width do not allow; no vocabulary.
    """
    if vocab_size is None:
        vocab_size = (sizes or {}).get("tokens")
        if vocab_size is None:
            raise ValueError("the data have no 'tokens' of known vocabulary; give vocab_size.")
    check_settings(style="clip", width=width, heads=heads, dropout=0.0)
    if share not in SHARES:
        raise ValueError(f"share is {share!r}; expected one of {', '.join(SHARES)}.")
    if stem not in STEMS:
        raise ValueError(f"stem is {stem!r}; expected one of {', '.join(STEMS)}.")
    if not 0 <= specific <= depth:
        raise ValueError(f"specific={specific}; expected 0 to depth={depth} blocks.")
    if image_size % patch:
        raise ValueError(f"image_size={image_size} is not a multiple of patch={patch}.")
    if (stem == "early" or branch) and (patch not in (2, 4, 8, 16, 32) or width % 16):
        raise ValueError(
            f"patch={patch} and width={width}; the early stem and the branch halve the image up to "
            "five times and double the channels four times: expected a patch of 2, 4, 8, 16 or 32 "
            "and a width divisible by 16."
        )
    return ImageText(
        vocab_size,
        length,
        image_size,
        patch,
        width,
        depth,
        heads,
        share,
        specific,
        stem,
        stem_width,
        branch,
        epsilon,
        None if dtype is None else jnp.dtype(dtype),
        axis_name,
    )
