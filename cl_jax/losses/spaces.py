"""Where a contrast is placed: one embedding space per augmentation (LooC), one loss per stretch of
layers (LoCo)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, mean
from cl_jax.core.numerics import dots, log_sum_exp, prepared
from cl_jax.core.shapes import check, check_axis, check_positive
from cl_jax.losses.contrast import contrast


@any_mesh
def leave_one_out(
    q: jax.Array,
    k: jax.Array,
    queues: jax.Array,
    *,
    temperature: float,
    normalise: bool = True,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> jax.Array:
    """In space 0 pulls a query to a key that differs in every augmentation; in space h, to the key
    that shares h.

    loss = 1/H sum_h mean_i [ log( sum_(j in J_h) exp(s_hij)
                                   + sum_n exp(q_hi . queues_hn / temperature) ) - s_hih ]
    s_hij = q_hi . k_hji / temperature,  J_0 = {0},  J_h = {0, ..., H - 1}:
    in space h > 0 the other keys of the same image differ from the query in augmentation h, and are
    negatives: that is what makes the space sensitive to it.

    Args:
      q: [H, B, D] queries by space, normalised here; gradient flows.
      k: [H, H, B, D] keys by space, then by view: k[h, j] is view j through head h; view 0 redraws
        every augmentation, view j shares augmentation j with the query. Normalised here; no
        gradient.
      queues: [H, K, D] earlier keys k[h, h] of each space, normalised; no gradient.
      temperature: above 0.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: mapped axis over which the batch (axis 1 of `q`, axis 2 of `k`) is split; the
        queues are the same on all devices.
      block_size: how the sums over the queues are computed, see `contrast`.

    Returns:
      Scalar in nats; with one space it is MoCo's loss. At chance level log(1 + K) in space 0 and
      log(H + K) in the others.

    Raises:
      ValueError: shapes that disagree, a temperature that is not above 0, `axis_name` not mapped.

    Reference: Xiao et al., What Should Not Be Contrastive in Contrastive Learning, ICLR 2021. There
      is no released code; the formula follows descriptions of the paper.
    """
    rows = leave_one_out_rows(
        q, k, queues, temperature=temperature, block_size=block_size, normalise=normalise
    )
    check_axis(axis_name)
    return mean(rows.mean(), axis_name)


@any_mesh
def leave_one_out_rows(
    q: jax.Array,
    k: jax.Array,
    queues: jax.Array,
    *,
    temperature: float,
    normalise: bool = True,
    block_size: int | None = None,
) -> jax.Array:
    """The terms [H, B] whose mean is `leave_one_out`: by space, by row."""
    q, k = prepared(normalise, q=q, k=k)
    sizes = check("h b d", q=q)
    check("h h b d", sizes, k=k)
    check("h n d", {"h": sizes["h"], "d": sizes["d"]}, queues=queues)
    check_positive(temperature=temperature)
    k, queues = lax.stop_gradient((k, queues))
    views = dots("hbd,hjbd->hbj", q, k) / temperature

    def space(h):
        negative = contrast(q[h], queues[h], scale=1 / temperature, block_size=block_size).lse
        if h > 0:
            others = jnp.delete(views[h], h, axis=1, assume_unique_indices=True)
            negative = jnp.logaddexp(negative, log_sum_exp(others, axis=1))
        # log(e^positive + e^negative) - positive, with the digits of a small loss.
        return jax.nn.softplus(negative - views[h, :, h])

    return jnp.stack([space(h) for h in range(sizes["h"])])


class LocalFeatures(NamedTuple):
    """units: the output of each unit. stages: the output of each stage. aux: what each stage
    returned beside it."""

    units: tuple[jax.Array, ...]
    stages: tuple[jax.Array, ...]
    aux: tuple[Any, ...]


def local_units(num_stages: int, span: int) -> tuple[tuple[int, int], ...]:
    """Units of `span` consecutive stages, (first, last) counted from 0, each one stage above the
    one before.

    span 2 overlaps neighbours in one stage (LoCo), span 1 gives every stage its own loss (Greedy
    InfoMax), span `num_stages` is one loss at the top (end to end).

    Raises:
      ValueError: a span below 1 or above `num_stages`.
    """
    if not 1 <= span <= num_stages:
        raise ValueError(
            f"span is {span} with {num_stages} stages; expected 1 (greedy) to {num_stages} (end "
            f"to end)."
        )
    return tuple((first, first + span - 1) for first in range(num_stages - span + 1))


def local_features(
    stages: Sequence[Callable[[Any], Any]],
    x: Any,
    *,
    units: Sequence[tuple[int, int]],
    has_aux: bool = False,
) -> LocalFeatures:
    """Runs the stages so that the output of unit (first, last) sends gradient to stages first..last
    and no further.

    h_0 = x, h_{j+1} = stage_j(h_j);  unit (first, last) =
    stage_last(...stage_first(stop_gradient(h_first)))

    Stages shared by units are written out once per unit with the same values; XLA merges the copies
    of the forward pass (measured in the tests), so that the cost is one forward pass, and one
    backward pass per stage and unit.

    Args:
      stages: functions of one array (or tree) each, parameters closed over; a stage with batch norm
        uses the statistics of the batch. They must not draw random numbers that differ between
        calls.
      x: input of the first stage.
      units: (first, last) per unit, counted from 0, as `local_units` gives.
      has_aux: stages return (output, aux), for instance new running statistics.

    Returns:
      `LocalFeatures`. Its `stages` are the plain network's outputs and its `aux` one value per
      stage, so that running statistics move once however many units share a stage; both carry no
      gradient.

    Raises:
      ValueError: a unit outside the stages or upside down, no unit.

    Reference: Xiong, Ren and Urtasun, LoCo: Local Contrastive Representation Learning, NeurIPS
      2020.
    There is no released code.
    """
    if not units:
        raise ValueError(
            "units is empty; expected at least one (first, last); local_units makes them."
        )
    for first, last in units:
        if not 0 <= first <= last < len(stages):
            raise ValueError(
                f"unit ({first}, {last}) with {len(stages)} stages; expected 0 <= first <= last < "
                f"{len(stages)}, counted from 0."
            )

    def run(stage, h):
        return stage(h) if has_aux else (stage(h), None)

    h, outputs, aux = x, [], []
    for stage in stages:
        h, extra = lax.stop_gradient(run(stage, lax.stop_gradient(h)))
        outputs.append(h)
        aux.append(extra)
    ends = []
    for first, last in units:
        # The input of the network may be differentiated, as end to end; below any other unit
        # gradient stops.
        h = x if first == 0 else outputs[first - 1]
        for stage in stages[first : last + 1]:
            h, _ = run(stage, h)
        ends.append(h)
    return LocalFeatures(tuple(ends), tuple(outputs), tuple(aux))


def local_losses(
    stages: Sequence[Callable[[Any], Any]],
    heads: Sequence[Callable[[Any], jax.Array]],
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    x_a: jax.Array,
    x_b: jax.Array,
    *,
    units: Sequence[tuple[int, int]],
) -> tuple[jax.Array, ...]:
    """Pulls two views together at the top of every unit, each through its own head; gradient stays
    in the unit.

    loss_u = loss(head_u(unit_u(x_a)), head_u(unit_u(x_b))); LoCo adds them up.

    Args:
      stages: as for `local_features`; both views pass them in one batch, view a first.
      heads: one per unit: pooling, projection, and normalisation where `loss` leaves that to its
        caller.
      loss: of two batches of projections, a scalar: `partial(nt_xent, temperature=0.1,
        axis_name=axis)`.
      x_a: [B, ...] first views.
      x_b: [B, ...] second views.
      units: (first, last) per unit, as `local_units` gives.

    Returns:
      One scalar per unit, in the units of `loss`. With the one unit (0, len(stages) - 1) that is
      `loss` end to end.

    Raises:
      ValueError: as `local_features`, or heads that are not one per unit, or views of different
        shapes.

    Reference: Xiong, Ren and Urtasun, NeurIPS 2020.
    """
    if len(heads) != len(units):
        raise ValueError(f"{len(heads)} heads for {len(units)} units; expected one head per unit.")
    if x_a.shape != x_b.shape:
        raise ValueError(
            f"x_a has shape {x_a.shape} and x_b {x_b.shape}; expected two views of one batch."
        )
    features = local_features(stages, jnp.concatenate([x_a, x_b]), units=units)

    def contrast(head, h):
        z = head(h)
        return loss(*jnp.split(z, 2))

    return tuple(contrast(head, h) for head, h in zip(heads, features.units))
