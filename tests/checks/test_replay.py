"""A step that is not finite is kept, done again bit for bit, and its first tensor named."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from cl_jax.checks import finite, replay, verify
from cl_jax.core import parallel
from cl_jax.core.method import Aux, Variables, from_loss
from cl_jax.encoders.layer_norm import LayerNorm
from cl_jax.tools import replay as command
from cl_jax.training import checkpoint, loop, metrics
from cl_jax.training.experiment import initial_state
from configs import simclr_v1
from tests import small


def method(loss, learning_rate=1e-2):
    """One layer under a loss of its outputs [B, 8]."""

    def variables(key, batch):
        return Variables({"w": 0.1 * jax.random.normal(key, (48, 8))}, {})

    def views(batch, key):
        return batch["image"].reshape(-1, 48).astype(jnp.float32) / 255.0

    def forward(params, stats, target, rows, batch, key):
        with jax.named_scope("layer"):
            return rows @ params["w"], stats, None

    def value(outputs, params, memory, batch, key):
        return parallel.mean(loss(outputs), parallel.AXIS), Aux({})

    return from_loss(
        variables=variables,
        views=views,
        needs=("image",),
        forward=forward,
        loss=value,
        tx=optax.sgd(learning_rate),
        axis_name=parallel.AXIS,
        features=lambda params, stats, images, train: (
            {"h": images.reshape(-1, 48) @ params["w"]},
            stats,
        ),
        clean=lambda batch: batch["image"] / 255.0,
    )


def square(z):
    return jnp.mean(z**2)


def log_of_zero(z):
    return -jnp.mean(jnp.log(jnp.maximum(z, 0.0)))


def log_in_a_loop(z):
    return lax.scan(
        lambda total, row: (total + jnp.sum(jnp.log(jnp.maximum(row, 0.0))), None), 0.0, z
    )[0]


def masked_log(z):
    """Half of the candidates are masked out; the log of their zeros reaches nothing."""
    kept = z > 0
    logits = jnp.where(kept, z, -jnp.inf)
    logs = jnp.where(kept, jnp.log(jnp.where(kept, z, 1.0)), jnp.log(jnp.zeros_like(z)))
    return jnp.mean(jax.nn.logsumexp(logits, 1)) + 1e-3 * jnp.mean(jnp.where(kept, logs, 0.0))


def everything_masked(z):
    logits = jnp.where(z > 1e9, z, -jnp.inf)
    return jnp.mean(logits - jax.nn.logsumexp(logits, 1)[:, None])


def overflow(z):
    return jnp.mean(jnp.exp(200.0 + z)) * 1e-80


def root(z):
    """Finite, but not its gradient."""
    return jnp.mean(jnp.sqrt(jnp.maximum(z - 1e9, 0.0)))


def determinant(z):
    """Its gradient solves a linear system, an operation that holds programs of its own."""
    return jnp.linalg.slogdet(z.T @ z / len(z) + jnp.eye(z.shape[1]))[1]


def sensitivity(z):
    """Forward mode through a gradient written by hand."""
    layer = LayerNorm()
    params = {"params": {"scale": jnp.ones(z.shape[1]), "bias": jnp.zeros(z.shape[1])}}
    return jnp.mean(jax.jvp(lambda z: layer.apply(params, z), (z,), (jnp.cos(z),))[1] ** 2)


def step(loss, params=None, wide=False):
    """evaluate() of one step on the first batch: (metrics, cause)."""
    built, config = small.built(1), small.config(1)
    built = built._replace(method=method(loss))
    state = parallel.fetch(initial_state(built, config))
    if params is not None:
        state = dataclasses.replace(state, params={"w": params(state.params["w"])})
    ids = np.arange(16, dtype=np.int32)
    batch = {"image": np.stack([built.data.train.read(i)["image"] for i in ids]), "id": ids}
    return finite.evaluate(built.method.update, (state, batch, jax.random.key(0)), wide)


def planted(w):
    w = np.array(w)
    w[3, 2] = np.nan
    return w


@pytest.mark.parametrize(
    "loss,params,first,where",
    [
        (log_of_zero, None, "log", "log_of_zero"),
        pytest.param(log_in_a_loop, None, "log", "log_in_a_loop", marks=pytest.mark.slow),
        (overflow, None, "exp", "overflow"),
        pytest.param(everything_masked, None, "log", "everything_masked", marks=pytest.mark.slow),
        (root, None, "div", "root"),
        (square, lambda w: w * 1e30, "integer_pow", "square"),
        (
            square,
            lambda w: np.full_like(w, np.inf),
            None,
            "State given to the step, state.params['w']: float32[48, 8]: 384 inf",
        ),
        (
            square,
            planted,
            None,
            "State given to the step, state.params['w']: float32[48, 8]: 1 nan",
        ),
    ],
    ids=lambda given: getattr(given, "__name__", str(given)),
)
def test_the_first_tensor_is_named(loss, params, first, where):
    values, cause = step(loss, params)
    assert not all(np.isfinite(list(values.values())))
    assert where in str(cause)
    if first is None:
        assert cause.equation is None
    else:
        assert cause.equation.primitive.name in (
            first,
            "square" if first == "integer_pow" else first,
        )
        assert "tests/checks/test_replay.py:" in str(cause)


@pytest.mark.parametrize(("loss", "wide"), [(determinant, True), (sensitivity, False)])
def test_operations_that_hold_programs_are_evaluated(loss, wide):
    values, cause = step(loss, wide=wide)
    assert cause is None and all(np.isfinite(list(values.values())))


def test_what_is_masked_is_not_blamed():
    values, cause = step(masked_log)
    assert cause is None and all(np.isfinite(list(values.values())))


def test_the_scope_is_said():
    _, cause = step(
        square,
        lambda w: np.where(np.arange(8) < 4, 3e38, -3e38).astype(np.float32) * np.ones_like(w),
    )
    assert cause.equation.primitive.name == "dot_general" and "layer" in cause.where
    assert any("float32[48, 8]: -3e+38 to 3e+38" in text for text in cause.inputs)


def test_float64_parts_overflow_from_a_fault_of_the_mathematics():
    values, cause = step(overflow, wide=True)
    assert cause is None and np.isfinite(values["loss"])
    _, cause = step(log_of_zero, wide=True)
    assert cause.equation.primitive.name == "log" and "float64[16, 8]" in cause.output


@pytest.mark.slow  # compiles a thousand operations one by one
@pytest.mark.parametrize("wide", [True, False])
def test_one_operation_at_a_time_is_the_compiled_step(wide):
    """A method with gathers, a memory and random views; in float64 the draws are those of
    float32."""
    built, config = small.built(1), small.config(1)
    steps = loop.stepper(built, config, 0)
    state = parallel.fetch(initial_state(built, config))
    ids = steps.ids(0)
    batch = {"image": np.stack([built.data.train.read(int(i))["image"] for i in ids]), "id": ids}
    values, cause = finite.evaluate(
        built.method.update, (state, batch, jax.random.fold_in(jax.random.key(3), 0)), wide
    )
    _, compiled = steps(parallel.replicate(state, built.mesh))
    assert cause is None
    assert values["loss"] == pytest.approx(float(compiled["loss"]), rel=1e-6)
    assert values["grad_norm"] == pytest.approx(float(compiled["grad_norm"]), rel=1e-5)
    assert jax.numpy.zeros(1).dtype == np.float32  # the types are as before


# The kept step --------------------------------------


@pytest.fixture
def run(monkeypatch):
    """(train a method in a workdir under these settings); what stands in for data and encoder is
    small."""

    def run(workdir, made, **settings):
        config = simclr_v1.get_config("debug")
        config.update({"devices": 1, "seed": 3, "log_steps": 2, **settings})
        config.evals.update({"every_epochs": 0.0, "baselines": False})
        config = loop.stages(config, "unused")[0][1]
        for module in (loop, replay):
            monkeypatch.setattr(
                module,
                "build",
                lambda config, previous: small.built(config.devices)._replace(method=made),
            )
        monkeypatch.setattr(loop.Evaluation, "measure", lambda *_, **__: {"knn/top1": 0.0})
        monkeypatch.setattr(loop.summary, "draw_curve", lambda *_: None)
        return loop.train(config, workdir)

    return run


@pytest.mark.parametrize(
    "devices,together",
    [(1, 2), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((1, 1), (4, 1), (4, 2)))],
)
def test_an_absurd_learning_rate_stops_and_the_step_is_done_again_bit_for_bit(
    run, tmp_path, capsys, devices, together
):
    with pytest.raises(FloatingPointError, match="step 2: loss inf"):
        run(tmp_path, method(square, 1e30), devices=devices, dispatch_steps=together)
    kept = tmp_path / "bad_step" / "2"
    found = json.loads((kept / "record.json").read_text())
    assert found["devices"] == devices and found["steps_in_dispatch"] == together
    assert len(found["batch_ids"]) == small.BATCH and found["metrics"]["loss"] == np.inf
    assert command.main([str(tmp_path / "bad_step")]) == 0
    said = capsys.readouterr()
    assert f"replay{kept}`says" in "".join(said.err.split())
    assert (
        "step 2 of simclr_v1 on random: loss inf" in said.out
        and "as recorded, bit for bit" in said.out
    )
    assert (
        "first not finite: " in said.out and "test_replay.py" in said.out and "(square)" in said.out
    )
    assert command.main([str(kept), "--float64"]) == 0
    assert "all finite: the fault is rounding or overflow" in capsys.readouterr().out


def test_skipped_steps_are_kept_up_to_the_third_and_counted_over_a_resume(run, tmp_path, capsys):
    made = method(square)

    def update(state, batch, key):
        after, values = made.update(state, batch, key)
        return after, values | {
            "loss": jnp.where(state.step % 2 == 1, jnp.log(-values["loss"]), values["loss"])
        }

    poisoned = dataclasses.replace(made, update=update)
    run(tmp_path, poisoned, nonfinite="skip", log_steps=1)
    assert [row["skipped_steps"] for row in metrics.read(tmp_path) if "skipped_steps" in row] == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert sorted(path.name for path in (tmp_path / "bad_step").iterdir()) == ["2", "4", "6"]
    capsys.readouterr()
    assert command.main([str(tmp_path / "bad_step" / "4")]) == 0
    said = capsys.readouterr().out
    assert (
        "loss nan" in said
        and "first not finite: log -> float32[]: 1 nan" in said
        and ".update)" in said
    )


def test_a_step_that_comes_out_otherwise_is_said(run, tmp_path, capsys):
    with pytest.raises(FloatingPointError):
        run(tmp_path, method(square, 1e30))
    path = tmp_path / "bad_step" / "2" / "record.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"metrics": found["metrics"] | {"loss": 2.5}}))
    assert command.main([str(tmp_path)]) == 1
    assert "recorded: loss 2.5" in capsys.readouterr().out
    path.write_text(json.dumps(found | {"batch_ids": found["batch_ids"][::-1]}))
    assert command.main([str(tmp_path)]) == 2
    assert "the data set or its order has changed" in capsys.readouterr().err
    path.write_text(json.dumps(found | {"devices": "two", "config": []}))
    assert command.main([str(tmp_path)]) == 2
    assert "has no devices, config: it is not a record" in capsys.readouterr().err
    for key, value in (("data", None), ("method", "simclr_v1")):
        path.write_text(json.dumps(found | {"config": found["config"] | {key: value}}))
        assert command.main([str(tmp_path)]) == 2
        assert f"has no config.{key}: it is not a record" in capsys.readouterr().err
    path.unlink()
    assert command.main([str(tmp_path)]) == 2
    assert "holds no step that was kept" in capsys.readouterr().err


def test_a_full_disk_does_not_hide_the_fault(run, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "keep", full)
    with pytest.raises(FloatingPointError, match="step 2"):
        run(tmp_path, method(square, 1e30))
    assert "step 2 could not be kept" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow  # compiles a whole method, and each of its operations
@pytest.mark.parametrize(
    "name,learning_rate", [("simclr_v1", 1e30), ("swav", 1e30), ("moco_v2", 1e30)]
)
def test_methods_themselves(name, learning_rate, tmp_path, capsys):
    _, config = verify.debug_stages(name)[0]
    config.update(
        {
            "devices": 1,
            "log_steps": 1,
            "optimizer": {
                "name": "sgd",
                "learning_rate": learning_rate,
                "learning_rate_scaling": "none",
                "schedule": "constant",
            },
        }
    )
    config.evals.update({"every_epochs": 0.0, "baselines": False})
    with pytest.raises(FloatingPointError):
        loop.train(config, tmp_path)
    assert command.main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "as recorded, bit for bit" in said and "first not finite: " in said
    assert "  at " in said
