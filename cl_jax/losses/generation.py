"""Conditional image generation with a contrast of images and class proxies (ContraGAN), and the
adversarial losses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, mean, share_of_gradient
from cl_jax.core.numerics import dots, prepared, wide
from cl_jax.core.shapes import check, check_axis, check_integer, check_positive
from cl_jax.losses.contrast import (
    LOG_ZERO,
    allow,
    contrast,
    not_self,
    row_ids,
    same_label,
    separate_unlabelled,
)


class TwoC(NamedTuple):
    """loss: [B], log_denominator - log_numerator with the digits that their difference would
    lose."""

    loss: jax.Array
    log_numerator: jax.Array
    log_denominator: jax.Array


@any_mesh
def two_c(
    z: jax.Array,
    proxies: jax.Array,
    labels: jax.Array,
    *,
    temperature: float,
    positives: str = "class",
    normalise: bool = True,
    released_gradient: bool = False,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls an image to its class's proxy and to images of its class, from all other images.

    loss = mean_i [ log( P_i + sum_(j != i) S_ij )
                    - log( P_i + sum_(j != i, labels_j = labels_i) S_ij ) ]
    S_ij = exp(cos(z_i, z_j) / temperature),
    P_i = exp(cos(z_i, proxies[labels_i]) / temperature)

    Args:
      z: [B, D] image embeddings, normalised here; gradient flows through both factors.
      proxies: [C, D] class embeddings, normalised here; gradient flows to the rows of the labels
        present. The proxies of other classes are no negatives.
      labels: [B] integers below C; from C on the loss is NaN. A row below 0 has no label: it has no
        proxy and no image of its class, counts as 0, and stays a negative of the others.
      temperature: above 0 (1 in the paper's configurations).
      positives: "class", the formula above, or "proxy": P_i alone in the numerator. Under "class"
        nothing ties a cluster of images to its own proxy, and a generator may settle on permuted
        classes; "proxy" prevents that.
      normalise: embeddings to unit length here, norms below 1e-8 counting as 1e-8, as in the
        authors' cosine; False takes them as they are.
      released_gradient: on several devices the authors' gather passes each device the gradient of
        its own copy of the loss alone, which after averaging is the true one divided by the number
        of devices. True does the same.
      axis_name: mapped axis over which the batch is split; images come from all devices, proxies
        are replicated.
      plan, block_size: how the sums are computed, see `contrast`.

    Returns:
      Scalar in nats, at least 0; 0 for a batch of one. Where all cosines agree: the mean of log B -
      log(same-class images, itself included). A zero row is normalised to zero.

    Raises:
      ValueError: shapes that disagree, labels that are not integers, a temperature that is not
        above 0, an unknown `positives`, `axis_name` not mapped.

    Reference: Kang and Park, ContraGAN: Contrastive Learning for Conditional Image Generation,
      NeurIPS 2020, arXiv 2006.12681, the conditional contrastive (2C) loss.
    """
    rows = two_c_rows(
        z,
        proxies,
        labels,
        temperature=temperature,
        positives=positives,
        normalise=normalise,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )
    loss = mean(rows.loss.mean(), axis_name)
    return share_of_gradient(loss, axis_name) if released_gradient else loss


@any_mesh
def two_c_rows(
    z: jax.Array,
    proxies: jax.Array,
    labels: jax.Array,
    *,
    temperature: float,
    positives: str = "class",
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> TwoC:
    """The terms whose mean is `two_c`, and their parts, for this device's rows.

    Raises:
      ValueError: as `two_c`.
    """
    if positives not in ("class", "proxy"):
        raise ValueError(f"positives is {positives!r}; expected 'class' or 'proxy'.")
    sizes = check("b d", z=z)
    check("c d", {"d": sizes["d"]}, proxies=proxies)
    check_integer("b", sizes, labels=labels)
    check_positive(temperature=temperature)
    check_axis(axis_name)
    z, proxies = prepared(normalise, 1e-8, z=z, proxies=proxies)
    labels = jnp.asarray(labels)
    labelled = labels >= 0
    own = proxies.at[jnp.maximum(labels, 0)].get(mode="fill")  # NaN for a class that there is not
    own_proxy = dots("bd,bd->b", z, own) / temperature
    proxy = jnp.where(labelled, own_proxy, LOG_ZERO)
    pairs = {
        "id": row_ids(sizes["b"], axis_name),
        "label": separate_unlabelled(labels, axis_name),
    }

    def log_sum(allowed):
        return contrast(
            z,
            z,
            scale=1 / temperature,
            rows=pairs,
            cols=pairs,
            log_weight=allowed,
            axis_name=axis_name,
            plan=plan,
            block_size=block_size,
        ).lse

    if positives == "class":
        above = jnp.logaddexp(
            proxy,
            log_sum(
                lambda rows, cols: jnp.where(same_label(rows, cols), not_self(rows, cols), -jnp.inf)
            ),
        )
        others = log_sum(lambda rows, cols: allow(~same_label(rows, cols)))
    else:
        above, others = proxy, log_sum(not_self)
    # log(above + others) - log(above), with the digits of a small loss.
    loss = jnp.where(labelled, jax.nn.softplus(others - above), 0)
    return TwoC(loss, above, jnp.logaddexp(above, others))


@any_mesh
def contragan_discriminator(
    d_real: jax.Array,
    d_fake: jax.Array,
    z_real: jax.Array,
    proxies: jax.Array,
    labels_real: jax.Array,
    *,
    temperature: float,
    weight: float,
    positives: str = "class",
    normalise: bool = True,
    axis_name: AxisName = None,
) -> jax.Array:
    """The discriminator's step: hinge_discriminator(d_real, d_fake) + weight * two_c of the real
    images.

    Args:
      d_real, d_fake: [B] unconditional scores; gradient flows.
      z_real: [B, D] embeddings of the real images; gradient flows. Generated images take no part in
        the contrast here.
      proxies: [C, D]; gradient flows: this is the step that trains them.
      labels_real: [B] integers below C.
      temperature, positives, normalise, axis_name: as for `two_c`.
      weight: lambda of the paper, 1.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that disagree, labels that are not integers, and as `two_c`.

    Reference: Kang and Park, ContraGAN, NeurIPS 2020, arXiv 2006.12681, the discriminator's
      objective.
    """
    _check_conditional(z_real=z_real, proxies=proxies, labels_real=labels_real)
    contrast = two_c(
        z_real,
        proxies,
        labels_real,
        temperature=temperature,
        positives=positives,
        normalise=normalise,
        axis_name=axis_name,
    )
    return hinge_discriminator(d_real, d_fake, axis_name=axis_name) + weight * contrast


@any_mesh
def contragan_generator(
    d_fake: jax.Array,
    z_fake: jax.Array,
    proxies: jax.Array,
    labels_fake: jax.Array,
    *,
    temperature: float,
    weight: float,
    positives: str = "class",
    normalise: bool = True,
    axis_name: AxisName = None,
) -> jax.Array:
    """The generator's step: hinge_generator(d_fake) + weight * two_c of the generated images and
    their sampled labels.

    Args:
      d_fake: [B] unconditional scores; gradient flows.
      z_fake: [B, D] embeddings of the generated images; gradient flows.
      proxies: [C, D]; no gradient: they belong to the discriminator.
      labels_fake: [B] integers below C.
      temperature, positives, normalise, axis_name: as for `two_c`.
      weight: lambda of the paper, 1.

    Returns:
      Scalar.

    Raises:
      ValueError: shapes that disagree, labels that are not integers, and as `two_c`.

    Reference: Kang and Park, ContraGAN, NeurIPS 2020, arXiv 2006.12681, the generator's objective.
    """
    _check_conditional(z_fake=z_fake, proxies=proxies, labels_fake=labels_fake)
    contrast = two_c(
        z_fake,
        lax.stop_gradient(proxies),
        labels_fake,
        temperature=temperature,
        positives=positives,
        normalise=normalise,
        axis_name=axis_name,
    )
    return hinge_generator(d_fake, axis_name=axis_name) + weight * contrast


@any_mesh
def hinge_discriminator(
    d_real: jax.Array, d_fake: jax.Array, *, axis_name: AxisName = None
) -> jax.Array:
    """Pushes the score of real images above 1 and of generated ones below -1.

    loss = mean (1 - d_real)_+ + mean (1 + d_fake)_+

    Args:
      d_real, d_fake: [B] scores; gradient flows, 0 at the kink itself. Their lengths may differ.
      axis_name: mapped axis over which the batch is split.

    Returns:
      Scalar; 2 at chance level (all scores 0), 0 once both margins hold.

    Reference: Lim and Ye, Geometric GAN, 2017; the adversarial term of ContraGAN and BigGAN.
    """
    return _adversarial(
        d_real, d_fake, lambda d: jax.nn.relu(1 - d), lambda d: jax.nn.relu(1 + d), axis_name
    )


@any_mesh
def hinge_generator(d_fake: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
    """Raises the score of generated images: -mean d_fake. Scalar; gradient flows; `axis_name` as
    elsewhere."""
    check("b", d_fake=d_fake)
    check_axis(axis_name)
    return -mean(wide(d_fake).mean(), axis_name)


@any_mesh
def logistic_discriminator(
    d_real: jax.Array, d_fake: jax.Array, *, axis_name: AxisName = None
) -> jax.Array:
    """The original discriminator: mean softplus(-d_real) + mean softplus(d_fake), in nats; 2 log 2
    at chance level."""
    return _adversarial(d_real, d_fake, lambda d: jax.nn.softplus(-d), jax.nn.softplus, axis_name)


@any_mesh
def logistic_generator(d_fake: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
    """The original generator in its non-saturating form: mean softplus(-d_fake), in nats; log 2
    at chance level."""
    check("b", d_fake=d_fake)
    check_axis(axis_name)
    return mean(jax.nn.softplus(-wide(d_fake)).mean(), axis_name)


@any_mesh
def least_squares_discriminator(
    d_real: jax.Array, d_fake: jax.Array, *, axis_name: AxisName = None
) -> jax.Array:
    """Scores of real images to 1 and of generated ones to 0: 1/2 mean (d_real - 1)^2 + 1/2 mean
    d_fake^2."""
    return _adversarial(d_real, d_fake, lambda d: (d - 1) ** 2 / 2, lambda d: d**2 / 2, axis_name)


@any_mesh
def least_squares_generator(d_fake: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
    """Scores of generated images to 1: 1/2 mean (d_fake - 1)^2."""
    check("b", d_fake=d_fake)
    check_axis(axis_name)
    return mean(((wide(d_fake) - 1) ** 2).mean() / 2, axis_name)


def _check_conditional(**arrays):
    """Embeddings [B, D], proxies [C, D] and labels [B], under the caller's own names."""
    (z, embeddings), proxies, (name, labels) = arrays.items()
    sizes = check("b d", **{z: embeddings})
    check("c d", {"d": sizes["d"]}, **dict([proxies]))
    check_integer("b", sizes, **{name: labels})


def _adversarial(d_real, d_fake, real, fake, axis_name):
    check("b", d_real=d_real)
    check("b", d_fake=d_fake)
    check_axis(axis_name)
    return mean(real(wide(d_real)).mean() + fake(wide(d_fake)).mean(), axis_name)
