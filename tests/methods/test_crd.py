"""What is CRD's own: negatives of other classes, banks, gradients that stay apart, a frozen
teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run, Stage
from cl_jax.methods import crd, supervised
from cl_jax.views import make as view
from tests.small import Pixels, started, updates

LABELS = np.arange(32) % 3
RUN = Run(None, 8, 32, 4, 8, {"label": 3}, labels=lambda field: LABELS)
VIEW = view({"name": "crop_flip", "crop": "none", "size": 8, "test_crop": 1.0})
IDS = np.array([3, 30, 4, 11, 12, 0, 31, 7], np.int32)
BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8),
    "id": IDS,
    "label": LABELS[IDS].astype(np.int32),
}
KEY = jax.random.key(1)


NETWORK, STUDENT = Pixels(width=8), Pixels(width=4)


@pytest.fixture(scope="module")
def teacher():
    method = supervised.make(encoder=NETWORK, tx=optax.sgd(0.1), views=(VIEW,), run=RUN)
    return Stage(method, started(method, BATCH))


def build(teacher, **settings):
    settings = dict(out_dim=6, num_negatives=9) | settings
    method = crd.make(
        encoder=STUDENT,
        tx=optax.sgd(0.1),
        views=(VIEW,),
        run=RUN._replace(previous=teacher),
        **settings,
    )
    return method


@pytest.fixture(scope="module")
def trained(teacher):
    method = build(teacher)
    state = jax.jit(method.init)(jax.random.key(2), BATCH)
    after, metrics = updates(method)(state, BATCH, KEY)
    return method, state, after, metrics


def test_supervised_training_starts_at_chance_and_fits_a_batch(teacher):
    method, state = teacher.method, teacher.state
    update = updates(method)
    _, first = update(state, BATCH, KEY)
    for _ in range(40):
        state, last = update(state, BATCH, KEY)
    assert first["chance"] == pytest.approx(np.log(3), rel=1e-6)
    assert last["loss"] < 0.5 * first["loss"]
    with pytest.raises(ValueError, match="not a label of the data"):
        supervised.make(encoder=NETWORK, tx=optax.sgd(0.1), views=(VIEW,), run=RUN, label="place")


def test_negatives_are_of_other_classes_and_keyed_by_id():
    classes = crd.by_class(LABELS, 3)
    labels = jnp.asarray(LABELS)
    draw = jax.jit(
        lambda ids, labels, count, exact: crd.draw_indices(KEY, ids, labels, classes, count, exact),
        static_argnums=(2, 3),
    )
    drawn = np.asarray(draw(jnp.arange(32), labels, 400, True))
    np.testing.assert_array_equal(drawn[:, 0], np.arange(32))
    for i, row in enumerate(drawn):
        assert set(row[1:]) == set(np.flatnonzero(LABELS != LABELS[i]))
    alone = draw(jnp.full(32, 7), jnp.full(32, LABELS[7]), 400, True)
    np.testing.assert_array_equal(alone[0], drawn[7])
    relaxed = np.asarray(draw(jnp.arange(32), labels, 3, False))[:, 0]
    np.testing.assert_array_equal(LABELS[relaxed], LABELS)
    assert (relaxed != np.arange(32)).sum() > 16


def test_the_teacher_stays_and_the_banks_move_at_the_ids_of_the_batch(trained, teacher):
    _, state, after, metrics = trained
    for x, y in zip(jax.tree.leaves(after.target), jax.tree.leaves(state.target)):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(jax.tree.leaves(after.target.params), jax.tree.leaves(teacher.state.params)):
        np.testing.assert_array_equal(x, y)
    others = np.setdiff1d(np.arange(32), IDS)
    for before, moved in zip(state.memory[:2], after.memory[:2]):
        old, new = before.rows, moved.rows
        np.testing.assert_array_equal(old[others], new[others])
        np.testing.assert_allclose(np.linalg.norm(new[IDS], axis=1), 1, atol=1e-5)
    assert after.memory.normalizers[0].batches == 1
    np.testing.assert_allclose(metrics["loss"], metrics["labels"] + 0.8 * metrics["crd"], rtol=1e-5)


def test_the_teacher_s_embedding_learns_and_gives_the_student_no_gradient(teacher):
    """With the student's own term without gradient (its embedding fixed at zero), nothing of the
    teacher's term reaches its network."""
    method = build(teacher, label_weight=0.0)
    state = started(method, BATCH)
    still = jax.tree.map(jnp.zeros_like, state.params["student"])
    state = state.replace(params=state.params | {"student": still})
    after, _ = updates(method)(state, BATCH, KEY)
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), after.params, state.params)
    assert moved["teacher"]["kernel"] > 1e-6
    assert max(jax.tree.leaves(moved["network"])) == 0


def test_without_crd_it_is_knowledge_distillation(teacher):
    method = build(teacher, kd_weight=0.5, crd_weight=0.0)
    state = started(method, BATCH)
    assert state.memory is None and set(state.params) == {"network"}
    _, metrics = updates(method)(state, BATCH, KEY)
    np.testing.assert_allclose(metrics["loss"], metrics["labels"] + 0.5 * metrics["kd"], rtol=1e-5)
    assert "crd" not in metrics


def test_what_is_refused(teacher):
    for given, message in (
        (dict(positive="near"), '"exact" or "class"'),
        (dict(run=RUN), "CRD needs a teacher"),
        (dict(views=(VIEW, VIEW)), "has 2"),
    ):
        settings = dict(
            encoder=NETWORK,
            tx=optax.sgd(0.1),
            views=(VIEW,),
            run=RUN._replace(previous=teacher),
        )
        with pytest.raises(ValueError, match=message):
            crd.make(**(settings | given))
    with pytest.raises(ValueError, match="2 of 4 examples have no label"):
        crd.by_class(np.array([0, -1, 1, -1]), 2)
    with pytest.raises(ValueError, match="all examples are of one class"):
        crd.by_class(np.zeros(4, int), 2)
