"""InvaSpread (Ye et al. 2019, arXiv 1904.03436): two views of an instance agree, and every other of
the batch is pushed off.

Features of this batch alone, without bank or momentum network; the output of a linear layer is
trained and evaluated. Both views go through batch norm together.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax import losses
from cl_jax.core.method import Batch, Run
from cl_jax.core.network import Network, applier, features_of, initial
from cl_jax.core.parts import Pairs, Parts, method_of
from cl_jax.heads import mlp
from cl_jax.losses import unit
from cl_jax.views import View, draw, fields


def parts(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    temperature: float = 0.1,
    negative_weight: float = 1.0,
    head: str = "linear",
    out_dim: int = 128,
    block_size: int | None = None,
) -> Parts:
    """InvaSpread.

    negative_weight: m of the paper's equation 6; see `losses.inva_spread`, whose gradient flows
      through one side of each similarity, as in the authors' code. block_size: see there.
    head: "linear", the authors'; else a variant of `heads.mlp.make`.

    Raises:
      ValueError: another number of views than two.
    """
    if len(views) != 2:
        raise ValueError(f"InvaSpread contrasts two views; the config has {len(views)}.")
    network = Network(
        encoder,
        mlp.make(variant=head, out_dim=out_dim, dtype=encoder.dtype, axis_name=run.axis_name),
    )
    apply = applier(network)
    others = 2 * run.batch_size - 1
    # Of equal similarities: each of the 2B - 1 others has the probability 1 / (2B - 1).
    chance = math.log(others) - (others - 1) * math.log1p(-1 / others) if others > 1 else 0.0

    def embed(
        params: Any, stats: Any, target: Any, inputs: Any, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        (z, _), stats = apply(params, stats, jnp.concatenate(inputs), True)
        return jnp.stack(jnp.split(unit(z), len(inputs)), axis=1), stats, None

    def contrast(
        pairs: tuple[Pairs, ...], params: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        value = losses.inva_spread(
            pairs[0].q,
            pairs[0].k,
            temperature=temperature,
            negative_weight=negative_weight,
            axis_name=run.axis_name,
            block_size=block_size,
        )
        return value, {"chance": jnp.float32(chance)} if negative_weight == 1 else {}

    return Parts(
        variables=initial(network, views[0].clean),
        views=lambda batch, key: draw(views, batch, key),
        embed=embed,
        pairs=lambda z, memory: (Pairs(z[:, 0], z[:, 1]),),
        remember=lambda z, memory, batch: memory,
        contrast=contrast,
        temperature=temperature,
        rest=dict(
            tx=tx,
            features=features_of(apply),
            clean=views[0].clean,
            axis_name=run.axis_name,
            negatives=others - 1,
            **fields(views),
        ),
    )


make = method_of(parts)
