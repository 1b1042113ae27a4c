"""MAE, SimMIM and iBOT's patches against loops, patches and their inverse, empty masks, and devices
against one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cl_jax.losses import masked
from tests.losses.compiled import compiled
from tests.losses.parity import assert_parity

module = compiled(masked)
IBOT = {"student_temperature": 0.1, "teacher_temperature": 0.05}


def images(count=8, side=4, channels=3, seed=0):
    return np.random.default_rng(seed).normal(size=(count, side, side, channels))


def hidden(*shape, seed=0, share=0.5):
    return np.random.default_rng(seed).uniform(size=shape) < share


def logits(views=2, rows=8, patches=5, width=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, views, rows, patches, width)), rng.normal(size=width)


def test_mae_equals_loops():
    prediction, target = np.random.default_rng(0).normal(size=(2, 8, 5, 6))
    mask = hidden(8, 5)
    errors = [
        np.mean((prediction[i, k] - target[i, k]) ** 2)
        for i in range(8)
        for k in range(5)
        if mask[i, k]
    ]
    with jax.enable_x64(True):
        ours = module.mae(prediction, target, mask)
        np.testing.assert_allclose(ours, np.mean(errors), rtol=1e-12)


def test_simmim_equals_loops():
    x, y = images(), images(seed=1)
    mask = hidden(8, 2, 2)
    total = count = 0
    for i in range(8):
        for row in range(4):
            for column in range(4):
                if mask[i, row // 2, column // 2]:
                    total += np.abs(x[i, row, column] - y[i, row, column]).sum()
                    count += 1
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            module.simmim(x, y, mask), total / (count + 1e-5) / 3, rtol=1e-12
        )


def test_ibot_equals_loops():
    (student, teacher), centre = logits()
    mask = hidden(2, 8, 5)
    total = 0.0
    for v in range(2):
        for i in range(8):
            terms = []
            for k in np.flatnonzero(mask[v, i]):
                target = np.exp((teacher[v, i, k] - centre) / 0.05)
                target /= target.sum()
                s = student[v, i, k] / 0.1
                terms.append(-(target * (s - np.log(np.exp(s).sum()))).sum())
            total += np.mean(terms) if terms else 0
    with jax.enable_x64(True):
        ours = module.ibot_patches(student, teacher, mask, centre, **IBOT)
        np.testing.assert_allclose(ours, total / 16, rtol=1e-12)


def test_patches_are_in_raster_order_with_the_channel_fastest():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3).astype(np.float32)
    patches = module.patchify(x, patch=2)
    assert patches.shape == (2, 6, 12)
    np.testing.assert_array_equal(patches[1, 4].reshape(2, 2, 3), x[1, 2:4, 2:4])
    np.testing.assert_array_equal(module.unpatchify(patches, patch=2, height=4, width=6), x)


def test_pixel_shuffle_has_the_channel_slowest():
    x = np.random.default_rng(0).normal(size=(2, 3, 2, 12)).astype(np.float32)
    y = module.pixel_shuffle(x, stride=2)
    assert y.shape == (2, 6, 4, 3)
    for channel in range(3):
        for i in range(2):
            for j in range(2):
                np.testing.assert_array_equal(
                    y[:, i::2, j::2, channel], x[..., channel * 4 + i * 2 + j]
                )


def test_normalised_patches_have_unbiased_variance_one():
    x = np.random.default_rng(0).normal(size=(3, 5, 12)) * 4 + 2
    y = np.asarray(module.normalise_patches(x))
    np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(axis=-1, ddof=1), 1, rtol=1e-5)
    flat = np.asarray(module.normalise_patches(np.ones((2, 3, 4), np.float32)))
    assert (flat == 0).all()


@pytest.mark.slow
def test_what_is_not_hidden_has_no_gradient_and_an_empty_mask_gives_zero():
    (student, teacher), centre = (jnp.asarray(x) for x in logits())
    mask = jnp.asarray(hidden(2, 8, 5))
    x, target, pixels = jnp.ones((8, 5, 6)), jnp.zeros((8, 5, 6)), jnp.asarray(images())
    some = hidden(8, 5)
    for loss, prediction, seen in (
        (lambda p, m: masked.mae(p, target, m), x, some),
        (
            lambda p, m: masked.simmim(p, pixels, m),
            jnp.zeros_like(pixels),
            hidden(8, 4, 4),
        ),
        (lambda p, m: masked.ibot_patches(p, teacher, m, centre, **IBOT), student, mask),
    ):
        grad = jax.grad(loss)(prediction, seen)
        assert np.any(grad[np.asarray(seen)]) and not np.any(grad[~np.asarray(seen)])
        value, grad = jax.value_and_grad(loss)(prediction, jnp.zeros_like(jnp.asarray(seen)))
        assert value == 0 and not np.any(grad)


def test_an_exact_prediction_has_no_gradient():
    x = jnp.asarray(images())
    assert not np.any(jax.grad(lambda p: masked.simmim(p, x, np.ones((8, 2, 2))))(x))


def test_no_gradient_to_targets():
    (student, teacher), centre = (jnp.asarray(x) for x in logits())
    mask = np.ones((2, 8, 5))
    grads = jax.jit(
        jax.grad(lambda *x: masked.ibot_patches(x[0], x[1], mask, x[2], **IBOT), argnums=(0, 1, 2))
    )(student, teacher, centre)
    assert np.any(grads[0]) and not np.any(grads[1]) and not np.any(grads[2])
    x = jnp.asarray(images())
    assert not np.any(jax.grad(lambda y: masked.simmim(x, y, np.ones((8, 2, 2))))(2 * x))


def test_gradients():
    (student, teacher), centre = logits(rows=2, patches=3)
    mask = hidden(2, 2, 3)
    prediction, target = np.random.default_rng(0).normal(size=(2, 2, 3, 4))
    with jax.enable_x64(True):
        check_grads(
            lambda s: module.ibot_patches(s, teacher, mask, centre, **IBOT),
            (student,),
            order=1,
            modes="rev",
        )
        check_grads(lambda p: module.mae(p, target, mask[0]), (prediction,), order=1, modes="rev")


def test_a_patch_that_knows_nothing_costs_log_k():
    (student, teacher), centre = logits()
    ours = module.ibot_patches(0 * student, teacher, np.ones((2, 8, 5)), centre, **IBOT)
    np.testing.assert_allclose(ours, np.log(4), rtol=1e-6)


def test_parity_over_devices():
    """Devices hide different numbers of patches."""
    (student, teacher), centre = logits()
    mask = hidden(2, 8, 5)
    prediction, target = np.random.default_rng(0).normal(size=(2, 8, 5, 6))

    def pixels(p, t, m, x, y, axis_name):
        return masked.mae(p, t, m, axis_name=axis_name) + masked.simmim(
            x, y, m[:, :4].reshape(-1, 2, 2), axis_name=axis_name
        )

    assert_parity(
        pixels,
        (prediction, target, mask[0].astype(int), images(), images(seed=1)),
        (True,) * 5,
        f32=5e-6,
    )

    def patches(s, t, m, c, axis_name):
        s, t, m = (jnp.moveaxis(x, 0, 1) for x in (s, t, m))
        return masked.ibot_patches(s, t, m, c, **IBOT, axis_name=axis_name)

    assert_parity(
        patches,
        (
            np.moveaxis(student, 0, 1),
            np.moveaxis(teacher, 0, 1),
            np.moveaxis(mask, 0, 1).astype(int),
            centre,
        ),
        (True, True, True, False),
        f32=5e-6,
    )


def test_errors():
    x = images()
    with pytest.raises(ValueError, match="expected sides that are multiples of patch=3"):
        masked.patchify(x, patch=3)
    with pytest.raises(ValueError, match=r"patches has shape \(8, 4, 12\); expected \[B, 16, 4"):
        masked.unpatchify(masked.patchify(x, patch=2), patch=2, height=8, width=8)
    with pytest.raises(ValueError, match="x has 6 features; expected a multiple of stride"):
        masked.pixel_shuffle(np.ones((1, 2, 2, 6)), stride=2)
    with pytest.raises(ValueError, match=r"mask has shape \(8, 3, 3\) for images of 4x4"):
        masked.simmim(x, x, np.ones((8, 3, 3)))
    with pytest.raises(ValueError, match=r"mask has shape \(8, 3\).*l = 4"):
        masked.mae(np.ones((8, 4, 2)), np.ones((8, 4, 2)), np.ones((8, 3)))
