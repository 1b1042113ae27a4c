"""Losses that predict an assignment to prototypes: SwAV with its Sinkhorn codes, DeepCluster v2."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, axis_size, mean, total
from cl_jax.core.numerics import at_least_one, capped, dots, log_softmax, log_sum_exp, softmax, wide
from cl_jax.core.shapes import check, check_axis, check_integer, check_positive
from cl_jax.losses._owners import check_owners


@any_mesh
def swav(
    scores: jax.Array,
    codes: jax.Array,
    *,
    temperature: float,
    assigned: Sequence[int] | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pulls the prototype distribution of every view to the codes computed from every *other* view
    of the example.

    loss = 1/(A (V - 1)) sum_a sum_(v != assigned_a) mean_i  -<codes_a, log softmax(scores_v /
    temperature)>

    Args:
      scores: [V, B, K] dot products of unit features with unit prototypes, all crops; gradient
        flows.
      codes: [A, B, K] from `swav_codes` or `sinkhorn`; no gradient.
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
    check("a b k", check("v b k", scores=scores), codes=codes)
    check_positive(temperature=temperature)
    check_axis(axis_name)
    owners = range(codes.shape[0]) if assigned is None else assigned
    return mean(_swapped(scores, lax.stop_gradient(wide(codes)), temperature, owners), axis_name)


def _swapped(
    scores: jax.Array, codes: jax.Array, temperature: float, owners: Sequence[int]
) -> jax.Array:
    """`swapped_cross_entropy` of log softmax(scores / temperature), which is not written out: the
    codes that a view predicts are summed first, and -<q, log p> = sum q log sum exp x - <q, x>."""
    views, owners = scores.shape[0], check_owners(scores.shape[0], codes.shape[0], owners)
    terms = []
    for view in range(views):
        others = [codes[a] for a, owner in enumerate(owners) if owner != view]
        if others:
            q, x = functools.reduce(jnp.add, others), wide(scores[view])
            x = capped(x - lax.stop_gradient(x.max(axis=1, keepdims=True))) / temperature
            # The exponentials, which the gradient reads too, are summed as a product.
            ones = jnp.ones(x.shape[1:], x.dtype)
            log_sum = jnp.log(at_least_one(dots("bk,k->b", jnp.exp(x), ones)))
            terms.append(jnp.sum(q * (log_sum[:, None] - x), axis=1).sum())
    return functools.reduce(jnp.add, terms) / (len(owners) * (views - 1) * scores.shape[1])


@any_mesh
def swav_codes(
    scores: jax.Array,
    queue: jax.Array | None = None,
    prototypes: jax.Array | None = None,
    filled: jax.Array | None = None,
    *,
    epsilon: float,
    iterations: int,
    queue_per_device: bool = False,
    axis_name: AxisName = None,
) -> jax.Array:
    """Sinkhorn codes of each crop that has them, balanced together with the crop's queue of earlier
    features.

    Args:
      scores: [A, B, K] dot products with the prototypes, of the crops that codes are computed from;
        no gradient.
      queue: [A, L, D] earlier unit features of the same crops (`cl_jax.memory.crop_queue`), not
        holding this batch yet.
      prototypes: [K, D], today's: earlier features are scored with them. Needed with a queue.
      filled: [A] booleans, `crop_queue.filled(queue)`: crops whose queue takes part. Needed with a
        queue.
      epsilon, iterations, axis_name: as `sinkhorn`.
      queue_per_device: see `sinkhorn`; False for a queue of the global batch that is the same on
        all devices.

    Returns:
      [A, B, K], at least float32; each row sums to 1. No gradient.

    Raises:
      ValueError: shapes that disagree, a queue without prototypes or `filled`, and as `sinkhorn`.

    Reference: Caron et al., NeurIPS 2020, section 4.1 (queue).
    """
    sizes = check("a b k", scores=scores)
    if queue is None:
        # One after the other: of a `lax.cond`, `jax.vmap` computes both sides.
        return jnp.stack(
            [
                sinkhorn(s, epsilon=epsilon, iterations=iterations, axis_name=axis_name)
                for s in scores
            ]
        )
    if prototypes is None or filled is None:
        raise ValueError(
            "A queue needs the prototypes to score it with, and filled=crop_queue.filled(queue) "
            "to say "
            "when to use it."
        )
    check("k d", check("a l d", sizes, queue=queue), prototypes=prototypes)
    queued = dots("ald,kd->alk", lax.stop_gradient(queue), lax.stop_gradient(prototypes))

    def codes(scores, queued, use):
        return sinkhorn(
            scores,
            queued,
            epsilon=epsilon,
            iterations=iterations,
            use_queued=use,
            queued_per_device=queue_per_device,
            axis_name=axis_name,
        )

    use = jnp.broadcast_to(filled, scores.shape[:1])
    return jnp.stack([codes(*crop) for crop in zip(scores, queued, use)])


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
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}; expected 0 or more. SwAV uses 3.")
    scores = lax.stop_gradient(wide(scores))
    rows = sizes["b"]
    log_weight = jnp.zeros((rows,), scores.dtype)
    if valid is not None:
        check_integer("b", sizes, valid=jnp.asarray(valid, jnp.int32))
        log_weight = jnp.where(valid, log_weight, -jnp.inf)
    if queued is not None:
        check("l k", sizes, queued=queued)
        scores = jnp.concatenate([lax.stop_gradient(wide(queued)).astype(scores.dtype), scores])
        # The same rows on n devices, summed over devices, count once when each has weight 1/n.
        share = 1.0 if queued_per_device else 1.0 / axis_size(axis_name)
        log_queued = jnp.where(use_queued, jnp.log(jnp.asarray(share, scores.dtype)), -jnp.inf)
        log_weight = jnp.concatenate([jnp.broadcast_to(log_queued, queued.shape[:1]), log_weight])

    # Each row is centred on its own maximum before the division: that keeps float32's digits where
    # the mass is.
    top = scores.max(axis=1)
    highest = _most(top.max(), axis_name)
    kernel = (scores - top[:, None]) / epsilon
    example = (top - highest) / epsilon
    if iterations == 0:
        count = total(jnp.exp(log_weight).sum(), axis_name)
        mass = total(jnp.exp(kernel + (example + log_weight)[:, None]).sum(), axis_name)
        return (jnp.exp(kernel + example[:, None]) * (count / mass))[-rows:]
    # By factors: one exponential of the matrix, and two products with it for each iteration.
    powers, weight, factor = jnp.exp(kernel), jnp.exp(log_weight), jnp.exp(example)
    largest = jnp.ones((), kernel.dtype)
    for _ in range(iterations):
        column = 1 / total(dots("b,bk->k", factor * weight, powers), axis_name)
        largest = jnp.maximum(largest, jnp.maximum(column.max(), column.max() / column.min()))
        column = column / column.max()
        factor = 1 / dots("bk,k->b", powers, column)
        largest = jnp.maximum(largest, factor.max())
    # What underflowed is then less than exp(-45) of a row's sum and of a column's.
    held = _most(jnp.where(largest <= math.exp(RANGE), 0, 1), axis_name) == 0
    in_logarithms = functools.partial(
        _by_logarithms, iterations=iterations, rows=rows, axis_name=axis_name
    )
    return lax.cond(
        held,
        lambda factors, _: factors[0] * factors[1][None] * factors[2][:, None],
        lambda _, given: in_logarithms((given[0] - top[:, None]) / epsilon, *given[1:]),
        *((powers[-rows:], column, factor[-rows:]), (scores, example, log_weight)),
    )


RANGE = 42.0  # of the factors' logarithms, for which float32 holds all that matters of exp(kernel)


def _by_logarithms(
    kernel: jax.Array,
    example: jax.Array,
    log_weight: jax.Array,
    *,
    iterations: int,
    rows: int,
    axis_name: AxisName,
) -> jax.Array:
    """Sinkhorn's iterations for scores of any range."""
    for _ in range(iterations):
        prototype = -_log_sum_rows(kernel + (example + log_weight)[:, None], axis_name)
        prototype = prototype - prototype.mean()
        example = -log_sum_exp(kernel + prototype[None], axis=1)
    return softmax((kernel + prototype[None])[-rows:], axis=1)


def _most(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """The largest value over devices."""
    return x if axis_name is None else lax.pmax(x, axis_name)


def _log_sum_rows(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """[B, K] -> [K]: logsumexp over the rows of all devices."""
    top = _most(x.max(axis=0), axis_name)
    powers = total(jnp.exp(capped(x - top[None])).sum(axis=0), axis_name)
    return top + jnp.log(at_least_one(powers))


@any_mesh
def deepcluster_v2(
    scores: Sequence[jax.Array],
    assignments: Sequence[jax.Array] | jax.Array,
    *,
    temperature: float,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pulls every crop to the centroid its example was assigned to, for each of several
    clusterings.

    loss = mean_h cross_entropy(scores_h / temperature, assignments_h), the same assignment for all
    crops of an example

    Args:
      scores: H arrays [V, B, K_h]: dot products of unit features with the centroids of clustering
        h; gradient flows.
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
    if len(scores) != len(assignments) or not len(scores):
        raise ValueError(
            f"There are scores of {len(scores)} clusterings and {len(assignments)} assignments; "
            f"expected "
            "one array of assignments for each array of scores."
        )
    losses = []
    for head, labels in zip(scores, assignments):
        sizes = check("v b k", scores=head)
        check_integer("b", sizes, assignments=labels)
        logits = (wide(head) / temperature).reshape(-1, sizes["k"])
        losses.append(cross_entropy(logits, jnp.tile(labels, sizes["v"]), axis_name=axis_name))
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
    labels = jnp.asarray(labels)
    counted = labels >= 0
    log_p = log_softmax(logits)
    rows = -jnp.take_along_axis(log_p, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
    count = total(counted.sum(dtype=rows.dtype), axis_name)
    return total(jnp.where(counted, rows, 0).sum(), axis_name) / jnp.maximum(count, 1)
