"""MoCHi (Kalantidis et al. 2020, arXiv 2010.01028): synthetic hard negatives, mixed of a query's
hardest queue entries and of the query itself, over MoCo."""

from typing import Any

import jax
import jax.numpy as jnp

from cl_jax import losses
from cl_jax.core.method import Batch, Run
from cl_jax.core.parts import Pairs, Parts


def make(
    *,
    base: Parts,
    run: Run,
    num_hard: int = 1024,
    num_pairs: int = 1024,
    num_query: int = 128,
) -> Parts:
    """MoCHi (N, s, s') over a base with a queue.

    num_hard: N, the hardest queue entries of a query. num_pairs: s, mixtures of two of them.
    num_query: s', mixtures of one of them with the query. No gradient flows into any of them.
    """

    def contrast(
        found: tuple[Pairs, ...], params: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        q, k, queue = found[0][:3]
        if queue is None:
            raise ValueError("MoCHi mixes entries of a queue; use a base with one, as moco_v2.")
        hardest = losses.hardness.hardest_negatives(q, queue, num_hard=min(num_hard, len(queue)))
        drawn = losses.hardness.draw_mixtures(
            key,
            batch["id"],
            num_hard=min(num_hard, len(queue)),
            num_pairs=num_pairs,
            num_query=num_query,
        )
        synthetic = jnp.concatenate(
            [
                losses.hardness.mix_negatives(queue, hardest, drawn.pairs, drawn.alpha),
                losses.hardness.mix_with_query(q, queue, hardest, drawn.picks, drawn.beta),
            ],
            axis=1,
        )
        value = losses.hardness.mochi(
            q, k, queue, synthetic, temperature=base.temperature, axis_name=base.axis_name
        )
        candidates = 1 + len(queue) + num_pairs + num_query
        return value, {"chance": jnp.log(jnp.float32(candidates))}

    return base._replace(contrast=contrast)
