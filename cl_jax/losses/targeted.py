"""TSC: supervised contrast with a few positives, each class also pulled to a target of its own on
the sphere."""

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, mean, total
from cl_jax.core.numerics import dots, prepared, unit, wide
from cl_jax.core.shapes import check, check_axis, check_integer, check_positive
from cl_jax.losses.contrast import contrast
from cl_jax.losses.positives import same_class


@any_mesh
def tsc(
    q: jax.Array,
    k: jax.Array,
    queue: jax.Array,
    labels: jax.Array,
    queue_labels: jax.Array,
    targets: jax.Array,
    assignment: jax.Array,
    *,
    temperature: float,
    target_weight: float = 0.2,
    selected: jax.Array | None = None,
    normalise: bool = True,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> jax.Array:
    """Pulls a query to its key, to a few queue entries of its class, and to the target its class is
    assigned to.

    With the logits s_i = (q_i . k_i, q_i . queue_1 ..K, q_i . targets_1 ..C) / temperature,
    S_i = {key} and the selected, g_i the target of the query's class, |P_i| = |S_i| + 1:
    L = -1/B sum_i 1/|P_i| [ sum_{p in S_i} log softmax(s_i)_p
                             + target_weight log softmax(s_i)_{g_i} ]

    Targets spread evenly over the sphere keep classes apart that have few examples, where `kcl`
    alone lets them move together.

    Args:
      q: [B, D] unit queries; gradient flows.
      k: [B, D] unit keys; queue: [K, D] unit rows; constants.
      labels: [B] integers below C; queue_labels: [K] integers. Below 0 means no label: such a
        query has its key as the only positive, and no target. From C on the loss is NaN.
      targets: [C, D] unit vectors, constants: `simplex(C, D)` for C <= D + 1, else points of low
        `uniformity`.
      assignment: [C] integers, the target of each class. The authors match classes to targets
        again in every step, by `scipy.optimize.linear_sum_assignment(centroids @ targets.T,
        maximize=True)[1]` with `tsc_centroids`.
      temperature: 0.07 in the authors' code.
      target_weight: 0.2 there; 0 leaves the targets as negatives only.
      selected: [B, K], nonzero at the positives, of those with the query's label
        (`draw_positives`); None takes all.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: device axis that splits the batch; queue, targets and assignment are the same on
        every device.
      block_size: the side of a tile, as in `contrast`.

    Returns:
      Scalar in nats, mean over the global batch. The count |P_i| includes the target whatever its
      weight, so that (|S_i| + target_weight) / |P_i| log(1 + K + C) at chance level.

    Raises:
      ValueError: shapes that disagree, temperature <= 0, an axis that is not mapped.

    Reference: Li et al. 2022, "Targeted supervised contrastive learning for long-tailed
      recognition", arXiv 2111.13998, with the weights of the authors' code (its separate targets,
      one for each class). The first half of their epochs is `kcl`.
    """
    q, k = prepared(normalise, q=q, k=k)
    sizes = check("b d", q=q, k=k)
    sizes = check("k d", sizes, queue=queue)
    sizes = check("c d", sizes, targets=targets)
    check_integer("b", sizes, labels=labels)
    check_integer("k", sizes, queue_labels=queue_labels)
    check_integer("c", sizes, assignment=assignment)
    check_positive(temperature=temperature)
    check_axis(axis_name)
    if selected is not None and selected.shape != (sizes["b"], sizes["k"]):
        raise ValueError(
            f"selected has shape {selected.shape}; expected [B, K] = {(sizes['b'], sizes['k'])}."
        )
    k, queue, targets = lax.stop_gradient((k, queue, targets))
    chosen = same_class(labels, queue_labels)
    if selected is not None:
        chosen &= selected != 0

    own = dots("bd,bd->b", q, k) / temperature
    labels = jnp.asarray(labels)
    labelled = (labels >= 0).astype(own.dtype)
    picked = 1 + jnp.sum(chosen, axis=1).astype(own.dtype)  # the key and the selected
    count = picked + labelled
    nowhere = -1 - sizes["k"]  # the column of no target
    own_target = jnp.asarray(assignment)[jnp.clip(labels, 0, sizes["c"] - 1)]
    there = (labels < sizes["c"]) & (own_target >= 0) & (own_target < sizes["c"])
    target = jnp.where((labels >= 0) & there, own_target, nowhere)
    rows = {"chosen": chosen, "target": target, "share": 1 / count}
    cols = {"entry": jnp.arange(sizes["k"] + sizes["c"])}

    def positive(rows, cols):
        entry = cols["entry"]
        picked = (
            rows["chosen"][:, jnp.minimum(entry, sizes["k"] - 1)] & (entry < sizes["k"])[None, :]
        )
        target = rows["target"][:, None] == (entry - sizes["k"])[None, :]
        share = rows["share"][:, None]
        return share * (picked.astype(share.dtype) + target_weight * target.astype(share.dtype))

    keys = jnp.concatenate([queue, jnp.asarray(targets, jnp.result_type(queue))])
    out = contrast(
        q,
        keys,
        scale=1 / temperature,
        rows=rows,
        cols=cols,
        positive=positive,
        block_size=block_size,
    )
    weight = (picked + target_weight * labelled) / count
    # log of all logits' sum = own + softplus(others - own), which keeps the digits where the key
    # leads.
    loss = weight * jax.nn.softplus(out.lse - own) + (weight - 1 / count) * own - out.pos
    return mean(jnp.mean(jnp.where((labels < 0) | there, loss, jnp.nan)), axis_name)


@any_mesh
def tsc_centroids(
    centroids: jax.Array,
    features: jax.Array,
    labels: jax.Array,
    *,
    momentum: float = 0.9,
    axis_name: AxisName = None,
) -> jax.Array:
    """[C, D] class centroids moved towards this batch:
    c <- n(momentum c + (1 - momentum) n(mean feature of the class)).

    Args:
      centroids: [C, D] unit vectors, at first random directions.
      features: [B, D] unit queries of this device. No gradient flows.
      labels: [B] integers below C; from C on all centroids are NaN. Rows below 0 have no label and
        do not count. A class that is not in the global batch keeps its centroid.
      momentum: 0.9 in the authors' code.
      axis_name: device axis that splits the batch.

    Raises:
      ValueError: shapes that disagree, labels that are not integers, an axis that is not mapped.

    Reference: the authors' code of Li et al. 2022, arXiv 2111.13998.
    """
    sizes = check("c d", centroids=centroids)
    check_integer("b", check("b d", sizes, features=features), labels=labels)
    check_axis(axis_name)
    sums = total(
        jax.ops.segment_sum(wide(lax.stop_gradient(features)), labels, sizes["c"]), axis_name
    )
    present = (
        total(jax.ops.segment_sum(jnp.ones(labels.shape, jnp.int32), labels, sizes["c"]), axis_name)
        > 0
    )
    beyond = total(jnp.sum(labels >= sizes["c"], dtype=jnp.int32), axis_name) > 0
    moved = unit(momentum * wide(centroids) + (1 - momentum) * unit(sums))
    moved = jnp.where(present[:, None], moved, wide(centroids))
    return jnp.where(beyond, jnp.nan, moved).astype(jnp.result_type(centroids))
