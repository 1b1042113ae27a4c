"""Deep InfoMax: bounds on the mutual information between an image's summary and its local
features."""

import math

import jax
import jax.numpy as jnp

from cl_jax.core.axis import AxisName, any_mesh, axis_size, log_total, mean, total
from cl_jax.core.numerics import dots, log_count, real_count, wide
from cl_jax.core.shapes import check, check_axis
from cl_jax.losses.contrast import Pairs, allow, contrast, pair_sums, row_ids, same_example

MEASURES = ("JSD", "GAN", "X2", "KL", "RKL", "H2", "W1")


@any_mesh
def dim_divergence(
    local: jax.Array,
    summary: jax.Array,
    *,
    measure: str = "JSD",
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Raises the score of a summary with its own image's local features, lowers it with those of
    other images.

    u_(n m n' l) = <summary_nm, local_n'l>
    loss = mean_(n != n') mean_(m l) E-(u_(n m n' l)) - mean_n mean_(m l) E+(u_(n m n l)),
    E of `expectations`

    Args:
      local: [B, L, D] features of L locations per image; gradient flows.
      summary: [B, M, D] of M summaries per image (usually 1); gradient flows. Neither is
        normalised: the authors bound scores with a LayerNorm before.
      measure: "JSD", the paper's, or one of "GAN", "X2", "KL", "RKL", "H2", "W1".
      axis_name: mapped axis over which the batch is split; other images are those of the global
        batch.
      plan, block_size: how devices share local features and the side of a tile, as in `contrast`; a
        row is one summary, a column one location.

    Returns:
      Scalar, at least float32. "JSD": from -2 log 2 to infinity; 0 where all scores are 0.

    Raises:
      ValueError: shapes that disagree, an unknown measure, a global batch of one image, `axis_name`
        not mapped.

    Reference: Hjelm et al., Learning deep representations by mutual information estimation and
      maximization, ICLR 2019, equations 4 and 6; Nowozin et al., f-GAN, NeurIPS 2016, for the other
      measures. "X2", "KL", "RKL" and "H2" are as the authors' code has them. Its "DV" does not run
      on usual shapes: see `dim_donsker_varadhan`."""
    own, images = _own(local, summary, axis_name, least=2)
    positive = mean(expectations(own, measure)[0].mean(), axis_name)

    def stranger(u: jax.Array, rows: Pairs, cols: Pairs) -> jax.Array:
        # Own images are blanked before exp: an overflow there must not reach the gradient as 0 *
        # inf.
        mine = same_example(rows, cols)
        return jnp.where(mine, 0, expectations(jnp.where(mine, 0, u), measure)[1])

    queries, keys, rows, cols = _pairs(local, summary, axis_name)
    sums = pair_sums(
        queries,
        keys,
        stranger,
        scale=1.0,
        rows=rows,
        cols=cols,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )
    pairs = real_count(images * (images - 1) * own[0].size)
    return total(sums.sum(), axis_name) / pairs - positive


@any_mesh
def expectations(u: jax.Array, measure: str) -> tuple[jax.Array, jax.Array]:
    """The two parts of a divergence's lower bound, elementwise: (E+ for pairs, E- for strangers);
    bound = E+ - E-.

    JSD  log 2 - softplus(-u), softplus(u) - log 2
    GAN  -softplus(-u), softplus(u)
    W1   u, u
    KL   u, exp(u - 1)
    RKL  -exp(-u), u - 1
    H2   1 - exp(-u), exp(u) - 1
    X2   u^2, -(|u| + 1)^2 / 2

    Args:
      u: scores, any shape; gradient flows.
      measure: one of `MEASURES`.

    Raises:
      ValueError: an unknown measure.
    """
    u = wide(u)
    if measure == "JSD":
        return math.log(2) - jax.nn.softplus(-u), jax.nn.softplus(u) - math.log(2)
    if measure == "GAN":
        return -jax.nn.softplus(-u), jax.nn.softplus(u)
    if measure == "X2":
        return jnp.square(u), -jnp.square(jnp.abs(u) + 1) / 2
    if measure == "KL":
        return u, jnp.exp(u - 1)
    if measure == "RKL":
        return -jnp.exp(-u), u - 1
    if measure == "H2":
        return -jnp.expm1(-u), jnp.expm1(u)
    if measure == "W1":
        return u, u
    raise ValueError(
        f"measure is {measure!r}; expected one of {', '.join(MEASURES)}. For Donsker-Varadhan call "
        "dim_donsker_varadhan."
    )


@any_mesh
def dim_infonce(
    local: jax.Array,
    summary: jax.Array,
    *,
    own_logit: float | None = -10.0,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Picks an image's own local feature among those of all other images, by its dot product with
    the summary.

    u_(n m n' l) = <summary_nm, local_n'l>
    loss = mean_(n m l) log(1 + exp(-u_(n m n l)) (L exp(own_logit)
                                                   + sum_(n' != n, l') exp(u_(n m n' l'))))

    Args:
      local: [B, L, D] features of L locations per image; gradient flows.
      summary: [B, M, D] of M summaries per image (usually 1); gradient flows. Neither is
        normalised, nor is there a temperature.
      own_logit: what the authors put in place of the own image's other scores, where they mean to
        leave them out: -10, not minus infinity, so that L exp(-10) stays in the sum. None leaves
        them out.
      axis_name: mapped axis over which the batch is split; other images are those of the global
        batch.
      plan, block_size: how devices share local features and the side of a tile, as in `contrast`; a
        row is one summary, a column one location.

    Returns:
      Scalar in nats, at least float32; about log(1 + L (B - 1)) where all scores are 0.

    Raises:
      ValueError: shapes that disagree, `axis_name` not mapped.

    Reference: Hjelm et al., ICLR 2019, equation 5.
    """
    own, _ = _own(local, summary, axis_name)
    log_negatives = _log_strangers(local, summary, axis_name, plan, block_size).reshape(
        own.shape[:2]
    )
    if own_logit is not None:
        log_negatives = jnp.logaddexp(log_negatives, own_logit + math.log(own.shape[2]))
    return mean(jax.nn.softplus(log_negatives[..., None] - own).mean(), axis_name)


@any_mesh
def dim_donsker_varadhan(
    local: jax.Array,
    summary: jax.Array,
    *,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Raises the score of a summary with its own image's local features, lowers the log-mean-exp
    over other images.

    u_(n m n' l) = <summary_nm, local_n'l>
    loss = log mean_(n != n', m, l) exp(u_(n m n' l)) - mean_(n m l) u_(n m n l),
    by a stable log-sum-exp

    Args:
      local: [B, L, D] features of L locations per image; gradient flows.
      summary: [B, M, D] of M summaries per image (usually 1); gradient flows. Neither is
        normalised.
      axis_name: mapped axis over which the batch is split; other images are those of the global
        batch.
      plan, block_size: how devices share local features and the side of a tile, as in `contrast`; a
        row is one summary, a column one location.

    Returns:
      Scalar in nats, at least float32: minus a lower bound on the mutual information; 0 where
        all scores are equal.

    Raises:
      ValueError: shapes that disagree, a global batch of one image, `axis_name` not mapped.

    Reference: Hjelm et al., ICLR 2019, equation 2 with dot-product scores; Belghazi et al., MINE,
      ICML 2018. The authors' code masks a four-axis score with a two-axis mask and fails on most
      shapes; there is no flag for that."""
    own, images = _own(local, summary, axis_name, least=2)
    log_sum = log_total(_log_strangers(local, summary, axis_name, plan, block_size), axis_name)
    pairs = images * (images - 1) * own[0].size
    return log_sum - log_count(pairs, log_sum.dtype) - mean(own.mean(), axis_name)


def _own(local, summary, axis_name, least=1):
    """Scores of each image with itself, [B, M, L], and the number of images in the global batch."""
    check("b m d", check("b l d", local=local), summary=summary)
    check_axis(axis_name)
    images = local.shape[0] * axis_size(axis_name)
    if isinstance(images, int) and images < least:
        raise ValueError(
            f"The global batch has {images} image; expected at least {least}, since negatives are "
            f"other "
            "images. With axis_name=None only this device's batch is seen."
        )
    return dots("bmd,bld->bml", summary, local), images


def _pairs(local, summary, axis_name):
    """Summaries as queries and local features as keys, row by row, each with the image it is of."""
    image = row_ids(local.shape[0], axis_name)
    rows, cols = ({"example": jnp.repeat(image, x.shape[1])} for x in (summary, local))
    return summary.reshape(-1, summary.shape[2]), local.reshape(-1, local.shape[2]), rows, cols


def _log_strangers(local, summary, axis_name, plan, block_size):
    """[B M] log of the sum of exp(scores) over the local features of all other images."""
    queries, keys, rows, cols = _pairs(local, summary, axis_name)
    return contrast(
        queries,
        keys,
        scale=1.0,
        rows=rows,
        cols=cols,
        log_weight=lambda rows, cols: allow(~same_example(rows, cols)),
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    ).lse
