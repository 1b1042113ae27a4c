"""LooC (Xiao et al. 2021, arXiv 2008.05659): one space that no augmentation changes, and for each
augmentation of interest a space that it alone changes.

MoCo with a head and a queue for each space. In the space of an augmentation the positive shares it
with the query and the other keys of the same image are negatives."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax.core.ema import ema_of_params
from cl_jax.core.keys import batch_key, example_keys
from cl_jax.core.method import Aux, Batch, Method, Run, Variables, from_loss
from cl_jax.core.network import applier, check_no_drop_path, features_of
from cl_jax.core.numerics import unit
from cl_jax.core.parallel import gather, mean
from cl_jax.heads import mlp
from cl_jax.losses.spaces import leave_one_out_rows
from cl_jax.memory import queue as queues
from cl_jax.methods import moco_v2
from cl_jax.views import ImageView, View, leave_one_out


class Spaces(nn.Module):
    """Encoder and a head for each space. Returns (z [B, H, D], features): "h", "spaces" (the
    hidden layers of all heads side by side, LooC++'s) and "z" (all spaces side by side)."""

    encoder: nn.Module
    heads: Sequence[nn.Module]

    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        check_no_drop_path(self.encoder)
        h = self.encoder(images, train=train)["h"]
        found = [head(h, train=train) for head in self.heads]
        z = jnp.stack([last for last, _ in found], axis=1)
        hidden = jnp.concatenate([hiddens[-2] for _, hiddens in found], axis=1)
        return z, {"h": h, "spaces": hidden, "z": z.reshape(len(z), -1)}


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    left_out: Sequence[str] = ("rotation", "colour"),
    temperature: float = 0.2,
    momentum: float = 0.999,
    queue_size: int = 16384,
    head: str = "moco_v2",
    out_dim: int = 128,
    shuffle: bool = True,
    block_size: int | None = None,
) -> Method:
    """LooC, of one view of images, by which the query and all keys are drawn.

    left_out: the augmentations with a space of their own, in their order after space 0: names of
      `views.leave_one_out.AUGMENTATIONS` that the view draws. Without any it is MoCo.
    temperature, queue_size: see `losses.spaces.leave_one_out`. momentum: of the key network.
    head: a name of `heads.mlp.make`; one for each space. shuffle: as MoCo's.

    Metrics: "loss_NAME" of each space, "invariant" the first, whose mean is the loss.

    Raises:
      ValueError: more views than one, a queue longer than the data set, and as
        `views.leave_one_out.check`.
    """
    if len(views) != 1 or not isinstance(views[0], ImageView):
        raise ValueError(
            f"LooC draws its query and all keys by one view of images; the config has {len(views)} "
            "views. Set copies=1 of its section."
        )
    moco_v2.check_queue(queue_size, run)
    recipe = views[0].recipe
    leave_one_out.check(recipe, left_out)
    names = ("invariant", *left_out)
    network = Spaces(
        encoder,
        [
            mlp.make(variant=head, out_dim=out_dim, dtype=encoder.dtype, axis_name=run.axis_name)
            for _ in names
        ],
    )
    apply = applier(network)

    def variables(key: jax.Array, batch: Batch) -> Variables:
        network_key, queue_key = jax.random.split(key)
        found = network.init(network_key, views[0].clean(batch), True)
        params, stats = found["params"], found.get("batch_stats", {})
        queue = queues.init(queue_key, queue_size, (len(names), out_dim))
        return Variables(params, stats, (params, stats), queue)

    def draw(batch: Batch, key: jax.Array) -> list[jax.Array]:
        keys = example_keys(key, batch["id"])
        return leave_one_out.draw(recipe, keys, batch["image"], left_out)

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        (z, _), stats = apply(params, stats, inputs[0], True)
        keys, target_stats = [], target.stats
        for number, images in enumerate(inputs[1:]):
            k, target_stats = moco_v2.momentum_keys(
                apply,
                target.params,
                target_stats,
                images,
                batch_key(key, number) if shuffle else None,
                run.axis_name,
            )
            keys.append(k)
        return {"q": unit(z), "k": jnp.stack(keys, axis=2)}, stats, target_stats

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        k = jnp.transpose(outputs["k"], (1, 2, 0, 3))  # space, view, row
        rows = leave_one_out_rows(
            jnp.swapaxes(outputs["q"], 0, 1),
            k,
            jnp.swapaxes(memory.rows, 0, 1),
            temperature=temperature,
            block_size=block_size,
        )
        by_space = mean(rows.mean(axis=1), run.axis_name)
        candidates = [1 + queue_size] + [len(names) + queue_size] * len(left_out)
        own = jnp.stack([k[h, h] for h in range(len(names))], axis=1)
        metrics = {f"loss_{name}": value for name, value in zip(names, by_space)} | {
            "chance": jnp.float32(sum(map(math.log, candidates)) / len(names)),
            "queue_filled": memory.filled / queue_size,
        }
        return by_space.mean(), Aux(metrics, queues.enqueue(memory, gather(own, run.axis_name)))

    return from_loss(
        variables=variables,
        views=draw,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features_of(apply),
        clean=views[0].clean,
        axis_name=run.axis_name,
        needs=("image",),
        ema=ema_of_params(momentum),
        negatives=queue_size,
    )
