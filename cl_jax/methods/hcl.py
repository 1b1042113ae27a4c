"""HCL (Robinson et al. 2021, arXiv 2010.04592): negatives weighted by their similarity to the
anchor and debiased of those of its own class, over a method of in-batch negatives.

beta = 0 is the debiased loss (Chuang et al. 2020); the estimator "easy" is the plain one.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from cl_jax import losses
from cl_jax.core.method import Batch, Run
from cl_jax.core.numerics import unit
from cl_jax.core.parts import Pairs, Parts


def make(
    *,
    base: Parts,
    run: Run,
    beta: float = 1.0,
    tau_plus: float = 0.1,
    estimator: Literal["hard", "debiased", "easy"] = "hard",
    temperature: float = 0.5,
) -> Parts:
    """HCL over a base without a queue (SimCLR, InvaSpread, GraphCL).

    beta: concentration of the negatives. tau_plus: prior probability of a class. temperature: of
    the loss, in place of the base's. estimator: "hard" or "easy"; see `losses.hcl`.
    """

    def contrast(
        found: tuple[Pairs, ...], params: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        q, k, negatives = found[0][:3]
        if negatives is not None:
            raise ValueError(
                "HCL weighs the other examples of the batch, and this base has a queue; use a base "
                "of in-batch negatives such as simclr_v1."
            )
        value = losses.hcl(
            unit(q),
            unit(k),
            temperature=temperature,
            beta=beta,
            tau_plus=tau_plus,
            estimator=estimator,
            axis_name=base.axis_name,
        )
        return value, {"chance": jnp.log(jnp.float32(2 * run.batch_size - 1))}

    return base._replace(contrast=contrast)
