"""InfoMin: the generator ascends what the networks descend."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run
from cl_jax.encoders.resnet import ResNet
from cl_jax.methods import infomin
from cl_jax.training import configs
from cl_jax.views import make as recipe

RUN = Run(None, 8, 32, 4, 8, {"label": 3})
VIEW = recipe({"name": "crop_flip", "crop": "none", "size": 8, "test_crop": 1.0})
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
BATCH = {
    "image": IMAGES,
    "id": np.arange(8, dtype=np.int32),
    "label": np.arange(8, dtype=np.int32) % 3,
}
NETWORK = ResNet(blocks=(1,), width=0.125, stem="cifar", for_cpu=False)
SHARED = dict(encoder=NETWORK, run=RUN, views=(VIEW,), out_dim=4, temperature=0.2)
KEY = jax.random.key(1)


def moved(method, first):
    """(gradient of the step, metrics): plain SGD of rate 1 moves by it."""
    after, metrics = jax.jit(method.update)(first, BATCH, KEY)
    return jax.tree.map(lambda a, b: a - b, first.params, after.params), metrics


@pytest.mark.slow
def test_generator_ascends_the_contrast_and_descends_the_labels():
    method = infomin.make(tx=optax.sgd(1.0), labelled=1.0, label_weight=0.5, **SHARED)
    first = jax.jit(method.init)(jax.random.key(0), BATCH)
    step, metrics = moved(method, first)
    assert metrics["labelled"] == 1
    np.testing.assert_allclose(
        metrics["mutual_information"], np.log(8) - metrics["contrast"], rtol=1e-5
    )
    np.testing.assert_allclose(
        metrics["loss"], metrics["contrast"] + 2 * 0.5 * metrics["classes"], rtol=1e-5
    )
    # A small step of the generator alone against its gradient raises the contrast.
    alone = infomin.make(tx=optax.sgd(1.0), labelled=0.0, **SHARED)
    state = jax.jit(alone.init)(jax.random.key(0), BATCH)
    update = jax.jit(alone.update)
    direction, before = moved(alone, state)
    size = optax.global_norm(direction["generator"])
    assert size > 0

    def contrast(distance):
        params = dict(state.params) | {
            "generator": jax.tree.map(
                lambda p, g: p - distance * g / size,
                state.params["generator"],
                direction["generator"],
            )
        }
        return update(state.replace(params=params), BATCH, KEY)[1]["contrast"]

    slope = (contrast(0.01) - contrast(-0.01)) / 0.02
    np.testing.assert_allclose(slope, size, rtol=0.1)  # up, and as steeply as the gradient says
    classes = optax.global_norm(step["classes_first"])
    assert classes > 0 and before["contrast"] > 0


def test_labelled_examples_are_the_share_of_the_ids_and_the_same_in_any_batch():
    ids = jnp.arange(4000)
    some = infomin.chosen(ids, 0.1)
    assert 0.08 < some.mean() < 0.12
    np.testing.assert_array_equal(infomin.chosen(ids[::-1], 0.1)[::-1], some)


def test_settings_that_cannot_be():
    tx = optax.sgd(0.1)
    with pytest.raises(ValueError, match="splits one view into two; the config has 2"):
        infomin.make(tx=tx, **SHARED | {"views": (VIEW, VIEW)})
    with pytest.raises(ValueError, match="expected a share from 0"):
        infomin.make(tx=tx, labelled=2.0, **SHARED)
    with pytest.raises(ValueError, match="needs the label 'digit'; the data have label"):
        infomin.make(tx=tx, labelled=0.5, label="digit", **SHARED)


def test_pictures_share_one_thing_and_learned_views_are_of_one_picture():
    assert configs.load("infomin").data.share == ("digit",)
    assert configs.load("infomin:learned").method.generator == "flow"
    for variants in ("digit,place", "place,learned"):
        with pytest.raises(ValueError, match=f"{variants}: .*expected one of the former or none"):
            configs.load(f"infomin:{variants}")
