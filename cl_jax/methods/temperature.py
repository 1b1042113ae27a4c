"""The losses of the temperature study (Wang and Liu 2021, arXiv 2012.09740), over a method of
in-batch negatives.

The ordinary loss weighs a negative by exp(s / T): a low temperature pushes the hardest away, a high
one all alike. The simple loss weighs all alike; restricted to the hardest ones it learns again,
which shows that hardness is what the temperature is for.
"""

from typing import Any

import jax
import jax.numpy as jnp

from cl_jax import losses
from cl_jax.core.method import Batch, Run
from cl_jax.core.numerics import unit
from cl_jax.core.parts import Pairs, Parts
from cl_jax.core.shapes import check_positive

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
    """One of the study's four losses over a base without a queue; one direction, the other view's
    keys of the batch as candidates.

    loss: "contrastive", "hard_contrastive", "simple" or "hard_simple". temperature: of the first
      two. num_hard: negatives that the hard ones keep for each query, at most the batch less one.
    negative_weight: lambda of the simple ones; 0 for one over the number of negatives.
    scale_by_temperature: multiplies the loss by the temperature, so that a sweep does not change
      the size of the gradient too.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r}; expected one of {', '.join(LOSSES)}.")
    check_positive(temperature=temperature)
    if not 1 <= num_hard < run.batch_size:
        raise ValueError(
            f"num_hard={num_hard}; expected 1 to {run.batch_size - 1}, the negatives of a batch of "
            f"{run.batch_size}."
        )
    hard = loss.startswith("hard")
    negatives = num_hard if hard else run.batch_size - 1
    weight = negative_weight or 1 / negatives
    axis_name = base.axis_name

    def contrast(
        found: tuple[Pairs, ...], params: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        q, k, queue = found[0][:3]
        if queue is not None:
            raise ValueError("this base has a queue; use one of in-batch negatives, as simclr_v1.")
        q, k = unit(q), unit(k)
        if loss.endswith("contrastive"):
            value = losses.hardness.hard_contrastive(
                q,
                k,
                temperature=temperature,
                num_hard=num_hard if hard else None,
                axis_name=axis_name,
            )
            factor = temperature if scale_by_temperature else 1.0
            return factor * value, {"chance": factor * jnp.log(jnp.float32(1 + negatives))}
        if hard:
            value = losses.hardness.hard_simple(
                q, k, num_hard=num_hard, negative_weight=weight, axis_name=axis_name
            )
        else:
            value = losses.hardness.simple(q, k, negative_weight=weight, axis_name=axis_name)
        return value, {}

    return base._replace(contrast=contrast)
