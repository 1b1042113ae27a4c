"""k-means on one core against faiss: assignment, five updates with it, and the spherical form.

taskset -c 0 python benchmarks/kmeans.py [--small]

Both take random unit rows in float32 and as many iterations, without a subsample; faiss has one
thread. After its training faiss is asked for the rows' assignments too, which ours returns. Without
faiss (`pip install faiss-cpu`) its columns say "not run".
"""

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import _timing

ITERATIONS = 5


def ours(x: Any, clusters: int) -> dict[str, Callable[[], Any]]:
    import jax
    import jax.numpy as jnp

    from cl_jax.cluster.kmeans import assign, kmeans
    from cl_jax.cluster.spherical import spherical_kmeans

    rows, first = jnp.asarray(x), jnp.arange(clusters)
    key, centroids = jax.random.key(0), rows[:clusters]
    nearest = jax.jit(assign)
    plain = jax.jit(partial(kmeans, num_clusters=clusters, iterations=ITERATIONS))
    spherical = jax.jit(partial(spherical_kmeans, iterations=ITERATIONS))
    return {
        "assignment": lambda: jax.block_until_ready(nearest(rows, centroids)),
        "k-means": lambda: jax.block_until_ready(plain(key, rows)),
        "spherical": lambda: jax.block_until_ready(spherical(rows, first)),
    }


def theirs(x: Any, clusters: int) -> dict[str, Callable[[], Any]]:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(x[:clusters].copy())

    def train(spherical: bool) -> None:
        found = faiss.Kmeans(
            x.shape[1],
            clusters,
            niter=ITERATIONS,
            spherical=spherical,
            max_points_per_centroid=len(x),
            min_points_per_centroid=1,
        )
        found.train(x)
        found.index.search(x, 1)

    return {
        "assignment": lambda: index.search(x, 1),
        "k-means": lambda: train(False),
        "spherical": lambda: train(True),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="", help="rows x width x clusters, with commas")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=40.0, help="of the rounds of a size")
    parser.add_argument("--small", action="store_true", help="to try the program")
    parser.add_argument("--out", type=_timing.given_path, default=None)
    args = parser.parse_args(argv)
    sizes = args.sizes or ("64x8x4" if args.small else "20000x128x1000,50000x128x2500")
    _timing.prepare()
    import numpy as np

    has_faiss = importlib.util.find_spec("faiss") is not None
    record = _timing.facts("faiss-cpu", repeats=args.repeats) | {"sizes": {}}
    rows = []
    for size in sizes.split(","):
        count, width, clusters = map(int, size.split("x"))
        x = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        runs = {f"{name}, ours": run for name, run in ours(x, clusters).items()}
        if has_faiss:
            runs |= {f"{name}, faiss": run for name, run in theirs(x, clusters).items()}
        times = _timing.in_turn(runs, repeats=args.repeats, limit=args.seconds).wall
        record["sizes"][size] = times
        for name in ("assignment", "k-means", "spherical"):
            mine, peer = f"{name}, ours", f"{name}, faiss"
            rows.append(
                [
                    size,
                    name,
                    1e3 * float(np.median(times[mine])),
                    1e3 * float(np.median(times[peer])) if has_faiss else None,
                    _timing.ratio(times, mine, peer) if has_faiss else None,
                ]
            )
    head = ["rows x width x clusters", "", "ours, ms", "faiss, ms", "ours / faiss"]
    _timing.write(
        "kmeans" + ("_small" if args.small else ""), record, _timing.table(head, rows), args.out
    )


if __name__ == "__main__":
    main()
