"""How far a command has come, where the output is not a terminal."""

import pytest

from cl_jax.training import progress
from cl_jax.training.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_ten_seconds_with_rate_and_time_left(clock, capfd):
    with Progress("embedding", 1000, done=100) as bar:
        clock[0] += 5
        bar.advance(50)
        assert capfd.readouterr().err == ""
        clock[0] += 5
        bar.advance(50)
    assert capfd.readouterr().err == "embedding 200 of 1,000, 10/s, 1:20 left\n"
    assert bar.rate == 10  # what was done before the start does not count


def test_an_error_inside_passes(clock):
    with pytest.raises(KeyError), Progress("embedding", 10):
        raise KeyError("x")
