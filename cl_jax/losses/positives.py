"""Several positives per anchor: SupCon, StableRep, KCL and its re-implementation in TSC.

Features are normalised here unless `normalise=False`; what a memory holds is taken as it is.
"""

from functools import partial
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, gather, mean
from cl_jax.core.numerics import dots, prepared, softplus, wide, wide_type
from cl_jax.core.shapes import (
    check,
    check_axis,
    check_count,
    check_integer,
    check_key,
    check_positive,
    check_real,
)
from cl_jax.losses._sums import LOG_ZERO
from cl_jax.losses.contrast import (
    Contrast,
    PairFunction,
    Pairs,
    allow,
    contrast,
    not_self,
    pair_sums,
    row_ids,
    same_example,
    same_id,
    same_label,
    separate_unlabelled,
)

DENOMINATORS = ("all", "one_positive", "only_negatives")


class SupConRows(NamedTuple):
    """For the A * B anchors, view-major: loss; log_denominator, the logarithm of what is summed
    below each positive (of its negatives alone for "one_positive"); num_positives, sum of
    weights."""

    loss: jax.Array
    log_denominator: jax.Array
    num_positives: jax.Array


@any_mesh
def supcon(
    features: jax.Array,
    labels: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    temperature: float,
    base_temperature: float | None = None,
    contrast_mode: str = "all",
    summation: str = "outside",
    denominator: str = "all",
    positives_cap: int | None = None,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls an anchor to every other row of its class, pushes it from the rest of the batch.

    Over the rows z of all views, A(i) all rows but i, P(i) the positives among them,
    s_ij = z_i . z_j / temperature:
    outside:  L_i = -1/|P(i)| sum_{p in P(i)} log( exp(s_ip) / sum_{a in A(i)} exp(s_ia) )
    inside:   L_i = -log( 1/|P(i)| sum_{p in P(i)} exp(s_ip) / sum_{a in A(i)} exp(s_ia) )
    L = temperature / base_temperature * mean_i L_i

    Args:
      features: [B, V, ...] views of each example, flattened over the trailing axes and normalised.
        Gradient flows.
      labels: [B] integers: rows of one label are positives of each other; below 0 means no label,
        and then an example's positives are its own other views. Without labels and mask that holds
        for all examples, which is NT-Xent.
      mask: instead of labels, [B, N] weights >= 0: column j is a positive of example i, with this
        weight, in all views; N is the global batch, and the mask need not be symmetric. Constant.
      temperature: 0.1 in the paper.
      base_temperature: None for the formula of the paper, factor 1; the authors' code has 0.07.
      contrast_mode: "all" anchors every view, "one" the first view of each example.
      summation: "outside" the logarithm (recommended) or "inside".
      denominator: what A(i) is. "all": all rows but i. "one_positive": the negatives and the
        positive p of the term. "only_negatives": the negatives; a row without any has minus its
        mean positive similarity then, where the authors' code is infinite.
      positives_cap: at most so many positives besides an anchor's own views, those of the examples
        that come first in the global batch: a multiple of V, since they have all their views. What
        is above the cap is left out of the denominator too. None: all.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: device axis that splits the batch; rows of all devices are contrasted.
      plan, block_size: how devices share keys and the side of a tile, as in `contrast`.

    Returns:
      Scalar in nats (scaled as above), mean over the anchors of the global batch, those without a
      positive counting as 0, as in the authors' code. log(NV - 1) where all similarities are equal;
      at best log|P| for "outside", not 0.

    Raises:
      ValueError: shapes that disagree, labels and mask both given, an unknown mode, a cap with a
        mask or that V does not divide, temperature <= 0, an axis that is not mapped.

    Reference: Khosla et al. 2020, arXiv 2004.11362, equations 2 and 3; the denominators and the cap
      are those of their TensorFlow code, which has base_temperature=1.
    """
    rows = supcon_rows(
        features,
        labels,
        mask,
        temperature=temperature,
        contrast_mode=contrast_mode,
        summation=summation,
        denominator=denominator,
        positives_cap=positives_cap,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
        normalise=normalise,
    )
    return _factor(temperature, base_temperature) * mean(jnp.mean(rows.loss), axis_name)


@any_mesh
def supcon_rows(
    features: jax.Array,
    labels: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    temperature: float,
    contrast_mode: str = "all",
    summation: str = "outside",
    denominator: str = "all",
    positives_cap: int | None = None,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> SupConRows:
    """The parts of `supcon` for each of this device's anchors, view-major (row = view * B +
    example), not scaled. For one sample in the authors' TensorFlow code: the mean over views; of
    one view, loss / num_positives, since it divides twice.

    Raises:
      ValueError: as `supcon`.
    """
    features = _views(
        features, temperature, contrast_mode, summation, axis_name, normalise=normalise
    )
    if denominator not in DENOMINATORS:
        raise ValueError(
            f"denominator is {denominator!r}; expected one of {', '.join(DENOMINATORS)}."
        )
    batch, views = features.shape[:2]
    anchors = views if contrast_mode == "all" else 1
    ids = row_ids(batch, axis_name)
    if labels is not None and mask is not None:
        raise ValueError(
            "labels and mask are both given; expected at most one. A mask says all that labels do."
        )
    capped = _examples(positives_cap, views, mask)
    negative: PairFunction | None
    if labels is not None:
        check_integer("b", {"b": batch}, labels=labels)
        labels = separate_unlabelled(labels, axis_name)
        rows, cols, positive, negative = {"label": labels}, {"label": labels}, same_label, _others
        every = gather(labels, axis_name)
        others = _occurrences(labels, every) - 1
        if capped is not None:
            place = {"place": _places(labels, every, ids), "example": ids}
            rows, cols, positive = rows | place, cols | place, partial(_among_first, capped)
            others = jnp.minimum(others, capped)
        count = views * (others + 1) - 1
    elif mask is not None:
        every = gather(ids, axis_name)
        mask = lax.stop_gradient(wide(mask))
        check("b n", {"b": batch, "n": every.shape[0]}, mask=mask)
        rows, cols, positive, negative = {"mask": mask}, {"example": ids}, _masked, _unmasked
        count = (
            views * jnp.sum(mask, axis=1) - jnp.take_along_axis(mask, ids[:, None], axis=1)[:, 0]
        )
    else:
        rows, cols, positive, negative = (
            {"example": ids},
            {"example": ids},
            same_example,
            _strangers,
        )
        count = jnp.full((batch,), views - 1)
    if denominator == "all" and (labels is None or capped is None):
        negative = None
    rows, count = jax.tree.map(lambda x: jnp.concatenate([x] * anchors), (rows, count))
    return _supcon(
        features,
        rows,
        jax.tree.map(lambda x: jnp.tile(x, views), cols),
        _Relation(positive, count, negative),
        temperature,
        anchors,
        (summation, denominator),
        axis_name,
        plan,
        block_size,
    )


@any_mesh
def stablerep(
    features: jax.Array,
    labels: jax.Array,
    *,
    temperature: float,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls images generated from one caption to each other: cross-entropy with the even
    distribution over positives.

    L = -1/B sum_i sum_j p_ij log softmax_j(z_i . z_j / temperature),  j != i,
    p_ij = [y_i = y_j] / |P(i)|

    Args:
      features: [B, D], normalised here (a zero row stays zero). Gradient flows.
      labels: [B] integers, the caption of each image; below 0 for an image without one, which has
        no positive.
      temperature: 0.1 in the paper.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: device axis that splits the batch; rows of all devices are contrasted.
      plan, block_size: how devices share keys and the side of a tile, as in `contrast`.

    Returns:
      Scalar in nats, mean over the global batch; rows without a positive count as 0. `supcon` with
      one view.

    Raises:
      ValueError: shapes that disagree, temperature <= 0, an axis that is not mapped.

    Reference: Tian et al. 2023, arXiv 2306.00984, equation 3. The authors' code keeps the mask of
      the first batch for as long as the batch size stays; here the labels are always this batch's.
    """
    check_integer("b", check("b d", features=features), labels=labels)
    return supcon(
        jnp.asarray(features)[:, None],
        labels,
        temperature=temperature,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
        normalise=normalise,
    )


@any_mesh
def kcl(
    q: jax.Array,
    k: jax.Array,
    queue: jax.Array,
    labels: jax.Array,
    queue_labels: jax.Array,
    *,
    temperature: float,
    selected: jax.Array | None = None,
    unselected: str = "negative",
    summation: str = "outside",
    normalise: bool = True,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> jax.Array:
    """Pulls a query to its key and to a few queue entries of its class, as many for frequent
    classes as for rare.

    With the logits s_i = (q_i . k_i, q_i . queue_1, ..., q_i . queue_K) / temperature, P_i = {key}
    and the selected:
    outside:  L = -1/B sum_i 1/|P_i| sum_{p in P_i} log softmax(s_i)_p
    inside:   L = -1/B sum_i log sum_{p in P_i} softmax(s_i)_p

    Args:
      q: [B, D] unit queries; gradient flows.
      k: [B, D] unit keys, constants.
      queue: [K, D] unit rows, constants.
      labels: [B] integers; a query below 0 has no label and its key as the only positive.
      queue_labels: [K] integers, below 0 for entries not yet labelled, which are positives of none.
      temperature: 0.07 in the paper's code.
      selected: [B, K], nonzero at the positives, of those with the query's label: `draw_positives`
        (the paper and TSC) or `first_positives`. None takes all of them.
      unselected: entries of the query's class that were not selected are a "negative" (the default
        of the authors' code), or "zero": their logit is 0, and stays in the denominator as exp(0)
        (its losstype v2).
      summation: "outside" the logarithm, or "inside" (the option sump of the authors' code, which
        did worse).
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: device axis that splits the batch; queue and queue_labels are the same on every
        device.
      block_size: the side of a tile, as in `contrast`.

    Returns:
      Scalar in nats, mean over the global batch; log(1 + K) where all similarities are equal, less
      log|P_i| for "inside". A query whose class is not in the queue has its key as the only
      positive.

    Raises:
      ValueError: shapes that disagree, an unknown `unselected` or `summation`, temperature <= 0, an
        axis that is not mapped.

    Reference: Kang et al. 2021, "Exploring balanced feature spaces", equation 3. The authors'
      selection is what top_k makes of ties, neither random nor the first; the paper draws
      uniformly, and so does `draw_positives`."""
    q, k = prepared(normalise, q=q, k=k)
    sizes = check("b d", q=q, k=k)
    sizes = check("k d", sizes, queue=queue)
    check_integer("b", sizes, labels=labels)
    check_integer("k", sizes, queue_labels=queue_labels)
    check_positive(temperature=temperature)
    check_axis(axis_name)
    if unselected not in ("negative", "zero"):
        raise ValueError(f'unselected is {unselected!r}; expected "negative" (v1) or "zero" (v2).')
    if summation not in ("outside", "inside"):
        raise ValueError(f'summation is {summation!r}; expected "outside" or "inside".')
    if selected is not None and selected.shape != (sizes["b"], sizes["k"]):
        raise ValueError(
            f"selected has shape {selected.shape}; expected [B, K] = {(sizes['b'], sizes['k'])}."
        )
    k, queue = lax.stop_gradient((k, queue))

    same = same_class(labels, queue_labels)
    chosen = same if selected is None else same & (selected != 0)
    dropped = same & ~chosen if unselected == "zero" else jnp.zeros_like(same)
    own = dots("bd,bd->b", q, k) / temperature
    zeros = jnp.sum(dropped, axis=1).astype(own.dtype)
    log_zeros = jnp.where(zeros > 0, jnp.log(jnp.maximum(zeros, 1)), -jnp.inf)

    def sums(allowed: jax.Array | None, positive: PairFunction | None = None) -> Contrast:
        return contrast(
            q,
            queue,
            scale=1 / temperature,
            rows={"chosen": chosen} if allowed is None else {"chosen": chosen, "allowed": allowed},
            cols={"entry": jnp.arange(sizes["k"])},
            positive=positive,
            log_weight=None if allowed is None else _allowed,
            block_size=block_size,
        )

    if summation == "inside":
        above = jnp.logaddexp(own, sums(chosen).lse)
        below = jnp.logaddexp(sums(~chosen & ~dropped).lse, log_zeros)
        return mean(jnp.mean(jax.nn.softplus(below - above)), axis_name)
    drop = unselected == "zero" and selected is not None
    out = sums(~dropped if drop else None, _chosen)
    lse = jnp.logaddexp(out.lse, log_zeros) if drop else out.lse
    count = jnp.sum(chosen, axis=1).astype(own.dtype)
    loss = jax.nn.softplus(lse - own) + (count * own - out.pos) / (1 + count)
    return mean(jnp.mean(loss), axis_name)


@any_mesh
def kcl_in_batch(
    features: jax.Array,
    labels: jax.Array,
    selected: jax.Array,
    *,
    temperature: float,
    base_temperature: float | None = None,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls an anchor to its own other views and to a few rows of its class: SupCon with sampled
    positives.

    Args:
      features: [B, V, D] unit views. Gradient flows.
      labels: [B] integers. A row is a positive only if it has the anchor's label; for an anchor
        below 0, which has no label, only its own other views are.
      selected: [V * B, V * N], nonzero at the positives, view-major both ways, N the global batch
        (`in_batch_positives`). Constant.
      temperature, base_temperature, normalise, axis_name, plan, block_size: as in `supcon`.

    Returns, Raises: as `supcon`.

    Reference: the CIFAR code of Li et al. 2022, "Targeted supervised contrastive learning", arXiv
      2111.13998.
    """
    features = _views(features, temperature, "all", "outside", axis_name, normalise=normalise)
    batch, views = features.shape[:2]
    check_integer("b", {"b": batch}, labels=labels)
    labels = separate_unlabelled(labels, axis_name)
    every, ids = gather(labels, axis_name), row_ids(batch, axis_name)
    size = every.shape[0]
    if selected.shape != (views * batch, views * size):
        raise ValueError(
            f"selected has shape {selected.shape}; expected [V * B, V * N] = "
            f"{(views * batch, views * size)} with N rows on all devices."
        )
    index = (jnp.arange(views)[:, None] * size + ids[None]).reshape(-1)
    rows = jnp.tile(labels, views)[:, None] == jnp.tile(every, views)[None]
    rows &= (selected != 0) & (index[:, None] != jnp.arange(views * size)[None])
    found = _supcon(
        features,
        {"chosen": rows},
        {"entry": index},
        _Relation(_chosen, jnp.sum(rows, axis=1)),
        temperature,
        views,
        ("outside", "all"),
        axis_name,
        plan,
        block_size,
    )
    return _factor(temperature, base_temperature) * mean(jnp.mean(found.loss), axis_name)


@any_mesh
def same_class(labels: jax.Array, queue_labels: jax.Array) -> jax.Array:
    """[B, K] booleans: the queue entry has the row's label, and has a label at all (not below
    0)."""
    labels, queue_labels = jnp.asarray(labels), jnp.asarray(queue_labels)
    return (labels[:, None] == queue_labels[None]) & (queue_labels >= 0)[None]


@any_mesh
def first_positives(candidates: jax.Array, *, num_positives: int) -> jax.Array:
    """[B, K] booleans: the first `num_positives` candidates of each row."""
    check_count(num_positives=num_positives)
    return (candidates != 0) & (jnp.cumsum(candidates != 0, axis=1) <= num_positives)


@any_mesh
def draw_positives(draws: jax.Array, candidates: jax.Array) -> jax.Array:
    """[B, K] booleans: positives drawn uniformly without replacement, one of each row's candidates
    per round.

    Args:
      draws: [rounds, B] uniform in [0, 1), for instance `positive_draws`. In each round a row takes
        the floor(draw * n)-th of the n candidates it has left, none when n = 0.
      candidates: [B, K], nonzero at what may be drawn (`same_class`).

    Raises:
      ValueError: shapes that disagree.

    Reference: Kang et al. 2021; the rounds are those of TSC's code.
    """
    sizes = check("r b", draws=draws)
    if candidates.ndim != 2 or candidates.shape[0] != sizes["b"]:
        raise ValueError(
            f"candidates have shape {candidates.shape}; expected [B, K], B = {sizes['b']} as in "
            f"draws."
        )

    def draw_one(left, draw):
        order = jnp.cumsum(left, axis=1)
        nth = jnp.floor(draw * order[:, -1].astype(draw.dtype)).astype(order.dtype)
        return left & (order != nth[:, None] + 1), None

    candidates = candidates != 0
    left, _ = lax.scan(draw_one, candidates, draws)
    return candidates & ~left


@any_mesh
def positive_draws(key: jax.Array, ids: jax.Array, *, num_positives: int) -> jax.Array:
    """[num_positives, B] uniform draws, each row's keyed by its example id: the same on any number
    of devices."""
    check_key(key=key)
    check_integer("b", ids=ids)
    check_count(num_positives=num_positives)
    return jax.vmap(
        lambda i: jax.random.uniform(jax.random.fold_in(key, i), (num_positives,)), out_axes=1
    )(ids)


@any_mesh
def in_batch_positives(
    labels: jax.Array, draws: jax.Array, *, num_views: int, axis_name: AxisName = None
) -> jax.Array:
    """[V * B, V * N] booleans, view-major: the own other views, and rows of the class drawn as by
    `draw_positives`.

    Args:
      labels: [B] integers, below 0 for a row without one, whose own other views are all it gets.
      draws: [rounds, V * B] uniform in [0, 1). Other views of the example are no candidates, they
        are always in.
      num_views: V.
      axis_name: device axis that splits the batch.

    Raises:
      ValueError: labels that are not integers [B], an axis that is not mapped.
    """
    sizes = check_integer("b", labels=labels)
    check_axis(axis_name)
    labels = separate_unlabelled(labels, axis_name)
    example = row_ids(sizes["b"], axis_name)
    rows = jnp.tile(labels, num_views)
    own = jnp.tile(example, num_views)
    columns, others = (jnp.tile(gather(x, axis_name), num_views) for x in (labels, example))
    this = own[:, None] == others[None]
    view, other_view = (
        jnp.repeat(jnp.arange(num_views), n.shape[0] // num_views) for n in (own, others)
    )
    return this & (view[:, None] != other_view[None]) | draw_positives(
        draws, (rows[:, None] == columns[None]) & ~this
    )


@any_mesh
def kcl_targets(selected: jax.Array) -> jax.Array:
    """[B, 1 + K] the distribution KCL's cross-entropy pulls to: even over the key (column 0) and
    the selected."""
    chosen = jnp.concatenate(
        [jnp.ones((selected.shape[0], 1), bool), selected != 0], axis=1
    ).astype(float)
    return chosen / jnp.sum(chosen, axis=1, keepdims=True)


def _factor(temperature, base_temperature):
    if base_temperature is None:
        return 1.0
    check_positive(base_temperature=base_temperature)
    return temperature / base_temperature


def _views(features, temperature, contrast_mode, summation, axis_name, normalise):
    check_real(features=features)
    if features.ndim < 3:
        raise ValueError(
            f"features have shape {features.shape}; expected [B, V, D], the views of each example "
            f"on axis "
            "1. For one view add the axis: features[:, None]."
        )
    features = features.reshape(*features.shape[:2], -1)
    check("b v d", features=features)
    (features,) = prepared(normalise, features=features)
    check_positive(temperature=temperature)
    check_axis(axis_name)
    if contrast_mode not in ("all", "one"):
        raise ValueError(f'contrast_mode is {contrast_mode!r}; expected "all" or "one".')
    if summation not in ("outside", "inside"):
        raise ValueError(f'summation is {summation!r}; expected "outside" or "inside".')
    return features


def _occurrences(labels: jax.Array, every: jax.Array) -> jax.Array:
    """How often each label occurs in `every`."""
    if not isinstance(every.shape[0], int):  # a binary search has a fixed number of steps
        return jnp.sum(labels[:, None] == every[None], axis=1)
    ranked = jnp.sort(every)
    first, last = (jnp.searchsorted(ranked, labels, side=side) for side in ("left", "right"))
    return last - first


def _places(labels: jax.Array, every: jax.Array, ids: jax.Array) -> jax.Array:
    """How many of the rows of `every` before row ids[i] have the label labels[i]."""
    if not isinstance(every.shape[0], int):
        before = jnp.arange(every.shape[0], dtype=ids.dtype)[None] < ids[:, None]
        return jnp.sum((labels[:, None] == every[None]) & before, axis=1)
    order = jnp.argsort(every, stable=True)
    rank = jnp.argsort(order)[ids]
    return rank - jnp.searchsorted(every[order], labels, side="left").astype(rank.dtype)


def _examples(positives_cap: int | None, views: int, mask: jax.Array | None) -> int | None:
    """The cap as a number of examples."""
    if positives_cap is None:
        return None
    if mask is not None:
        raise ValueError(
            "positives_cap is given with a mask; expected labels, since a mask says itself which "
            "positives there are."
        )
    if not isinstance(positives_cap, Integral) or positives_cap < 0 or positives_cap % views:
        raise ValueError(
            f"positives_cap is {positives_cap!r} with {views} views; expected a multiple of the "
            "views from 0 on, or None."
        )
    return min(int(positives_cap) // views, 2**31 - 1)  # int32 counts rows


def _among_first(number: int, rows: Pairs, cols: Pairs) -> jax.Array:
    """Own views, and those of the first `number` other examples of the label."""
    place = cols["place"][None, :]  # the row itself is not counted: after it, one less
    first = jnp.where(place > rows["place"][:, None], place <= number, place < number)
    return same_example(rows, cols) | (same_label(rows, cols) & first)


def _others(rows: Pairs, cols: Pairs) -> jax.Array:
    return ~same_label(rows, cols)


def _strangers(rows: Pairs, cols: Pairs) -> jax.Array:
    return ~same_example(rows, cols)


def _unmasked(rows: Pairs, cols: Pairs) -> jax.Array:
    return _masked(rows, cols) == 0


def _masked(rows: Pairs, cols: Pairs) -> jax.Array:
    return rows["mask"][:, cols["example"]]


def _chosen(rows: Pairs, cols: Pairs) -> jax.Array:
    return rows["chosen"][:, cols["entry"]]


def _allowed(rows: Pairs, cols: Pairs) -> jax.Array:
    return allow(rows["allowed"][:, cols["entry"]])


class _Relation(NamedTuple):
    """How columns stand to rows. positive: their weights as positives. num_positives: [R] the sum
    of each row's, without its own column. negative: which are negatives; None where the denominator
    is all columns but the row's own."""

    positive: PairFunction
    num_positives: jax.Array
    negative: PairFunction | None = None


def _supcon(
    features: jax.Array,
    rows: dict[str, jax.Array],
    cols: dict[str, jax.Array],
    relation: _Relation,
    temperature: float,
    anchors: int,
    form: tuple[str, str],
    axis_name: AxisName,
    plan: str,
    block_size: int | None,
) -> SupConRows:
    """The loss of the first `anchors` views of this device's examples. rows and cols, view-major,
    are what `relation` reads. form: summation and denominator."""
    summation, denominator = form
    batch, views = features.shape[:2]
    keys = features.swapaxes(0, 1).reshape(views * batch, -1)
    # Unique to a row, whatever order devices are gathered in.
    ids = (
        row_ids(batch, axis_name)[None] * views + jnp.arange(views, dtype=jnp.int32)[:, None]
    ).reshape(-1)
    some = ~(relation.num_positives <= 0)  # true of NaN, which is passed on
    count = relation.num_positives.astype(wide_type(features.dtype))
    share = 1 / jnp.where(some, count, 1)
    rows, cols = rows | {"id": ids[: anchors * batch], "share": share}, cols | {"id": ids}
    over_pairs: dict[str, Any] = {
        "scale": 1 / temperature,
        "axis_name": axis_name,
        "plan": plan,
        "block_size": block_size,
    }

    def mean_positive(rows, cols):
        share = rows["share"][:, None]
        weight = jnp.asarray(relation.positive(rows, cols), share.dtype)
        return jnp.where(same_id(rows, cols), 0, weight) * share

    def log_positive(rows, cols):
        p = mean_positive(rows, cols)
        return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)), -jnp.inf)

    def below(rows, cols):
        if relation.negative is None:
            return not_self(rows, cols)
        counted = relation.negative(rows, cols) & ~same_id(rows, cols)
        return allow(counted | (mean_positive(rows, cols) > 0) if denominator == "all" else counted)

    def sums(log_weight, positive):
        return contrast(
            keys[: anchors * batch],
            keys,
            rows=rows,
            cols=cols,
            log_weight=log_weight,
            positive=positive,
            **over_pairs,
        )

    if denominator == "one_positive":
        out = sums(below, None)
        of_positives = sums(log_positive, None) if summation == "inside" else None
        loss = _each_with_its_own(
            keys[: anchors * batch], keys, rows, cols, mean_positive, out, of_positives, over_pairs
        )
    elif summation == "outside":
        out = sums(below, mean_positive)
        loss = out.gap
    else:
        out = sums(below, None)
        loss = jnp.where(out.lse > LOG_ZERO, out.lse, 0) - sums(log_positive, None).lse
    return SupConRows(jnp.where(some, loss, 0), out.lse, count)


def _each_with_its_own(
    queries: jax.Array,
    keys: jax.Array,
    rows: dict[str, jax.Array],
    cols: dict[str, jax.Array],
    mean_positive: PairFunction,
    negatives: Contrast,
    positives: Contrast | None,
    over_pairs: dict[str, Any],
) -> jax.Array:
    """[R] the loss whose every positive has a denominator of itself and of the negatives, so that
    its share is sigmoid(s - log sum of negatives): the mean of minus its logarithm, or, given the
    sums of positives, minus the logarithm of its mean."""
    rows = rows | {"negatives": negatives.lse}
    if positives is None:

        def surprise(s, rows, cols):
            return mean_positive(rows, cols) * softplus(rows["negatives"][:, None] - s)

        return pair_sums(queries, keys, surprise, rows=rows, cols=cols, **over_pairs)
    # Shares below float32's range are summed as multiples of about the largest.
    highest = jnp.asarray(positives.highest)
    none = highest <= LOG_ZERO  # false of NaN, which is passed on
    largest = -softplus(negatives.lse - jnp.where(none, 0, highest))
    rows |= {"largest": lax.stop_gradient(jnp.where(none, 0, largest))}

    def share(s, rows, cols):
        weight = mean_positive(rows, cols)
        log_share = -softplus(rows["negatives"][:, None] - s) - rows["largest"][:, None]
        return weight * jnp.exp(jnp.where(weight > 0, log_share, 0))

    shares = pair_sums(queries, keys, share, rows=rows, cols=cols, **over_pairs)
    return -(rows["largest"] + jnp.log(jnp.where(none, 1, shares)))
