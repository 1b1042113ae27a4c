"""Losses against clusters: ProtoNCE, the mixture of contrastive experts, SpCL's unified loss over
its memory."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, gather, mean, num_splits
from cl_jax.core.numerics import dots, log_softmax, log_sum_exp, prepared, softmax, unit, wide
from cl_jax.core.shapes import (
    check,
    check_axis,
    check_count,
    check_integer,
    check_key,
    check_positive,
    known_value,
)
from cl_jax.losses.contrast import allow, contrast, row_ids, same_id, side_of_tile
from cl_jax.losses.nce import queue_softmax


class Clustering(NamedTuple):
    """One clustering as ProtoNCE sees it in a step.

    prototypes: [C, D] unit centroids. concentration: [C] temperature of each. assignment: [B]
      cluster of each image of this device's batch. negatives: [r] clusters none of the global batch
      is in (`draw_prototypes`). A cluster outside of 0 to C - 1 makes the loss NaN.
    """

    prototypes: jax.Array
    concentration: jax.Array
    assignment: jax.Array
    negatives: jax.Array


@any_mesh
def draw_prototypes(
    key: jax.Array, assignment: jax.Array, num_prototypes: int, num_negatives: int
) -> jax.Array:
    """[r] clusters drawn uniformly without replacement from those not in `assignment`.

    Args:
      key: the step's key, the same on every device.
      assignment: [B] clusters of the *global* batch, gathered by the caller.
      num_prototypes: C.
      num_negatives: r, at most C - B.

    The authors leave out trailing clusters that are empty, and draw on each device by itself.

    Raises:
      ValueError: an assignment that is not integers [B], more negatives than clusters that are
        left.
    """
    check_key(key=key)
    sizes = check_integer("b", assignment=assignment)
    if not 0 < num_negatives <= num_prototypes - sizes["b"]:
        raise ValueError(
            f"num_negatives is {num_negatives}; expected 1 to {num_prototypes - sizes['b']}, the "
            f"{num_prototypes} prototypes less the batch of {sizes['b']}. Use more clusters or "
            f"fewer "
            "negatives."
        )
    chance = jax.random.uniform(key, (num_prototypes,)).at[assignment].set(-1.0)
    return lax.top_k(chance, num_negatives)[1]


@any_mesh
def proto_logits(
    q: jax.Array,
    clustering: Clustering,
    *,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> jax.Array:
    """[B, B_global + r]: q_i . prototype_j / concentration_j, for the clusters of the batch, then
    the negatives."""
    (q,) = prepared(normalise, q=q)
    return dots("bd,kd->bk", q, _keys(clustering, _columns(q, clustering, axis_name)))


@any_mesh
def proto_nce(
    q: jax.Array,
    clustering: Clustering,
    *,
    mask_duplicates: bool = False,
    block_size: int | None = None,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pulls each query to the prototype of its image's cluster, pushes it from the others' and from
    drawn ones.

    L = -1/B sum_i log softmax_j(q_i . c_j / phi_j)_i,
    columns j over the prototypes c of all B images, then the negatives; phi_j divides column j.

    Args:
      q: [B, D] queries, normalised here; gradient flows.
      clustering: see `Clustering`; no gradient. The clusters of all devices' images are columns on
        every device.
      mask_duplicates: False, as the authors: where two images share a cluster, each one's column is
        a negative of the other, with the logit of its positive. True leaves such columns out.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      block_size: the side of a tile, as in `contrast`.
      axis_name: device axis that splits the batch.

    Returns:
      Nats, mean over the global batch; `log(B + r)` at chance level.

    Raises:
      ValueError: shapes that disagree, an axis that is not mapped.

    Reference: Li et al. 2021, arXiv 2005.04966, equation 11, second term for one m.
    """
    (q,) = prepared(normalise, q=q)
    columns = _columns(q, clustering, axis_name)
    rows = {"id": row_ids(q.shape[0], axis_name), "cluster": clustering.assignment}
    cols = {"id": jnp.arange(columns.shape[0]), "cluster": columns}

    def duplicates(rows, cols):
        same = rows["cluster"][:, None] == cols["cluster"][None, :]
        return allow(same_id(rows, cols) | ~same)

    # Every device has all columns: the clusters of the batch are gathered as numbers.
    per_row = contrast(
        q,
        _keys(clustering, columns),
        scale=1.0,
        rows=rows,
        cols=cols,
        positive=same_id,
        log_weight=duplicates if mask_duplicates else None,
        block_size=block_size,
    ).gap
    return mean(jnp.mean(per_row), axis_name)


@any_mesh
def pcl(
    q: jax.Array,
    k: jax.Array,
    queue: jax.Array,
    clusterings: Sequence[Clustering],
    *,
    temperature: float,
    mask_duplicates: bool = False,
    block_size: int | None = None,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> jax.Array:
    """PCL: InfoNCE against a queue, plus the mean of ProtoNCE over the clusterings; alone while
    there are none.

    L = InfoNCE(q, k, queue; temperature) + 1/M sum_m proto_nce(q, clusterings[m])

    Args:
      q: [B, D] queries; k: [B, D] keys and queue: [K, D] without gradient; all normalised here.
      clusterings: M of them, of any sizes; empty during warm-up.
      temperature: of the instance term; the prototypes have their own (mean of each
        `concentration`, 0.2 in PCL).
      mask_duplicates, block_size, normalise, axis_name: see `proto_nce`.

    Returns:
      Nats, mean over the global batch; `log(1 + K) + mean_m log(B + r_m)` at chance level.

    Raises:
      ValueError: shapes that disagree, a temperature that is not above 0, an axis that is not
        mapped.

    Reference: Li et al. 2021, arXiv 2005.04966, equation 11.
    """
    loss = queue_softmax(
        q,
        k,
        queue,
        temperature=temperature,
        block_size=block_size,
        axis_name=axis_name,
        normalise=normalise,
    )
    if not clusterings:
        return loss
    terms = [
        proto_nce(
            q,
            c,
            mask_duplicates=mask_duplicates,
            block_size=block_size,
            axis_name=axis_name,
            normalise=normalise,
        )
        for c in clusterings
    ]
    return loss + sum(terms[1:], terms[0]) / len(terms)


def _columns(q, clustering, axis_name):
    sizes = check("b d", q=q)
    known = check("c d", {"d": sizes["d"]}, prototypes=clustering.prototypes)
    check("c", known, concentration=clustering.concentration)
    check_integer("b", sizes, assignment=clustering.assignment)
    check_integer("r", negatives=clustering.negatives)
    check_axis(axis_name)
    columns = jnp.concatenate([gather(clustering.assignment, axis_name), clustering.negatives])
    return jnp.where(columns < 0, known["c"], columns)  # out of range, and not the last cluster


def _keys(clustering, columns):
    """Prototypes over their own concentrations, in float32 at least: in bfloat16 the quotients
    would be rounded."""
    prototypes, concentration = (
        jnp.asarray(x).at[columns].get(mode="fill")  # NaN for a cluster that there is not
        for x in (clustering.prototypes, clustering.concentration)
    )
    return lax.stop_gradient(wide(prototypes) / wide(concentration)[:, None])


class MiceTerms(NamedTuple):
    """log_gate: [B, E] log p(expert | image). log_likelihood: [B, E] log of the positive's softmax
    under each expert.

    posterior: [B, E] p(expert | image, positive), the cluster assignment.
    """

    log_gate: jax.Array
    log_likelihood: jax.Array
    posterior: jax.Array


@any_mesh
def mice_logits(
    f: jax.Array,
    v: jax.Array,
    queue: jax.Array,
    experts: jax.Array,
    *,
    temperature: float,
    normalise: bool = True,
) -> jax.Array:
    """[E, B, 1 + K] similarities of `mice` under each expert over temperature, the positive
    first."""
    f, v = prepared(normalise, f=f, v=v)
    check_positive(temperature=temperature)
    query, v, queue = _mice_queries(f, v, queue, experts)
    positive, negative = dots("bed,bed->eb", query, v), dots("bed,ked->ebk", query, queue)
    return jnp.concatenate([positive[:, :, None], negative], axis=2) / temperature


def _mice_queries(f, v, queue, experts, released_gradient=False):
    """Queries [B, E, D]: the prototype has the student's keys, so the two similarities are
    one; and constants."""
    sizes = check("b e d", f=f, v=v)
    check("k e d", sizes, queue=queue)
    check("e d", sizes, experts=experts)
    prototypes = unit(experts, short_gradient=released_gradient)
    query = (wide(f) + prototypes[None]).astype(jnp.result_type(f, experts))
    return query, *lax.stop_gradient((v, queue))


@any_mesh
def mice_terms(
    f: jax.Array,
    v: jax.Array,
    g: jax.Array,
    queue: jax.Array,
    gates: jax.Array,
    experts: jax.Array,
    *,
    temperature: float,
    gate_temperature: float | None = None,
    released_gradient: bool = False,
    normalise: bool = True,
    block_size: int | None = None,
) -> MiceTerms:
    """What MiCE computes per image and expert; see `mice` for the arguments."""
    f, v, g = prepared(normalise, f=f, v=v, g=g)
    sizes = check("b e d", f=f)
    check("b d", sizes, g=g)
    check("e d", sizes, gates=gates)
    check_positive(temperature=temperature, gate_temperature=gate_temperature)
    query, v, queue = _mice_queries(f, v, queue, experts, released_gradient)
    kappa = temperature if gate_temperature is None else gate_temperature
    log_gate = log_softmax(dots("bd,ed->be", g, lax.stop_gradient(gates)) / kappa, axis=1)
    positive = dots("bed,bed->be", query, v) / temperature
    if block_size is None:  # all experts' logits are there at once
        logits = sizes["b"] * sizes["e"] * queue.shape[0] // num_splits(sizes["b"], f)
        block_size = side_of_tile(logits * positive.dtype.itemsize)

    def log_negatives(query, queue):
        return contrast(query, queue, scale=1 / temperature, block_size=block_size).lse

    negative = jax.vmap(log_negatives, in_axes=1, out_axes=1)(query, queue)
    log_likelihood = -jax.nn.softplus(negative - positive)
    return MiceTerms(log_gate, log_likelihood, softmax(log_gate + log_likelihood, axis=1))


@any_mesh
def mice_of_terms(terms: MiceTerms, *, axis_name: AxisName = None) -> jax.Array:
    """The loss of `mice` from its terms."""
    check_axis(axis_name)
    return -mean(jnp.mean(log_sum_exp(terms.log_gate + terms.log_likelihood, axis=1)), axis_name)


@any_mesh
def mice(
    f: jax.Array,
    v: jax.Array,
    g: jax.Array,
    queue: jax.Array,
    gates: jax.Array,
    experts: jax.Array,
    *,
    temperature: float,
    gate_temperature: float | None = None,
    released_gradient: bool = False,
    block_size: int | None = None,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> jax.Array:
    """Mixture of contrastive experts: a gate picks experts, each discriminates instances around its
    own prototype.

    p_ik = softmax_k(g_i . w_k / kappa),   s_ik(x) = (f_ik . x + n(mu_k) . x) / t,
    phi_ik = exp s_ik(v_ik) / (exp s_ik(v_ik) + sum_j exp s_ik(queue_jk)),
    L = -1/B sum_i log sum_k p_ik phi_ik

    This is the negative of the authors' evidence bound, which is tight at their posterior, in value
    and gradient.

    Args:
      f: [B, E, D] student embedding per expert; gradient flows.
      v: [B, E, D] teacher's; queue: [K, E, D] the teacher's past ones; no gradient.
      g: [B, D] gate embedding; gradient flows. f, v, g are normalised here.
      gates: [E, D] fixed gating prototypes w (`simplex`); no gradient.
      experts: [E, D] expert prototypes mu, normalised here with eps 1e-12: a zero row adds nothing;
        gradient flows.
      temperature: t, 1 in MiCE; gate_temperature: kappa, the same unless given.
      released_gradient: a prototype shorter than 1e-12 has zero gradient; True gives it the one of
        mu / 1e-12, as the authors' program does.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      block_size: the side of a tile of each expert, as in `contrast`.
      axis_name: device axis that splits the batch.

    Returns:
      Nats, mean over the global batch; `log(1 + K)` at chance level.

    Raises:
      ValueError: shapes that disagree, a temperature that is not above 0, an axis that is not
        mapped.

    Reference: Tsai et al. 2021, arXiv 2105.01899, equations 4 to 8.
    """
    terms = mice_terms(
        f,
        v,
        g,
        queue,
        gates,
        experts,
        temperature=temperature,
        gate_temperature=gate_temperature,
        released_gradient=released_gradient,
        block_size=block_size,
        normalise=normalise,
    )
    return mice_of_terms(terms, axis_name=axis_name)


@any_mesh
def expert_sums(posterior: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """MiCE's prototypes, batch by batch: ([E, D] sum of v over the images each expert wins, [B] the
    winners).

    Add the sums up over an epoch (and over devices), then `expert_prototypes`. posterior: [B, E];
    v: [B, E, D]; the first of equal experts wins.
    """
    sizes = check("b e", posterior=posterior)
    check("b e d", sizes, v=v)
    winner = jnp.argmax(posterior, axis=1)
    chosen = jnp.take_along_axis(v, winner[:, None, None], axis=1)[:, 0]
    return jax.ops.segment_sum(wide(chosen), winner, sizes["e"]), winner


@any_mesh
def expert_prototypes(sums: jax.Array) -> jax.Array:
    """[E, D] unit prototypes from an epoch's sums; an expert that won nothing gets the zero row
    (equation 13)."""
    check("e d", sums=sums)
    return unit(sums)


def simplex(num_classes: int, width: int) -> jax.Array:
    """[E, D] unit vectors at equal angles, cosine -1/(E - 1): MiCE's gating prototypes.

    Raises:
      ValueError: fewer than 2 classes, a width below num_classes - 1.
    """
    if num_classes < 2 or width < num_classes - 1:
        raise ValueError(
            f"num_classes is {num_classes} and width {width}; expected at least 2 classes and a "
            f"width of "
            "at least num_classes - 1, the dimension of the simplex."
        )
    j = jnp.arange(1, num_classes)[None, :]
    k = jnp.arange(num_classes)[:, None]
    # Columns of the Helmert matrix: an orthonormal basis of what is orthogonal to (1, ..., 1).
    basis = jnp.where(k < j, 1.0, jnp.where(k == j, -j, 0.0)) / jnp.sqrt(1.0 * j * (j + 1))
    return jnp.pad(
        basis * (num_classes / (num_classes - 1)) ** 0.5, ((0, 0), (0, width - num_classes + 1))
    )


@any_mesh
def label_logits(
    f: jax.Array,
    memory: jax.Array,
    labels: jax.Array,
    *,
    temperature: float,
    num_labels: int,
    normalise: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """([B, L] mean similarity of f to the rows of each label over temperature, [L] whether a label
    has rows).

    The mean of similarities is the similarity to the mean row, so no [B, N] is made. Labels without
    rows read 0."""
    (f,) = prepared(normalise, f=f)
    sizes = check("b d", f=f)
    check_integer("n", check("n d", sizes, memory=memory), labels=labels)
    check_positive(temperature=temperature)
    check_count(num_labels=num_labels)
    rows = wide(lax.stop_gradient(memory))
    count = jax.ops.segment_sum(jnp.ones(labels.shape, rows.dtype), labels, num_labels)
    centroids = jax.ops.segment_sum(rows, labels, num_labels) / jnp.maximum(count, 1)[:, None]
    return dots("bd,ld->bl", f, centroids) / temperature, count > 0


@any_mesh
def label_log_probabilities(
    logits: jax.Array, present: jax.Array, *, eps: float = 1e-6
) -> jax.Array:
    """[B, L] log of exp(logit) / (sum over the labels present + eps); -inf where a label has no
    rows."""
    logits = jnp.where(present[None, :], logits, -jnp.inf)
    total = log_sum_exp(logits, axis=1, keepdims=True)
    return logits - (total if known_value(eps) == 0 else jnp.logaddexp(total, jnp.log(eps)))


@any_mesh
def spcl(
    f: jax.Array,
    memory: jax.Array,
    labels: jax.Array,
    ids: jax.Array,
    *,
    temperature: float,
    num_labels: int,
    eps: float = 1e-6,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> jax.Array:
    """SpCL: pulls an image to the mean of the stored rows of its label, pushes it from those of
    every other label.

    a_ic = mean over {v: labels_v = c} of f_i . V_v / temperature,
    p_ic = exp a_ic / (sum_{c' with rows} exp a_ic' + eps),
    L = -1/B sum_i log(p_{i, labels[ids_i]} + eps)

    Source classes, clusters and lone instances are all labels. The mean row is not normalised.

    Args:
      f: [B, D] unit features; gradient flows.
      memory: [N, D] rows V before this step's update; no gradient.
      labels: [N] label of each row, below `num_labels`; some may be empty. Rows below 0 have no
        label: they are in no mean, and count as 0.
      ids: [B] row of each image (its class, for a source image); an image below 0 or from N on
        counts as 0.
      temperature: 0.05 in SpCL.
      num_labels: L, static; any upper bound serves, N at most.
      eps: the authors' guards; they cap the loss at 13.8. 0 leaves them out.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: device axis that splits the batch.

    Returns:
      Nats, mean over the global batch; at chance level the log of the number of labels with rows.

    Raises:
      ValueError: shapes that disagree, a temperature that is not above 0, an axis that is not
        mapped.

    Reference: Ge et al. 2020, arXiv 2006.02713, equation 1; the epsilons are in the code alone.
    """
    check_integer("b", check("b d", f=f), ids=ids)
    check_axis(axis_name)
    logits, present = label_logits(
        f, memory, labels, temperature=temperature, num_labels=num_labels, normalise=normalise
    )
    log_p = label_log_probabilities(logits, present, eps=eps)
    inside = (ids >= 0) & (ids < len(memory))
    label = jnp.where(inside, jnp.asarray(labels)[jnp.where(inside, ids, 0)], -1)
    own = jnp.take_along_axis(log_p, jnp.maximum(label, 0)[:, None], axis=1)[:, 0]
    without = known_value(eps) == 0
    rows = own if without else jnp.logaddexp(own, jnp.log(jnp.asarray(eps, own.dtype)))
    return -mean(jnp.mean(jnp.where(label >= 0, rows, 0)), axis_name)
