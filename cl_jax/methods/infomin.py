"""InfoMin (Tian et al. 2020, arXiv 2005.10243): views that share what a task needs and as little
else as possible, learnt by a generator against the networks that contrast them.

A generator maps the colours of an image; the first channel and the others are two views, and each
has a network. The networks raise the bound on the views' mutual information, the generator lowers
it; with labels, it must keep what a classifier on each view needs. The authors alternate between
the players. Here one step moves both, by a gradient that changes its sign between them."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cl_jax import losses
from cl_jax.core.keys import example_keys
from cl_jax.core.method import Aux, Batch, Method, Run, Variables, from_loss
from cl_jax.core.network import Network, applier
from cl_jax.core.parallel import mean
from cl_jax.encoders.pixel_map import PixelMap
from cl_jax.heads import mlp
from cl_jax.views import View, keywords

_LABELLED = 20200510  # seed of which examples count as labelled: the same in all runs


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    generator: Literal["flow", "convolutions", "none"] = "flow",
    generator_layers: int = 6,
    generator_width: int = 16,
    labelled: float = 0.0,
    label_weight: float = 1.0,
    temperature: float = 0.1,
    head: str = "moco_v2",
    out_dim: int = 128,
    label: str = "label",
    block_size: int | None = None,
) -> Method:
    """Learned views, from one view of images of two channels or more.

    encoder: of both views, and of the classifiers; each has parameters of its own.
    generator: "flow" or "convolutions" (`encoders.pixel_map`), "none" for the channels as they are.
    labelled: share of the examples whose label is read, drawn by their ids; 0 for no labels, which
      is the paper's unsupervised form.
    label_weight: of the two classifiers' cross-entropies.
    temperature, block_size: see `losses.infonce.info_nce`. head: a name of `heads.mlp.make`.

    Metrics: "contrast"; "mutual_information", log B less it, a bound that cannot exceed log B (in
    nats); "classes", the mean of the two cross-entropies.

    Raises:
      ValueError: other than one view, a share outside 0 to 1, labels that the data lack.
    """
    if len(views) != 1:
        raise ValueError(
            f"InfoMin splits one view into two; the config has {len(views)} views. Set copies=1."
        )
    if not 0 <= labelled <= 1:
        raise ValueError(f"labelled={labelled}; expected a share from 0 (no labels) to 1.")
    if labelled and label not in run.sizes:
        raise ValueError(
            f"labelled={labelled} needs the label {label!r}; the data have "
            f"{', '.join(sorted(run.sizes)) or 'none'}. Set labelled=0."
        )
    shared = {"dtype": encoder.dtype, "axis_name": run.axis_name}
    networks = {
        name: Network(encoder, mlp.make(variant=head, out_dim=out_dim, **shared))
        for name in ("first", "second")
    }
    if labelled:
        linear = {"variant": "linear", "out_dim": run.sizes[label], **shared}
        networks |= {
            f"classes_{name}": Network(encoder, mlp.make(**linear)) for name in ("first", "second")
        }
    maps = PixelMap(generator, generator_layers, generator_width) if generator != "none" else None

    def split(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        if images.shape[-1] < 2:
            raise ValueError("images have one channel; InfoMin splits two or more between views.")
        made: Any = images if maps is None else maps.apply({"params": params["generator"]}, images)
        return {"first": made[..., :1], "second": made[..., 1:]}

    def variables(key: jax.Array, batch: Batch) -> Variables:
        images = views[0].clean(batch)
        keys = jax.random.split(key, 1 + len(networks))
        params: dict[str, Any] = {}
        stats = {}
        if maps is not None:
            params["generator"] = maps.init(keys[0], images)["params"]
        parts = split(params, images)
        for own, (name, network) in zip(keys[1:], networks.items()):
            found = network.init(own, parts[name.removeprefix("classes_")], True)
            params[name], stats[name] = found["params"], found.get("batch_stats", {})
        return Variables(params, stats)

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        parts, outputs, new = split(params, inputs[0]), {}, {}
        for name, network in networks.items():
            kept = parts[name.removeprefix("classes_")]
            # What the contrast's networks descend, the generator ascends.
            images = kept if name.startswith("classes_") or maps is None else opposed(kept)
            (outputs[name], _), new[name] = applier(network)(
                params[name], stats[name], images, True
            )
        return outputs, new, None

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        value = losses.info_nce(
            outputs["first"],
            outputs["second"],
            temperature=temperature,
            symmetric=True,
            axis_name=run.axis_name,
            block_size=block_size,
        )
        bound = math.log(run.batch_size)
        metrics = {"contrast": value, "mutual_information": bound - value}
        chance = bound
        if labelled:
            known = chosen(batch["id"], labelled)
            truth = jnp.where(known, batch[label], -1)
            terms = [
                losses.cross_entropy(outputs[f"classes_{name}"], truth, axis_name=run.axis_name)
                for name in ("first", "second")
            ]
            value = value + label_weight * (terms[0] + terms[1])
            metrics |= {
                "classes": (terms[0] + terms[1]) / 2,
                "labelled": mean(jnp.mean(jnp.float32(truth >= 0)), run.axis_name),
            }
            chance += 2 * label_weight * math.log(run.sizes[label])
        return value, Aux(metrics | {"chance": jnp.float32(chance)})

    def features(
        params: Any, stats: Any, images: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        parts, found, new = split(params, images), {}, dict(stats)
        for name in ("first", "second"):
            (_, found[name]), new[name] = applier(networks[name])(
                params[name], stats[name], parts[name], train
            )
        both = {
            feature: jnp.concatenate([found[name][feature] for name in found], axis=1)
            for feature in ("h", "z")
        }
        return both | {name: found[name]["h"] for name in found}, new

    return from_loss(
        variables=variables,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features,
        axis_name=run.axis_name,
        negatives=run.batch_size - 1,
        **keywords(views, *([label] if labelled else [])),
    )


def opposed(x: jax.Array) -> jax.Array:
    """x, whose gradient changes its sign on the way back (Ganin and Lempitsky 2015, arXiv
    1409.7495)."""
    return 2 * lax.stop_gradient(x) - x


def chosen(ids: jax.Array, share: float) -> jax.Array:
    """[B] booleans: which examples are labelled, by their ids alone."""
    keys = example_keys(jax.random.key(_LABELLED), ids)
    return jax.vmap(lambda key: jax.random.uniform(key, dtype=jnp.float32))(keys) < share
