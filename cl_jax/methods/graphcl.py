"""GraphCL (You et al. 2020, arXiv 2010.13902).

Each view of a graph changes it by an operator drawn for it: nodes dropped, edges moved, features
masked, a connected part kept. The first view of a graph picks out its second among those of the
batch.
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
from cl_jax.heads.mlp import MLP
from cl_jax.views import View, draw, fields


def parts(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    temperature: float = 0.2,
    out_dim: int | None = None,
    include_positive: bool = False,
    symmetric: bool = False,
    block_size: int | None = None,
    micro_batches: int = 1,
) -> Parts:
    """GraphCL.

    views: two. The authors' unsupervised code has the graph itself as the first, by the operator
      "none" here; their other code and the paper draw both.
    temperature: 0.2 in their unsupervised runs, 0.5 in the semi-supervised ones, 0.1 in transfer.
    out_dim: width of both layers of the head; None: that of the encoder's "h", as theirs.
    include_positive, symmetric, block_size: see `losses.graph.graphcl`.
    micro_batches: see `core.method.from_loss`.

    The two views pass the network one after the other, so that batch norm sees one at a time.

    Raises:
      ValueError: another number of views than two, a batch of one.
    """
    if len(views) != 2:
        raise ValueError(f"GraphCL compares two views of a graph; the config has {len(views)}.")
    if run.batch_size < 2:
        raise ValueError(f"batch_size={run.batch_size}; expected 2 or more: others are negatives.")
    network = Network(
        encoder,
        MLP(
            (out_dim, out_dim),
            hidden_norm=False,
            hidden_bias=True,
            kernel_init="xavier",
            axis_name=run.axis_name,
        ),
    )
    apply = applier(network)

    def embed(
        params: Any, stats: Any, target: Any, inputs: Any, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        found = []
        for one in inputs:
            (z, _), stats = apply(params, stats, one, True)
            found.append(z)
        return jnp.stack(found, axis=1), stats, None

    def contrast(
        pairs: tuple[Pairs, ...], params: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        value = losses.graph.graphcl(
            pairs[0].q,
            pairs[0].k,
            temperature=temperature,
            include_positive=include_positive,
            symmetric=symmetric,
            axis_name=run.axis_name,
            block_size=block_size,
        )
        known = run.batch_size - (0 if include_positive else 1)
        return value, {"chance": jnp.float32(math.log(known))}

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
            negatives=run.batch_size - 1,
            **fields(views),
        ),
    )


make = method_of(parts)
