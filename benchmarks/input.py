"""The input: a folder of JPEGs decoded as it is read, the same folder in memory, and on the device.

python benchmarks/input.py [--images 4096] [--side 64] [--path your/folder] [--small]

Three measurements of the same images: reading alone (grain's threads, or worker processes, with
nothing to train); training steps that wait for the host; training steps of a set that lies on the
device. `data_wait` is the share of the step's time that the loop stood waiting for a batch, as the
trainer logs it. Without --path a folder of photograph-like JPEGs is made: smooth noise of 1/f, of
--jpeg pixels a side.
"""

import argparse
import dataclasses
import importlib
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import _timing


def make_folder(path: Path, count: int, side: int) -> None:
    """`count` JPEGs of smooth noise, in two classes."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    scale = 1 / np.maximum(
        np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij")), 1 / side
    )
    for number in range(count):
        noise = rng.standard_normal((3, *scale.shape)) + 1j * rng.standard_normal((3, *scale.shape))
        planes = np.fft.irfft2(noise * scale, s=(side, side), axes=(1, 2))
        planes = 128 + 50 * planes / planes.std(axis=(1, 2), keepdims=True)
        folder = path / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = planes.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        Image.fromarray(pixels).save(folder / f"{number:06d}.jpg", quality=90)


def reading(source, batch: int, workers: int, processes: int, seconds: float) -> float:
    """Images per second of the host path with nobody to train."""
    from cl_jax.data import batches

    found = batches.host_batches(
        source,
        batch_size=batch,
        seed=0,
        start_step=0,
        steps=10**6,
        workers=workers,
        worker_processes=processes,
    )
    for _ in itertools.islice(found, 2):  # started, and its first reads done
        pass
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(found)
        count += batch
    return count / (time.perf_counter() - began)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", default="", help="a folder of images; without it one is made")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--jpeg", type=int, default=256, help="side of the JPEGs that are made")
    parser.add_argument("--side", type=int, default=64, help="side that images are stored at")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=float, default=0.25, help="of the ResNet-18 that trains")
    parser.add_argument("--workers", default="1,4", help="threads that read, several with commas")
    parser.add_argument(
        "--processes", default="", help="worker processes to try besides, with commas"
    )
    parser.add_argument("--steps", type=int, default=4, help="in one timed run")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement of reading")
    parser.add_argument(
        "--small", action="store_true", help="64 images and a tiny network, to try the program"
    )
    parser.add_argument("--out", type=_timing.given_path, default=None)
    args = parser.parse_args(argv)
    if args.small:
        args.images, args.jpeg, args.side, args.batch, args.width, args.seconds, args.repeats = (
            64,
            64,
            16,
            8,
            0.125,
            0.5,
            3,
        )
    _timing.prepare()
    with tempfile.TemporaryDirectory() as place:
        path = args.path
        if not path:
            path = str(Path(place) / "images")
            make_folder(Path(path), args.images, args.jpeg)
        measure(args, path)


def measure(args: argparse.Namespace, path: str) -> None:
    import jax
    from ml_collections import ConfigDict

    from cl_jax.data import folder
    from cl_jax.training import experiment, stages
    from cl_jax.training.steps import stepper

    decoding = folder.make(path=path, image_size=args.side, test_share=0.02, cache_bytes=0).train
    began = time.perf_counter()
    config = importlib.import_module("configs.simclr_v1").get_config()
    config.data = ConfigDict(dict(name="folder", path=path, image_size=args.side, test_share=0.02))
    config.encoder.update(dict(depth=10 if args.small else 18, width=args.width))
    config.views = ConfigDict(dict(both=dict(name="simclr_cifar", copies=2, size=args.side // 2)))
    config.optimizer = ConfigDict(
        dict(name="sgd", learning_rate=0.03, learning_rate_scaling="none")
    )
    config.batch_size, config.total_epochs = args.batch, 1e6
    config = stages.stages(config, "unused")[0][1]
    built = experiment.build(config)
    decoded_in = time.perf_counter() - began
    sources = {
        "decoded as read": decoding,
        "in memory": dataclasses.replace(built.data.train, arrays=None),
        "on the device": built.data.train,
    }
    read = {
        f"{name}, {workers} threads": reading(source, args.batch, workers, 0, args.seconds)
        for name, source in list(sources.items())[:2]
        for workers in map(int, args.workers.split(","))
    }
    read |= {
        f"decoded as read, {count} processes": reading(decoding, args.batch, 2, count, args.seconds)
        for count in map(int, filter(None, args.processes.split(",")))
    }
    runs, steppers = {}, {}
    start = experiment.initial_state(built, config)
    for name, source in sources.items():
        steps = stepper(built._replace(data=built.data._replace(train=source)), config, 0)
        held = [jax.tree.map(lambda x: x.copy(), start)]

        def run(steps=steps, held=held) -> None:
            until = steps.step + args.steps
            while steps.step < until:
                held[0], values = steps.advance(held[0], until)
            jax.block_until_ready(values)

        runs[name], steppers[name] = run, steps
    for run in runs.values():
        run()
    before = {name: steps.wait_seconds for name, steps in steppers.items()}
    times = _timing.in_turn(runs, repeats=args.repeats, warm=0).wall
    waits = {
        name: (steps.wait_seconds - before[name]) / sum(times[name])
        for name, steps in steppers.items()
    }
    rates = {
        name: args.steps * args.batch / statistics.median(values) for name, values in times.items()
    }
    record = _timing.facts("grain", "pillow", repeats=args.repeats) | {
        "images": built.run.size,
        "side": args.side,
        "batch": args.batch,
        "reading": read,
        "decoding_at_start": decoded_in,
        "seconds": times,
        "images_per_second": rates,
        "data_wait": waits,
        "small": args.small,
        "ratio": _timing.ratio(times, "decoded as read", "on the device"),
    }
    text = (
        f"{built.run.size} JPEGs, stored at {args.side} pixels, batch {args.batch}; decoding all "
        f"once: "
        f"{decoded_in:.1f} s\n\n"
        + _timing.table(["reading alone", "images/s"], [list(row) for row in read.items()])
        + "\n\n"
        + _timing.table(
            ["training", "images/s", "waiting for data"],
            [[name, rates[name], f"{waits[name]:.1%}"] for name in runs],
        )
        + f"\n\nA step over the folder takes {record['ratio']:.3g} of the time of one over images "
        f"on the device."
    )
    _timing.write("input" + ("_small" if args.small else ""), record, text, args.out)


if __name__ == "__main__":
    main()
