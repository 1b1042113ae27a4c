"""What every method owes the trainer, run over every config in its `debug` variant."""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

from cl_jax import checkpoint, parallel, train
from cl_jax.method import Stage

CONFIGS = sorted(path.stem for path in (Path(__file__).parents[1] / "configs").glob("*.py")
                 if path.stem not in ("__init__", "common"))
STEPS = 3
BOUND = 2e-5  # float32 summation order, after three steps; the largest seen is in docs/architecture.md


def build(config, devices, previous=None):
    config = config.copy_and_resolve_references()
    config.devices = devices
    return config, train.build(config, previous)


def trained(config, devices, steps=STEPS, previous=None):
    """The State after some steps, and the metrics of each."""
    config, built = build(config, devices, previous)
    state = train.initial_state(built, config)
    step, rows = train.stepper(built, config, 0), []
    for _ in range(min(steps, built.run.total_steps)):
        state, values = step(state)
        rows.append(parallel.fetch(values))
    return built, state, rows


def stages_of(name):
    config = importlib.import_module(f"configs.{name}").get_config("debug")
    config.stage = "all" if config.get("stage_order", ()) else ""
    return [(stage, settings) for stage, settings, _ in train.stages(config, "unused")]


@pytest.mark.parametrize("name", CONFIGS)
def test_contract(name, tmp_path):
    previous = None
    for stage, config in stages_of(name):
        where = f"{name} {stage}"
        built, state, rows = trained(config, 1, previous=previous)
        assert all(np.isfinite(value).all() for row in rows for value in row.values()), where
        assert "h" in _encode(built, state), where

        for devices in (2, 4):
            _, other, other_rows = trained(config, devices, previous=previous)
            for step, (a, b) in enumerate(zip(rows, other_rows)):
                assert abs(a["loss"] - b["loss"]) <= BOUND * max(1, abs(a["loss"])), f"{where}, {devices} devices, {step}"
            _same_state(state, other, f"{where} on {devices} devices")

        _resumes_exactly(config, previous, state, tmp_path / stage)
        _compiles_once(config, previous, where)
        previous = Stage(built.method, state)


def _same_state(a, b, where):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(parallel.fetch(a)), jax.tree.leaves(parallel.fetch(b))):
        # Adam divides noise by noise where a gradient is zero but for rounding, so parameters are held by their mean too.
        difference = np.abs(np.float64(x) - np.float64(y))
        scale = max(1.0, np.abs(np.float64(x)).max(initial=0))
        assert difference.mean() <= BOUND * scale if difference.size else True, f"{where}: {jax.tree_util.keystr(path)}"


def _resumes_exactly(config, previous, expected, path):
    config, built = build(config, 1, previous)
    state = train.initial_state(built, config)
    step = train.stepper(built, config, 0)
    state, _ = step(state)
    store = checkpoint.Checkpoints(path)
    store.save(state)
    store.close()
    store = checkpoint.Checkpoints(path)
    state = store.restore(train.initial_state(built, config))
    store.close()
    step = train.stepper(built, config, 1)
    for _ in range(min(STEPS, built.run.total_steps) - 1):
        state, _ = step(state)
    for (where, x), y in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(state)):
        np.testing.assert_array_equal(x, y, jax.tree_util.keystr(where))


def _compiles_once(config, previous, where):
    config, built = build(config, 1, previous)
    state = train.initial_state(built, config)
    step = train.stepper(built, config, 0)
    state, _ = step(state)
    with jax.log_compiles(), pytest.MonkeyPatch.context() as patch:
        compiled = []
        patch.setattr("jax._src.compiler.compile_or_get_cached", lambda *a, **k: compiled.append(a))
        if built.run.total_steps > 1:
            step(state)
    assert not compiled, f"{where}: the second step compiled {len(compiled)} programs"


def _encode(built, state):
    example = built.data.test.read(0)
    images = np.stack([example["image"]] * 8)
    encode = parallel.lift(built.method.encode, built.mesh, (parallel.SAME, parallel.EACH), parallel.EACH)
    return {name: rows.shape for name, rows in encode(
        state, parallel.place_batch({"image": images}, built.mesh)).items()}
