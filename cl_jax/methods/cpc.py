"""CPC for images, v1 and v2 (van den Oord et al. 2018, arXiv 1807.03748; Henaff et al. 2020, arXiv
1905.09272).

An image is a grid of overlapping patches, each encoded by itself. A context, which has seen the
rows down to one, picks out the encoding of the patch some rows further down among all patches of
the batch, those of its own image included."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax import losses
from cl_jax.core.keys import example_keys, view_keys
from cl_jax.core.method import Aux, Batch, Method, Run, from_loss
from cl_jax.core.network import applier, check_no_drop_path, features_of, initial
from cl_jax.heads.context import RowContext
from cl_jax.views import ImageView, Recipe, colour, draw, fields, patches
from cl_jax.views import warp as warps

DIRECTIONS = ("down", "up", "right", "left")


class Network(nn.Module):
    """Patch encoder, a context network and predictors for each direction.

    Takes images [B, S, S, C], or their patches [B, H, H, s, s, C]. Returns ((p, z), features):
    predictions p [B, directions, K, H, H, D], on the grid as `facing` turns it, of z [B, H, H, D];
    "h" [B, F], the mean encoding of the patches, "grid" [B, H * H * F], their encodings side by
    side, and "context" [B, directions * F], the mean contexts."""

    encoder: nn.Module
    patch_size: int
    stride: int
    grey: bool
    directions: Sequence[str]
    steps: int
    target_dim: int | None
    context_blocks: int
    context_width: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool
    ) -> tuple[tuple[jax.Array, jax.Array], dict[str, jax.Array]]:
        check_no_drop_path(self.encoder)
        if x.ndim == 4:
            x = patches.grid(x, size=self.patch_size, stride=self.stride)
        if self.grey:
            x = (x * jnp.array(colour.LUMA_PIL, x.dtype).reshape(1, 1, 1, 1, 1, 3)).sum(
                -1, keepdims=True
            )
        encoded = self.encoder(x.reshape(-1, *x.shape[3:]), train=train)["h"]
        encoded = encoded.reshape(*x.shape[:3], -1)
        z = encoded
        if self.target_dim is not None:
            z = nn.Dense(self.target_dim, dtype=self.dtype, name="target")(encoded).astype(
                encoded.dtype
            )
        p, contexts = [], []
        for direction in self.directions:
            c = RowContext(
                self.context_blocks, self.context_width, self.dtype, name=f"context_{direction}"
            )(facing(encoded, direction))
            w = self.param(
                f"predict_{direction}",
                nn.initializers.lecun_normal(in_axis=2, out_axis=1, batch_axis=0),
                (self.steps, z.shape[-1], c.shape[-1]),
                jnp.float32,
            )
            p.append(jnp.moveaxis(losses.predictive.predictions(c, w), 0, 1))
            contexts.append(c.mean((1, 2)))
        features = {
            "h": encoded.mean((1, 2)),
            "grid": encoded.reshape(encoded.shape[0], -1),
            "context": jnp.concatenate(contexts, axis=1),
        }
        return (jnp.stack(p, axis=1), z), features


def facing(z: jax.Array, direction: str) -> jax.Array:
    """[B, H, W, D] turned so that the direction is downwards; for sideways ones rows and columns
    change places."""
    z = jnp.swapaxes(z, 1, 2) if direction in ("right", "left") else z
    return z[:, ::-1] if direction in ("up", "left") else z


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[ImageView],
    run: Run,
    patch_size: int,
    stride: int,
    offsets: Sequence[int],
    directions: Sequence[str] = ("down",),
    grey: bool = False,
    subcrop: int | None = None,
    drop_channels: float = 0.0,
    warp: Mapping[str, float] | None = None,
    target_dim: int | None = 64,
    scale: float = 0.1,
    context_blocks: int = 5,
    context_width: int = 256,
    exclude_own: bool = False,
    across: bool = False,
    block_size: int | None = None,
) -> Method:
    """CPC on images.

    views: the recipe of the whole image, and optionally one for each patch by itself (jitter, gray,
      flip); the colour space and normalisation of the first are the patches'.
    patch_size, stride: pixels of a patch, and from one to the next.
    offsets: rows from a context to the patches it predicts, with a matrix of its own for each. v1's
      figure has 2, 3, 4; v2's pseudo-code, as printed, 3 alone. Patches that overlap by half share
      pixels with the next row.
    directions: v1 predicts "down"; v2 "down", "up", "right", "left", each by a context network of
      its own. The loss is the mean over them.
    grey: the luma of the image, one channel (v1). Mean and deviation must be the same for all three
      channels.
    subcrop, drop_channels: see `views.patches.augment`; 60 of 64 pixels in v1, channels dropped in
      v2.
    warp: settings of `views.warp.Warp`: patches that are turned, sheared and elastically deformed
      (v2); {} for its own.
    target_dim: width of a linear map of the encodings, which is predicted (v2); None predicts the
      encodings themselves (v1).
    scale: of scores; 1 in v1, 0.1 in v2. Nothing is normalised, so it decides how fast learning
      starts.
    context_blocks, context_width: see `RowContext`.
    exclude_own: leaves out the image's own other patches as negatives.
    across: draws the image twice, and the contexts of each draw predict the patches of the other.
      Of data with a second rendering, half of these pairs are of both renderings. In neither paper.
    block_size: see `losses.predictive.cpc_grid`.

    Gradient flows to positives and negatives. "h" is the mean encoding over patches, "grid" all
    encodings side by side, "context" the mean of the contexts of each direction. An encoder without
    batch norm keeps the patches of an image apart.

    Raises:
      ValueError: more than two views, unknown directions, offsets beyond the grid, grey with
        moments that differ by channel.
    """
    if len(views) not in (1, 2):
        raise ValueError(
            f"CPC sees one view of an image, and perhaps a recipe for its patches; the config has "
            f"{len(views)} "
            "recipes."
        )
    unknown = [direction for direction in directions if direction not in DIRECTIONS]
    if unknown or not directions or len(set(directions)) != len(directions):
        raise ValueError(
            f"directions={list(directions)}; expected some of {', '.join(DIRECTIONS)}, each once."
        )
    whole = views[0].recipe
    side = len(patches.starts_of(whole.size, patch_size, stride))
    if not offsets or not all(1 <= offset < side for offset in offsets):
        raise ValueError(
            f"offsets={list(offsets)}; expected rows from 1 to {side - 1}: images of {whole.size} "
            f"pixels are "
            f"{side} patches high."
        )
    if grey and not (whole.mean is None or len(set(whole.mean)) == len(set(whole.std or ())) == 1):
        raise ValueError(
            f"grey=True and mean={whole.mean}, std={whole.std}; expected the same for every "
            f"channel."
        )
    unfinished = ImageView(dataclasses.replace(whole, mean=None, std=None, colour_space="rgb"))
    plain = Recipe(crop="none", flip=0.0) if len(views) == 1 else views[1].recipe
    each = dataclasses.replace(
        plain, mean=whole.mean, std=whole.std, colour_space=whole.colour_space
    )
    bend = None if warp is None else warps.make(**warp)
    network = Network(
        encoder,
        patch_size,
        stride,
        grey,
        tuple(directions),
        len(offsets),
        target_dim,
        context_blocks,
        context_width,
        encoder.dtype,
    )
    apply, candidates = applier(network), run.batch_size * side**2
    pictures = 2 if across else 1

    def cut_patches(batch: Batch, key: jax.Array) -> list[jax.Array]:
        """For each draw of the image, [B, rows, columns, size, size, C] of a crop, each patch
        augmented by itself."""
        keys = example_keys(key, batch["id"])
        return [
            patches.augment(
                each,
                view_keys(keys, pictures + number),
                patches.grid(images, size=patch_size, stride=stride),
                subcrop=subcrop,
                drop_channels=drop_channels,
                warp=bend,
            )
            for number, images in enumerate(draw([unfinished] * pictures, batch, key))
        ]

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        ((p, z), _), stats = apply(params, stats, jnp.concatenate(inputs), True)
        each_draw = (jnp.stack(jnp.split(x, pictures), axis=1) for x in (p, z))
        return dict(zip("pz", each_draw)), stats, None

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        found = [
            losses.predictive.cpc_grid_steps(
                jnp.moveaxis(outputs["p"][:, number, i], 1, 0),
                facing(outputs["z"][:, pictures - 1 - number], direction),
                offsets=offsets,
                scale=scale,
                exclude_own=exclude_own,
                axis_name=run.axis_name,
                block_size=block_size,
            )
            for number in range(pictures)
            for i, direction in enumerate(directions)
        ]
        accuracy = jnp.stack([steps.accuracy for steps in found]).mean(0)
        metrics = {f"accuracy_{offset}": accuracy[k] for k, offset in enumerate(offsets)}
        known = candidates - (side**2 - 1 if exclude_own else 0)
        metrics["chance"] = jnp.float32(math.log(known))
        return jnp.stack([steps.loss for steps in found]).mean(), Aux(metrics)

    return from_loss(
        variables=initial(network, views[0].clean),
        views=cut_patches,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features_of(apply),
        clean=views[0].clean,
        axis_name=run.axis_name,
        **fields(views),
        negatives=candidates - 1,
    )
