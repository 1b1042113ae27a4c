"""SupCon (Khosla et al. 2020, arXiv 2004.11362): views of all images of one class are each other's
positives.

The first of two stages; the second, a linear classifier on the frozen encoder, is
`methods/finetune.py` with `freeze`."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax import losses
from cl_jax.core.method import Aux, Batch, Method, Run, from_loss
from cl_jax.core.network import (
    Network,
    applier,
    check_no_drop_path,
    features_of,
    initial,
)
from cl_jax.heads import mlp
from cl_jax.losses import unit
from cl_jax.views import View, keywords


class UnitEncoder(nn.Module):
    """An encoder whose representation "h" has unit length."""

    encoder: nn.Module

    def __call__(self, images: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        check_no_drop_path(self.encoder)
        named = self.encoder(images, train=train)
        return named | {"h": unit(named["h"])}


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    temperature: float = 0.1,
    base_temperature: float | None = 0.07,
    summation: Literal["outside", "inside"] = "outside",
    contrast_mode: Literal["all", "one"] = "all",
    labels: bool = True,
    head: str = "moco_v2",
    out_dim: int = 128,
    unit_embedding: bool = False,
    block_size: int | None = None,
    micro_batches: int = 1,
) -> Method:
    """SupCon.

    base_temperature: the loss is multiplied by temperature / base_temperature, 1.43 as the authors'
      PyTorch code has it; None for the paper's. It scales the gradient, and so the learning rate,
      and nothing else.
    summation, contrast_mode: see `losses.supcon`; "inside" the logarithm is the paper's inferior
      variant.
    labels: False is the authors' SimCLR: only the views of one image are positives, and no label is
      read.
    head: "moco_v2" is the authors' hidden layer without batch norm, "linear" that of their TPU code
      on ImageNet.
    unit_embedding: the representation is brought to unit length before the head, as in that code.
    block_size: see `losses.supcon`. micro_batches: see `from_loss`.

    Raises:
      ValueError: no view; one view without labels.
    """
    if len(views) < 2 and not labels:
        raise ValueError(
            f"without labels the positives are an image's other views; the config has "
            f"{len(views)} view. Use "
            "two."
        )
    if not views:
        raise ValueError(
            "SupCon sees one view of each image or more, two in the paper; the config has none."
        )
    network = Network(
        UnitEncoder(encoder) if unit_embedding else encoder,
        mlp.make(variant=head, out_dim=out_dim, dtype=encoder.dtype, axis_name=run.axis_name),
    )
    apply, others = applier(network), len(views) * run.batch_size - 1
    scale = 1.0 if base_temperature is None else temperature / base_temperature

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        (z, _), stats = apply(params, stats, jnp.concatenate(inputs), True)
        return jnp.stack(jnp.split(unit(z), len(views)), axis=1), stats, None

    def loss(
        z: jax.Array, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        value = losses.supcon(
            z,
            batch["label"] if labels else None,
            temperature=temperature,
            base_temperature=base_temperature,
            contrast_mode=contrast_mode,
            summation=summation,
            axis_name=run.axis_name,
            block_size=block_size,
        )
        return value, Aux({"chance": jnp.float32(scale * math.log(others))})

    return from_loss(
        variables=initial(network, views[0].clean),
        forward=forward,
        loss=loss,
        tx=tx,
        features=features_of(apply),
        axis_name=run.axis_name,
        micro_batches=micro_batches,
        negatives=None if labels else others + 1 - len(views),
        **keywords(views, *(("label",) if labels else ())),
    )
