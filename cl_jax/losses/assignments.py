"""Losses that predict an assignment to prototypes: SwAV with its Sinkhorn codes, DeepCluster v2."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, axis_size, mean, total, varying
from cl_jax.core.numerics import (
    at_least_one,
    capped,
    common_type,
    dots,
    log_sum_exp,
    softmax,
    wide,
    wide_type,
)
from cl_jax.core.shapes import check, check_axis, check_integer, check_positive
from cl_jax.losses._blocks import by_rows, folded, in_place
from cl_jax.losses._cross import of_labels
from cl_jax.losses._owners import check_owners
from cl_jax.losses._sums import LOG_ZERO
from cl_jax.losses._views import Codes, Views, check_views, cross_entropies, of_others


@any_mesh
def swav(
    scores: Views,
    codes: Views,
    *,
    temperature: float,
    assigned: Sequence[int] | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pulls the prototype distribution of every view to the codes computed from every *other* view
    of the example.

    loss = 1/(A (V - 1)) sum_a sum_(v != assigned_a) mean_i
           -<codes_a, log softmax(scores_v / temperature)>

    Args:
      scores: [V, B, K] dot products of unit features with unit prototypes, all crops, or a list of
        V arrays [B, K], which is faster than its stack on a CPU; gradient flows.
      codes: [A, B, K] from `swav_codes` or `sinkhorn`, or a list; no gradient.
      temperature: above 0 (0.1). Codes have none: their sharpness is Sinkhorn's epsilon.
      assigned: A view numbers, codes[a] was computed from view assigned[a]. Default: the first A
        views.
      axis_name: mapped axis over which the batch is split.

    Returns:
      Scalar in nats; log K at chance level.

    Raises:
      ValueError: shapes that disagree, fewer than two views, an assigned view that is not there, a
        temperature that is not above 0, `axis_name` not mapped.

    Reference: Caron et al., Unsupervised learning of visual features by contrasting cluster
      assignments, NeurIPS 2020, equations 2 and 6.
    """
    sizes = check_views("a b k", "codes", codes, check_views("v b k", "scores", scores))
    check_positive(temperature=temperature)
    check_axis(axis_name)
    views, count = sizes["v"], sizes["a"]
    owners = check_owners(views, count, range(count) if assigned is None else assigned)
    dtype = wide_type(common_type(*jax.tree.leaves((scores, codes))))
    rows = cross_entropies(
        scores,
        1 / jnp.asarray(temperature, dtype),
        Codes(lax.stop_gradient(codes)),
        of_others(views, owners),
    )
    return mean(rows.sum() / (count * (views - 1) * sizes["b"]), axis_name)


@any_mesh
def swav_codes(
    scores: Views,
    queue: jax.Array | None = None,
    prototypes: jax.Array | None = None,
    filled: jax.Array | None = None,
    *,
    epsilon: float,
    iterations: int,
    queue_per_device: bool = False,
    axis_name: AxisName = None,
) -> Any:
    """Sinkhorn codes of each crop that has them, balanced together with the crop's queue of earlier
    features.

    Args:
      scores: [A, B, K] dot products with the prototypes, of the crops that codes are computed from,
        or a list of A arrays [B, K]; no gradient.
      queue: [A, L, D] earlier unit features of the same crops (`cl_jax.memory.crop_queue`), not
        holding this batch yet.
      prototypes: [K, D], today's: earlier features are scored with them. Needed with a queue.
      filled: [A] booleans, `crop_queue.filled(queue)`: crops whose queue takes part. Needed with a
        queue.
      epsilon, iterations, axis_name: as `sinkhorn`.
      queue_per_device: see `sinkhorn`; False for a queue of the global batch that is the same on
        all devices.

    Returns:
      [A, B, K], or a list for a list, at least float32; each row sums to 1. No gradient.

    Raises:
      ValueError: shapes that disagree, a queue without prototypes or `filled`, and as `sinkhorn`.

    Reference: Caron et al., NeurIPS 2020, section 4.1 (queue).
    """
    sizes = check_views("a b k", "scores", scores)
    check_positive(epsilon=epsilon)
    check_axis(axis_name)
    balance = functools.partial(
        _balanced, epsilon=epsilon, iterations=iterations, axis_name=axis_name
    )
    apart = isinstance(scores, (list, tuple))
    if queue is None and apart:
        return [balance(x[None])[0] for x in scores]
    if queue is None:
        return balance(jnp.asarray(scores))
    if prototypes is None or filled is None:
        raise ValueError(
            "A queue needs the prototypes to score it with, and filled=crop_queue.filled(queue) "
            "to say "
            "when to use it."
        )
    check("k d", check("a l d", sizes, queue=queue), prototypes=prototypes)
    queued = dots("ald,kd->alk", lax.stop_gradient(queue), lax.stop_gradient(prototypes))
    use = jnp.broadcast_to(filled, sizes["a"])

    def with_queue(scores, queued, use):
        return balance(scores, queued, use_queued=use, queued_per_device=queue_per_device)

    if apart:
        return [with_queue(x[None], queued[i : i + 1], use[i])[0] for i, x in enumerate(scores)]
    return with_queue(jnp.asarray(scores), queued, use)


@any_mesh
def sinkhorn(
    scores: jax.Array,
    queued: jax.Array | None = None,
    *,
    epsilon: float | jax.Array,
    iterations: int,
    use_queued: jax.Array | bool = True,
    queued_per_device: bool = False,
    valid: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Soft assignments of examples to prototypes that use all prototypes about equally, over all
    devices' examples.

    Q = exp(scores / epsilon), scaled to sum 1; `iterations` times: divide each prototype's sum over
    all examples out of Q and by K, then each example's sum over prototypes and by B; finally times
    B. Where that needs more than float32 holds, in logarithms: no epsilon over- or underflows.

    Args:
      scores: [B, K] of this device's examples: dot products, without any temperature. No gradient.
      queued: [L, K] scores of earlier examples, which share in the balance and have no rows in the
        result.
      epsilon: above 0 (0.05); smaller is sharper.
      iterations: 0 or more (3).
      use_queued: False leaves the queued rows out; may be traced.
      queued_per_device: False: all devices pass the same L rows, which count once, so that the
        result does not depend on the number of devices. True: each device passes L rows of its own
        and all of them count, as the authors do.
      valid: [B] booleans, which examples share in the balance; the rows of others are not to be
        read. None for all.
      axis_name: mapped axis over which the examples are split.

    Returns:
      [B, K], at least float32: rows sum to 1 (iterations > 0), columns to about B / K. No gradient.

    Raises:
      ValueError: shapes that disagree, epsilon not above 0, iterations below 0, `axis_name` not
        mapped.

    Reference: Caron et al., NeurIPS 2020, equations 3 to 5; Cuturi, Sinkhorn distances, NeurIPS
      2013.
    """
    sizes = check("b k", scores=scores)
    check_positive(epsilon=epsilon)
    check_axis(axis_name)
    if valid is not None:
        check_integer("b", sizes, valid=jnp.asarray(valid, jnp.int32))
    if queued is not None:
        check("l k", sizes, queued=queued)
        queued = queued[None]
    codes = _balanced(
        scores[None],
        queued,
        epsilon=epsilon,
        iterations=iterations,
        use_queued=use_queued,
        queued_per_device=queued_per_device,
        valid=valid,
        axis_name=axis_name,
    )
    return codes[0]


RANGE = 42.0  # of the factors' logarithms, for which float32 holds all that matters of exp(kernel)


def _balanced(
    scores: jax.Array,
    queued: jax.Array | None = None,
    *,
    epsilon: float | jax.Array,
    iterations: int,
    use_queued: jax.Array | bool = True,
    queued_per_device: bool = False,
    valid: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """`sinkhorn` of several crops, each by itself: scores [A, B, K], queued [A, L, K], use_queued
    [A] or one for all, valid [B]."""
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}; expected 0 or more. SwAV uses 3.")
    scores = lax.stop_gradient(wide(scores))
    log_weight = jnp.zeros(scores.shape[:2], scores.dtype)
    if valid is not None:
        log_weight = jnp.where(valid, log_weight, -jnp.inf)
    # The batch's rows come last.
    rows, log_weights = [scores], [log_weight]
    if queued is not None:
        # The same rows on n devices, summed over devices, count once when each has weight 1/n.
        share = 1.0 if queued_per_device else 1.0 / axis_size(axis_name)
        log_share = jnp.log(jnp.asarray(share, scores.dtype))
        log_queued = jnp.where(jnp.reshape(use_queued, (-1, 1)), log_share, -jnp.inf)
        rows.insert(0, lax.stop_gradient(wide(queued)).astype(scores.dtype))
        log_weights.insert(0, jnp.broadcast_to(log_queued, queued.shape[:2]))

    # Each row is centred on its own maximum before the division: that keeps float32's digits where
    # the mass is.
    tops = [_highest(x) for x in rows]
    highest = _most(functools.reduce(jnp.maximum, [top.max(axis=1) for top in tops]), axis_name)
    kernels = [(x - top[:, :, None]) / epsilon for x, top in zip(rows, tops)]
    examples = [(top - highest[:, None]) / epsilon for top in tops]
    if iterations == 0:
        weighed = list(zip(kernels, examples, log_weights))
        counts = [jnp.exp(w).sum(axis=1) for _, _, w in weighed]
        count = total(functools.reduce(jnp.add, counts), axis_name)
        masses = [jnp.exp(x + (e + w)[:, :, None]).sum(axis=(1, 2)) for x, e, w in weighed]
        scale = count / total(functools.reduce(jnp.add, masses), axis_name)
        return jnp.exp(kernels[-1] + examples[-1][:, :, None]) * scale[:, None, None]
    # By factors: one exponential of the matrix, and two products with it for each iteration.
    powers = [jnp.exp(x) for x in kernels]
    weights = [jnp.exp(w) for w in log_weights]
    factors = [jnp.exp(e) for e in examples]
    largest = jnp.ones((), scores.dtype)
    for number in range(iterations):
        sums = [dots("an,ank->ak", f * w, p) for f, w, p in zip(factors, weights, powers)]
        column = 1 / total(functools.reduce(jnp.add, sums), axis_name)
        most = column.max(axis=1, keepdims=True)
        spread = (most / column.min(axis=1, keepdims=True)).max()
        largest = jnp.maximum(largest, jnp.maximum(most.max(), spread))
        column = column / most
        wanted = powers if number < iterations - 1 else powers[-1:]
        factors = [1 / dots("ank,ak->an", p, column) for p in wanted]
        for factor in factors:
            largest = jnp.maximum(largest, factor.max())
    # What underflowed is then less than exp(-45) of a row's sum and of a column's.
    held = _most(jnp.where(largest <= math.exp(RANGE), 0, 1), axis_name) == 0

    def by_logarithms(_):
        parts = [
            (x, top[:, :, None], (e + w)[:, :, None], w[:, :, None])
            for x, top, e, w in zip(rows, tops, examples, log_weights)
        ]
        return _by_logarithms(parts, epsilon, iterations, axis_name), jnp.ones_like(held)

    # A loop of one turn or none works in the place of the powers; `lax.cond` copies the matrix.
    codes = in_place(lambda x, c, f: x * c[None] * f, powers[-1], column, factors[-1][:, :, None])
    return lax.while_loop(lambda carry: ~carry[1], by_logarithms, (codes, held))[0]


def _by_logarithms(
    parts: Sequence[tuple[jax.Array, ...]], epsilon: Any, iterations: int, axis_name: AxisName
) -> jax.Array:
    """[A, B, K]: the codes of the last part, of scores of any range. Parts: scores [A, N, K], and
    [A, N, 1] their highest in a row, the logarithms of rows' factors with their weights, and of the
    weights alone.

    Some rows at a time: what a loop may need is allocated even where it makes no turn.
    """

    def columns(factors):
        """[A, K] logarithms of the columns' factors."""
        x = parts[0][0]
        most = jnp.full((x.shape[0], x.shape[2]), LOG_ZERO, x.dtype)
        summed = jnp.zeros_like(most)

        def added(sums, fresh, *blocks):
            found = []
            for most, summed, x, top, factor in zip(*sums, *blocks):
                x = (x - top) / epsilon + (
                    factor if fresh is None else jnp.where(fresh, factor, -jnp.inf)
                )
                highest = jnp.maximum(most, x.max(axis=0))
                powers = jnp.exp(capped(x - highest[None])).sum(axis=0)
                found.append((highest, summed * jnp.exp(most - highest) + powers))
            return tuple(map(jnp.stack, zip(*found)))

        for (x, top, *_), factor in zip(parts, factors):
            most, summed = folded(added, (most, summed), x, top, factor)
        top = _most(most, axis_name)
        summed = total(summed * jnp.exp(most - top), axis_name)
        return -top - jnp.log(at_least_one(summed))

    def factors(column):
        column = column - column.mean(axis=1, keepdims=True)

        def of_rows(xs, tops, weights):
            each = zip(xs, tops, weights, column)
            return [
                w - log_sum_exp((x - top) / epsilon + c[None], axis=1, keepdims=True)
                for x, top, w, c in each
            ]

        return [by_rows(of_rows, x, top, w) for x, top, _, w in parts]

    start = [factor for _, _, factor, _ in parts]
    column = columns(lax.fori_loop(0, iterations - 1, lambda _, f: factors(columns(f)), start))

    def codes(xs, tops):
        return [
            softmax((x - top) / epsilon + c[None], axis=1) for x, top, c in zip(xs, tops, column)
        ]

    return by_rows(codes, *parts[-1][:2])


def _highest(x: jax.Array) -> jax.Array:
    """[A, B] of [A, B, K], as a matrix: XLA's reductions on a CPU are slower of three axes."""
    return x.reshape(-1, x.shape[2]).max(axis=1).reshape(x.shape[:2])


def _most(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """The largest value over devices."""
    return x if axis_name is None else lax.pmax(x, axis_name)


@any_mesh
def deepcluster_v2(
    scores: Sequence[Views],
    assignments: Sequence[jax.Array] | jax.Array,
    *,
    temperature: float,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pulls every crop to the centroid its example was assigned to, for each of several
    clusterings.

    loss = mean_h cross_entropy(scores_h / temperature, assignments_h),
    the same assignment for all crops of an example

    Args:
      scores: H arrays [V, B, K_h], or lists of V arrays [B, K_h]: dot products of unit features
        with the centroids of clustering h; gradient flows.
      assignments: H arrays [B] (or one [H, B]) of integers, cluster numbers of the examples; below
        0 where there is none.
      temperature: above 0 (0.1).
      axis_name: mapped axis over which the batch is split.

    Returns:
      Scalar in nats; at chance level the mean over h of log K_h. Examples without assignment are
      left out of the mean.

    Raises:
      ValueError: another number of assignments than of scores, shapes that disagree, assignments
        that are not integers, a temperature that is not above 0, `axis_name` not mapped.

    Reference: Caron et al., NeurIPS 2020, the appendix on DeepCluster-v2. The mean runs over the
      assigned crops of the global batch; the authors average the means of devices, which differs
      where unassigned examples are uneven."""
    check_positive(temperature=temperature)
    check_axis(axis_name)
    if len(scores) != len(assignments) or not len(scores):
        raise ValueError(
            f"There are scores of {len(scores)} clusterings and {len(assignments)} assignments; "
            f"expected "
            "one array of assignments for each array of scores."
        )
    losses = []
    for head, labels in zip(scores, assignments):
        sizes = check_views("v b k", "scores", head)
        check_integer("b", sizes, assignments=labels)
        losses.append(_of_labels(head, labels, temperature, axis_name))
    return jnp.stack(losses).mean()


@any_mesh
def cross_entropy(logits: jax.Array, labels: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
    """Mean of -log softmax(logits_i)[labels_i] over the labelled rows of the global batch.

    Args:
      logits: [B, K]; gradient flows.
      labels: [B] integers below K; below 0 (-1, or PyTorch's -100) for a row without a label, which
        does not count.
      axis_name: mapped axis over which the batch is split.

    Returns:
      Scalar in nats; log K at chance level; 0 where no row is labelled.

    Raises:
      ValueError: shapes that disagree, labels that are not integers, `axis_name` not mapped.
    """
    sizes = check("b k", logits=logits)
    check_integer("b", sizes, labels=labels)
    check_axis(axis_name)
    return _of_labels([logits], labels, 1.0, axis_name)


def _of_labels(views: Views, labels: jax.Array, temperature: Any, axis_name: AxisName) -> jax.Array:
    """Mean over the labelled rows of all views."""
    labels = jnp.asarray(labels)
    counted = labels >= 0
    scale = 1 / jnp.asarray(temperature, wide_type(common_type(*jax.tree.leaves(views))))
    known = jnp.maximum(labels, 0).astype(jnp.int32)
    rows = jnp.stack([of_labels(*varying((x, known, scale))) for x in views])
    count = len(rows) * total(counted.sum(dtype=rows.dtype), axis_name)
    return total(jnp.where(counted[None], rows, 0).sum(), axis_name) / jnp.maximum(count, 1)
