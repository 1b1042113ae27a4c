"""Training steps on a CPU: ours and PyTorch's, same network and batch, augmentation included.

python benchmarks/cpu_step.py [--case resnet18] [--batch 32] [--dtype bfloat16] [--compiled]
                              [--peak] [--small]

Ours is the trainer's own step (cl_jax/training/steps.py) over random uint8 images in memory.
PyTorch's is benchmarks/_torch.py, in both memory layouts, and with `--compiled` through
`torch.compile` too. The numbers of trained parameters are compared first. Steps are run in turn,
each after an untimed one of its own, as steps of a run follow each other; a ratio is ours by its,
the median over rounds, by processor time and by the wall's clock, which on a machine that others
use says less. Both sides have huge pages where `cl-jax train` has them; GLIBC_TUNABLES=
glibc.malloc.hugetlb=0 leaves both with small ones.

  resnet18       SimCLR, ResNet-18 with the CIFAR stem, 32 pixels
  readme         the step of README's first command (configs/simclr_v2.py) with AdamW, 16 pixels
  folder         SimCLR with the network and views of a config's `folder` variant, 64 pixels
  resnet50_96    SimCLR, ResNet-50 at 96 pixels
  resnet50_224   the same at 224
  vit_s16_224    SimCLR, ViT-S/16 at 224 pixels, patches fixed
  vit_ti_32      SimCLR, ViT-Ti with patches of 4 at 32 pixels
  moco_v2, byol  ResNet-18 with the CIFAR stem, 32 pixels
  dino           ViT-Ti with patches of 4, two crops of 32 pixels and four of 16

`--peak` starts a process for each form instead, which makes three steps, and compares the largest
resident memory of these processes; ours once with nothing compiled and once with its programs in
the cache."""

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import _timing


class Case(NamedTuple):
    """A method, its encoder, the sizes of its views, and how many images are a batch."""

    method: str
    encoder: dict[str, Any]
    sizes: tuple[int, ...]
    batch: int
    photographs: bool = False


CIFAR = dict(name="resnet", depth=18, width=1.0, stem="cifar")
RESNET50 = dict(name="resnet", depth=50, width=1.0, stem="imagenet")
VIT_TI = dict(name="vit", size="tiny", patch=4, variant="moco_v3", freeze_patches=True)
QUEUE = 4096  # keys of MoCo, and at least as many images
CASES = {
    "resnet18": Case("simclr_v1", CIFAR, (32, 32), 32),
    "readme": Case("simclr_v2", CIFAR | dict(depth=10, width=0.25), (16, 16), 64),
    "folder": Case("simclr_v1", RESNET50 | dict(depth=18, width=0.5), (64, 64), 64, True),
    "resnet50_96": Case("simclr_v1", RESNET50, (96, 96), 8, True),
    "resnet50_224": Case("simclr_v1", RESNET50, (224, 224), 2, True),
    "vit_s16_224": Case("simclr_v1", VIT_TI | dict(size="small", patch=16), (224, 224), 4, True),
    "vit_ti_32": Case("simclr_v1", VIT_TI, (32, 32), 32),
    "moco_v2": Case("moco_v2", CIFAR, (32, 32), 32),
    "byol": Case("byol", CIFAR, (32, 32), 32),
    "dino": Case("dino", VIT_TI, (32, 32, 16, 16, 16, 16), 16),
}
PEERS = ("PyTorch", "PyTorch channels_last", "PyTorch compiled")


TINY = {
    "vit": dict(size="tiny", width=48, depth=2, heads=2),
    "resnet": dict(depth=10, width=0.125),
}
METHODS = {
    "simclr_v1": dict(temperature=0.5, out_dim=128),
    "moco_v2": dict(momentum=0.99, queue_size=QUEUE),
    "byol": dict(momentum=0.99, hidden_dim=4096, out_dim=256, monitor=False),
    "dino": dict(
        momentum=0.99,
        num_prototypes=4096,
        hidden_dim=2048,
        bottleneck_dim=256,
        head_norm=False,
        teacher_temperature=0.04,
    ),
}


def config_of(name: str, batch: int, dtype: str, small: bool):
    """The config of a case, and the side of its stored images."""
    from ml_collections import ConfigDict

    from cl_jax.training import stages

    case = CASES[name]
    config = importlib.import_module(f"configs.{case.method}").get_config()
    kind = case.encoder["name"]
    encoder = dict(case.encoder, dtype=dtype, **(TINY[kind] if small else {}))
    if kind == "resnet":
        encoder["variant"] = "torchvision"
    config.encoder = ConfigDict(encoder)
    if name == "readme":  # PyTorch's Muon takes matrices alone: AdamW on both sides
        config.optimizer = ConfigDict(
            dict(name="adamw", learning_rate=1e-3, learning_rate_scaling="none")
        )
    else:
        recipe = "simclr" if case.photographs else "simclr_cifar"
        config.views = ConfigDict(
            {f"v{i}": dict(name=recipe, size=size) for i, size in enumerate(case.sizes)}
        )
        config.optimizer = ConfigDict(
            dict(name="sgd", learning_rate=0.03, learning_rate_scaling="none")
        )
        config.method.update(METHODS[case.method])
    stored = max(case.sizes) * (9 if case.photographs else 8) // 8
    config.data = ConfigDict(
        dict(name="declared", image_size=stored, num_classes=10, train_size=max(8 * batch, QUEUE))
    )
    config.batch_size, config.total_epochs, config.devices = batch, 1e6, 1
    return stages.stages(config, "unused")[0][1], stored


def ours(name: str, batch: int, dtype: str, small: bool) -> tuple[Callable[[], None], int, Any]:
    """(one step that is waited for, the number of its trained parameters, images [N, H, W, 3])."""
    import jax
    from throughput import built_of

    from cl_jax.training import experiment
    from cl_jax.training.steps import stepper

    config, stored = config_of(name, batch, dtype, small)
    built, images = built_of(config, stored)
    state = experiment.initial_state(built, config)
    number = sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
        if "'patches'" not in jax.tree_util.keystr(path)  # held fixed in every case that has them
    )
    steps = stepper(built, config, 0)

    def step() -> None:
        nonlocal state
        state, values = steps(state)
        jax.block_until_ready(values)

    return step, number, images


def theirs(
    peer: str, name: str, images: Any, batch: int, dtype: str, small: bool
) -> tuple[Callable[[], None], int]:
    """(one step of PyTorch, the number of its trained parameters)."""
    import _torch
    import numpy as np
    import torch

    torch.set_num_threads(_timing.cores())
    case = CASES[name]
    encoder = case.encoder | (TINY[case.encoder["name"]] if small else {})
    rows = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    layout = dict(channels_last=peer != "PyTorch")
    strength = 1.0 if case.photographs else 0.5
    if case.method in ("moco_v2", "byol", "dino"):
        return _torch.slow_copy_step_of(
            case.method,
            encoder,
            rows,
            batch=batch,
            sizes=case.sizes,
            strength=strength,
            queue_size=QUEUE,
            **layout,
        )
    readme = name == "readme"
    return _torch.step_of(
        encoder,
        rows,
        batch=batch,
        size=case.sizes[0],
        out_dim=64 if readme else 128,
        temperature=0.1 if readme else 0.5,
        strength=strength,
        blur=case.photographs,
        dtype=dtype,
        compiled=peer == "PyTorch compiled",
        layers=3 if readme else 2,
        adamw=readme,
        **layout,
    )


COMPILES, CACHED = "cl_jax, compiling", "cl_jax, program cached"


def peak(argv: list[str], peers: list[str]) -> dict[str, dict[str, float]]:
    """MiB of the largest resident memory of a process that makes three steps of each form: ours of
    a first start, which compiles, and of a second one."""
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for name in (COMPILES, CACHED, *peers):
            form = "cl_jax" if name in (COMPILES, CACHED) else name
            command = [sys.executable, __file__, *argv, "--alone", form]
            said = subprocess.run(
                command, capture_output=True, text=True, check=True, env=environment
            ).stdout
            found[name] = json.loads(said.splitlines()[-1])
    return found


def alone(form: str, name: str, batch: int, dtype: str, small: bool) -> None:
    """Three steps of one form; prints the resident memory at its largest, in MiB."""
    if form == "cl_jax":
        step = ours(name, batch, dtype, small)[0]
    else:
        import numpy as np

        side = config_side(name)
        images = np.random.default_rng(0).integers(0, 256, (QUEUE, side, side, 3), np.uint8)
        step = theirs(form, name, images, batch, dtype, small)[0]
    built = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for _ in range(3):
        step()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"before the first step": built, "at most": most}))


def config_side(name: str) -> int:
    """The side of a case's stored images."""
    case = CASES[name]
    return max(case.sizes) * (9 if case.photographs else 8) // 8


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", default="resnet18", choices=CASES)
    parser.add_argument("--batch", type=int, default=0, help="0: the case's own")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument(
        "--seconds", type=float, default=240.0, help="of timed steps, after which no round is begun"
    )
    parser.add_argument(
        "--compiled", action="store_true", help="torch.compile beside, which is compiled first"
    )
    parser.add_argument("--peak", action="store_true", help="memory of processes, no times")
    parser.add_argument(
        "--alone", default="", choices=("", "cl_jax", *PEERS), help=argparse.SUPPRESS
    )
    parser.add_argument("--small", action="store_true", help="a tiny network, to try the program")
    parser.add_argument("--out", type=_timing.given_path, default=None)
    args = parser.parse_args(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if argv is None:
        from cl_jax.core import heap

        heap.restart_with_huge_pages()
    _timing.prepare()
    batch = args.batch or CASES[args.case].batch
    given = args.case, batch, args.dtype, args.small
    if args.alone:
        return alone(args.alone, *given)
    peers = list(PEERS if args.compiled else PEERS[:2])
    try:
        import torch  # noqa: F401
    except ImportError:
        print("PyTorch is not installed (pip install -e '.[bench]'): its columns are left out.")
        peers = []
    place = "cpu_step" + ("" if args.case == "resnet18" else f"_{args.case}")
    place += "_small" if args.small else ""
    if args.peak:
        return write_peak(args, batch, peers, place)
    step, number, images = ours(*given)
    runs = {"cl_jax": step}
    for peer in peers:
        runs[peer], other = theirs(peer, args.case, images, *given[1:])
        if other != number:
            raise ValueError(
                f"{peer} has {other:,} parameters, cl_jax {number:,}: not the same network."
            )
    times, processor = _timing.in_turn(
        runs, repeats=args.repeats, limit=args.seconds, warm=2, between=True
    )
    medians = {name: statistics.median(values) for name, values in times.items()}
    work = {name: statistics.median(values) for name, values in processor.items()}
    record = _timing.facts("flax", "optax", "torch", repeats=len(times["cl_jax"])) | {
        "case": args.case,
        "batch": batch,
        "dtype": args.dtype,
        "parameters": number,
        "small": args.small,
        "seconds": times,
        "processor_seconds": processor,
        "medians": medians,
        "processor_medians": work,
        "images_per_second": {name: batch / value for name, value in medians.items()},
        "fastest_peer": min(peers, key=work.__getitem__, default=None),
        "ratios": {name: _timing.ratio(times, "cl_jax", name) for name in peers},
        "processor_ratios": {name: _timing.ratio(processor, "cl_jax", name) for name in peers},
    }
    rows = [
        [
            name,
            _timing.spread(processor[name]),
            record["processor_ratios"].get(name, 1.0),
            _timing.spread(times[name]),
            record["ratios"].get(name, 1.0),
        ]
        for name in runs
    ]
    head = ["", "step, processor time: median (least to most)", "ours / its", "step, wall"]
    text = (
        f"{args.case}: a step with its augmentation, {number:,} parameters, batch {batch}, "
        f"{args.dtype}, {record['repeats']} rounds\n\n" + _timing.table([*head, "ours / its"], rows)
    )
    _timing.write(place, record, text, args.out)


def write_peak(args: argparse.Namespace, batch: int, peers: list[str], place: str) -> None:
    argv = ["--case", args.case, "--batch", str(batch), "--dtype", args.dtype]
    found = peak(argv + ["--small"] * args.small, peers)
    rows = [
        [
            form,
            values["before the first step"],
            values["at most"],
            *(found[ours]["at most"] / values["at most"] for ours in (COMPILES, CACHED)),
        ]
        for form, values in found.items()
    ]
    text = (
        f"{args.case}: resident memory of a process that makes three steps, MiB, batch {batch}, "
        f"{args.dtype}\n\n"
        + _timing.table(
            ["", "before the first step", "at most", "ours, compiling / its", "cached / its"], rows
        )
    )
    record = _timing.facts("flax", "torch") | {"case": args.case, "batch": batch, "mib": found}
    _timing.write(f"{place}_peak", record, text, args.out)


if __name__ == "__main__":
    main()
