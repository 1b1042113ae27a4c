"""SimCLR's training step on a CPU: ours and PyTorch's, same network and batch, augmentation
included.

python benchmarks/cpu_step.py [--batch 32] [--dtype bfloat16] [--small]

ResNet-18 with the CIFAR stem, a two-layer head, NT-Xent, SGD with momentum, 32x32 uint8 images in
memory. Ours is the trainer's own step (cl_jax/training/steps.py) of configs/simclr_v1.py with that
network. PyTorch's is benchmarks/_torch.py, in both memory layouts. The numbers of parameters are
compared first. Steps are run in turn; a ratio is ours by its, the median over rounds, by processor
time and by the wall's clock, which on a machine that others use says less."""

import argparse
import importlib
import os
import statistics
from pathlib import Path

import _timing


def ours(batch: int, dtype: str, small: bool):
    """(one step that is waited for, what the step costs, the config)."""
    import jax
    from ml_collections import ConfigDict

    from cl_jax.training import experiment, stages

    config = importlib.import_module("configs.simclr_v1").get_config()
    config.data = ConfigDict(
        dict(name="scenes", share=None, train_size=max(8 * batch, 256), test_size=16)
    )
    config.encoder.update(
        dict(depth=10 if small else 18, width=0.125 if small else 1.0, dtype=dtype)
    )
    config.views = ConfigDict(dict(both=dict(name="simclr_cifar", copies=2, size=32)))
    config.optimizer = ConfigDict(
        dict(name="sgd", learning_rate=0.03, learning_rate_scaling="none")
    )
    config.method.update(dict(temperature=0.5, out_dim=128))
    config.batch_size, config.total_epochs, config.devices = batch, 1e6, 1
    config = stages.stages(config, "unused")[0][1]
    built = experiment.build(config)
    from cl_jax.training.steps import stepper

    state = experiment.initial_state(built, config)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    steps = stepper(built, config, 0)

    def step() -> None:
        nonlocal state
        state, values = steps(state)
        jax.block_until_ready(values)

    return step, parameters, config, built.data.train.arrays["image"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument(
        "--seconds", type=float, default=240.0, help="of timed steps, after which no round is begun"
    )
    parser.add_argument("--small", action="store_true", help="a tiny network, to try the program")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"
    _timing.prepare()
    import numpy as np

    step, number, config, images = ours(args.batch, args.dtype, args.small)
    runs, numbers = {"cl_jax": step}, {"cl_jax": number}
    try:
        import _torch
        import torch
    except ImportError:
        print("PyTorch is not installed (pip install -e '.[bench]'): its columns are left out.")
    else:
        torch.set_num_threads(_timing.cores())
        rows = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        for name, channels_last in (("PyTorch", False), ("PyTorch channels_last", True)):
            runs[name], numbers[name] = _torch.step_of(
                dict(config.encoder),
                rows,
                batch=args.batch,
                size=32,
                out_dim=128,
                temperature=0.5,
                strength=0.5,
                blur=False,
                dtype=args.dtype,
                channels_last=channels_last,
            )
            if numbers[name] != number:
                raise ValueError(
                    f"{name} has {numbers[name]:,} parameters, cl_jax {number:,}: not the same "
                    f"network."
                )
    times, processor = _timing.in_turn(runs, repeats=args.repeats, limit=args.seconds, warm=2)
    medians = {name: statistics.median(values) for name, values in times.items()}
    peers = [name for name in runs if name != "cl_jax"]
    work = {name: statistics.median(values) for name, values in processor.items()}
    best = min(peers, key=work.__getitem__, default=None)
    record = _timing.facts("flax", "optax", "torch", repeats=len(times["cl_jax"])) | {
        "batch": args.batch,
        "dtype": args.dtype,
        "parameters": number,
        "small": args.small,
        "seconds": times,
        "processor_seconds": processor,
        "medians": medians,
        "processor_medians": work,
        "views_per_second": {name: 2 * args.batch / value for name, value in medians.items()},
        "fastest_peer": best,
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
    text = (
        f"SimCLR step with augmentation, {number:,} parameters, batch {args.batch} "
        f"({2 * args.batch} views), "
        f"{args.dtype}, {record['repeats']} rounds\n\n"
        + _timing.table(
            [
                "",
                "step, processor time: median (least to most)",
                "ours / its",
                "step, wall",
                "ours / its",
            ],
            rows,
        )
    )
    _timing.write("cpu_step" + ("_small" if args.small else ""), record, text, args.out)


if __name__ == "__main__":
    main()
