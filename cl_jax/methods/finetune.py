"""Supervised fine-tuning of a pre-trained network from one of its layers (SimCLR v2, Chen et al. 2020, section 2).

The whole network trains, with a new linear classifier on the layer; layers above it are dropped. The released TF1 code never
trains the head's layers that it keeps; TF2 does, and so does this.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax import losses
from cl_jax.method import Aux, Batch, Method, Run, Variables, from_loss
from cl_jax.views import batch as views_of
from cl_jax.views.recipe import Recipe, evaluate


def make(*, encoder: nn.Module, tx: optax.GradientTransformation, views: Sequence[Recipe], run: Run,
         layer: str = "h") -> Method:
    """Fine-tuning. `layer` is a feature of the previous stage's method: "h", or "proj1" for the head's first hidden layer.

    The labels come from batch["label"]; `encoder` is the previous stage's and not read.
    """
    if run.previous is None:
        raise ValueError("fine-tuning starts from an earlier stage: set config.previous to its workdir, or run --stage=all.")
    if len(views) != 1:
        raise ValueError(f"fine-tuning sees one view of each image; the config has {len(views)}.")
    before, num_classes = run.previous, run.classes["label"]

    def features(params: Any, stats: Any, images: jax.Array, train: bool) -> tuple[dict[str, jax.Array], Any]:
        named, stats = before.method.features(params["pretrained"], stats, images, train)
        if layer not in named:
            raise ValueError(f"layer={layer!r} is not a feature of the previous stage; have {', '.join(sorted(named))}.")
        logits = jnp.float32(named[layer]) @ params["classifier"]["kernel"] + params["classifier"]["bias"][None, :]
        return named | {"logits": logits}, stats

    def variables(key: jax.Array, batch: Batch) -> Variables:
        start = before.state
        named = jax.eval_shape(lambda: before.method.features(start.params, start.stats, clean(batch["image"]), False)[0])
        if layer not in named:
            raise ValueError(f"layer={layer!r} is not a feature of the previous stage; have {', '.join(sorted(named))}.")
        classifier = {"kernel": jnp.zeros((named[layer].shape[-1], num_classes)), "bias": jnp.zeros(num_classes)}
        return Variables({"pretrained": start.params, "classifier": classifier}, start.stats)

    def forward(params: Any, stats: Any, target: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any, Any]:
        (view,) = views_of.of_batch(views, batch, key)
        named, stats = features(params, stats, view, True)
        return named["logits"], stats, None

    def loss(logits: jax.Array, params: Any, memory: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Aux]:
        right = jnp.mean(logits.argmax(axis=1) == batch["label"])
        return losses.cross_entropy(logits, batch["label"], axis_name=run.axis_name), Aux({"train_accuracy": right})

    def clean(images: jax.Array) -> jax.Array:
        return evaluate(views[0], images)

    return from_loss(variables=variables, forward=forward, loss=loss, tx=tx, features=features, clean=clean,
                     axis_name=run.axis_name, needs=("image", "label"))
