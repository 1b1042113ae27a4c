"""Graphs: GraphCL's loss, and InfoGraph's local-global Jensen-Shannon form with HCL's hard
negatives."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, axis_size, first_row, gather, mean, total
from cl_jax.core.numerics import dots, prepared, softmax, wide
from cl_jax.core.shapes import (
    check,
    check_axis,
    check_integer,
    check_positive,
    check_scalar,
    known_value,
)
from cl_jax.losses.contrast import contrast, not_self, row_ids, same_id


@any_mesh
def graphcl(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    temperature: float,
    include_positive: bool = False,
    symmetric: bool = False,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls the two views of a graph together, pushes its first view from the second views of the
    other graphs.

    s_ij = cos(a_i, b_j) / temperature,   L = 1/B sum_i [ -s_ii + log sum_{j != i} exp(s_ij) ]

    Args:
      z_a, z_b: [B, D], normalised here (a zero row stays zero; NaN in the authors' code). Gradient
        flows to both.
      temperature: 0.2 (unsupervised), 0.5 (semi-supervised, adversarial), 0.1 (transfer) in the
        authors' code.
      include_positive: True sums over j = i too: ordinary InfoNCE.
      symmetric: True averages with the direction from z_b to z_a; no released version does.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: device axis that splits the batch; columns come from all devices.
      plan, block_size: how devices share keys and the side of a tile, as in `contrast`.

    Returns:
      Scalar in nats, mean over the global batch; log(B - 1) where all similarities are equal, below
      0 where the positive leads. A batch of one graph has no negatives and gives 0.

    Raises:
      ValueError: shapes that disagree, temperature <= 0, an axis that is not mapped.

    Reference: You et al. 2020, arXiv 2010.13902, equation 3, whose sum leaves the positive out as
      the code does.
    """
    rows = graphcl_rows(
        z_a,
        z_b,
        temperature=temperature,
        include_positive=include_positive,
        symmetric=symmetric,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
        normalise=normalise,
    )
    return mean(jnp.mean(rows), axis_name)


@any_mesh
def graphcl_rows(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    temperature: float,
    include_positive: bool = False,
    symmetric: bool = False,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """[1, B] `graphcl` of each of this device's rows; [2, B] where symmetric, the second from z_b
    to z_a."""
    a, b = prepared(normalise, z_a=z_a, z_b=z_b)
    sizes = check("b d", z_a=z_a, z_b=z_b)
    check_positive(temperature=temperature)
    check_axis(axis_name)
    ids = {"id": row_ids(sizes["b"], axis_name)}
    alone = sizes["b"] == 1 and axis_size(axis_name) == 1

    def direction(queries, keys):
        if alone:
            return 0.0 * wide(jnp.sum(queries, axis=1))
        return contrast(
            queries,
            keys,
            scale=1 / temperature,
            rows=ids,
            cols=ids,
            positive=same_id,
            log_weight=None if include_positive else not_self,
            axis_name=axis_name,
            plan=plan,
            block_size=block_size,
        ).gap

    return jnp.stack([direction(a, b), direction(b, a)] if symmetric else [direction(a, b)])


@any_mesh
def cosine_logits(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    temperature: float,
    normalise: bool = True,
) -> jax.Array:
    """[B, B] s_ij of `graphcl` on one device."""
    a, b = prepared(normalise, z_a=z_a, z_b=z_b)
    check("b d", z_a=z_a, z_b=z_b)
    check_positive(temperature=temperature)
    return dots("bd,kd->bk", a, b) / temperature


class Expectations(NamedTuple):
    """positive: E+, mean over nodes. negative: E-, mean over nodes and the other graphs. The loss
    is E- - E+."""

    positive: jax.Array
    negative: jax.Array


@any_mesh
def infograph(
    local: jax.Array,
    summary: jax.Array,
    graph_id: jax.Array,
    *,
    hard: bool = False,
    beta: float = 1.0,
    tau_plus: float = 0.5,
    upweight_hard: bool = False,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pulls nodes to the summary of their graph and pushes them from the others', by a
    Jensen-Shannon bound.

    With x_ig = local_i . summary_g, positive and negative entries each in a full [n, G] matrix
    whose other entries are 0 and stay in every sum, sp = softplus:
    standard: E+ = log 2 - sp(-x),  E- = sp(-x) + x - log 2
    hard:     E+ = log 2 - sp(-x) - tau_plus / (1 - tau_plus) (sp(-x) + x)
              E- = w (sp(-x) + x) / (1 - tau_plus) - log 2,  w = exp(beta u) / mean_g exp(beta u),
              u = -2 x / max(max x, |min x|);  at beta 0, E- = (sp(-x) + x - log 2) / (1 - tau_plus)
    L = sum E- / (n (G - 1)) - sum E+ / n

    Args:
      local: [n, D] node features; gradient flows, through the extrema of the weights too.
      summary: [G, D] graph features; gradient flows.
      graph_id: [n] integers, the graph of each node, counted on this device; nodes outside 0..G-1
        are padding.
      hard: the hard form.
      beta, tau_plus: of the hard form; 0.5 is the authors' tau_plus.
      upweight_hard: u = +2 x / ..., the sign printed in the paper, which weights similar negatives
        up; the authors' code has the minus sign and weights them down.
      axis_name: device axis that splits the graphs, each with its nodes; summaries come from all
        devices.

    Returns:
      Scalar in nats; 0 for the standard form where every x is 0. A batch of one graph has no
      negatives: E- is 0.

    Raises:
      ValueError: shapes that disagree, beta < 0, tau_plus outside [0, 1), an axis that is not
        mapped.

    Reference: Robinson et al. 2021, arXiv 2010.04592, figure 14, and the authors' graph code; Sun
      et al. 2020, arXiv 1908.01000 (InfoGraph) for the standard form.
    """
    expected = infograph_expectations(
        local,
        summary,
        graph_id,
        hard=hard,
        beta=beta,
        tau_plus=tau_plus,
        upweight_hard=upweight_hard,
        axis_name=axis_name,
    )
    return expected.negative - expected.positive


@any_mesh
def infograph_expectations(
    local: jax.Array,
    summary: jax.Array,
    graph_id: jax.Array,
    *,
    hard: bool = False,
    beta: float = 1.0,
    tau_plus: float = 0.5,
    upweight_hard: bool = False,
    axis_name: AxisName = None,
) -> Expectations:
    """The two terms of `infograph`.

    Raises:
      ValueError: as `infograph`.
    """
    sizes = check("n d", local=local)
    sizes = check("g d", sizes, summary=summary)
    check_integer("n", sizes, graph_id=graph_id)
    check_axis(axis_name)
    check_scalar(beta=beta, tau_plus=tau_plus)
    given_beta, given_tau = known_value(beta), known_value(tau_plus)
    if given_beta is not None and given_beta < 0:
        raise ValueError(
            f"beta is {beta}; expected at least 0. upweight_hard=True turns the sign of the "
            f"weights."
        )
    if given_tau is not None and not 0 <= given_tau < 1:
        raise ValueError(f"tau_plus is {tau_plus}; expected a probability, at least 0 and below 1.")
    summaries = gather(summary, axis_name)
    graphs = summaries.shape[0]
    first = first_row(sizes["g"], axis_name)
    real = (graph_id >= 0) & (graph_id < sizes["g"])
    own = (first + graph_id)[:, None] == jnp.arange(graphs)[None]
    x = wide(dots("nd,gd->ng", local, summaries))
    nodes = total(jnp.sum(real).astype(x.dtype), axis_name)
    positive = jnp.where(real[:, None] & own, x, 0.0)
    negative = jnp.where(real[:, None] & ~own, x, 0.0)
    e_positive, e_negative = -_softplus_less_log2(-positive), _softplus_less_log2(negative)
    if hard:
        own_class = tau_plus / (1 - tau_plus)
        e_positive -= own_class * jax.nn.softplus(positive)
        if given_beta == 0:
            e_negative = e_negative / (1 - tau_plus)
        else:
            scale = _extreme(jnp.maximum(jnp.max(negative), jnp.abs(jnp.min(negative))), axis_name)
            sign = 2.0 if upweight_hard else -2.0
            # The extreme entry by itself is a constant, +1 or -1, whose gradient by the entry and
            # by the scale are equal and large; left in, their rounding is left over.
            extreme = jnp.abs(negative) == scale
            alone = total(jnp.sum(extreme, dtype=jnp.int32), axis_name) == 1
            ratio = negative / jnp.where(scale > 0, scale, 1.0)
            u = sign * beta * jnp.where(extreme & alone, jnp.sign(negative), ratio)
            # w sp / (1 - tau) - log 2 with the log 2 of sp taken out of the product: the weights of
            # a row add up to the number of its entries, whatever they are. The value at the largest
            # weight is taken out too: where that weight is near 1, the gradient through the weights
            # would be the rounding of differences of equal numbers.
            top = jnp.argmax(u, axis=1)[:, None]
            leading = jnp.take_along_axis(e_negative, top, axis=1)
            rest = jnp.where(jnp.arange(graphs)[None] == top, 0.0, e_negative - leading)
            e_negative = leading + graphs * softmax(u, axis=1) * rest
            e_negative = e_negative / (1 - tau_plus) + own_class * math.log(2)
    pairs = nodes * max(graphs - 1, 1)

    def expectation(e, count):
        return total(jnp.sum(jnp.where(real[:, None], e, 0.0)), axis_name) / jnp.maximum(count, 1)

    return Expectations(
        expectation(e_positive, nodes),
        expectation(e_negative, pairs) if graphs > 1 else 0.0 * jnp.sum(x),
    )


def _softplus_less_log2(x: jax.Array) -> jax.Array:
    """softplus(x) - log 2, exact near 0, where the difference would keep no digits."""
    near = jnp.abs(x) < 2
    y = jnp.where(near, x, 0.0)
    close = y / 2 + jnp.log1p(2 * jnp.sinh(y / 4) ** 2)
    return jnp.where(near, close, jax.nn.softplus(x) - math.log(2))


def _extreme(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Largest over devices; pmax has no gradient."""
    return x if axis_name is None else jnp.max(lax.all_gather(x, axis_name))
