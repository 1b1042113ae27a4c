"""SwAV: prototypes stay unit rows, and codes wait for a queue that is full."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run
from cl_jax.methods import swav
from cl_jax.views import make as recipe
from tests.small import Pixels

RUN = Run(None, 8, 32, 4, 8, {"label": 8})
VIEW = recipe({"name": "crop_flip", "crop": "none", "size": 8, "test_crop": 1.0})
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
BATCH = {"image": IMAGES, "id": np.arange(8, dtype=np.int32)}
SETTINGS = dict(
    encoder=Pixels(),
    tx=optax.sgd(0.1),
    views=(VIEW,) * 2,
    run=RUN,
    num_prototypes=4,
    hidden_dim=8,
    out_dim=8,
)


def test_queue_is_kept_from_its_epoch_on_and_prototypes_are_unit_at_the_forward():
    method = swav.make(**SETTINGS, queue_size=16, queue_start_epochs=0.25)
    state = jax.jit(method.init)(jax.random.key(0), BATCH)
    update = jax.jit(method.update)
    filled = []
    for step in range(3):
        state, metrics = update(state, BATCH, jax.random.key(step))
        rows = jnp.linalg.norm(jax.tree.leaves(state.memory["queue"])[0], axis=-1)
        filled.append(int((rows > 0).sum()))
        assert 0.25 <= metrics["code_confidence"] <= 1
    assert filled == [0, 16, 32]  # both assigned views, from step 1 on: a quarter of an epoch of 4
    assert float(metrics["chance"]) == pytest.approx(np.log(4))
    projected = swav.prototypes.project(state.params)
    kernel = projected["scorer"][swav.prototypes.NAME]
    np.testing.assert_allclose(jnp.linalg.norm(kernel, axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"views": (VIEW,)}, "SwAV needs two views or more"),
        ({"num_assigned": 3}, "got 2 views and num_assigned=3"),
        ({"queue_size": 64}, "queue_size=64 is more than the 32 examples"),
        ({"queue_size": 12}, "not a multiple of the batch of 8; use 8"),
    ],
)
def test_settings_that_have_no_run_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        swav.make(**SETTINGS | changes)
