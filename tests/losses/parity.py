"""The gathered loss against the one-device loss: value and absolute gradient, in every way users
map a step; unit rows."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AXIS = "devices"
# Nearly all of the time is compilation, of each way on each device count in each type: all of them
# with CL_JAX_SLOW=1, beside `-m slow`; else four devices, and float64.
SLOW = bool(os.environ.get("CL_JAX_SLOW"))
N_DEVICES = (2, 4, 8) if SLOW else (4,)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of unit length, for inputs and oracles."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def assert_parity(
    loss: Callable[..., Any],
    args: Sequence[Any],
    sharded: Sequence[bool],
    *,
    n_devices: Sequence[int] = N_DEVICES,
    every_way: bool = SLOW,
    f64: float = 1e-10,
    f32: float = 1e-6,
) -> None:
    """Holds loss(*args, axis_name=...) on n devices to loss(*args, axis_name=None) on one.

    args are float64 (or integer) NumPy arrays of the global batch; sharded[i] says whether args[i]
    is split over its first axis, which every n in n_devices must divide. Value and gradient of each
    float argument are compared relative to the largest magnitude: f64 under x64, f32 without.
    every_way maps the step in each of WAYS, in both types; otherwise float64 takes the gradient
    inside of the mapped function, as a training step does, and outside, where JAX checks that all
    devices return the same.
    """
    types = ((np.float64, f64), (np.float32, f32))
    for dtype, bound in types if every_way else types[:1]:
        with jax.enable_x64(dtype is np.float64):
            given = [
                jnp.asarray(a, dtype) if np.asarray(a).dtype.kind == "f" else jnp.asarray(a)
                for a in args
            ]
            floats = tuple(i for i, a in enumerate(given) if jnp.issubdtype(a.dtype, jnp.floating))
            expected = jax.jit(jax.value_and_grad(partial(loss, axis_name=None), argnums=floats))(
                *given
            )
            assert np.isfinite(expected[0])
            for n in n_devices:
                for how in WAYS if every_way else BRIEF:
                    actual = WAYS[how](loss, given, sharded, floats, n)
                    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
                        error = np.abs(a - b).max() / max(np.abs(b).max(), 1e-2)
                        assert error <= bound, (
                            f"{how} on {n} devices, {dtype.__name__}: relative error {error:.3g}"
                        )


def _local(args, sharded, n):
    """This device's rows of the arguments that are sharded."""

    def rows(a):
        return lax.dynamic_slice_in_dim(
            a, lax.axis_index(AXIS) * (a.shape[0] // n), a.shape[0] // n
        )

    return [rows(a) if split else a for a, split in zip(args, sharded)]


def _inside(loss, sharded, floats, n):
    """The ordinary training step: gradient inside the mapped function, averaged over devices."""

    def step(*args):
        value, grads = jax.value_and_grad(
            lambda *a: loss(*_local(a, sharded, n), axis_name=AXIS), argnums=floats
        )(*args)
        return value, lax.pmean(grads, AXIS)

    return step


def _mesh(n):
    return jax.make_mesh((n,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:n])


def _shard_map(loss, args, sharded, floats, n):
    step = jax.shard_map(
        _inside(loss, sharded, floats, n),
        mesh=_mesh(n),
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    return jax.device_get(jax.jit(step)(*args))


def _outside(loss, args, sharded, floats, n):
    """Gradient of the mapped loss, with the varying-axes check on."""
    specs = tuple(PartitionSpec(AXIS) if split else PartitionSpec() for split in sharded)
    mapped = jax.shard_map(
        partial(loss, axis_name=AXIS), mesh=_mesh(n), in_specs=specs, out_specs=PartitionSpec()
    )
    return jax.device_get(jax.jit(jax.value_and_grad(mapped, argnums=floats))(*args))


def _pmap(loss, args, sharded, floats, n):
    inside = _inside(loss, sharded, floats, n)
    step = jax.pmap(
        lambda _, args: inside(*args), axis_name=AXIS, in_axes=(0, None), devices=jax.devices()[:n]
    )
    value, grads = jax.device_get(step(np.arange(n), args))  # pmap asks for one mapped argument
    for leaf in jax.tree.leaves((value, grads)):
        np.testing.assert_array_equal(
            leaf, np.broadcast_to(leaf[:1], leaf.shape), "devices disagree"
        )
    return value[0], tuple(g[0] for g in grads)


def _two_axes(loss, args, sharded, floats, n):
    """Gradient of the loss mapped over two axes that count as one."""
    names = ("hosts", AXIS)
    mesh = jax.make_mesh(
        (2, n // 2), names, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:n]
    )
    specs = tuple(PartitionSpec(names) if split else PartitionSpec() for split in sharded)
    mapped = jax.shard_map(
        partial(loss, axis_name=names), mesh=mesh, in_specs=specs, out_specs=PartitionSpec()
    )
    return jax.device_get(jax.jit(jax.value_and_grad(mapped, argnums=floats))(*args))


def _sharded(kind, loss, args, sharded, floats, n):
    """No axis is named: the arrays lie on a mesh."""
    mesh = jax.make_mesh((n,), (AXIS,), axis_types=(kind,), devices=jax.devices()[:n])
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(x, NamedSharding(mesh, PartitionSpec(*[AXIS] * split)))
            for x, split in zip(args, sharded)
        ]
        step = jax.value_and_grad(partial(loss, axis_name=None), argnums=floats)
        return jax.device_get(jax.jit(step)(*placed))


WAYS = {"shard_map": _shard_map, "shard_map, gradient outside": _outside, "pmap": _pmap}
BRIEF = ("shard_map", "shard_map, gradient outside")
if SLOW:
    WAYS |= {
        "shard_map over two axes": _two_axes,
        "jit, Auto mesh": partial(_sharded, AxisType.Auto),
        "jit, Explicit mesh": partial(_sharded, AxisType.Explicit),
    }
