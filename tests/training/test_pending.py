"""Rates of steps whose metrics are read later than the steps end."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cl_jax.core import parallel
from cl_jax.training import loop, pending
from configs import simclr_v1


@pytest.fixture
def config():
    config = simclr_v1.get_config("debug")
    config.devices = 1
    return loop.stages(config, "unused")[0][1]


def pending_on(clock, config, monkeypatch, rows):
    monkeypatch.setattr(pending.time, "perf_counter", lambda: clock[0])
    built = SimpleNamespace(
        run=SimpleNamespace(steps_per_epoch=10, batch_size=8),
        learning_rate=lambda step: 0.1,
        mesh=parallel.make_mesh(1),
    )
    return pending.Pending(
        config,
        built,
        SimpleNamespace(write=lambda step, row: rows.append((step, row["examples_per_second"]))),
        SimpleNamespace(wait_seconds=0.0, compile_seconds=0.0, flops=0.0),
    )


class Later(np.ndarray):
    """Metrics of a step that the device is through with at a time."""

    def __new__(cls, clock, at):
        values = np.ones(1).view(cls)
        values.clock, values.at = clock, at
        return values

    def is_ready(self):
        return self.clock[0] >= self.at

    def block_until_ready(self):
        self.clock[0] = max(self.clock[0], self.at)
        return self


def test_rates_are_right_where_the_host_runs_one_step_ahead(config, monkeypatch):
    """As on a CPU: a step of one second is dispatched when the one before it ends. The last two
    intervals are read together, when the run ends."""
    clock, rows = [0.0], []
    waiting = pending_on(clock, config, monkeypatch, rows)
    for step in range(14):
        clock[0] = float(step)
        waiting.add(step, {"loss": Later(clock, step + 1.0)})
        if step in (4, 9):
            waiting.log()
    waiting.flush()
    assert clock[0] == 14.0
    assert [step for step, _ in rows] == [5, 10, 14]
    np.testing.assert_allclose([rate for _, rate in rows], 8.0, rtol=0.01)


def test_rates_are_of_when_steps_ended_not_of_when_they_are_read(config, monkeypatch):
    """On a CPU a step is done when it is dispatched; its interval is written one later all the
    same."""
    clock, rows = [0.0], []
    waiting = pending_on(clock, config, monkeypatch, rows)
    for first, seconds in ((0, 2.0), (2, 4.0), (4, 1.0)):
        clock[0] += seconds
        waiting.add(first, {"loss": jax.block_until_ready(jax.numpy.ones(2))})
        waiting.log()
    clock[0] += 100.0
    waiting.flush()
    assert rows == [(2, 8.0), (4, 4.0), (6, 16.0)]


def test_intervals_that_are_read_at_once_share_the_time_between_them(config, monkeypatch):
    """Both end when the second is read, at eight seconds."""
    clock, rows = [0.0], []
    waiting = pending_on(clock, config, monkeypatch, rows)
    waiting.add(0, {"loss": Later(clock, 8.0)})
    waiting.log()
    waiting.add(1, {"loss": Later(clock, 8.0)})
    waiting.flush()
    assert rows == [(1, 2.0), (2, 2.0)]


def test_the_rate_is_one_program_for_all_rows(config, monkeypatch):
    """Traced once: outside a program each of a schedule's operations would be compiled alone."""
    clock, rows, traced = [0.0], [], []
    monkeypatch.setattr(pending.time, "perf_counter", lambda: clock[0])
    built = SimpleNamespace(
        run=SimpleNamespace(steps_per_epoch=10, batch_size=8),
        learning_rate=lambda step: traced.append(step) or jax.numpy.sqrt(step),
        mesh=parallel.make_mesh(1),
    )
    log = SimpleNamespace(write=lambda step, row: rows.append(row["learning_rate"]))
    steps = SimpleNamespace(wait_seconds=0.0, compile_seconds=0.0, flops=0.0)
    waiting = pending.Pending(config, built, log, steps)
    for first in (0, 4, 9):
        clock[0] += 1.0
        waiting.add(first, {"loss": Later(clock, clock[0])})
        waiting.flush()
    assert rows == [0.0, 2.0, 3.0] and len(traced) == 1
