"""What a run will need, before it runs: memory of a device by kind, arithmetic, traffic between
devices, a floor of the step's time, the largest batch. Read from the trainer's own step, lowered
for as many devices and compiled; nothing is trained and no example is read where the data set's
sizes are known. Ends with status 1 for a config that does not fit.

Three compilers can say what the temporaries take, and none needs its device: `--compiler=tpu` with
libtpu installed (`pip install -e '.[tpu]'`), `--compiler=gpu` with jax's CUDA plug-in
(`'.[cuda]'`), and XLA's for CPUs, which computes bfloat16 convolutions in float32: for such a
config its temporaries are a bound from above, about twice too high, and the report says so. The
memory traffic is that compiler's too, so the floor that the CPU's sets for another device is an
estimate; those of arithmetic and links are bounds. A GPU's program is read kernel by kernel:
`--layers` shows the floor of each part of the network, and whether bytes or products set it.
"""

import dataclasses
import importlib.util
import inspect
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from cl_jax.core import parallel
from cl_jax.core.parallel import EACH, FIRST, SAME
from cl_jax.data import batches, declared
from cl_jax.planning import costs
from cl_jax.planning.devices import CHIPS, Device, rate, target
from cl_jax.planning.kernels import Kernel, kernels_of
from cl_jax.training import experiment
from cl_jax.training.steps import step_of

USABLE = 0.9  # of a device's memory; the rest is the runtime's, the evaluation's and fragments
LOSSES = str(Path("cl_jax") / "losses")
GIB = 2**30
# Chips of a slice -> its shape, as libtpu names them. Only the shapes matter, so a run on fewer
# uses some of them.
_FLAT = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
}
# Where no kernel can be timed: cuBLAS for all products, since Triton's tiles are chosen by timing.
UNTIMED = {"xla_gpu_enable_triton_gemm": False, "xla_gpu_autotune_level": 0}
SLICES = {"v4": _CUBES, "v5p": _CUBES, "v5e": _FLAT, "v6e": _FLAT}


class Programme(NamedTuple):
    """A compiled step: the State's bytes by kind, and what the compiler says. All of one device."""

    built: experiment.Built
    state: dict[str, int]
    batch: int
    temporaries: int
    accessed: float
    flops: float
    exact: float  # of these, of float32 at HIGHEST
    loss: int
    collectives: dict[str, costs.Collective]
    kernels: list[Kernel]  # of a GPU's program; empty for others
    evaluation: int = 0  # besides the State and data

    @property
    def bytes(self) -> int:
        """The most at any time: a step's or an evaluation's. A save copies the State to the host
        and takes nothing more of a device."""
        return sum(self.state.values()) + max(self.batch + self.temporaries, self.evaluation)


def with_declared_data(config: ConfigDict, *, examples: int = 0, image_size: int = 0) -> ConfigDict:
    """The config over a stand-in for its data where their sizes are known: given here, or a set of
    `declared.KNOWN`.

    Raises:
      ValueError: a set of TensorFlow Datasets that is not known, or images of mixed sizes, and no
        given sizes.
    """
    section = config.data
    name = section.get("dataset", "").split("/")[0].split(":")[0]
    if section.name != "tfds" and not examples:
        return config
    size, test, side, classes = declared.KNOWN.get(name, (0, 1, None, 10))
    size, side = examples or size, image_size or section.get("image_size") or side
    if not size or not side:
        raise ValueError(
            f"the sizes of {name or section.name} are not known; give --examples (training "
            f"images) and "
            "--image_size (side of the stored square)."
        )
    changed = ConfigDict(config.copy_and_resolve_references()).unlock()
    changed.data = ConfigDict(
        dict(name="declared", train_size=size, test_size=test, image_size=side, num_classes=classes)
    )
    # Of pictures that are shown in several ways a number for each; three are its default.
    channels = section.get("channels") or (3,) * len(section.get("shown", ()))
    if channels:
        changed.data.channels = sum(channels) if isinstance(channels, tuple | list) else channels
    for key in ("validation", "fraction", "imbalance"):
        if section.get(key) is not None:
            changed.data[key] = section[key]
    return changed


def evaluation_bytes(
    config: ConfigDict, state: Any, built: experiment.Built, mesh: jax.sharding.Mesh
) -> int:
    """What a device holds while a block of examples is encoded, besides the State and the data: the
    block, its features, and the temporaries of the compiled program. Evaluators that work on the
    features of all examples come on top."""
    size = -(-config.evals.batch_size // mesh.size) * mesh.size
    example = built.data.train.read(0)
    fields = [name for name in built.method.needs if name in example]
    block = {
        name: jax.ShapeDtypeStruct(
            (size, *np.shape(example[name])), np.asarray(example[name]).dtype
        )
        for name in fields
    } | {"id": jax.ShapeDtypeStruct((size,), np.int32)}
    lifted = parallel.lift(built.method.encode, mesh, (SAME, EACH), EACH)
    on_gpu = mesh.devices.flat[0].platform in ("gpu", "cuda")
    memory = lifted.lower(state, block).compile(UNTIMED if on_gpu else None).memory_analysis()
    held = parallel.bytes_of_a_device(block, mesh) // mesh.size
    return int(held + memory.temp_size_in_bytes + memory.output_size_in_bytes)


def _elsewhere(config: ConfigDict) -> ConfigDict:
    """The config without what its encoder does on a CPU alone, where it is only compiled."""
    name = f"cl_jax.encoders.{config.encoder.get('name', '')}"
    if (
        importlib.util.find_spec(name) is None  # an error for `build` to tell
        or "for_cpu" not in inspect.signature(importlib.import_module(name).make).parameters
    ):
        return config
    changed = ConfigDict(config.copy_and_resolve_references()).unlock()
    changed.encoder.for_cpu = False
    return changed


def programme(
    config: ConfigDict,
    mesh: jax.sharding.Mesh | None = None,
    device_bytes: float | None = None,
    *,
    evaluates: bool = False,
) -> Programme:
    """Compiles the step of a config on its forced host devices, or on the devices of a mesh that
    need not exist, and with `evaluates` what an evaluation encodes with. `device_bytes`: memory of
    one, which says whether the data lie on it."""
    built = experiment.build(_elsewhere(config))
    method, train = built.method, built.data.train
    example = train.read(0)
    shapes = {name: np.asarray(example[name]) for name in experiment.fields_of(method, example)} | {
        "id": np.int32(0)
    }
    batch = {
        name: jax.ShapeDtypeStruct((built.run.batch_size, *np.shape(one)), one.dtype)
        for name, one in shapes.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(parallel.lift(method.init, built.mesh, (SAME, EACH), SAME), key, batch)
    # The path of a set on the host: a set on the device adds itself and a gather of the batch,
    # counted apart.
    update = step_of(method, config).update
    state = parallel.spread(state, mesh or built.mesh)
    step = parallel.lift(
        update, mesh or built.mesh, (SAME, EACH, SAME, SAME), (FIRST, SAME), donate=(0,)
    )
    traced = step.trace(state, batch, key, jax.ShapeDtypeStruct((), np.int32))
    on_gpu = mesh is not None and mesh.devices.flat[0].platform in ("gpu", "cuda")
    compiled = traced.lower().compile(UNTIMED if on_gpu else None)
    memory, cost, text = (
        compiled.memory_analysis(),
        compiled.cost_analysis() or {},
        compiled.as_text(),
    )
    kernels = kernels_of(text) if on_gpu else []
    accessed = (
        sum(kernel.times * kernel.bytes for kernel in kernels)
        if on_gpu
        else cost.get("bytes accessed", 0.0)
    )
    limit = experiment.loading_of(config).resident_limit(device_bytes)
    resident = batches.resident(train, max_bytes=limit) or {}
    held = {
        "parameters": state.params,
        "batch statistics": state.stats,
        "optimiser": state.opt,
        "target": state.target,
        "memory": state.memory,
        "data": {name: rows for name, rows in resident.items() if name in batch},
    }
    return Programme(
        built,
        {kind: parallel.bytes_of_a_device(tree, built.mesh) for kind, tree in held.items()},
        parallel.bytes_of_a_device(batch, built.mesh) // built.mesh.size,
        memory.temp_size_in_bytes,
        float(accessed),
        costs.flops(traced.jaxpr),
        costs.flops(traced.jaxpr, exact=True),
        costs.peak_bytes(traced.jaxpr, LOSSES),
        costs.collectives(text, built.mesh.size),
        kernels,
        evaluation_bytes(config, state, built, mesh or built.mesh) if evaluates else 0,
    )


def plan(
    config: ConfigDict,
    device: Device,
    *,
    mesh: jax.sharding.Mesh | None = None,
    search: bool = True,
) -> dict[str, Any]:
    """What a step of the config needs on each of `config.devices` such devices, as plain numbers
    (bytes, seconds).

    Args:
      mesh: devices of the program where they are not this machine's; see `tpu_mesh`.
      search: look for the largest batch, by compiling up to four programs more.
    """
    compiled = programme(config, mesh, device.memory, evaluates=True)
    run, devices = compiled.built.run, compiled.built.mesh.size
    dtype = experiment.dtype_of(config)
    room = USABLE * device.memory
    compiler = "xla:cpu" if mesh is None else "xla:gpu" if compiled.kernels else "xla:tpu"
    sent = sum(found.sent for found in compiled.collectives.values())
    floor = {
        "compute": (compiled.flops - compiled.exact)
        / (device.bfloat16 if dtype == "bfloat16" else device.float32)
        + compiled.exact / device.exact,
        "memory": compiled.accessed / device.bandwidth,
        "links": sent / device.link,
    }
    parts = layers(compiled.kernels, device)
    if parts:
        floor["kernel by kernel"] = sum(row["seconds"] for row in parts)
    slowest = max(floor, key=floor.__getitem__)
    found = {
        "method": config.method.name,
        "data": config.data.name,
        "device": device.name,
        "devices": devices,
        "batch_size": run.batch_size,
        "dtype": dtype,
        "compiler": compiler,
        "parameters": compiled.state["parameters"] // 4,
        "bytes": compiled.state | {"batch": compiled.batch, "temporaries": compiled.temporaries},
        "evaluation_bytes": compiled.evaluation,
        "loss_bytes_before_fusion": compiled.loss,
        "total_bytes": compiled.bytes,
        "usable_bytes": room,
        "flops": compiled.flops,
        "accessed_bytes": compiled.accessed,
        "collectives": {
            kind: dataclasses.asdict(row) for kind, row in compiled.collectives.items()
        },
        "sent_bytes": sent,
        "floor_seconds": floor,
        "bound": slowest,
        "examples_per_second_at_floor": run.batch_size / floor[slowest],
        "layers": parts,
        "fits": compiled.bytes <= room,
    }
    if search:

        def total(batch: int) -> int:
            changed = ConfigDict(config.copy_and_resolve_references()).unlock()
            changed.batch_size = batch
            return programme(changed, mesh, device.memory).bytes

        found["largest_batch"], found["compiled_batches"] = largest_batch(
            total, {run.batch_size: compiled.bytes}, room, devices, run.size
        )
    found["advice"] = "" if found["fits"] else advice(found)
    return found


def layers(kernels: list[Kernel], device: Device) -> list[dict[str, Any]]:
    """The kernels of each part of the program, as plain numbers: the parts of the network in order,
    the rest by what it is.

    "seconds" is the floor of all kernels of the part, "by_products" the share of it in kernels that
    their products and not their bytes bound.
    """
    rows: dict[str, dict[str, Any]] = {}
    numbers = ("flops", "seconds", "by_products")
    for kernel in kernels:
        steps = [
            step for step, _ in itertools.groupby(kernel.scope.split("/"))
        ]  # a network around a network
        part = "/".join(steps[:3] if steps[0] == "Network" else steps[:1]) or "no scope"
        row = rows.setdefault(
            part, {"part": part, "kernels": 0, "bytes": 0} | dict.fromkeys(numbers, 0.0)
        )
        speed = rate(device, kernel.dtype, kernel.exact)
        seconds = kernel.floor(speed, device.bandwidth)
        row["kernels"] += kernel.times
        row["bytes"] += kernel.times * kernel.bytes
        row["flops"] += kernel.times * kernel.flops
        row["seconds"] += seconds
        row["by_products"] += (
            seconds if kernel.flops / speed > kernel.bytes / device.bandwidth else 0.0
        )
    for row in rows.values():
        row["by_products"] /= max(row["seconds"], 1e-30)

    def place(row: dict[str, Any]) -> tuple[Any, ...]:  # block2 before block10
        return (
            row["part"][:7] != "Network",
            *(word.zfill(4) for word in re.split(r"(\d+)", row["part"])),
        )

    return sorted(rows.values(), key=place)


def largest_batch(
    total: Callable[[int], int], known: dict[int, int], room: float, devices: int, examples: int
) -> tuple[int, dict[int, int]]:
    """The largest batch that was compiled and fits (0: none), and all that were compiled, {batch:
    bytes of a device}.

    A line through the two batches nearest to the room proposes the next, three times at most; it
    ends within a tenth of the room. Batches are multiples of the devices, of eight examples on each
    where there are so many."""

    def whole(batch: float) -> int:
        each = min(batch, examples) / devices
        return int(each // 8 * 8 if each >= 8 else each // 1) * devices

    known = dict(known)
    start = next(iter(known))
    half = whole(start / 2) or devices
    if half not in known:
        known[half] = total(half)
    for _ in range(3):
        best = max((batch for batch, size in known.items() if size <= room), default=0)
        if best and (best == whole(examples) or known[best] > 0.9 * room):
            break
        (a, at_a), (b, at_b) = sorted(sorted(known.items(), key=lambda row: abs(row[1] - room))[:2])
        slope = (at_b - at_a) / (b - a) if b != a else 0
        if slope <= 0:
            break
        proposed = whole(a + (0.97 * room - at_a) / slope)
        if proposed < devices or proposed in known:
            break
        known[proposed] = total(proposed)
    return max((batch for batch, size in known.items() if size <= room), default=0), dict(
        sorted(known.items())
    )


def advice(found: dict[str, Any]) -> str:
    """What to change in a config that does not fit."""
    sizes, room = found["bytes"], found["usable_bytes"]
    fixed = sum(size for kind, size in sizes.items() if kind not in ("batch", "temporaries"))
    if fixed > room:
        largest = max(
            (kind for kind in sizes if kind not in ("batch", "temporaries")), key=sizes.__getitem__
        )
        mends = {
            "memory": "a smaller queue or bank (--config.method)",
            "data": "a data section with cache_bytes=0, which leaves the set on the host",
        }
        mend = mends.get(largest, "a smaller network, or devices with more memory")
        return (
            f"The State and data alone take {fixed / GIB:.1f} GiB of {room / GIB:.1f}, most of it "
            f"{largest}: "
            f"choose {mend}. More devices help with rows of the data set in memory alone: each "
            "holds all else."
        )
    known = {"largest_batch": 0, **found}["largest_batch"]
    words = [
        f"--config.batch_size={known}, the largest that fits"
        if known
        else "a smaller --config.batch_size"
    ]
    needed = sizes["batch"] + sizes["temporaries"]
    words.append(
        f"about {int(np.ceil(found['devices'] * needed / max(room - fixed, 1)))} devices at this "
        f"batch size"
    )
    if found["dtype"] != "bfloat16":
        words.append("--config.encoder.dtype=bfloat16")
    if found["loss_bytes_before_fusion"] > needed / 2:
        words.append("a streamed loss (block_size)")
    else:
        words.append("--config.method.micro_batches, where the method has it")
    return "Choose " + "; or ".join(words) + "."


def report(found: dict[str, Any], *, table: bool = False) -> str:
    """The plan in words, one block; with `table` also the parts of a GPU's program."""

    def gib(size: float) -> str:
        return f"{size / GIB:9.3f} GiB"

    upper = found["compiler"] == "xla:cpu" and found["dtype"] == "bfloat16"
    lines = [
        f"{found['method']} on {found['devices']} x {found['device']}, batch "
        f"{found['batch_size']}, {found['dtype']}, "
        f"compiled by {found['compiler']}",
        f"parameters {found['parameters']:,}",
        "memory of a device:",
    ]
    lines += [f"  {kind:<17}{gib(size)}" for kind, size in found["bytes"].items() if size]
    lines += [
        f"  {'all':<17}{gib(found['total_bytes'])} of {gib(found['usable_bytes']).strip()} "
        f"({USABLE:.0%} of the device's)"
        + (" (an upper bound: convolutions in float32)" if upper else ""),
        "  an evaluation needs in place of batch and temporaries: "
        + gib(found["evaluation_bytes"]).strip(),
        "  of the temporaries, values of the loss before fusion: at most "
        + gib(found["loss_bytes_before_fusion"]).strip(),
        f"products of a step on a device: {found['flops']:.4g} FLOP; memory traffic "
        f"{found['accessed_bytes']:.4g} "
        "bytes",
    ]
    lines += [
        f"{kind} x {row['count']}: {row['bytes']:,} bytes, a device sends {row['sent']:,.0f}"
        for kind, row in found["collectives"].items()
    ]
    floor, estimate = (
        found["floor_seconds"],
        found["bound"] == "memory" and found["compiler"] == "xla:cpu",
    )
    lines += [
        "floor of the step: "
        + ", ".join(f"{name} {1e3 * seconds:.3f} ms" for name, seconds in floor.items())
        + f"; bound by {found['bound']}: {'about' if estimate else 'at most'} "
        f"{found['examples_per_second_at_floor']:,.0f} examples/s"
        + (
            " (traffic as the CPU's compiler fuses the step; the device's own may need less)"
            if estimate
            else ""
        )
    ]
    if "largest_batch" in found:
        lines.append(
            f"largest batch that fits, of those compiled "
            f"({', '.join(map(str, found['compiled_batches']))}): "
            f"{found['largest_batch'] or 'none'}"
        )
    if table and found["layers"]:
        lines.append(
            f"{'part':<36}{'kernels':>8}{'GB':>9}{'TFLOP':>9}{'floor ms':>10}  of it by products"
        )
        lines += [
            f"{row['part']:<36}{row['kernels']:>8}{row['bytes'] / 1e9:>9.3f}"
            f"{row['flops'] / 1e12:>9.4f}"
            f"{1e3 * row['seconds']:>10.3f}{row['by_products']:>8.0%}"
            for row in found["layers"]
        ]
    lines.append("fits" if found["fits"] else f"DOES NOT FIT. {found['advice']}")
    return "\n".join(lines)


def tpu_mesh(kind: str, devices: int) -> jax.sharding.Mesh | None:
    """The devices of a TPU slice that need not exist, for its own compiler; None where libtpu or
    such a slice is not."""
    sizes = [size for size in SLICES.get(kind, ()) if size >= devices]
    if not sizes or importlib.util.find_spec("libtpu") is None:
        return None
    from jax.experimental import topologies

    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "none"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
    ):
        os.environ.setdefault(name, value)  # not on a TPU machine: no query of its metadata
    found = topologies.get_topology_desc(
        platform="tpu", topology_name=f"{kind}:{SLICES[kind][min(sizes)]}"
    ).devices
    return jax.sharding.Mesh(np.array(found[:devices]), (parallel.AXIS,))


def gpu_mesh(kind: str, devices: int) -> jax.sharding.Mesh | None:
    """GPUs of one host that need not exist, for their own compiler; None where jax's CUDA plug-in
    or such a chip is not."""
    if kind not in CHIPS or importlib.util.find_spec("jax_plugins") is None:
        return None
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(
            platform="cuda", topology_name="", target_config=target(kind), topology=f"1x1x{devices}"
        ).devices
    except NotImplementedError:  # no plug-in for this platform
        return None
    return jax.sharding.Mesh(np.array(found), (parallel.AXIS,))
