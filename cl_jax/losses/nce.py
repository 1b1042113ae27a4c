"""Instance discrimination against a memory: noise-contrastive estimation and softmax over a bank or
a queue.

Features are normalised here unless `normalise=False`; a bank or queue is read as it is before the
step's own update. Gradient reaches the queries only: banks, queues, keys and the normaliser Z are
constants.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core import sharded
from cl_jax.core.axis import AxisName, any_mesh, axis_size, gather, mean, total
from cl_jax.core.numerics import at_least_one, capped, dots, log_sum_exp, prepared, real_count, wide
from cl_jax.core.shapes import (
    check,
    check_axis,
    check_count,
    check_integer,
    check_key,
    check_positive,
    known_value,
)
from cl_jax.core.sharded import Sharded
from cl_jax.losses.contrast import allow, contrast, same_id
from cl_jax.losses.infonce import info_nce_rows


class Normalizer(NamedTuple):
    """NCE's constant Z, as its logarithm (Z overflows float32 at low temperatures), and the batches
    it has seen."""

    log_z: jax.Array
    batches: jax.Array


def init_normalizer(z: float | None = None, *, dtype: Any = None) -> Normalizer:
    """A Z that the first batch sets, or a given one; z=1 is the critic without Z of the CRD
    paper. dtype: None for JAX's default float, float64 under x64."""
    dtype = jnp.result_type(float) if dtype is None else dtype
    if z is None:
        return Normalizer(jnp.zeros((), dtype), jnp.zeros((), jnp.int32))
    check_positive(z=z)
    return Normalizer(jnp.log(jnp.asarray(z, dtype)), jnp.ones((), jnp.int32))


@any_mesh
def draw_indices(key: jax.Array, ids: jax.Array, size: int, num_negatives: int) -> jax.Array:
    """Bank rows to contrast each example with: its own, then K drawn uniformly with replacement
    from all N.

    Each row's draw is keyed by its example id, so it does not depend on how many devices there are.
    As in the authors' samplers nothing is rejected: a negative may repeat, and may be the positive.

    Args:
      key: the step's key, the same on every device.
      ids: [B] examples.
      size: N, rows of the bank.
      num_negatives: K.

    Returns:
      [B, 1 + K] int32, column 0 the ids.

    Raises:
      ValueError: no random key, ids that are not integers [B], counts below 1.
    """
    check_integer("b", ids=ids)
    check_count(size=size, num_negatives=num_negatives)
    check_key(key=key)

    def draw(i):
        return jax.random.randint(jax.random.fold_in(key, i), (num_negatives,), 0, size, jnp.int32)

    return jnp.concatenate([ids[:, None].astype(jnp.int32), jax.vmap(draw)(ids)], axis=1)


@any_mesh
def bank_logits(
    query: jax.Array,
    bank: jax.Array | Sharded,
    indices: jax.Array,
    *,
    temperature: float,
    normalise: bool = True,
    block_size: int | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """[B, 1 + K] similarities query_i . bank[indices_ij] / temperature; 0 where an index is outside
    of 0 to N - 1.

    Each query has rows of its own, so that there is no matrix of queries by keys for `contrast`
    to tile. The rows are gathered, [B, 1 + K, D]: half a gigabyte for 64 queries, 16,384 negatives
    and 128 channels. With `block_size` so many columns are gathered at a time, again in the
    backward pass, and never more are held.

    A bank may be `Sharded` over `axis_name`, which is not read otherwise: queries and indices then
    go to the devices that hold the rows, and similarities come back, each computed by one device.
    None as `block_size` gathers so many columns at a time that a device holds no more rows than it
    would of its own part of the batch."""
    (query,) = prepared(normalise, query=query)
    sizes = check("b d", query=query)
    check("n d", sizes, bank=bank)
    check_integer("b k", sizes, indices=indices)
    check_positive(temperature=temperature)
    check_count(block_size=block_size)
    check_axis(axis_name)
    if isinstance(bank, Sharded) and (devices := axis_size(axis_name)) > 1:
        block_size = block_size or -(-indices.shape[1] // devices)
        query, indices = gather(query, axis_name), gather(indices, axis_name)
        places, own = sharded.locate(bank, indices, axis_name)
        logits = _similarities(query, bank.rows, places, block_size) / temperature
        return lax.psum_scatter(
            jnp.where(own, logits, 0), axis_name, scatter_dimension=0, tiled=True
        )
    own = _inside(indices, bank.shape[0])
    rows = bank.rows if isinstance(bank, Sharded) else bank
    logits = _similarities(query, rows, jnp.where(own, indices, 0), block_size)
    return jnp.where(own, logits, 0) / temperature


def _similarities(query, rows, places, block_size):
    """[B, 1 + K] query_i . rows[places_ij], `block_size` columns at a time."""
    rows, columns = lax.stop_gradient(jnp.asarray(rows)), places.shape[1]

    def score(places):
        return dots("bd,bkd->bk", query, rows[places])

    if block_size is None or block_size >= columns:
        return score(places)
    padded = jnp.pad(places, ((0, 0), (0, -columns % block_size)))
    blocks = padded.reshape(padded.shape[0], -1, block_size).swapaxes(0, 1)
    logits = lax.map(jax.checkpoint(score, prevent_cse=False), blocks)
    return logits.swapaxes(0, 1).reshape(padded.shape)[:, :columns]


def _inside(ids, size):
    """Whether ids are rows of a bank of that size."""
    return (ids >= 0) & (ids < size)


@any_mesh
def queue_logits(
    query: jax.Array,
    key: jax.Array,
    queue: jax.Array,
    *,
    temperature: float,
    normalise: bool = True,
) -> jax.Array:
    """[B, 1 + K]: query_i . key_i, then query_i . queue_j, over temperature."""
    query, key = prepared(normalise, query=query, key=key)
    sizes = check("b d", query=query, key=key)
    check("k d", sizes, queue=queue)
    check_positive(temperature=temperature)
    positive = dots("bd,bd->b", query, lax.stop_gradient(key))
    negative = dots("bd,kd->bk", query, lax.stop_gradient(queue))
    return jnp.concatenate([positive[:, None], negative], axis=1) / temperature


@any_mesh
def nce_of_logits(
    logits: jax.Array,
    normalizer: Normalizer,
    *,
    num_data: int,
    momentum: float | None = None,
    eps: float = 1e-7,
    integer_z: bool = False,
    where: jax.Array | None = None,
    axis_name: AxisName = None,
) -> tuple[jax.Array, Normalizer]:
    """Noise-contrastive estimation: tells the column 0 of each row from K draws of uniform noise.

    P_ij = exp(logits_ij) / Z,   c = K / N,
    L = -1/B sum_i [ log P_i0 / (P_i0 + c + eps)  +  sum_{j>0} log c / (P_ij + c + eps) ]

    Args:
      logits: [B, 1 + K], similarity over temperature, the positive in column 0.
      normalizer: Z so far. While it has seen no batch, Z = N * mean exp(logits) over this global
        batch, the positive column included, and this loss uses it already. No gradient flows
        through Z.
      num_data: N, the size of the data set.
      momentum: None keeps the first batch's Z throughout, as the authors do; otherwise Z <-
        momentum * Z + (1 - momentum) * estimate of this batch (0.99 was reported to help where the
        first batch is not noise).
      eps: the authors' guard, in both denominators and no numerator.
      integer_z: the integer buffer of CMC's released MoCo memory, which cuts Z down to a whole
        number.
      where: [B] booleans, the rows to use; others count as 0 and take no part in Z. None: all.
      axis_name: device axis that splits the batch.

    Returns:
      (loss, normalizer): nats, the sum over negatives and the mean over the global batch; and Z for
        the next step.
      At chance level, where every row has P = 1 / N once Z is estimated: `nce_chance(K)`, about
      log K + 1.

    Raises:
      ValueError: no negative, a Z or momentum out of range, an axis that is not mapped.

    Reference: Wu et al. 2018, arXiv 1805.01978, equations 7 and 8; computed in log space, where the
      authors' code overflows float32 at temperature 0.01.
    """
    sizes = check("b k", logits=logits)
    check_axis(axis_name)
    check_count(num_data=num_data)
    if sizes["k"] < 2:
        raise ValueError(
            f"logits have shape {logits.shape}; expected [B, 1 + K] with at least one negative."
        )
    known = None if momentum is None else known_value(momentum)
    if known is not None and not 0 <= known < 1:
        raise ValueError(
            f"momentum is {momentum}; expected at least 0 and below 1, or None to keep the first Z."
        )
    logits = wide(logits)
    seen = lax.stop_gradient(logits)
    if where is not None:
        check_integer("b", sizes, where=jnp.asarray(where, jnp.int32))
        where = jnp.asarray(where, bool)
        seen = jnp.where(where[:, None], seen, -jnp.inf)
    normalizer = _observe(normalizer, seen, where, num_data, momentum, integer_z, axis_name)
    noise = jnp.asarray((sizes["k"] - 1) / num_data, logits.dtype)
    # log P - log(c + eps): both terms are softplus of it, exact where P is far from c on either
    # side.
    odds = logits - normalizer.log_z.astype(logits.dtype) - jnp.log(noise + eps)
    rows = (
        jax.nn.softplus(-odds[:, 0])
        + jnp.sum(jax.nn.softplus(odds[:, 1:]), axis=1)
        + (sizes["k"] - 1) * jnp.log1p(eps / noise)
    )
    if where is not None:
        rows = jnp.where(where, rows, 0)
    return mean(jnp.mean(rows), axis_name), normalizer


def nce_chance(num_negatives: int) -> float:
    """NCE's loss in nats where all logits are equal and Z was estimated from them: log(1 + K) + K
    log(1 + 1 / K)."""
    return math.log1p(num_negatives) + num_negatives * math.log1p(1 / num_negatives)


@any_mesh
def probabilities(logits: jax.Array, normalizer: Normalizer) -> jax.Array:
    """[B, 1 + K] NCE's P = exp(logits) / Z, with the Z that `nce_of_logits` returned."""
    return jnp.exp(logits - normalizer.log_z.astype(logits.dtype))


@any_mesh
def nce(
    query: jax.Array,
    bank: jax.Array | Sharded,
    indices: jax.Array,
    normalizer: Normalizer,
    *,
    temperature: float,
    momentum: float | None = None,
    eps: float = 1e-7,
    block_size: int | None = None,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> tuple[jax.Array, Normalizer]:
    """InstDisc: pulls an image to its own row of the bank, pushes it from K random rows, by NCE.

    `nce_of_logits` of query_i . bank[indices_ij] / temperature.

    Args:
      query: [B, D] features of this step, normalised here.
      bank: [N, D] rows before this step's update; no gradient. The positive is the *stored* row.
      indices: [B, 1 + K] rows of the bank, column 0 the image's own (`draw_indices`). An image
        whose own is outside of 0 to N - 1 counts as 0 and takes no part in Z.
      normalizer, momentum, eps, axis_name: see `nce_of_logits`.
      temperature: 0.07 in InstDisc and CMC.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      block_size: see `bank_logits`.

    Returns:
      (loss, normalizer), nats; `nce_chance(K)` at chance level.

    Raises:
      ValueError: shapes that disagree, indices that are not integers, and as `nce_of_logits`.

    Reference: Wu et al. 2018, arXiv 1805.01978, equation 8.
    """
    logits = bank_logits(
        query,
        bank,
        indices,
        temperature=temperature,
        block_size=block_size,
        normalise=normalise,
        axis_name=axis_name,
    )
    return nce_of_logits(
        logits,
        normalizer,
        num_data=bank.shape[0],
        momentum=momentum,
        eps=eps,
        where=_inside(indices[:, 0], bank.shape[0]),
        axis_name=axis_name,
    )


@any_mesh
def cross_nce(
    z_a: jax.Array,
    z_b: jax.Array,
    bank_a: jax.Array | Sharded,
    bank_b: jax.Array | Sharded,
    indices: jax.Array,
    normalizers: Sequence[Normalizer],
    *,
    temperature: float,
    momentum: float | None = None,
    eps: float = 1e-7,
    block_size: int | None = None,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> tuple[jax.Array, tuple[Normalizer, Normalizer]]:
    """CMC: each view's feature is pulled to the *other* view's stored row of the same image; the
    sum of both NCEs.

    L = nce(z_a, bank_b) + nce(z_b, bank_a), with one Z each: normalizers[0] is that of z_a.

    Args:
      z_a, z_b: [B, D] features of the two views, normalised here.
      bank_a, bank_b: [N, D] what was stored of each view; no gradient.
      indices: [B, 1 + K], shared by the two; column 0 the image's own row.
      The others as in `nce`.

    Returns:
      (loss, (normalizer of z_a, normalizer of z_b)); `2 nce_chance(K)` at chance level.

    Raises:
      ValueError: shapes that disagree, and as `nce_of_logits`.

    Reference: Tian et al. 2020, arXiv 1906.05849, equation 5; and CRD, arXiv 1910.10699.
    """
    check("n d", check("b d", z_a=z_a, z_b=z_b), bank_a=bank_a, bank_b=bank_b)
    side = partial(
        nce,
        temperature=temperature,
        momentum=momentum,
        eps=eps,
        block_size=block_size,
        axis_name=axis_name,
        normalise=normalise,
    )
    loss_a, normalizer_a = side(z_a, bank_b, indices, normalizers[0])
    loss_b, normalizer_b = side(z_b, bank_a, indices, normalizers[1])
    return loss_a + loss_b, (normalizer_a, normalizer_b)


@any_mesh
def queue_nce(
    query: jax.Array,
    key: jax.Array,
    queue: jax.Array,
    normalizer: Normalizer,
    *,
    temperature: float,
    num_data: int,
    momentum: float | None = None,
    eps: float = 1e-7,
    integer_z: bool = False,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> tuple[jax.Array, Normalizer]:
    """CMC's MoCo under NCE: the positive is the fresh key, the noise is the queue.

    `nce_of_logits` of (query_i . key_i, query_i . queue_j) / temperature, with K the length of the
    queue.

    Args:
      query: [B, D]; key: [B, D] and queue: [K, D] without gradient.
      num_data: N, the size of the data set.
      The others as in `nce_of_logits`.

    Raises:
      ValueError: shapes that disagree, and as `nce_of_logits`.

    Reference: Tian et al. 2020, arXiv 1906.05849; the released memory truncates Z to an integer:
      `integer_z=True`.
    """
    return nce_of_logits(
        queue_logits(query, key, queue, temperature=temperature, normalise=normalise),
        normalizer,
        num_data=num_data,
        momentum=momentum,
        eps=eps,
        integer_z=integer_z,
        axis_name=axis_name,
    )


@any_mesh
def bank_softmax(
    query: jax.Array,
    bank: jax.Array | Sharded,
    indices: jax.Array,
    jigsaw: jax.Array | None = None,
    *,
    temperature: float,
    beta: float = 0.5,
    block_size: int | None = None,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pulls an image to its own stored row against K stored rows, by cross-entropy instead of NCE.

    L = -1/B sum_i log softmax_j(query_i . bank[indices_ij] / temperature)_0;
    with `jigsaw` the same for it, and (1 - beta) L(query) + beta L(jigsaw).

    Args:
      query: [B, D], normalised here.
      bank: [N, D] before the step's update; no gradient.
      indices: [B, 1 + K], column 0 the image's own row. An image whose own is outside of 0 to N - 1
        counts as 0.
      jigsaw: [B, D] or None: the jigsaw query of PIRL and InfoMin for the same rows.
      temperature: 0.07 in InstDisc and CMC.
      beta: weight of the jigsaw query.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      block_size: see `bank_logits`.
      axis_name: device axis that splits the batch.

    Returns:
      Nats, mean over the global batch; `log(1 + K)` at chance level.

    Raises:
      ValueError: shapes that disagree, indices that are not integers, a temperature that is not
        above 0, an axis that is not mapped.

    Reference: Tian et al. 2020, arXiv 1906.05849, equation 2; InfoMin, arXiv 2005.10243.
    """
    check_axis(axis_name)

    def one(z):
        logits = bank_logits(
            z,
            bank,
            indices,
            temperature=temperature,
            block_size=block_size,
            normalise=normalise,
            axis_name=axis_name,
        )
        own = _inside(indices[:, 0], bank.shape[0])
        return mean(jnp.mean(jnp.where(own, _cross_entropy_rows(logits), 0)), axis_name)

    return _with_jigsaw(one, query, jigsaw, beta)


@any_mesh
def cross_bank_softmax(
    z_a: jax.Array,
    z_b: jax.Array,
    bank_a: jax.Array | Sharded,
    bank_b: jax.Array | Sharded,
    indices: jax.Array,
    jigsaw_a: jax.Array | None = None,
    jigsaw_b: jax.Array | None = None,
    *,
    temperature: float,
    beta: float = 0.5,
    block_size: int | None = None,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> jax.Array:
    """CMC by cross-entropy: each view against the other view's bank, summed; jigsaw queries
    likewise.

    L = bank_softmax(z_a, bank_b, jigsaw_a) + bank_softmax(z_b, bank_a, jigsaw_b). The released
    trainer of InfoMin hands the two jigsaw queries over in the wrong order; swap the arguments to
    have that.

    Args: z_a, z_b, bank_a, bank_b and indices as in `cross_nce`, all others as in `bank_softmax`.

    Returns:
      Nats, mean over the global batch; `2 log(1 + K)` at chance level.

    Raises:
      ValueError: as `bank_softmax`.

    Reference: Tian et al. 2020, arXiv 1906.05849, equations 2 and 3.
    """
    sizes = check("b d", z_a=z_a, z_b=z_b)
    check("n d", sizes, bank_a=bank_a, bank_b=bank_b)
    check("b d", sizes, **_given(jigsaw_a=jigsaw_a, jigsaw_b=jigsaw_b))
    side = partial(
        bank_softmax,
        temperature=temperature,
        beta=beta,
        block_size=block_size,
        axis_name=axis_name,
        normalise=normalise,
    )
    return side(z_a, bank_b, indices, jigsaw_a) + side(z_b, bank_a, indices, jigsaw_b)


@any_mesh
def full_bank_softmax(
    query: jax.Array,
    bank: jax.Array | Sharded,
    ids: jax.Array,
    *,
    temperature: float,
    block_size: int | None = None,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> jax.Array:
    """InstDisc without sampling: every image its own class, its stored row the class weight.

    L = -1/B sum_i log softmax_j(query_i . bank_j / temperature)_{ids_i}, over all N rows.

    Args:
      query: [B, D], normalised here.
      bank: [N, D] before the step's update; no gradient.
      ids: [B] integers, each image's row. An image outside of 0 to N - 1 counts as 0.
      temperature: 0.1 for InstDisc on CIFAR-10.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      block_size: the side of a tile, as in `contrast`.
      axis_name: device axis that splits the batch. The bank is the same on every device, or
        `Sharded` over it: each device then contrasts all queries with the rows that it holds.

    Returns:
      Nats, mean over the global batch; `log N` at chance level.

    Raises:
      ValueError: shapes that disagree, ids that are not integers, a temperature that is not above
        0, an axis that is not mapped.

    Reference: Wu et al. 2018, arXiv 1805.01978, equation 2.
    """
    (query,) = prepared(normalise, query=query)
    sizes = check("b d", query=query)
    check_integer("b", sizes, ids=ids)
    sizes = check("n d", sizes, bank=bank)
    check_positive(temperature=temperature)
    check_axis(axis_name)
    rows = lax.stop_gradient(bank.rows if isinstance(bank, Sharded) else bank)
    split = isinstance(bank, Sharded) and axis_size(axis_name) > 1
    if split:
        query, ids = gather(query, axis_name), gather(ids, axis_name)
    first = lax.axis_index(axis_name) * len(rows) if split else 0
    cols = first + jnp.arange(len(rows))
    found = contrast(
        query,
        rows,
        scale=1 / temperature,
        rows={"id": ids},
        cols={"id": cols},
        log_weight=partial(_within, sizes["n"]) if split else None,
        positive=same_id,
        block_size=block_size,
    )
    own = _inside(ids, sizes["n"])
    if not split:
        return mean(jnp.mean(jnp.where(own, found.gap, 0)), axis_name)
    top = lax.pmax(lax.stop_gradient(found.lse), axis_name)
    powers = total(jnp.exp(capped(found.lse - top)), axis_name)
    gap = top + jnp.log(at_least_one(powers)) - total(found.pos, axis_name)
    return jnp.mean(jnp.where(own, gap, 0))


def _within(size, rows, cols):
    """Log-weights that leave out the padding of a sharded bank."""
    inside = (cols["id"] < size)[None, :]
    return allow(jnp.broadcast_to(inside, (rows["id"].shape[0], inside.shape[1])))


@any_mesh
def queue_softmax(
    query: jax.Array,
    key: jax.Array,
    queue: jax.Array,
    jigsaw: jax.Array | None = None,
    *,
    temperature: float,
    beta: float = 0.5,
    block_size: int | None = None,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> jax.Array:
    """InfoMin's MoCo: a query and its jigsaw have the same fresh key and the same queue, by
    cross-entropy.

    L = -1/B sum_i log softmax(query_i . (key_i, queue) / temperature)_0,
    and (1 - beta) L(query) + beta L(jigsaw).

    Args:
      query: [B, D]; jigsaw: [B, D] or None; normalised here.
      key: [B, D] of the momentum encoder; queue: [K, D] before this step's keys enter; no gradient
        to either.
      temperature: 0.15 in InfoMin.
      beta: weight of the jigsaw query.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      block_size: the side of a tile, as in `contrast`.
      axis_name: device axis that splits the batch.

    Returns:
      Nats, mean over the global batch; `log(1 + K)` at chance level.

    Raises:
      ValueError: shapes that disagree, a temperature that is not above 0, an axis that is not
        mapped.

    Reference: Tian et al. 2020, arXiv 2005.10243, appendix.
    """
    check_axis(axis_name)
    check("k d", check("b d", query=query, key=key), queue=queue)
    key, queue = lax.stop_gradient((key, queue))

    def one(z):
        return mean(
            jnp.mean(
                info_nce_rows(
                    z,
                    key,
                    queue,
                    temperature=temperature,
                    normalise=normalise,
                    block_size=block_size,
                )
            ),
            axis_name,
        )

    return _with_jigsaw(one, query, jigsaw, beta)


@any_mesh
def cross_queue_softmax(
    q_a: jax.Array,
    q_b: jax.Array,
    k_a: jax.Array,
    k_b: jax.Array,
    queue_a: jax.Array,
    queue_b: jax.Array,
    jigsaw_a: jax.Array | None = None,
    jigsaw_b: jax.Array | None = None,
    *,
    temperature: float,
    beta: float = 0.5,
    block_size: int | None = None,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> jax.Array:
    """CMC with two queues: each view's query against the other view's key and queue; the sum of
    both.

    L = queue_softmax(q_a, k_b, queue_b, jigsaw_a) + queue_softmax(q_b, k_a, queue_a, jigsaw_b).

    Args: as in `queue_softmax`: q, k, queue and jigsaw of each view, all others of both.

    Returns:
      Nats, mean over the global batch; `2 log(1 + K)` at chance level.

    Raises:
      ValueError: as `queue_softmax`.

    Reference: Tian et al. 2020, arXiv 1906.05849 and 2005.10243.
    """
    sizes = check("b d", q_a=q_a, q_b=q_b, k_a=k_a, k_b=k_b)
    check("k d", sizes, queue_a=queue_a, queue_b=queue_b)
    check("b d", sizes, **_given(jigsaw_a=jigsaw_a, jigsaw_b=jigsaw_b))
    side = partial(
        queue_softmax,
        temperature=temperature,
        beta=beta,
        block_size=block_size,
        axis_name=axis_name,
        normalise=normalise,
    )
    return side(q_a, k_b, queue_b, jigsaw_a) + side(q_b, k_a, queue_a, jigsaw_b)


def _observe(normalizer, logits, where, num_data, momentum, integer_z, axis_name):
    """Z after this batch, of logits that are -inf where a row is not used; the old Z where no row
    is."""
    local = log_sum_exp(logits) - jnp.log(real_count(logits.size))
    top = local if axis_name is None else lax.pmax(local, axis_name)
    top = jnp.where(top == -jnp.inf, 0, top)
    log_z = (
        top
        + jnp.log(mean(jnp.exp(local - top), axis_name))
        + jnp.log(jnp.asarray(num_data, logits.dtype))
    )
    used = None if where is None else total(jnp.sum(where, dtype=logits.dtype), axis_name)
    if used is not None:
        log_z += jnp.log(logits.shape[0] * axis_size(axis_name) / jnp.maximum(used, 1))
    if integer_z:
        # Beyond 2^24 a float32 is whole already, and exp would overflow.
        log_z = jnp.where(
            log_z < 40, jnp.log(jnp.maximum(jnp.floor(jnp.exp(jnp.minimum(log_z, 40))), 1)), log_z
        )
    log_z = log_z.astype(normalizer.log_z.dtype)
    old = normalizer.log_z
    later = (
        old
        if momentum is None
        else jnp.logaddexp(jnp.log(momentum) + old, jnp.log1p(-momentum) + log_z)
    )
    new = Normalizer(jnp.where(normalizer.batches == 0, log_z, later), normalizer.batches + 1)
    if used is None:
        return new
    return Normalizer(*(jnp.where(used > 0, *pair) for pair in zip(new, normalizer)))


def _given(**arrays):
    return {name: array for name, array in arrays.items() if array is not None}


def _with_jigsaw(one, query, jigsaw, beta):
    if jigsaw is None:
        return one(query)
    check("b d", check("b d", query=query), jigsaw=jigsaw)
    return (1 - beta) * one(query) + beta * one(jigsaw)


def _cross_entropy_rows(logits):
    return log_sum_exp(logits, axis=1) - logits[:, 0]
