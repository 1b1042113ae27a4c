"""How far ahead a network predicts: accuracy against the number of steps, figure 3 of CPC (van den
Oord et al. 2018)."""

import numpy as np

from cl_jax.evals import Evaluator, Given, Needs


def make(*, function: str = "steps", when: str = "always") -> Evaluator:
    """ "steps_ahead/K": the share of times in the test recordings from which the latent K steps
    ahead is picked out among all of its recording, and "steps_ahead/mean" over K.

    Chance is one over the latents of a recording. The figures fall with K; those of the smallest K
    count latents that share samples with what has been heard. Unlike the accuracies of training
    they do not depend on the batch.

    function: of the method, [N, K] shares of each recording. when: see `Evaluator`.
    """

    def measure(given: Given) -> dict[str, float]:
        shares = np.asarray(given.rows(function, given.data.test)).mean(0)
        each = {f"steps_ahead/{k}": float(share) for k, share in enumerate(shares, 1)}
        return each | {"steps_ahead/mean": float(shares.mean())}

    return Evaluator(
        measure,
        Needs(functions=(function,)),
        when=when,
        better={"steps_ahead/mean": 1},
        titles={"steps_ahead/mean": "latents ahead picked out of their recording %"},
    )
