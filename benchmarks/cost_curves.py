"""How time and memory grow: with the batch, classes, the bank, devices and files.

python benchmarks/cost_curves.py [--curves batch,classes] [--small]

  batch     NT-Xent in tiles, value and gradient: time and temporaries against rows
  classes   k-means: time of one update against clusters
  bank      a guarded step on a bank: time and temporaries against its rows
  devices   bytes of a bank and all-reduces of a network's batch norm, against devices; counted in
            the compiled programs of virtual CPU devices, and no time, which they share
  files     listing a folder: time against files
  state     a save: how long training waits for it, the whole of it, and the best checkpoint's,
            against the bytes of the State

Each writes its figures to results/cost_curves.json, and a plot to docs/pictures/cost_<curve>.png,
with a line of what grows as x does.
"""

import argparse
import re
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _timing

SIZES = {  # in full and in small
    "batch": ((256, 512, 1024, 2048, 4096, 8192), (64, 128)),
    "classes": ((64, 128, 256, 512, 1024, 2048, 4096), (8, 16)),
    "bank": ((2**12, 2**14, 2**16, 2**18, 2**20), (256, 512)),
    "devices": ((1, 2, 4, 8), (1, 2)),
    "files": ((1000, 4000, 16000), (10, 20)),
    "state": ((14, 56, 224), (1, 2)),
}
LABELS = {
    "batch": "rows of both views",
    "classes": "clusters",
    "bank": "rows of the bank",
    "devices": "devices",
    "files": "files",
    "state": "MB of the State",
}
Figures = dict[str, float]


def median(run: Callable[[], Any], repeats: int) -> float:
    run()
    return statistics.median(_timing.seconds(run)[0] for _ in range(repeats))


def of_batch(rows: int, repeats: int) -> Figures:
    import jax
    import jax.numpy as jnp

    from cl_jax.losses import nt_xent

    def loss(z: jax.Array) -> jax.Array:
        return nt_xent(*jnp.split(z, 2), temperature=0.5, block_size=min(rows // 2, 512))

    z = jax.random.normal(jax.random.key(0), (rows, 128))
    compiled = jax.jit(jax.value_and_grad(loss)).lower(z).compile()
    return {
        "ms": 1e3 * median(lambda: jax.block_until_ready(compiled(z)), repeats),
        "MiB of temporaries": compiled.memory_analysis().temp_size_in_bytes / 2**20,
    }


def of_classes(clusters: int, repeats: int) -> Figures:
    import jax
    import numpy as np

    from cl_jax.cluster.kmeans import kmeans

    x = np.random.default_rng(0).normal(size=(max(8192, clusters), 128)).astype(np.float32)
    x = jax.numpy.asarray(x)

    def run(iterations: int) -> Any:
        return jax.block_until_ready(kmeans(jax.random.key(0), x, clusters, iterations=iterations))

    one, three = (median(lambda n=n: run(n), repeats) for n in (1, 3))
    return {"ms": 1e3 * max(three - one, 1e-9) / 2}


def of_bank(size: int, repeats: int) -> Figures:
    import jax
    import jax.numpy as jnp

    from cl_jax.core import sharded
    from cl_jax.losses import nce
    from cl_jax.memory import bank

    def step(rows: Any, x: jax.Array, ids: jax.Array) -> Any:
        def loss(x: jax.Array) -> jax.Array:
            indices = nce.draw_indices(jax.random.key(0), ids, size, 255)
            return nce.bank_softmax(x, rows, indices, temperature=0.1)

        value, grad = jax.value_and_grad(loss)(x)
        after = bank.update(rows, x, ids, momentum=0.5)
        go = jnp.isfinite(value) & jnp.isfinite(jnp.sum(grad))
        return sharded.settle(sharded.choose(go, after, rows), None), value

    x = jax.random.normal(jax.random.key(1), (64, 128))
    ids = jnp.arange(64)
    held = [sharded.whole(bank.init(jax.random.key(0), size, 128))]
    compiled = jax.jit(step, donate_argnums=0).lower(held[0], x, ids).compile()

    def run() -> None:
        held[0], value = compiled(held[0], x, ids)
        jax.block_until_ready((held[0], value))

    return {
        "ms": 1e3 * median(run, repeats),
        "MiB of temporaries": compiled.memory_analysis().temp_size_in_bytes / 2**20,
        "MiB of the bank": size * 128 * 4 / 2**20,
    }


def of_devices(devices: int, repeats: int) -> Figures:
    import jax
    import jax.numpy as jnp

    from cl_jax.core import parallel, sharded
    from cl_jax.core.parallel import AXIS, EACH, SAME
    from cl_jax.encoders.resnet import ResNet

    mesh = parallel.make_mesh(devices)
    bank = sharded.whole(jax.ShapeDtypeStruct((1_281_167, 128), jnp.float32))
    network = ResNet(blocks=(1, 1), width=0.125, stem="cifar", axis_name=AXIS)
    images = jax.ShapeDtypeStruct((2 * devices, 16, 16, 3), jnp.float32)
    start = jax.eval_shape(
        lambda key: network.init(key, jnp.zeros((2, 16, 16, 3)), train=True), jax.random.key(0)
    )

    def forward(variables: Any, images: jax.Array) -> Any:
        return network.apply(variables, images, train=True, mutable=["batch_stats"])

    text = parallel.lift(forward, mesh, (SAME, EACH), (EACH, SAME)).lower(start, images)
    return {
        "MiB of ImageNet's bank on each": parallel.bytes_of_a_device(
            parallel.spread(bank, mesh), mesh
        )
        / 2**20,
        "all-reduces of batch norm": len(
            re.findall(r" all-reduce(?:-start)?\(", text.compile().as_text())
        ),
    }


def of_files(files: int, repeats: int) -> Figures:
    from cl_jax.data import listing

    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for number in range(files):
            folder = root / f"class{number % 10}"
            folder.mkdir(exist_ok=True)
            (folder / f"{number}.jpg").write_bytes(b"\xff\xd8\xff")
        return {"ms": 1e3 * median(lambda: listing.of(root), repeats)}


def of_state(megabytes: int, repeats: int) -> Figures:
    import jax.numpy as jnp

    from cl_jax.core.method import State
    from cl_jax.training.checkpoint import Checkpoints

    blocked, whole, best = [], [], []
    with tempfile.TemporaryDirectory() as place:
        store = Checkpoints(place)
        for step in range(repeats + 1):
            state = State(jnp.int32(step), jnp.full((megabytes, 250_000), float(step)), {}, {})
            waited, _ = _timing.seconds(lambda s=state: store.save(s))
            written, _ = _timing.seconds(store.wait)
            blocked.append(waited)
            whole.append(waited + written)
            best.append(_timing.seconds(lambda s=state: store.save_best(s, 1.0))[0])
        store.close()
    # The first save opens the store.
    return {
        "ms that training waits": 1e3 * statistics.median(blocked[1:]),
        "ms of the whole save": 1e3 * statistics.median(whole[1:]),
        "ms of the best one": 1e3 * statistics.median(best[1:]),
    }


CURVES: dict[str, Callable[[int, int], Figures]] = {
    "batch": of_batch,
    "classes": of_classes,
    "bank": of_bank,
    "devices": of_devices,
    "files": of_files,
    "state": of_state,
}


def plot(name: str, xs: Sequence[int], found: Sequence[Figures], machine: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = list(found[0])
    figure, axes = pyplot.subplots(1, len(kinds), figsize=(4.5 * len(kinds), 3.4), squeeze=False)
    for axis, kind in zip(axes[0], kinds):
        values = [max(row[kind], 1e-3) for row in found]
        axis.plot(xs, values, marker="o", color="#0072b2")
        axis.plot(xs, [values[-1] * x / xs[-1] for x in xs], color="0.6", ls=":", label="as x")
        axis.set(xscale="log", yscale="log", xlabel=LABELS[name], ylabel=kind)
        axis.set_xticks(xs, [f"{x:,}" for x in xs], rotation=45, ha="right")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(machine, fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--curves", default=",".join(CURVES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="to try the program")
    parser.add_argument("--pictures", type=_timing.given_path, default=None)
    parser.add_argument("--out", type=_timing.given_path, default=None)
    args = parser.parse_args(argv)
    name = "cost_curves" + ("_small" if args.small else "")
    pictures = args.pictures or (
        _timing.RESULTS if args.small else _timing.ROOT / "docs" / "pictures"
    )
    _timing.prepare()
    from cl_jax.core.parallel import offer_devices

    if "devices" in args.curves.split(","):
        offer_devices(2 if args.small else 8)
    record = _timing.facts("flax", repeats=args.repeats) | {"small": args.small, "curves": {}}
    blocks = []
    for curve in args.curves.split(","):
        if curve not in CURVES:
            parser.error(f"curve {curve!r} is unknown; have {', '.join(CURVES)}.")
        xs = SIZES[curve][args.small]
        found = [CURVES[curve](x, args.repeats) for x in xs]
        record["curves"][curve] = {"x": list(xs), "figures": found}
        rows = [[f"{x:,}", *row.values()] for x, row in zip(xs, found)]
        blocks.append(_timing.table([LABELS[curve], *found[0]], rows))
        plot(curve, xs, found, record["machine"], pictures / f"cost_{curve}.png")
        _timing.write(name, record, "\n\n".join(blocks), args.out)


if __name__ == "__main__":
    main()
