"""Memory of LoCo's backward passes, of the compiled programs; nothing is executed.

python benchmarks/loco_memory.py [--batch 64] [--size 16] [--small]

MiB of temporaries of a value and its gradient on the ResNet of `configs/loco.py`, two views of a
batch, without heads: of each unit trained by itself on the map below it, and of all units in one
program, which is what `methods/loco.py` runs. One unit of all stages is end-to-end training.
"""

import argparse
from typing import Any

import _timing


def figures(batch: int, size: int, width: float) -> list[tuple[int, list[float], float]]:
    """(stages in a unit, MiB of each unit alone, MiB of all in one program)."""
    import jax
    import jax.numpy as jnp

    from cl_jax.encoders import resnet
    from cl_jax.losses import nt_xent
    from cl_jax.losses.spaces import local_features, local_units

    encoder = resnet.make(
        depth=10, width=width, stem="cifar", variant="torchvision", dtype="float32"
    )
    images = jax.ShapeDtypeStruct((2 * batch, size, size, 3), jnp.float32)
    maps, variables = jax.eval_shape(
        lambda key, x: encoder.init_with_output(key, x, train=True), jax.random.key(0), images
    )
    below = [images, *(maps[f"stage{j + 1}"] for j in range(encoder.num_stages))]

    def stage(variables: Any, j: int, x: jax.Array) -> jax.Array:
        found, _ = encoder.apply(variables, x, train=True, span=(j, j), mutable=["batch_stats"])
        return jnp.asarray(found[f"stage{j + 1}"])

    def mib(units: list[tuple[int, int]], x: Any, first: int, last: int) -> float:
        def loss(params: Any, stats: Any, x: jax.Array) -> jax.Array:
            held = {"params": params, "batch_stats": stats}
            runs = [lambda h, j=j: stage(held, j, h) for j in range(first, last + 1)]
            found = local_features(runs, x, units=units).units
            each = [nt_xent(*jnp.split(h.mean((1, 2)), 2), temperature=0.2) for h in found]
            return sum(each[1:], each[0])

        program = jax.jit(jax.value_and_grad(loss)).lower(
            variables["params"], variables["batch_stats"], x
        )
        return float(program.compile().memory_analysis().temp_size_in_bytes / 2**20)

    rows = []
    for span in (encoder.num_stages, 2, 1):
        units = local_units(encoder.num_stages, span)
        alone = [mib([(0, last - first)], below[first], first, last) for first, last in units]
        together = mib(units, images, 0, encoder.num_stages - 1) if len(units) > 1 else alone[0]
        rows.append((span, alone, together))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--small", action="store_true", help="to try the program")
    parser.add_argument("--out", type=_timing.given_path, default=None)
    args = parser.parse_args()
    _timing.prepare()
    batch, size, width = (4, 8, 0.0625) if args.small else (args.batch, args.size, 0.25)
    rows = figures(batch, size, width)
    record = _timing.facts("flax") | {"small": args.small, "batch": batch, "size": size}
    record["rows"] = [dict(zip(("span", "alone", "together"), row)) for row in rows]
    table = _timing.table(
        ["stages in a unit", "each unit alone, from the bottom, MiB", "all units, MiB"],
        [
            [str(span), ", ".join(f"{x:.1f}" for x in alone), f"{together:.1f}"]
            for span, alone, together in rows
        ],
    )
    _timing.write("loco_memory" + ("_small" if args.small else ""), record, table, args.out)


if __name__ == "__main__":
    main()
