"""Steps: one at a time or many in a dispatch, from the device or from the host, and numbers that
are not finite."""

import dataclasses

import jax
import jax._src.compiler
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import losses
from cl_jax.core import parallel, sharded
from cl_jax.core.method import Aux, State, Target, Variables, from_loss
from cl_jax.data import batches
from cl_jax.training import loop, metrics, optim
from cl_jax.training.experiment import Start
from cl_jax.training.steps import Step, Stepper, refreshed
from configs import simclr_v1
from tests import small


@pytest.fixture(scope="module")
def config():
    config = simclr_v1.get_config("debug")
    config.devices = 1
    config.optimizer = {"name": "sgd", "learning_rate": 1e-3, "learning_rate_scaling": "none"}
    config.evals.update({"every_epochs": 0.0, "baselines": False})
    return loop.stages(config, "unused")[0][1]


@pytest.fixture(scope="module")
def built(config):
    """A method of one matrix in the place of the config's: these tests are of the steps around
    it."""
    built = loop.build(config)
    axis = built.run.axis_name

    def flat(images):
        return jnp.asarray(images, jnp.float32).reshape(len(images), -1) / 255

    def views(batch, key):
        x = flat(batch["image"])
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), x.shape[1:]))(
            batch["id"]
        )
        return [x, x + noise]

    def forward(params, stats, target, inputs, batch, key):
        a, b = (x @ params["w"] for x in inputs)
        return {"a": a, "b": b}, stats, None

    def loss(outputs, params, memory, batch, key):
        return losses.nt_xent(outputs["a"], outputs["b"], temperature=0.5, axis_name=axis), Aux({})

    method = from_loss(
        variables=lambda key, batch: Variables(
            {"w": jax.random.normal(key, (flat(batch["image"]).shape[1], 8))}, {}
        ),
        views=views,
        needs=("image",),
        forward=forward,
        loss=loss,
        tx=optim.build(
            **config.optimizer,
            batch_size=built.run.batch_size,
            steps_per_epoch=4,
            total_steps=built.run.total_steps,
        )[0],
        features=lambda params, stats, images, train: ({"h": images @ params["w"]}, stats),
        clean=lambda batch: flat(batch["image"]),
        axis_name=axis,
    )
    return built._replace(method=method)


@pytest.fixture(scope="module")
def programs():
    """Those that the tests of this module's one method share."""
    return {}


@pytest.fixture
def shared(monkeypatch, programs):
    small.share_programs(monkeypatch, programs)


def changed(config, **settings):
    config = config.copy_and_resolve_references()
    config.update(settings)
    return config


def run(built, config, state=None, start=0, until=None):
    """(State, losses [steps], dispatches)."""
    state = loop.initial_state(built, config) if state is None else state
    stepper, losses, dispatches = loop.stepper(built, config, start), [], 0
    until = until or built.run.total_steps
    while stepper.step < until:
        state, values = stepper.advance(state, until)
        losses.append(np.asarray(values["loss"]))
        dispatches += 1
    return state, np.concatenate(losses), dispatches


def assert_same(a, b, **bound):
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(parallel.fetch(a)), jax.tree.leaves(parallel.fetch(b))
    ):
        np.testing.assert_allclose(x, y, err_msg=jax.tree_util.keystr(path), **bound)


def test_many_steps_in_a_dispatch_are_the_same_run_and_resume_exactly(
    built, config, caplog, shared
):
    one, losses, _ = run(built, config)
    assert len(losses) == 4
    grouped = changed(config, dispatch_steps=2)
    two, scanned, dispatches = run(built, grouped)
    assert dispatches == 2 and "on a CPU" in caplog.text
    np.testing.assert_allclose(scanned, losses, rtol=1e-5)
    assert_same(one, two, rtol=1e-4, atol=1e-4)  # two programs: other fusions, other rounding
    half, _, _ = run(built, grouped, until=2)
    resumed, _, _ = run(built, grouped, state=half, start=2)
    assert_same(two, resumed, rtol=0, atol=0)


def test_groups_of_steps_are_cut_at_epochs_and_events_by_their_number_alone(built, config, shared):
    stepper = loop.stepper(built, changed(config, dispatch_steps=3), 0)
    state, taken = loop.initial_state(built, config), []
    while stepper.step < 8:  # epochs of 4 steps
        before = stepper.step
        state, _ = stepper.advance(state, 8)
        taken.append(stepper.step - before)
    assert taken == [3, 1, 3, 1]


def test_the_host_path_gives_the_same_run(built, config, caplog, shared):
    source = built.data.train
    hidden = dataclasses.replace(source, arrays=None)
    host = built._replace(data=built.data._replace(train=hidden))
    loop.stepper(host, changed(config, dispatch_steps=2), 0)
    assert "dispatch_steps=2 is 1 here" in caplog.text
    a, losses, _ = run(built, config)
    b, loaded, _ = run(host, config)
    np.testing.assert_allclose(loaded, losses, rtol=1e-6)
    assert_same(a, b, rtol=1e-6, atol=1e-6)
    resumed, tail, _ = run(host, config, *run(host, config, until=2)[:1], start=2)
    np.testing.assert_array_equal(tail, loaded[2:])
    assert_same(b, resumed, rtol=0, atol=0)


def poisoned(built, at):
    """The same method, whose loss is not a number at step `at`."""

    def update(state, batch, key):
        bad = state.step == at
        state, values = built.method.update(state, batch, key)
        return state, values | {"loss": jnp.where(bad, jnp.nan, values["loss"])}

    return built._replace(method=dataclasses.replace(built.method, update=update))


@pytest.mark.parametrize("at_once", [1, 2])
def test_the_state_stays_as_it_was_before_a_step_that_is_not_finite(built, config, at_once):
    config = changed(config, dispatch_steps=at_once)
    stepper = loop.stepper(poisoned(built, 2), config, 0)
    state, losses = loop.initial_state(built, config), []
    while stepper.step < 4:
        state, values = stepper.advance(state, 4)
        losses.extend(np.asarray(values["loss"]))
        if stepper.step == 2:
            until_then = parallel.fetch(state)
    assert np.isfinite(losses[:2]).all() and np.isnan(losses[2]) and int(state.step) == 2
    assert_same(state, until_then, rtol=0, atol=0)


@pytest.fixture
def unmeasured(monkeypatch):
    """Nothing is evaluated or drawn."""
    monkeypatch.setattr(loop.Evaluation, "measure", lambda *_, **__: {})
    monkeypatch.setattr(loop.Evaluation, "draw", lambda *_: None)


def test_skipping_leaves_one_batch_out_and_goes_on(
    built, config, unmeasured, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "build", lambda *_: poisoned(built, 1))
    config = changed(config, nonfinite="skip", log_steps=1)
    loop.train(config, tmp_path)
    rows = metrics.read(tmp_path)
    assert [row["skipped_steps"] for row in rows if "skipped_steps" in row] == [1]
    assert [row["step"] for row in rows if "loss" in row] == [1, 3, 4]
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)


def test_skipping_stops_where_every_step_is_left_out(built, config, tmp_path, monkeypatch):
    method = dataclasses.replace(
        built.method, update=lambda state, batch, key: (state, {"loss": jnp.nan * jnp.ones(())})
    )
    monkeypatch.setattr(loop, "build", lambda *_: built._replace(method=method))
    monkeypatch.setattr(loop, "IN_A_ROW", 2)
    with pytest.raises(
        FloatingPointError,
        match=r"2 steps in a row were skipped: skipping does not help\. step 3: loss nan",
    ):
        loop.train(changed(config, nonfinite="skip", log_steps=1), tmp_path)


@pytest.mark.parametrize("target", [None, (None, None), ("a", None), "a"], ids=str)
def test_a_skipped_step_counts_in_the_targets_of_all_members(target):
    """Of an ordinary method, of one without a target, and of a population: a tuple over members."""
    moved = Target(optax.EmaState(jnp.int32(3), {"w": jnp.ones(2)}), {"mean": jnp.ones(2)})
    target = jax.tree.map(lambda _: moved, target)
    state = State(jnp.int32(5), {}, {}, {}, target, None)
    after = object.__new__(Stepper).skip(state)
    assert after.step == 6 and jax.tree.structure(after) == jax.tree.structure(state)
    moves = [leaf for leaf in jax.tree.leaves(after.target) if leaf.ndim == 0]
    assert moves == [4] * len(jax.tree.leaves(target, is_leaf=lambda x: isinstance(x, Target)))
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(after.target) if leaf.ndim)


def test_a_methods_order_is_that_of_the_epoch(built, config, shared):
    seen = []
    groups = np.where(np.arange(built.run.size) < 8, 0, -1)

    def order(state, epoch, seed):
        seen.append((int(state.step), epoch))
        assert seed == config.seed
        count = built.run.steps_per_epoch * built.run.batch_size
        return batches.balanced_order(seed, epoch, groups)[:count]

    ordered = built._replace(method=dataclasses.replace(built.method, order=order))
    stepper = loop.stepper(ordered, config, 0)
    state = loop.initial_state(built, config)
    for _ in range(5):
        state, _ = stepper(state)
    assert seen == [(0, 0), (4, 1)]
    assert set(stepper.ids(4)) <= set(range(8))
    np.testing.assert_array_equal(
        stepper.ids(4), batches.balanced_order(config.seed, 1, groups)[: built.run.batch_size]
    )


def test_an_order_of_another_length_or_of_other_examples_is_refused(built, config):
    run = built.run
    numbered_from_one = np.full(run.steps_per_epoch * run.batch_size, run.size, np.int32)
    for ids, words in (
        (np.zeros(3, np.int32), r"is int32\[3\]; expected"),
        (numbered_from_one, rf"goes from {run.size} to {run.size}; .*0 to {run.size - 1}\."),
        (numbered_from_one - run.size - 1, "goes from -1 to -1"),
    ):
        method = dataclasses.replace(built.method, order=lambda *_, ids=ids: ids)
        stepper = loop.stepper(built._replace(method=method), config, 0)
        with pytest.raises(ValueError, match=f"order of epoch 0 {words}"):
            stepper(loop.initial_state(built, config))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s, m: (s, m | {"z": jnp.ones(3)}),
            r"metric 'z' is float32\[3\]; expected a scalar",
        ),
        (lambda s, m: (s, m | {"z": "high"}), "metric 'z' is a str; expected a scalar"),
        (lambda s, m: (s, m | {"z": None}), "metric 'z' is a NoneType; expected a scalar"),
        (lambda s, m: (s, m | {"step": s.step}), "'step' has the name of one that the trainer"),
        (
            lambda s, m: (dataclasses.replace(s, memory={"mean": jnp.ones(3)}), m),
            r"memory\['mean'\] of the State is missing before a step and float32\[3\] after",
        ),
        (
            lambda s, m: (dataclasses.replace(s, params=jax.tree.map(jnp.bfloat16, s.params)), m),
            r"params\['w'\] of the State is float32\[.*\] before a step and bfloat16\[",
        ),
        (lambda s, m: (s.params, m), "a step returned a dict; expected the State"),
        (
            lambda s, m: (s, {"error": m["loss"]}),
            'the method (.*) returned the metrics error from its update; expected "loss" among',
        ),
        (
            lambda s, m: (s, m["loss"]),
            r"returned \(State, .*\) from its update; expected \(State, ",
        ),
    ],
)
def test_a_step_that_returns_something_else_is_one_sentence(built, config, change, words):
    def update(state, batch, key):
        return change(*built.method.update(state, batch, key))

    method = dataclasses.replace(built.method, update=update)
    stepper = loop.stepper(built._replace(method=method), config, 0)
    with pytest.raises(ValueError, match=words):
        stepper(loop.initial_state(built, config))


@pytest.mark.parametrize("guard", [True, False])
def test_a_step_is_counted_where_the_method_does_not_count_it(guard):
    def advance(state, batch, key):
        return dataclasses.replace(state, params=state.params + 1), {"loss": jnp.float32(0)}

    state = State(jnp.int32(2), jnp.float32(0), None, None)
    for at in (2, 3):
        state, _ = Step(advance, guard).update(state, {}, jax.random.key(0), jnp.int32(at))
    assert (int(state.step), float(state.params)) == (4, 2)


def test_a_refresh_may_return_rows_that_lie_anywhere():
    mesh, rows = parallel.make_mesh(4), np.ones((6, 2), np.float32)
    memory = {"bank": sharded.whole(rows), "mean": np.zeros(2, np.float32)}
    state = parallel.replicate(State(np.int32(0), rows, None, None, memory=memory), mesh)

    def refresh(state, encode_all, epoch):
        return dataclasses.replace(
            state, memory={"bank": sharded.whole(jnp.asarray(2 * rows)), "mean": rows[0]}
        )

    after = refreshed(refresh, state, None, 0)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert (new.shape, new.dtype, new.sharding) == (old.shape, old.dtype, old.sharding)
    np.testing.assert_array_equal(parallel.fetch(after).memory["bank"].rows, 2 * rows)
    with pytest.raises(ValueError, match=r"memory\['mean'\] .* before refresh and float64\[2\]"):
        refreshed(
            lambda state, *_: dataclasses.replace(state, memory=memory | {"mean": np.zeros(2)}),
            state,
            None,
            0,
        )


def test_the_second_step_moves_nothing_between_host_and_device_but_ids(built, config, shared):
    stepper = loop.stepper(built, config, 0)
    state, _ = stepper(loop.initial_state(built, config))
    with jax.transfer_guard_device_to_host("disallow"):
        stepper(state)


def test_the_state_of_step_0_is_made_again_by_the_same_program(built, config, monkeypatch):
    """Baselines are of it, after it was trained on."""
    start = Start(built, config)
    state = start()
    first = parallel.fetch(state)
    loop.stepper(built, config, 0)(state)
    monkeypatch.setattr(
        jax._src.compiler, "compile_or_get_cached", lambda *_, **__: pytest.fail("compiled again")
    )
    jax.tree.map(np.testing.assert_array_equal, first, parallel.fetch(start()))


def test_flops_and_temporaries_of_the_step_are_known_after_it_compiled(built, config):
    stepper = loop.stepper(built, config, 0)
    assert stepper.compile_seconds == 0
    stepper(loop.initial_state(built, config))
    assert stepper.flops > 1e6 and stepper.temporary_bytes > 1e4 and stepper.compile_seconds > 0
