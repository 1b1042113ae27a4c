"""Memory of LoCo's backward passes, from the compiled programs.

python benchmarks/loco_memory.py [--batch 64] [--size 16]

MiB of temporaries of a value and its gradient on the ResNet of `configs/loco.py`, of two views of a
batch: of each unit trained by itself on the map below it, of all units in one program (what
`methods/loco.py` runs), and of the whole network end to end. Nothing is executed.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cl_jax.encoders import resnet
from cl_jax.losses import nt_xent
from cl_jax.losses.spaces import local_features, local_units
from cl_jax.training import configs


def pooled_loss(h: jax.Array) -> jax.Array:
    return nt_xent(*jnp.split(h.mean((1, 2)), 2), temperature=0.2)


def mib(f: Callable[..., Any], *given: Any) -> float:
    memory = jax.jit(jax.value_and_grad(f)).lower(*given).compile().memory_analysis()
    return float(memory.temp_size_in_bytes / 2**20)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--size", type=int, default=16)
    args = options.parse_args()
    section = configs.load("loco").encoder.to_dict()
    section.pop("name")
    encoder = resnet.make(**section)
    images = jax.ShapeDtypeStruct((2 * args.batch, args.size, args.size, 3), jnp.float32)

    def init(key: jax.Array, x: jax.Array) -> Any:
        return encoder.init_with_output(key, x, train=True)

    maps, variables = jax.eval_shape(init, jax.random.key(0), images)
    params, stats = variables["params"], variables["batch_stats"]
    below = [images, *(maps[f"stage{j + 1}"] for j in range(encoder.num_stages))]

    def stage(params: Any, stats: Any, j: int, x: jax.Array) -> jax.Array:
        found, _ = encoder.apply(
            {"params": params, "batch_stats": stats},
            x,
            train=True,
            span=(j, j),
            mutable=["batch_stats"],
        )
        return found[f"stage{j + 1}"]

    for span in (2, 1, encoder.num_stages):
        units = local_units(encoder.num_stages, span)

        def together(params: Any, stats: Any, x: jax.Array, units: Any = units) -> jax.Array:
            runs = [lambda h, j=j: stage(params, stats, j, h) for j in range(encoder.num_stages)]
            return sum(
                (pooled_loss(h) for h in local_features(runs, x, units=units).units),
                jnp.float32(0),
            )

        if len(units) > 1:
            for first, last in units:

                def alone(
                    params: Any, stats: Any, x: jax.Array, first: int = first, last: int = last
                ) -> jax.Array:
                    for j in range(first, last + 1):
                        x = stage(params, stats, j, x)
                    return pooled_loss(x)

                print(
                    f"span {span}: stages {first + 1} to {last + 1} alone "
                    f"{mib(alone, params, stats, below[first]):.2f} MiB",
                    flush=True,
                )
        print(f"span {span}: all units {mib(together, params, stats, images):.2f} MiB", flush=True)


if __name__ == "__main__":
    main()
