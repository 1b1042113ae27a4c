"""Soft labels, knowledge distillation and CRD: loops over the equations, closed forms, devices,
edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cl_jax.losses import assignments, distillation, nce
from tests.losses.compiled import as_given, compiled
from tests.losses.parity import assert_parity

pytestmark = pytest.mark.usefixtures("x64")

distillation, nce = compiled(as_given(distillation)), compiled(as_given(nce))


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def data(seed=0, b=8, c=5):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(b, c)) * 3,
        rng.normal(size=(b, c)) * 3,
        rng.integers(0, c, b),
        rng.random(b) < 0.5,
    )


def test_soft_labels():
    student, teacher, labels, labelled = data()
    soft = np.mean([-softmax(t / 0.5) @ np.log(softmax(s / 0.5)) for s, t in zip(student, teacher)])
    hard = np.mean([-np.log(softmax(s)[y]) for s, y, on in zip(student, labels, labelled) if on])
    terms = distillation.soft_labels(student, teacher, labels, labelled, temperature=0.5, alpha=0.3)
    np.testing.assert_allclose(terms, [0.3 * soft + 0.7 * hard, soft, hard], rtol=1e-12)
    np.testing.assert_allclose(
        distillation.soft_labels(student, teacher, temperature=0.5), [soft, soft, 0], rtol=1e-12
    )
    hard = np.mean([-np.log(softmax(s)[y]) for s, y in zip(student, labels)])
    np.testing.assert_allclose(assignments.cross_entropy(student, labels), hard, rtol=1e-12)
    everyone = distillation.soft_labels(student, teacher, labels, temperature=0.5, alpha=0.0)
    np.testing.assert_allclose(everyone.loss, hard, rtol=1e-12)


def test_nothing_labelled():
    student, teacher, labels, labelled = data()
    # The label of an unlabelled row is not read, whatever it is.
    labels = np.where(labelled, labels, -1)

    def loss(s):
        return distillation.soft_labels(
            s, teacher, labels, labelled & False, temperature=1.0, alpha=0.4
        ).loss

    value, grad = jax.value_and_grad(loss)(student)
    alone = distillation.soft_labels(student, teacher, temperature=1.0).loss
    np.testing.assert_allclose(value, 0.4 * alone, rtol=1e-12)
    assert np.isfinite(grad).all()


def test_knowledge_distillation():
    student, teacher, _, _ = data()
    kl = np.mean(
        [softmax(t / 4) @ np.log(softmax(t / 4) / softmax(s / 4)) for s, t in zip(student, teacher)]
    )
    loss = distillation.knowledge_distillation(student, teacher, temperature=4.0)
    np.testing.assert_allclose(loss, 16 * kl, rtol=1e-12)
    np.testing.assert_allclose(
        distillation.knowledge_distillation(teacher, teacher, temperature=4.0), 0, atol=1e-15
    )


def test_knows_nothing():
    student, teacher, labels, _ = data()
    soft = distillation.soft_labels(0 * student, teacher, temperature=0.1).loss
    np.testing.assert_allclose(soft, np.log(5), rtol=1e-12)
    np.testing.assert_allclose(
        assignments.cross_entropy(0 * student, labels), np.log(5), rtol=1e-12
    )


def test_gradient():
    student, teacher, labels, labelled = data()
    check_grads(
        lambda s: (
            distillation.soft_labels(s, teacher, labels, labelled, temperature=2.0, alpha=0.5).loss
        ),
        (student,),
        1,
        modes="rev",
    )
    check_grads(
        lambda s: distillation.knowledge_distillation(s, teacher, temperature=2.0),
        (student,),
        1,
        modes="rev",
    )
    for loss in (
        lambda t: distillation.soft_labels(student, t, temperature=2.0).loss,
        lambda t: distillation.knowledge_distillation(student, t, temperature=2.0),
    ):
        np.testing.assert_array_equal(jax.grad(loss)(teacher), 0)


def test_large_logits_are_finite():
    with jax.enable_x64(False):
        student, teacher = (jnp.asarray(x, jnp.float32) * 1000 for x in data()[:2])
        for loss in (
            lambda s: distillation.soft_labels(s, teacher, temperature=0.1).loss,
            lambda s: distillation.knowledge_distillation(s, teacher, temperature=0.1),
        ):
            value, grad = jax.value_and_grad(loss)(student)
            assert np.isfinite(value) and np.isfinite(grad).all()


def crd_data():
    rng = np.random.default_rng(0)
    z_s, z_t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 8, 4)))
    bank_s, bank_t = rng.uniform(-1, 1, (2, 12, 4))
    return z_s, z_t, bank_s, bank_t, rng.integers(0, 12, (8, 6))


def test_crd_gradient_is_each_sides_own():
    z_s, z_t, bank_s, bank_t, indices = crd_data()
    start = nce.init_normalizer(dtype=float)
    knobs = {"temperature": 0.2}
    loss, (of_s, of_t) = distillation.crd(
        z_s, z_t, bank_s, bank_t, indices, (start, start), **knobs
    )
    side_s, alone_s = nce.nce(z_s, bank_t, indices, start, **knobs)
    side_t, alone_t = nce.nce(z_t, bank_s, indices, start, **knobs)
    np.testing.assert_allclose(loss, side_s + side_t, rtol=1e-12)
    assert of_s.log_z == alone_s.log_z and of_t.log_z == alone_t.log_z
    grad = jax.grad(
        lambda z: distillation.crd(z, z_t, bank_s, bank_t, indices, (start, start), **knobs)[0]
    )(z_s)
    alone = jax.grad(lambda z: nce.nce(z, bank_t, indices, start, **knobs)[0])(z_s)
    np.testing.assert_allclose(grad, alone, rtol=1e-12)


def test_embed():
    rng = np.random.default_rng(0)
    x, kernel, bias = rng.normal(size=(3, 5)), rng.normal(size=(5, 4)), rng.normal(size=4)
    y = x @ kernel + bias
    np.testing.assert_allclose(
        distillation.embed(x, kernel, bias),
        y / np.linalg.norm(y, axis=1, keepdims=True),
        rtol=1e-12,
    )
    zero = jax.grad(lambda k: distillation.embed(x, k, 0 * bias).sum())(0 * kernel)
    assert np.isfinite(zero).all()


@pytest.mark.slow
def test_devices():
    def loss(student, teacher, labels, labelled, axis_name):
        return (
            distillation.soft_labels(
                student, teacher, labels, labelled, temperature=0.5, alpha=0.3, axis_name=axis_name
            ).loss
            + 2
            * distillation.knowledge_distillation(
                student, teacher, temperature=4.0, axis_name=axis_name
            )
            + 3 * assignments.cross_entropy(student, labels, axis_name=axis_name)
        )

    # Shards hold different numbers of labels: their means must not be averaged.
    assert_parity(loss, data(), (True,) * 4)


def _parity_crd(z_s, z_t, bank_s, bank_t, indices, *, axis_name):
    start = nce.init_normalizer(dtype=z_s.dtype)
    return distillation.crd(
        z_s, z_t, bank_s, bank_t, indices, (start, start), temperature=0.2, axis_name=axis_name
    )[0]


def test_devices_crd():
    assert_parity(_parity_crd, crd_data(), (True, True, False, False, True))


def test_errors():
    student, teacher, labels, _ = data()
    with pytest.raises(ValueError, match="but labels is None"):
        distillation.soft_labels(student, teacher, temperature=1.0, alpha=0.5)
    with pytest.raises(ValueError, match="labels has shape"):
        distillation.soft_labels(student, teacher, labels[:3], temperature=1.0, alpha=0.5)
    with pytest.raises(ValueError, match="teacher_logits has shape"):
        distillation.knowledge_distillation(student, teacher[:, :2], temperature=1.0)
    with pytest.raises(ValueError, match="temperature is 0"):
        distillation.soft_label_rows(student, teacher, temperature=0)
    with pytest.raises(ValueError, match="'i' is not mapped"):
        distillation.knowledge_distillation(student, teacher, temperature=1.0, axis_name="i")
