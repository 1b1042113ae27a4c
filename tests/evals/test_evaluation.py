"""The run of the evaluators: order of rows on any mesh, what is measured, what is left out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from cl_jax.core import parallel
from cl_jax.data.source import Splits, from_arrays
from cl_jax.evals import Evaluator, classifier, geometry, knn, linear, neighbours, summary
from cl_jax.evals.evaluation import Evaluation
from tests import small

CONFIG = ConfigDict(dict(seed=0, batch_size=8, evals=dict(batch_size=8, feature="h", best="")))


def splits(labels=True, size=45):
    rng = np.random.default_rng(0)
    arrays = {"image": rng.integers(0, 256, (size, 4, 4, 3), np.uint8)}
    if labels:
        arrays["label"] = rng.integers(0, 3, size).astype(np.int32)
    source = from_arrays("random", arrays, {"label": 3} if labels else {})
    return Splits(source, source)


def evaluation(evaluators, data=None, mesh=None, workdir="unused"):
    method, mesh = small.method(), parallel.make_mesh(2) if mesh is None else mesh
    state = jax.eval_shape(
        parallel.lift(method.init, mesh, (parallel.SAME, parallel.EACH), parallel.SAME),
        jax.random.key(0),
        {"image": np.zeros((8, 4, 4, 3), np.uint8), "id": np.zeros(8, np.int32)},
    )
    state = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), state)
    data = splits() if data is None else data
    return Evaluation(evaluators, method, data, mesh, CONFIG, workdir), state


def first_pixel(state, batch):
    return batch["image"][:, 0, 0, 0]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2)], ids=str)
def test_rows_come_in_order_whatever_the_order_of_the_mesh(order):
    """A slice that is ordered by topology and not by process would hand rows back permuted."""
    devices = np.array(jax.devices()[:4])[list(order)]
    mesh = Mesh(devices, (parallel.AXIS,), axis_types=(AxisType.Auto,))
    runner, state = evaluation({}, mesh=mesh)
    found = runner.rows(first_pixel, state, runner.data.train)
    np.testing.assert_array_equal(found, runner.data.train.arrays["image"][:, 0, 0, 0])


def test_rows_are_put_back_where_the_compiled_function_permutes_them(monkeypatch):
    lift = parallel.lift

    def reversing(f, mesh, ins, outs, **settings):
        lifted = lift(f, mesh, ins, outs, **settings)
        return lambda *given: jax.tree.map(lambda x: x[::-1], lifted(*given))

    runner, state = evaluation({})
    monkeypatch.setattr(parallel, "lift", reversing)
    found = runner.rows(first_pixel, state, runner.data.train)
    np.testing.assert_array_equal(found, runner.data.train.arrays["image"][:, 0, 0, 0])


@dataclasses.dataclass(frozen=True)
class Chip:
    """A core of a TPU v4 slice, as `jax.devices()` tells it."""

    id: int
    process_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v4"
    slice_index: int = 0


def test_the_mesh_of_a_slice_is_in_order_of_its_processes(monkeypatch):
    """A simulated 4 x 4 slice of four hosts with four chips each: the mesh that JAX makes of its
    topology gives a process chips that are not in a row, and would take their rows from another."""
    chips = [
        Chip(4 * (x // 2 + 2 * (y // 2)) + x % 2 + 2 * (y % 2), x // 2 + 2 * (y // 2), (x, y, 0))
        for y in range(4)
        for x in range(4)
    ]
    of_topology = list(mesh_utils.create_device_mesh((16,), chips).flat)
    in_a_row = [process for process in range(4) for _ in range(4)]
    assert [chip.process_index for chip in of_topology] != in_a_row
    for given in (chips, chips[::-1], of_topology):
        assert [chip.id for chip in parallel.in_order(given)] == list(range(16))
        assert [chip.process_index for chip in parallel.in_order(given)] == in_a_row

    devices = jax.devices()[:4]
    monkeypatch.setattr(jax, "devices", lambda: devices[::-1])
    assert list(parallel.make_mesh(4).devices.flat) == devices


def test_an_evaluator_that_fails_says_how_the_run_goes_on():
    def fails(given):
        raise ValueError("no")

    for one in (Evaluator(fails), Evaluator(lambda given: {}, baseline=fails)):
        runner, state = evaluation({"own": one})
        with pytest.raises(ValueError, match="no") as raised:
            (runner.baselines if one.baseline else runner.measure)(state)
        assert "--config.evals.protocols.own=None" in "".join(raised.value.__notes__)


@pytest.mark.parametrize(
    "make, settings",
    [
        (knn.make, {"k": 0}),
        (knn.make, {"temperature": 0.0}),
        (linear.make, {"learning_rate": -1.0}),
        (linear.make, {"batch_size": 0}),
        (geometry.make, {"rows": 0}),
    ],
)
def test_settings_out_of_range_are_refused(make, settings):
    with pytest.raises(ValueError, match="expected"):
        make(**settings)


def test_evaluators_of_labels_are_left_out_where_there_are_none():
    runner, state = evaluation({"knn": knn.make(), "c": classifier.make()}, splits(labels=False))
    assert not runner.evaluators and runner.best == ""
    runner.check(state)
    assert runner.measure(state).keys() == {"eval_seconds"}


def test_figures_that_the_log_cannot_hold_are_named_and_the_others_are_kept(caplog):
    figures = {"step": 7, "time": 1.0, "bad/word": "high", "bad/none": None, "bad/row": np.ones(2)}
    evaluators = {
        "bad": Evaluator(lambda given: figures | {"bad/top1": np.float32(0.5)}),
        "silent": Evaluator(lambda given: None),
        "good": Evaluator(lambda given: {"good/top1": 1.0}, baseline=lambda given: {"mfu": 1.0}),
    }
    runner, state = evaluation(evaluators)
    found = runner.measure(state)
    assert found.keys() == {"bad/top1", "good/top1", "eval_seconds"} and found["bad/top1"] == 0.5
    for name in ("step", "time"):
        assert f"evals.protocols.bad measures '{name}', the name of what the trainer logs" in (
            caplog.text
        )
    for name, shown in (("word", "'high'"), ("none", "None"), ("row", "array")):
        assert f"evals.protocols.bad: bad/{name} is {shown}" in caplog.text
    assert "evals.protocols.silent returned a NoneType" in caplog.text
    assert runner.baselines(state).keys() == {f"untrained/{n}/top1" for n in ("bad", "good")}
    assert "evals.protocols.good measures 'mfu'" in caplog.text


def test_a_figure_that_was_not_declared_does_not_overwrite_another(caplog):
    evaluators = {
        "a": Evaluator(lambda given: {"same": 0, "a": 0}, baseline=lambda given: {"data": 0}),
        "b": Evaluator(lambda given: {"same": 1, "b": 1}, baseline=lambda given: {"data": 1}),
    }
    runner, state = evaluation(evaluators)
    found = runner.measure(state)
    assert found["same"] == 0.0 and found["b"] == 1.0
    assert "evals.protocols.b: same is left out: another evaluator has measured" in caplog.text
    found = runner.baselines(state)
    assert found == {"data": 0, "untrained/same": 0, "untrained/a": 0, "untrained/b": 1}


def test_figures_that_are_nan_are_left_out(caplog):
    bad = Evaluator(lambda given: {"bad/loss": np.nan, "bad/other": 1.0})
    runner, state = evaluation({"bad": bad})
    found = runner.measure(state)
    assert "bad/loss" not in found and found["bad/other"] == 1.0


def test_a_classifier_that_diverged_is_wrong():
    runner, state = evaluation({})
    truth = runner.data.test.arrays["label"]
    for logits, right in ((np.eye(10)[truth], 1.0), (np.full((len(truth), 10), np.nan), 0.0)):
        given = runner._given(state, True, False)._replace(features=lambda *_, x=logits: x)
        assert classifier.make().measure(given) == {"classifier/top1": right}


def test_a_probe_whose_loss_is_not_finite_has_no_accuracy():
    probe = linear.Probe(0.1, 0.5, None, linear.History(np.array([1.0, np.inf]), np.zeros(2)))
    assert all(np.isnan(value) for value in linear.accuracies("linear/cached", probe).values())


def test_when_and_baselines_and_summary(tmp_path):
    chosen = {
        "knn": knn.make(k=100),
        "linear": linear.make(total_epochs=1.0),
        "n": neighbours.make(),
    }
    runner, state = evaluation(chosen, workdir=tmp_path)
    runner.check(state)
    early = runner.measure(state)
    assert early["knn/k"] == 45 and early["knn/temperature"] == pytest.approx(0.1)
    assert "linear/cached/top1" not in early
    late = runner.measure(state, final=True)
    assert {"linear/cached/top1", "linear/cached/top5"} <= late.keys()
    beside = runner.baselines(state)
    assert {"untrained/knn/top1", "knn/raw_pixels"} <= beside.keys()
    runner.draw(state)
    assert (tmp_path / "neighbours.png").stat().st_size > 1000
    text = summary.text(runner.evaluators, [{"step": 0} | beside, {"step": 4} | late])
    assert "kNN, trained network" in text and "kNN, raw pixels" in text
    assert runner.best == "knn/top1" and runner.score(late) == late["knn/top1"]


def test_pictures_of_the_final_state_take_its_features_as_measured(tmp_path, monkeypatch):
    runner, state = evaluation({"n": neighbours.make(), "knn": knn.make()}, workdir=tmp_path)
    runner.measure(state, final=True)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "rows", lambda *_: pytest.fail("encoded again"))
        runner.draw(state)
    assert (tmp_path / "neighbours.png").exists() and runner.measured is None
    runner.measure(state, final=True)
    runner.measure(state)
    assert runner.measured is None  # no features of an earlier State are kept beside those of this
    runner.measure(state, final=True)
    calls, rows = [], runner.rows
    monkeypatch.setattr(runner, "rows", lambda *given: calls.append(0) or rows(*given))
    runner.draw(dataclasses.replace(state))  # another State
    assert len(calls) == 1  # one source is both parts here


def test_an_evaluation_s_programs_are_compiled_quickly_on_a_cpu(monkeypatch):
    runner, state = evaluation({"geometry": geometry.make()})
    asked, lift = [], parallel.lift
    monkeypatch.setattr(
        parallel, "lift", lambda *args, compiler=None: asked.append(compiler) or lift(*args)
    )
    monkeypatch.setenv("XLA_FLAGS", "")
    runner.encode_all(runner.method.encode, state)
    assert asked == [{"xla_backend_optimization_level": 2}]


@pytest.mark.parametrize(
    ("views", "warned"),
    [
        (lambda batch, key: [batch["adversarial"]], "views read 'adversarial', which is no field"),
        (lambda batch, key: [{"a": batch["image"], "b": batch["image"]}], ""),
    ],
)
def test_views_that_the_network_does_not_take_leave_their_figures_out(views, warned, caplog):
    runner, _ = evaluation({"geometry": geometry.make()})
    runner.method = dataclasses.replace(runner.method, views=views)
    assert runner._viewed is None
    assert warned in caplog.text and bool(warned) == bool(caplog.text)


def test_what_is_compiled_ahead_is_what_an_evaluation_runs(monkeypatch, caplog):
    runner, state = evaluation({"geometry": geometry.make(rows=16), "knn": knn.make()})
    runner.method = dataclasses.replace(
        runner.method, clean=lambda batch: runner.method.views(batch, jax.random.key(0))[0]
    )
    state = parallel.replicate(state, runner.mesh)
    monkeypatch.setattr("cl_jax.data.batches.cores", lambda: 2)
    runner.compile_ahead(state)
    runner.ahead.result()
    assert len(runner.compiled) == 2
    with jax.log_compiles():
        found = runner.baselines(state) | runner.measure(state)
    assert {"pairs/top1", "untrained/knn/top1", "knn/top1"} <= found.keys()
    assert "Finished XLA compilation of jit(_of_rows)" in caplog.text
    assert "placed" not in caplog.text


@pytest.mark.parametrize(("size", "programs"), [(15, 1), (16, 2)])
def test_views_of_too_few_pairs_are_not_compiled_ahead(size, programs, monkeypatch):
    runner, state = evaluation({"geometry": geometry.make()}, splits(size=size))
    method, key = runner.method, jax.random.key(0)
    runner.method = dataclasses.replace(method, clean=lambda batch: method.views(batch, key)[0])
    monkeypatch.setattr("cl_jax.data.batches.cores", lambda: 2)
    asked = set()
    monkeypatch.setattr(runner, "_program", lambda f: asked.add(f) or jax.jit(lambda *_: 0))
    runner.compile_ahead(parallel.replicate(state, runner.mesh))
    runner.ahead.result()
    assert len(asked) == programs


def test_nothing_is_compiled_ahead_on_one_core_and_failures_wait_for_the_call(monkeypatch):
    runner, state = evaluation({"knn": knn.make()})
    state = parallel.replicate(state, runner.mesh)
    monkeypatch.setattr("cl_jax.data.batches.cores", lambda: 1)
    runner.compile_ahead(state)
    assert runner.ahead is None
    monkeypatch.setattr("cl_jax.data.batches.cores", lambda: 2)
    functions = runner.method.functions | {"encode": lambda state, batch: 1 / 0}
    runner.method = dataclasses.replace(runner.method, functions=functions)
    runner.compile_ahead(state)
    with pytest.raises(ZeroDivisionError):
        runner.measure(state)


def test_of_several_pictures_on_one_channel_axis_the_first_is_drawn():
    image = np.arange(2 * 4 * 4 * 7, dtype=np.uint8).reshape(2, 4, 4, 7)
    for channels, shown in ((7, 3), (3, 3), (2, 1), (1, 1)):
        source = from_arrays("aligned", {"image": image[..., :channels]}, {})
        found = neighbours._images(source, np.array([[1, 0]]))
        np.testing.assert_array_equal(found, image[None, ::-1, ..., :shown])


@pytest.mark.parametrize(
    ("views", "says"),
    [
        (lambda batch, key: {"one": batch["image"]}, "the method's views returned a dict"),
        (lambda batch, key: None, "the method's views returned a NoneType"),
        (lambda batch, key: [], "the method's views returned no view"),
        (lambda batch, key: [batch["moved"]], "the method's views read 'moved'"),
    ],
)
def test_views_that_cannot_be_drawn_cost_their_figures_alone(views, says, caplog):
    runner, _ = evaluation({})
    runner.method = dataclasses.replace(runner.method, views=views)
    assert runner._viewed is None and says in caplog.text
