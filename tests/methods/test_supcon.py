"""What is SupCon's own: labels and their absence, the scale of the loss, and the classifier on the
frozen network."""

import dataclasses
import warnings

import jax
import numpy as np
import pytest

from cl_jax.core.errors import WithoutEffect
from cl_jax.core.method import Run, Stage
from cl_jax.methods import finetune, supcon
from cl_jax.training import optim
from cl_jax.views import make as recipe
from tests.small import Pixels, started

RUN = Run(None, 8, 32, 4, 8, {"label": 8})
VIEW = recipe({"name": "crop_flip", "crop": "none", "size": 8, "test_crop": 1.0})
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
BATCH = {"image": IMAGES, "id": np.arange(8, dtype=np.int32), "label": np.arange(8, dtype=np.int32)}
NETWORK = Pixels(norm=True)


def build(views=2, **settings):
    return supcon.make(
        encoder=NETWORK, tx=optim.sgd(0.1), views=(VIEW,) * views, run=RUN, out_dim=8, **settings
    )


@pytest.fixture(scope="module")
def trained():
    method = build(unit_embedding=True)
    state = started(method, BATCH)
    update = jax.jit(method.update)
    after, metrics = update(state, BATCH, jax.random.key(1))
    return method, state, after, metrics, update


def test_labels(trained):
    """Labels that differ for every image say what no labels say; other labels something else."""
    _, state, _, metrics, update = trained
    without = build(unit_embedding=True, labels=False, base_temperature=None)
    assert without.needs == ("image",) and without.negatives == 14
    plain = jax.jit(without.update)(state, BATCH, jax.random.key(1))[1]
    np.testing.assert_allclose(metrics["loss"], plain["loss"] * 0.1 / 0.07, rtol=1e-5)
    np.testing.assert_allclose(metrics["chance"], np.log(15) * 0.1 / 0.07, rtol=1e-6)
    paired = update(state, BATCH | {"label": BATCH["label"] // 2}, jax.random.key(1))[1]
    assert abs(paired["loss"] - metrics["loss"]) > 1e-3


def test_the_frozen_network_is_the_state_s_target(trained):
    before, _, after, *_ = trained
    run = RUN._replace(previous=Stage(before, after))
    method = finetune.make(
        encoder=NETWORK, tx=optim.sgd(1.0, weight_decay=0.1), views=(VIEW,), run=run, freeze=True
    )
    state = jax.jit(method.init)(jax.random.key(0), BATCH)
    assert list(state.params) == ["classifier"]
    moved, metrics = jax.jit(method.update)(state, BATCH, jax.random.key(1))
    np.testing.assert_allclose(metrics["loss"], np.log(8), rtol=1e-5)
    assert np.any(moved.params["classifier"]["kernel"])
    jax.tree.map(
        np.testing.assert_array_equal,
        (moved.target.params, moved.target.stats),
        (after.params, after.stats),
    )
    named, own = jax.jit(lambda *s: (method.encode(s[0], BATCH), before.encode(s[1], BATCH)))(
        moved, after
    )
    np.testing.assert_allclose(np.linalg.norm(named["h"], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(named["h"], own["h"], atol=1e-6)
    classifier = moved.params["classifier"]
    np.testing.assert_allclose(
        named["logits"], named["h"] @ classifier["kernel"] + classifier["bias"][None], atol=1e-5
    )


def test_a_stage_begins_from_a_network_with_a_setting_without_effect(trained):
    """Warnings are errors where a run begins, but this is one of the run before."""
    before, _, after, *_ = trained

    def features(*arguments):
        warnings.warn(WithoutEffect("drop_path=0.1"), stacklevel=1)
        return before.features(*arguments)

    run = RUN._replace(previous=Stage(dataclasses.replace(before, features=features), after))
    method = finetune.make(encoder=NETWORK, tx=optim.sgd(1.0), views=(VIEW,), run=run)
    assert jax.eval_shape(method.init, jax.random.key(0), BATCH).params["classifier"]


def test_errors():
    with pytest.raises(ValueError, match="the config has 1 view"):
        build(views=1, labels=False)
    with pytest.raises(ValueError, match="the config has none"):
        build(views=0)
