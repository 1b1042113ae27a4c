"""Generated sentences beside their references."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from cl_jax.data.source import Splits, Text, from_arrays
from cl_jax.evals import generation

SAID = ["A dog runs, home!", "the cats sleep in a bed"]
SOURCE = from_arrays("two", {"tokens": np.zeros((2, 3), np.uint16)}, {})
TEXT = Text(
    lambda rows: [SAID[int(row[0])] for row in rows],
    [["a dog runs home"], ["the cat sleeps", "the cats sleep in a bed"]],
    [["dog", "run", "tree"], ["cat", "sleep"]],
)


def _measure(source, **settings):
    given = SimpleNamespace(
        data=SimpleNamespace(test=source),
        rows=lambda name, of: np.arange(2)[:, None][-of.size :],
    )
    return generation.make(**settings).measure(given)


def test_sentences_are_compared_without_case_and_marks():
    found = _measure(dataclasses.replace(SOURCE, text=TEXT))
    assert found["generation/bleu1"] == found["generation/bleu4"] == pytest.approx(1)
    assert found["generation/rouge_l"] == pytest.approx(1)
    assert found["generation/coverage"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["generation/cider"] > 5
    assert set(generation.make().better) <= set(found)


def test_a_source_without_references_is_named():
    with pytest.raises(ValueError, match="two has no references"):
        generation.make().check(Splits(SOURCE, SOURCE))


def test_sentences_stand_in_the_workdir_beside_a_reference(tmp_path):
    given = SimpleNamespace(
        data=SimpleNamespace(test=dataclasses.replace(SOURCE, text=TEXT)),
        rows=lambda name, of: np.arange(2)[: of.size, None],
        workdir=tmp_path,
    )
    generation.make(shown=1).draw(given)
    assert (tmp_path / "generated.txt").read_text() == (
        "dog, run, tree: A dog runs, home!\n    a dog runs home\n"
    )
