"""How far ahead a network predicts: accuracy against the number of steps, figure 3 of CPC (van den
Oord et al. 2018)."""

import numpy as np

from cl_jax.core.shapes import check_count
from cl_jax.data.source import subset
from cl_jax.evals import Evaluator, Given, Needs

AMONG = ("own", "all")


def make(*, among: str = "own", rows: int = 512, when: str = "always") -> Evaluator:
    """ "steps_ahead/K": the share of times in test examples from which the latent K steps ahead
    scores highest, and "steps_ahead/mean" over K.

    Unlike the accuracies of training the figures do not depend on the batch. For small K latents
    may share samples with what has been heard.

    among: "own": the latents of the same example, for long sequences; chance is one over their
      number. "all": those of all the examples. rows: examples, evenly spaced, that are looked at
      for "all". when: see `Evaluator`.
    """
    if among not in AMONG:
        raise ValueError(f"among={among!r}; expected one of {', '.join(AMONG)}.")
    check_count(rows=rows)

    def measure(given: Given) -> dict[str, float]:
        test = given.data.test
        if among == "own":
            shares = np.asarray(given.rows("steps", test)).mean(0)
        else:
            ids = np.linspace(0, test.size - 1, min(rows, test.size)).astype(int)
            shares = picked_out(**given.rows("predictions", subset(test, ids)))
        each = {f"steps_ahead/{k}": float(share) for k, share in enumerate(shares, 1)}
        return each | {"steps_ahead/mean": float(shares.mean())}

    return Evaluator(
        measure,
        Needs(functions=("steps" if among == "own" else "predictions",)),
        when=when,
        better={"steps_ahead/mean": 1},
        titles={"steps_ahead/mean": "latents ahead picked out %"},
    )


def picked_out(p: np.ndarray, z: np.ndarray) -> np.ndarray:
    """[K] shares of predictions p [N, K, T, D] that score highest with their own latent among all
    of z [N, T, D]: from the times t < T - K, for z at t + k. Ties count."""
    count, steps, times, _ = p.shape
    everyone = z.reshape(count * times, -1)
    shares = np.zeros(steps)
    for k in range(1, steps + 1):
        for i in range(count):
            scores = p[i, k - 1, : times - steps] @ everyone.T
            own = i * times + k + np.arange(times - steps)
            shares[k - 1] += (scores[np.arange(len(own)), own] >= scores.max(1)).mean() / count
    return shares
