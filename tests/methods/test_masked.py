"""What is each method's own: MAE, SimMIM, iBOT and DINOv2's recipe of it."""

import jax
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run
from cl_jax.encoders import vit
from cl_jax.encoders.resnet import ResNet
from cl_jax.methods import ibot, mae
from cl_jax.training import configs
from cl_jax.views import make as recipe
from tests.small import started

RUN = Run(None, 8, 32, 4, 8, {"label": 8})
VIEW = recipe({"name": "crop_flip", "crop": "none", "size": 8, "test_crop": 1.0})
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
BATCH = {"image": IMAGES, "id": np.arange(8, dtype=np.int32)}
TINY = dict(width=16, depth=1, heads=2, patch=2, image_size=8)
KEY = jax.random.key(1)


def autoencoder(form="mae", **settings):
    encoder = vit.make(**TINY, variant="mae", mask_token=form == "simmim")
    small = dict(decoder_width=8, decoder_depth=1, decoder_heads=2)
    return mae.make(
        encoder=encoder, tx=optax.sgd(0.1), views=(VIEW,), run=RUN, form=form, **small, **settings
    )


def student(views=3, **settings):
    small = dict(num_prototypes=8, hidden_dim=8, bottleneck_dim=4, smallest_block=1)
    return ibot.make(
        encoder=vit.make(**TINY, mask_token=True),
        tx=optax.sgd(0.1),
        views=(VIEW,) * views,
        run=RUN,
        **small | settings,
    )


def stepped(method):
    first = jax.jit(method.init)(jax.random.key(0), BATCH)
    state, metrics = jax.jit(method.update)(first, BATCH, KEY)
    return first, state, metrics


@pytest.mark.slow
@pytest.mark.parametrize(
    "form, settings",
    [("mae", {}), pytest.param("simmim", {"mask_cell": 4}, marks=pytest.mark.slow)],
)
def test_a_masked_autoencoder_learns_and_its_features_see_the_whole_image(form, settings):
    method = autoencoder(form, **settings)
    first, state, metrics = stepped(method)
    update = jax.jit(method.update)
    for _ in range(20):
        state, last = update(state, BATCH, KEY)
    assert last["loss"] < metrics["loss"]
    named = method.encode(first, BATCH)
    assert set(named) == {"h", "cls", "mean"} and named["h"].shape == (8, 16)
    changed = np.array(IMAGES)
    changed[:, 6:, 6:] = 255 - changed[:, 6:, 6:]
    assert (
        (np.abs(named["h"] - method.encode(first, BATCH | {"image": changed})["h"]) > 0)
        .any(1)
        .all()
    )


def test_maes_mask_is_of_the_example_whatever_its_place():
    method = autoencoder()
    state = started(method, BATCH)
    loss = jax.jit(lambda batch: method.update(state, batch, KEY)[1]["loss"])
    order = np.array([3, 1, 2, 0, 7, 6, 5, 4])
    np.testing.assert_allclose(
        loss(jax.tree.map(lambda x: x[order], BATCH)), loss(BATCH), rtol=1e-5
    )


@pytest.mark.slow
def test_micro_batches_of_mae_give_the_whole_batchs_step():
    whole, pieces = (stepped(autoencoder(micro_batches=count)) for count in (1, 2))
    np.testing.assert_allclose(whole[2]["loss"], pieces[2]["loss"], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(whole[1].params), jax.tree.leaves(pieces[1].params)):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_ibot_without_a_mask_has_no_patch_loss_and_its_centres_are_means_of_the_teacher():
    _, after, metrics = stepped(student(mask_probability=0.0))
    assert metrics["patch_loss"] == 0 and metrics["hidden"] == 0
    _, masked, metrics = stepped(student(mask_probability=1.0, mask_shape="random"))
    assert metrics["patch_loss"] > 0 and 0.1 <= metrics["hidden"] < 0.5
    # The teacher sees crops whole, so that its centres do not depend on the mask.
    np.testing.assert_allclose(after.memory["centre"], masked.memory["centre"], atol=1e-6)
    np.testing.assert_allclose(
        after.memory["patch_centre"], masked.memory["patch_centre"], atol=1e-6
    )
    assert np.abs(after.memory["patch_centre"]).max() > 0
    only = stepped(student(mask_probability=1.0, centre_hidden=True))[1].memory["patch_centre"]
    assert np.abs(only - after.memory["patch_centre"]).max() > 1e-6


@pytest.mark.slow
def test_a_balanced_teacher_without_a_hidden_patch_has_no_patch_loss():
    _, after, metrics = stepped(student(mask_probability=0.0, centring="sinkhorn"))
    assert metrics["patch_loss"] == 0 and metrics["class_loss"] > 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((metrics, after.params)))


@pytest.mark.slow
def test_ibots_teacher_follows_and_is_what_evaluators_read():
    method = student(momentum=0.5)
    first, after, _ = stepped(method)
    assert method.evaluated(after)[0] is after.target.params
    for old, new, slow in zip(
        *(jax.tree.leaves(tree) for tree in (first.params, after.params, after.target.params))
    ):
        np.testing.assert_allclose(slow, (old + new) / 2, atol=1e-6)


def test_a_head_for_the_patches_of_their_own():
    assert "patch_head" not in jax.eval_shape(student().init, KEY, BATCH).params
    apart = jax.eval_shape(student(shared_head=False).init, KEY, BATCH).params
    assert "patch_head" in apart and "head" in apart


def test_batch_norm_in_the_head_keeps_statistics_of_student_and_teacher():
    assert not jax.eval_shape(student().init, KEY, BATCH).stats
    method = student(views=2, head_norm=True, mask_probability=1.0, momentum=0.5)
    first = started(method, BATCH)
    after, metrics = jax.jit(method.update)(first, BATCH, KEY)
    for old, new in ((first.stats, after.stats), (first.target.stats, after.target.stats)):
        moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (old, new)))]
        assert moved and min(moved) > 0
    assert metrics["class_loss"] > 0 and metrics["patch_loss"] > 0


def test_ibots_variant_of_dino_alone_changes_the_weights_of_the_loss_and_nothing_else():
    own, alone = (configs.load(name).to_dict() for name in ("ibot", "ibot:dino"))
    assert alone["method"].pop("patch_weight") == alone["method"].pop("mask_probability") == 0
    assert own == alone
    with pytest.raises(ValueError, match="exclude each other"):
        configs.load("ibot:dino,dinov2")


@pytest.mark.slow
def test_dinov2s_recipe_adds_koleo_and_balances_the_teacher():
    recipe_of = dict(centring="sinkhorn", mask_probability=1.0, temperature_per_step=True)
    _, _, plain = stepped(student(**recipe_of))
    _, _, metrics = stepped(student(**recipe_of, koleo_weight=0.5))
    np.testing.assert_allclose(
        metrics["loss"], plain["loss"] + 0.5 * 2 * metrics["koleo"], rtol=1e-5
    )
    assert np.isfinite(metrics["grad_norm"])


@pytest.mark.slow
def test_temperature_rises_by_epoch_or_by_step():
    """The chance level does not, so that only the losses say which was used."""
    by_step = student(temperature_per_step=True, teacher_warmup_epochs=1.0)
    by_epoch = student(teacher_warmup_epochs=1.0)
    (_, one, a), (_, _, b) = (stepped(method) for method in (by_step, by_epoch))
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)  # both start low
    second = [jax.jit(method.update)(one, BATCH, KEY)[1]["loss"] for method in (by_step, by_epoch)]
    assert abs(second[0] - second[1]) > 1e-6


def test_settings_that_cannot_be():
    plain, token = vit.make(**TINY), vit.make(**TINY, mask_token=True)
    other = ResNet(blocks=(1,), width=0.125, stem="cifar", for_cpu=False)
    shared = dict(tx=optax.sgd(0.1), run=RUN)
    for settings, words in (
        (dict(encoder=plain, views=(VIEW,) * 2), "one view; the config has 2"),
        (dict(encoder=other, views=(VIEW,)), "the encoder is a ResNet; expected encoder.name=vit"),
        (dict(encoder=plain, views=(VIEW,), form="simmim"), "set encoder.mask_token=True"),
        (dict(encoder=token, views=(VIEW,), form="beit"), "form is 'beit'; expected"),
        (
            dict(encoder=token, views=(VIEW,), form="simmim", mask_cell=3),
            "mask_cell=3 is not a multiple of the encoder's patch of 2",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            mae.make(**settings, **shared)
    for settings, words in (
        (dict(encoder=token, views=(VIEW,)), "two views or more"),
        (dict(encoder=plain, views=(VIEW,) * 2), "encoder.mask_token=True"),
        (dict(encoder=token, views=(VIEW,) * 2, centring="mean"), "centring is 'mean'"),
        (dict(encoder=token, views=(VIEW,) * 2, mask_shape="ring"), "mask_shape is 'ring'"),
    ):
        with pytest.raises(ValueError, match=words):
            ibot.make(**settings, **shared)
