"""Masked image modelling: MAE (He et al. 2021, arXiv 2111.06377) and SimMIM (Xie et al. 2021, arXiv
2111.09886). One view; a transformer predicts the pixels of hidden patches.

MAE's encoder sees the patches that are left, and a small decoder puts a learned token in the place
of the others. SimMIM's encoder sees all places, a learned token at the hidden ones, and one linear
layer reads the pixels. Masks are drawn by example."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax import losses
from cl_jax.core.keys import example_keys, view_keys
from cl_jax.core.method import Aux, Batch, Method, Run, Variables, from_loss
from cl_jax.encoders import masking
from cl_jax.encoders.vit import ViT
from cl_jax.heads.decoder import Decoder
from cl_jax.views import View, keywords, masks

MASK = 2**16  # folded into an example's key where a view folds in its number
DROP = MASK + 1


class Autoencoder(nn.Module):
    """MAE's pair. (images, noise [B, L], train) -> ([B, L, patch * patch * C], mask [B, L])."""

    encoder: ViT
    decoder: Decoder
    keep: int

    def __call__(
        self, images: jax.Array, noise: jax.Array, train: bool, drop_keys: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        found = masking.random_masking(noise, self.keep)
        tokens = self.encoder(images, train=train, drop_keys=drop_keys, kept=found.kept)["tokens"]
        grid = (images.shape[1] // self.encoder.patch, images.shape[2] // self.encoder.patch)
        return self.decoder(tokens, found.restore, grid=grid), found.mask

    def encode(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        return self.encoder(images, train=train)


class LinearDecoder(nn.Module):
    """SimMIM's pair. (images, mask [B, h, w], train) -> predicted images [B, H, W, C]."""

    encoder: ViT
    channels: int

    @nn.compact
    def __call__(
        self, images: jax.Array, mask: jax.Array, train: bool, drop_keys: jax.Array | None = None
    ) -> jax.Array:
        batch, rows, columns = mask.shape
        tokens = self.encoder(
            images, train=train, drop_keys=drop_keys, mask=mask.reshape(batch, -1)
        )["tokens"][:, 1:]
        patch = self.encoder.patch
        x = nn.Dense(patch * patch * self.channels, dtype=self.encoder.dtype, name="pixels")(tokens)
        return losses.masked.pixel_shuffle(x.reshape(batch, rows, columns, -1), stride=patch)

    def encode(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        return self.encoder(images, train=train)


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    form: str = "mae",
    mask_ratio: float = 0.75,
    normalise_pixels: bool = True,
    decoder_width: int = 512,
    decoder_depth: int = 8,
    decoder_heads: int = 16,
    mask_cell: int = 32,
    micro_batches: int = 1,
) -> Method:
    """MAE, or SimMIM, of one view.

    encoder: a `vit`, with mask_token=True for SimMIM.
    form: "mae" or "simmim". mask_ratio: share of the patches that is hidden: 0.75 (MAE; at least
      one patch must be left), 0.6 (SimMIM).
    normalise_pixels: MAE's targets have mean 0 and variance 1 in each patch.
    decoder_width, decoder_depth, decoder_heads: of MAE's decoder.
    mask_cell: side in pixels of the cells that SimMIM hides, a multiple of the patch.

    Raises:
      ValueError: more views than one, an unknown form, an encoder that is not a `vit`, SimMIM
        without a mask token, cells that the patch does not divide.
    """
    if len(views) != 1:
        raise ValueError(
            f"a masked autoencoder has one view; the config has {len(views)}. Set copies=1."
        )
    if form not in ("mae", "simmim"):
        raise ValueError(f'form is {form!r}; expected "mae" or "simmim".')
    if not isinstance(encoder, ViT):
        raise ValueError(f"the encoder is a {type(encoder).__name__}; expected encoder.name=vit.")
    if form == "simmim" and not encoder.mask_token:
        raise ValueError("SimMIM replaces hidden patches by a token; set encoder.mask_token=True.")
    if form == "simmim" and mask_cell % encoder.patch:
        raise ValueError(
            f"mask_cell={mask_cell} is not a multiple of the encoder's patch of {encoder.patch}."
        )
    patch = encoder.patch

    def network(images: jax.Array) -> Autoencoder | LinearDecoder:
        _, height, width, channels = images.shape
        if form == "simmim":
            return LinearDecoder(encoder, channels)
        keep = masking.kept_count((height // patch) * (width // patch), mask_ratio)
        decoder = Decoder(
            patch * patch * channels, decoder_width, decoder_depth, decoder_heads, encoder.dtype
        )
        return Autoencoder(encoder, decoder, keep)

    def drawn(images: jax.Array, keys: jax.Array) -> jax.Array:
        """What hides: MAE's noise [B, L], SimMIM's mask [B, h, w]."""
        _, height, width, _ = images.shape
        if form == "mae":
            return masks.noise(keys, (height // patch) * (width // patch))
        if height % mask_cell or width % mask_cell:
            raise ValueError(
                f"mask_cell={mask_cell} does not divide images of {height}x{width} pixels."
            )
        cells = masks.cells(keys, height // mask_cell, width // mask_cell, ratio=mask_ratio)
        side = mask_cell // patch
        return jnp.repeat(jnp.repeat(cells, side, axis=1), side, axis=2)

    def variables(key: jax.Array, batch: Batch) -> Variables:
        images = views[0].clean(batch)
        hiding = drawn(images, jax.random.split(key, images.shape[0]))
        return Variables(network(images).init(key, images, hiding, True)["params"], {})

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        images = inputs[0]
        keys = example_keys(key, batch["id"])
        hiding = drawn(images, view_keys(keys, MASK))
        drop_keys = view_keys(keys, DROP) if encoder.drop_path > 0 else None
        found = network(images).apply({"params": params}, images, hiding, True, drop_keys)
        if form == "simmim":
            outputs = {"prediction": found, "target": images, "mask": jnp.float32(hiding)}
            return outputs, stats, None
        target = losses.masked.patchify(images, patch=patch)
        if normalise_pixels:
            target = losses.masked.normalise_patches(target)
        outputs = {"prediction": found[0], "target": target, "mask": jnp.float32(found[1])}
        return outputs, stats, None

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        arrays = outputs["prediction"], outputs["target"], outputs["mask"]
        of = losses.masked.mae if form == "mae" else losses.masked.simmim
        return of(*arrays, axis_name=run.axis_name), Aux({})

    def features(
        params: Any, stats: Any, images: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        module = network(images)
        found: Any = module.apply({"params": params}, images, train, method=type(module).encode)
        tokens = found["tokens"]
        return {"h": found["h"], "cls": tokens[:, 0], "mean": tokens[:, 1:].mean(axis=1)}, stats

    return from_loss(
        variables=variables,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features,
        axis_name=run.axis_name,
        **keywords(views),
        micro_batches=micro_batches,
    )
