"""Colour operators against per-pixel oracles, and the cut permutation against the true one."""

import colorsys
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.views import blur, colour, planes

RNG = np.random.default_rng(1)


def _hsv(x, change):
    """x [3, H, W] pixel by pixel through Python's own HSV."""
    out = np.empty_like(x)
    for i, j in np.ndindex(x.shape[1:]):
        out[:, i, j] = colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*x[:, i, j].tolist())))
    return out


def _oracle(x, kind, factor, family, additive):
    if kind == colour.BRIGHTNESS:
        return x + factor if additive else x * factor
    if kind == colour.HUE:
        return _hsv(x, lambda h, s, v: ((h + factor) % 1, s, v))
    grey = np.tensordot([0.299, 0.587, 0.114], x, 1)
    if kind == colour.CONTRAST:
        mean = x.mean((1, 2))[:, None, None] if family == "tf" else grey.mean()
        return factor * x + (1 - factor) * mean
    if family == "tf":
        return _hsv(x, lambda h, s, v: (h, min(s * factor, 1), v))
    return factor * x + (1 - factor) * grey[None]


@pytest.mark.parametrize("family, additive", [("tv", False), ("tf", False), ("tf", True)])
def test_jitter_is_the_true_permutation(family, additive):
    orders = np.array(list(itertools.permutations(range(4))), np.int32)
    x = RNG.random((24, 3, 3, 4)).astype(np.float32)
    factors = np.stack(
        [
            RNG.uniform(-0.4, 0.4, 24) if additive else RNG.uniform(0.4, 1.6, 24),
            RNG.uniform(0.4, 1.6, 24),
            RNG.uniform(0.2, 1.8, 24),
            RNG.uniform(-0.2, 0.2, 24),
        ],
        1,
    )
    factors = factors.astype(np.float32)
    run = jax.jit(
        jax.vmap(
            lambda x, o, f: colour.jitter(x, colour.Jitter(o, f), family=family, additive=additive)
        )
    )
    ours = run(x, orders, factors)
    for index, order in enumerate(orders):
        expected = x[index].astype(np.float64)
        for kind in order:
            expected = np.clip(
                _oracle(expected, kind, float(factors[index, kind]), family, additive), 0, 1
            )
        np.testing.assert_allclose(ours[index], expected, atol=2e-5, err_msg=str(order))


def test_jitter_not_applied_and_left_out_operators():
    x = RNG.random((5, 6, 6)).astype(np.float32)
    draw = colour.Jitter(jnp.array([2, 1, 3, 0]), jnp.array([0.7, 1.3, 1.5, 0.1]))
    off = jax.jit(partial(colour.jitter, family="tv", apply=False))(x[:3], draw)
    np.testing.assert_array_equal(off, x[:3])
    some = partial(colour.jitter, family="tv", operators=(colour.BRIGHTNESS, colour.CONTRAST))
    expected = np.clip(1.3 * x + (1 - 1.3) * x.mean(), 0, 1)
    expected = np.clip(0.7 * expected, 0, 1)
    np.testing.assert_allclose(jax.jit(some)(x, draw), expected, atol=1e-6)  # five channels
    turned = jax.jit(partial(colour.jitter, family="tv", operators=(colour.HUE,)))(x[:3], draw)
    np.testing.assert_allclose(turned, _oracle(x[:3], colour.HUE, 0.1, "tv", False), atol=1e-5)


@pytest.mark.parametrize("family", colour.FAMILIES)
def test_one_channel_has_no_colour(family):
    x = RNG.random((1, 5, 5)).astype(np.float32)
    for same in (colour.hue(x, 0.3), colour.saturation(x, 0.2, family=family), colour.grayscale(x)):
        np.testing.assert_array_equal(same, x)
    draw = colour.Jitter(jnp.array([3, 2, 0, 1]), jnp.array([0.5, 1.2, 0.1, 0.3]))
    expected = np.clip(1.2 * (x * 0.5) - 0.2 * (x * 0.5).mean(), 0, 1)
    np.testing.assert_allclose(
        jax.jit(partial(colour.jitter, family=family))(x, draw), expected, atol=1e-6
    )


def test_grey_pixels_keep_their_colour():
    x = jnp.broadcast_to(jnp.linspace(0, 1, 9).reshape(1, 3, 3), (3, 3, 3))
    for family in colour.FAMILIES:
        np.testing.assert_allclose(colour.saturation(x, 1.8, family=family), x, atol=1e-6)
    np.testing.assert_array_equal(colour.hue(x, 0.25), x)


def test_errors_name_the_mend():
    x = jnp.zeros((4, 2, 2))
    draw = colour.Jitter(jnp.arange(4), jnp.ones(4))
    for call in (
        lambda: colour.grayscale(x),
        lambda: colour.hue(x, 0.1),
        lambda: colour.saturation(x, 0.1, family="tv"),
        lambda: colour.jitter(x, draw, family="tf"),
    ):
        with pytest.raises(ValueError, match="defined for 1 or 3 channels; the images have 4"):
            call()
    with pytest.raises(ValueError, match="family is 'kornia'"):
        colour.jitter(x[:3], draw, family="kornia")
    with pytest.raises(ValueError, match="one each per channel"):
        planes.normalise(x, (0.5,), (0.5,))
    with pytest.raises(ValueError, match="needs radius < side"):
        blur.blur_matrix(4, 1.0, radius=4, padding="reflect")
    with pytest.raises(ValueError, match="padding is 'wrap'"):
        blur.blur_matrix(4, 1.0, radius=1, padding="wrap")


@pytest.mark.parametrize("additive", [False, True])
def test_distribution_of_jitter(additive):
    keys = jax.random.split(jax.random.key(3), 4800)
    draw = partial(
        colour.draw_jitter, brightness=0.4, contrast=1.2, saturation=0.2, hue=0.1, additive=additive
    )
    orders, factors = jax.device_get(jax.jit(jax.vmap(lambda key: draw(key)))(keys))
    ranges = [(-0.4, 0.4) if additive else (0.6, 1.4), (0, 2.2), (0.8, 1.2), (-0.1, 0.1)]
    for column, (low, high) in zip(factors.T, ranges):
        assert low <= column.min() and column.max() <= high
        np.testing.assert_allclose(
            [column.mean(), column.std()],
            [(low + high) / 2, (high - low) / 12**0.5],
            atol=0.03 * (high - low),
        )
    kinds, counts = np.unique(orders, axis=0, return_counts=True)
    assert (
        len(kinds) == 24 and counts.min() > 140 and counts.max() < 260
    )  # 200 expected, deviation 14


@pytest.mark.parametrize(
    "padding, mode", [("zero", "constant"), ("edge", "nearest"), ("reflect", "mirror")]
)
@pytest.mark.parametrize("sigma, radius", [(0.1, 2), (1.3, 3), (2.0, 5)])
def test_blur_is_a_gaussian(padding, mode, sigma, radius):
    from scipy import ndimage

    x = RNG.random((2, 6, 9)).astype(np.float32)
    taps = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    expected = x.astype(np.float64)
    for axis in (1, 2):
        expected = ndimage.correlate1d(expected, taps / taps.sum(), axis, mode=mode)
    ours = jax.jit(partial(blur.blur, radius=radius, padding=padding))(x, sigma)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_blur_edges():
    x = RNG.random((1, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(blur.blur(x, 1.0, radius=0, padding="zero"), x)
    np.testing.assert_array_equal(
        jax.jit(partial(blur.blur, radius=9, padding="edge", apply=False))(x, 1.0), x
    )
    wide = jax.jit(partial(blur.blur, radius=9, padding="edge"))(jnp.ones((1, 3, 4)), 2.0)
    np.testing.assert_allclose(wide, 1, atol=1e-6)
