"""SimCLR v2's stages: pre-training with and without memory, and distillation from a teacher."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import losses
from cl_jax.core.method import Run, Stage
from cl_jax.methods import crd, distill, finetune, simclr_v2
from cl_jax.training import configs, optim
from cl_jax.views import draw
from cl_jax.views import make as recipe
from tests.small import started

VIEW = recipe({"name": "crop_flip", "crop": "none", "size": 4, "test_crop": 1.0})
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)
BATCH = {
    "image": IMAGES,
    "id": np.arange(8, dtype=np.int32),
    "label": np.arange(8, dtype=np.int32) % 3,
}
RUN = Run(None, 8, 32, 4, 8, {"label": 3})


class Linear(nn.Module):
    dtype: None = None

    @nn.compact
    def __call__(self, x, train):
        return {"h": nn.Dense(6)(x.reshape(len(x), -1))}


def one_step(method):
    state = jax.jit(method.init)(jax.random.key(0), BATCH)
    return state, *jax.jit(method.update)(state, BATCH, jax.random.key(1))


def pretrained(**changes):
    return simclr_v2.make(
        encoder=Linear(), tx=optax.sgd(0.0), views=(VIEW,) * 2, run=RUN, out_dim=4, **changes
    )


def test_the_published_fine_tuning_does_not_rescale_the_classifier():
    """From zeros, LARS would make its steps a thousandth of what they are."""
    stage = configs.load("simclr_v2:imagenet2012").stages.finetune
    tx, rate = optim.build(
        **stage.optimizer, batch_size=stage.batch_size, steps_per_epoch=4, total_steps=400
    )
    params = {"classifier": {"kernel": jnp.zeros((3, 2))}, "pretrained": {"w": jnp.ones((3, 2))}}
    state, update = tx.init(params), jax.jit(tx.update)
    grads = jax.tree.map(jnp.ones_like, params)
    for _ in range(2):
        moves, state = update(grads, state, params)
        params = optax.apply_updates(params, moves)
    expected = -(1.9 * float(rate(0)) + float(rate(1)))  # momentum 0.9
    np.testing.assert_allclose(params["classifier"]["kernel"], expected, rtol=1e-5)
    assert jnp.abs(params["pretrained"]["w"] - 1).max() < 1e-3


@pytest.mark.slow
def test_the_released_code_adds_the_two_directions():
    _, _, twice = one_step(pretrained())
    _, _, once = one_step(pretrained(sum_directions=False))
    np.testing.assert_allclose(twice["loss"], 2 * once["loss"], rtol=1e-5)
    np.testing.assert_allclose(twice["chance"], 2 * np.log(15), rtol=1e-6)


def test_keys_of_both_views_enter_the_queue():
    method = pretrained(queue_size=32, momentum=0.5)
    first = started(method, BATCH)
    after, metrics = jax.jit(method.update)(first, BATCH, jax.random.key(1))
    changed = jnp.any(first.memory.rows != after.memory.rows, axis=1)
    assert int(changed.sum()) == 16 and method.negatives == 32 + 7
    np.testing.assert_allclose(jnp.linalg.norm(after.memory.rows[changed], axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(metrics["chance"], 2 * np.log(40), rtol=1e-6)


class Teacher:
    """What distillation reads of a finished stage."""

    def __init__(self, network):
        self.network = network
        x = jnp.zeros((1, 4, 4, 3))
        self.params = network.init(jax.random.key(5), x, True)["params"]

    def evaluated(self, state):
        return self.params, {}

    def features(self, params, stats, images, train):
        return self.network.apply({"params": params}, images, train), {}


def test_the_student_learns_the_teachers_soft_labels_on_its_own_view():
    method = distill.make(
        encoder=Linear(),
        tx=optax.sgd(0.0),
        views=(VIEW,),
        run=RUN._replace(previous=Stage(Teacher(distill.Student(Linear(), 3)), None)),
    )
    state, _, metrics = one_step(method)
    network = distill.Student(Linear(), 3)

    @jax.jit
    def expected(state):
        (view,) = draw((VIEW,), BATCH, jax.random.key(1))
        student = network.apply({"params": state.params}, view, True)["logits"]
        taught = network.apply({"params": state.target.params}, view, True)["logits"]
        agree = (student.argmax(1) == taught.argmax(1)).mean()
        return losses.soft_labels(student, taught, temperature=1.0).loss, agree

    loss, agree = expected(state)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["agreement"], agree, rtol=1e-6)


def test_the_accuracy_of_training_is_of_the_labelled_rows_of_all_devices():
    logits, labels = np.eye(3, dtype=np.float32)[[[0, 1], [2, 2]]], np.array([[0, -1], [2, 1]])
    of_each = jax.vmap(lambda x, y: distill.accuracy(x, y, "i"), axis_name="i")(logits, labels)
    np.testing.assert_allclose(of_each, 2 / 3)
    assert distill.accuracy(logits[0], np.array([-1, -1]), None) == 0


@pytest.mark.parametrize("make", [distill.make, finetune.make], ids=["distill", "finetune"])
def test_a_classifier_of_data_without_labels_is_refused(make):
    run = RUN._replace(sizes={"place": 9}, previous=Stage(None, None))
    with pytest.raises(ValueError, match=r"which the data do not have; their labels: place\. Give"):
        make(encoder=Linear(), tx=optax.sgd(0.0), views=(VIEW,), run=run)


@pytest.mark.parametrize("stage", [distill, finetune, crd], ids=["distill", "finetune", "crd"])
def test_a_stage_after_one_without_features_is_refused(stage):
    before = dataclasses.replace(pretrained(), features=None)
    run = RUN._replace(previous=Stage(before, None), labels=BATCH.get)
    with pytest.raises(ValueError, match="features of the previous stage's method, which has none"):
        stage.make(encoder=Linear(), tx=optax.sgd(0.0), views=(VIEW,), run=run)


def test_distillation_without_a_teacher_is_refused():
    with pytest.raises(ValueError, match="distillation needs a teacher"):
        distill.make(encoder=Linear(), tx=optax.sgd(0.0), views=(VIEW,), run=RUN)
    with pytest.raises(ValueError, match="SimCLR contrasts two views; the config has 1"):
        simclr_v2.make(encoder=Linear(), tx=optax.sgd(0.0), views=(VIEW,), run=RUN)
    with pytest.raises(ValueError, match="queue_size=65 is more than both views"):
        pretrained(queue_size=65)
