"""Negatives by hardness: re-weighted (HCL, debiased), synthesised (MoCHi), selected (the
temperature study).

Features are normalised here unless `normalise=False`; what a memory holds is taken as it is.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, axis_size, gather, mean
from cl_jax.core.numerics import dots, log_count, log_sum_exp, prepared, unit, wide, wide_type
from cl_jax.core.shapes import (
    check,
    check_axis,
    check_count,
    check_integer,
    check_key,
    check_positive,
    check_scalar,
    known_value,
)
from cl_jax.losses._rows import over_rows
from cl_jax.losses.contrast import check_plan, contrast, not_self, row_ids, same_id
from cl_jax.losses.nce import queue_logits


class HCLTerms(NamedTuple):
    """For the 2B rows: loss; log_positive = s_i+ / t; log_negatives = log Ng_i; clamped: Ng_i is at
    its floor."""

    loss: jax.Array
    log_positive: jax.Array
    log_negatives: jax.Array
    clamped: jax.Array


@any_mesh
def hcl(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    temperature: float,
    beta: float = 1.0,
    tau_plus: float = 0.1,
    estimator: str = "hard",
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls two views together, pushes negatives weighted by their hardness and corrected for those
    of the own class.

    Over the 2B rows x = [z_a; z_b], N = 2B - 2 negatives j of row i,
    s_ij = x_i . x_j / temperature:
    R_i = N sum_j exp((1 + beta) s_ij) / sum_j exp(beta s_ij)
    Ng_i = max((R_i - tau_plus N exp(s_i+)) / (1 - tau_plus),  N exp(-1 / temperature))
    L = -1/2B sum_i log( exp(s_i+) / (exp(s_i+) + Ng_i) )

    Args:
      z_a, z_b: [B, D], rows paired. Gradient flows through everything, the weights and the
        correction included; not through Ng where it is at its floor.
      temperature: 0.5 in the paper.
      beta: concentration; 0 is the debiased loss (DCL). Used by "hard" only.
      tau_plus: the prior of the own class, in [0, 1); 0.1 in the paper.
      estimator: "hard"; "debiased", which is "hard" at beta 0; "easy", where Ng_i = sum_j
        exp(s_ij): NT-Xent.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: device axis that splits the batch; negatives, and N with them, come from all
        devices.
      plan, block_size: how devices share keys and the side of a tile, as in `contrast`.

    Returns:
      Scalar in nats, mean over 2B rows of the global batch: log(2B - 1) where all similarities are
      equal. A batch of one pair has no negatives and gives 0 (NaN in the authors' "hard").

    Raises:
      ValueError: shapes that disagree, temperature <= 0, beta < 0, tau_plus outside [0, 1), an
        unknown estimator, an axis that is not mapped.

    Reference: Robinson et al. 2021, arXiv 2010.04592, equation 4 and section 4.2; Chuang et al.
      2020, arXiv 2007.00224, equation 8. As the authors' code (temperature once, exponential
      weights) rather than the listing of figure 13; in log space, where theirs overflows float32 at
      temperature 0.01.
    """
    terms = hcl_terms(
        z_a,
        z_b,
        temperature=temperature,
        beta=beta,
        tau_plus=tau_plus,
        estimator=estimator,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
        normalise=normalise,
    )
    return mean(jnp.mean(terms.loss), axis_name)


@any_mesh
def hcl_terms(
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    temperature: float,
    beta: float = 1.0,
    tau_plus: float = 0.1,
    estimator: str = "hard",
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> HCLTerms:
    """The parts of `hcl` for each of this device's rows, [z_a; z_b], in logarithms.

    Raises:
      ValueError: as `hcl`.
    """
    z_a, z_b = prepared(normalise, z_a=z_a, z_b=z_b)
    sizes = check("b d", z_a=z_a, z_b=z_b)
    check_positive(temperature=temperature)
    check_axis(axis_name)
    if estimator not in ("hard", "debiased", "easy"):
        raise ValueError(f'estimator is {estimator!r}; expected "hard", "debiased" or "easy".')
    check_scalar(beta=beta, tau_plus=tau_plus)
    given_beta, given_tau = known_value(beta), known_value(tau_plus)
    if given_beta is not None and given_beta < 0:
        raise ValueError(
            f"beta is {beta}; expected at least 0, which is the debiased loss. 0.5 to 2 did best."
        )
    if given_tau is not None and not 0 <= given_tau < 1:
        raise ValueError(f"tau_plus is {tau_plus}; expected a probability, at least 0 and below 1.")
    x = jnp.concatenate([z_a, z_b])
    ids = {"id": jnp.tile(row_ids(sizes["b"], axis_name), 2)}  # the partner's too
    positive = jnp.tile(dots("bd,bd->b", z_a, z_b) / temperature, 2)

    def log_negative_sums(scale, column_ratio=1.0):
        """The sums at `scale` and, by the columns of this symmetric matrix, at a multiple of it."""
        sums = contrast(
            x,
            x,
            scale=scale,
            rows=ids,
            cols=ids,
            log_weight=not_self,
            columns=column_ratio != 1,
            column_ratio=column_ratio,
            axis_name=axis_name,
            plan=plan,
            block_size=block_size,
        )
        return sums.lse, sums.col_lse

    count = 2 * sizes["b"] * axis_size(axis_name) - 2
    if count == 0:
        nothing = jnp.full_like(positive, -jnp.inf)
        return HCLTerms(0.0 * positive, positive, nothing, jnp.zeros(positive.shape, bool))
    if estimator == "easy":
        negatives = log_negative_sums(1 / temperature)[0]
        return HCLTerms(
            jax.nn.softplus(negatives - positive),
            positive,
            negatives,
            jnp.zeros(positive.shape, bool),
        )
    if estimator == "debiased" or given_beta == 0:
        reweighted = log_negative_sums(1 / temperature)[0]
    else:
        if given_beta is not None:
            ratio = given_beta / (1 + given_beta)
            weighted, weights = log_negative_sums((1 + given_beta) / temperature, ratio)
        else:
            weighted = log_negative_sums((1 + beta) / temperature)[0]
            weights = log_negative_sums(beta / temperature)[0]
        reweighted = weighted - weights + log_count(count, positive.dtype)
    negatives, clamped = _debiased(reweighted, positive, count, tau_plus, temperature)
    return HCLTerms(jax.nn.softplus(negatives - positive), positive, negatives, clamped)


def _debiased(reweighted, positive, count, tau_plus, temperature):
    """(log Ng, whether it is at its floor) from log R, s+ / t and N."""
    floor = log_count(count, positive.dtype) - 1 / temperature
    # log(R - tau+ N e^{s+}) = log R + log(1 - e^ratio); at ratio >= 0 the difference is not
    # positive.
    log_n = log_count(count, positive.dtype)
    ratio = jnp.log(jnp.asarray(tau_plus, positive.dtype)) + log_n + positive - reweighted
    inside = ratio < 0
    safe = jnp.where(inside, ratio, -1.0)
    # Two forms of log(1 - e^x), each exact on its side of -log 2; the other's argument is kept from
    # its bad end.
    far = safe < -math.log(2)
    log_rest = jnp.where(
        far,
        jnp.log1p(-jnp.exp(jnp.where(far, safe, -1.0))),
        jnp.log(-jnp.expm1(jnp.where(far, -0.5, safe))),
    )
    debiased = reweighted + log_rest - jnp.log1p(-jnp.asarray(tau_plus, positive.dtype))
    free = inside & (debiased > floor)
    return jnp.where(free, debiased, floor), ~free


class Mixtures(NamedTuple):
    """MoCHi's draws. pairs: [B, s, 2], alpha: [B, s]; picks: [B, u], beta: [B, u]. Indices are
    ranks, 0 the hardest."""

    pairs: jax.Array
    alpha: jax.Array
    picks: jax.Array
    beta: jax.Array


@any_mesh
def draw_mixtures(
    key: jax.Array,
    ids: jax.Array,
    *,
    num_hard: int,
    num_pairs: int,
    num_query: int,
    distinct: bool = False,
) -> Mixtures:
    """MoCHi's random choices, each row's keyed by its example id: pairs and picks uniform with
    replacement among the `num_hard` hardest, alpha ~ U(0, 1) and beta ~ U(0, 0.5), so that the
    negative outweighs the query.

    Args:
      key: the step's key, the same on every device.
      ids: [B] examples.
      num_hard: N, how many of the hardest negatives are mixed.
      num_pairs: s, mixtures of two negatives; 0 for none.
      num_query: s', mixtures of a negative and the query; 0 for none.
      distinct: True draws a pair without replacement, so that it mixes two different negatives.

    Raises:
      ValueError: no random key, ids that are not integers [B], num_hard below 1, or 2 if distinct.
    """
    check_key(key=key)
    check_integer("b", ids=ids)
    check_count(num_hard=num_hard)
    if distinct and num_hard < 2:
        raise ValueError("num_hard is 1 and distinct is True; expected 2 negatives or more to mix.")

    def draw(i):
        a, b, c, d = jax.random.split(jax.random.fold_in(key, i), 4)
        pairs = jax.random.randint(a, (num_pairs, 2), 0, num_hard)
        if distinct:
            apart = jax.random.randint(jax.random.fold_in(a, 1), (num_pairs,), 1, num_hard)
            pairs = jnp.stack([pairs[:, 0], (pairs[:, 0] + apart) % num_hard], axis=1)
        return Mixtures(
            pairs,
            jax.random.uniform(b, (num_pairs,)),
            jax.random.randint(c, (num_query,), 0, num_hard),
            0.5 * jax.random.uniform(d, (num_query,)),
        )

    return jax.vmap(draw)(ids)


@any_mesh
def hardest_negatives(
    queries: jax.Array, queue: jax.Array, *, num_hard: int, block_size: int | None = None
) -> jax.Array:
    """[B, num_hard] rows of the queue most similar to each query, the hardest first; of equal ones
    the lower row first.

    Args:
      queries: [B, D].
      queue: [K, D].
      num_hard: at most K.
      block_size: queue rows compared at a time; None for all at once.

    Raises:
      ValueError: shapes that disagree, num_hard outside 1 to K, block_size below 1.
    """
    sizes = check("b d", queries=queries)
    sizes = check("k d", sizes, queue=queue)
    check_count(num_hard=num_hard, block_size=block_size)
    if num_hard > sizes["k"]:
        raise ValueError(
            f"num_hard is {num_hard}; expected at most the {sizes['k']} rows of the queue."
        )
    queries, queue = lax.stop_gradient((jnp.asarray(queries), jnp.asarray(queue)))
    if block_size is None or block_size >= sizes["k"]:
        return lax.top_k(dots("bd,kd->bk", queries, queue), num_hard)[1]

    def merge(best, block):
        start = block * block_size
        rows = start + jnp.arange(block_size, dtype=jnp.int32)
        similarity = dots("bd,kd->bk", queries, queue[jnp.minimum(rows, sizes["k"] - 1)])
        similarity = jnp.where(rows[None] < sizes["k"], similarity, -jnp.inf)
        values = jnp.concatenate([best[0], similarity], axis=1)
        index = jnp.concatenate([best[1], jnp.broadcast_to(rows[None], similarity.shape)], axis=1)
        values, order = lax.top_k(values, num_hard)
        return (values, jnp.take_along_axis(index, order, axis=1)), None

    dtype = wide_type(jnp.result_type(queries, queue))
    start = (
        jnp.full((sizes["b"], num_hard), -jnp.inf, dtype),
        jnp.zeros((sizes["b"], num_hard), jnp.int32),
    )
    return lax.scan(merge, start, jnp.arange(-(-sizes["k"] // block_size), dtype=jnp.int32))[0][1]


@any_mesh
def mix_negatives(
    queue: jax.Array, hardest: jax.Array, pairs: jax.Array, alpha: jax.Array
) -> jax.Array:
    """[B, s, D] MoCHi's first kind: normalise(alpha n_i + (1 - alpha) n_j) of two hard negatives;
    constants.

    Args:
      queue: [K, D] unit vectors.
      hardest: [B, N] rows of the queue (`hardest_negatives`).
      pairs: [B, s, 2] columns of `hardest`.
      alpha: [B, s] weight of the first.

    Raises:
      ValueError: shapes that disagree, indices that are not integers.
    """
    check("k d", queue=queue)
    sizes = check_integer("b n", hardest=hardest)
    check("b s", check_integer("b s 2", sizes, pairs=pairs), alpha=alpha)
    left, right = (_take(queue, hardest, pairs[..., side]) for side in (0, 1))
    alpha = wide(alpha)[..., None]
    return lax.stop_gradient(unit(alpha * left + (1 - alpha) * right))


@any_mesh
def mix_with_query(
    queries: jax.Array,
    queue: jax.Array,
    hardest: jax.Array,
    picks: jax.Array,
    beta: jax.Array,
    *,
    normalise: bool = True,
) -> jax.Array:
    """[B, u, D] MoCHi's second kind: normalise(beta q + (1 - beta) n_j) of the query and a hard
    negative; constants.

    Args:
      queries: [B, D]; the query inside the mixture is a constant too.
      queue: [K, D] unit vectors.
      hardest: [B, N] rows of the queue (`hardest_negatives`).
      picks: [B, u] columns of `hardest`.
      beta: [B, u] weight of the query, below 0.5 in the paper.

    Raises:
      ValueError: shapes that disagree, indices that are not integers.
    """
    (queries,) = prepared(normalise, queries=queries)
    sizes = check("b d", queries=queries)
    sizes = check_integer("b n", check("k d", sizes, queue=queue), hardest=hardest)
    check("b u", check_integer("b u", sizes, picks=picks), beta=beta)
    negative = _take(queue, hardest, picks)
    beta = wide(beta)[..., None]
    return lax.stop_gradient(unit(beta * wide(queries)[:, None] + (1 - beta) * negative))


@any_mesh
def mochi(
    q: jax.Array,
    k: jax.Array,
    queue: jax.Array,
    synthetic: jax.Array,
    *,
    temperature: float,
    active: bool | jax.Array = True,
    normalise: bool = True,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> jax.Array:
    """Pulls a query to its key, pushes it from the queue and from synthetic negatives of its own.

    L = -1/B sum_i log( exp(q_i.k_i/t)
                        / (exp(q_i.k_i/t) + sum_j exp(q_i.queue_j/t) + sum_s exp(q_i.h_is/t)) )

    Args:
      q: [B, D] unit queries; gradient flows.
      k: [B, D] unit keys, constants.
      queue: [K, D] unit rows, constants.
      synthetic: [B, S, D] of each query, constants: `mix_negatives` and `mix_with_query` joined
        along axis 1. With S = 0 the loss is MoCo's.
      temperature: 0.2 in the paper.
      active: False leaves the synthetic negatives out (the first epochs); may be traced.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: device axis that splits the batch; queue is the same on every device.
      block_size: the side of a tile, as in `contrast`.

    Returns:
      Scalar in nats, mean over the global batch; log(1 + K + S) where all similarities are equal.

    Raises:
      ValueError: shapes that disagree, temperature <= 0, an axis that is not mapped.

    Reference: Kalantidis et al. 2020, arXiv 2010.01028, section 4. No code was released.
    """
    return mean(
        jnp.mean(
            mochi_rows(
                q,
                k,
                queue,
                synthetic,
                temperature=temperature,
                active=active,
                axis_name=axis_name,
                block_size=block_size,
                normalise=normalise,
            )
        ),
        axis_name,
    )


@any_mesh
def mochi_rows(
    q: jax.Array,
    k: jax.Array,
    queue: jax.Array,
    synthetic: jax.Array,
    *,
    temperature: float,
    active: bool | jax.Array = True,
    normalise: bool = True,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> jax.Array:
    """[B] `mochi` of each of this device's rows."""
    q, k = prepared(normalise, q=q, k=k)
    sizes = check("b d", q=q, k=k)
    check("k d", sizes, queue=queue)
    check("b s d", sizes, synthetic=synthetic)
    check_positive(temperature=temperature)
    check_axis(axis_name)
    k, queue = lax.stop_gradient((k, queue))
    positive = dots("bd,bd->b", q, k) / temperature
    negatives = contrast(q, queue, scale=1 / temperature, block_size=block_size).lse
    if synthetic.shape[1]:
        extra = log_sum_exp(_synthetic_logits(q, synthetic, temperature), axis=1)
        negatives = jnp.logaddexp(negatives, jnp.where(active, extra, -jnp.inf))
    return jax.nn.softplus(negatives - positive)


@any_mesh
def mochi_logits(
    q: jax.Array,
    k: jax.Array,
    queue: jax.Array,
    synthetic: jax.Array,
    *,
    temperature: float,
    normalise: bool = True,
) -> jax.Array:
    """[B, 1 + K + S] similarities over temperature: the key, the queue, the synthetic negatives."""
    q, k = prepared(normalise, q=q, k=k)
    check("b s d", check("b d", q=q), synthetic=synthetic)
    return jnp.concatenate(
        [
            queue_logits(q, k, queue, temperature=temperature, normalise=False),
            _synthetic_logits(q, synthetic, temperature),
        ],
        axis=1,
    )


class Selection(NamedTuple):
    """selected: [B, M] booleans, the hard negatives of each row. threshold: [B], the lowest
    similarity among them."""

    selected: jax.Array
    threshold: jax.Array


@any_mesh
def select_hard(similarity: jax.Array, positive: jax.Array, *, num_hard: int) -> Selection:
    """The negatives at least as similar as the `num_hard`-th of their row, all where there are
    fewer; constants.

    Args:
      similarity: [B, M].
      positive: [B] integers, the column of each row's positive, which is never selected.
      num_hard: how many; equal similarities at the threshold are all taken.

    Raises:
      ValueError: shapes that disagree, positions that are not integers, num_hard below 1.
    """
    sizes = check("b m", similarity=similarity)
    check_integer("b", sizes, positive=positive)
    check_count(num_hard=num_hard)
    similarity = lax.stop_gradient(similarity)
    own = jnp.arange(sizes["m"])[None] == positive[:, None]
    if sizes["m"] == 1:
        return Selection(
            jnp.zeros(own.shape, bool), jnp.full((sizes["b"],), jnp.inf, similarity.dtype)
        )
    count = min(num_hard, sizes["m"] - 1)
    threshold = lax.top_k(jnp.where(own, -jnp.inf, similarity), count)[0][:, -1]
    return Selection(~own & ~(similarity < threshold[:, None]), threshold)  # NaN is passed on


@any_mesh
def simple(
    queries: jax.Array,
    keys: jax.Array,
    positive: jax.Array | None = None,
    *,
    negative_weight: float,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pulls the positive and pushes every negative alike:
    L = 1/B sum_i [ -s_ip + lambda sum_{j != p} s_ij ].

    Args:
      queries: [B, D]; gradient flows.
      keys: with `positive`, [M, D] unit vectors, the same on every device (a bank: pass it through
        `lax.stop_gradient`, since gradient flows); without, [B, D] paired with the queries and
        gathered over devices.
      positive: [B] integers, the row of `keys` that is each query's positive.
      negative_weight: lambda.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: device axis that splits the batch.

    Returns:
      Scalar, mean over the global batch; unbounded units, 0 where all similarities are 0.

    Raises:
      ValueError: shapes that disagree, an axis that is not mapped.

    Reference: Wang and Liu 2021, arXiv 2012.09740, equation 6. No code was released.
    """
    return mean(
        jnp.mean(
            simple_rows(
                queries,
                keys,
                positive,
                negative_weight=negative_weight,
                axis_name=axis_name,
                normalise=normalise,
            )
        ),
        axis_name,
    )


@any_mesh
def simple_rows(
    queries: jax.Array,
    keys: jax.Array,
    positive: jax.Array | None = None,
    *,
    negative_weight: float,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> jax.Array:
    """[B] `simple` of each of this device's rows."""
    queries, keys, positive = _candidates(queries, keys, positive, normalise, axis_name)
    own = dots("bd,bd->b", queries, keys[positive])
    # The sum over keys first: the negatives of all rows share it.
    return -own + negative_weight * (
        dots("bd,d->b", wide(queries), jnp.sum(wide(keys), axis=0)) - own
    )


@any_mesh
def hard_simple(
    queries: jax.Array,
    keys: jax.Array,
    positive: jax.Array | None = None,
    *,
    negative_weight: float,
    num_hard: int,
    normalise: bool = True,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> jax.Array:
    """Pulls the positive and pushes the hardest negatives alike: `simple` with the sum over
    `select_hard`'s choice.

    Args:
      queries, keys, positive, negative_weight, axis_name: as in `simple`.
      num_hard: negatives kept per query (4095 of a bank in the paper); the choice is constant to
        the gradient.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      block_size: queries whose similarities are held at a time; None chooses by size, 0 for all at
        once.

    Returns, Raises: as `simple`.

    Reference: Wang and Liu 2021, arXiv 2012.09740, equation 8. No code was released.
    """
    return mean(
        jnp.mean(
            hard_simple_rows(
                queries,
                keys,
                positive,
                negative_weight=negative_weight,
                num_hard=num_hard,
                axis_name=axis_name,
                block_size=block_size,
                normalise=normalise,
            )
        ),
        axis_name,
    )


@any_mesh
def hard_simple_rows(
    queries: jax.Array,
    keys: jax.Array,
    positive: jax.Array | None = None,
    *,
    negative_weight: float,
    num_hard: int,
    normalise: bool = True,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> jax.Array:
    """[B] `hard_simple` of each of this device's rows."""
    queries, keys, positive = _candidates(queries, keys, positive, normalise, axis_name)

    def rows(q, positive):
        similarity = dots("bd,kd->bk", q, keys)
        own = jnp.take_along_axis(similarity, positive[:, None], axis=1)[:, 0]
        chosen = select_hard(similarity, positive, num_hard=num_hard).selected
        return -own + negative_weight * jnp.sum(jnp.where(chosen, similarity, 0.0), axis=1)

    check_plan("gather", block_size)
    return over_rows(rows, queries, positive, columns=keys.shape[0], block_size=block_size)


@any_mesh
def hard_contrastive(
    queries: jax.Array,
    keys: jax.Array,
    positive: jax.Array | None = None,
    *,
    temperature: float,
    num_hard: int | None,
    normalise: bool = True,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> jax.Array:
    """Pulls the positive against the hardest negatives only, by the contrastive loss.

    L = -1/B sum_i log( exp(s_ip / t) / (exp(s_ip / t) + sum_{j selected} exp(s_ij / t)) )

    Args:
      queries, keys, positive, axis_name: as in `simple`.
      temperature: t.
      num_hard: negatives kept per query, None for all (the ordinary loss); the choice is constant
        to the gradient.
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      block_size: queries whose similarities are held at a time; None chooses by size, 0 for all at
        once.

    Returns:
      Scalar in nats, mean over the global batch; log(1 + num_hard) where all similarities are equal
      but for ties, which are all kept; 0 where there is no negative.

    Raises:
      ValueError: shapes that disagree, temperature <= 0, num_hard < 1, an axis that is not mapped.

    Reference: Wang and Liu 2021, arXiv 2012.09740, equation 7. No code was released.
    """
    return mean(
        jnp.mean(
            hard_contrastive_rows(
                queries,
                keys,
                positive,
                temperature=temperature,
                num_hard=num_hard,
                axis_name=axis_name,
                block_size=block_size,
                normalise=normalise,
            )
        ),
        axis_name,
    )


@any_mesh
def hard_contrastive_rows(
    queries: jax.Array,
    keys: jax.Array,
    positive: jax.Array | None = None,
    *,
    temperature: float,
    num_hard: int | None,
    normalise: bool = True,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> jax.Array:
    """[B] `hard_contrastive` of each of this device's rows."""
    check_positive(temperature=temperature)
    check_plan("gather", block_size)
    queries, keys, positive = _candidates(queries, keys, positive, normalise, axis_name)
    if num_hard is None:
        return contrast(
            queries,
            keys,
            scale=1 / temperature,
            rows={"id": positive},
            cols={"id": jnp.arange(keys.shape[0])},
            positive=same_id,
            block_size=block_size,
        ).gap

    def rows(q, positive):
        similarity = dots("bd,kd->bk", q, keys)
        own = jnp.take_along_axis(similarity, positive[:, None], axis=1)
        chosen = select_hard(similarity, positive, num_hard=num_hard).selected
        chosen |= jnp.arange(keys.shape[0])[None] == positive[:, None]
        return log_sum_exp(jnp.where(chosen, (similarity - own) / temperature, -jnp.inf), axis=1)

    return over_rows(rows, queries, positive, columns=keys.shape[0], block_size=block_size)


def _candidates(queries, keys, positive, normalise, axis_name):
    """Queries, all candidates of them, and the position of each one's positive."""
    sizes = check("b d", queries=queries)
    check_axis(axis_name)
    (queries,) = prepared(normalise, queries=queries)
    if positive is None:
        check("b d", sizes, keys=keys)
        (keys,) = prepared(normalise, keys=keys)
        return queries, gather(keys, axis_name), row_ids(sizes["b"], axis_name)
    check("m d", sizes, keys=keys)
    check_integer("b", sizes, positive=positive)
    return queries, jnp.asarray(keys), jnp.asarray(positive)


def _take(queue, hardest, columns):
    """[B, s, D] rows of the queue by column of each query's own table; gathers only those."""
    shape = columns.shape
    rows = jnp.take_along_axis(
        jnp.asarray(hardest), jnp.asarray(columns).reshape(shape[0], -1), axis=1
    )
    return wide(jnp.asarray(queue)[rows.reshape(shape)])


def _synthetic_logits(q, synthetic, temperature):
    return (
        dots("bd,bsd->bs", q, jnp.asarray(lax.stop_gradient(synthetic), jnp.result_type(q)))
        / temperature
    )
