"""How far ahead a network predicts: accuracy against the number of steps, figure 3 of CPC (van den
Oord et al. 2018)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cl_jax.core import logs
from cl_jax.core.shapes import check_count
from cl_jax.data.source import subset
from cl_jax.evals import Evaluator, Given, Needs

AMONG = ("own", "all")


def make(*, among: str = "own", rows: int = 512, when: str = "always") -> Evaluator:
    """ "steps_ahead/K": the share of times in test examples from which the latent K steps ahead
    scores highest, and "steps_ahead/mean" over K; of "all" also "steps_ahead/median", the median
    place of that latent over all K, 1 for the first.

    `latents_ahead.png` in the workdir draws them over K, untrained and trained.

    Of n latents that score alike each is as likely to be picked out, and has the mean of their n
    places: a network that maps everything to one point is at chance. A latent ahead whose score is
    NaN is last; that of another latent counts as higher.

    Unlike the accuracies of training the figures do not depend on the batch. For small K latents
    may share samples with what has been heard.

    among: "own": the latents of the same example, for long sequences; chance is one over their
      number. "all": those of all the examples; the median place at chance is half their number.
      rows: examples, evenly spaced, that are looked at for "all". when: see `Evaluator`.

    Raises:
      ValueError: an unknown `among`, fewer than one row.
    """
    if among not in AMONG:
        raise ValueError(f"among={among!r}; expected one of {', '.join(AMONG)}.")
    check_count(rows=rows)

    def measure(given: Given) -> dict[str, float]:
        test = given.data.test
        found = {}
        if among == "own":
            shares = np.asarray(given.rows("steps", test)).mean(0)
        else:
            ids = np.linspace(0, test.size - 1, min(rows, test.size)).astype(int)
            higher, equal = rivals(**given.rows("predictions", subset(test, ids)))
            shares = np.where(higher == 0, 1 / equal, 0).mean(1)
            found["steps_ahead/median"] = float(np.median(higher + (equal + 1) / 2))
        found |= {f"steps_ahead/{k}": float(share) for k, share in enumerate(shares, 1)}
        return found | {"steps_ahead/mean": float(shares.mean())}

    def draw(given: Given) -> None:
        lines = over_steps(given.workdir)
        if lines:
            from cl_jax.evals import pictures  # matplotlib: only where something is drawn

            panel = {"latents ahead picked out, %": lines}
            pictures.curves(given.workdir / "latents_ahead.png", panel, xlabel="steps ahead")

    own = among == "own"
    return Evaluator(
        measure,
        Needs(functions=("steps" if own else "predictions",)),
        when=when,
        better={"steps_ahead/mean": 1} if own else {"steps_ahead/median": -1},
        titles={"steps_ahead/mean": "latents ahead picked out %"}
        if own
        else {"steps_ahead/median": "median place of the latent ahead"},
        draw=draw,
    )


def over_steps(workdir: Path) -> dict[str, list[tuple[float | None, float]]]:
    """{"untrained" and "trained": (K, percent) of K = 1, 2, ...} of a run's log, of its last
    evaluation; what was not measured is left out."""
    rows, _ = logs.rows(workdir / "metrics.jsonl")
    found = {}
    for title, prefix in (("untrained", "untrained/steps_ahead/"), ("trained", "steps_ahead/")):
        measured = [row for row in rows if f"{prefix}1" in row]
        if measured:
            found[title] = _percents(measured[-1], prefix)
    return found


def _percents(row: Mapping[str, float], prefix: str) -> list[tuple[float | None, float]]:
    shares = {
        name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)
    }
    steps = sorted(int(name) for name in shares if name.isdecimal())
    return [(float(step), 100 * shares[str(step)]) for step in steps]


def rivals(p: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two [K, N * (T - K)] of predictions p [N, K, T, D] and the latents z [N, T, D]: how many of
    all latents score higher with a prediction than the latent ahead, and how many as much as that,
    itself included. From the times t < T - K, for z at t + k. NaN scores higher than any number,
    and where the latent ahead has it, all others score higher."""
    count, steps, times, _ = p.shape
    everyone = z.reshape(count * times, -1)
    higher, equal = np.zeros((2, steps, count, times - steps), int)
    for k in range(1, steps + 1):
        for i in range(count):
            # BLAS rounds equal columns differently, and equal scores must be equal.
            scores = np.einsum("td,nd->tn", p[i, k - 1, : times - steps], everyone)
            at = i * times + k + np.arange(times - steps)
            own = scores[np.arange(len(at)), at][:, None]
            higher[k - 1, i] = (~(scores <= own)).sum(1) - np.isnan(own[:, 0])
            equal[k - 1, i] = np.maximum((scores == own).sum(1), 1)
    return higher.reshape(steps, -1), equal.reshape(steps, -1)
