"""Maps functions over devices and places arrays on them. No other module does.

A step is written for one device with a named axis (`AXIS`). `lift` compiles it with
`jit(shard_map(...))`, as `jax.pmap` does since JAX 0.8, so that arrays are global. Gradients are
taken inside and averaged with `lax.pmean`; with `check_vma=False` that is exact whether or not the
loss is averaged over the axis too."""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cl_jax.core.axis import first_row, gather, mean, total
from cl_jax.core.sharded import Sharded, is_sharded

__all__ = [
    "AXIS",
    "EACH",
    "FIRST",
    "SAME",
    "bytes_of_a_device",
    "everywhere",
    "fetch",
    "first_row",
    "from_each",
    "gather",
    "in_order",
    "join",
    "lift",
    "make_mesh",
    "mean",
    "mesh_of",
    "offer_devices",
    "place_as",
    "place_batch",
    "replicate",
    "resharded",
    "spread",
    "total",
]

AXIS = "devices"
HEARTBEAT = 10  # seconds without a sign of a process after which the others end
SAME, EACH = P(), P(AXIS)  # the same on every device; split over devices along the first axis
FIRST = "first"  # of an output: as the first argument


def join() -> None:
    """Joins the other processes of this job with `jax.distributed`. Call it before jax is asked for
    a device.

    JAX_NUM_PROCESSES, JAX_PROCESS_ID and JAX_COORDINATOR_ADDRESS (host:port of process 0) describe
    the job. Without the three, jax asks the scheduler: Slurm, Open MPI, a TPU slice.

    Raises:
      ValueError: only some of the three are set, or a count is not an integer.
    """
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS")
    found = {name: os.environ[name] for name in names if name in os.environ}
    if names[0] not in found and names[1] not in found:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT)
        return
    if len(found) < 3 or not (found[names[0]].isdigit() and found[names[1]].isdigit()):
        raise ValueError(
            f"the environment has {found}; expected the three of {', '.join(names)}, the first "
            f"two whole "
            "numbers and the last host:port, for instance 127.0.0.1:8476."
        )
    jax.distributed.initialize(
        found[names[2]],
        int(found[names[0]]),
        int(found[names[1]]),
        heartbeat_timeout_seconds=HEARTBEAT,
    )


def offer_devices(count: int) -> None:
    """Makes `count` devices available: the machine's own where it has as many, else virtual CPU
    devices. Call it before jax is asked for a device.

    A number that XLA_FLAGS sets (--xla_force_host_platform_device_count) stands.

    Raises:
      ValueError: there are fewer devices all the same.
    """
    asked = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not asked and jax.config.jax_num_cpu_devices != count:  # type: ignore[attr-defined]
        jax.config.update("jax_num_cpu_devices", count)
    if jax.device_count() < count and jax.default_backend() != "cpu":
        print(
            f"{jax.device_count()} {jax.default_backend()} device(s); using {count} CPU devices",
            file=sys.stderr,
        )
        jax.config.update("jax_platforms", "cpu")
        jax.extend.backend.clear_backends()
    make_mesh(count)  # says what to do where there are still too few


def make_mesh(devices: int | None = None) -> Mesh:
    """A one-axis mesh over the first `devices` devices (all of them by default).

    Raises:
      ValueError: more devices than there are.
    """
    found = jax.devices()
    count = devices or len(found)
    if count > len(found):
        raise ValueError(
            f"devices={count} asked for, {len(found)} found: {found}. On CPU, set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count} before starting."
        )
    ordered = in_order(found)[:count]
    return Mesh(np.array(ordered), (AXIS,), axis_types=(AxisType.Auto,))


def mesh_of(tree: Any) -> Mesh:
    """The one-axis mesh that the arrays of a tree lie on."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            sharding = leaf.sharding
            if isinstance(sharding, NamedSharding) and AXIS in sharding.mesh.axis_names:
                return sharding.mesh  # type: ignore[return-value]
            return Mesh(np.array(list(leaf.devices())[:1]), (AXIS,), axis_types=(AxisType.Auto,))
    return make_mesh(1)


def in_order(devices: Sequence[Any]) -> list[Any]:
    """Devices in order of their processes: `jax.make_mesh` orders a TPU slice by its topology, and
    rows that a process loads would then lie on devices of another."""
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def lift(
    function: Callable[..., Any],
    mesh: Mesh,
    in_specs: Any,
    out_specs: Any,
    donate: tuple[int, ...] = (),
    compiler: dict[str, Any] | None = None,
) -> Any:
    """Compiles a per-device function of global arrays; it may use collectives over `AXIS`.

    `Sharded` rows in an argument that is otherwise the SAME on all devices are split over them. An
    output FIRST, for instance a State after a step, is placed as the first argument. `compiler`:
    options of XLA.
    """

    def mapped(*arguments: Any) -> Any:
        given = in_specs if isinstance(in_specs, tuple) else (in_specs,) * len(arguments)
        specs = tuple(
            _specs(argument) if spec == SAME else spec for argument, spec in zip(arguments, given)
        )
        out = jax.tree.map(
            lambda spec: specs[0] if spec == FIRST else spec,
            out_specs,
            is_leaf=lambda spec: isinstance(spec, P),
        )
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)(
            *arguments
        )

    mapped.__name__ = getattr(function, "__name__", "mapped")
    return jax.jit(mapped, donate_argnums=donate, compiler_options=compiler)


def _specs(tree: Any) -> Any:
    """How the arrays of a tree lie: SAME, and `Sharded` rows split along their first axis."""
    found = jax.tree.leaves(tree, is_leaf=is_sharded)
    if not any(map(is_sharded, found)):
        return SAME
    return jax.tree.map(lambda x: _split(x) if is_sharded(x) else SAME, tree, is_leaf=is_sharded)


def _split(x: Sharded) -> P:
    return P(*(None,) * (len(x.rows.shape) - x.rank), AXIS)


def _resized(x: Sharded, values: Any, rows: int) -> Any:
    """NumPy rows, cut or padded with zeros to so many."""
    axis = values.ndim - x.rank
    values = values[(slice(None),) * axis + (slice(0, min(rows, x.size)),)]
    missing = rows - values.shape[axis]
    if not missing:
        return values
    return np.pad(values, [(0, missing * (i == axis)) for i in range(values.ndim)])


def bytes_of_a_device(tree: Any, mesh: Mesh) -> int:
    """Bytes of a tree's arrays, or shapes, on one device of a mesh: all of them, and of `Sharded`
    rows its share."""

    def one(x: Any) -> int:
        if is_sharded(x):
            return sum(map(one, jax.tree.leaves(x))) // mesh.size
        return int(np.prod(x.shape, dtype=np.int64)) * int(x.dtype.itemsize)

    return sum(map(one, jax.tree.leaves(tree, is_leaf=is_sharded)))


def resharded(like: Sharded, values: Any) -> Sharded:
    """NumPy rows [N, ...] placed as those of `like`, which may be a shape."""
    axis = len(like.rows.shape) - like.rank
    values = _resized(like, np.asarray(values, like.dtype), like.rows.shape[axis])
    placed = jax.make_array_from_callback(
        values.shape, like.rows.sharding, lambda index: values[index]
    )
    return dataclasses.replace(like, rows=placed)


def spread(tree: Any, mesh: Mesh) -> Any:
    """The tree, its `Sharded` rows split over the devices of a mesh: those of a State that
    `Method.init` made, which are whole on each device. Shapes (`jax.ShapeDtypeStruct`) become the
    shapes of the split arrays."""

    def one(x: Any) -> Any:
        if not is_sharded(x):
            return x
        sharding = NamedSharding(mesh, _split(x))
        axis, rows = len(x.rows.shape) - x.rank, -(-x.size // mesh.size) * mesh.size
        shape = (*x.rows.shape[:axis], rows, *x.rows.shape[axis + 1 :])
        if isinstance(x.rows, jax.ShapeDtypeStruct):
            placed: Any = jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)
        elif shape == x.rows.shape and jax.process_count() == 1:
            placed = jax.device_put(x.rows, sharding)
        else:
            width = [(0, more - had) for more, had in zip(shape, x.rows.shape)]
            pad = jax.jit(lambda rows: jax.numpy.pad(rows, width), out_shardings=sharding)
            placed = pad(x.rows)
        return dataclasses.replace(x, rows=placed)

    return jax.tree.map(one, tree, is_leaf=is_sharded)


def everywhere(well: bool) -> bool:
    """True if every process passed True; blocks until all have called."""
    return bool(np.all(from_each(well)))


def from_each(value: Any) -> np.ndarray:
    """What each process passed, [processes, ...]: a number or an array, of one shape and type on
    all of them. Blocks until all have called."""
    value = np.asarray(value)
    if jax.process_count() == 1:
        return value[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(value))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies every array to each device of the mesh, and splits `Sharded` rows over them. All
    processes must pass the same values."""

    def put(x):
        if is_sharded(x):
            sharding = NamedSharding(mesh, _split(x))
            values = _resized(x, np.asarray(x.rows), -(-x.size // mesh.size) * mesh.size)
            rows = jax.make_array_from_callback(values.shape, sharding, lambda at: values[at])
            return dataclasses.replace(x, rows=rows)
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                put(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        x = np.asarray(x)
        return jax.make_array_from_callback(
            x.shape, NamedSharding(mesh, SAME), lambda index: x[index]
        )

    return jax.tree.map(put, tree, is_leaf=is_sharded)


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh, spec: P = EACH) -> dict[str, jax.Array]:
    """Rows this process loaded -> global arrays split over the devices in rank order."""
    sharding = NamedSharding(mesh, spec)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def place_as(new: Any, old: Any) -> Any:
    """Places `new` like `old`, in type and sharding, so that a compiled step takes it without
    compiling again. All processes must pass the same values."""

    def put(new, old):
        if new is old:
            return old
        if is_sharded(old):
            return old if new.rows is old.rows else resharded(old, fetch(new).rows)
        values = np.asarray(new, old.dtype)
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: values[index])

    return jax.tree.map(put, new, old, is_leaf=is_sharded)


def fetch(tree: Any) -> Any:
    """Global arrays -> NumPy on every process; split arrays are gathered across processes first.
    `Sharded` rows come without their padding."""

    def get(x):
        if is_sharded(x):
            rows = get(x.rows)
            return dataclasses.replace(x, rows=_resized(x, rows, x.size))
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return np.asarray(x)
        if x.is_fully_replicated:
            return np.asarray(x.addressable_data(0))
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(get, tree, is_leaf=is_sharded)
