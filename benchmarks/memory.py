"""The plan's memory against what a run takes: `cl-jax plan` before, the allocator's peak after some
steps.

python benchmarks/memory.py [--config configs/simclr_v1.py:cifar10] [--batch 512] [--small]

The plan is made by its command in a process of its own, for the device that is here where it is in
the table (h200 otherwise), by a GPU's own compiler where it knows the chip. Then the trainer's own
step runs three times on random images of the planned sizes. On an accelerator the peak is the
allocator's; a CPU's does not say, and there the comparison is with the step that ran: the bytes of
its State and images, and the temporaries of its compiled program.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import _timing


def planned(config: str, device: str, devices: int, compiler: str, settings: list[str]) -> dict:
    """The plan as its command writes it."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "plan.json"
        ran = subprocess.run(
            [
                sys.executable,
                "-m",
                "cl_jax",
                "plan",
                f"--config={config}",
                f"--devices={devices}",
                f"--device={device}",
                f"--compiler={compiler}",
                "--nosearch",
                f"--out={out}",
                *settings,
            ],
            cwd=_timing.ROOT,
            capture_output=True,
            text=True,
        )
        if not out.exists():
            raise RuntimeError(f"the plan of {config} failed:\n{ran.stderr[-2000:]}")
        return json.loads(out.read_text())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/simclr_v1.py:cifar10")
    parser.add_argument("--batch", type=int, default=0, help="instead of the config's")
    parser.add_argument(
        "--small", action="store_true", help="the config's debug variant, to try the program"
    )
    parser.add_argument("--out", type=_timing.given_path, default=None)
    args = parser.parse_args(argv)
    if args.small:
        args.config = "configs/simclr_v1.py:debug"
    _timing.prepare()
    import importlib

    import jax
    import numpy as np
    from ml_collections import ConfigDict

    from cl_jax.core import parallel
    from cl_jax.data.source import Splits, from_arrays
    from cl_jax.planning import plan
    from cl_jax.planning.devices import CHIPS, DEVICES, known
    from cl_jax.training import experiment, stages
    from cl_jax.training.steps import stepper

    found = known(jax.devices()[0].device_kind)
    device = next((name for name, record in DEVICES.items() if record == found), "h200")
    name, _, variants = args.config.partition(":")
    config = importlib.import_module(f"configs.{Path(name).stem}").get_config(variants or None)
    settings = []
    if args.batch:
        config.batch_size = args.batch
        settings.append(f"--config.batch_size={args.batch}")
    compiler = "gpu" if jax.default_backend() == "gpu" and device in CHIPS else "cpu"
    paper = planned(args.config, device, len(jax.devices()), compiler, settings)
    config = plan.with_declared_data(stages.stages(ConfigDict(config), "unused")[0][1])
    built = experiment.build(config)
    shape = (built.data.train.size, *built.data.train.read(0)["image"].shape)
    if built.data.train.arrays is not None and "image_b" not in built.data.train.arrays:
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        source = from_arrays(
            "random",
            {"image": images, "label": np.zeros(shape[0], np.int32)},
            built.data.train.sizes,
        )
        built = built._replace(data=Splits(source, source))
    state = experiment.initial_state(built, config)
    kinds = {
        "parameters": state.params,
        "batch statistics": state.stats,
        "optimiser": state.opt,
        "target": state.target,
        "memory": state.memory,
    }
    steps = stepper(built, config, 0)
    measured = {kind: parallel.bytes_of_a_device(tree, built.mesh) for kind, tree in kinds.items()}
    measured["data"] = sum(leaf.nbytes for leaf in jax.tree.leaves(steps.rows or {}))
    for _ in range(3):
        state, values = steps(state)
    jax.block_until_ready(values)
    measured["temporaries"] = steps.temporary_bytes
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    total = peak or sum(measured.values()) + paper["bytes"]["batch"]
    record = _timing.facts("flax") | {
        "config": args.config,
        "batch": config.batch_size,
        "planned": paper,
        "measured": measured,
        "peak": peak,
        "planned_by_measured": paper["total_bytes"] / total,
    }
    rows = [
        [kind, size / 2**20, measured.get(kind, size) / 2**20]
        for kind, size in paper["bytes"].items()
    ]
    rows.append(
        [
            "all" if peak is None else "all: the allocator's peak",
            paper["total_bytes"] / 2**20,
            total / 2**20,
        ]
    )
    text = (
        f"{args.config}, batch {config.batch_size}, on {len(jax.devices())} device(s), planned by "
        f"{paper['compiler']}"
        + "\n\n"
        + _timing.table(["MiB of a device", "planned", "the running step"], rows)
        + f"\n\nThe plan is {record['planned_by_measured']:.3f} of what the run takes."
    )
    _timing.write("memory" + ("_small" if args.small else ""), record, text, args.out)


if __name__ == "__main__":
    main()
