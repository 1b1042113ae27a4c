"""Optimisers beyond the golden vectors: masks, frozen and constant groups, the slow copy, settings
from a config."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.ema import ema_of_params
from cl_jax.core.errors import ConfigError
from cl_jax.training import optim

RNG = np.random.default_rng(0)
PARAMS = {
    "encoder": {
        "conv": {"kernel": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32)},
        "norm": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
    },
    "prototypes": jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32),
}
GRADS = [
    jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape), jnp.float32), PARAMS)
    for _ in range(6)
]


def _run(tx, grads=GRADS, params=PARAMS):
    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state, history = tx.init(params), []
    for g in grads:
        params, state = step(params, state, g)
        history.append(params)
    return history


def _assert_close(a, b, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def _build(**settings):
    return optim.build(
        **{
            "name": "sgd",
            "learning_rate": 0.1,
            "batch_size": 512,
            "steps_per_epoch": 2,
            "total_steps": 6,
        }
        | settings
    )


def test_sgd_in_loops():
    """PyTorch's rule, decay on every parameter, rate per epoch."""
    tx, lr = _build(weight_decay=0.01, schedule_per_epoch=True)
    rates = [0.2 * 0.5 * (1 + np.cos(np.pi * (step // 2) / 3)) for step in range(6)]
    np.testing.assert_allclose([lr(step) for step in range(6)], rates, atol=1e-6)
    w = np.asarray(PARAMS["encoder"]["norm"]["scale"])
    v = np.zeros_like(w)
    for rate, grads, after in zip(rates, GRADS, _run(tx)):
        v = 0.9 * v + grads["encoder"]["norm"]["scale"] + 0.01 * w
        w = w - rate * v
        np.testing.assert_allclose(after["encoder"]["norm"]["scale"], w, atol=1e-6)


def test_adamw_in_loops_with_a_decay_schedule():
    tx, lr = _build(
        name="adamw",
        weight_decay=0.04,
        final_weight_decay=0.4,
        exclude_ndim=1,
        warmup_epochs=1,
        learning_rate_scaling="none",
    )
    w = np.asarray(PARAMS["prototypes"], np.float64)
    b = np.asarray(PARAMS["encoder"]["norm"]["bias"], np.float64)
    moments = {"w": [0, 0], "b": [0, 0]}
    for step, (grads, after) in enumerate(zip(GRADS, _run(tx))):
        decay = 0.4 + 0.5 * (0.04 - 0.4) * (1 + np.cos(np.pi * step / 6))
        for name, g in (("w", grads["prototypes"]), ("b", grads["encoder"]["norm"]["bias"])):
            g = np.asarray(g, np.float64)
            m, v = moments[name]
            m, v = moments[name] = [0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g]
            u = (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
            if name == "w":
                w = w - float(lr(step)) * (u + decay * w)
            else:
                b = b - float(lr(step)) * u
        np.testing.assert_allclose(after["prototypes"], w, atol=1e-5)
        np.testing.assert_allclose(after["encoder"]["norm"]["bias"], b, atol=1e-5)


def test_muon_in_loops():
    """Kernels as [inputs, outputs] by Newton-Schulz from its polynomial, also those of a
    convolution; a vector and prototypes by Adam; decay of both."""
    params = {"conv": {"kernel": jnp.asarray(RNG.normal(size=(2, 2, 3, 4)), jnp.float32)}, **PARAMS}
    grads = [jax.tree.map(lambda p: 1e-3 * RNG.normal(size=p.shape), params) for _ in range(3)]
    settings = {"weight_decay": 0.04, "learning_rate_scaling": "none", "total_steps": 3}
    tx, lr = _build(name="muon", momentum=0.9, **settings)
    adam = _run(_build(name="adamw", **settings)[0], grads, params)
    w = np.asarray(params["conv"]["kernel"], np.float64).reshape(12, 4)
    m = np.zeros_like(w)
    for step, (given, after) in enumerate(zip(grads, _run(tx, grads, params))):
        g = given["conv"]["kernel"].reshape(12, 4)
        m = 0.9 * m + g
        x = (g + 0.9 * m) / np.linalg.norm(g + 0.9 * m)
        for _ in range(5):
            gram = x.T @ x
            x = 3.4445 * x + x @ (-4.775 * gram + 2.0315 * gram @ gram)
        assert 0.6 < np.linalg.svd(x)[1].min() and np.linalg.svd(x)[1].max() < 1.3
        w = w - float(lr(step)) * (0.2 * np.sqrt(12) * x + 0.04 * w)
        found = np.asarray(after["conv"]["kernel"]).reshape(12, 4)
        np.testing.assert_allclose(found, w, atol=1e-5)
        encoder, by_adam = after["encoder"], adam[step]["encoder"]
        np.testing.assert_allclose(encoder["norm"]["bias"], by_adam["norm"]["bias"], atol=1e-6)
        assert not np.allclose(encoder["conv"]["kernel"], by_adam["conv"]["kernel"], atol=1e-3)
        np.testing.assert_allclose(after["prototypes"], adam[step]["prototypes"], atol=1e-6)


def test_the_two_lars_differ_only_when_the_rate_changes():
    settings = {"weight_decay": 1e-2, "learning_rate": 5.0}
    a = _run(_build(name="lars_simclr", schedule="constant", **settings)[0])
    b = _run(_build(name="lars_byol", schedule="constant", **settings)[0])
    _assert_close(a, b, 1e-5)
    a = _run(_build(name="lars_simclr", **settings)[0])
    b = _run(_build(name="lars_byol", **settings)[0])
    assert np.abs(a[-1]["prototypes"] - b[-1]["prototypes"]).max() > 1e-3


def test_masks_by_axes_and_by_path():
    keep = optim.decay_mask(exclude_ndim=1)(PARAMS)
    assert keep == {
        "encoder": {"conv": {"kernel": True}, "norm": {"scale": False, "bias": False}},
        "prototypes": True,
    }
    keep = optim.decay_mask(exclude_paths=("/norm/scale$", "prototypes"))(PARAMS)
    assert keep == {
        "encoder": {"conv": {"kernel": True}, "norm": {"scale": False, "bias": True}},
        "prototypes": False,
    }


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd", "lars_simclr", "lars_byol", "larc_sgd"])
def test_frozen_parameters_start_afresh_at_the_current_rate(name):
    """Frozen for 3 updates, then as if its optimiser began there, with the rate moved on; the rest
    is untouched."""
    settings = {"name": name, "weight_decay": 0.1, "warmup_epochs": 1}
    tx, lr = _build(freeze_steps=3, freeze_paths=("prototypes",), **settings)
    free, _ = _build(**settings)
    frozen, plain = _run(tx), _run(free)
    for step in range(3):
        np.testing.assert_array_equal(frozen[step]["prototypes"], PARAMS["prototypes"])
    for a, b in zip(frozen, plain):
        _assert_close(a["encoder"], b["encoder"])
    tail = {
        "adamw": optim.adamw,
        "muon": optim.muon,
        "sgd": optim.sgd,
        "larc_sgd": optim.larc_sgd,
        "lars_simclr": optim.lars_simclr,
        "lars_byol": optim.lars_byol,
    }[name](lambda step: lr(step + 3), weight_decay=0.1)
    late = _run(tail, GRADS[3:])
    _assert_close(
        [after["prototypes"] for after in frozen[3:]], [after["prototypes"] for after in late]
    )
    assert np.abs(frozen[-1]["prototypes"] - PARAMS["prototypes"]).max() > 1e-4


def test_solo_learn_s_lars_clips_the_rate_and_leaves_vectors_alone():
    """One step from its formula: min(eta |w| / (|g| + d |w| + 1e-8) / lr, 1) (g + d w)."""
    rate, decay, eta = 0.2, 0.1, 0.02
    tx, _ = _build(
        name="larc_sgd",
        learning_rate=rate,
        learning_rate_scaling="none",
        schedule="constant",
        momentum=0.0,
        weight_decay=decay,
        trust_coefficient=eta,
        larc_clip=True,
        exclude_ndim=1,
    )
    step = jax.tree.map(lambda before, after: before - after, PARAMS, _run(tx, GRADS[:1])[0])

    def expected(w, g):
        if np.ndim(w) <= 1:
            return rate * g
        sizes = np.linalg.norm(w), np.linalg.norm(g)
        trust = eta * sizes[0] / (sizes[1] + decay * sizes[0] + 1e-8)
        return rate * min(trust / rate, 1.0) * (g + decay * w)

    _assert_close(step, jax.tree.map(expected, PARAMS, GRADS[0]))


def test_constant_rate_group():
    tx, _ = _build(constant_lr_paths=("prototypes",))
    expected = _run(_build(schedule="constant")[0])
    decaying = _run(_build()[0])
    for after, constant, other in zip(_run(tx), expected, decaying):
        _assert_close(after["prototypes"], constant["prototypes"])
        _assert_close(after["encoder"], other["encoder"])


def test_clipping_is_global_or_per_tensor():
    norms = optax.global_norm(GRADS[0])
    tx, _ = _build(clip_global_norm=0.5, momentum=0.0, schedule="constant")
    step = jax.tree.map(lambda a, b: a - b, PARAMS, _run(tx, GRADS[:1])[0])
    _assert_close(step, jax.tree.map(lambda g: 0.2 * g * 0.5 / norms, GRADS[0]))
    tx, _ = _build(clip_tensor_norm=0.5, momentum=0.0, schedule="constant")
    step = jax.tree.map(lambda a, b: a - b, PARAMS, _run(tx, GRADS[:1])[0])
    _assert_close(
        step,
        jax.tree.map(
            lambda g: 0.2 * g * min(1, 0.5 / (float(jnp.linalg.norm(g)) + 1e-6)), GRADS[0]
        ),
    )


def test_slow_copy_is_float32_and_starts_as_a_copy():
    params = {"w": jnp.full(3, 2.0, jnp.bfloat16)}
    tx = ema_of_params(0.9995)
    state = tx.init(params)
    assert state.ema["w"].dtype == jnp.float32 and int(state.count) == 0
    np.testing.assert_array_equal(state.ema["w"], np.full(3, 2.0))
    update = jax.jit(tx.update)
    for _ in range(100):
        target, state = update({"w": jnp.full(3, 3.0, jnp.bfloat16)}, state)
    np.testing.assert_allclose(target["w"], np.full(3, 3 - 0.9995**100), rtol=1e-5)
    np.testing.assert_array_equal(state.ema["w"], target["w"])


def test_slow_copy_may_be_donated_beside_the_parameters():
    params = {"w": jnp.ones(3)}
    state = ema_of_params(0.5).init(params)
    assert state.ema["w"].unsafe_buffer_pointer() != params["w"].unsafe_buffer_pointer()


def test_slow_copy_follows_a_schedule():
    tx = ema_of_params(optim.warmup_cosine(base=0.9, final=1.0, total_steps=4))
    state, expected = tx.init({"w": jnp.zeros(())}), 0.0
    for step in range(4):
        m = 1 - 0.1 * 0.5 * (1 + np.cos(np.pi * step / 4))
        expected = m * expected + (1 - m) * 1.0
        target, state = tx.update({"w": jnp.ones(())}, state)
        np.testing.assert_allclose(target["w"], expected, rtol=1e-6)


def test_schedules_stay_at_their_end():
    assert float(optim.warmup_cosine(base=1.0, total_steps=10, final=0.25)(99)) == 0.25
    assert float(optim.linspace_warmup_cosine(base=1.0, total_steps=10, final=0.25)(99)) == 0.25
    assert [
        float(optim.step_decay(base=1.0, milestones=(3, 5))(step)) for step in (2, 3, 4)
    ] == pytest.approx([1, 0.1, 0.1])


@pytest.mark.parametrize("schedule", ["step_decay", "constant"])
def test_steps_and_constants_are_warmed_up(schedule):
    """lr t / 4 before step 4, then the schedule: MiCE's rate."""
    settings = dict(schedule=schedule, learning_rate=1.0, learning_rate_scaling="none")
    if schedule == "step_decay":
        settings |= dict(milestones_epochs=(3.0,), decay_factor=0.2)
    _, rate = _build(**settings, warmup_steps=4)
    _, plain = _build(**settings)
    for step in range(8):
        expected = min(step / 4, 1) * (0.2 if schedule == "step_decay" and step >= 6 else 1)
        assert float(rate(step)) == pytest.approx(expected, rel=1e-6)
        assert step < 4 or float(rate(step)) == float(plain(step))


def test_errors_name_the_mend():
    for settings, message in (
        ({"name": "lars"}, "have lars_simclr, lars_byol"),
        ({"schedule": "cosine"}, "have warmup_cosine"),
        ({"learning_rate_scaling": "log"}, "have linear, sqrt"),
        ({"warmup_epochs": 9}, "longer than the run"),
        ({"name": "lars_byol", "final_weight_decay": 0.1}, "leave it None"),
    ):
        with pytest.raises(ValueError, match=message):
            _build(**settings)
    for parts in ({}, {"disc": {"paths": ("disc",), "exclude_paths": ("(",)}}):
        with pytest.raises(ConfigError, match="is not a regular expression"):
            _build(exclude_paths=() if parts else ("(",), parts=parts)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optim.decay_mask(exclude_paths="bias"),
        lambda: optim.freeze_until(2, "bias", lambda offset: optax.identity()),
        lambda: _build(exclude_paths="bias"),
        lambda: _build(freeze_paths="bias", freeze_steps=-1),
        lambda: _build(constant_lr_paths="bias"),
    ],
)
def test_a_string_in_place_of_patterns_is_refused(make):
    with pytest.raises(ConfigError, match="='bias'; expected a list, each text"):
        make()


def test_a_part_inherits_patterns_that_match_none_of_its_parameters():
    """SimSiam's predictor keeps its constant rate beside a part of the backbone."""
    params = {"backbone": jnp.ones(2), "predictor": jnp.ones(2), "projector": jnp.ones(2)}
    tx, rate = _build(
        momentum=0.0,
        constant_lr_paths=("predictor",),
        parts={"slow": {"paths": ("backbone",), "learning_rate": 0.01}},
    )
    ones = jax.tree.map(jnp.ones_like, params)
    first, *_, last = [params, *_run(tx, [ones] * 6, params)][-2:]
    moved = jax.tree.map(lambda before, after: float(before[0] - after[0]), first, last)
    assert moved["predictor"] == pytest.approx(0.2, rel=1e-5)
    assert moved["projector"] == pytest.approx(float(rate(5)), rel=1e-4)
    assert moved["backbone"] == pytest.approx(float(rate(5)) / 10, rel=1e-3)


def test_parts_of_an_optimizer_move_by_their_own_settings():
    """A part with the settings of the rest is the plain optimizer; another rate moves it alone."""
    params = {"disc": {"w": jnp.ones((2, 2))}, "gen": {"w": jnp.full((2, 2), 2.0)}}
    grads = jax.tree.map(lambda x: 0.1 * x, params)
    settings = dict(
        name="sgd",
        learning_rate=0.5,
        learning_rate_scaling="none",
        schedule="constant",
        batch_size=4,
        steps_per_epoch=4,
        total_steps=8,
        clip_global_norm=0.3,
    )

    def updates(**more):
        tx, _ = optim.build(**settings, **more)
        return tx.update(grads, tx.init(params), params)[0]

    plain, same = updates(), updates(parts={"disc": {"paths": ("disc",)}})
    jax.tree.map(np.testing.assert_array_equal, plain, same)
    faster = updates(parts={"disc": {"paths": ("disc",), "learning_rate": 1.0}})
    np.testing.assert_allclose(faster["disc"]["w"], 2 * plain["disc"]["w"], rtol=1e-6)
    np.testing.assert_array_equal(faster["gen"]["w"], plain["gen"]["w"])
    with pytest.raises(ValueError, match="no setting 'learning_rat'; did you mean 'learning_rate'"):
        updates(parts={"disc": {"paths": ("disc",), "learning_rat": 1.0}})
    with pytest.raises(ValueError, match="expected paths"):
        updates(parts={"disc": {"learning_rate": 1.0}})
    with pytest.raises(ConfigError, match=r"parts\.disc\.paths='disc'; expected .*\['disc'\]"):
        updates(parts={"disc": {"paths": "disc"}})
