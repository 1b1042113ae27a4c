"""Images per second and utilisation of SimCLR's training step, whole and in parts, on the devices
that are here.

python benchmarks/throughput.py [--cases resnet18,resnet50,vit_b16] [--layers] [--batch 512]
                                [--dtype bfloat16] [--small]
python benchmarks/throughput.py --floor h200

  resnet18       32x32, CIFAR stem, global batch 512 (configs/simclr_v1.py:cifar10)
  resnet50       256x256 stored, 224x224 views, batch 256 a device
                 (configs/simclr_v1.py:imagenet2012)
  vit_b16        the same data and views with MoCo v3's ViT-B/16 as the encoder, batch 256 a device
  vit_b16_flash  that with attention by cuDNN, on GPUs

Data are random uint8 images on the device, as the trainer keeps a set that fits; "step, from the
host" reads the same images through grain instead. The parts are programs of their own: the
augmentation of both views; the network with its head on views that are ready, forward; forward and
backward; the whole step. Parts of a fused program need not sum to the whole. `--layers` times the
encoder cut after each stage, so that differences are the stages. On a GPU the floor of the compiled
step stands beside its time: each kernel's bytes at the data sheet's bandwidth or its products at
the sheet's rate, whichever is longer (cl_jax/planning/kernels.py). `--floor` says that alone, from
the GPU's own compiler, on a machine without one.

FLOPs are products only, counted in the program (cl_jax/planning/costs.py). "mfu" divides by the
data sheet's rate (cl_jax/planning/devices.py), "of matmul" by what a large square matrix product
reaches here in the same minutes. PyTorch runs in turn with the whole step: on CUDA with
channels_last, bfloat16 autocast, torch.compile and its augmentation on the device; on a CPU as it
is.
"""

import argparse
import dataclasses
import importlib
import os
import re
import statistics
from collections.abc import Callable
from typing import Any

import _timing

from cl_jax.planning.devices import CHIPS

CASES = ("resnet18", "resnet50", "vit_b16", "vit_b16_flash")


def config_of(case: str, *, devices: int, batch: int, dtype: str, steps: int, small: bool):
    """The config of a case over declared data, and the side of its stored images."""
    from ml_collections import ConfigDict

    from cl_jax.data.batches import RESIDENT_BYTES
    from cl_jax.training import stages

    config = importlib.import_module("configs.simclr_v1").get_config(
        "cifar10" if case == "resnet18" else "imagenet2012"
    )
    stored = 32 if case == "resnet18" else 256
    config.batch_size = batch or (512 if case == "resnet18" else 256 * devices)
    config.encoder.variant = "torchvision"  # the same network as PyTorch's
    if case.startswith("vit_b16"):
        config.encoder = ConfigDict(
            dict(
                name="vit",
                size="base",
                patch=16,
                variant="moco_v3",
                freeze_patches=True,
                flash=case == "vit_b16_flash",
            )
        )
    if small:
        stored, config.batch_size = 32, batch or 8 * devices
        config.encoder.update(
            dict(size="tiny", width=48, depth=2, heads=2, patch=8)
            if case.startswith("vit_b16")
            else dict(depth=10, width=0.125)
        )
        config.views.both.size = 16 if case == "resnet18" else 32
    config.encoder.dtype = dtype
    config.optimizer = ConfigDict(
        dict(name="sgd", learning_rate=0.03, learning_rate_scaling="none")
    )
    # An epoch is one dispatch, as many steps as asked for and as lie on the device.
    config.dispatch_steps = max(
        1, min(steps, RESIDENT_BYTES // (3 * stored**2 * config.batch_size))
    )
    config.data = ConfigDict(
        dict(
            name="declared",
            image_size=stored,
            num_classes=10,
            train_size=config.dispatch_steps * config.batch_size,
        )
    )
    config.total_epochs = 1e6
    return stages.stages(config, "unused")[0][1], stored


def built_of(config, stored: int):
    """What the config builds, over random images."""
    import numpy as np

    from cl_jax.data.source import Splits, from_arrays
    from cl_jax.training import experiment

    built = experiment.build(config)
    size = built.data.train.size
    images = np.random.default_rng(0).integers(0, 256, (size, stored, stored, 3), np.uint8)
    source = from_arrays(
        "random", {"image": images, "label": np.zeros(size, np.int32)}, {"label": 10}
    )
    return built._replace(data=Splits(source, source)), images


def programmes(
    config, built, state, update
) -> tuple[dict[str, Callable[[], Any]], dict[str, float], list[dict[str, Any]]]:
    """({part: one run that is waited for} but for the step, {part: FLOPs on one device}, a GPU's
    kernels by part)."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cl_jax import views
    from cl_jax.core import parallel
    from cl_jax.core.parallel import EACH, SAME
    from cl_jax.planning import costs, plan
    from cl_jax.planning.devices import known
    from cl_jax.planning.kernels import kernels_of

    recipes, mesh = (
        tuple(
            views.make({k: v for k, v in dict(config.views.both).items() if k != "copies"})
            for _ in range(2)
        ),
        built.mesh,
    )
    batch = parallel.place_batch(
        {
            "image": built.data.train.arrays["image"][: config.batch_size],
            "id": np.arange(config.batch_size, dtype=np.int32),
        },
        mesh,
    )
    key = parallel.replicate(jax.random.key(0), mesh)

    def augmentation(batch, key):
        return jnp.concatenate(views.draw(recipes, batch, key))

    def forward(params, stats, both):
        named, stats = built.method.features(params, stats, both, True)
        return named["z"], stats

    def backward(params, stats, both):
        def mean(params):
            z, after = forward(params, stats, both)
            return jnp.mean(z * z), after

        grads, after = jax.grad(mean, has_aux=True)(params)
        return jax.lax.pmean(grads, parallel.AXIS), after

    augment = parallel.lift(augmentation, mesh, (EACH, SAME), EACH)
    both = augment(batch, key)
    given = (state.params, state.stats, both)
    lifted = {
        "augmentation": (augment, (batch, key)),
        "forward": (parallel.lift(forward, mesh, (SAME, SAME, EACH), (EACH, SAME)), given),
        "forward and backward": (parallel.lift(backward, mesh, (SAME, SAME, EACH), SAME), given),
    }
    whole = parallel.lift(update, mesh, (SAME, EACH, SAME, SAME), SAME)
    traced = whole.trace(state, batch, key, np.int32(0))
    flops = {"step": costs.flops(traced.jaxpr)} | {
        name: costs.flops(function.trace(*arguments).jaxpr)
        for name, (function, arguments) in lifted.items()
    }
    device = known(jax.devices()[0].device_kind)
    kernels = (
        kernels_of(traced.lower().compile().as_text())
        if jax.default_backend() == "gpu" and device
        else []
    )
    return (
        {
            name: lambda f=function, a=arguments: jax.block_until_ready(f(*a))
            for name, (function, arguments) in lifted.items()
        },
        flops,
        plan.layers(kernels, device) if device else [],
    )


def stepping(built, config, state, count: int) -> tuple[Callable[[], None], Any]:
    """(`count` steps of the trainer, waited for once; the stepper)."""
    import jax

    from cl_jax.training.steps import stepper

    steps, held = stepper(built, config, 0), [state]

    def run() -> None:
        until = steps.step + count
        while steps.step < until:
            held[0], values = steps.advance(held[0], until)
        jax.block_until_ready(values)

    return run, steps


def layers(config, built, state, repeats: int) -> list[dict[str, Any]]:
    """The encoder cut after each of its stages, forward and backward on both views: what each stage
    adds."""
    import jax
    import jax.numpy as jnp

    from cl_jax.core import parallel
    from cl_jax.core.parallel import EACH, SAME
    from cl_jax.training import experiment

    section = config.encoder.to_dict()
    module = experiment.module_of("cl_jax.encoders", section.pop("name"), "make")
    encoder = module.make(**section, axis_name=parallel.AXIS)
    images = parallel.place_batch(
        {"x": built.data.train.arrays["image"][: config.batch_size]}, built.mesh
    )["x"]
    both = parallel.lift(
        lambda x: built.method.clean({"image": jnp.concatenate([x, x])}), built.mesh, EACH, EACH
    )(images)
    stats = {"batch_stats": state.stats["encoder"]} if "encoder" in state.stats else {}
    names = (
        ("conv1", "stem", "stage1", "stage2", "stage3", "stage4")
        if config.encoder.name == "resnet"
        else ("h",)
    )
    runs, counted = {}, {}
    for name in names:

        def backward(params, stats, x, name=name):
            def mean(params):
                out, _ = encoder.apply(
                    {"params": params, **stats}, x, train=True, mutable=["batch_stats"]
                )
                return jnp.mean(jnp.square(out[name].astype(jnp.float32)))

            return jax.lax.pmean(jax.grad(mean)(params), parallel.AXIS)

        given = (state.params["encoder"], stats, both)
        cut = (
            parallel.lift(backward, built.mesh, (SAME, SAME, EACH), SAME).lower(*given).compile()
        )  # without later stages
        cost = cut.cost_analysis() or {}
        counted[name] = {kind: float(cost.get(kind, 0)) for kind in ("flops", "bytes accessed")}
        runs[name] = lambda f=cut, given=given: jax.block_until_ready(f(*given))
    times = _timing.in_turn(runs, repeats=repeats, warm=2).wall
    rows, before = [], {"seconds": 0.0, "flops": 0.0, "bytes accessed": 0.0}
    for name in names:
        here = {"seconds": statistics.median(times[name])} | counted[name]
        rows.append(
            {
                "stage": name,
                "all_seconds": times[name],
                "adds": {kind: here[kind] - before[kind] for kind in here},
            }
        )
        before = here
    return rows


def matmul_rate(dtype: str, small: bool) -> float:
    """FLOP/s of one large square product on one device, the best of ten."""
    import jax
    import jax.numpy as jnp

    side = 64 if small else 1024 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (side, side), jnp.float32).astype(dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    return (
        2
        * side**3
        / min(_timing.seconds(lambda: jax.block_until_ready(product(a, a)))[0] for _ in range(10))
    )


def peer(config, images, dtype: str, count: int) -> tuple[str, Callable[[], None]] | None:
    """(its name, `count` steps of PyTorch, waited for), or None where it is not installed or has no
    ViT like ours."""
    try:
        import _torch
        import torch
    except ImportError:
        return None
    import numpy as np

    cuda = torch.cuda.is_available()
    torch.set_num_threads(_timing.cores())
    torch.backends.cudnn.benchmark = True
    rows = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(
        "cuda" if cuda else "cpu"
    )
    recipe = dict(config.views.both)
    step, _ = _torch.step_of(
        dict(config.encoder),
        rows,
        batch=config.batch_size,
        size=recipe.get("size", 224),
        out_dim=128,
        temperature=config.method.temperature,
        blur=recipe["name"] == "simclr",
        strength=1.0 if recipe["name"] == "simclr" else 0.5,
        dtype=dtype,
        channels_last=True,
        compiled=cuda,
    )

    def run() -> None:
        for _ in range(count):
            step()
        if cuda:
            torch.cuda.synchronize()

    return "PyTorch" + (" (channels_last, autocast, compile)" if cuda else " (channels_last)"), run


def measure(case: str, args: argparse.Namespace) -> dict[str, Any]:
    import jax

    from cl_jax.planning.devices import peak_flops
    from cl_jax.training import experiment
    from cl_jax.training.steps import step_of

    devices = len(jax.devices())
    config, stored = config_of(
        case,
        devices=devices,
        batch=args.batch,
        dtype=args.dtype,
        steps=args.steps,
        small=args.small,
    )
    count = config.dispatch_steps
    built, images = built_of(config, stored)
    state = experiment.initial_state(built, config)
    copies = [
        jax.tree.map(lambda x: x.copy(), state) for _ in range(2)
    ]  # a step reuses the buffers that it is given
    host = built._replace(
        data=built.data._replace(train=dataclasses.replace(built.data.train, arrays=None))
    )
    run, _ = stepping(built, config, copies[0], count)
    from_host, waiting = stepping(host, config, copies[1], count)
    parts, flops, floor = programmes(config, built, state, step_of(built.method, config).update)
    runs = parts | {"step": run, "step, from the host": from_host}
    found = peer(config, images, args.dtype, count) if devices == 1 and not args.no_peer else None
    if found:
        runs[found[0]] = found[1]
    times = _timing.in_turn(runs, repeats=args.repeats, limit=args.seconds, warm=2).wall
    wait = waiting.wait_seconds / max(
        waiting.step * statistics.mean(times["step, from the host"]) / count, 1e-9
    )
    times = {
        name: [t / (1 if name in parts else count) for t in values]
        for name, values in times.items()
    }
    rate, peak = (
        matmul_rate(args.dtype, args.small),
        peak_flops(jax.devices()[0].device_kind, args.dtype),
    )
    rows = {}
    for name, values in times.items():
        median, done = (
            statistics.median(values),
            flops.get("step" if name.startswith("step") else name),
        )
        rows[name] = {
            "seconds": median,
            "all_seconds": values,
            "images_per_second": config.batch_size / median,
            "views_per_second": 2 * config.batch_size / median,
            "flops": done,
            "mfu": done / median / peak if done and peak else None,
            "of_matmul": done / median / rate if done else None,
        }
    return {
        "case": case,
        "batch": config.batch_size,
        "steps": count,
        "stored": stored,
        "encoder": config.encoder.to_dict(),
        "rows": rows,
        "matmul_flops": rate,
        "data_wait": wait,
        "memory": _peak_bytes(),
        "floor": floor,
        "ratio_to_peer": None if not found else _timing.ratio(times, "step", found[0]),
        "layers": layers(config, built, state, args.repeats) if args.layers else None,
    }


def _peak_bytes() -> int | None:
    """The most that the allocator of the first device held, where it says."""
    import jax

    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", default="", help=f"of {', '.join(CASES)}; default: all that the device can run"
    )
    parser.add_argument("--batch", type=int, default=0, help="global; 0: the case's own")
    parser.add_argument(
        "--dtype",
        default="",
        choices=("", "float32", "bfloat16"),
        help="default bfloat16; float32 on CPU",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=0,
        help="in one dispatch and one timed run; default 20; 1 on CPU",
    )
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=120.0, help="of timed runs of a case")
    parser.add_argument("--layers", action="store_true", help="the encoder stage by stage")
    parser.add_argument("--no-peer", action="store_true", help="without PyTorch")
    parser.add_argument(
        "--floor",
        default="",
        choices=("", *CHIPS),
        help="the floor on this GPU, which need not be here",
    )
    parser.add_argument("--small", action="store_true", help="tiny networks, to try the program")
    parser.add_argument("--out", type=_timing.given_path, default=None)
    args = parser.parse_args(argv)
    for case in args.cases.split(",") if args.cases else ():
        if case not in CASES:
            parser.error(f"case {case!r} is unknown; have {', '.join(CASES)}.")
    if args.floor:
        floors(args)
        return
    os.environ.setdefault(
        "XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6"
    )  # the rest is PyTorch's, in the same process
    _timing.prepare()
    import jax

    cpu = jax.default_backend() == "cpu"
    args.dtype = args.dtype or ("float32" if cpu else "bfloat16")
    args.steps = args.steps or (1 if cpu else 20)
    record = _timing.facts("flax", "optax", "torch") | {
        "dtype": args.dtype,
        "small": args.small,
        "cases": [],
    }
    blocks = []
    for case in (
        args.cases.split(",")
        if args.cases
        else CASES
        if jax.default_backend() == "gpu"
        else CASES[:-1]
    ):
        found = measure(case, args)
        record["cases"].append(found)
        blocks.append(block(found, args.dtype))
        # After each case: a call that is cut keeps those before.
        name = "throughput" + ("_small" if args.small else "")
        _timing.write(name, record, "\n\n".join(blocks), args.out)


def floors(args: argparse.Namespace) -> None:
    """The floors of the cases' steps on one GPU that need not be here, by its own compiler."""
    from cl_jax.core import xla
    from cl_jax.planning import plan
    from cl_jax.planning.devices import DEVICES

    xla.prepare("gpu")
    import jax

    jax.config.update("jax_platforms", "cpu")
    mesh, device, dtype = (
        plan.gpu_mesh(args.floor, 1),
        DEVICES[args.floor],
        args.dtype or "bfloat16",
    )
    if mesh is None:
        raise SystemExit("--floor asks the GPU's own compiler: pip install -e '.[cuda]'.")
    found, rows, parts = {}, [], []
    for case in args.cases.split(",") if args.cases else CASES:
        config, _ = config_of(
            case, devices=1, batch=args.batch, dtype=dtype, steps=args.steps or 20, small=args.small
        )
        planned = found[case] = plan.plan(config, device, mesh=mesh, search=False)
        seconds = planned["floor_seconds"]["kernel by kernel"]
        layers = planned["layers"]
        rows.append(
            [
                case,
                config.batch_size,
                sum(row["kernels"] for row in layers),
                planned["accessed_bytes"] / 1e9,
                planned["flops"] / 1e12,
                planned["bytes"]["temporaries"] / 2**30,
                1e3 * seconds,
                f"{sum(row['seconds'] * row['by_products'] for row in layers) / seconds:.0%}",
                config.batch_size / seconds,
                2 * config.batch_size / seconds,
            ]
        )
        stages: dict[str, list[float]] = {}
        for row in layers:
            # All blocks of a stage, the layers of the stem and a transformer's blocks are one part
            # each.
            stage = re.sub(
                r"^Network/(?:encoder/(?:(stage\d+|stem)_.*|(block)\d+)|(?=.))",
                r"\1\2",
                row["part"],
            )
            sums = stages.setdefault(stage, [0, 0.0, 0.0, 0.0])
            sums[:] = (
                sums[0] + row["kernels"],
                sums[1] + row["bytes"] / 1e9,
                sums[2] + row["flops"] / 1e12,
                sums[3] + 1e3 * row["seconds"],
            )
        parts.append(
            f"{case}:\n\n"
            + _timing.table(
                ["part", "kernels", "GB", "TFLOP", "floor, ms"],
                [[name, *sums] for name, sums in stages.items()],
            )
        )
    record = _timing.facts("flax", "optax", machine=f"{device.name}, compiled for and not run") | {
        "dtype": dtype,
        "cases": found,
    }
    head = _timing.table(
        [
            "case",
            "batch",
            "kernels",
            "GB moved",
            "TFLOP",
            "temporaries, GiB",
            "floor, ms",
            "of it by products",
            "images/s at most",
            "views/s at most",
        ],
        rows,
    )
    _timing.write(
        "throughput_floor" + ("_small" if args.small else ""),
        record,
        "\n\n".join([head, *parts]),
        args.out,
    )


def block(found: dict[str, Any], dtype: str) -> str:
    """One case in words."""

    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    rows = [
        [
            name,
            1e3 * row["seconds"],
            row["images_per_second"],
            row["views_per_second"],
            share(row["mfu"]),
            share(row["of_matmul"]),
        ]
        for name, row in found["rows"].items()
    ]
    lines = [
        f"{found['case']}, batch {found['batch']}, {dtype}; a matrix product reaches "
        f"{found['matmul_flops'] / 1e12:.3g} TFLOP/s",
        "",
        _timing.table(["", "ms", "images/s", "views/s", "mfu", "of matmul"], rows),
        "",
        f"waiting for the host's data: {found['data_wait']:.1%} of those steps",
    ]
    if found["ratio_to_peer"]:
        lines.append(f"our step takes {found['ratio_to_peer']:.3g} of PyTorch's time")
    if found["memory"]:
        lines.append(f"peak memory of the first device {found['memory'] / 2**30:.2f} GiB")
    if found["floor"]:
        least = sum(row["seconds"] for row in found["floor"])
        lines.append(
            f"kernel by kernel at least {1e3 * least:.2f} ms: the step takes "
            f"{found['rows']['step']['seconds'] / least:.2f} of it"
        )
    if found["layers"]:
        lines += [
            "",
            _timing.table(
                ["stage", "ms", "GFLOP", "GB moved", "TFLOP/s", "GB/s"],
                [layer(row["stage"], row["adds"]) for row in found["layers"]],
            ),
        ]
    return "\n".join(lines)


def layer(name: str, adds: dict[str, float]) -> list[Any]:
    """A stage's row: where it is near the device's bandwidth, that is the reason for its time."""
    time, flops, moved = max(adds["seconds"], 1e-9), adds["flops"], adds["bytes accessed"]
    return [
        name,
        1e3 * adds["seconds"],
        flops / 1e9,
        moved / 1e9,
        flops / time / 1e12,
        moved / time / 1e9,
    ]


if __name__ == "__main__":
    main()
