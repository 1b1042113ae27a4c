"""What is DeepCluster v2's own: the memory of embeddings, clusters of crop 1, 2, 1, ..., prototypes
that do not train."""

import dataclasses

import jax
import numpy as np
import pytest

from cl_jax.core.method import Run
from cl_jax.methods import deepcluster_v2
from cl_jax.training import optim
from cl_jax.training.steps import refreshed
from cl_jax.views import make as recipe
from tests.small import Pixels, updates

RUN = Run(None, 8, 32, 4, 8, {"label": 2})
VIEWS = (recipe({"name": "crop_flip", "crop": "none", "size": 8, "test_crop": 1.0}),) * 3
IMAGES = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), np.uint8)
BATCH = {"image": IMAGES[3:11], "id": np.arange(3, 11, dtype=np.int32)}
COUNTS = (4, 5, 5)


def build(**settings):
    settings = {"num_prototypes": COUNTS, "hidden_dim": 16, "out_dim": 8} | settings
    return deepcluster_v2.make(
        encoder=Pixels(),
        tx=optim.sgd(0.1),
        views=VIEWS,
        run=RUN,
        **settings,
    )


@pytest.fixture(scope="module")
def trained():
    """(method, State after the first E-step, after a step more, its metrics, compiled update)."""
    method = build()
    start = jax.device_put(jax.jit(method.init)(jax.random.key(0), BATCH), jax.devices()[0])
    everything = {"image": IMAGES, "id": np.arange(32, dtype=np.int32)}
    state = refreshed(method.refresh, start, lambda f: np.asarray(jax.jit(f)(start, everything)), 0)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), start
    )
    update = updates(method)
    after, metrics = update(state, BATCH, jax.random.key(1))
    return method, state, after, metrics, update


def _are_clusters_of(memory, embeddings):
    for h, (count, rows, assignment) in enumerate(
        zip(COUNTS, memory.prototypes, np.asarray(memory.assignments.rows).T)
    ):
        crops = np.asarray(embeddings)[:, h % 2]
        np.testing.assert_array_equal(np.argmax(crops @ np.asarray(rows).T, axis=1), assignment)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
        assert rows.shape == (count, 8)


def test_first_e_step(trained):
    _, state, *_ = trained
    np.testing.assert_allclose(np.linalg.norm(state.memory.embeddings.rows, axis=2), 1, atol=1e-5)
    embeddings = state.memory.embeddings.rows
    assert np.any(embeddings[:, 0] != embeddings[:, 1])
    _are_clusters_of(state.memory, embeddings)


def test_a_step_remembers_what_it_saw_and_leaves_the_prototypes(trained):
    _, state, after, metrics, _ = trained
    np.testing.assert_allclose(metrics["chance"], np.mean(np.log(COUNTS)), rtol=1e-6)
    new, old = after.memory.embeddings.rows, state.memory.embeddings.rows
    changed = np.any(np.asarray(new) != old, axis=(1, 2))
    np.testing.assert_array_equal(np.flatnonzero(changed), BATCH["id"])
    np.testing.assert_allclose(np.linalg.norm(new, axis=2), 1, atol=1e-5)
    kept = (after.memory._replace(embeddings=0), state.memory._replace(embeddings=0))
    jax.tree.map(np.testing.assert_array_equal, *kept)


def test_later_e_steps_read_the_memory_alone(trained):
    method, _, after, _, update = trained
    later = refreshed(
        method.refresh, after, lambda f: pytest.fail("no pass over the data is wanted"), 1
    )
    _are_clusters_of(later.memory, after.memory.embeddings.rows)
    update(later, BATCH, jax.random.key(2))
    assert update._cache_size() == 1


def test_labels_are_those_of_the_ids(trained):
    _, state, _, metrics, update = trained

    def loss_with(ids):
        rows = state.memory.assignments.rows
        assignments = dataclasses.replace(
            state.memory.assignments, rows=rows.at[ids].set((rows[ids] + 1) % 4)
        )
        moved = state.replace(memory=state.memory._replace(assignments=assignments))
        return update(moved, BATCH, jax.random.key(1))[1]["loss"]

    assert loss_with(np.arange(11, 32)) == metrics["loss"]
    assert loss_with(np.arange(3, 11)) != metrics["loss"]


def test_errors():
    with pytest.raises(ValueError, match=r"num_prototypes=\(4, 33\).*at most the 32 examples"):
        build(num_prototypes=(4, 33))
    with pytest.raises(ValueError, match="got 3 views and num_assigned=4"):
        build(num_assigned=4)
