"""What a network has learned of the concepts of sentences, by likelihoods and by what it writes."""

import dataclasses

import numpy as np

from cl_jax.core.shapes import check_count
from cl_jax.core.tokens import END, PAD, START
from cl_jax.data.source import Source, Splits, subset
from cl_jax.evals import Evaluator, Given, Needs


def make(*, rows: int = 512, when: str = "always") -> Evaluator:
    """Four shares of test sentences, and nats a token of a sentence given its concepts,
    "concepts/nats":

    "concepts/answer": asked which of two is true, the sentence is likelier an answer than its
      shuffled form; chance is a half.
    "concepts/given": the sentence is likelier given its own concepts than given those of another;
      chance is a half.
    "concepts/restored": what is written of the shuffled form is the sentence, word for word.
    "concepts/places": tokens of the sentence that are written at their place.
    "shuffled/concepts/places" is that of the shuffled form.

    rows: test examples, evenly spaced, that are looked at. when: see `Evaluator`.

    Raises:
      ValueError: fewer than one row.
    """
    check_count(rows=rows)

    def check(data: Splits) -> None:
        if data.test.arrays is None:
            raise ValueError(f"{data.test.name} is not in memory; expected arrays of sentences.")

    def chosen(given: Given) -> Source:
        test = given.data.test
        return subset(test, np.linspace(0, test.size - 1, min(rows, test.size)).astype(int))

    def baseline(given: Given) -> dict[str, float]:
        source = chosen(given)
        assert source.arrays is not None
        return {
            "shuffled/concepts/places": in_place(source.arrays["shuffled"], source.arrays["tokens"])
        }

    def measure(given: Given) -> dict[str, float]:
        source = chosen(given)
        assert source.arrays is not None
        truth = source.arrays["tokens"]
        answer = given.rows("answer", source)
        others = dataclasses.replace(
            source,
            arrays=dict(source.arrays)
            | {"concepts": np.roll(np.asarray(source.arrays["concepts"]), 1, axis=0)},
        )
        own, other = (np.asarray(given.rows("score", one)) for one in (source, others))
        written = np.asarray(given.rows("reorder", source))
        return {
            "concepts/answer": float((answer["true"] > answer["false"]).mean()),
            "concepts/given": float((own > other).mean()),
            "concepts/nats": float(-own.mean()),
            "concepts/restored": float((written == truth).all(axis=1).mean()),
            "concepts/places": in_place(written, truth),
        }

    return Evaluator(
        measure,
        Needs(functions=("answer", "score", "reorder"), fields=("tokens", "concepts", "shuffled")),
        when=when,
        better={f"concepts/{name}": 1 for name in ("answer", "given", "restored", "places")}
        | {"concepts/nats": -1},
        titles={
            "concepts/answer": "true sentence told from its shuffled form %",
            "concepts/given": "sentence likelier given its own concepts %",
            "concepts/restored": "sentences restored from their shuffled form %",
        },
        baseline=baseline,
        check=check,
    )


def in_place(written: np.ndarray, truth: np.ndarray) -> float:
    """The share of pieces of text of the rows [N, T] of truth that are written at their place."""
    real = (truth != PAD) & (truth != START) & (truth != END)
    return float((written == truth)[real].mean())
