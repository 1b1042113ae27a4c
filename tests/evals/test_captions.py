"""Whether a decoder reads: its nats given the own clip and given another's."""

from types import SimpleNamespace

import numpy as np
import pytest

from cl_jax.data.source import Splits, from_arrays
from cl_jax.evals import captions

TEST = from_arrays("few", {"clip": np.arange(4, dtype=np.uint8)[:, None, None, None, None]}, {})


def _given(score):
    def rows(name, source):
        assert name == "score"
        return score(np.asarray(source.arrays["clip"]).ravel())

    return SimpleNamespace(data=SimpleNamespace(test=TEST), rows=rows)


def test_a_decoder_that_reads_is_told_from_one_that_does_not():
    reads = captions.make().measure(
        _given(lambda clips: np.where(clips == np.arange(4), -0.5, -2.0))
    )
    assert reads == {"captions/nats": 0.5, "captions/stranger": 2.0, "captions/own": 1.0}
    blind = captions.make().measure(_given(lambda clips: np.full(4, -1.0)))
    assert blind == {"captions/nats": 1.0, "captions/stranger": 1.0, "captions/own": 0.0}


def test_members_of_a_population_have_figures_of_their_own():
    found = captions.make(rows=2).measure(
        _given(lambda clips: {"a": -1.0 - clips, "b": np.full(len(clips), -1.0)})
    )
    assert found["captions/nats@a"] == found["captions/stranger@a"] == 2.5
    assert found["captions/nats@b"] == 1.0


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="rows=1; expected 2 or more"):
        captions.make(rows=1)
    one = from_arrays("one", {"clip": np.zeros((1, 1, 1, 1, 1), np.uint8)}, {})
    with pytest.raises(ValueError, match="has 1 examples"):
        captions.make().check(Splits(one, one))
