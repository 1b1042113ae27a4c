"""Batch normalisation over the global batch, or over fixed groups of it, whatever the number of
devices."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import axes_of, axis_size, is_divided, spread, total, varying
from cl_jax.core.linear import linear
from cl_jax.core.schedule import not_before
from cl_jax.core.shapes import check_axis, check_real


class BatchNorm(nn.Module):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias, moments per channel (last axis) over all
    other axes.

    With n devices on `axis_name`, each holding an equal part of the batch in rank order:
      splits = 1: moments over all examples of all devices (synchronised batch norm);
        `axis_name=None` stays local.
      splits = G: moments over each of G groups of consecutive examples of the global batch, G/n of
        them on a device (MoCo's batch norm of G GPUs, or its SplitBatchNorm). n must divide G: 1,
        2, 4, ... devices give one result.

    The running statistics in collection "batch_stats" take the mean over groups of each group's
    mean and variance, and are the same on every device unless axis_name is None. Moments are
    float32 at least, taken of deviations and not of raw squares: large means lose nothing.

    Args:
      axis_name: mapped device axis, or None for the moments of the local batch.
      splits: number of groups of the global batch, with axis_name=None of the local one.
      momentum: share of the old running statistics kept (0.9 here is 0.1 in PyTorch).
      epsilon: added to the variance.
      use_scale, use_bias, scale_init: the affine part, float32 parameters "scale" and "bias".
      unbiased_running_variance: put n/(n-1) times the variance of a group of n values into the
        running variance, as PyTorch does; TensorFlow, Flax and Haiku do not.
      dtype: of the result; None keeps that of x.

    Call with `train=True` (batch moments; "batch_stats" must be mutable) or `train=False` (running
    statistics). `weight`, of the leading axes of x, is how often each row counts in the moments and
    in the running statistics: 0 for padding. Rows are normalised whatever their weight, no gradient
    flows to it, and moments of no weight at all are 0.

    Raises:
      ValueError: splits not divisible by the devices, or the batch by the groups; axis_name not
        mapped; a weight of another shape.
    """

    axis_name: str | None = None
    splits: int = 1
    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: Callable[..., Any] = nn.initializers.ones
    unbiased_running_variance: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, weight: jax.Array | None = None) -> jax.Array:
        check_real(x=x)
        x = jnp.asarray(x)
        if x.ndim < 2:
            raise ValueError(f"x has shape {x.shape}; batch norm expects [B, ..., C].")
        if weight is not None and weight.shape != x.shape[: max(weight.ndim, 1)]:
            raise ValueError(
                f"weight has shape {weight.shape} and x {x.shape}; expected one number for each "
                f"row, {list(x.shape[:1])}, or more leading axes of x."
            )
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale = (
            self.param("scale", self.scale_init, (channels,), jnp.float32)
            if self.use_scale
            else None
        )
        bias = (
            self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
            if self.use_bias
            else None
        )
        out_dtype = x.dtype if self.dtype is None else self.dtype

        if train:
            # At initialisation no axis is mapped and the batch may be one example: only shapes
            # matter.
            axis_name, groups = (None, 1) if self.is_initializing() else self._groups(x.shape[0])
            shared = axis_name if self.splits == 1 else None
            if weight is not None:
                wide = jnp.promote_types(x.dtype, jnp.float32)
                weight = lax.stop_gradient(weight.astype(wide)).reshape(
                    *weight.shape, *(1,) * (x.ndim - weight.ndim)
                )
                # One number for each value of a channel, so that a sum of them is their count.
                weight = jnp.broadcast_to(weight, (*x.shape[:-1], 1))
            x, scale, bias, weight = varying((x, scale, bias, weight))
            divided = any(is_divided(one) for one in (x, scale, bias) if one is not None)

            def normalised(x, weight):
                if weight is None and divided:
                    y, mean, var = _differentiated(x, scale, bias, self.epsilon, out_dtype)
                    count = _count(x, shared)
                elif weight is None:
                    y, mean, var = _normalise(x, scale, bias, shared, self.epsilon, out_dtype)
                    count = _count(x, shared)
                else:
                    given = x, scale, bias, weight, shared, self.epsilon, out_dtype
                    y, mean, var = _weighted_forward(*given)[0] if divided else _weighted(*given)
                    count = total(weight.sum(), shared)
                if self.unbiased_running_variance:
                    var = var * (count / jnp.maximum(count - 1, 1))
                return y, mean, var

            if groups == 1:  # no reshape, across which XLA does not fuse a rectifier's gradient
                y, mean, var = normalised(x, weight)
            else:
                y, mean, var = jax.vmap(normalised)(
                    *jax.tree.map(
                        lambda x: x.reshape(groups, x.shape[0] // groups, *x.shape[1:]), (x, weight)
                    )
                )
            if not self.is_initializing():
                for running, new in ((running_mean, mean), (running_var, var)):
                    new = lax.stop_gradient(new).reshape(groups, channels).mean(0)
                    if axis_name is not None and self.splits > 1:
                        new = lax.pmean(new, axis_name)
                    running.value = (
                        self.momentum * running.value + (1 - self.momentum) * new
                    ).astype(running.value.dtype)
            return y.reshape(x.shape)
        mean, var = (
            moment.value.reshape((1,) * (x.ndim - 1) + (channels,))
            for moment in (running_mean, running_var)
        )
        centred = x.astype(jnp.promote_types(x.dtype, jnp.float32)) - mean
        return _affine(centred * lax.rsqrt(var + self.epsilon), scale, bias).astype(out_dtype)

    def _groups(self, batch: int) -> tuple[str | None, int]:
        """(axis, number of groups on this device)."""
        check_axis(self.axis_name)
        devices = 1 if self.axis_name is None else lax.axis_size(self.axis_name)
        if self.splits == 1:
            return self.axis_name, 1
        if self.splits < 1 or self.splits % devices:
            raise ValueError(
                f"batch norm with splits={self.splits} on {devices} devices; expected a positive "
                f"multiple "
                f"of {devices}, so that each device holds whole groups."
            )
        groups = self.splits // devices
        if batch % groups:
            raise ValueError(
                f"batch norm with splits={self.splits}: {batch} examples on each of {devices} "
                f"devices do "
                f"not divide into {groups} groups; make the global batch a multiple of "
                f"{self.splits}."
            )
        return self.axis_name, groups


@partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _normalise(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    axis_name: str | None,
    epsilon: float,
    dtype: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x [B, ..., C] -> (y, mean, variance), moments of the rank of x; mean and variance pass no
    gradient on.

    The gradient is written out because it then takes two passes over x and dy, sums first, and a
    rectifier before dy joins both: five reads and writes of that size where differentiation takes
    eight.
    """
    return _forward(x, scale, bias, axis_name, epsilon, dtype)[0]


@_normalise.defjvp
def _normalise_jvp(
    axis_name: str | None, epsilon: float, dtype: Any, primals: Any, tangents: Any
) -> tuple[Any, Any]:
    x, scale, bias = primals
    out, kept = _forward(x, scale, bias, axis_name, epsilon, dtype)
    tangent, gradients = partial(_tangent, axis_name, dtype), partial(_gradients, axis_name)
    return out, _moved(out, linear(tangent, gradients, kept, _spread_as(out[0], tangents)))


def _tangent(axis_name: str | None, dtype: Any, kept: Any, moved: Any) -> jax.Array:
    x, scale, _, shift, offset, inverse = kept
    normal = _centred(x, shift, offset) * inverse
    dx, d_scale, d_bias = moved
    dx = dx.astype(normal.dtype)
    axes = tuple(range(x.ndim - 1))
    sums = dx.sum(axes, keepdims=True), (dx * normal).sum(axes, keepdims=True)
    mean, along = _packed_total(sums, axis_name) / _count(x, axis_name)
    dy = _affine(inverse * (dx - mean - normal * along), scale, d_bias)
    return _with_scale(dy, normal, d_scale).astype(dtype)


def _with_scale(dy: jax.Array, normal: jax.Array, d_scale: jax.Array | None) -> jax.Array:
    """A tangent with the part of the scale's."""
    return dy if d_scale is None else dy + _affine(normal, d_scale, None)


def _spread_as(y: jax.Array, tangents: Any) -> Any:
    """Tangents that vary over the mapped axes over which y does."""
    axes = axes_of(y)
    return jax.tree.map(lambda one: spread(one, axes), tangents)


def _moved(out: tuple[jax.Array, ...], dy: jax.Array) -> tuple[jax.Array, ...]:
    """The tangents of (y, mean, variance), of which the moments pass none on."""
    return dy, *(spread(jnp.zeros(one.shape, one.dtype), axes_of(one)) for one in out[1:])


def _differentiated(
    x: jax.Array, scale: jax.Array | None, bias: jax.Array | None, epsilon: float, dtype: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`_normalise` of what is divided over Explicit axes of a mesh: no row is taken out of x, and
    JAX, which knows how each array is divided, differentiates."""
    wide, axes = x.astype(jnp.promote_types(x.dtype, jnp.float32)), tuple(range(x.ndim - 1))
    mean = wide.mean(axes, keepdims=True)
    var = jnp.square(wide - mean).mean(axes, keepdims=True)
    inverse = _affine(lax.rsqrt(var + epsilon), scale, None)
    return _affine((wide - mean) * inverse, None, bias).astype(dtype), mean, var


def _forward(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    axis_name: str | None,
    epsilon: float,
    dtype: Any,
) -> tuple[Any, Any]:
    shift, offset, mean, var = _moments(
        x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis_name
    )
    inverse = lax.rsqrt(var + epsilon)
    y = _affine(_centred(x, shift, offset) * _affine(inverse, scale, None), None, bias).astype(
        dtype
    )
    return (y, mean, var), (x, scale, bias, shift, offset, inverse)


def _gradients(axis_name: str | None, kept: Any, dy: jax.Array) -> tuple[Any, Any, Any]:
    """Of x, scale and bias."""
    x, scale, bias, shift, offset, inverse = kept
    normal = _centred(x, not_before(shift, dy), offset) * inverse
    dy = dy.astype(normal.dtype)
    axes = tuple(range(x.ndim - 1))
    sums = dy.sum(axes, keepdims=True), (dy * normal).sum(axes, keepdims=True)
    mean, along = _packed_total(sums, axis_name) / _count(x, axis_name)
    dx = _affine(inverse, scale, None) * (dy - mean - normal * along)
    return dx.astype(x.dtype), *_of_parameters(scale, bias, sums)


@partial(jax.custom_jvp, nondiff_argnums=(4, 5, 6))
def _weighted(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    weight: jax.Array,
    axis_name: str | None,
    epsilon: float,
    dtype: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`_normalise` with moments sum(w x) / sum(w) and sum(w (x - mean)^2) / sum(w), w [B, ..., 1];
    no gradient flows to w."""
    return _weighted_forward(x, scale, bias, weight, axis_name, epsilon, dtype)[0]


@_weighted.defjvp
def _weighted_jvp(
    axis_name: str | None, epsilon: float, dtype: Any, primals: Any, tangents: Any
) -> tuple[Any, Any]:
    x, scale, bias, weight = primals
    out, kept = _weighted_forward(x, scale, bias, weight, axis_name, epsilon, dtype)
    tangent = partial(_weighted_tangent, axis_name, dtype)
    gradients = partial(_weighted_gradients, axis_name)
    return out, _moved(out, linear(tangent, gradients, kept, _spread_as(out[0], tangents[:3])))


def _weighted_tangent(axis_name: str | None, dtype: Any, kept: Any, moved: Any) -> jax.Array:
    x, scale, _, weight, count, mean, inverse = kept
    normal = (x.astype(weight.dtype) - mean) * inverse
    dx, d_scale, d_bias = moved
    dx = dx.astype(normal.dtype)
    axes = tuple(range(x.ndim - 1))
    weighted = weight * dx
    sums = weighted.sum(axes, keepdims=True), (weighted * normal).sum(axes, keepdims=True)
    level, along = _packed_total(sums, axis_name) / count
    dy = _affine(inverse * (dx - level - normal * along), scale, d_bias)
    return _with_scale(dy, normal, d_scale).astype(dtype)


def _weighted_forward(
    x: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    weight: jax.Array,
    axis_name: str | None,
    epsilon: float,
    dtype: Any,
) -> tuple[Any, Any]:
    axes = tuple(range(x.ndim - 1))
    wide = x.astype(weight.dtype)
    local = weight.sum()
    mean = (weight * wide).sum(axes, keepdims=True) / jnp.where(local > 0, local, 1.0)
    var = (weight * jnp.square(wide - mean)).sum(axes, keepdims=True)
    var = var / jnp.where(local > 0, local, 1.0)
    count = local
    if _shared(local, axis_name):
        counts = jnp.broadcast_to(local, mean.shape)
        counts, means, variances = _of_all((counts, mean, var), axis_name)
        count = counts[:, :1].sum()
        share = counts / jnp.where(count > 0, count, 1.0)
        mean = (share * means).sum(0, keepdims=True).reshape(mean.shape)
        apart = jnp.square(means - mean.reshape(1, -1))
        var = (share * (variances + apart)).sum(0).reshape(var.shape)
    count = jnp.where(count > 0, count, 1.0)
    inverse = lax.rsqrt(var + epsilon)
    y = _affine((wide - mean) * _affine(inverse, scale, None), None, bias).astype(dtype)
    return (y, mean, var), (x, scale, bias, weight, count, mean, inverse)


def _weighted_gradients(axis_name: str | None, kept: Any, dy: jax.Array) -> tuple[Any, Any, Any]:
    """Of x, scale and bias."""
    x, scale, bias, weight, count, mean, inverse = kept
    normal = (x.astype(weight.dtype) - not_before(mean, dy)) * inverse
    dy = dy.astype(normal.dtype)
    axes = tuple(range(x.ndim - 1))
    sums = dy.sum(axes, keepdims=True), (dy * normal).sum(axes, keepdims=True)
    level, along = _packed_total(sums, axis_name) / count
    dx = _affine(inverse, scale, None) * (dy - weight * (level + normal * along))
    return dx.astype(x.dtype), *_of_parameters(scale, bias, sums)


def _of_parameters(
    scale: jax.Array | None, bias: jax.Array | None, sums: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array | None, jax.Array | None]:
    """Gradients of scale and bias, of their own types, of (sum dy, sum dy * normal)."""
    of_bias, of_scale = sums
    return (
        None if scale is None else of_scale.reshape(-1).astype(scale.dtype),
        None if bias is None else of_bias.reshape(-1).astype(bias.dtype),
    )


def _affine(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    lead = (1,) * (x.ndim - 1)
    x = x if scale is None else x * scale.reshape(*lead, -1)
    return x if bias is None else x + bias.reshape(*lead, -1)


def _centred(x: jax.Array, shift: jax.Array, offset: jax.Array) -> jax.Array:
    return (x.astype(shift.dtype) - shift) - offset


def _count(x: jax.Array, axis_name: str | None) -> int:
    """Values that one moment is of."""
    return x.size // x.shape[-1] * axis_size(axis_name)


def _moments(
    x: jax.Array, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """x [B, ..., C] -> (shift, offset, mean, variance) of the rank of x; x - shift - offset has the
    mean 0."""
    axes = tuple(range(x.ndim - 1))
    # One pass over deviations from the mean of the first example, at most sqrt(B) standard
    # deviations from the mean of all: rounding grows by B at the very worst, and not with the mean.
    shift = x[:1].mean(axes, keepdims=True)
    deviation = x - shift
    offset = deviation.mean(axes, keepdims=True)
    var = jnp.maximum(jnp.square(deviation).mean(axes, keepdims=True) - jnp.square(offset), 0)
    mean = shift + offset
    if _shared(mean, axis_name):
        means, variances = _of_all((mean, var), axis_name)
        middle = means.mean(0)
        var = (variances + jnp.square(means - middle[None])).mean(0).reshape(var.shape)
        mean = middle.reshape(mean.shape)
        offset = mean - shift
    return shift, offset, mean, var


def _shared(x: jax.Array, axis_name: str | None) -> bool:
    """Whether other devices hold a part of what x sums up: on one device an all-reduce would copy,
    which only the type of a value that varies over the axis asks for."""
    return axis_name is not None and (axis_size(axis_name) > 1 or axis_name in axes_of(x))


def _of_all(values: tuple[jax.Array, ...], axis_name: str | None) -> jax.Array:
    """[len(values), devices, C]: a few numbers a channel from each device, by one all-reduce: with
    them the moments of the whole batch are as exact as those of a part, and what a device waits for
    is one collective and not a mean and then a variance."""
    rows = jnp.stack([value.reshape(-1) for value in values])
    mine = jnp.arange(axis_size(axis_name)) == lax.axis_index(axis_name)
    placed: jax.Array = jnp.where(mine[None, :, None], rows[:, None], 0)
    return lax.psum(placed, axis_name)


def _packed_total(sums: tuple[jax.Array, ...], axis_name: str | None) -> jax.Array:
    """The sums over devices, stacked, by one all-reduce."""
    stacked: jax.Array = jnp.stack(sums)
    return lax.psum(stacked, axis_name) if _shared(stacked, axis_name) else stacked
