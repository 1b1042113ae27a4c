"""The losses of the temperature study (Wang and Liu 2021, arXiv 2012.09740), over a contrastive
method.

The ordinary loss weighs a negative by exp(s / T): a low temperature pushes the hardest away, a high
one all alike. The simple loss weighs all alike; restricted to the hardest ones it learns again,
which shows that hardness is what the temperature is for.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax import losses
from cl_jax.core.method import Batch, Run
from cl_jax.core.numerics import unit
from cl_jax.core.parallel import gather
from cl_jax.core.parts import Pairs, Parts
from cl_jax.core.shapes import check_count, check_positive
from cl_jax.losses.contrast import row_ids

LOSSES = ("contrastive", "hard_contrastive", "simple", "hard_simple")


def make(
    *,
    base: Parts,
    run: Run,
    loss: str = "contrastive",
    temperature: float = 0.2,
    num_hard: int = 16,
    negative_weight: float = 0.0,
    scale_by_temperature: bool = False,
) -> Parts:
    """One of the study's four losses over a base, in one direction. Candidates are the other view's
    keys of the batch, and the queue of a base that has one.

    loss: "contrastive", "hard_contrastive", "simple" or "hard_simple". temperature: of the first
      two. num_hard: negatives that the hard ones keep for each query; the batch less one, and the
      length of the queue, are what there is.
    negative_weight: lambda of the simple ones; 0 for one over the number of negatives that they
      push.
    scale_by_temperature: multiplies the loss by the temperature, so that a sweep does not change
      the size of the gradient too.

    Raises:
      ValueError: an unknown loss, a temperature that is not above 0, num_hard below 1.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r}; expected one of {', '.join(LOSSES)}.")
    check_positive(temperature=temperature)
    check_count(num_hard=num_hard)
    hard, axis_name = loss.startswith("hard"), base.axis_name

    def contrast(
        found: tuple[Pairs, ...], params: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        q, k, queue = found[0][:3]
        q, keys, positive = unit(q), unit(k), None
        if queue is not None:
            keys = jnp.concatenate([gather(keys, axis_name), lax.stop_gradient(queue)])
            positive = row_ids(len(q), axis_name)
        there = run.batch_size - 1 + (0 if queue is None else len(queue))
        if hard and num_hard > there:
            raise ValueError(
                f"num_hard={num_hard}; expected 1 to {there}, the negatives there are."
            )
        negatives = num_hard if hard else there
        if loss.endswith("contrastive"):
            value = losses.hardness.hard_contrastive(
                q,
                keys,
                positive,
                temperature=temperature,
                num_hard=num_hard if hard else None,
                axis_name=axis_name,
            )
            factor = temperature if scale_by_temperature else 1.0
            return factor * value, {"chance": factor * jnp.log(jnp.float32(1 + negatives))}
        weight = negative_weight or 1 / negatives
        if hard:
            value = losses.hardness.hard_simple(
                q, keys, positive, num_hard=num_hard, negative_weight=weight, axis_name=axis_name
            )
        else:
            value = losses.hardness.simple(
                q, keys, positive, negative_weight=weight, axis_name=axis_name
            )
        return value, {}

    return base._replace(contrast=contrast)
