"""Several positives per anchor: SupCon, StableRep, KCL and its re-implementation in TSC.

`stablerep` normalises; everything else leaves that to the caller.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.losses._axis import first_row, gather, mean
from cl_jax.losses._float import dots, unit
from cl_jax.losses._rows import log_sums
from cl_jax.shapes import check, check_axis, check_count, check_integer, check_positive


class SupConRows(NamedTuple):
    """For the A * B anchors, view-major: loss; log_denominator, log sum_a exp(s_ia); num_positives, sum of weights."""

    loss: jax.Array
    log_denominator: jax.Array
    num_positives: jax.Array


def supcon(features: jax.Array, labels: jax.Array | None = None, mask: jax.Array | None = None, *, temperature: float,
           base_temperature: float | None = None, contrast_mode: str = "all", summation: str = "outside",
           axis_name: str | None = None, block_size: int | None = None) -> jax.Array:
    """Pulls an anchor to every other row of its class, pushes it from the rest of the batch.

    Over the rows z of all views, A(i) all rows but i, P(i) the positives among them, s_ij = z_i . z_j / temperature:
    outside:  L_i = -1/|P(i)| sum_{p in P(i)} log( exp(s_ip) / sum_{a in A(i)} exp(s_ia) )
    inside:   L_i = -log( 1/|P(i)| sum_{p in P(i)} exp(s_ip) / sum_{a in A(i)} exp(s_ia) )
    L = temperature / base_temperature * mean_i L_i

    Args:
      features: [B, V, ...] views of each example, unit over the trailing axes, which are flattened. Gradient flows.
      labels: [B] integers: rows of one label are positives of each other. Without labels and mask the other views of
        an example are its only positives, which is NT-Xent.
      mask: instead of labels, [B, N] weights >= 0: column j is a positive of example i, with this weight, in all views;
        N is the global batch, and the mask need not be symmetric. Constant.
      temperature: 0.1 in the paper.
      base_temperature: None for the formula of the paper, factor 1; the authors' code has 0.07.
      contrast_mode: "all" anchors every view, "one" the first view of each example.
      summation: "outside" the logarithm (recommended) or "inside".
      axis_name: device axis that splits the batch; rows of all devices are contrasted.
      block_size: anchors whose similarities are held at a time; None for all at once.

    Returns:
      Scalar in nats (scaled as above), mean over the anchors of the global batch, those without a positive counting as
      0, as in the authors' code. log(NV - 1) where all similarities are equal; at best log|P| for "outside", not 0.

    Raises:
      ValueError: shapes that disagree, labels and mask both given, an unknown mode, temperature <= 0, an axis that is
        not mapped.

    Reference: Khosla et al. 2020, arXiv 2004.11362, equations 2 and 3.
    """
    rows = supcon_rows(features, labels, mask, temperature=temperature, contrast_mode=contrast_mode,
                       summation=summation, axis_name=axis_name, block_size=block_size)
    return _factor(temperature, base_temperature) * mean(jnp.mean(rows.loss), axis_name)


def supcon_rows(features: jax.Array, labels: jax.Array | None = None, mask: jax.Array | None = None, *,
                temperature: float, contrast_mode: str = "all", summation: str = "outside",
                axis_name: str | None = None, block_size: int | None = None) -> SupConRows:
    """The parts of `supcon` for each of this device's anchors, view-major (row = view * B + example), not scaled."""
    features = _views(features, temperature, contrast_mode, summation, axis_name, block_size)
    batch = features.shape[0]
    if labels is not None and mask is not None:
        raise ValueError("labels and mask are both given; expected at most one. A mask says all that labels do.")
    if labels is not None:
        check_integer("b", {"b": batch}, labels=labels)
        data = (labels, gather(labels, axis_name))

        def positive(row, column):
            return row[:, None] == column[None]
    elif mask is not None:
        first = first_row(batch, axis_name) + jnp.arange(batch)
        total = gather(first, axis_name)
        check("b n", {"b": batch, "n": total.shape[0]}, mask=jnp.asarray(mask, jnp.result_type(mask, jnp.float32)))
        data = (mask, total)

        def positive(row, column):
            return row[:, column]
    else:
        first = first_row(batch, axis_name) + jnp.arange(batch)
        data = (first, gather(first, axis_name))

        def positive(row, column):
            return row[:, None] == column[None]

    views = features.shape[1]
    anchors = views if contrast_mode == "all" else 1
    row_data = jnp.concatenate([data[0]] * anchors)
    return _supcon(features, row_data, jnp.tile(data[1], views), positive, temperature, anchors, summation, axis_name,
                   block_size)


def stablerep(features: jax.Array, labels: jax.Array, *, temperature: float, axis_name: str | None = None,
              block_size: int | None = None) -> jax.Array:
    """Pulls images generated from one caption to each other: cross-entropy with the even distribution over positives.

    L = -1/B sum_i sum_j p_ij log softmax_j(z_i . z_j / temperature),  j != i,  p_ij = [y_i = y_j] / |P(i)|

    Args:
      features: [B, D], normalised here (a zero row stays zero). Gradient flows.
      labels: [B] integers, the caption of each image.
      temperature: 0.1 in the paper.
      axis_name: device axis that splits the batch; rows of all devices are contrasted.
      block_size: as in `supcon`.

    Returns:
      Scalar in nats, mean over the global batch; rows without a positive count as 0. `supcon` with one view.

    Raises:
      ValueError: shapes that disagree, temperature <= 0, an axis that is not mapped.

    Reference: Tian et al. 2023, arXiv 2306.00984, equation 3. The authors' code keeps the mask of the first batch for
    as long as the batch size stays; here the labels are always this batch's.
    """
    check_integer("b", check("b d", features=features), labels=labels)
    z = unit(features).astype(features.dtype)
    return supcon(z[:, None], labels, temperature=temperature, axis_name=axis_name, block_size=block_size)


def kcl(q: jax.Array, k: jax.Array, queue: jax.Array, labels: jax.Array, queue_labels: jax.Array, *,
        temperature: float, selected: jax.Array | None = None, unselected: str = "negative",
        axis_name: str | None = None, block_size: int | None = None) -> jax.Array:
    """Pulls a query to its key and to a few queue entries of its class, as many for frequent classes as for rare.

    With the logits s_i = (q_i . k_i, q_i . queue_1, ..., q_i . queue_K) / temperature, P_i = {key} and the selected:
    L = -1/B sum_i 1/|P_i| sum_{p in P_i} log softmax(s_i)_p

    Args:
      q: [B, D] unit queries; gradient flows.
      k: [B, D] unit keys, constants.
      queue: [K, D] unit rows, constants.
      labels: [B] integers.
      queue_labels: [K] integers, below 0 for entries not yet labelled, which are positives of none.
      temperature: 0.07 in the paper's code.
      selected: [B, K], nonzero at the positives, of those with the query's label: `draw_positives` (the paper and TSC)
        or `first_positives`. None takes all of them.
      unselected: entries of the query's class that were not selected are a "negative" (the default of the authors'
        code), or "zero": their logit is 0, and stays in the denominator as exp(0) (its losstype v2).
      axis_name: device axis that splits the batch; queue and queue_labels are the same on every device.
      block_size: queries whose similarities to the queue are held at a time; None for all at once.

    Returns:
      Scalar in nats, mean over the global batch; log(1 + K) where all similarities are equal. A query whose class is
      not in the queue has its key as the only positive.

    Raises:
      ValueError: shapes that disagree, an unknown `unselected`, temperature <= 0, an axis that is not mapped.

    Reference: Kang et al. 2021, "Exploring balanced feature spaces", equation 3. The authors' selection is what top_k
    makes of ties, neither random nor the first; the paper draws uniformly, and so does `draw_positives`.
    """
    sizes = check("b d", q=q, k=k)
    sizes = check("k d", sizes, queue=queue)
    check_integer("b", sizes, labels=labels)
    check_integer("k", sizes, queue_labels=queue_labels)
    check_positive(temperature=temperature)
    check_count(block_size=block_size)
    check_axis(axis_name)
    if unselected not in ("negative", "zero"):
        raise ValueError(f'unselected is {unselected!r}; expected "negative" (v1) or "zero" (v2).')
    if selected is not None and selected.shape != (sizes["b"], sizes["k"]):
        raise ValueError(f"selected has shape {selected.shape}; expected [B, K] = {(sizes['b'], sizes['k'])}.")
    k, queue = lax.stop_gradient((k, queue))

    def positive(row, column):
        label, chosen = row
        own = same_class(label, column)
        return own if chosen is None else own & (chosen != 0)

    def zeroed(row, column):
        return jnp.where(same_class(row[0], column) & ~positive(row, column), -jnp.inf, 0.0)

    drop = unselected == "zero" and selected is not None
    rows = (labels, selected)
    own = dots("bd,bd->b", q, k) / temperature
    sums = log_sums(q, queue, scale=1 / temperature, rows=rows, cols=queue_labels, positive=positive,
                    log_weight=zeroed if drop else None, block_size=block_size)
    lse, count = sums.lse, sums.count
    if drop:
        zeros = jnp.sum(same_class(labels, queue_labels), axis=1).astype(lse.dtype) - count
        lse = jnp.logaddexp(lse, jnp.where(zeros > 0, jnp.log(jnp.maximum(zeros, 1)), -jnp.inf))
    loss = jax.nn.softplus(lse - own) + (count * own - sums.pulled) / (1 + count)
    return mean(jnp.mean(loss), axis_name)


def kcl_in_batch(features: jax.Array, labels: jax.Array, selected: jax.Array, *, temperature: float,
                 base_temperature: float | None = None, axis_name: str | None = None,
                 block_size: int | None = None) -> jax.Array:
    """Pulls an anchor to its own other views and to a few rows of its class: SupCon with sampled positives.

    Args:
      features: [B, V, D] unit views. Gradient flows.
      labels: [B] integers. A row is a positive only if it has the anchor's label.
      selected: [V * B, V * N], nonzero at the positives, view-major both ways, N the global batch
        (`in_batch_positives`). Constant.
      temperature, base_temperature, axis_name, block_size: as in `supcon`.

    Returns, Raises: as `supcon`.

    Reference: the CIFAR code of Li et al. 2022, "Targeted supervised contrastive learning", arXiv 2111.13998.
    """
    features = _views(features, temperature, "all", "outside", axis_name, block_size)
    batch, views = features.shape[:2]
    check_integer("b", {"b": batch}, labels=labels)
    every = gather(labels, axis_name)
    if selected.shape != (views * batch, views * every.shape[0]):
        raise ValueError(f"selected has shape {selected.shape}; expected [V * B, V * N] = "
                         f"{(views * batch, views * every.shape[0])} with N rows on all devices.")

    def positive(row, column):
        label, chosen = row
        other, index = column
        return (label[:, None] == other[None]) & (chosen[:, index] != 0)

    rows = _supcon(features, (jnp.tile(labels, views), selected),
                   (jnp.tile(every, views), jnp.arange(views * every.shape[0])), positive, temperature, views,
                   "outside", axis_name, block_size)
    return _factor(temperature, base_temperature) * mean(jnp.mean(rows.loss), axis_name)


def same_class(labels: jax.Array, queue_labels: jax.Array) -> jax.Array:
    """[B, K] booleans: the queue entry has the row's label, and has a label at all (not below 0)."""
    return (labels[:, None] == queue_labels[None]) & (queue_labels >= 0)[None]


def first_positives(candidates: jax.Array, *, num_positives: int) -> jax.Array:
    """[B, K] booleans: the first `num_positives` candidates of each row."""
    check_count(num_positives=num_positives)
    return (candidates != 0) & (jnp.cumsum(candidates != 0, axis=1) <= num_positives)


def draw_positives(draws: jax.Array, candidates: jax.Array) -> jax.Array:
    """[B, K] booleans: positives drawn uniformly without replacement, one of each row's candidates per round.

    Args:
      draws: [rounds, B] uniform in [0, 1), for instance `positive_draws`. In each round a row takes the
        floor(draw * n)-th of the n candidates it has left, none when n = 0.
      candidates: [B, K], nonzero at what may be drawn (`same_class`).

    Reference: Kang et al. 2021; the rounds are those of TSC's code.
    """
    sizes = check("r b", draws=draws)
    if candidates.ndim != 2 or candidates.shape[0] != sizes["b"]:
        raise ValueError(f"candidates have shape {candidates.shape}; expected [B, K], B = {sizes['b']} as in draws.")

    def draw_one(left, draw):
        order = jnp.cumsum(left, axis=1)
        nth = jnp.floor(draw * order[:, -1].astype(draw.dtype)).astype(order.dtype)
        return left & (order != nth[:, None] + 1), None

    candidates = candidates != 0
    left, _ = lax.scan(draw_one, candidates, draws)
    return candidates & ~left


def positive_draws(key: jax.Array, ids: jax.Array, *, num_positives: int) -> jax.Array:
    """[num_positives, B] uniform draws, each row's keyed by its example id: the same on any number of devices."""
    check_integer("b", ids=ids)
    check_count(num_positives=num_positives)
    return jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (num_positives,)), out_axes=1)(ids)


def in_batch_positives(labels: jax.Array, draws: jax.Array, *, num_views: int,
                       axis_name: str | None = None) -> jax.Array:
    """[V * B, V * N] booleans, view-major: the own other views, and rows of the class drawn as by `draw_positives`.

    Args:
      labels: [B] integers.
      draws: [rounds, V * B] uniform in [0, 1). Other views of the example are no candidates, they are always in.
      num_views: V.
      axis_name: device axis that splits the batch.
    """
    sizes = check_integer("b", labels=labels)
    check_axis(axis_name)
    example = first_row(sizes["b"], axis_name) + jnp.arange(sizes["b"])
    rows = jnp.tile(labels, num_views)
    own = jnp.tile(example, num_views)
    columns, others = (jnp.tile(gather(x, axis_name), num_views) for x in (labels, example))
    this = own[:, None] == others[None]
    view, other_view = (jnp.repeat(jnp.arange(num_views), n.shape[0] // num_views) for n in (own, others))
    return this & (view[:, None] != other_view[None]) | draw_positives(draws, (rows[:, None] == columns[None]) & ~this)


def kcl_targets(selected: jax.Array) -> jax.Array:
    """[B, 1 + K] the distribution KCL's cross-entropy pulls to: even over the key (column 0) and the selected."""
    chosen = jnp.concatenate([jnp.ones((selected.shape[0], 1), bool), selected != 0], axis=1).astype(float)
    return chosen / jnp.sum(chosen, axis=1, keepdims=True)


def _factor(temperature, base_temperature):
    if base_temperature is None:
        return 1.0
    check_positive(base_temperature=base_temperature)
    return temperature / base_temperature


def _views(features, temperature, contrast_mode, summation, axis_name, block_size):
    if features.ndim < 3:
        raise ValueError(f"features have shape {features.shape}; expected [B, V, D], the views of each example on axis "
                         "1. For one view add the axis: features[:, None].")
    features = features.reshape(*features.shape[:2], -1)
    check("b v d", features=features)
    check_positive(temperature=temperature)
    check_count(block_size=block_size)
    check_axis(axis_name)
    if contrast_mode not in ("all", "one"):
        raise ValueError(f'contrast_mode is {contrast_mode!r}; expected "all" or "one".')
    if summation not in ("outside", "inside"):
        raise ValueError(f'summation is {summation!r}; expected "outside" or "inside".')
    return features


def _supcon(features: jax.Array, rows: Any, columns: Any, positive: Callable[..., jax.Array], temperature: float,
            anchors: int, summation: str, axis_name: str | None, block_size: int | None) -> SupConRows:
    """The loss of the first `anchors` views of this device's examples; rows and columns, view-major, are what
    `positive` tells positives by."""
    batch, views = features.shape[:2]
    every = gather(features, axis_name)
    total = every.shape[0]
    queries = features[:, :anchors].swapaxes(0, 1).reshape(anchors * batch, -1)
    keys = every.swapaxes(0, 1).reshape(views * total, -1)
    own = (jnp.arange(anchors)[:, None] * total + first_row(batch, axis_name) + jnp.arange(batch)[None]).reshape(-1)
    index = jnp.arange(views * total)

    def other(row, column):
        return jnp.where(row[0][:, None] == column[0][None], -jnp.inf, 0.0)

    def weight(row, column):
        return jnp.where(row[0][:, None] == column[0][None], 0, positive(row[1], column[1]))

    def log_positive(row, column):
        p = weight(row, column).astype(jnp.promote_types(features.dtype, jnp.float32))
        return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1.0)), -jnp.inf)

    def sums(log_weight, positive):
        return log_sums(queries, keys, scale=1 / temperature, rows=(own, rows), cols=(index, columns),
                        log_weight=log_weight, positive=positive, block_size=block_size)

    found = sums(other, weight)
    some = found.count > 0
    loss = found.gap
    if summation == "inside":
        inside = jnp.where(some, sums(log_positive, None).lse, 0.0)
        loss = found.lse - inside + jnp.log(jnp.where(some, found.count, 1.0))
    return SupConRows(jnp.where(some, loss, 0.0), found.lse, found.count)
