"""What every method owes the trainer, run over every config in its `debug` variant."""

import importlib
from pathlib import Path

import jax
import jax._src.compiler
import numpy as np
import pytest

from cl_jax import checkpoint, parallel, train
from cl_jax.method import Stage

CONFIGS = sorted(path.stem for path in (Path(__file__).parents[1] / "configs").glob("*.py")
                 if path.stem not in ("__init__", "common"))
STEPS = 3
BOUND = 2e-4  # float32 summation order after three steps of SGD, against the largest magnitude of each array or 1


def started(config, devices, previous):
    config = config.copy_and_resolve_references()
    config.devices = devices
    built = train.build(config, previous)
    return config, built, train.initial_state(built, config)


def trained(config, devices, previous):
    """The State after some steps of plain SGD, and the losses. Adam would blow up the rounding of zero gradients, large
    steps that of all; the momentum in the optimiser's state holds the absolute gradients."""
    config = config.copy_and_resolve_references()
    config.optimizer = {"name": "sgd", "learning_rate": 1e-4, "learning_rate_scaling": "none"}
    config, built, state = started(config, devices, previous)
    step, losses = train.stepper(built, config, 0), []
    for _ in range(min(STEPS, built.run.total_steps)):
        state, values = step(state)
        losses.append(float(values["loss"]))
    return parallel.fetch(state), losses


def stages_of(name):
    config = importlib.import_module(f"configs.{name}").get_config("debug")
    config.stage = "all" if config.get("stage_order", ()) else ""
    return [(stage, settings) for stage, settings, _ in train.stages(config, "unused")]


@pytest.mark.slow  # compiles every method on three device counts
@pytest.mark.parametrize("name", CONFIGS)
def test_contract(name, tmp_path):
    previous = None
    for stage, config in stages_of(name):
        where = f"{name} {stage}"
        _the_same_on_any_number_of_devices(config, previous, where)
        previous = _resumes_exactly_and_compiles_once(config, previous, tmp_path / (stage or "run"), where)


def _the_same_on_any_number_of_devices(config, previous, where):
    state, losses = trained(config, 1, previous)
    assert np.isfinite(losses).all(), where
    for devices in (2, 4):
        other, other_losses = trained(config, devices, previous)
        np.testing.assert_allclose(other_losses, losses, rtol=BOUND, atol=BOUND, err_msg=f"{where}, {devices} devices")
        for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(other)):
            difference = np.abs(np.float64(x) - np.float64(y)).max(initial=0)
            bound = BOUND * max(1.0, np.abs(np.float64(x)).max(initial=0))
            assert difference <= bound, f"{where} on {devices} devices: {jax.tree_util.keystr(path)} {difference:.2g}"


def _resumes_exactly_and_compiles_once(config, previous, path, where):
    config, built, state = started(config, 1, previous)
    steps = min(STEPS, built.run.total_steps)
    step = train.stepper(built, config, 0)
    state, _ = step(state)
    store = checkpoint.Checkpoints(path)
    store.save(state)
    with pytest.MonkeyPatch.context() as patch:
        compiled = []
        compile_ = jax._src.compiler.compile_or_get_cached
        patch.setattr(jax._src.compiler, "compile_or_get_cached", lambda *a, **k: compiled.append(a) or compile_(*a, **k))
        for _ in range(steps - 1):
            state, values = step(state)
    assert not compiled, f"{where}: steps after the first compiled {len(compiled)} programs"
    assert all(np.isfinite(value).all() for value in parallel.fetch(values).values()), where
    store.close()

    store = checkpoint.Checkpoints(path)
    resumed = store.restore(train.initial_state(built, config))
    store.close()
    step = train.stepper(built, config, 1)
    for _ in range(steps - 1):
        resumed, _ = step(resumed)
    for (leaf, x), y in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(resumed)):
        np.testing.assert_array_equal(x, y, f"{where}: {jax.tree_util.keystr(leaf)}")

    image = built.data.test.read(0)["image"]
    encode = parallel.lift(built.method.encode, built.mesh, (parallel.SAME, parallel.EACH), parallel.EACH)
    named = encode(state, parallel.place_batch({"image": np.stack([image] * 8)}, built.mesh))
    assert "h" in named and all(rows.shape[0] == 8 and np.isfinite(rows).all() for rows in named.values()), where
    return Stage(built.method, state)
