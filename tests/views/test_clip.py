"""Views of clips, the two streams of a film, and optical flow against known translations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.core.keys import example_keys
from cl_jax.views import clip, flow, streams

RNG = np.random.default_rng(0)
WAVES, PHASES = RNG.uniform(-0.9, 0.9, (40, 2)), RNG.uniform(0, 2 * np.pi, 40)
PLAIN = dict(size=8, scale=(1.0, 1.0), flip=0.0, test_crop=1.0, mean=None, std=None, crop="none")


def texture(dx=0.0, dy=0.0, height=48, width=40):
    """A smooth picture, moved by (dx, dy) without resampling."""
    y, x = np.mgrid[:height, :width].astype(float)
    waves = np.sin(
        np.einsum("k,hw->khw", WAVES[:, 0], y - dy)
        + np.einsum("k,hw->khw", WAVES[:, 1], x - dx)
        + PHASES[:, None, None]
    )
    return (0.5 + waves.sum(0) / 20).astype(np.float32)


def test_flow_finds_a_known_translation():
    find = jax.jit(flow.lucas_kanade)
    for moved in ((0.0, 0.0), (0.5, 0.3), (1.5, -2.25), (3.0, 2.0)):
        found = np.asarray(find(texture(), texture(*moved)))
        error = np.abs(found - np.array(moved)[:, None, None])[:, 8:-8, 8:-8]
        assert error.mean() < 0.06 and error.max() < 0.5, moved


def test_flow_is_zero_where_nothing_can_be_seen():
    grey = jnp.full((16, 16), 0.4)
    np.testing.assert_array_equal(jax.jit(flow.lucas_kanade)(grey, grey), 0)
    with pytest.raises(ValueError, match="expected two pictures"):
        flow.lucas_kanade(grey, grey[:8])
    with pytest.raises(ValueError, match="levels=0"):
        flow.lucas_kanade(grey, grey, levels=0)


def batch(count=3, frames=6, size=8):
    return {
        "clip": jnp.asarray(RNG.integers(0, 256, (count, frames, size, size, 3)), jnp.uint8),
        "id": jnp.arange(count),
    }


def test_frames_of_a_clip_are_consecutive_and_cut_alike():
    view = clip.make(frames=3, every=2, **PLAIN)
    given = batch()
    rows = given["clip"].astype(jnp.float32) / 255
    found = jax.jit(view.draw)(example_keys(jax.random.key(0), given["id"]), given)
    for one, whole in zip(found, rows):
        starts = [np.allclose(one, whole[s : s + 5 : 2], atol=1e-5) for s in (0, 1)]
        assert sum(starts) == 1
    np.testing.assert_allclose(jax.jit(view.clean)(given), rows[:, 0:5:2], atol=1e-5)
    crop = clip.make(frames=2, **PLAIN | dict(crop="tv", scale=(0.2, 0.5), flip=0.5))
    still = given | {"clip": jnp.broadcast_to(given["clip"][:, :1], given["clip"].shape)}
    found = jax.jit(crop.draw)(example_keys(jax.random.key(1), given["id"]), still)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])


def test_a_view_does_not_depend_on_the_place_in_the_batch():
    given = batch()
    swapped = jax.tree.map(lambda x: x[::-1], given)
    for view in (clip.make(frames=2, **PLAIN), streams.make(fields=2, gap=1, levels=1, **PLAIN)):
        one, two = (
            jax.jit(view.draw)(example_keys(jax.random.key(0), b["id"]), b)
            for b in (given, swapped)
        )
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[::-1]), one, two)


def test_streams_show_a_frame_its_neighbour_and_its_flow():
    view = streams.make(gap=2, fields=2, levels=1, **PLAIN | dict(size=16))
    moving = np.stack([texture(0.7 * t, 0.0, 16, 16) for t in range(7)])
    pixels = (np.clip(moving, 0, 1) * 255).round().astype(np.uint8)[None, ..., None]
    given = {"clip": jnp.asarray(np.repeat(pixels, 3, -1)), "id": jnp.arange(1)}
    drawn = jax.jit(view.draw)(example_keys(jax.random.key(3), given["id"]), given)
    clean = jax.jit(view.clean)(given)
    frames = np.asarray(jax.jit(view.frames)(given))[0]
    for found in (drawn, clean):
        assert found["flow"].shape == (1, 16, 16, 4)
        x, y = np.asarray(found["flow"])[0, 4:-4, 4:-4, 0::2], np.asarray(found["flow"])[..., 1::2]
        assert abs(x.mean() - 0.7) < 0.1 and abs(y[0, 4:-4, 4:-4].mean()) < 0.1
        at, near = (
            int(np.abs(frames - np.asarray(found[name])[0]).sum((1, 2, 3)).argmin())
            for name in ("frame", "neighbour")
        )
        assert abs(at - near) == 2


def test_errors_say_what_was_expected():
    given = batch()
    for call, text in (
        (lambda: clip.make(frames=-1), "frames=-1"),
        (lambda: clip.make(frames=9, **PLAIN).clean(given), "frames=9, every=1 of clips with 6"),
        (lambda: clip.make(**PLAIN).clean({"clip": given["clip"][0]}), "expected uint8"),
        (lambda: streams.make(gap=0), "gap=0"),
        (lambda: streams.make(fields=6, **PLAIN).clean(given), "fields=6, gap=2 of clips with 6"),
        (lambda: streams.make(gap=4, fields=1, **PLAIN).clean(given), "Expected at most 3"),
    ):
        with pytest.raises(ValueError, match=text):
            call()
