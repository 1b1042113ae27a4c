"""Random resized crops, three samplers of boxes, and one resampler.

A box is int32 [top, left, height, width]. The resampler writes crop and resize as two matrices
built from the box, out = rows @ image @ columns^T: a few thousand multiplications per view on a
CPU, and what accelerators do best."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.core.keys import uniforms

INTERPOLATIONS = ("bilinear", "bicubic", "tf_bicubic")
_TABLE = 1024


def resampling_matrix(
    start: jax.Array | int,
    length: jax.Array | int,
    n_in: int,
    n_out: int,
    *,
    interpolation: str,
    dtype: jnp.dtype = jnp.float32,
) -> jax.Array:
    """[n_out, n_in] weights that resize the `length` samples from `start` on to `n_out`, seeing
    nothing outside them.

    weight[i, j] ~ kernel((centre of i - centre of j) / support), each row divided by its sum:
    border samples are renormalised, as PIL, torchvision and TensorFlow 2 all do.

    Args:
      start, length: integers, Python's or traced.
      n_in, n_out: static sizes.
      interpolation: "bilinear" and "bicubic" are antialiased (PIL; torchvision with
        antialias=True), the kernel widening with the reduction; "tf_bicubic" is
        `tf.image.resize(method=BICUBIC)`: never widened, and offsets rounded to 1/1024, because
        TensorFlow reads its kernel from a table. All cubics are Keys' with a = -0.5.
      dtype: of the matrix.

    Raises:
      ValueError: an unknown interpolation.
    """
    if interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"interpolation is {interpolation!r}; expected one of {', '.join(INTERPOLATIONS)}."
        )
    i = jnp.arange(n_out, dtype=jnp.int32)[:, None]
    j = jnp.arange(n_in, dtype=jnp.int32)[None, :] - start
    if interpolation == "tf_bicubic":
        twice = (2 * i + 1) * length - n_out
        floor = twice // (2 * n_out)
        part = jnp.rint((twice - 2 * n_out * floor).astype(dtype) * (_TABLE / (2 * n_out))) / _TABLE
        weight = _cubic((j - floor).astype(dtype) - part)
    else:
        # Twice the distance between centres times n_out is an integer: exact in float32 up to sides
        # of 4096.
        distance = ((2 * i + 1) * length - (2 * j + 1) * n_out).astype(dtype)
        offset = distance / (2 * jnp.maximum(length, n_out)).astype(dtype)
        weight = (
            jnp.maximum(1 - jnp.abs(offset), 0) if interpolation == "bilinear" else _cubic(offset)
        )
    weight = jnp.where((j >= 0) & (j < length), weight, 0)
    return weight / weight.sum(axis=1, keepdims=True)


def _cubic(x: jax.Array, a: float = -0.5) -> jax.Array:
    x = jnp.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return jnp.where(x <= 1, near, jnp.where(x < 2, far, 0))


def resized_crop(
    x: jax.Array,
    box: jax.Array,
    size: int | tuple[int, int],
    *,
    interpolation: str,
    clip: bool = False,
) -> jax.Array:
    """Cuts `box` out of the planes [C, H, W] and resizes it to [C, *size]; any number of channels.

    Args:
      x: [C, H, W] floats.
      box: [4] integers (top, left, height, width) inside the image.
      size: the side, or (height, width), of the result.
      interpolation: see `resampling_matrix`.
      clip: into [0, 1] after the horizontal and after the vertical pass, which is what 8-bit PIL
        does to a cubic's overshoot; bilinear has none. Pillow up to 12 always went in this order;
        13 starts with the cheaper pass.
    """
    top, left, height, width = (box[axis] for axis in range(4))
    out_h, out_w = (size, size) if isinstance(size, int) else size
    rows = resampling_matrix(
        top, height, x.shape[1], out_h, interpolation=interpolation, dtype=x.dtype
    )
    columns = resampling_matrix(
        left, width, x.shape[2], out_w, interpolation=interpolation, dtype=x.dtype
    )
    return _separable(x, rows, columns, clip)


def _separable(x: jax.Array, rows: jax.Array, columns: jax.Array, clip: bool) -> jax.Array:
    # Rows before channels: both products are then one matrix product per image. Accelerators round
    # float32 factors to bfloat16 or tf32 unless told not to: a visible loss of grey levels.
    exact = jax.lax.Precision.HIGHEST
    wide = jnp.einsum("hcw,pw->hcp", jnp.swapaxes(x, 0, 1), columns, precision=exact)
    wide = jnp.clip(wide, 0, 1) if clip else wide
    out = jnp.swapaxes(jnp.einsum("oh,hcp->ocp", rows, wide, precision=exact), 0, 1)
    return jnp.clip(out, 0, 1) if clip else out


# Boxes of a test image: sizes are static, so these are Python numbers.


def centre_box(height: int, width: int, proportion: float, aspect: float = 1.0) -> np.ndarray:
    """SimCLR's central crop: the largest centred box of `aspect` = width / height, times
    `proportion`, rounded half to even; the offset rounds up."""
    if aspect > width / height:
        box_h, box_w = np.rint(proportion / aspect * width), np.rint(proportion * width)
    else:
        box_h, box_w = np.rint(proportion * height), np.rint(proportion * aspect * height)
    return _centred(height, width, int(box_h), int(box_w))


def byol_centre_box(height: int, width: int, proportion: float = 224 / 256) -> np.ndarray:
    """BYOL's central square: its side is rounded down."""
    side = int(proportion * min(height, width))
    return _centred(height, width, side, side)


def _centred(height: int, width: int, box_h: int, box_w: int) -> np.ndarray:
    return np.array([(height - box_h + 1) // 2, (width - box_w + 1) // 2, box_h, box_w], np.int32)


def resize_centre_crop(
    x: jax.Array, resize: int, size: int, *, interpolation: str, clip: bool = False
) -> jax.Array:
    """torchvision's test transform: the shorter side to `resize`, then the central [C, size,
    size].

    Raises:
      ValueError: a `resize` below `size`.
    """
    if resize < size:
        raise ValueError(
            f"resize is {resize}, smaller than the crop of {size}. The shorter side must hold the "
            f"crop: "
            "256 for 224, or the same number for no crop."
        )
    matrices = []
    short = min(x.shape[1:])
    for n_in in x.shape[1:]:
        n_out = resize * n_in // short
        first = round((n_out - size) / 2)
        matrix = resampling_matrix(0, n_in, n_in, n_out, interpolation=interpolation, dtype=x.dtype)
        matrices.append(matrix[first : first + size])
    return _separable(x, matrices[0], matrices[1], clip)


# Random boxes. The cores take draws that are uniform in [0, 1), so that they can be checked against
# pinned ones.


def tv_box(
    height: jax.Array | int,
    width: jax.Array | int,
    area_draw: jax.Array,
    log_ratio_draw: jax.Array,
    offset_draw: jax.Array,
    *,
    scale: Sequence[float],
    ratio: Sequence[float],
) -> tuple[jax.Array, jax.Array]:
    """torchvision's RandomResizedCrop.get_params: the first of T = 10 tries that fits, else a
    centred box.

    Area uniform in `scale` of the image, width / height log-uniform in `ratio`, sides rounded half
    to even. If no try fits: the largest centred box with the ratio brought into `ratio`, the whole
    image where that is inside.

    Args:
      height, width: integers, Python's or traced.
      area_draw, log_ratio_draw: [T] uniform in [0, 1).
      offset_draw: [2] likewise, for top and left.

    Returns:
      (box int32 [4], number of tries made int32: T too where none fitted).
    """
    dtype = area_draw.dtype
    height, width = jnp.asarray(height, jnp.int32), jnp.asarray(width, jnp.int32)
    tall, broad = height.astype(dtype), width.astype(dtype)
    low, high = jnp.asarray(scale, dtype)
    log_low, log_high = jnp.log(jnp.asarray(ratio, dtype))
    area = tall * broad * (low + (high - low) * area_draw)
    aspect = jnp.exp(log_low + (log_high - log_low) * log_ratio_draw)
    w = jnp.rint(jnp.sqrt(area * aspect)).astype(jnp.int32)
    h = jnp.rint(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    found, first = fits.any(), fits.argmax()
    r_low, r_high = jnp.asarray(min(ratio), dtype), jnp.asarray(max(ratio), dtype)
    last_h = jnp.where(broad / tall < r_low, jnp.rint(broad / r_low).astype(jnp.int32), height)
    last_w = jnp.where(broad / tall > r_high, jnp.rint(tall * r_high).astype(jnp.int32), width)
    h, w = jnp.where(found, h[first], last_h), jnp.where(found, w[first], last_w)
    top = jnp.where(found, _below(offset_draw[0], height - h + 1), (height - h) // 2)
    left = jnp.where(found, _below(offset_draw[1], width - w + 1), (width - w) // 2)
    return jnp.stack([top, left, h, w]), jnp.where(found, first + 1, fits.shape[0]).astype(
        jnp.int32
    )


def tf_box(
    height: jax.Array | int,
    width: jax.Array | int,
    ratio_draw: jax.Array,
    height_draw: jax.Array,
    offset_draw: jax.Array,
    *,
    scale: Sequence[float],
    ratio: Sequence[float],
    min_covered: float = 0.1,
) -> jax.Array:
    """`tf.image.sample_distorted_bounding_box` as SimCLR calls it, the object being the whole
    image.

    Per try: width / height uniform in `ratio`; height uniform over the integers between the box of
    the smallest area and the largest that fits, so that small areas are favoured; one step of
    repair where rounding left `scale`. The first of T tries that holds the area and covers
    `min_covered` of the image is taken, else the whole image. The coverage outdoes a `scale` that
    starts below it: with 0.08, no box is smaller than 0.1. Offsets never reach the last place
    (TensorFlow draws below image - box, not up to it).

    Args:
      height, width: integers, Python's or traced. ratio_draw, height_draw: [T] uniform in [0, 1).
      offset_draw: [2] likewise, for top and left.

    Returns:
      box, int32 [4].

    Reference: tensorflow/core/kernels/image/sample_distorted_bounding_box_op.cc.
    """
    f32, i32 = jnp.float32, jnp.int32
    height, width = jnp.asarray(height, i32), jnp.asarray(width, i32)
    tall, broad = height.astype(f32), width.astype(f32)
    low, high = (jnp.asarray(bound, f32) * broad * tall for bound in scale)
    aspect = (ratio[0] + (ratio[1] - ratio[0]) * ratio_draw).astype(f32)

    def rounded(v):
        return jnp.rint(v).astype(i32)

    def width_of(h):
        return rounded(h.astype(f32) * aspect)

    most = rounded(jnp.sqrt(high / aspect))
    squeezed = ((broad + 0.5 - 1e-7) / aspect).astype(i32)
    squeezed = jnp.where(width_of(squeezed) > width, squeezed - 1, squeezed)
    most = jnp.minimum(jnp.where(width_of(most) > width, squeezed, most), height)
    least = jnp.minimum(rounded(jnp.sqrt(low / aspect)), most)
    h = least + _below(height_draw, most - least + 1)

    def area_of(h):
        return (h * width_of(h)).astype(f32)

    h = jnp.where(area_of(h) < low, h + 1, h)
    h = jnp.where(area_of(h) > high, h - 1, h)
    w, area = width_of(h), area_of(h)
    fits = (area >= low) & (area <= high) & (w > 0) & (w <= width) & (h > 0) & (h <= height)
    fits &= area >= jnp.asarray(min_covered, f32) * broad * tall
    found, first = fits.any(), fits.argmax()
    h, w = jnp.where(found, h[first], height), jnp.where(found, w[first], width)
    top = _below(offset_draw[0], jnp.maximum(height - h, 1))
    left = _below(offset_draw[1], jnp.maximum(width - w, 1))
    return jnp.stack([top, left, h, w])


def byol_sides(
    height: jax.Array | int, width: jax.Array | int, area_fraction: jax.Array, log_ratio: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """BYOL's box, (height, width): sides from area and ratio, rounded half to even, cut off at the
    image; no retry."""
    height, width = jnp.asarray(height, jnp.int32), jnp.asarray(width, jnp.int32)
    area = area_fraction * (height * width).astype(jnp.float32)
    aspect = jnp.exp(log_ratio)
    w = jnp.rint(jnp.sqrt(area * aspect)).astype(jnp.int32)
    h = jnp.rint(jnp.sqrt(area / aspect)).astype(jnp.int32)
    # At least one pixel, where the authors' program would stop: images of a few pixels only.
    return jnp.clip(h, 1, height), jnp.clip(w, 1, width)


def _below(draw: jax.Array, count: jax.Array) -> jax.Array:
    """An integer in {0 .. count - 1} from a draw in [0, 1)."""
    return jnp.floor(draw * count.astype(draw.dtype)).astype(jnp.int32)


def draw_tv_box(
    key: jax.Array,
    height: int,
    width: int,
    *,
    scale: Sequence[float],
    ratio: Sequence[float],
    tries: int = 10,
) -> jax.Array:
    """A random box as torchvision draws it: `tv_box`."""
    u = uniforms(key, 2 * tries + 2)
    return tv_box(height, width, u[2 : 2 + tries], u[2 + tries :], u[:2], scale=scale, ratio=ratio)[
        0
    ]


def draw_tf_box(
    key: jax.Array,
    height: int,
    width: int,
    *,
    scale: Sequence[float],
    ratio: Sequence[float],
    tries: int = 100,
) -> jax.Array:
    """A random box as SimCLR's TensorFlow program draws it: `tf_box`."""
    u = uniforms(key, 2 * tries + 2)
    return tf_box(height, width, u[2 : 2 + tries], u[2 + tries :], u[:2], scale=scale, ratio=ratio)


def draw_byol_box(
    key: jax.Array, height: int, width: int, *, scale: Sequence[float], ratio: Sequence[float]
) -> jax.Array:
    """A random box as BYOL's program draws it: area uniform, ratio log-uniform, then
    `byol_sides`."""
    u = uniforms(key, 4)
    log_low, log_high = np.log(np.asarray(ratio, np.float32))
    h, w = byol_sides(
        height,
        width,
        scale[0] + (scale[1] - scale[0]) * u[0],
        log_low + (log_high - log_low) * u[1],
    )
    return jnp.stack([_below(u[2], height - h + 1), _below(u[3], width - w + 1), h, w])
