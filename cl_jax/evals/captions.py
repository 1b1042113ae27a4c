"""Whether a decoder reads what it writes from: sentences given their own clips and given others."""

import dataclasses

import numpy as np

from cl_jax.data.source import Source, Splits, subset
from cl_jax.evals import Evaluator, Given, Needs


def make(*, function: str = "score", field: str = "clip", rows: int = 1000) -> Evaluator:
    """ "captions/nats" a token of a test sentence written from its own clip, "captions/stranger"
    from the clip of another, and "captions/own", the share of sentences that are likelier from
    their own; 0.5 at chance level.

    A decoder that writes from what it knows of sentences alone has the same nats in both. Of a
    population each figure is "captions/nats@<member>" and so on.

    function: of the method, (State, batch) -> [B] mean log-likelihood of a token. field: what the
      sentences are written from. rows: test examples, evenly spaced; another's clip is half of
      them away.

    Raises:
      ValueError: fewer than two rows.
    """
    if rows < 2:
        raise ValueError(f"rows={rows}; expected 2 or more: each has another's clip.")

    def check(data: Splits) -> None:
        if data.test.arrays is None or data.test.size < 2:
            raise ValueError(
                f"{data.test.name} has {data.test.size} examples; captions compares two or more "
                "that are in memory."
            )

    def measure(given: Given) -> dict[str, float]:
        test = given.data.test
        source = subset(test, np.linspace(0, test.size - 1, min(rows, test.size)).astype(int))
        own = given.rows(function, source)
        other = given.rows(function, _of_others(source, field))
        if not isinstance(own, dict):
            return _figures("", own, other)
        found: dict[str, float] = {}
        for member in own:
            found |= _figures(f"@{member}", own[member], other[member])
        return found

    return Evaluator(
        measure,
        Needs(functions=(function,), fields=(field,)),
        better={"captions/nats": -1, "captions/own": 1},
        titles={"captions/own": "sentence likelier given its own clip %"},
        check=check,
    )


def _of_others(source: Source, field: str) -> Source:
    """The examples with each other's `field`."""
    assert source.arrays is not None
    clips = np.asarray(source.arrays[field])
    moved = np.roll(clips, max(len(clips) // 2, 1), axis=0)
    return dataclasses.replace(source, arrays=dict(source.arrays) | {field: moved})


def _figures(name: str, own: np.ndarray, other: np.ndarray) -> dict[str, float]:
    return {
        f"captions/nats{name}": float(-np.mean(own)),
        f"captions/stranger{name}": float(-np.mean(other)),
        f"captions/own{name}": float(np.mean(own > other)),
    }
