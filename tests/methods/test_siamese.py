"""What is each method's own: SimSiam, MoCo v3 and DINO, whose views predict one another."""

import jax
import numpy as np
import optax
import pytest

from cl_jax import losses
from cl_jax.core.method import Run
from cl_jax.core.parts import Pairs
from cl_jax.encoders import vit
from cl_jax.methods import byol, dino, moco_v3, simsiam
from cl_jax.training import optim
from cl_jax.views import draw
from cl_jax.views import make as recipe
from tests.small import Pixels, started

RUN = Run(None, 8, 32, 4, 8, {"label": 8})
VIEW = recipe({"name": "crop_flip", "crop": "none", "size": 8, "test_crop": 1.0})
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
BATCH = {"image": IMAGES, "id": np.arange(8, dtype=np.int32)}
NETWORK = Pixels(norm=True)
TRANSFORMER = vit.make(width=16, depth=2, heads=2, patch=4, image_size=8, drop_path=0.5)


def stepped(method, steps=1):
    state = first = started(method, BATCH)
    update = jax.jit(method.update)
    for step in range(steps):
        state, metrics = update(state, BATCH, jax.random.key(1 + step))
    return first, state, metrics


def moved(a, b):
    return max(float(np.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_the_monitor_of_byol_counts_labelled_rows_alone():
    parts = byol.parts(encoder=NETWORK, tx=optax.sgd(0.1), views=(VIEW,) * 2, run=RUN, monitor=True)
    rows = np.eye(8, dtype=np.float32)
    params = {"classifier": {"kernel": rows, "bias": np.zeros(8, np.float32)}}
    pairs = Pairs(rows, rows, seen=rows), Pairs(rows, rows)
    labels = {"label": np.array([0, 1, 2, 0, -1, -1, -1, -1], np.int32)}
    _, metrics = parts.contrast(pairs, params, labels, jax.random.key(0))
    assert metrics["monitor_accuracy"] == 0.75


def test_the_monitor_of_byol_starts_as_haikus_layers_do():
    parts = byol.parts(encoder=NETWORK, tx=optax.sgd(0.1), views=(VIEW,) * 2, run=RUN, monitor=True)
    made = jax.jit(lambda key: parts.variables(key, BATCH).params["classifier"])(jax.random.key(0))
    width, classes = made["kernel"].shape
    assert classes == 8 and np.abs(made["kernel"]).max() < 2 / width**0.5
    assert made["kernel"].std() == pytest.approx(0.88 / width**0.5, rel=0.3)
    assert not made["bias"].any()


def test_simsiam_holds_the_predictors_rate_and_passes_views_one_by_one():
    tx, _ = optim.build(
        name="sgd",
        learning_rate=0.1,
        learning_rate_scaling="none",
        batch_size=8,
        steps_per_epoch=4,
        total_steps=2,
        momentum=0.0,
        constant_lr_paths=("predictor",),
    )
    method = simsiam.make(
        encoder=NETWORK, tx=tx, views=(VIEW,) * 2, run=RUN, out_dim=8, hidden_dim=4, num_layers=2
    )
    first, one, metrics = stepped(method)
    assert -1 <= metrics["loss"] <= 1 and 0 < metrics["z_std"] <= 1 / np.sqrt(8) + 1e-6
    _, two, _ = stepped(method, 3)  # the cosine has reached 0 after two steps
    again, _ = jax.jit(method.update)(two, BATCH, jax.random.key(9))
    assert moved(again.params["network"], two.params["network"]) == 0
    assert moved(again.params["predictor"], two.params["predictor"]) > 0
    # Two passes: from 0, the running mean is 0.09 of the first view's and 0.1 of the second's.
    kernel = first.params["network"]["encoder"]["Dense_0"]["kernel"]
    views = jax.jit(lambda key: draw((VIEW,) * 2, BATCH, key))(jax.random.key(1))
    moments = [np.mean(view[:, :4, :4].reshape(8, -1) @ kernel, axis=0) for view in views]
    np.testing.assert_allclose(
        one.stats["network"]["encoder"]["norm"]["mean"],
        0.09 * moments[0] + 0.1 * moments[1],
        atol=1e-5,
    )


@pytest.mark.slow
def test_simsiam_of_four_views_predicts_the_mean_of_the_others():
    settings = dict(
        encoder=NETWORK, tx=optax.sgd(0.0), run=RUN, out_dim=8, hidden_dim=4, num_layers=2
    )
    method = simsiam.make(views=(VIEW,) * 4, **settings)
    first, _, metrics = stepped(method)
    network = simsiam.Network(NETWORK, simsiam.mlp.make(variant="simsiam", out_dim=8, num_layers=2))
    predict = simsiam.predictor.make(variant="simsiam", out_dim=8, hidden_dim=4)
    p, z = [], []
    for images in draw((VIEW,) * 4, BATCH, jax.random.key(1)):
        variables = {"params": first.params["network"], "batch_stats": first.stats["network"]}
        z.append(network.apply(variables, images, True, mutable=["batch_stats"])[0][0])
        variables = {"params": first.params["predictor"], "batch_stats": first.stats["predictor"]}
        p.append(predict.apply(variables, z[-1], train=True, mutable=["batch_stats"])[0][0])
    expected = losses.no_negatives.fastsiam(np.stack(p), np.stack(z))
    assert abs(expected) > 1e-3
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
    with pytest.raises(ValueError, match="two views or more; the config has 1"):
        simsiam.make(views=(VIEW,), **settings)


def test_simsiams_deviation_of_channels_is_over_all_devices_and_0_at_a_collapse():
    z = np.random.default_rng(0).normal(size=(8, 2, 64)).astype(np.float32)
    rows = (z / np.linalg.norm(z, axis=2, keepdims=True)).reshape(-1, 64)
    split = jax.pmap(
        lambda z: simsiam.channel_std(z, "i"), axis_name="i", devices=jax.devices()[:4]
    )
    for found in (simsiam.channel_std(z, None), *split(z.reshape(4, 2, 2, 64))):
        np.testing.assert_allclose(found, rows.std(axis=0).mean(), rtol=1e-5)
        assert abs(found * 8 - 1) < 0.1  # 1 / sqrt(64) of rows spread over the sphere
    assert simsiam.channel_std(np.ones((8, 2, 64), np.float32), None) < 1e-6


def test_moco_v3_target_moves_by_the_next_steps_momentum_and_owns_its_statistics():
    method = moco_v3.make(
        encoder=NETWORK,
        tx=optax.sgd(0.1),
        views=(VIEW,) * 2,
        run=RUN,
        hidden_dim=8,
        out_dim=8,
        temperature=0.2,
        momentum=0.9,
    )
    first, after, metrics = stepped(method)
    np.testing.assert_allclose(metrics["chance"], 0.8 * np.log(8), rtol=1e-6)
    m = 1 - 0.1 * (1 + np.cos(np.pi / 8)) / 2  # step 1 of 8
    for old, new, target in zip(
        *(
            jax.tree.leaves(tree)
            for tree in (first.params["network"], after.params["network"], after.target.params)
        )
    ):
        np.testing.assert_allclose(target, m * old + (1 - m) * new, atol=1e-6)
    assert moved(first.target.stats, after.target.stats) > 0
    with pytest.raises(ValueError, match="contrasts two views"):
        moco_v3.make(encoder=NETWORK, tx=optax.sgd(0.1), views=(VIEW,), run=RUN)


def test_a_network_that_would_drop_paths_is_refused_where_none_are_drawn():
    method = moco_v3.make(
        encoder=TRANSFORMER, tx=optax.sgd(0.1), views=(VIEW,) * 2, run=RUN, hidden_dim=8, out_dim=8
    )
    with pytest.raises(ValueError, match=r"drop_path=0.5: this method does not draw it"):
        jax.eval_shape(method.init, jax.random.key(0), BATCH)


@pytest.mark.parametrize(
    "encoder", [NETWORK, pytest.param(TRANSFORMER, marks=pytest.mark.slow)], ids=["pixels", "vit"]
)
def test_dino_step(encoder):
    small = recipe({"name": "crop_flip", "crop": "none", "size": 4, "test_crop": 1.0})
    tx, _ = optim.build(
        name="adamw",
        learning_rate=1e-3,
        learning_rate_scaling="none",
        batch_size=8,
        steps_per_epoch=4,
        total_steps=8,
        weight_decay=0.1,
        freeze_epochs=0.5,
        freeze_paths=("last_layer",),
        clip_tensor_norm=3.0,
    )
    method = dino.make(
        encoder=encoder,
        tx=tx,
        views=(VIEW, VIEW, small),
        run=RUN,
        num_prototypes=12,
        hidden_dim=8,
        bottleneck_dim=8,
        head_norm=encoder is NETWORK,
        momentum=0.9,
    )
    first, after, metrics = stepped(method, 2)
    assert np.isfinite(metrics["loss"]) and 0 <= metrics["teacher_entropy"] <= np.log(12) + 1e-5
    assert (
        moved(first.params["head"]["last_layer"], after.params["head"]["last_layer"]) == 0
    )  # held for two steps
    _, later, _ = stepped(method, 3)
    assert moved(first.params["head"]["last_layer"], later.params["head"]["last_layer"]) > 0
    assert after.memory["step"] == 2 and np.abs(after.memory["centre"]).max() > 0
    # Evaluators read the teacher.
    params, _ = method.evaluated(after)
    assert moved(params, after.target.params) == 0
    assert set(jax.eval_shape(method.encode, after, BATCH)) == (
        {"h"} if encoder is NETWORK else {"h", "blocks"}
    )


@pytest.mark.slow
def test_dino_loss_is_of_the_centre_before_the_step():
    """By hand from a student and teacher without batch norm or dropped paths: the first loss has a
    centre of zero."""
    plain = vit.make(width=16, depth=1, heads=2, patch=4, image_size=8)
    method = dino.make(
        encoder=plain,
        tx=optax.sgd(0.0),
        views=(VIEW, VIEW),
        run=RUN,
        num_prototypes=12,
        hidden_dim=8,
        bottleneck_dim=8,
    )
    state = jax.jit(method.init)(jax.random.key(0), BATCH)
    network = dino.Network(plain, dino.weight_norm.make(out_dim=12, hidden_dim=8, bottleneck_dim=8))
    crops = draw((VIEW, VIEW), BATCH, jax.random.key(1))
    logits = [network.apply({"params": state.params}, [crop], True)[0] for crop in crops]
    expected = losses.dino(
        np.stack(logits),
        np.stack(logits),
        np.zeros(12),
        student_temperature=0.1,
        teacher_temperature=0.04,
    )
    after, metrics = jax.jit(method.update)(state, BATCH, jax.random.key(1))
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(
        after.memory["centre"], 0.1 * np.stack(logits).mean((0, 1)), atol=1e-6
    )
