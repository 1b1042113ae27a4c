"""CMC (Tian et al. 2020, arXiv 1906.05849): groups of channels of one crop are views, each with a
network of its own.

Features of an image's views agree with each other's stored rows in memory banks, against rows of
other images, or with each other directly, against the other images of the batch. Luminance and
colour of Lab are the paper's two views; any groups of channels, of any number of recipes, are views
too."""

import functools
import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax import losses
from cl_jax.core.clocks import PerVisit
from cl_jax.core.keys import batch_key
from cl_jax.core.method import Aux, Batch, Method, Run, Variables, from_loss
from cl_jax.core.network import Network
from cl_jax.core.numerics import unit
from cl_jax.core.parallel import gather
from cl_jax.core.sharded import Sharded, whole
from cl_jax.heads import mlp
from cl_jax.losses import nce
from cl_jax.memory import bank
from cl_jax.views import ImageView, draw, fields, lab

LOSSES = ("nce", "softmax", "in_batch", "patches")
BANKED = ("nce", "softmax")
Split = Callable[[jax.Array], Sequence[jax.Array]]


class Memory(NamedTuple):
    """banks: one [N, D] per view, split over devices. normalizers: NCE's Z of both directions of
    each edge; () for the softmax."""

    banks: tuple[Sharded, ...]
    normalizers: tuple[tuple[nce.Normalizer, nce.Normalizer], ...]


class Contrast(NamedTuple):
    """What is contrasted with what: `make`'s settings of these names."""

    graph: str
    loss: str
    temperature: float
    num_negatives: int
    momentum: float
    normalizer_momentum: float | None


class Patches(nn.Module):
    """Encoder, head, and a linear map of one of the encoder's maps. Returns ((z, local), features):
    z [B, D], local [B, places, D]; features as `Network`'s."""

    encoder: nn.Module
    head: nn.Module
    patch_map: str
    out_dim: int

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool
    ) -> tuple[tuple[jax.Array, jax.Array], dict[str, jax.Array]]:
        found = self.encoder(images, train=train)
        if self.patch_map not in found or found[self.patch_map].ndim != 4:
            maps = ", ".join(name for name, x in found.items() if x.ndim == 4)
            raise ValueError(
                f"patch_map={self.patch_map!r} is not a map of the encoder; it has "
                f"{maps or 'none'}."
            )
        places = found[self.patch_map]
        places = places.reshape(len(places), -1, places.shape[-1])
        local = nn.Dense(self.out_dim, dtype=self.encoder.dtype, name="local")(places)
        z, _ = self.head(found["h"], train=train)
        return (z, local), {"h": found["h"], "z": z}


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[ImageView],
    run: Run,
    channels: Sequence[Sequence[int]] | None = None,
    graph: str = "core",
    loss: str = "nce",
    temperature: float = 0.07,
    num_negatives: int = 4096,
    momentum: PerVisit = 0.5,
    head: str = "linear",
    out_dim: int = 128,
    patch_map: str = "stage2",
    normalizer_momentum: float | None = None,
    block_size: int | None = None,
) -> Method:
    """CMC.

    views: one recipe, whose channels are split, or several of one size: their results lie one after
      the other on the channel axis, and each recipe's is a view unless `channels` says otherwise.
    channels: channels of each view; None splits one recipe of three channels into luminance and
      colour, ((0,), (1, 2)), and one of more (`data.aligned`) into its threes.
    graph: "core" contrasts the first view with each other one, "full" all pairs; the same for two
      views.
    loss: "nce", with Z, or "softmax", over stored rows; "in_batch", without a bank, over the other
      view's fresh features of the batch, to which gradient flows too; "patches", also without a
      bank: the feature of one view against every place of a map of the other's network, over all
      places of the batch. Each edge adds both directions.
    patch_map: of "patches": the encoder's map, "stage1", "stage2", ...
    num_negatives: drawn with replacement from all examples, the same ones for all edges.
    momentum: of the banks. head: "linear", or "moco_v2" for the multi-layer one of the authors'
      later code.
    normalizer_momentum: None keeps the first batch's Z, as the authors. block_size: see
      `nce.bank_logits`.

    "h" is the concatenation of all views' features, "h1", "h2", ... are those of each.

    Raises:
      ValueError: an unknown graph or loss, groups that do not fit the channels, views of several
        sizes.
    """
    _check(views, graph, loss)
    groups = None if channels is None else tuple(tuple(group) for group in channels)
    _check_groups(groups)
    projection = mlp.make(
        variant=head, out_dim=out_dim, dtype=encoder.dtype, axis_name=run.axis_name
    )
    network = (
        Patches(encoder, projection, patch_map, out_dim)
        if loss == "patches"
        else Network(encoder, projection)
    )
    split = functools.partial(_split, groups, len(views))
    contrast = Contrast(graph, loss, temperature, num_negatives, momentum, normalizer_momentum)

    def clean(batch: Batch) -> jax.Array:
        return jnp.concatenate([view.clean(batch) for view in views], axis=-1)

    def drawn(batch: Batch, key: jax.Array) -> list[jax.Array]:
        return [jnp.concatenate(draw(views, batch, key), axis=-1)]

    objective = {"in_batch": _of_batch, "patches": _of_patches}.get(loss, _of_banks)
    return from_loss(
        variables=functools.partial(_variables, network, split, clean, contrast, run, out_dim),
        views=drawn,
        forward=functools.partial(_forward, network, split),
        loss=functools.partial(objective, contrast, run, block_size),
        tx=tx,
        features=functools.partial(_features, network, split),
        clean=clean,
        axis_name=run.axis_name,
        **fields(views),
        negatives=num_negatives if loss in BANKED else run.batch_size - 1,
    )


def _check(views: Sequence[ImageView], graph: str, loss: str) -> None:
    """Raises what `make` refuses, but for the channels."""
    if graph not in ("core", "full"):
        raise ValueError(f'graph is {graph!r}; expected "core" or "full".')
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; expected one of {', '.join(LOSSES)}.")
    if len({view.recipe.size for view in views}) != 1:
        raise ValueError(
            f"the views have sizes {[view.recipe.size for view in views]}; expected one size, to "
            "lie on one channel axis."
        )


def _split(
    groups: tuple[tuple[int, ...], ...] | None, count: int, images: jax.Array
) -> Sequence[jax.Array]:
    """The views of images on whose channel axis the results of `count` recipes lie."""
    if groups is not None:
        if max(map(max, groups)) >= images.shape[-1]:
            raise ValueError(
                f"channels={groups} of images with {images.shape[-1]} channels; they count from 0."
            )
        return [images[..., list(group)] for group in groups]
    if count == 1 and images.shape[-1] > 3 and images.shape[-1] % 3 == 0:
        count = images.shape[-1] // 3
    return lab.split(images) if count == 1 else jnp.split(images, count, axis=-1)


def _edges(graph: str, count: int) -> list[tuple[int, int]]:
    """Pairs of views that are contrasted."""
    if graph == "core":
        return [(0, b) for b in range(1, count)]
    return list(combinations(range(count), 2))


def _apply(
    network: nn.Module, split: Split, params: Any, stats: Any, images: jax.Array, train: bool
) -> tuple[list[Any], Any]:
    """Each view through its own network: its outputs in order, and all batch statistics."""
    outputs, new = [], {}
    for v, x in enumerate(split(images), start=1):
        name = f"view{v}"
        out, changed = network.apply(
            {"params": params[name], "batch_stats": stats[name]},
            x,
            train,
            mutable=["batch_stats"],
        )
        outputs.append(out)
        new[name] = changed.get("batch_stats", {})
    return outputs, new


def _variables(
    network: nn.Module,
    split: Split,
    clean: Callable[[Batch], jax.Array],
    contrast: Contrast,
    run: Run,
    out_dim: int,
    key: jax.Array,
    batch: Batch,
) -> Variables:
    params, stats, banks = {}, {}, []
    for v, x in enumerate(split(clean(batch)), start=1):
        network_key, bank_key = jax.random.split(jax.random.fold_in(key, v))
        start = network.init(network_key, x, True)
        params[f"view{v}"], stats[f"view{v}"] = start["params"], start.get("batch_stats", {})
        if contrast.loss in BANKED:
            banks.append(whole(bank.init(bank_key, run.size, out_dim)))
    edges = _edges(contrast.graph, len(params)) if contrast.loss == "nce" else []
    normalizers = tuple((nce.init_normalizer(), nce.init_normalizer()) for _ in edges)
    memory = Memory(tuple(banks), normalizers) if contrast.loss in BANKED else None
    return Variables(params, stats, memory=memory)


def _forward(
    network: nn.Module,
    split: Split,
    params: Any,
    stats: Any,
    target: Any,
    inputs: Any,
    batch: Batch,
    key: jax.Array,
) -> tuple[Any, Any, Any]:
    (images,) = inputs
    outputs, stats = _apply(network, split, params, stats, images, True)
    return jax.tree.map(unit, tuple(z for z, _ in outputs)), stats, None


def _features(
    network: nn.Module, split: Split, params: Any, stats: Any, images: jax.Array, train: bool
) -> tuple[dict[str, jax.Array], Any]:
    outputs, stats = _apply(network, split, params, stats, images, train)
    each = [named["h"] for _, named in outputs]
    named = {"h": jnp.concatenate(each, axis=-1)} | {
        f"h{v}": h for v, h in enumerate(each, start=1)
    }
    each = [named["z"] for _, named in outputs]
    return named | {"z": jnp.concatenate([unit(z) for z in each], axis=-1)}, stats


def _similarity(z: Any, edges: list[tuple[int, int]]) -> dict[str, jax.Array]:
    return {
        f"similarity_{a + 1}_{b + 1}": jnp.mean(jnp.sum(z[a] * z[b], axis=-1)) for a, b in edges
    }


def _of_batch(
    contrast: Contrast,
    run: Run,
    block_size: int | None,
    z: Any,
    params: Any,
    memory: Any,
    batch: Batch,
    key: jax.Array,
) -> tuple[jax.Array, Aux]:
    """The loss "in_batch"."""

    def between(a: int, b: int) -> jax.Array:
        return losses.info_nce(
            z[a],
            z[b],
            temperature=contrast.temperature,
            axis_name=run.axis_name,
            block_size=block_size,
        )

    return _both_ways(contrast, z, between, lambda v: math.log(run.batch_size))


def _of_patches(
    contrast: Contrast,
    run: Run,
    block_size: int | None,
    outputs: Any,
    params: Any,
    memory: Any,
    batch: Batch,
    key: jax.Array,
) -> tuple[jax.Array, Aux]:
    """The loss "patches"."""
    z, local = zip(*outputs)

    def between(a: int, b: int) -> jax.Array:
        return losses.mutual_information.dim_infonce(
            local[b],
            z[a][:, None] / contrast.temperature,
            own_logit=None,
            axis_name=run.axis_name,
            block_size=block_size,
        )

    return _both_ways(
        contrast, z, between, lambda v: math.log1p(local[v].shape[1] * (run.batch_size - 1))
    )


def _both_ways(
    contrast: Contrast,
    z: Any,
    between: Callable[[int, int], jax.Array],
    chance: Callable[[int], float],
) -> tuple[jax.Array, Aux]:
    """The sum of `between(a, b)` over the edges and both their directions. chance: the level of
    the direction whose candidates are those of view v."""
    edges = _edges(contrast.graph, len(z))
    terms = [between(a, b) + between(b, a) for a, b in edges]
    level = jnp.float32(sum(chance(v) for edge in edges for v in edge))
    return sum(terms[1:], terms[0]), Aux(_similarity(z, edges) | {"chance": level})


def _of_banks(
    contrast: Contrast,
    run: Run,
    block_size: int | None,
    z: Any,
    params: Any,
    memory: Any,
    batch: Batch,
    key: jax.Array,
) -> tuple[jax.Array, Aux]:
    """The losses "nce" and "softmax"."""
    banks, edges = memory.banks, _edges(contrast.graph, len(z))
    indices = nce.draw_indices(batch_key(key), batch["id"], run.size, contrast.num_negatives)
    shared: Any = {
        "temperature": contrast.temperature,
        "block_size": block_size,
        "axis_name": run.axis_name,
    }
    terms, normalizers = [], []
    for number, (a, b) in enumerate(edges):
        rows = z[a], z[b], banks[a], banks[b], indices
        if contrast.loss == "nce":
            value, after = nce.cross_nce(
                *rows,
                memory.normalizers[number],
                momentum=contrast.normalizer_momentum,
                **shared,
            )
            normalizers.append(after)
        else:
            value = nce.cross_bank_softmax(*rows, **shared)
        terms.append(value)
    candidates = (
        math.log(1 + contrast.num_negatives)
        if contrast.loss == "softmax"
        else nce.nce_chance(contrast.num_negatives)
    )
    metrics = _similarity(z, edges) | {"chance": jnp.float32(2 * len(edges) * candidates)}
    metrics |= {
        f"log_z_{a + 1}_{b + 1}": after[0].log_z for (a, b), after in zip(edges, normalizers)
    }
    moved = _moved(banks, z, batch["id"], contrast.momentum, run.axis_name)
    return sum(terms[1:], terms[0]), Aux(metrics, Memory(moved, tuple(normalizers)))


def _moved(
    banks: tuple[Sharded, ...],
    z: Any,
    ids: jax.Array,
    momentum: float,
    axis_name: str | None,
) -> tuple[Sharded, ...]:
    """The banks after the step, with the rows of the global batch."""
    everyone = gather(ids, axis_name)
    return tuple(
        bank.update(
            rows, gather(fresh, axis_name), everyone, momentum=momentum, axis_name=axis_name
        )
        for rows, fresh in zip(banks, z)
    )


def _check_groups(groups: tuple[tuple[int, ...], ...] | None) -> None:
    if groups is None:
        return
    if len(groups) < 2 or not all(groups) or min(map(min, groups)) < 0:
        raise ValueError(
            f"channels={groups}; expected at least two groups of channel numbers from 0, for "
            f"instance "
            "((0,), (1, 2))."
        )
