"""Spectrograms: tones lie in their band and frame, changes do what they say."""

import jax
import numpy as np
import pytest

from cl_jax.core.keys import example_keys
from cl_jax.views import spectrogram

RATE = 8000
SIZES = dict(sample_rate=RATE, samples=2000, frame=256, hop=125, mels=16)
KEYS = example_keys(jax.random.key(1), np.arange(6))


def tone(hertz, start=0, end=2000, stored=2400, length=2000):
    time = np.arange(stored)
    wave = np.where((time >= start) & (time < end), np.sin(2 * np.pi * hertz * time / RATE), 0)
    return np.rint(20000 * wave).astype(np.int16)


def batch(*waves, length=2000):
    return {"audio": np.stack(waves), "length": np.full(len(waves), length, np.int32)}


def test_a_tone_is_loudest_in_its_band_and_while_it_lasts():
    bands = spectrogram.filters(RATE, 256, 16)
    given = batch(tone(500), tone(2500), tone(500, end=1000))
    found = np.asarray(jax.jit(spectrogram.make(**SIZES).clean)(given))
    assert found.shape == (3, 16, 16, 1) and found.min() >= -1 and found.max() == 1
    for picture, hertz in zip(found, (500, 2500)):
        nearest = bands[round(hertz * 256 / RATE)].argmax()
        assert (picture[2:-2, :, 0].argmax(1) == nearest).all()
    late, early = found[2, 10:].max(), found[2, :7].max()
    assert late == -1 and early == 1


def test_bands_cover_all_frequencies_once():
    """Between the middles of the first and of the last band."""
    found = spectrogram.filters(RATE, 512, 16)
    first, last = found[:, 0].argmax() + 1, found[:, -1].argmax()
    np.testing.assert_allclose(found[first:last].sum(1), 1, atol=1e-9)
    assert (spectrogram.filters(RATE, 64, 32).sum(0) > 0).all()  # narrower than the transform


def test_what_is_not_of_the_recording_is_silence():
    """The stored row goes on after its length, and that is not heard."""
    loud = tone(500, end=2400)
    given = batch(loud, length=1000)
    found = np.asarray(jax.jit(spectrogram.make(**SIZES).clean)(given))[0, :, :, 0]
    quiet = found.max(1) == -1
    assert quiet[:2].all() and quiet[-2:].all() and (found[5:11].max(1) > 0.9).all()


@pytest.mark.parametrize(
    "change",
    [
        dict(speed=0.4),
        pytest.param(dict(shift=0.3), marks=pytest.mark.slow),
        pytest.param(dict(noise=0.5), marks=pytest.mark.slow),
    ],
)
def test_changes_are_drawn_by_each_key_and_left_out_half_of_the_time(change):
    view = spectrogram.make(**SIZES, **change)
    given = batch(*[tone(800, start=700, end=1300)] * 6)
    draw = jax.jit(view.draw)
    clean, drawn = np.asarray(jax.jit(view.clean)(given)), np.asarray(draw(KEYS, given))
    differs = np.abs(drawn - clean).max((1, 2, 3)) > 1e-3
    assert 1 <= differs.sum() <= 5  # by the six keys above
    part = {name: rows[2:4] for name, rows in given.items()}
    np.testing.assert_allclose(draw(KEYS[2:4], part), drawn[2:4], atol=1e-3)
    none = spectrogram.make(**SIZES)
    np.testing.assert_allclose(jax.jit(none.draw)(KEYS, given), clean, atol=1e-4)


def test_speed_moves_the_pitch():
    view = spectrogram.make(**SIZES, speed=0.5)
    wave = np.float32(tone(1000)) / 2**15
    cut = view._cut(wave, np.int32(2000), np.float32(0), np.float32(1.5))
    peak = np.abs(np.fft.rfft(cut)).argmax() * RATE / 2000
    assert abs(peak - 1500) < 10


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(hop=0), "hop=0; expected at least 1"),
        (dict(frame=100, hop=200), "hop=200; expected at most frame=100"),
        (dict(range_db=0.0), "range_db=0.0; expected above 0"),
        (dict(speed=-0.1), "speed=-0.1; expected at least 0"),
    ],
)
def test_errors(settings, words):
    with pytest.raises(ValueError, match=words):
        spectrogram.make(**settings)
