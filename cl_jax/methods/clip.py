"""CLIP (Radford et al. 2021, arXiv 2103.00020): an image and its text agree, and no image with
another's text. SigLIP's loss (Zhai et al. 2023, arXiv 2303.15343) is a setting.

Two encoders into one space, or one transformer for both modalities: `encoders.ms_clip`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax.core.method import Aux, Batch, Method, Run, from_loss
from cl_jax.core.network import applier, initial
from cl_jax.core.numerics import unit
from cl_jax.losses import image_text
from cl_jax.views import View, draw, fields


class Towers(nn.Module):
    """Two encoders as one: inputs with "image", "tokens" or both to {"image": [B, D], "text": [B,
    D']}."""

    image: nn.Module
    text: nn.Module

    def __call__(self, inputs: Mapping[str, Any], *, train: bool) -> dict[str, jax.Array]:
        found = {}
        if "image" in inputs:
            found["image"] = self.image(inputs["image"], train=train)["h"]
        if "tokens" in inputs:
            found["text"] = self.text(inputs["tokens"], train=train, keys=inputs.get("keys"))["h"]
        return found


class Pair(nn.Module):
    """Both encoders with their projections, and the learned scale and bias of the logits.

    `__call__(inputs, train)` -> {"h": [B, D] of images, "image_z": [B, out_dim] unit, "text_h",
    "text_z"}, those of the modalities that inputs have.
    """

    towers: nn.Module
    out_dim: int
    scale: float
    bias: float | None
    image_projection: bool = True

    @nn.compact
    def __call__(self, inputs: Mapping[str, Any], train: bool) -> dict[str, jax.Array]:
        self.param("log_scale", lambda key: jnp.float32(math.log(self.scale)))
        if self.bias is not None:
            self.param("logit_bias", lambda key: jnp.float32(self.bias))
        found = {}
        for name, h in self.towers(inputs, train=train).items():
            projection = nn.Dense(
                self.out_dim,
                use_bias=False,
                kernel_init=nn.initializers.normal(h.shape[-1] ** -0.5),
                name=f"{name}_projection",
            )
            found["h" if name == "image" else f"{name}_h"] = h
            ends_there = name == "image" and not self.image_projection
            found[f"{name}_z"] = unit(h if ends_there else projection(h))
        return found


def make(
    *,
    encoder: nn.Module | Mapping[str, nn.Module],
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    loss: str = "clip",
    out_dim: int = 512,
    image_projection: bool = True,
    scale: float = 1 / 0.07,
    max_scale: float | None = 100.0,
    bias: float = -10.0,
    block_size: int | None = None,
    micro_batches: int = 1,
) -> Method:
    """CLIP.

    encoder: {"image": ..., "text": ...}, or one module for both modalities.
    views: one of images and one of tokens, in this order.
    loss: "clip", or "siglip", which adds a learned bias to the logits and starts best with scale=10
      and max_scale=None.
    out_dim: width of the common space. image_projection: False where the image encoder ends in that
      space itself, as `encoders.clip_resnet` does. scale, bias: of the logits, at first; learned.
    max_scale: the scale is held at or below it after each step, None for no bound. Keep scale and
      bias from decaying: the optimiser's exclude_ndim=1 does.

    Raises:
      ValueError: other views than one of images and one of tokens, an unknown loss, an encoder of
        other roles.
    """
    if len(views) != 2:
        raise ValueError(
            f"CLIP has a view of images and one of tokens; the config has {len(views)} views."
        )
    if loss not in ("clip", "siglip"):
        raise ValueError(f"loss is {loss!r}; expected clip or siglip.")
    if isinstance(encoder, Mapping):
        if set(encoder) != {"image", "text"}:
            raise ValueError(
                f"encoder has the roles {', '.join(sorted(encoder))}; expected image and text, or "
                "one encoder of both such as ms_clip."
            )
        encoder = Towers(encoder["image"], encoder["text"])
    network = Pair(encoder, out_dim, scale, bias if loss == "siglip" else None, image_projection)
    apply, batch_size = applier(network), run.batch_size
    clean, drawn = with_text("image", views)

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        outputs, stats = apply(params, stats, inputs[0], True)
        return {name: outputs[name] for name in ("image_z", "text_z")}, stats, None

    def objective(
        z: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        logit_scale = jnp.exp(params["log_scale"])
        settings: dict[str, Any] = dict(
            logit_scale=logit_scale,
            max_scale=max_scale,
            normalise=False,
            axis_name=run.axis_name,
            block_size=block_size,
        )
        metrics = {"scale": logit_scale}
        if loss == "clip":
            value = image_text.clip(z["image_z"], z["text_z"], **settings)
            chance = math.log(batch_size)
        else:
            value = image_text.siglip(
                z["image_z"], z["text_z"], logit_bias=params["logit_bias"], **settings
            )
            # One pair of batch_size is a positive: the entropy of knowing that alone, summed.
            others = batch_size - 1
            chance = math.log(batch_size) + (
                others * math.log(batch_size / others) if others else 0
            )
            metrics["bias"] = params["logit_bias"]
        return value, Aux(metrics | {"chance": jnp.float32(chance)})

    def project(params: Any) -> Any:
        if max_scale is None:
            return params
        held = image_text.clamp_log_scale(params["log_scale"], max_scale=max_scale)
        return {**params, "log_scale": held}

    return from_loss(
        variables=initial(network, clean),
        views=drawn,
        forward=forward,
        loss=objective,
        tx=tx,
        features=apply,
        clean=clean,
        axis_name=run.axis_name,
        **fields(views),
        project=project,
        micro_batches=micro_batches,
        negatives=batch_size - 1,
    )


def with_text(
    name: str, views: Sequence[View]
) -> tuple[Callable[[Batch], Any], Callable[[Batch, jax.Array], Any]]:
    """(`clean`, `views` of `from_loss`) of a view whose inputs are called `name` and one of tokens,
    as one dict. Clean inputs are of the modalities that a batch has: prompts have no images."""

    def clean(batch: Batch) -> Any:
        found = {}
        if all(field in batch for field in views[0].needs):
            found[name] = views[0].clean(batch)
        if all(field in batch for field in views[1].needs):
            found |= views[1].clean(batch)
        return found

    def drawn(batch: Batch, key: jax.Array) -> Any:
        seen, text = draw(views, batch, key)
        return [{name: seen} | text]

    return clean, drawn
