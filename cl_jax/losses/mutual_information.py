"""Deep InfoMax: bounds on the mutual information between an image's summary and its local features."""

import math

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.losses._axis import first_row, gather, mean, total
from cl_jax.losses._float import dots, wide
from cl_jax.losses._rows import over_rows
from cl_jax.shapes import check, check_axis

MEASURES = ("JSD", "GAN", "X2", "KL", "RKL", "H2", "W1")


def dim_divergence(local: jax.Array, summary: jax.Array, *, measure: str = "JSD",
                   axis_name: str | None = None, block_size: int | None = None) -> jax.Array:
    """Raises the score of a summary with its own image's local features, lowers it with those of other images.

    u_(n m n' l) = <summary_nm, local_n'l>
    loss = mean_(n != n') mean_(m l) E-(u_(n m n' l)) - mean_n mean_(m l) E+(u_(n m n l)),  E of `expectations`

    Args:
      local: [B, L, D] features of L locations per image; gradient flows.
      summary: [B, M, D] of M summaries per image (usually 1); gradient flows. Neither is normalised: the authors bound
        scores with a LayerNorm before.
      measure: "JSD", the paper's, or one of "GAN", "X2", "KL", "RKL", "H2", "W1".
      axis_name: mapped axis over which the batch is split; other images are those of the global batch.
      block_size: images whose scores with the global batch are held at a time; None for all. Smaller saves memory
        and recomputes scores in the backward pass.

    Returns:
      Scalar, at least float32. "JSD": from -2 log 2 to infinity; 0 where scores say nothing, that is u = 0.

    Raises:
      ValueError: shapes that disagree, an unknown measure, a global batch of one image, `axis_name` not mapped.

    Reference: Hjelm et al., Learning deep representations by mutual information estimation and maximization, ICLR 2019,
    equations 4 and 6; Nowozin et al., f-GAN, NeurIPS 2016, for the other measures. "X2", "KL", "RKL" and "H2" are as
    the authors' code has them. Its "DV" does not run on usual shapes: see `dim_donsker_varadhan`.
    """
    own, images = _own(local, summary, axis_name, least=2)

    def strangers(u, mine):
        # Own images are blanked before exp: an overflow there must not reach the gradient as 0 * inf.
        return jnp.where(mine, 0, expectations(jnp.where(mine, 0, u), measure)[1]).mean(axis=(1, 3)).sum(axis=1)
    negative = total(_with_all(strangers, local, summary, axis_name, block_size).sum(), axis_name)
    return negative / (images * (images - 1)) - mean(expectations(own, measure)[0].mean(), axis_name)


def expectations(u: jax.Array, measure: str) -> tuple[jax.Array, jax.Array]:
    """The two parts of a divergence's lower bound, elementwise: (E+ for pairs, E- for strangers); bound = E+ - E-.

    JSD  log 2 - softplus(-u), softplus(u) - log 2      GAN  -softplus(-u), softplus(u)      W1  u, u
    KL   u, exp(u - 1)      RKL  -exp(-u), u - 1      H2  1 - exp(-u), exp(u) - 1      X2  u^2, -(|u| + 1)^2 / 2

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
    raise ValueError(f"measure is {measure!r}; expected one of {', '.join(MEASURES)}. For Donsker-Varadhan call "
                     "dim_donsker_varadhan.")


def dim_infonce(local: jax.Array, summary: jax.Array, *, own_logit: float | None = -10.0,
                axis_name: str | None = None, block_size: int | None = None) -> jax.Array:
    """Picks an image's own local feature among those of all other images, by its dot product with the summary.

    u_(n m n' l) = <summary_nm, local_n'l>
    loss = mean_(n m l) log(1 + exp(-u_(n m n l)) (L exp(own_logit) + sum_(n' != n, l') exp(u_(n m n' l'))))

    Args:
      local: [B, L, D] features of L locations per image; gradient flows.
      summary: [B, M, D] of M summaries per image (usually 1); gradient flows. Neither is normalised, nor is there a
        temperature.
      own_logit: what the authors put in place of the own image's other scores, where they mean to leave them out: -10,
        not minus infinity, so that L exp(-10) stays in the sum. None leaves them out.
      axis_name: mapped axis over which the batch is split; other images are those of the global batch.
      block_size: images whose scores with the global batch are held at a time; None for all. Smaller saves memory
        and recomputes scores in the backward pass.

    Returns:
      Scalar in nats, at least float32; about log(1 + L (B - 1)) where scores say nothing.

    Raises:
      ValueError: shapes that disagree, `axis_name` not mapped.

    Reference: Hjelm et al., ICLR 2019, equation 5.
    """
    own, _ = _own(local, summary, axis_name)

    def strangers(u, mine):
        # A finite floor: a batch of one image must stay free of NaN.
        return jax.nn.logsumexp(jnp.where(mine, -1e30 if own_logit is None else own_logit, u), axis=(2, 3))
    log_negatives = _with_all(strangers, local, summary, axis_name, block_size)
    return mean(jax.nn.softplus(log_negatives[..., None] - own).mean(), axis_name)


def dim_donsker_varadhan(local: jax.Array, summary: jax.Array, *, axis_name: str | None = None,
                         block_size: int | None = None) -> jax.Array:
    """Raises the score of a summary with its own image's local features, lowers the log-mean-exp over other images.

    u_(n m n' l) = <summary_nm, local_n'l>
    loss = log mean_(n != n', m, l) exp(u_(n m n' l)) - mean_(n m l) u_(n m n l),  by a stable log-sum-exp

    Args:
      local: [B, L, D] features of L locations per image; gradient flows.
      summary: [B, M, D] of M summaries per image (usually 1); gradient flows. Neither is normalised.
      axis_name: mapped axis over which the batch is split; other images are those of the global batch.
      block_size: images whose scores with the global batch are held at a time; None for all. Smaller saves memory
        and recomputes scores in the backward pass.

    Returns:
      Scalar in nats, at least float32: minus a lower bound on the mutual information; 0 where scores say nothing.

    Raises:
      ValueError: shapes that disagree, a global batch of one image, `axis_name` not mapped.

    Reference: Hjelm et al., ICLR 2019, equation 2 with dot-product scores; Belghazi et al., MINE, ICML 2018. The
    authors' code masks a four-axis score with a two-axis mask and fails on most shapes; there is no flag for that.
    """
    own, images = _own(local, summary, axis_name, least=2)
    _, summaries, locations = own.shape

    def strangers(u, mine):
        return jax.nn.logsumexp(jnp.where(mine, -1e30, u), axis=(1, 2, 3))
    log_sum = jax.nn.logsumexp(gather(_with_all(strangers, local, summary, axis_name, block_size), axis_name))
    log_mean = log_sum - math.log(images * (images - 1) * summaries * locations)
    return mean(log_mean, axis_name) - mean(own.mean(), axis_name)


def _own(local, summary, axis_name, least=1):
    """Scores of each image with itself, [B, M, L], and the number of images in the global batch."""
    check("b m d", check("b l d", local=local), summary=summary)
    check_axis(axis_name)
    images = local.shape[0] * (1 if axis_name is None else lax.axis_size(axis_name))
    if images < least:
        raise ValueError(f"The global batch has {images} image; expected at least {least}, since negatives are other "
                         "images. With axis_name=None only this device's batch is seen.")
    return dots("bmd,bld->bml", summary, local), images


def _with_all(f, local, summary, axis_name, block_size):
    """f(scores [b, M, B_global, L], which of them are with the own image [b, 1, B_global, 1]) over blocks of rows."""
    everyone = gather(local, axis_name)
    own = first_row(local.shape[0], axis_name) + jnp.arange(local.shape[0])

    def rows(summary, own):
        mine = own[:, None] == jnp.arange(everyone.shape[0])[None]
        return f(dots("bmd,nld->bmnl", summary, everyone), mine[:, None, :, None])
    return over_rows(rows, summary, own, block_size=block_size)
