"""Cross-entropy on labels, from scratch: the teacher of distillation, and what methods without
labels are compared with."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax import losses
from cl_jax.core.method import Aux, Batch, Method, Run, from_loss
from cl_jax.core.network import initial
from cl_jax.methods.distill import Student, accuracy, of_student
from cl_jax.views import View, keywords


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    label: str = "label",
) -> Method:
    """An encoder with a linear classifier on "h", both trained by the cross-entropy of one view of
    each image. Features are "h" and "logits".

    label: the field; a value below 0 is not a label.

    Raises:
      ValueError: more views than one, data without that label.
    """
    if len(views) != 1:
        raise ValueError(f"supervised training sees one view; the config has {len(views)}.")
    if label not in run.sizes:
        raise ValueError(
            f"label={label!r} is not a label of the data; have {', '.join(run.sizes)}."
        )
    network = Student(encoder, run.sizes[label])
    features = of_student(network)

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        named, stats = features(params, stats, inputs[0], True)
        return named["logits"], stats, None

    def loss(
        logits: jax.Array, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        right = accuracy(logits, batch[label], run.axis_name)
        chance = jnp.log(jnp.float32(run.sizes[label]))
        value = losses.cross_entropy(logits, batch[label], axis_name=run.axis_name)
        return value, Aux({"train_accuracy": right, "chance": chance})

    return from_loss(
        variables=initial(network, views[0].clean),
        forward=forward,
        loss=loss,
        tx=tx,
        features=features,
        axis_name=run.axis_name,
        **keywords(views, label),
    )
