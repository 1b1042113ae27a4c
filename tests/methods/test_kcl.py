"""What is KCL's own: how many positives a query has, and labels that move through the queue."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run
from cl_jax.memory import queue as queues
from cl_jax.methods import kcl
from cl_jax.views import make as recipe
from tests.small import Pixels

RUN = Run(None, 8, 32, 4, 8, {"label": 2})
VIEWS = (recipe({"name": "crop_flip", "crop": "none", "size": 8}),) * 2
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
LABELS = np.array([0, 0, 0, 0, 0, 1, 1, -1], np.int32)
BATCH = {"image": IMAGES, "label": LABELS, "id": np.arange(8, dtype=np.int32)}
NETWORK = Pixels()


def build(**settings):
    settings = dict(num_positives=3, queue_size=12, out_dim=8, momentum=0.9) | settings
    return kcl.make(encoder=NETWORK, tx=optax.sgd(0.1), views=VIEWS, run=RUN, **settings)


@pytest.fixture(scope="module")
def two_steps():
    method = build()
    update = jax.jit(method.update)
    first = jax.device_put(jax.jit(method.init)(jax.random.key(0), BATCH), jax.devices()[0])
    one, before = update(first, BATCH, jax.random.key(1))
    two, after = update(one, BATCH, jax.random.key(2))
    return first, one, two, before, after


def test_labels_enter_the_queue_with_their_keys(two_steps):
    first, one, two, *_ = two_steps
    assert (np.asarray(first.memory.rows["label"]) == -1).all()
    np.testing.assert_array_equal(one.memory.rows["label"][:8], LABELS)
    np.testing.assert_array_equal(
        two.memory.rows["label"], np.r_[LABELS[4:], LABELS[4:], LABELS[:4]]
    )
    assert int(one.memory.filled) == 8 and int(two.memory.pointer) == 4


def test_a_query_has_as_many_positives_in_a_frequent_class_as_in_a_rare_one(two_steps):
    """Three of the five keys of class 0, the two that there are of class 1, none without a
    label."""
    *_, before, after = two_steps
    assert before["positives"] == 1
    np.testing.assert_allclose(after["positives"], 1 + (5 * 3 + 2 * 2) / 8)


def test_the_arms_of_the_study_are_counts_of_positives(two_steps, monkeypatch):
    """With none the loss is MoCo's."""
    _, one, *_ = two_steps
    monkeypatch.setattr(kcl, "from_loss", lambda **given: given)
    rows = np.random.default_rng(0).normal(size=(2, 8, 8)).astype(np.float32)
    q, k = rows / np.linalg.norm(rows, axis=2, keepdims=True)

    @jax.jit
    def found(memory):
        losses = [build(num_positives=count)["loss"] for count in (0, None)]
        key = jax.random.key(2)
        return [loss({"q": q, "k": k}, None, memory, BATCH, key) for loss in losses]

    (value, none), (other, every) = found(one.memory)
    assert none.metrics["positives"] == 1
    np.testing.assert_allclose(every.metrics["positives"], 1 + (5 * 5 + 2 * 2) / 8)
    logits = np.c_[(q * k).sum(1), q @ one.memory.rows["key"].T] / 0.07
    moco = np.mean(np.log(np.exp(logits).sum(1)) - logits[:, 0])
    np.testing.assert_allclose(value, moco, rtol=1e-5)
    assert other != value


@pytest.mark.parametrize("summation", ["outside", "inside"])
def test_chance_is_the_loss_of_equal_similarities(summation, monkeypatch):
    monkeypatch.setattr(kcl, "from_loss", lambda **given: given)
    loss = build(summation=summation, num_positives=2)["loss"]
    labels = jnp.asarray([0, 0, 0, 0, 0, 1, -1, -1, 2, 2, 2, 2])
    rows = {"key": jnp.tile(jnp.eye(8)[:1], (12, 1)), "label": labels}
    memory = queues.init(jax.random.key(0), 12, 8)._replace(rows=rows)
    outputs = {"q": rows["key"][:8], "k": rows["key"][:8]}
    value, aux = jax.jit(loss)(outputs, None, memory, BATCH, jax.random.key(1))
    positives = 1 + np.array([2, 2, 2, 2, 2, 1, 1, 0])
    np.testing.assert_allclose(aux.metrics["positives"], positives.mean(), rtol=1e-6)
    np.testing.assert_allclose(value, aux.metrics["chance"], rtol=1e-5)
    less = np.log(positives).mean() if summation == "inside" else 0.0
    np.testing.assert_allclose(value, np.log(13) - less, rtol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="reads the label 'kind', which the data lack"):
        build(label="kind")
    with pytest.raises(ValueError, match="has 1 views"):
        kcl.make(encoder=NETWORK, tx=optax.sgd(0.1), views=VIEWS[:1], run=RUN)
    with pytest.raises(ValueError, match="queue_size=33"):
        build(queue_size=33)
