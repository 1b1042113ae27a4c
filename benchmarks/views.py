"""Augmentation on its own: views per second of the recipes, and of PyTorch's tensor operations
beside SimCLR's.

python benchmarks/views.py [--batch 256] [--small]

Each recipe draws and makes one view of every image of a batch of uint8 images that lie on the
device, as a training step does before its network. PyTorch is `_torch.augment`: the same kinds of
operators, batched on the same device, in a fixed order and without antialiasing. Recipes of the
same sizes run in turn. On a CPU the times are the process's processor time, over all its threads.
"""

import argparse
import statistics

import _timing

CASES = {  # stored side, side of the view, recipes
    "cifar": (32, 32, ("simclr_cifar", "simsiam_cifar", "invaspread")),
    "imagenet": (256, 224, ("simclr", "moco_v2", "byol", "cmc_lab", "crop_flip")),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--batch", type=int, default=0, help="default 512 at 32 pixels, 64 at 224")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=60.0, help="of timed runs of a case")
    parser.add_argument(
        "--small", action="store_true", help="eight images, two recipes, to try the program"
    )
    parser.add_argument("--out", type=_timing.given_path, default=None)
    args = parser.parse_args(argv)
    _timing.prepare()
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cl_jax import views

    clock = "processor" if jax.default_backend() == "cpu" else "wall"
    record = _timing.facts("torch") | {"small": args.small, "cases": {}}
    blocks = []
    for case in args.cases.split(","):
        stored, size, recipes = CASES[case]
        batch = args.batch or (512 if case == "cifar" else 64)
        if args.small:
            batch, recipes, stored, size = 8, recipes[:2], 32, 32
        pixels = np.random.default_rng(0).integers(0, 256, (batch, stored, stored, 3), np.uint8)
        images, ids = jnp.asarray(pixels), jnp.arange(batch)
        keys = views.example_keys(jax.random.key(0), ids)
        runs = {}
        for name in recipes:
            recipe = views.make({"name": name, "size": size}).recipe
            made = jax.jit(lambda keys, images, recipe=recipe: views.apply(recipe, keys, images))
            runs[name] = lambda f=made, images=images, keys=keys: jax.block_until_ready(
                f(keys, images)
            )
        peer = torch_views(pixels, size, case)
        if peer is not None:
            runs["PyTorch"] = peer
        times, processor = _timing.in_turn(
            runs, repeats=args.repeats, limit=args.seconds, warm=2, between=case == "cifar"
        )
        times = processor if clock == "processor" else times
        medians = {name: statistics.median(values) for name, values in times.items()}
        found = {
            "stored": stored,
            "size": size,
            "batch": batch,
            "seconds": times,
            "clock": clock,
            "views_per_second": {name: batch / value for name, value in medians.items()},
            "ratio_to_peer": None if peer is None else _timing.ratio(times, recipes[0], "PyTorch"),
        }
        record["cases"][case] = found
        rows = [[name, _timing.spread(times[name]), batch / medians[name]] for name in runs]
        blocks.append(
            f"{stored} to {size} pixels, batch {batch}, {clock} time\n\n"
            + _timing.table(["recipe", "a batch", "views/s"], rows)
            + (
                ""
                if peer is None
                else f"\n\n{recipes[0]} takes {found['ratio_to_peer']:.2f} of the time of "
                f"PyTorch's operators."
            )
        )
    _timing.write("views" + ("_small" if args.small else ""), record, "\n\n".join(blocks), args.out)


def torch_views(pixels, size: int, case: str):
    """One view of each image by PyTorch, waited for; None where it is not installed."""
    try:
        import _torch
        import torch
    except ImportError:
        return None
    import numpy as np

    torch.set_num_threads(_timing.cores())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).to(device)

    def run() -> None:
        with torch.no_grad():
            _torch.augment(
                images, size, strength=0.5 if case == "cifar" else 1.0, blur=case != "cifar"
            )
        if device == "cuda":
            torch.cuda.synchronize()

    return run


if __name__ == "__main__":
    main()
