"""Colour spaces whose channels make the views of CMC: Lab, YCbCr and YDbDr.

Conversions take RGB planes [3, H, W] in [0, 1] and keep their float type; units are each space's
own. The mean and deviation of each space are the authors': mid-range and half-range for Lab, not
statistics of a data set."""

import jax
import jax.numpy as jnp
import numpy as np

SPACES = ("rgb", "lab", "ycbcr", "ydbdr")
LAB_MEAN = ((0 + 100) / 2, (-86.183 + 98.233) / 2, (-107.857 + 94.478) / 2)
LAB_STD = ((100 - 0) / 2, (98.233 + 86.183) / 2, (94.478 + 107.857) / 2)
YCBCR_MEAN = (116.151, 121.080, 132.342)
YCBCR_STD = (109.500, 111.855, 111.964)
YDBDR_MEAN = (0.457, -0.082, -0.052)
YDBDR_STD = (0.500, 1.331, 1.333)

_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_WHITE = (0.95047, 1.0, 1.08883)
_YCBCR = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
_YDBDR = ((0.299, 0.587, 0.114), (-0.45, -0.883, 1.333), (-1.333, 1.116, 0.217))


def rgb_to_lab(x: jax.Array) -> jax.Array:
    """CIE Lab of sRGB under D65: L in 0 .. 100, a and b about -108 .. 98.

    Linearised by ((v + 0.055) / 1.055)^2.4 above 0.04045, else v / 12.92; to XYZ, over the white
    point; then
    f(t) = cbrt(t) above 0.008856, else 7.787 t + 16/116;
    L = 116 f(Y) - 16, a = 500 (f(X) - f(Y)), b = 200 (f(Y) - f(Z)).
    The constants are scikit-image's, so greys are within 0.01 of a = b = 0, not at it."""
    _check_rgb(x)
    dark = x <= 0.04045
    linear = jnp.where(dark, x / 12.92, ((jnp.where(dark, 1, x) + 0.055) / 1.055) ** 2.4)
    t = _mix(linear, np.asarray(_XYZ) / np.asarray(_WHITE)[:, None])
    low = t <= 0.008856
    f = jnp.where(low, 7.787 * t + 16 / 116, jnp.cbrt(jnp.where(low, 1, t)))
    return jnp.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def rgb_to_ycbcr(x: jax.Array) -> jax.Array:
    """ITU-R BT.601 YCbCr in 8-bit units: Y in 16 .. 235, Cb and Cr in 16 .. 240."""
    _check_rgb(x)
    return _mix(x, np.asarray(_YCBCR)) + jnp.asarray([16, 128, 128], x.dtype)[:, None, None]


def rgb_to_ydbdr(x: jax.Array) -> jax.Array:
    """YDbDr (SECAM): Y in 0 .. 1, Db and Dr in -1.333 .. 1.333."""
    _check_rgb(x)
    return _mix(x, np.asarray(_YDBDR))


def convert(x: jax.Array, space: str) -> jax.Array:
    """RGB planes to the space of that name; "rgb" leaves them, whatever their number.

    Raises:
      ValueError: an unknown space, planes that are not RGB.
    """
    if space == "rgb":
        return x
    if space == "lab":
        return rgb_to_lab(x)
    if space == "ycbcr":
        return rgb_to_ycbcr(x)
    if space == "ydbdr":
        return rgb_to_ydbdr(x)
    raise ValueError(f"colour space {space!r} is not known; expected one of {', '.join(SPACES)}.")


def split(view: jax.Array) -> tuple[jax.Array, jax.Array]:
    """CMC's two views of an image [..., H, W, 3] in any of the spaces: luminance [..., 1] and
    colour [..., 2].

    Raises:
      ValueError: views of other than 3 channels.
    """
    if view.shape[-1] != 3:
        raise ValueError(
            f"view has shape {view.shape}; expected [..., H, W, 3]: luminance and two of colour. "
            "Splitting comes after the conversion, on channels-last views."
        )
    return view[..., :1], view[..., 1:]


def _mix(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    # Written out: three channels are no work for a matrix unit, which would round them on
    # accelerators.
    m = matrix.tolist()
    return jnp.stack([row[0] * x[0] + row[1] * x[1] + row[2] * x[2] for row in m])


def _check_rgb(x: jax.Array) -> None:
    if x.shape[0] != 3:
        raise ValueError(
            f"planes have shape {x.shape}; expected [3, H, W], RGB. Only colour images have these "
            f"spaces; "
            "channels=3 in the data section repeats the channel of grey ones."
        )
