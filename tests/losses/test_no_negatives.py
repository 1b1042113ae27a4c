"""BYOL, SimSiam, FastSiam and DINO against loops, closed forms, stop-gradients, edges, and devices
against one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cl_jax.losses import _blocks, no_negatives
from tests.losses.compiled import compiled
from tests.losses.parity import assert_parity

module = compiled(no_negatives)

DINO = {"student_temperature": 0.1, "teacher_temperature": 0.04}


def four(seed=0, rows=8, width=5):
    return np.random.default_rng(seed).normal(size=(4, rows, width))


def crops(seed=0, views=4, seen=2, rows=8, width=6):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(views, rows, width)),
        rng.normal(size=(seen, rows, width)),
        rng.normal(size=width),
    )


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def oracle_fastsiam(p, z):
    views, rows, _ = p.shape
    return -np.mean(
        [
            cosine(p[v, i], sum(z[w, i] for w in range(views) if w != v) / (views - 1))
            for v in range(views)
            for i in range(rows)
        ]
    )


def oracle_dino(student, teacher, centre, student_temperature, teacher_temperature):
    terms = []
    for j, t in enumerate(teacher):
        for v, s in enumerate(student):
            if v == j:
                continue
            for i in range(len(s)):
                target = np.exp((t[i] - centre) / teacher_temperature)
                target /= target.sum()
                logits = s[i] / student_temperature
                terms.append(-(target * (logits - np.log(np.exp(logits).sum()))).sum())
    return np.mean(terms)


def test_equals_loops():
    p_a, p_b, z_a, z_b = four()
    student, teacher, centre = crops()
    with jax.enable_x64(True):
        ours = [
            module.byol(p_a, p_b, z_a, z_b),
            module.simsiam(p_a, p_b, z_a, z_b),
            module.fastsiam(student, student[::-1]),
            module.fastsiam(np.stack([p_a, p_b]), np.stack([z_a, z_b])),
            module.dino(student, teacher, centre, **DINO),
            module.dino(student, teacher[:1], centre, **DINO),
        ]
    expected = [
        np.mean([4 - 2 * cosine(p_a[i], z_b[i]) - 2 * cosine(p_b[i], z_a[i]) for i in range(8)]),
        -np.mean([cosine(p_a[i], z_b[i]) + cosine(p_b[i], z_a[i]) for i in range(8)]) / 2,
        oracle_fastsiam(student, student[::-1]),
        oracle_fastsiam(np.stack([p_a, p_b]), np.stack([z_a, z_b])),
        oracle_dino(student, teacher, centre, **DINO),
        oracle_dino(student, teacher[:1], centre, **DINO),
    ]
    np.testing.assert_allclose(ours, expected, atol=1e-12)
    np.testing.assert_allclose(ours[3], ours[1], atol=1e-12)  # of two views it is SimSiam


def test_range_and_invariance():
    p_a, p_b, z_a, z_b = four()
    np.testing.assert_allclose(module.byol(p_a, p_b, 3 * p_b, 0.1 * p_a), 0, atol=1e-6)
    np.testing.assert_allclose(module.byol(p_a, p_b, -p_b, -p_a), 8, rtol=1e-6)
    np.testing.assert_allclose(module.simsiam(p_a, p_b, 3 * p_b, 0.1 * p_a), -1, rtol=1e-6)
    np.testing.assert_allclose(
        module.byol(p_b, p_a, z_b, z_a), module.byol(p_a, p_b, z_a, z_b), rtol=1e-6
    )


def test_dino_knows_nothing_at_log_k_and_ignores_shifts():
    student, teacher, centre = crops()
    np.testing.assert_allclose(
        module.dino(0 * student, teacher, centre, **DINO), np.log(6), rtol=1e-6
    )
    with jax.enable_x64(True):
        loss = module.dino(student, teacher, centre, **DINO)
        np.testing.assert_allclose(
            module.dino(student + 3, teacher + centre, 2 * centre, **DINO), loss, atol=1e-12
        )
        order = np.array([1, 0, 3, 2])
        np.testing.assert_allclose(
            module.dino(student[order], teacher[::-1], centre, **DINO), loss, atol=1e-12
        )


def test_gradients():
    p_a, p_b, z_a, z_b = four(rows=3)
    student, teacher, centre = crops(views=3, rows=2, width=4)
    with jax.enable_x64(True):
        for loss in (module.byol, module.simsiam):
            check_grads(
                lambda p, q, loss=loss: loss(p, q, z_a, z_b), (p_a, p_b), order=1, modes="rev"
            )
        check_grads(lambda p: module.fastsiam(p, student), (student + 1,), order=1, modes="rev")
        check_grads(
            lambda s: module.dino(s, teacher, centre, **DINO), (student,), order=1, modes="rev"
        )


@pytest.mark.parametrize("loss", [module.byol, module.simsiam])
def test_no_gradient_to_targets(loss):
    grads = jax.grad(loss, argnums=(0, 1, 2, 3))(*map(jnp.asarray, four()))
    assert np.any(grads[0]) and np.any(grads[1])
    assert not np.any(grads[2]) and not np.any(grads[3])


def test_no_gradient_to_the_mean_of_the_other_views():
    p, z = jnp.asarray(four()[:3]), jnp.asarray(four(1)[:3])
    grads = jax.grad(module.fastsiam, argnums=(0, 1))(p, z)
    assert np.all(np.any(grads[0], axis=(1, 2))) and not np.any(grads[1])


def test_no_gradient_to_teacher_and_centre():
    grads = jax.grad(partial(module.dino, **DINO), argnums=(0, 1, 2))(*map(jnp.asarray, crops()))
    assert np.any(grads[0]) and not np.any(grads[1]) and not np.any(grads[2])


@pytest.mark.parametrize("loss, zero", [(module.byol, 2), (module.simsiam, 0)])
def test_zero_rows_are_finite_and_know_nothing(loss, zero):
    z = jnp.asarray(four()[0], jnp.float32)
    value, grads = jax.value_and_grad(lambda p: loss(p, p, z, z))(jnp.zeros_like(z))
    assert value == zero and np.isfinite(grads).all()
    value, grads = jax.value_and_grad(lambda p: loss(p, p, 0 * z, 0 * z))(z)
    assert np.isclose(value, zero) and np.isfinite(grads).all()


def test_dino_is_finite_at_sharp_temperatures_and_large_logits():
    student, teacher, centre = (jnp.asarray(50 * x, jnp.float32) for x in crops())
    value, grads = jax.value_and_grad(module.dino)(
        student, teacher, centre, student_temperature=0.01, teacher_temperature=0.01
    )
    assert np.isfinite(value) and np.isfinite(grads).all()


def test_bfloat16_is_summed_in_float32():
    half = [jnp.asarray(x, jnp.bfloat16) for x in (*four(), *crops(seen=4))]
    full = [x.astype(jnp.float32) for x in half]
    for loss, at in (
        (module.byol, slice(0, 4)),
        (module.simsiam, slice(0, 4)),
        (module.fastsiam, slice(4, 6)),
        (partial(module.dino, **DINO), slice(4, 7)),
    ):
        value = loss(*half[at])
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, loss(*full[at]), rtol=1e-6)


def test_parity_over_devices():
    def loss(*four, axis_name):
        return module.byol(*four, axis_name=axis_name) + 2 * module.simsiam(
            *four, axis_name=axis_name
        )

    assert_parity(loss, four(), [True] * 4)


def test_fastsiam_parity_over_devices():
    def loss(p, z, axis_name):  # batch first: that axis is split
        return module.fastsiam(jnp.moveaxis(p, 0, 1), jnp.moveaxis(z, 0, 1), axis_name=axis_name)

    p, z = (np.moveaxis(four(seed)[:3], 0, 1) for seed in range(2))
    assert_parity(loss, (p, z), [True, True])


@pytest.mark.parametrize("block", [1 << 17, pytest.param(64, marks=pytest.mark.slow)])
def test_dino_parity_over_devices(block, monkeypatch):
    monkeypatch.setattr(_blocks, "BLOCK", block)
    student, teacher, centre = crops(rows=16 if block == 64 else 8)

    def loss(student, teacher, centre, axis_name):  # batch first: that axis is split
        student, teacher = (jnp.moveaxis(x, 0, 1) for x in (student, teacher))
        return module.dino(student, teacher, centre, **DINO, axis_name=axis_name)

    assert_parity(
        loss, (np.moveaxis(student, 0, 1), np.moveaxis(teacher, 0, 1), centre), [True, True, False]
    )


def test_teacher_temperature_ramp_includes_both_ends():
    ramp = module.teacher_temperature(jnp.arange(6), start=0.04, final=0.07, warmup_epochs=4)
    np.testing.assert_allclose(ramp, [0.04, 0.05, 0.06, 0.07, 0.07, 0.07], rtol=1e-6)
    np.testing.assert_allclose(
        module.teacher_temperature(0, start=0.04, final=0.07, warmup_epochs=0), 0.07
    )
    np.testing.assert_allclose(
        module.teacher_temperature(jnp.arange(2), start=0.04, final=0.07, warmup_epochs=1),
        [0.04, 0.07],
        rtol=1e-6,
    )


def test_errors():
    p_a, p_b, z_a, z_b = four()
    student, teacher, centre = crops()
    with pytest.raises(ValueError, match=r"z_b has shape \(7, 5\).*b = 8 as in p_a, got 7"):
        module.byol(p_a, p_b, z_a, z_b[:7])
    with pytest.raises(ValueError, match=r"p_a has dtype int.*expected floating-point"):
        module.simsiam(p_a.astype(int), p_b, z_a, z_b)
    with pytest.raises(ValueError, match="axis_name='devices' is not mapped here"):
        module.byol(p_a, p_b, z_a, z_b, axis_name="devices")
    with pytest.raises(
        ValueError, match=r"p has shape \(1, 8, 6\): 1 view; each predicts the others"
    ):
        module.fastsiam(student[:1], student[:1])
    with pytest.raises(ValueError, match="teacher_temperature is 0; expected a number above 0"):
        module.dino(student, teacher, centre, student_temperature=0.1, teacher_temperature=0)
    with pytest.raises(ValueError, match=r"centre has shape \(1, 6\), 2 axes; expected \[k\]"):
        module.dino(student, teacher, centre[None], **DINO)
    with pytest.raises(ValueError, match="There are 1 views; expected at least 2"):
        module.dino(student[:1], teacher[:1], centre, **DINO)
    with pytest.raises(ValueError, match=r"views \[0, 1, 2\]; expected 3 numbers from 0 to 1"):
        module.dino(student[:2], student[:3], centre, **DINO)


def test_dino_takes_a_list_of_views():
    student, teacher, centre = crops()
    np.testing.assert_allclose(
        module.dino(list(student), list(teacher), centre, **DINO),
        module.dino(student, teacher, centre, **DINO),
        rtol=1e-6,
    )
    with pytest.raises(ValueError, match=r"student\[1\] has shape \(7, 6\)"):
        no_negatives.dino([student[0], student[1][:7]], teacher, centre, **DINO)
