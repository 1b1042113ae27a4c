"""Batch normalisation over the global batch, or over fixed groups of it, whatever the number of devices."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.shapes import check_axis, check_real


class BatchNorm(nn.Module):
    """y = (x - mean) / sqrt(var + epsilon) * scale + bias, moments per channel (last axis) over all other axes.

    With n devices on `axis_name`, each holding an equal part of the batch in rank order:
      splits = 1: moments over all examples of all devices (synchronised batch norm); `axis_name=None` stays local.
      splits = G: moments over each of G groups of consecutive examples of the global batch, G/n of them on a device
        (MoCo's batch norm of G GPUs, or its SplitBatchNorm). n must divide G: 1, 2, 4, ... devices give one result.
    The running statistics in collection "batch_stats" take the mean over groups of each group's mean and variance, and
    are the same on every device unless axis_name is None. Moments are float32 at least, taken of deviations and not of
    raw squares: large means lose nothing.

    Args:
      axis_name: mapped device axis, or None for the moments of the local batch.
      splits: number of groups of the global batch, with axis_name=None of the local one.
      momentum: share of the old running statistics kept (0.9 here is 0.1 in PyTorch).
      epsilon: added to the variance.
      use_scale, use_bias, scale_init: the affine part, float32 parameters "scale" and "bias".
      unbiased_running_variance: put n/(n-1) times the variance of a group of n values into the running variance, as
        PyTorch does; TensorFlow, Flax and Haiku do not.
      dtype: of the result; None keeps that of x.

    Call with `train=True` (batch moments; "batch_stats" must be mutable) or `train=False` (running statistics).

    Raises:
      ValueError: splits not divisible by the devices, or the batch by the groups; axis_name not mapped.
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
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        check_real(x=x)
        if x.ndim < 2:
            raise ValueError(f"x has shape {x.shape}; batch norm expects [B, ..., C].")
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32) if self.use_scale else None
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32) if self.use_bias else None
        out_dtype = x.dtype if self.dtype is None else self.dtype
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))

        if train:
            # At initialisation no axis is mapped and the batch may be one example: only shapes matter.
            axis_name, groups = (None, 1) if self.is_initializing() else self._groups(x.shape[0])
            shape = x.shape
            x = x.reshape(groups, shape[0] // groups, *shape[1:])
            centred, mean, var, count = _moments(x, axis_name if self.splits == 1 else None)
            if not self.is_initializing():
                correction = count / max(count - 1, 1) if self.unbiased_running_variance else 1.0
                for running, new in ((running_mean, mean), (running_var, var * correction)):
                    new = lax.stop_gradient(new).reshape(groups, channels).mean(0)
                    if axis_name is not None and self.splits > 1:
                        new = lax.pmean(new, axis_name)
                    running.value = (self.momentum * running.value + (1 - self.momentum) * new).astype(
                        running.value.dtype)
            y = centred * _factor(var, scale, self.epsilon)
            y = y.reshape(shape)
        else:
            lead = (1,) * (x.ndim - 1)
            y = (x - running_mean.value.reshape(*lead, channels)) * _factor(
                running_var.value.reshape(*lead, channels), scale, self.epsilon)
        if bias is not None:
            y = y + bias.reshape((1,) * (y.ndim - 1) + (channels,))
        return y.astype(out_dtype)

    def _groups(self, batch: int) -> tuple[str | None, int]:
        """(axis, number of groups on this device)."""
        check_axis(self.axis_name)
        devices = 1 if self.axis_name is None else lax.axis_size(self.axis_name)
        if self.splits == 1:
            return self.axis_name, 1
        if self.splits < 1 or self.splits % devices:
            raise ValueError(f"batch norm with splits={self.splits} on {devices} devices; expected a positive multiple "
                             f"of {devices}, so that each device holds whole groups.")
        groups = self.splits // devices
        if batch % groups:
            raise ValueError(f"batch norm with splits={self.splits}: {batch} examples on each of {devices} devices do "
                             f"not divide into {groups} groups; make the global batch a multiple of {self.splits}.")
        return self.axis_name, groups


def _factor(var: jax.Array, scale: jax.Array | None, epsilon: float) -> jax.Array:
    factor = lax.rsqrt(var + epsilon)
    return factor if scale is None else factor * scale.reshape((1,) * (var.ndim - 1) + scale.shape)


def _moments(x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array, jax.Array, int]:
    """x [G, B/G, ..., C] -> (x - mean, mean, variance, values per moment); moments have the rank of x."""
    axes = tuple(range(1, x.ndim - 1))
    # One pass over deviations from the mean of the group's first example, at most sqrt(B/G) standard deviations from
    # the mean of all: rounding grows by B/G at the very worst, and not with the mean. The moments do not depend on the
    # shift, so it takes no gradient.
    shift = lax.stop_gradient(x[:, :1].mean(axes, keepdims=True))
    deviation = x - shift
    offset = deviation.mean(axes, keepdims=True)
    var = jnp.maximum(jnp.square(deviation).mean(axes, keepdims=True) - jnp.square(offset), 0)
    count = x.size // (x.shape[0] * x.shape[-1])
    if axis_name is not None:
        local = shift + offset
        mean = lax.pmean(local, axis_name)
        var = lax.pmean(var + jnp.square(local - mean), axis_name)
        offset, count = mean - shift, count * lax.axis_size(axis_name)
    else:
        mean = shift + offset
    return deviation - offset, mean, var, count
