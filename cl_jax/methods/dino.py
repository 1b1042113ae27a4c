"""DINO (Caron et al. 2021, arXiv 2104.14294): a student on all crops learns from its own slow
teacher on the global ones.

Both end in a softmax over prototypes. The teacher's logits are centred by their running mean and
sharpened, which keeps them from collapsing to one prototype or to all. Evaluations read the
teacher."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cl_jax import losses
from cl_jax.core.ema import ema_of_params
from cl_jax.core.keys import example_keys
from cl_jax.core.method import Aux, Batch, Method, Run, Variables, from_loss
from cl_jax.core.network import applier
from cl_jax.heads import weight_norm
from cl_jax.memory import centre as centres
from cl_jax.training import optim
from cl_jax.views import View, keywords, multicrop

DROP = 2**16  # folded into an example's key where a view folds in its number


class Network(nn.Module):
    """Encoder and DINO's head; `crops` of several sizes come as a list and leave concatenated, crop
    by crop."""

    encoder: nn.Module
    head: nn.Module

    def __call__(
        self, crops: Sequence[jax.Array], train: bool, drop_keys: Sequence[jax.Array] | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        options = [{} if drop_keys is None else {"drop_keys": keys} for keys in drop_keys or crops]
        found = [
            self.encoder(images, train=train, **option) for images, option in zip(crops, options)
        ]
        h = jnp.concatenate([features["h"] for features in found])
        logits = self.head(h, train=train)
        named = {"h": h}  # logits of all the training images would not fit anywhere
        if "blocks" in found[0]:
            named["blocks"] = jnp.concatenate(
                [features["blocks"].reshape(features["h"].shape[0], -1) for features in found]
            )
        return logits, named


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    num_prototypes: int = 65536,
    hidden_dim: int = 2048,
    bottleneck_dim: int = 256,
    head_norm: bool = False,
    norm_last_layer: bool = True,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    teacher_temperature_start: float = 0.04,
    teacher_warmup_epochs: int = 0,
    momentum: float = 0.996,
    centre_momentum: float = 0.9,
    num_global: int = 2,
) -> Method:
    """DINO.

    views: the first `num_global` are the global crops, which the teacher sees.
    num_prototypes, hidden_dim, bottleneck_dim: of the head. head_norm: batch norm in its hidden
    layers.
    norm_last_layer: prototypes of unit length; False trains their lengths (the authors' ViT-S
      recipe).
    teacher_temperature, teacher_temperature_start, teacher_warmup_epochs: see
    `losses.no_negatives.teacher_temperature`.
    momentum: of the teacher at the first step, rising to 1 by a half cosine.

    The config's optimiser holds the last layer during the first epoch, clips each tensor's gradient
    apart and raises the weight decay, as the authors do.

    Raises:
      ValueError: fewer than two views, num_global out of range.
    """
    if len(views) < 2 or not 1 <= num_global <= len(views):
        raise ValueError(
            f"DINO needs two views or more and num_global of 1 to all of them; got {len(views)} "
            f"views and "
            f"num_global={num_global}."
        )
    network = Network(
        encoder,
        weight_norm.make(
            out_dim=num_prototypes,
            hidden_dim=hidden_dim,
            bottleneck_dim=bottleneck_dim,
            use_bn=head_norm,
            norm_last_layer=norm_last_layer,
            dtype=encoder.dtype,
            axis_name=run.axis_name,
        ),
    )
    apply = applier(network)
    drops = getattr(encoder, "drop_path", 0.0) > 0

    def grouped(crops: Sequence[jax.Array]) -> list[jax.Array]:
        return [jnp.concatenate([crops[i] for i in group]) for group in multicrop.by_size(crops)]

    def by_example(rows: jax.Array, count: int) -> jax.Array:
        return jnp.stack(jnp.split(rows, count), axis=1)

    def variables(key: jax.Array, batch: Batch) -> Variables:
        start = network.init(key, [views[0].clean(batch)], True)
        params, stats = start["params"], start.get("batch_stats", {})
        memory = {"centre": centres.init(num_prototypes), "step": jnp.zeros((), jnp.int32)}
        return Variables(params, stats, (params, stats), memory)

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        crops = inputs
        keys = None
        if drops:
            of_crop = example_keys(key, batch["id"])
            keys = grouped_keys(of_crop, crops)
        (student, _), changed = network.apply(
            {"params": params, "batch_stats": stats},
            grouped(crops),
            True,
            keys,
            mutable=["batch_stats"],
        )
        (teacher, _), target_stats = lax.stop_gradient(
            apply(target.params, target.stats, grouped(crops[:num_global]), True)
        )
        outputs = {
            "student": by_example(student, len(crops)),
            "teacher": by_example(teacher, num_global),
        }
        return outputs, changed.get("batch_stats", stats), target_stats

    def grouped_keys(keys: jax.Array, crops: Sequence[jax.Array]) -> list[jax.Array]:
        each = [
            jax.vmap(lambda key: jax.random.fold_in(key, DROP + v))(keys) for v in range(len(crops))
        ]
        return [jnp.concatenate([each[i] for i in group]) for group in multicrop.by_size(crops)]

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        student, teacher = (outputs[name].swapaxes(0, 1) for name in ("student", "teacher"))
        temperature = losses.no_negatives.teacher_temperature(
            memory["step"] // run.steps_per_epoch,
            start=teacher_temperature_start,
            final=teacher_temperature,
            warmup_epochs=teacher_warmup_epochs,
        )
        value = losses.dino(
            student,
            teacher,
            memory["centre"],
            student_temperature=student_temperature,
            teacher_temperature=temperature,
            axis_name=run.axis_name,
        )
        centre = centres.update(
            memory["centre"], teacher, momentum=centre_momentum, axis_name=run.axis_name
        )
        targets = jax.nn.softmax((teacher - memory["centre"][None, None]) / temperature, axis=-1)
        entropy = -jnp.mean(jnp.sum(targets * jnp.log(targets + 1e-12), axis=-1))
        metrics = {"chance": jnp.float32(math.log(num_prototypes)), "teacher_entropy": entropy}
        return value, Aux(metrics, {"centre": centre, "step": memory["step"] + 1})

    def features(
        params: Any, stats: Any, images: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        (_, named), stats = apply(params, stats, [images], train)
        return named, stats

    return from_loss(
        variables=variables,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features,
        axis_name=run.axis_name,
        **keywords(views),
        ema=ema_of_params(
            optim.linspace_warmup_cosine(base=momentum, final=1.0, total_steps=run.total_steps)
        ),
        evaluated=lambda state: (state.target.params, state.target.stats),
    )
