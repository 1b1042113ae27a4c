"""What one unit of LoCo needs while it is trained by itself, beside the network end to end.

    python -m benchmarks.local_units [--batch=64] [--size=32] [--width=0.25]

For every unit, the program of the gradient of its own loss, given the map below it: bytes of
temporaries, by XLA's own analysis of what it compiled. A trainer that runs unit after unit needs
the largest of these and not their sum. Nothing is executed.
"""

import argparse

import jax
import jax.numpy as jnp

from cl_jax.encoders.resnet import ResNet
from cl_jax.losses import nt_xent
from cl_jax.losses.spaces import local_units


def temporaries(network: ResNet, variables: dict, first: int, last: int, x: jax.Array) -> int:
    """Bytes of temporaries of the gradient of NT-Xent at the top of stages first..last."""

    def loss(params: dict, x: jax.Array) -> jax.Array:
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        named, _ = network.apply(given, x, train=True, span=(first, last), mutable=["batch_stats"])
        return nt_xent(*jnp.split(named["h"], 2), temperature=0.2)

    compiled = jax.jit(jax.grad(loss)).lower(variables["params"], x).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--size", type=int, default=32)
    options.add_argument("--width", type=float, default=0.25)
    options.add_argument("--depth", type=int, default=10)
    options.add_argument("--stem", default="cifar")
    args = options.parse_args()
    network = ResNet(depth=args.depth, width=args.width, stem=args.stem)
    images = jax.ShapeDtypeStruct((2 * args.batch, args.size, args.size, 3), jnp.float32)
    maps, variables = jax.eval_shape(
        lambda x: network.init_with_output(jax.random.key(0), x, train=True), images
    )
    below = [images, *(maps[f"stage{j}"] for j in range(1, network.num_stages))]
    print("| span | stages | temporaries, MiB |\n|---|---|---|")
    for span in (1, 2, network.num_stages):
        for first, last in local_units(network.num_stages, span):
            found = temporaries(network, variables, first, last, below[first])
            print(
                f"| {span} | stages {first + 1} to {last + 1} | {found / 2**20:.1f} |", flush=True
            )


if __name__ == "__main__":
    main()
