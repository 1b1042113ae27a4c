"""Two encoders into one space: CLIP's symmetric cross-entropy with a learned scale, and its sigmoid
form, SigLIP."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, gather, gather_own, mean
from cl_jax.core.numerics import dots, prepared, softplus, wide
from cl_jax.core.shapes import check, check_axis, check_positive, check_scalar
from cl_jax.losses.contrast import Pairs, contrast, pair_sums, row_ids, same_id


@any_mesh
def clip(
    image: jax.Array,
    text: jax.Array,
    *,
    logit_scale: Any,
    max_scale: float | None = 100.0,
    normalise: bool = True,
    local_loss: bool | None = None,
    gather_with_grad: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls an image to its text, pushes it from the other texts of the batch, and a text from the
    other images.

    s_ij = min(logit_scale, max_scale) u_i . v_j
    L = -1/2B sum_i [ log softmax_j(s_ij)_i + log softmax_j(s_ji)_i ]

    Args:
      image, text: [B, D] u and v, row by row of one pair. Gradient flows to both.
      logit_scale: the multiplier exp(t) of a learned t, at first 1/0.07, or a number. Gradient
        flows.
      max_scale: a larger scale counts as this one, with the gradient it has here, so that t can
        fall again; None for no bound. The authors instead clip t at log 100 after each step:
        `clamp_log_scale`.
      normalise: to unit length here; False takes the features as they are.
      local_loss: None sums rows and columns in one pass over a device's rows. The exchanges of the
        authors' program, of the same value: True, a device's images against all texts and its texts
        against all images, in two passes; False, its default, the loss of the whole batch on every
        device.
      gather_with_grad: with local_loss given, False (the authors' default) cuts the gradient to
        other devices' features: after averaging it is 1/devices of the right one with
        local_loss=False, and wrong with True.
      axis_name: device axis that splits the batch; rows and columns span all devices.
      plan, block_size: how devices share keys and the side of a tile, as in `contrast`.

    Returns:
      Scalar in nats, mean over both directions and the global batch: log B where all similarities
      are equal.

    Raises:
      ValueError: shapes that disagree, a scale that is a number <= 0, an axis that is not mapped.

    Reference: Radford et al. 2021, arXiv 2103.00020, figure 3. A bias added to all logits cancels,
      so there is none.
    """
    rows = clip_rows(
        image,
        text,
        logit_scale=logit_scale,
        max_scale=max_scale,
        normalise=normalise,
        local_loss=local_loss,
        gather_with_grad=gather_with_grad,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )
    return mean(jnp.mean(rows), axis_name)


@any_mesh
def clip_rows(
    image: jax.Array,
    text: jax.Array,
    *,
    logit_scale: Any,
    max_scale: float | None = 100.0,
    normalise: bool = True,
    local_loss: bool | None = None,
    gather_with_grad: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """[2, B] `clip` of each of this device's images and texts; of all devices' with
    local_loss=False.

    Raises:
      ValueError: as `clip`.
    """
    check("b d", image=image, text=text)
    scale = _scale(logit_scale, max_scale)
    check_axis(axis_name)
    u, v = prepared(normalise, image=image, text=text)
    if local_loss is None and not gather_with_grad:
        raise ValueError(
            "gather_with_grad is False and local_loss is None; expected local_loss too, True or "
            "False, for "
            "the authors' exchanges. Leave both out for the right gradient."
        )
    if local_loss is False and axis_name is not None:
        exchange = gather if gather_with_grad else gather_own
        u, v, axis_name = exchange(u, axis_name), exchange(v, axis_name), None
    ids = {"id": row_ids(u.shape[0], axis_name)}

    def sums(queries, keys, columns):
        return contrast(
            queries,
            keys,
            scale=scale,
            rows=ids,
            cols=ids,
            positive=same_id,
            columns=columns,
            axis_name=axis_name,
            plan=plan,
            block_size=block_size,
        )

    if local_loss and axis_name is not None:
        all_u, all_v = (u, v) if gather_with_grad else lax.stop_gradient((u, v))
        return jnp.stack([sums(u, all_v, False).gap, sums(v, all_u, False).gap])
    both = sums(u, v, True)
    return jnp.stack([both.gap, both.col_gap])


@any_mesh
def clip_logits(
    image: jax.Array,
    text: jax.Array,
    *,
    logit_scale: Any,
    logit_bias: Any = 0.0,
    normalise: bool = True,
) -> jax.Array:
    """[B, B'] logit_scale u_i . v_j + logit_bias, images by texts; transposed, texts by images. The
    scale is taken as it is. Image rows may be classes' prompts or anything else: the numbers need
    not agree."""
    sizes = check("b d", image=image)
    check("k d", {"d": sizes["d"]}, text=text)
    check_positive(logit_scale=logit_scale)
    check_scalar(logit_bias=logit_bias)
    s = dots("bd,kd->bk", *prepared(normalise, image=image, text=text))
    return s * jnp.asarray(logit_scale, s.dtype) + jnp.asarray(logit_bias, s.dtype)


def clamp_log_scale(t: jax.Array, *, max_scale: float = 100.0) -> jax.Array:
    """The learned t = log(logit_scale) kept at or below log(max_scale): to be applied after each
    optimiser step."""
    return jnp.minimum(t, jnp.log(jnp.asarray(max_scale, jnp.result_type(t))))


@any_mesh
def siglip(
    image: jax.Array,
    text: jax.Array,
    *,
    logit_scale: Any,
    logit_bias: Any,
    max_scale: float | None = None,
    negative_only: bool = False,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Tells for each pair of an image and a text by itself whether they belong together.

    L = 1/B sum_i sum_j log(1 + exp(-y_ij (logit_scale u_i . v_j + logit_bias))),
    y = 1 for j = i, -1 elsewhere

    Args:
      image, text: [B, D] u and v, row by row of one pair. Gradient flows to both.
      logit_scale: the multiplier exp(t) of a learned t, at first 10, or a number. Gradient flows.
      logit_bias: scalar, learned, at first -10, so that the many negatives start near zero loss.
        Gradient flows.
      max_scale: as in `clip`; the authors have no bound.
      negative_only: no pair is a positive: what texts whose images are elsewhere add to the loss.
      normalise: to unit length here; False takes the features as they are.
      axis_name: device axis that splits the batch; texts come from all devices.
      plan, block_size: how devices share texts and the side of a tile, as in `contrast`.

    Returns:
      Scalar in nats, summed over texts, mean over the images of the global batch: B log 2 where all
      logits are 0.

    Raises:
      ValueError: shapes that disagree, a scale that is a number <= 0, an axis that is not mapped.

    Reference: Zhai et al. 2023, arXiv 2303.15343, equation 1 and algorithm 1.
    """
    rows = siglip_rows(
        image,
        text,
        logit_scale=logit_scale,
        logit_bias=logit_bias,
        max_scale=max_scale,
        negative_only=negative_only,
        normalise=normalise,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )
    return mean(jnp.mean(rows), axis_name)


@any_mesh
def siglip_rows(
    image: jax.Array,
    text: jax.Array,
    *,
    logit_scale: Any,
    logit_bias: Any,
    max_scale: float | None = None,
    negative_only: bool = False,
    normalise: bool = True,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """[B] `siglip` of each of this device's images."""
    sizes = check("b d", image=image, text=text)
    check_scalar(logit_bias=logit_bias)
    check_axis(axis_name)
    scale = _scale(logit_scale, max_scale)
    u, v = prepared(normalise, image=image, text=text)
    ids = {"id": row_ids(sizes["b"], axis_name)}
    bias = jnp.broadcast_to(jnp.asarray(logit_bias, wide(u).dtype), sizes["b"])

    def term(s: jax.Array, rows: Pairs, cols: Pairs) -> jax.Array:
        s = s + rows["bias"][:, None]
        return softplus(s if negative_only else jnp.where(same_id(rows, cols), -s, s))

    return pair_sums(
        u,
        v,
        term,
        scale=scale,
        rows=ids | {"bias": bias},
        cols=ids,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )


def _scale(logit_scale, max_scale):
    check_positive(logit_scale=logit_scale, max_scale=max_scale)
    if max_scale is None:
        return logit_scale
    scale = wide(logit_scale)
    return scale + lax.stop_gradient(jnp.minimum(scale, max_scale) - scale)
