"""The synthesised recordings: words and voices are what they say."""

import numpy as np
import pytest

from cl_jax.data import vowels


def _energy(wave, rate, low, high):
    power = np.square(np.abs(np.fft.rfft(wave * np.hanning(len(wave)))))
    hertz = np.fft.rfftfreq(len(wave), 1 / rate)
    return power[(hertz >= low) & (hertz < high)].sum() / power.sum()


def test_fields():
    splits = vowels.make(train_size=12, test_size=5)
    arrays = splits.train.arrays
    assert arrays["audio"].dtype == np.int16 and arrays["audio"].shape == (12, 5760)
    assert splits.train.sizes == {"label": 10, "speaker": 6} and splits.test.size == 5
    for wave, length in zip(arrays["audio"], arrays["length"]):
        assert 4000 <= length <= 5760 and not wave[length:].any()
        assert 0.25 < np.abs(wave).max() / 2**15 < 0.8


def test_a_word_is_its_vowels_in_order():
    """The word iea begins with a low first formant and ends with a high one, aei the other way."""
    splits = vowels.make(train_size=400, test_size=1)
    arrays = splits.train.arrays
    for word, sign in (("iea", 1), ("aei", -1)):
        of_word = arrays["label"] == vowels.WORDS.index(word)
        change = []
        for wave, length in zip(arrays["audio"][of_word], arrays["length"][of_word]):
            third = length // 4
            begin, end = wave[:third], wave[length - third : length]
            change.append(_energy(end, 8000, 600, 1800) - _energy(begin, 8000, 600, 1800))
        assert len(change) > 10 and (sign * np.array(change) > 0).mean() > 0.9


def test_a_speaker_is_a_pitch():
    arrays = vowels.make(train_size=200, test_size=1).train.arrays
    found = np.zeros(200)
    for i, (wave, length) in enumerate(zip(arrays["audio"], arrays["length"])):
        real = wave[:length].astype(float)
        power = np.abs(np.fft.rfft(real, 2 * len(real))) ** 2
        lags = np.fft.irfft(power)[: 8000 // 70]
        found[i] = 8000 / (25 + np.argmax(lags[25:]))
    medians = [np.median(found[arrays["speaker"] == s]) for s in range(6)]
    expected = [pitch for pitch, _ in vowels.SPEAKERS]
    np.testing.assert_allclose(medians, expected, rtol=0.08)


def test_recordings_depend_on_the_seed_and_their_part():
    a, b, c = (vowels.make(train_size=4, test_size=4, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a.train.arrays["audio"], b.train.arrays["audio"])
    assert (a.train.arrays["audio"] != c.train.arrays["audio"]).any()
    assert (a.train.arrays["audio"] != a.test.arrays["audio"]).any()


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="train_size=0"):
        vowels.make(train_size=0)
    with pytest.raises(ValueError, match="expected 7000 to 192000 Hz"):
        vowels.make(sample_rate=4000)
