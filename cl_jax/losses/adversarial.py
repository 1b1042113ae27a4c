"""Contrast with adversarial examples (CLAE): a view moved against the loss, whatever the encoder
and the loss."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.shapes import check_real


class AdversarialView(NamedTuple):
    """x: the moved view. loss: what was ascended, at the clean view. gradient: of `loss` with
    respect to the view."""

    x: jax.Array
    loss: jax.Array
    gradient: jax.Array


def adversarial_view(
    encode: Callable[[jax.Array], jax.Array],
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    *,
    epsilon: float,
) -> AdversarialView:
    """Moves every entry of a view by `epsilon` in the direction that raises the contrastive loss of
    the batch.

    x_adv = x + epsilon sign(d/dx' loss(encode(x), encode(x')) at x' = x)

    At x' = x the two embeddings agree, so the direction comes from the negatives alone, and one
    step may move a row to harder negatives but cannot first tear its own pair apart.

    Args:
      encode: maps a batch of views to embeddings, with everything else (parameters, adversarial
        batch norm in training mode) closed over. Any loss of gathered embeddings sees the global
        batch only where `loss` is given its axis.
      loss: of (anchor, copy) embeddings, a scalar; for instance `partial(nt_xent, temperature=0.5,
        axis_name=axis)`. The anchor is constant. Close over `axis_name` on several devices: only
        the sign of the gradient is used, and that is the same on any number of them.
      x: [B, ...] real views, in the units `epsilon` is in.
      epsilon: size of the step; 0.03 in inputs divided by their standard deviation in the authors'
        scripts.

    Returns:
      `AdversarialView`, constant: no gradient flows through it to the parameters. Entries are not
      clipped to the range of the inputs, and an entry of gradient exactly 0 does not move.

    Raises:
      ValueError: integer or complex `x` (raw pixels: convert and normalise first), a loss that is
        not a scalar.

    Reference: Ho and Vasconcelos, Contrastive Learning with Adversarial Examples, NeurIPS 2020. The
      authors run both branches of the attack through the adversarial batch norm, whose running
      statistics thus see two clean batches more; pass an `encode` that does so, and drop its
      statistics or keep them.
    """
    check_real(x=x)
    anchor = lax.stop_gradient(encode(x))

    def attack(copy):
        value = loss(anchor, encode(copy))
        if jnp.shape(value) != ():
            raise ValueError(
                f"loss returned shape {jnp.shape(value)}; expected a scalar. Average its rows."
            )
        return value

    value, gradient = jax.value_and_grad(attack)(x)
    view = x + jnp.asarray(epsilon, x.dtype) * jnp.sign(gradient)
    return AdversarialView(*lax.stop_gradient((view, value, gradient)))


class AdversarialContrast(NamedTuple):
    """total = clean + weight * adversarial."""

    total: jax.Array
    clean: jax.Array
    adversarial: jax.Array


def adversarial_contrast(
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    z_a: jax.Array,
    z_b: jax.Array,
    z_adv: jax.Array,
    *,
    weight: float,
) -> AdversarialContrast:
    """Pulls an example to its second view and to the adversarial copy of its first.

    total = loss(z_a, z_b) + weight loss(z_a, z_adv)

    Args:
      loss: of two batches of embeddings, a scalar: `nt_xent`, `info_nce`, `inva_spread` with their
        knobs bound.
      z_a: [B, D] embeddings of the first view through the clean batch norm: the anchor of both
        terms; gradient flows.
      z_b: [B, D] embeddings of the second view through the clean batch norm; gradient flows.
      z_adv: [B, D] embeddings of `adversarial_view(...).x` through the adversarial batch norm;
        gradient flows.
      weight: alpha of the paper, 1 in the authors' scripts.

    Returns:
      `AdversarialContrast` of scalars in the units of `loss`.

    Reference: Ho and Vasconcelos, NeurIPS 2020.
    """
    clean, adversarial = loss(z_a, z_b), loss(z_a, z_adv)
    return AdversarialContrast(clean + weight * adversarial, clean, adversarial)
