"""MoCHi (Kalantidis et al. 2020, arXiv 2010.01028): synthetic hard negatives, mixed of a query's
hardest queue entries and of the query itself, over MoCo."""

from typing import Any

import jax
import jax.numpy as jnp

from cl_jax import losses
from cl_jax.core.keys import batch_key
from cl_jax.core.method import Batch, Run
from cl_jax.core.parts import Pairs, Parts

FURTHER = 12  # numbers after it are of further pairs' keys among a step's whole-batch draws


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

    Of a base with several pairs (MoCo's `symmetric`) the losses are added, as the base adds them.
    """

    def of_pair(pair: Pairs, ids: jax.Array, key: jax.Array) -> jax.Array:
        q, k, queue = pair.q, pair.k, jnp.asarray(pair.negatives)
        hard = min(num_hard, len(queue))
        hardest = losses.hardness.hardest_negatives(q, queue, num_hard=hard)
        drawn = losses.hardness.draw_mixtures(
            key, ids, num_hard=hard, num_pairs=num_pairs, num_query=num_query
        )
        synthetic = jnp.concatenate(
            [
                losses.hardness.mix_negatives(queue, hardest, drawn.pairs, drawn.alpha),
                losses.hardness.mix_with_query(q, queue, hardest, drawn.picks, drawn.beta),
            ],
            axis=1,
        )
        return losses.hardness.mochi(
            q, k, queue, synthetic, temperature=base.temperature, axis_name=base.axis_name
        )

    def contrast(
        found: tuple[Pairs, ...], params: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        if found[0].negatives is None:
            raise ValueError("MoCHi mixes entries of a queue; use a base with one, as moco_v2.")
        keys = [key, *(batch_key(key, FURTHER + i) for i in range(1, len(found)))]
        terms = [of_pair(pair, batch["id"], one) for pair, one in zip(found, keys)]
        candidates = 1 + len(found[0].negatives) + num_pairs + num_query
        chance = len(found) * jnp.log(jnp.float32(candidates))
        return sum(terms[1:], terms[0]), {"chance": chance}

    return base._replace(contrast=contrast)
