"""What every method owes the trainer, run over every config in its `debug` variant."""

import jax
import jax._src.compiler
import numpy as np
import pytest

from cl_jax.checks import verify
from cl_jax.core import parallel
from cl_jax.training import checkpoint, configs, loop

STEPS = 3


@pytest.mark.slow  # compiles every method on three device counts
@pytest.mark.parametrize(
    "name",
    [
        *configs.names(),
        "imix:table,moco",
        "imix:audio",
        "infomin:learned",
        "support_set:memory,meanings",
    ],
)
def test_contract(name, tmp_path):
    """Every stage: the same on 1, 2 and 4 devices; a resumed run is the unbroken one; no second
    compilation."""
    previous = None
    stages = zip(verify.debug_stages(name), verify.verify(name, devices=(1, 2, 4)), strict=True)
    for (stage, config), (record, trained) in stages:
        assert record.same(), verify.table([record])
        _resumes_exactly_and_compiles_once(
            config, previous, tmp_path / (stage or "run"), record.name
        )
        previous = trained


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in configs.names() if verify.debug_stages(name, 2)])
def test_a_step_in_pieces(name):
    """Two micro-batches are the same pieces on 1, 2 and 4 devices, batch norm included."""
    ((record, _),) = verify.verify(name, devices=(1, 2, 4), micro_batches=2)
    assert record.same(), verify.table([record])


def _resumes_exactly_and_compiles_once(config, previous, path, where):
    config.devices = 1
    built = loop.build(config, previous)
    state = loop.initial_state(built, config)
    steps = min(STEPS, built.run.total_steps)
    step = loop.stepper(built, config, 0)
    state, _ = step(state)
    store = checkpoint.Checkpoints(path)
    store.save(state)
    with pytest.MonkeyPatch.context() as patch:
        compiled = []
        compile_ = jax._src.compiler.compile_or_get_cached
        patch.setattr(
            jax._src.compiler,
            "compile_or_get_cached",
            lambda *a, **k: compiled.append(a) or compile_(*a, **k),
        )
        for _ in range(steps - 1):
            state, values = step(state)
    assert not compiled, f"{where}: steps after the first compiled {len(compiled)} programs"
    assert all(np.isfinite(value).all() for value in parallel.fetch(values).values()), where
    store.close()

    store = checkpoint.Checkpoints(path)
    resumed = store.restore(loop.initial_state(built, config))
    store.close()
    step = loop.stepper(built, config, 1)
    for _ in range(steps - 1):
        resumed, _ = step(resumed)
    for (leaf, x), y in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(resumed)):
        np.testing.assert_array_equal(x, y, f"{where}: {jax.tree_util.keystr(leaf)}")

    example = built.data.test.read(0)
    batch = {name: np.stack([example[name]] * 8) for name in built.method.needs if name in example}
    batch["id"] = np.arange(8, dtype=np.int32)
    encode = parallel.lift(
        built.method.encode, built.mesh, (parallel.SAME, parallel.EACH), parallel.EACH
    )
    named = encode(state, parallel.place_batch(batch, built.mesh))
    assert "h" in named and all(
        rows.shape[0] == 8 and np.isfinite(rows).all() for rows in named.values()
    ), where
