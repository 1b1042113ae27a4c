"""Losses at hidden patches: pixels (MAE, SimMIM) and a teacher's distribution (iBOT, DINOv2)."""

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, mean, total
from cl_jax.core.numerics import dots, log_softmax, softmax, wide
from cl_jax.core.shapes import check, check_axis, check_count, check_positive, check_real


@any_mesh
def mae(
    prediction: jax.Array,
    target: jax.Array,
    mask: jax.Array,
    *,
    axis_name: AxisName = None,
) -> jax.Array:
    """Mean squared error of the predicted pixels, over hidden patches alone.

    loss = sum_il mask_il mean_k (prediction_ilk - target_ilk)^2 / sum_il mask_il

    Args:
      prediction: [B, L, P] predicted values of each of L patches; gradient flows.
      target: [B, L, P] their pixels (`patchify`, then `normalise_patches` as published); no
        gradient.
      mask: [B, L], 1 or true where the patch was hidden.
      axis_name: device axis that splits the batch; hidden patches are counted over all devices.

    Returns:
      Scalar of at least 0; 0 where nothing is hidden.

    Raises:
      ValueError: shapes that disagree, inputs that are not real, an axis that is not mapped.

    Reference: He et al., CVPR 2022, arXiv 2111.06377, section 3.
    """
    sizes = check("b l p", prediction=prediction, target=target)
    check_axis(axis_name)
    hidden = _mask("b l", sizes, mask, wide(prediction).dtype)
    error = jnp.mean(jnp.square(wide(prediction) - lax.stop_gradient(wide(target))), axis=-1)
    count = total(jnp.sum(hidden), axis_name)
    return total(jnp.sum(hidden * error), axis_name) / jnp.maximum(count, 1)


@any_mesh
def simmim(
    prediction: jax.Array,
    images: jax.Array,
    mask: jax.Array,
    *,
    eps: float = 1e-5,
    axis_name: AxisName = None,
) -> jax.Array:
    """Mean absolute error of the predicted pixels, over hidden patches alone.

    loss = sum over hidden pixels and channels of |prediction - image| / (hidden pixels + eps) / C

    Args:
      prediction: [B, H, W, C] predicted pixels (`pixel_shuffle` of the head's output); gradient
        flows, 0 where a prediction is exact.
      images: [B, H, W, C] pixels as the network sees them; no gradient.
      mask: [B, h, w], 1 or true where hidden; each entry covers H / h times W / w pixels.
      eps: added to the number of hidden pixels.
      axis_name: device axis that splits the batch; hidden pixels are counted over all devices.

    Returns:
      Scalar of at least 0; 0 where nothing is hidden.

    Raises:
      ValueError: shapes that disagree, a mask that does not divide the image, an axis that is not
        mapped.

    Reference: Xie et al., CVPR 2022, arXiv 2111.09886, equation 1 as in the authors' program.
    """
    sizes = check("b y x c", prediction=prediction, images=images)
    check_axis(axis_name)
    hidden = _mask("b h w", {"b": sizes["b"]}, mask, wide(prediction).dtype)
    if sizes["y"] % hidden.shape[1] or sizes["x"] % hidden.shape[2]:
        raise ValueError(
            f"mask has shape {mask.shape} for images of {sizes['y']}x{sizes['x']}; expected sides "
            "that divide those of the images."
        )
    hidden = jnp.repeat(hidden, sizes["y"] // hidden.shape[1], axis=1)
    hidden = jnp.repeat(hidden, sizes["x"] // hidden.shape[2], axis=2)
    error = wide(prediction) - lax.stop_gradient(wide(images))
    error = error * lax.stop_gradient(jnp.sign(error))  # jnp.abs has a gradient of 1 at 0
    summed = total(jnp.sum(hidden[..., None] * error), axis_name)
    return summed / (total(jnp.sum(hidden), axis_name) + eps) / sizes["c"]


@any_mesh
def patchify(images: jax.Array, *, patch: int) -> jax.Array:
    """[B, H, W, C] -> [B, L, patch * patch * C]: patches in raster order; within a patch row, then
    column, then channel, the channel fastest, as MAE has them.

    Raises:
      ValueError: images of another rank, sides that `patch` does not divide.
    """
    sizes = check("b h w c", images=images)
    check_count(patch=patch)
    rows, columns = sizes["h"] // patch, sizes["w"] // patch
    if rows * patch != sizes["h"] or columns * patch != sizes["w"]:
        raise ValueError(
            f"images has shape {images.shape}; expected sides that are multiples of patch={patch}."
        )
    x = images.reshape(sizes["b"], rows, patch, columns, patch, sizes["c"])
    return jnp.swapaxes(x, 2, 3).reshape(sizes["b"], rows * columns, -1)


@any_mesh
def unpatchify(patches: jax.Array, *, patch: int, height: int, width: int) -> jax.Array:
    """[B, L, patch * patch * C] -> [B, height, width, C]: the inverse of `patchify`.

    Raises:
      ValueError: patches of another rank, number or width.
    """
    sizes = check("b l p", patches=patches)
    check_count(patch=patch, height=height, width=width)
    rows, columns = height // patch, width // patch
    if rows * columns != sizes["l"] or sizes["p"] % (patch * patch):
        raise ValueError(
            f"patches has shape {patches.shape}; expected [B, {rows * columns}, {patch * patch} * "
            f"channels] for images of {height}x{width} in patches of {patch}."
        )
    x = patches.reshape(sizes["b"], rows, columns, patch, patch, -1)
    return jnp.swapaxes(x, 2, 3).reshape(sizes["b"], height, width, -1)


@any_mesh
def normalise_patches(patches: jax.Array, *, eps: float = 1e-6) -> jax.Array:
    """(x - mean) / sqrt(variance + eps) over the last axis, the variance divided by P - 1: MAE's
    targets. At least float32."""
    sizes = check("... p", patches=patches)
    x = wide(patches)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.sum(x * x, axis=-1, keepdims=True) / max(sizes["p"] - 1, 1)
    return x * lax.rsqrt(variance + eps)


@any_mesh
def pixel_shuffle(x: jax.Array, *, stride: int) -> jax.Array:
    """[B, h, w, C * stride^2] -> [B, h * stride, w * stride, C]: feature c * stride^2 + i * stride
    + j goes to channel c, row i, column j; the channel slowest, as in SimMIM and PyTorch.

    Raises:
      ValueError: maps of another rank, a number of features that stride^2 does not divide.
    """
    sizes = check("b h w f", x=x)
    check_count(stride=stride)
    if sizes["f"] % stride**2:
        raise ValueError(
            f"x has {sizes['f']} features; expected a multiple of stride^2 = {stride**2}."
        )
    batch, height, width = sizes["b"], sizes["h"], sizes["w"]
    x = x.reshape(batch, height, width, -1, stride, stride)
    x = jnp.transpose(x, (0, 1, 4, 2, 5, 3))
    return x.reshape(batch, height * stride, width * stride, -1)


@any_mesh
def ibot_patches(
    student: jax.Array,
    teacher: jax.Array,
    mask: jax.Array,
    centre: jax.Array,
    *,
    student_temperature: float,
    teacher_temperature: float | jax.Array,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pulls the student's distribution at each hidden patch to the teacher's, which saw the patch.

    loss = mean over views and images of [ sum_l mask_l CE_l / max(sum_l mask_l, 1) ],
    CE_l = -<softmax((teacher_l - centre) / teacher_temperature),
             log softmax(student_l / student_temperature)>, of the same view

    An image without a hidden patch counts as 0 and is counted.

    Args:
      student: [V, B, L, K] logits of the patches of each global view, hidden ones replaced in the
        input; gradient flows.
      teacher: [V, B, L, K] raw logits of the same views, nothing hidden; no gradient.
      mask: [V, B, L], 1 or true where the student's patch was hidden.
      centre: [K] running mean of the teacher's patch logits, not yet moved by this step
        (`cl_jax.memory.centre.update` of all patches in iBOT, with where=mask in DINOv2).
      student_temperature: above 0 (0.1).
      teacher_temperature: above 0 (0.04 to 0.07).
      axis_name: device axis that splits the batch.

    Returns:
      Scalar in nats; at most about log K at chance level, times the share of images with a hidden
      patch.

    Raises:
      ValueError: shapes that disagree, a temperature that is not above 0, an axis that is not
        mapped.

    Reference: Zhou et al., ICLR 2022, arXiv 2111.07832, equation 2.
    """
    sizes = check("v b l k", student=student, teacher=teacher)
    check("k", sizes, centre=centre)
    check_positive(student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    teacher = wide(teacher)
    # Large logits, less the largest, lose nothing to the rounding of the centre's subtraction.
    highest = jnp.max(teacher, axis=-1, keepdims=True)
    centred = teacher - highest - jnp.broadcast_to(wide(centre), teacher.shape)
    targets = softmax(centred, teacher_temperature)
    return patch_distillation(
        student, targets, mask, student_temperature=student_temperature, axis_name=axis_name
    )


@any_mesh
def patch_distillation(
    student: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    student_temperature: float,
    axis_name: AxisName = None,
) -> jax.Array:
    """`ibot_patches` to given distributions [V, B, L, K], such as Sinkhorn codes of the hidden
    patches (DINOv2). What `targets` holds at patches that are not hidden is not read, if finite."""
    sizes = check("v b l k", student=student, targets=targets)
    check_positive(student_temperature=student_temperature)
    check_axis(axis_name)
    hidden = _mask("v b l", sizes, mask, wide(student).dtype)
    log_p = log_softmax(student, student_temperature)
    cross = -dots("vblk,vblk->vbl", lax.stop_gradient(wide(targets)), log_p)
    count = jnp.maximum(jnp.sum(hidden, axis=-1), 1)
    return mean(jnp.mean(jnp.sum(hidden * cross, axis=-1) / count), axis_name)


def _mask(spec: str, sizes, mask: jax.Array, dtype) -> jax.Array:
    """The mask as 0 and 1, without gradient."""
    if jnp.iscomplexobj(mask):
        check_real(mask=mask)
    mask = lax.stop_gradient(jnp.asarray(mask, dtype))
    check(spec, sizes, mask=mask)
    return mask
