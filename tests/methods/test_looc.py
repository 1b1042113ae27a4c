"""LooC: without augmentations left out it is MoCo; its spaces and what enters their queues."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run
from cl_jax.encoders.resnet import ResNet
from cl_jax.losses.spaces import leave_one_out
from cl_jax.methods import looc, moco_v2
from cl_jax.training import configs
from cl_jax.views import make as recipe

RUN = Run(None, 8, 32, 4, 8, {"label": 8})
VIEW = recipe({"name": "moco_cifar", "size": 8, "quarter_turns": True})
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
BATCH = {"image": IMAGES, "id": np.arange(8, dtype=np.int32)}
NETWORK = ResNet(blocks=(1,), width=0.125, stem="cifar", for_cpu=False)
SHARED = dict(encoder=NETWORK, tx=optax.sgd(0.1), run=RUN, queue_size=12, out_dim=4)
KEY = jax.random.key(1)


@pytest.mark.slow
def test_with_no_augmentation_left_out_it_is_moco():
    own = looc.make(views=(VIEW,), left_out=(), **SHARED)
    moco = moco_v2.make(views=(VIEW, VIEW), **SHARED)
    first = jax.jit(own.init)(jax.random.key(0), BATCH)
    theirs = jax.jit(moco.init)(jax.random.key(0), BATCH)
    head = first.params["heads_0"]
    params = {"encoder": first.params["encoder"], "head": head}
    stats = {"encoder": first.stats["encoder"]}
    theirs = theirs.replace(
        params=params,
        stats=stats,
        target=theirs.target.replace(ema=theirs.target.ema._replace(ema=params), stats=stats),
        memory=theirs.memory._replace(rows=first.memory.rows[:, 0]),
    )
    after, metrics = jax.jit(own.update)(first, BATCH, KEY)
    expected, reference = jax.jit(moco.update)(theirs, BATCH, KEY)
    for name in ("loss", "grad_norm", "chance"):
        np.testing.assert_allclose(metrics[name], reference[name], rtol=1e-4)
    np.testing.assert_allclose(after.memory.rows[:, 0], expected.memory.rows, atol=1e-5)
    for a, b in zip(
        jax.tree.leaves(after.params["encoder"]), jax.tree.leaves(expected.params["encoder"])
    ):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.slow
def test_each_space_has_its_own_loss_positive_and_queue():
    method = looc.make(views=(VIEW,), left_out=("rotation", "colour"), shuffle=False, **SHARED)
    first = jax.jit(method.init)(jax.random.key(0), BATCH)
    after, metrics = jax.jit(method.update)(first, BATCH, KEY)
    network = looc.Spaces(NETWORK, [looc.mlp.make(variant="moco_v2", out_dim=4) for _ in range(3)])
    variables = {"params": first.params, "batch_stats": first.stats}
    z = jnp.stack(
        [
            network.apply(variables, images, True, mutable=["batch_stats"])[0][0]
            for images in method.views(BATCH, KEY)
        ]
    )  # view, row, space
    keys = jnp.transpose(z[1:], (2, 0, 1, 3))
    expected = leave_one_out(
        jnp.swapaxes(z[0], 0, 1), keys, jnp.swapaxes(first.memory.rows, 0, 1), temperature=0.2
    )
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-3)
    by_space = [metrics[f"loss_{name}"] for name in ("invariant", "rotation", "colour")]
    np.testing.assert_allclose(np.mean(by_space), metrics["loss"], rtol=1e-5)
    for h in range(3):
        own = keys[h, h] / jnp.linalg.norm(keys[h, h], axis=-1, keepdims=True)
        np.testing.assert_allclose(after.memory.rows[:8, h], own, atol=1e-4)
    named = method.encode(after, BATCH)
    assert named["spaces"].shape == (8, 3 * named["h"].shape[1])


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="one view of images; the config has 2"):
        looc.make(views=(VIEW, VIEW), **SHARED)
    with pytest.raises(ValueError, match="quarter_turns=True"):
        looc.make(views=(recipe({"name": "moco_cifar", "size": 8}),), **SHARED)


def test_simclr_sees_the_same_views_and_is_asked_the_same():
    own, simclr = (configs.load(name).to_dict() for name in ("looc", "looc:simclr"))
    assert simclr["views"]["both"].pop("copies") == 2 and own["views"]["both"].pop("copies") == 1
    for section in ("views", "data", "optimizer"):
        assert own[section] == simclr[section]
    assert set(own["evals"]["protocols"]) == set(simclr["evals"]["protocols"])
    with pytest.raises(ValueError, match="simclr is of the default's data alone"):
        configs.load("looc:simclr,folder")
