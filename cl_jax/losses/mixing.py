"""i-Mix: mixed inputs, and contrast with virtual labels mixed alike (N-pair, MoCo, BYOL); MixUp,
CutMix, InputMix."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, axis_size, first_row, gather, mean
from cl_jax.core.numerics import dots, prepared, unit, wide
from cl_jax.core.shapes import (
    check,
    check_axis,
    check_integer,
    check_key,
    check_positive,
    check_real,
    check_share,
)
from cl_jax.losses.contrast import contrast, row_ids


class Mix(NamedTuple):
    """weight: [B] share of the own input. partner: [B] position in the global batch of the input
    mixed in.

    box: None for MixUp; for CutMix (first row, first column, end row, end column) of the patch, one
      for the batch.
    """

    weight: jax.Array
    partner: jax.Array
    box: jax.Array | None = None


def own_share(raw: jax.Array) -> jax.Array:
    """max(raw, 1 - raw): a Beta draw folded so that the own input keeps the larger share."""
    return jnp.maximum(raw, 1 - raw)


def draw_mixup(key: jax.Array, rows: int, *, alpha: float, axis_name: AxisName = None) -> Mix:
    """A weight per example, folded Beta(alpha, alpha), and a random permutation of the global batch
    as partners.

    Args:
      key: the same on every device: the draw is made for the global batch and each device takes its
        rows, so that it does not depend on how many devices there are.
      rows: examples on this device.
      alpha: of the Beta distribution: 1 for images and speech, 2 for the authors' CovType.
      axis_name: mapped axis over which the batch is split.
    """
    check_key(key=key)
    total, start = _rows(rows, axis_name)
    share, order = jax.random.split(key)
    weight = own_share(jax.random.beta(share, alpha, alpha, (total,)))
    partner = jax.random.permutation(order, total)
    return Mix(
        lax.dynamic_slice_in_dim(weight, start, rows),
        lax.dynamic_slice_in_dim(partner, start, rows),
    )


def draw_cutmix(
    key: jax.Array,
    rows: int,
    height: int,
    width: int,
    *,
    alpha: float,
    axis_name: AxisName = None,
) -> Mix:
    """One box for the whole batch, of area 1 - folded Beta(alpha, alpha) before clipping, and
    random partners.

    Args:
      key: the same on every device, as for `draw_mixup`.
      rows: examples on this device.
      height, width: of the images.
      alpha: of the Beta distribution.
      axis_name: mapped axis over which the batch is split.
    """
    check_key(key=key)
    total, start = _rows(rows, axis_name)
    share, place, order = jax.random.split(key, 3)
    centre = jax.random.randint(place, (2,), 0, jnp.array([height, width]))
    box, weight = cutmix_box(own_share(jax.random.beta(share, alpha, alpha)), centre, height, width)
    partner = lax.dynamic_slice_in_dim(jax.random.permutation(order, total), start, rows)
    return Mix(jnp.broadcast_to(weight, (rows,)), partner, box)


def cutmix_box(
    weight: jax.Array, centre: jax.Array, height: int, width: int
) -> tuple[jax.Array, jax.Array]:
    """The box that CutMix pastes, and the share of the image it leaves.

    sides = floor(size sqrt(1 - weight)), half sides floor(side / 2) around `centre`, clipped to the
      image;
    share left = 1 - area of the clipped box / area of the image, anywhere from about `weight` to 1.

    Args:
      weight: scalar share asked for, folded (see `own_share`).
      centre: [2] integers, row and column.
      height, width: of the image.

    Returns:
      box: [4] int32: first row, first column, end row, end column; the ends are outside the box.
      weight: the share left, a scalar of the type of `weight`.

    Raises:
      ValueError: a weight that is not a scalar from 0 to 1, a centre that is not two integers.

    Reference: Yun et al., CutMix, ICCV 2019; truncations as in Lee et al., i-Mix, ICLR 2021. A side
      of 1 leaves an empty box, since both half sides are 0.
    """
    check_share(weight=weight)
    check_integer("2", centre=centre)
    weight, centre = jnp.asarray(weight, jnp.result_type(weight, float)), jnp.asarray(centre)
    size = jnp.array([height, width])
    half = jnp.floor(size * jnp.sqrt(1 - weight)).astype(jnp.int32) // 2
    low, high = jnp.clip(centre - half, 0, size), jnp.clip(centre + half, 0, size)
    area = jnp.prod(high - low)
    share = 1 - area.astype(weight.dtype) / (height * width)
    return jnp.concatenate([low, high]).astype(jnp.int32), share


@any_mesh
def mix_inputs(x: jax.Array, mix: Mix, *, axis_name: AxisName = None) -> jax.Array:
    """Mixes every example with its partner: a weighted sum (MixUp), or a pasted box (CutMix) where
    `mix.box` is set.

    x_mixed_i = weight_i x_i + (1 - weight_i) x_partner_i,  or x_partner_i inside the box and x_i
    outside

    Args:
      x: [B, ...] real inputs; CutMix takes [B, height, width, ...]. Gradient flows to both parts.
      mix: for these rows; its partners are positions in the global batch.
      axis_name: mapped axis over which the batch is split: the inputs are gathered over it. To mix
        within each device instead, as the authors do, leave it out here, with partners counted
        within the device, and add the device's first row to the partners that a loss is given.

    Returns:
      [B, ...] in the type of `x`.

    Raises:
      ValueError: a mix for another number of rows, integer inputs.

    Reference: Lee et al., i-Mix, ICLR 2021, arXiv 2010.08887, the mixed inputs of its section on
      i-Mix, after Zhang et al., mixup, ICLR 2018. Only queries are mixed, never keys.
    """
    check_real(x=x)
    check_axis(axis_name)
    x, sizes = jnp.asarray(x), {"b": x.shape[0]}
    check("b", sizes, weight=mix.weight)
    check_integer("b", sizes, partner=mix.partner)
    other = gather(x, axis_name)[mix.partner]
    if mix.box is None:
        weight = jnp.asarray(mix.weight, x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return weight * x + (1 - weight) * other
    if x.ndim < 3:
        raise ValueError(
            f"x has shape {x.shape}; a box is cut from [B, height, width, ...]. Use MixUp for rows."
        )
    row, column = jnp.arange(x.shape[1])[:, None], jnp.arange(x.shape[2])[None, :]
    inside = (
        (row >= mix.box[0]) & (row < mix.box[2]) & (column >= mix.box[1]) & (column < mix.box[3])
    )
    return jnp.where(inside.reshape(1, *inside.shape, *[1] * (x.ndim - 3)), other, x)


@any_mesh
def input_mix(
    x: jax.Array, raw: jax.Array, partners: jax.Array, *, axis_name: AxisName = None
) -> jax.Array:
    """Mixes every example with n others, itself keeping at least half; labels do not change.

    x_mixed_i = w_i0 x_i + sum_k w_ik x_(partners_ki);
    w_0 = 1/2 + raw_0 / 2, w_k = raw_k / 2,
    and for one partner w_0 = max(raw, 1 - raw), w_1 = 1 - w_0

    Args:
      x: [B, ...] real inputs; gradient flows.
      raw: [B] Beta(alpha, alpha) draws for one partner, [B, n + 1] Dirichlet(alpha) draws for n.
      partners: [n, B] positions in the global batch (of this device where `axis_name` is None).
      axis_name: mapped axis over which the inputs are gathered.

    Returns:
      [B, ...] in the type of `x`.

    Raises:
      ValueError: draws that do not fit the partners.

    Reference: Lee et al., i-Mix, ICLR 2021, arXiv 2010.08887, InputMix; both views are mixed so,
      independently.
    """
    check_real(x=x, raw=raw)
    check_axis(axis_name)
    x, raw = jnp.asarray(x), jnp.asarray(raw)
    sizes = check_integer("n b", {"b": x.shape[0]}, partners=partners)
    if sizes["n"] == 1:
        check("b", sizes, raw=raw)
        own = own_share(raw)
        weights = jnp.stack([own, 1 - own], axis=1)
    else:
        check("b m", {"b": sizes["b"], "m": sizes["n"] + 1}, raw=raw)
        weights = raw / 2 + jnp.zeros_like(raw).at[:, 0].set(0.5)
    # Products and sums, not a matmul: an accelerator would round the inputs of one.
    weights = weights.astype(x.dtype).T.reshape(-1, *x.shape[:1], *[1] * (x.ndim - 1))
    return weights[0] * x + (weights[1:] * gather(x, axis_name)[partners]).sum(axis=0)


@any_mesh
def imix_n_pair(
    q: jax.Array,
    k: jax.Array,
    mix: Mix | None = None,
    *,
    temperature: float,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls the query of a mixed input to the keys of both its parts, by their shares, and from all
    other keys.

    loss = mean_i [ log sum_j exp(s_ij) - w_i s_ii - (1 - w_i) s_(i, partner_i) ],
    s_ij = n(q_i) . n(k_j) / temperature

    Args:
      q: [B, D] projections of `mix_inputs(x_a, mix)`, normalised here; gradient flows.
      k: [B, D] projections of x_b by the same network, normalised here; gradient flows.
      mix: what `x_a` was mixed with; None for the loss without mixing.
      temperature: above 0 (0.2 for images, 0.5 for speech, 0.1 for tables).
      normalise: features to unit length here; False takes them as they are.
      axis_name: mapped axis over which the batch is split; keys come from all devices. Gradient
        flows to all of them.
      plan, block_size: how the sums are computed, see `contrast`.

    Returns:
      Scalar in nats; log B_global at chance level. One direction, and no query against queries: add
      the loss with the views swapped for the authors' symmetric form. A zero row is normalised to
      zero.

    Raises:
      ValueError: shapes that disagree, a temperature that is not above 0, `axis_name` not mapped.

    Reference: Lee et al., i-Mix, ICLR 2021, arXiv 2010.08887, its application to the N-pair loss.
      The authors' keys and partners come from one device's batch, ours from the global one.
    """
    return _mixed_cross_entropy(
        q, k, None, mix, temperature, normalise, axis_name, plan, block_size
    )


@any_mesh
def imix_moco(
    q: jax.Array,
    k: jax.Array,
    queue: jax.Array,
    mix: Mix | None = None,
    *,
    temperature: float,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls the query of a mixed input to the momentum keys of both its parts, and from all other
    keys and the queue.

    loss = mean_i [ log( sum_j exp(s_ij) + sum_n exp(n(q_i) . queue_n / temperature) ) - w_i s_ii
                    - (1 - w_i) s_(i, partner_i) ],
    s_ij = n(q_i) . n(k_j) / temperature

    Args:
      q: [B, D] projections of `mix_inputs(x_a, mix)`, normalised here; gradient flows.
      k: [B, D] projections of x_b by the momentum encoder, normalised here; no gradient.
      queue: [K, D] earlier keys, normalised; no gradient.
      mix: what `x_a` was mixed with; None for in-batch keys beside the queue without mixing.
      temperature: above 0.
      normalise: features to unit length here; False takes them as they are.
      axis_name: mapped axis over which the batch is split; keys come from all devices, the queue is
        the same on all.
      plan, block_size: how the sums are computed, see `contrast`.

    Returns:
      Scalar in nats; log(B_global + K) at chance level.

    Raises:
      ValueError: shapes that disagree, a temperature that is not above 0, `axis_name` not mapped.

    Reference: Lee et al., i-Mix, ICLR 2021, arXiv 2010.08887, its application to MoCo (`mocon` of
      the authors' code, whose unmixed baseline is MoCo itself, with the own key and the queue
      alone: `info_nce`).
    """
    return _mixed_cross_entropy(
        q, lax.stop_gradient(k), queue, mix, temperature, normalise, axis_name, plan, block_size
    )


@any_mesh
def imix_byol(
    p: jax.Array, k: jax.Array, mix: Mix | None = None, *, axis_name: AxisName = None
) -> jax.Array:
    """Pulls the prediction from a mixed input to the target's projections of both its parts, by
    their shares.

    loss = mean_i [ 2 - 2 ( w_i cos(p_i, k_i) + (1 - w_i) cos(p_i, k_partner_i) ) ]

    Args:
      p: [B, D] predictions from `mix_inputs(x_a, mix)`, normalised here; gradient flows.
      k: [B, D] projections of x_b by the target network, normalised here; no gradient.
      mix: what `x_a` was mixed with; None for one direction of BYOL.
      axis_name: mapped axis over which the batch is split.

    Returns:
      Scalar from 0 to 4; 2 at chance level.

    Raises:
      ValueError: shapes that disagree, `axis_name` not mapped.

    Reference: Lee et al., i-Mix, ICLR 2021, arXiv 2010.08887, its application to BYOL. One
      direction, as the authors' default; swap the views and add for both.
    """
    check("b d", p=p, k=k)
    check_axis(axis_name)
    own = unit(lax.stop_gradient(k))
    if mix is None:
        target = own
    else:
        weight, partner = _of(mix, p.shape[0])
        target = weight[:, None] * own + (1 - weight)[:, None] * gather(own, axis_name)[partner]
    return mean((2 - 2 * (unit(p) * target).sum(axis=1)).mean(), axis_name)


@any_mesh
def imix_logits(
    q: jax.Array,
    k: jax.Array,
    queue: jax.Array | None = None,
    *,
    temperature: float,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> jax.Array:
    """[B, B_global (+ K)] cosines over temperature: queries of this device against all keys, then
    the queue."""
    _check(q, k, queue, temperature, axis_name)
    q, k = prepared(normalise, q=q, k=k)
    logits = dots("id,jd->ij", q, gather(k, axis_name))
    if queue is not None:
        logits = jnp.concatenate([logits, dots("id,jd->ij", q, jnp.asarray(queue))], axis=1)
    return logits / temperature


def _mixed_cross_entropy(q, k, queue, mix, temperature, normalise, axis_name, plan, block_size):
    _check(q, k, queue, temperature, axis_name)
    own = row_ids(q.shape[0], axis_name)
    weight, partner = (jnp.ones(q.shape[0]), own) if mix is None else _of(mix, q.shape[0])

    def share(rows, cols):
        column, weight = cols["id"][None, :], rows["weight"][:, None]
        return jnp.where(column == rows["id"][:, None], weight, 0) + jnp.where(
            column == rows["partner"][:, None], 1 - weight, 0
        )

    q, k = prepared(normalise, q=q, k=k)
    sums = contrast(
        q,
        k,
        scale=1 / temperature,
        rows={"id": own, "partner": partner, "weight": weight},
        cols={"id": own},
        positive=share,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )
    loss = sums.gap
    if queue is not None:
        earlier = contrast(
            q,
            lax.stop_gradient(jnp.asarray(queue)),
            scale=1 / temperature,
            block_size=block_size,
        )
        # log(e^a + e^b) - pos = (a - pos) + log(1 + e^(b - a)), which keeps the digits of a small
        # loss.
        loss += jax.nn.softplus(earlier.lse - sums.lse)
    return mean(loss.mean(), axis_name)


def _check(q, k, queue, temperature, axis_name):
    sizes = check("b d", q=q, k=k)
    if queue is not None:
        check("k d", {"d": sizes["d"]}, queue=queue)
    check_positive(temperature=temperature)
    check_axis(axis_name)


def _of(mix, rows):
    check("b", {"b": rows}, weight=mix.weight)
    check_integer("b", {"b": rows}, partner=mix.partner)
    return wide(mix.weight), mix.partner


def _rows(rows, axis_name):
    """Rows of the global batch, and the first of this device."""
    check_axis(axis_name)
    return rows * axis_size(axis_name), first_row(rows, axis_name)
