"""Boxes and resampling."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cl_jax.views import crop, planes

RNG = np.random.default_rng(0)


def _noise(*shape):
    return RNG.random(shape, np.float32)


@pytest.mark.parametrize(
    "interpolation, method, antialias, bound",
    [
        ("bilinear", "linear", True, 2e-6),
        ("bicubic", "cubic", True, 2e-6),
        ("tf_bicubic", "cubic", False, 2e-3),
    ],
)
@pytest.mark.parametrize("size", [(7, 9), (40, 33)])
def test_whole_image_is_jax_image_resize(interpolation, method, antialias, bound, size):
    x = _noise(4, 23, 18)
    ours = jax.jit(partial(crop.resized_crop, size=size, interpolation=interpolation))(
        x, jnp.array([0, 0, 23, 18])
    )
    theirs = jax.image.resize(x, (4, *size), method, antialias=antialias, precision="highest")
    assert np.abs(ours - theirs).max() < bound
    if (
        interpolation == "tf_bicubic"
    ):  # TensorFlow's table of 1024 offsets is there, and no more than that
        assert np.abs(ours - theirs).max() > 1e-6


@pytest.mark.parametrize("interpolation", crop.INTERPOLATIONS)
def test_a_crop_sees_its_box_alone(interpolation):
    x = _noise(2, 20, 16)
    cut = jax.jit(partial(crop.resized_crop, size=12, interpolation=interpolation))
    box = jnp.array([5, 3, 9, 11])
    changed = np.full_like(x, np.float32(1e6))
    changed[:, 5:14, 3:14] = x[:, 5:14, 3:14]
    np.testing.assert_array_equal(cut(x, box), cut(changed, box))
    np.testing.assert_allclose(
        cut(x, box), cut(x[:, 5:14, 3:14], jnp.array([0, 0, 9, 11])), atol=2e-6
    )


def test_identity_constant_and_single_pixel():
    x = _noise(1, 8, 8)
    for interpolation in crop.INTERPOLATIONS:
        cut = jax.jit(partial(crop.resized_crop, size=8, interpolation=interpolation))
        np.testing.assert_allclose(cut(x, jnp.array([0, 0, 8, 8])), x, atol=1e-6)
        np.testing.assert_allclose(
            cut(x, jnp.array([2, 7, 1, 1])), np.full((1, 8, 8), x[0, 2, 7]), atol=1e-6
        )


@pytest.mark.parametrize("name, levels", [("bilinear", 1.1), ("bicubic", 1.6)])
def test_equals_pil_but_for_its_rounding(name, levels):
    pixels = (RNG.random((61, 47, 3)) > 0.5).astype(
        np.uint8
    ) * 255  # saturated: the cubic overshoots everywhere
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[name]
    top, left, height, width = (
        4,
        3,
        37,
        42,
    )  # wider than tall: every version of Pillow goes sideways first
    pil = (
        Image.fromarray(pixels)
        .crop((left, top, left + width, top + height))
        .resize((32, 32), method)
    )
    cut = jax.jit(partial(crop.resized_crop, size=32, interpolation=name, clip=True))
    ours = (
        planes.pixels(
            cut(planes.planes(jnp.asarray(pixels)), jnp.array([top, left, height, width]))
        )
        * 255
    )
    assert np.abs(ours - np.asarray(pil, np.float32)).max() < levels


def test_test_crop_equals_pil():
    pixels = np.asarray(RNG.integers(0, 256, (50, 70, 3)), np.uint8)
    whole = Image.fromarray(pixels).resize(
        (44, 32), Image.Resampling.BILINEAR
    )  # int(32 * 70 / 50) = 44
    expected = np.asarray(whole, np.float32)[2:30, 8:36]
    ours = jax.jit(
        lambda x: crop.resize_centre_crop(planes.planes(x), 32, 28, interpolation="bilinear")
    )(pixels)
    assert np.abs(planes.pixels(ours) * 255 - expected).max() < 1.1
    with pytest.raises(ValueError, match="smaller than the crop"):
        crop.resize_centre_crop(
            planes.planes(jnp.asarray(pixels)), 20, 28, interpolation="bilinear"
        )


def test_centre_boxes():
    assert crop.centre_box(256, 256, 0.875).tolist() == [16, 16, 224, 224]
    assert crop.byol_centre_box(300, 257).tolist() == [38, 17, 224, 224]
    assert crop.centre_box(20, 40, 1.0, aspect=2.0).tolist() == [0, 0, 20, 40]


def _boxes(sampler, height, width, count=4000, scale=(0.08, 1.0), seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    draw = partial(sampler, height=height, width=width, scale=scale, ratio=(3 / 4, 4 / 3))
    return np.asarray(jax.jit(jax.vmap(lambda key: draw(key)))(keys))


@pytest.mark.parametrize("sampler", [crop.draw_tv_box, crop.draw_tf_box, crop.draw_byol_box])
@pytest.mark.parametrize("height, width", [(1, 1), (5, 90), (64, 3), (32, 32)])
def test_boxes_stay_inside(sampler, height, width):
    top, left, h, w = _boxes(sampler, height, width, 1000).T
    assert (h >= 1).all() and (w >= 1).all() and (top >= 0).all() and (left >= 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()


def test_distribution_of_simclr_boxes():
    top, left, h, w = _boxes(crop.draw_tf_box, 1000, 1000).T
    area, ratio = h * w / 1e6, w / h
    # Published measurement over 20,000 draws: least area .10, mean .418, median .382; ratio
    # uniform, median 1.04.
    assert 0.1 <= area.min() < 0.103
    assert abs(area.mean() - 0.418) < 0.015 and abs(np.median(area) - 0.382) < 0.02
    assert abs(np.median(ratio) - 1.04) < 0.015 and abs(ratio.mean() - 25 / 24) < 0.015
    assert ratio.min() < 0.76 and ratio.max() > 1.32
    assert (top < np.maximum(1000 - h, 1)).all() and (left < np.maximum(1000 - w, 1)).all()


def test_distribution_of_torchvision_boxes():
    top, _, h, w = _boxes(crop.draw_tv_box, 1000, 1000).T
    area = h * w / 1e6
    assert (
        abs(area.mean() - 0.476) < 0.015
        and abs(np.median(area) - 0.475) < 0.02
        and area.min() < 0.085
    )
    assert abs(np.median(np.log(w / h))) < 0.015
    place = (top / np.maximum(1000 - h, 1))[h < 900]
    assert abs(place.mean() - 0.5) < 0.02 and place.min() < 0.01 and place.max() == 1


def test_distribution_of_byol_boxes():
    _, _, h, w = _boxes(crop.draw_byol_box, 1000, 1000).T
    free = (h < 1000) & (w < 1000)
    assert (h == 1000).any() and (w == 1000).any()  # cut off at the image, not drawn again
    area = (h * w / 1e6)[free]
    assert area.min() < 0.085 and abs(np.median(np.log(w / h)[h * w < 4e5])) < 0.02
    assert abs((area < 0.5).sum() / len(h) - (0.5 - 0.08) / 0.92) < 0.03


def test_torchvision_falls_back_to_a_centred_box():
    draws = np.full((10,), 0.999, np.float32)
    box = jax.jit(partial(crop.tv_box, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3)))
    for shape, expected in (((100, 20), [36, 0, 27, 20]), ((20, 100), [0, 36, 20, 27])):
        got, tries = box(*shape, draws, draws, draws[:2])
        assert got.tolist() == expected and tries == 10


def test_unknown_interpolation():
    with pytest.raises(ValueError, match="expected one of bilinear, bicubic, tf_bicubic"):
        crop.resampling_matrix(0, 4, 4, 4, interpolation="lanczos")
