"""What is PCL's own: the switch after the warm-up, the E-step's numbers, prototypes looked up by
id."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run
from cl_jax.methods import pcl
from cl_jax.training.steps import refreshed
from cl_jax.views import make as recipe
from tests.small import Pixels, started

RUN = Run(None, 8, 32, 4, 8, {"label": 2})
VIEWS = (recipe({"name": "crop_flip", "crop": "none", "size": 8}),) * 2
IMAGES = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), np.uint8)
BATCH = {"image": IMAGES[3:11], "id": np.arange(3, 11, dtype=np.int32)}
NETWORK = Pixels()
COUNTS = (12, 16)


def build(**settings):
    settings = {
        "num_prototypes": COUNTS,
        "num_negative_prototypes": 3,
        "warmup_epochs": 1,
        "queue_size": 20,
        "out_dim": 8,
        "head": "linear",
        "restarts": 2,
        "momentum": 0.9,
    } | settings
    return pcl.make(encoder=NETWORK, tx=optax.sgd(0.1), views=VIEWS, run=RUN, **settings)


@pytest.fixture(scope="module")
def trained():
    """(method, compiled update, State before, State after the E-step of epoch 1, its features)."""
    method = build()
    update = jax.jit(method.update)
    start = jax.device_put(jax.jit(method.init)(jax.random.key(0), BATCH), jax.devices()[0])
    state, metrics = update(start, BATCH, jax.random.key(1))
    assert metrics["loss_proto"] == 0 and metrics["loss"] == metrics["loss_instance"]
    found = {}

    def encode_all(f):
        found["rows"] = np.asarray(jax.jit(f)(state, {"image": IMAGES}))
        return found["rows"]

    return method, update, state, refreshed(method.refresh, state, encode_all, 1), found["rows"]


@pytest.mark.slow
def test_warm_up_leaves_the_state_alone(trained):
    method, _, state, *_ = trained
    assert method.refresh(state, lambda f: pytest.fail("no features are wanted"), 0) is state


@pytest.mark.slow
def test_e_step(trained):
    _, _, state, after, rows = trained
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert after.memory.active == 1
    for count, found in zip(COUNTS, after.memory.clusterings):
        assignment = np.asarray(found.assignment.rows)
        means = np.stack([rows[assignment == c].mean(0) for c in range(count)])
        np.testing.assert_allclose(
            found.prototypes.rows, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-4
        )
        np.testing.assert_allclose(found.concentration.mean(), 0.2, rtol=1e-5)


@pytest.mark.slow
def test_the_switch_needs_no_second_program(trained):
    _, update, _, after, _ = trained
    _, metrics = update(after, BATCH, jax.random.key(2))
    assert metrics["loss_proto"] > 0
    np.testing.assert_allclose(
        metrics["loss"], metrics["loss_instance"] + metrics["loss_proto"], rtol=1e-6
    )
    assert update._cache_size() == 1


def test_prototypes_are_those_of_the_ids():
    """Clusters of examples that are not in the batch change nothing but what may be drawn as a
    negative; before the first E-step there is no such loss."""
    method = build(num_negative_prototypes=0)
    update = jax.jit(method.update)
    state = started(method, BATCH)
    rng, clusterings = np.random.default_rng(0), []
    for found in state.memory.clusterings:
        rows = rng.integers(0, 12, 32).astype(found.assignment.rows.dtype)
        assignment = dataclasses.replace(found.assignment, rows=jnp.asarray(rows))
        spread = jnp.full_like(found.concentration, 0.2)
        clusterings.append(found._replace(assignment=assignment, concentration=spread))
    state = state.replace(memory=state.memory._replace(clusterings=tuple(clusterings)))
    _, metrics = update(state, BATCH, jax.random.key(1))
    assert metrics["loss_proto"] == 0 and metrics["loss"] == metrics["loss_instance"]
    active = jnp.ones_like(state.memory.active)
    after = state.replace(memory=state.memory._replace(active=active))

    def loss_with(ids):
        def edit(found):
            old = found.assignment.rows
            rows = old.at[ids].set((old[ids] + 1) % 12)
            return found._replace(assignment=dataclasses.replace(found.assignment, rows=rows))

        memory = after.memory._replace(clusterings=tuple(map(edit, after.memory.clusterings)))
        return update(after.replace(memory=memory), BATCH, jax.random.key(2))[1]["loss_proto"]

    plain = update(after, BATCH, jax.random.key(2))[1]["loss_proto"]
    assert loss_with(np.arange(11, 32)) == plain
    assert loss_with(np.arange(3, 11)) != plain


def test_errors():
    with pytest.raises(ValueError, match="12 clusters less a batch of 8 leave 4"):
        build(num_negative_prototypes=5)
    with pytest.raises(ValueError, match="more clusters than the data set has examples, 32"):
        build(num_prototypes=(12, 33))
    with pytest.raises(ValueError, match="queue_size=33"):
        build(queue_size=33)
