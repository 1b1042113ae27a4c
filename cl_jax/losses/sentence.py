"""SimCSE: sentences against their own second pass through dropout, or against entailments and
contradictions."""

import jax
import jax.numpy as jnp

from cl_jax.core.axis import AxisName, any_mesh, gather_own, mean
from cl_jax.core.numerics import dots, prepared, wide
from cl_jax.core.shapes import check, check_axis, check_positive
from cl_jax.losses.contrast import contrast, row_ids, same_id


@any_mesh
def simcse(
    z_a: jax.Array,
    z_b: jax.Array,
    hard_negatives: jax.Array | None = None,
    *,
    temperature: float,
    hard_negative_weight: float = 0.0,
    normalise: bool = True,
    axis_name: AxisName = None,
    gather_with_grad: bool = True,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls a sentence to its positive, pushes it from the positives and the hard negatives of all
    sentences.

    s(x, y) = cos(x, y) / temperature;  one direction, rows z_a against columns z_b and
      hard_negatives:
    L = -1/B sum_i log( exp(s(a_i, b_i))
                        / sum_j [ exp(s(a_i, b_j)) + exp(w [i=j]) exp(s(a_i, h_j)) ] )

    Args:
      z_a: [B, D] first outputs (unsupervised) or premises; normalised here, with norms below 1e-8
        counted as 1e-8.
      z_b: [B, D] second outputs of the same sentences under another dropout mask, or entailments.
      hard_negatives: [B, D] contradictions, the supervised form; None for the unsupervised.
        Gradient flows to all.
      temperature: 0.05 in the paper.
      hard_negative_weight: w = log(alpha), on a sentence's own hard negative only; 0 is alpha = 1.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: device axis that splits the batch; columns come from all devices.
      gather_with_grad: False is the authors' exchange: every device computes the loss of the whole
        batch with the rows of the others constant, so that the mean over devices of the gradients
        is 1/devices of the right one.
      plan, block_size: how devices share keys and the side of a tile, as in `contrast`.

    Returns:
      Scalar in nats, mean over the global batch: log B, or log 2B with hard negatives at w = 0,
      where all similarities are equal.

    Raises:
      ValueError: shapes that disagree, temperature <= 0, an axis that is not mapped.

    Reference: Gao et al. 2021, arXiv 2104.08821, equation 1 and the weighted form of equation 5 in
      its appendix.
    """
    sizes = check("b d", z_a=z_a, z_b=z_b)
    if hard_negatives is not None:
        check("b d", sizes, hard_negatives=hard_negatives)
    check_positive(temperature=temperature)
    check_axis(axis_name)
    a, b = prepared(normalise, eps=1e-8, z_a=z_a, z_b=z_b)
    h = None
    if hard_negatives is not None:
        (h,) = prepared(normalise, eps=1e-8, hard_negatives=hard_negatives)
    if axis_name is not None and not gather_with_grad:
        a, b, h = jax.tree.map(lambda x: gather_own(x, axis_name), (a, b, h))
        axis_name = None
    ids = row_ids(a.shape[0], axis_name)
    bias = jnp.broadcast_to(jnp.asarray(hard_negative_weight, wide(a).dtype), ids.shape)
    keys = b if h is None else jnp.concatenate([b, h])
    cols = {
        "id": ids if h is None else jnp.tile(ids, 2),
        "hard": jnp.arange(keys.shape[0]) >= b.shape[0],
    }

    def positive(rows, cols):
        return same_id(rows, cols) & ~cols["hard"][None]

    def weight(rows, cols):
        return jnp.where(same_id(rows, cols) & cols["hard"][None], rows["bias"][:, None], 0.0)

    out = contrast(
        a,
        keys,
        scale=1 / temperature,
        rows={"id": ids, "bias": bias},
        cols=cols,
        positive=positive,
        log_weight=None if h is None else weight,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )
    return mean(jnp.mean(out.gap), axis_name)


@any_mesh
def simcse_logits(
    z_a: jax.Array,
    z_b: jax.Array,
    hard_negatives: jax.Array | None = None,
    *,
    temperature: float,
    hard_negative_weight: float = 0.0,
    normalise: bool = True,
) -> jax.Array:
    """[B, B] or, with hard negatives, [B, 2B] logits of `simcse` on one device; row i is right at
    column i."""
    sizes = check("b d", z_a=z_a, z_b=z_b)
    check_positive(temperature=temperature)
    a, b = prepared(normalise, eps=1e-8, z_a=z_a, z_b=z_b)
    logits = dots("bd,kd->bk", a, b) / temperature
    if hard_negatives is None:
        return logits
    check("b d", sizes, hard_negatives=hard_negatives)
    (h,) = prepared(normalise, eps=1e-8, hard_negatives=hard_negatives)
    extra = dots("bd,kd->bk", a, h) / temperature
    return jnp.concatenate(
        [logits, extra + hard_negative_weight * jnp.eye(sizes["b"], dtype=extra.dtype)], axis=1
    )
