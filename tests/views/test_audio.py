"""Windows of recordings."""

from functools import partial

import jax
import numpy as np
import pytest

from cl_jax.core.keys import example_keys
from cl_jax.views import audio


def _batch(count, length, stored=50):
    """Each recording counts its own samples, from 100 times its number."""
    wave = np.arange(stored)[None] + 100 * np.arange(count)[:, None]
    real = np.arange(stored)[None] < np.asarray(length)[:, None]
    return {
        "audio": np.where(real, wave, 0).astype(np.int16),
        "length": np.asarray(length, np.int32),
    }


@partial(jax.jit, static_argnums=0)
def _draw(view, batch):
    ids = jax.numpy.arange(len(batch["length"]))
    return view.draw(example_keys(jax.random.key(0), ids), batch)


def _samples(windows):
    return np.rint(np.asarray(windows) * 2**15).astype(int)


def test_a_window_is_a_run_of_real_samples_and_may_begin_anywhere():
    count = 1200
    batch = _batch(count, np.full(count, 24) - np.arange(count) % 3)
    batch["audio"] = (np.arange(50)[None] * np.ones((count, 1))).astype(np.int16)
    start = _samples(_draw(audio.make(samples=20), batch))
    np.testing.assert_array_equal(np.diff(start, axis=1), 1)
    for room, first in ((4, start[0::3, 0]), (3, start[1::3, 0]), (2, start[2::3, 0])):
        share = np.bincount(first, minlength=room + 1) / len(first)
        assert len(share) == room + 1
        np.testing.assert_allclose(share, 1 / (room + 1), atol=0.06)


def test_clean_is_the_middle():
    batch = _batch(2, [30, 21])
    windows = _samples(audio.make(samples=20).clean(batch))
    np.testing.assert_array_equal(windows[:, 0], [5, 100])


def test_a_short_recording_is_repeated():
    batch = _batch(2, [7, 50])
    windows = _samples(_draw(audio.make(samples=20), batch))
    np.testing.assert_array_equal(windows[0], np.arange(20) % 7)


def test_spans_are_the_earlier_and_the_later_part():
    batch = _batch(200, np.full(200, 50))
    batch["audio"] = np.tile(np.arange(50), (200, 1)).astype(np.int16)
    early = _samples(_draw(audio.make(samples=10, span=(0.0, 0.4)), batch))[:, 0]
    late = _samples(_draw(audio.make(samples=10, span=(0.6, 1.0)), batch))[:, 0]
    assert early.min() == 0 and 12 <= early.max() <= 16
    assert late.max() == 40 and 24 <= late.min() <= 28


def test_level_takes_loudness_away_and_leaves_silence():
    rng = np.random.default_rng(0)
    wave = rng.normal(size=(1, 50)) * np.array([[3000.0], [300.0], [0.0]])
    batch = {"audio": wave.astype(np.int16), "length": np.full(3, 50, np.int32)}
    windows = np.asarray(audio.make(samples=50, level="rms").clean(batch))
    np.testing.assert_allclose(np.square(windows).mean(1), [1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(windows[0], windows[1], atol=0.01)


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="samples=0"):
        audio.make(samples=0)
    with pytest.raises(ValueError, match="first <= second"):
        audio.make(span=(0.5, 0.2))
    with pytest.raises(ValueError, match="none, rms"):
        audio.make(level="peak")
