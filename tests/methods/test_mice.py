"""What is MiCE's own: clusters from posteriors, prototypes in closed form, a teacher that mirrors
the network alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run
from cl_jax.losses import clusters
from cl_jax.methods import mice
from cl_jax.training import configs, optim
from cl_jax.views import make as recipe
from tests.small import Pixels

RUN = Run(None, 8, 32, 4, 8, {"label": 3})
VIEWS = (recipe({"name": "crop_flip", "crop": "none", "size": 8}),) * 3
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
BATCH = {"image": IMAGES, "id": np.arange(8, dtype=np.int32)}
NETWORK = Pixels()


def build(views=VIEWS, **settings):
    settings = dict(queue_size=12, out_dim=8, momentum=0.9) | settings
    return mice.make(encoder=NETWORK, tx=optax.sgd(0.1), views=views, run=RUN, **settings)


@pytest.mark.parametrize("name", ["mice:cifar10", "mice:cifar100"])
def test_the_published_setting_tests_whole_images_and_warms_up(name):
    config = configs.load(name)
    section = config.views.both.to_dict()
    del section["copies"]
    made = recipe(section)
    mean, std = np.array(made.recipe.mean), np.array(made.recipe.std)
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    clean = np.asarray(made.clean({"image": image}))
    np.testing.assert_allclose(clean * std + mean, image / 255, atol=1e-5)
    _, rate = optim.build(
        **config.optimizer, batch_size=256, steps_per_epoch=10, total_steps=10_000
    )
    found = [float(rate(step)) for step in (0, 50, 100, 4799, 4800, 6400, 8000)]
    np.testing.assert_allclose(found, [0, 0.5, 1, 1, 0.1, 0.01, 0.001], rtol=1e-5)


@pytest.fixture(scope="module")
def stepped():
    method = build()
    first = jax.device_put(jax.jit(method.init)(jax.random.key(0), BATCH), jax.devices()[0])
    state, metrics = jax.jit(method.update)(first, BATCH, jax.random.key(1))
    return method, first, state, metrics


def test_a_step_queues_the_teachers_embeddings_and_sums_them_by_winner(stepped):
    _, first, state, metrics = stepped
    assert int(state.memory.queue.filled) == 8 and state.memory.queue.rows.shape == (12, 3, 8)
    entered = np.asarray(state.memory.queue.rows[:8])
    np.testing.assert_allclose(np.linalg.norm(entered, axis=2), 1, atol=1e-5)
    sums = np.asarray(state.memory.sums)
    winners = np.array(list(itertools.product(range(3), repeat=8)))
    onehot = winners[:, :, None] == np.arange(3)
    every = np.einsum("cbe,bed->ced", onehot, entered)
    # one division of the images among experts gives the sums
    assert np.abs(every - sums).max(axis=(1, 2)).min() < 1e-4
    assert (first.memory.sums == 0).all()
    assert 1 / 3 <= metrics["largest_expert"] <= 1
    assert set(state.target.params) == set(state.params["network"])


def test_prototypes_in_closed_form(stepped):
    method, _, state, _ = stepped
    assert method.refresh(state, None, 0) is state
    after = method.refresh(state, None, 1)
    np.testing.assert_allclose(
        after.params["prototypes"], clusters.expert_prototypes(state.memory.sums), atol=1e-6
    )
    assert (after.memory.sums == 0).all()
    left = build(closed_form=False)
    assert left.refresh(state, None, 1) is state


@pytest.mark.slow
def test_clusters_are_probabilities_and_need_no_label(stepped):
    method, _, state, _ = stepped
    assert "label" not in method.needs
    found = jax.jit(method.encode)(state, BATCH)
    for name in ("posterior", "gate"):
        assert found[name].shape == (8, 3)
        np.testing.assert_allclose(jnp.sum(found[name], axis=1), 1, atol=1e-5)
    again = method.encode(state.replace(step=state.step + 1), BATCH)["posterior"]
    np.testing.assert_allclose(found["posterior"], again, atol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match=r"the config has 2\. Use copies=3"):
        build(views=VIEWS[:2])
    with pytest.raises(ValueError, match="out_dim=1; expected at least 2"):
        build(out_dim=1)
    with pytest.raises(ValueError, match="queue_size=33"):
        build(queue_size=33)
