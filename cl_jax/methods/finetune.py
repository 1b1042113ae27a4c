"""A linear classifier on a layer of a pre-trained network, and supervised fine-tuning of both.

Fine-tuning (SimCLR v2, Chen et al. 2020, section 2): the whole network trains, with a new linear
classifier on the layer; layers above it are dropped. The released TF1 code never trains the head's
layers that it keeps; TF2 does, and so does this. Frozen (SupCon's second stage, and linear
evaluation): only the classifier trains."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax import losses
from cl_jax.core.errors import of_another_run
from cl_jax.core.method import Aux, Batch, Method, Run, State, Variables, from_loss, trained
from cl_jax.methods.distill import accuracy, check_labelled, features_of
from cl_jax.views import View, keywords


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    layer: str = "h",
    freeze: bool = False,
) -> Method:
    """Fine-tuning.

    layer: a feature of the previous stage's method: "h", or "proj1" for the head's first hidden
      layer.
    freeze: the network stays as it is, with its running batch statistics; it is the State's target,
      and the classifier its only parameters.

    The labels come from batch["label"]; `encoder` is the previous stage's and not read.

    Raises:
      ValueError: no stage before or one without features, more views than one, data without labels.
    """
    if run.previous is None:
        raise ValueError(
            "fine-tuning starts from an earlier stage: set config.previous to its workdir, or run "
            "--stage=all."
        )
    if len(views) != 1:
        raise ValueError(f"fine-tuning sees one view of each image; the config has {len(views)}.")
    check_labelled("fine-tuning", run)
    before, num_classes = run.previous, run.sizes["label"]
    of_before = features_of("fine-tuning", before)

    def features(
        params: Any, stats: Any, images: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        named, stats = of_before(params["pretrained"], stats, images, train)
        if layer not in named:
            raise ValueError(
                f"layer={layer!r} is not a feature of the previous stage; have "
                f"{', '.join(sorted(named))}."
            )
        logits = (
            jnp.float32(named[layer]) @ params["classifier"]["kernel"]
            + params["classifier"]["bias"][None, :]
        )
        return named | {"logits": logits}, stats

    def variables(key: jax.Array, batch: Batch) -> Variables:
        params, stats = before.method.evaluated(before.state)
        with of_another_run():
            named = jax.eval_shape(
                lambda: of_before(params, stats, views[0].clean(batch), False)[0]
            )
        if layer not in named:
            raise ValueError(
                f"layer={layer!r} is not a feature of the previous stage; have "
                f"{', '.join(sorted(named))}."
            )
        classifier = {
            "kernel": jnp.zeros((named[layer].shape[-1], num_classes)),
            "bias": jnp.zeros(num_classes),
        }
        if freeze:
            return Variables({"classifier": classifier}, {}, (params, stats))
        return Variables({"pretrained": params, "classifier": classifier}, stats)

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        (view,) = inputs
        if freeze:
            named, _ = features(params | {"pretrained": target.params}, target.stats, view, False)
            return named["logits"], stats, target.stats
        named, stats = features(params, stats, view, True)
        return named["logits"], stats, None

    def loss(
        logits: jax.Array, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        right = accuracy(logits, batch["label"], run.axis_name)
        return losses.cross_entropy(logits, batch["label"], axis_name=run.axis_name), Aux(
            {"train_accuracy": right}
        )

    def whole(state: State) -> tuple[Any, Any]:
        return state.params | {"pretrained": state.target.params}, state.target.stats

    return from_loss(
        variables=variables,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features,
        axis_name=run.axis_name,
        evaluated=whole if freeze else trained,
        **keywords(views, "label"),
    )
