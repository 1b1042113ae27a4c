"""Maps functions over devices and places arrays on them. No other module does.

A step is written for one device with a named axis (`AXIS`). `lift` compiles it with
`jit(shard_map(...))`, as `jax.pmap` does since JAX 0.8, so that arrays are global. Gradients are
taken inside and averaged with `lax.pmean`; with `check_vma=False` that is exact whether or not the
loss is averaged over the axis too."""

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

__all__ = [
    "AXIS",
    "EACH",
    "SAME",
    "everywhere",
    "fetch",
    "first_row",
    "gather",
    "in_order",
    "join",
    "lift",
    "make_mesh",
    "mean",
    "offer_devices",
    "place_as",
    "place_batch",
    "replicate",
    "total",
]

AXIS = "devices"
HEARTBEAT = 10  # seconds without a sign of a process after which the others end
SAME, EACH = P(), P(AXIS)  # the same on every device; split over devices along the first axis


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
    """A one-axis mesh over the first `devices` devices (all of them by default)."""
    found = jax.devices()
    count = devices or len(found)
    if count > len(found):
        raise ValueError(
            f"devices={count} asked for, {len(found)} found: {found}. On CPU, set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count} before starting."
        )
    ordered = in_order(found)[:count]
    return Mesh(np.array(ordered), (AXIS,), axis_types=(AxisType.Auto,))


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
) -> Any:
    """Compiles a per-device function of global arrays; it may use collectives over `AXIS`."""
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return jax.jit(mapped, donate_argnums=donate)


def everywhere(well: bool) -> bool:
    """True if every process passed True; blocks until all have called."""
    if jax.process_count() == 1:
        return well
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(well))))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies every array to each device of the mesh. All processes must pass the same values."""

    def put(x):
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                put(jax.random.key_data(x)), impl=jax.random.key_impl(x)
            )
        x = np.asarray(x)
        return jax.make_array_from_callback(
            x.shape, NamedSharding(mesh, SAME), lambda index: x[index]
        )

    return jax.tree.map(put, tree)


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
        values = np.asarray(new, old.dtype)
        return jax.make_array_from_callback(old.shape, old.sharding, lambda index: values[index])

    return jax.tree.map(put, new, old)


def fetch(tree: Any) -> Any:
    """Global arrays -> NumPy on every process; split arrays are gathered across processes first."""

    def get(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return np.asarray(x)
        if x.is_fully_replicated:
            return np.asarray(x.addressable_data(0))
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(get, tree)
