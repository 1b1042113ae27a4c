"""Losses between views of one example with nothing pushed apart: BYOL, SimSiam, FastSiam, DINO."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, mean
from cl_jax.core.numerics import common_type, unit, wide, wide_type
from cl_jax.core.shapes import check, check_axis, check_positive
from cl_jax.losses._owners import check_owners
from cl_jax.losses._views import Softmaxes, check_views, cross_entropies, of_others


@any_mesh
def byol(
    p_a: jax.Array,
    p_b: jax.Array,
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    released_gradient: bool = False,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pulls the prediction made from each view to the target's projection of the other view.

    loss = mean_i [ |n(p_a) - n(z_b)|^2 + |n(p_b) - n(z_a)|^2 ],  |n(p) - n(z)|^2 = 2 - 2 cos(p, z)

    Args:
      p_a, p_b: [B, D] predictions of the online network for views a and b, not normalised; gradient
        flows.
      z_a, z_b: [B, D] projections of the target network for views a and b, not normalised; no
        gradient.
      released_gradient: a prediction shorter than 1e-6 has zero gradient; True gives it the one of
        the authors' code, up to 1e6 times the others'.
      axis_name: mapped axis over which the batch is split.

    Returns:
      Scalar from 0 (aligned) to 8 (opposite); 4 at chance level. A zero row is normalised to zero:
      1 per direction.

    Raises:
      ValueError: shapes that disagree, inputs that are not real, `axis_name` not mapped.

    Reference: Grill et al., Bootstrap your own latent, NeurIPS 2020, equation 2 both ways; n(x)
      divides by max(|x|, 1e-6), as the authors' code.
    """
    check("b d", p_a=p_a, p_b=p_b, z_a=z_a, z_b=z_b)
    check_axis(axis_name)
    rows = byol_rows(p_a, z_b, released_gradient=released_gradient)
    rows += byol_rows(p_b, z_a, released_gradient=released_gradient)
    return mean(rows.mean(), axis_name)


@any_mesh
def byol_rows(p: jax.Array, z: jax.Array, *, released_gradient: bool = False) -> jax.Array:
    """One direction of `byol` per row: [B, D], [B, D] -> [B] from 0 to 4; no gradient to z."""
    check("b d", p=p, z=z)
    p = unit(p, 1e-6, short_gradient=released_gradient)
    return jnp.square(p - unit(lax.stop_gradient(z), 1e-6)).sum(axis=-1)


@any_mesh
def simsiam(
    p_a: jax.Array,
    p_b: jax.Array,
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    released_gradient: bool = False,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pulls the prediction made from each view to the same network's projection of the other view.

    loss = -1/2 mean_i [ cos(p_a, z_b) + cos(p_b, z_a) ]

    Args:
      p_a, p_b: [B, D] predictions for views a and b, not normalised; gradient flows.
      z_a, z_b: [B, D] projections for views a and b, not normalised; no gradient *in this use*:
        through p = predictor(z) it flows, so pass z as it is.
      released_gradient: a prediction shorter than 1e-8 has zero gradient; True gives it the one of
        the authors' code, up to 1e8 times the others'.
      axis_name: mapped axis over which the batch is split.

    Returns:
      Scalar from -1 (aligned, or collapsed) to 1; 0 at chance level. A zero row counts 0.

    Raises:
      ValueError: shapes that disagree, inputs that are not real, `axis_name` not mapped.

    Reference: Chen and He, Exploring simple Siamese representation learning, CVPR 2021, equations 1
      to 4; each norm is at least 1e-8, as in the authors' cosine.
    """
    check("b d", p_a=p_a, p_b=p_b, z_a=z_a, z_b=z_b)
    check_axis(axis_name)
    rows = simsiam_rows(p_a, z_b, released_gradient=released_gradient)
    rows += simsiam_rows(p_b, z_a, released_gradient=released_gradient)
    return mean(rows.mean() / 2, axis_name)


@any_mesh
def simsiam_rows(p: jax.Array, z: jax.Array, *, released_gradient: bool = False) -> jax.Array:
    """The negative cosine of each row: [B, D], [B, D] -> [B] from -1 to 1; no gradient to z."""
    check("b d", p=p, z=z)
    p = unit(p, 1e-8, short_gradient=released_gradient)
    return -(p * unit(lax.stop_gradient(z), 1e-8)).sum(axis=-1)


@any_mesh
def fastsiam(p: jax.Array, z: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
    """Pulls the prediction made from each of V views to the mean of the same network's projections
    of all others.

    loss = -1/V mean_i sum_v cos(p_v, 1/(V-1) sum_{w != v} z_w); two views are `simsiam`

    Args:
      p: [V, B, D] predictions, not normalised; gradient flows.
      z: [V, B, D] projections, not normalised, nor before their mean; no gradient in this use, as
        in `simsiam`.
      axis_name: mapped axis over which the batch is split.

    Returns:
      Scalar from -1 (aligned, or collapsed) to 1; 0 at chance level. A zero row counts 0.

    Raises:
      ValueError: shapes that disagree, fewer than two views, inputs that are not real, `axis_name`
        not mapped.

    Reference: Pototzky, Sultan and Schmidt-Thieme, FastSiam: resource-efficient self-supervised
      learning on a single GPU, GCPR 2022, every view predicting in turn; as in lightly's program of
      it.
    """
    check("v b d", p=p, z=z)
    check_axis(axis_name)
    views = p.shape[0]
    if views < 2:
        raise ValueError(
            f"p has shape {p.shape}: {views} view; each predicts the others, so expected 2 or more."
        )
    z = lax.stop_gradient(wide(z))
    others = [jnp.concatenate([z[:v], z[v + 1 :]]).mean(axis=0) for v in range(views)]
    return mean(jnp.stack([simsiam_rows(p[v], others[v]) for v in range(views)]).mean(), axis_name)


@any_mesh
def dino(
    student: jax.Array | Sequence[jax.Array],
    teacher: jax.Array | Sequence[jax.Array],
    centre: jax.Array,
    *,
    student_temperature: float,
    teacher_temperature: float | jax.Array,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pulls the student's distribution on every view to the teacher's centred, sharpened one on
    every *other* view.

    loss = 1/(T (V - 1)) sum_j sum_(v != j) mean_i
           -<softmax((teacher_j - centre) / teacher_temperature),
             log softmax(student_v / student_temperature)>

    Args:
      student: [V, B, K] logits of all views, those the teacher sees first and in its order, or a
        list of V arrays [B, K]; gradient flows. A list is faster than its stack on a CPU.
      teacher: [T, B, K] logits of the first T views (the two global crops), or a list; raw; no
        gradient.
      centre: [K] running mean of the teacher's logits, not yet moved by this step; no gradient.
        Move it after the loss with `cl_jax.memory.centre.update`.
      student_temperature: above 0 (0.1).
      teacher_temperature: above 0 (0.04 to 0.07, see `teacher_temperature`).
      axis_name: mapped axis over which the batch is split.

    Returns:
      Scalar in nats; log K at chance level, and after a collapse to the uniform distribution.

    Raises:
      ValueError: shapes that disagree, fewer than two student views, more teacher than student
        views, a temperature that is not above 0, `axis_name` not mapped.

    Reference: Caron et al., Emerging properties in self-supervised vision transformers, ICCV 2021,
      equation 3, algorithm 1.
    """
    sizes = check_views("t b k", "teacher", teacher, check_views("v b k", "student", student))
    check("k", sizes, centre=centre)
    check_positive(student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    check_axis(axis_name)
    views, seen = sizes["v"], sizes["t"]
    predicts = of_others(views, check_owners(views, seen, range(seen)))
    dtype = wide_type(common_type(*jax.tree.leaves((student, teacher))))
    of_teacher = (teacher, centre, 1 / jnp.asarray(teacher_temperature, dtype))
    rows = cross_entropies(
        student,
        1 / jnp.asarray(student_temperature, dtype),
        Softmaxes(*lax.stop_gradient(of_teacher)),
        predicts,
    )
    return mean(rows.sum() / (seen * (views - 1) * sizes["b"]), axis_name)


def teacher_temperature(
    epoch: jax.Array | int, *, start: float, final: float, warmup_epochs: int
) -> jax.Array:
    """DINO's teacher temperature in an epoch: linear from `start`, at `final` from epoch
    warmup_epochs - 1 on.

    Args:
      epoch: number or array of numbers, the first is 0.
      start: temperature of epoch 0 (0.04).
      final: temperature after the warm-up (0.04 to 0.07).
      warmup_epochs: 0 for `final` throughout; 1 gives `start` in epoch 0 alone.

    Returns:
      Floating-point array of the shape of `epoch`.

    Raises:
      ValueError: a temperature that is not above 0.

    Reference: Caron et al., ICCV 2021, appendix; the authors' ramp includes both ends.
    """
    check_positive(start=start, final=final)
    epoch = jnp.asarray(epoch, jnp.result_type(float))
    ramp = start + (final - start) * (epoch / max(warmup_epochs - 1, 1))
    return jnp.where(epoch < warmup_epochs, ramp, final)


@any_mesh
def swapped_cross_entropy(log_p: jax.Array, targets: jax.Array, owners: Sequence[int]) -> jax.Array:
    """Mean of -<targets_a, log_p_v> over the batch and all pairs (a, v) of different views, what
    SwAV and DINO share; for distributions of your own.

    Args:
      log_p: [V, B, K] log-probabilities predicted from each view; gradient flows.
      targets: [A, B, K] distributions; no gradient.
      owners: A numbers: targets[a] was computed from view owners[a], which is not asked to predict
        it.

    Returns:
      Scalar in nats over this device's rows.

    Raises:
      ValueError: shapes that disagree, fewer than two views, an owner that is not a view.
    """
    sizes = check("v b k", log_p=log_p)
    sizes = check("a b k", sizes, targets=targets)
    views, owners = sizes["v"], check_owners(sizes["v"], sizes["a"], owners)
    dtype = wide_type(common_type(targets, log_p))
    targets, log_p = lax.stop_gradient(jnp.asarray(targets, dtype)), jnp.asarray(log_p, dtype)
    # One pass over all arrays, where a product of so few rows would move them into place first.
    rows = sum(
        jnp.sum(target * sum(log_p[v] for v in range(views) if v != owner), axis=1)
        for target, owner in zip(targets, owners)
    )
    return -jnp.sum(rows) / (len(owners) * (views - 1) * sizes["b"])
