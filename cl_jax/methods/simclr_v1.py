"""SimCLR (Chen et al. 2020, arXiv 2002.05709): two views of each image through one network, NT-Xent
between them.

Both views go through batch norm together, whose moments are over all devices; negatives are
gathered with gradient."""

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
from cl_jax.views import View, draw, fields


def parts(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    temperature: float = 0.1,
    sum_directions: bool = True,
    out_dim: int = 128,
    num_layers: int = 2,
    block_size: int | None = None,
    micro_batches: int = 1,
) -> Parts:
    """SimCLR v1.

    sum_directions: the released code adds the two directions, twice the paper's mean over 2B
      anchors.
    num_layers: layers of the projection head. micro_batches: see `from_loss`. block_size: see
      `losses.nt_xent`.

    Raises:
      ValueError: another number of views than two.
    """
    if len(views) != 2:
        raise ValueError(f"SimCLR contrasts two views; the config has {len(views)}.")
    network = Network(
        encoder,
        mlp.make(
            variant="simclr",
            out_dim=out_dim,
            num_layers=num_layers,
            dtype=encoder.dtype,
            axis_name=run.axis_name,
        ),
    )
    apply, negatives, scale = (
        applier(network),
        2 * run.batch_size - 2,
        2.0 if sum_directions else 1.0,
    )

    def embed(
        params: Any, stats: Any, target: Any, inputs: Any, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        (z, _), stats = apply(params, stats, jnp.concatenate(inputs), True)
        return jnp.stack(jnp.split(z, len(inputs)), axis=1), stats, None

    def contrast(
        pairs: tuple[Pairs, ...], params: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        value = losses.nt_xent(
            pairs[0].q,
            pairs[0].k,
            temperature=temperature,
            axis_name=run.axis_name,
            block_size=block_size,
        )
        return scale * value, {"chance": jnp.float32(scale * math.log(negatives + 1))}

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
            micro_batches=micro_batches,
            negatives=negatives,
            **fields(views),
        ),
    )


make = method_of(parts)
