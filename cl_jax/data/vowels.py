"""`vowels`: speech-like recordings without a download. A source and three formant filters say words
of three vowels in the voices of six speakers.

A word is a path through the formants of three vowels (Peterson and Barney 1952, table II, means of
men). Each word has another one of the same vowels in another order, so that a spectrum averaged
over time does not tell them apart. A speaker is a pitch and a length of the vocal tract, which
scales the formants. Length, loudness, pitch, formants and noise vary from recording to recording.
"""

import numpy as np

from cl_jax.core.seeds import generator
from cl_jax.data.source import Source, Splits, from_arrays

FORMANTS_HZ = {
    "i": (270, 2290, 3010),
    "e": (530, 1840, 2480),
    "a": (730, 1090, 2440),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}
WORDS = ("iea", "aei", "oai", "iao", "uoa", "aou", "eui", "ieu", "oue", "euo")
SPEAKERS = (  # (pitch in Hz, scale of the formants)
    (100.0, 0.98),
    (118.0, 1.04),
    (140.0, 1.10),
    (165.0, 1.16),
    (195.0, 1.22),
    (230.0, 1.28),
)
_BANDWIDTHS_HZ = (60.0, 90.0, 150.0)
_SECONDS = (0.5, 0.72)  # of a word
_FRAME_SECONDS = 0.01  # formants change once a frame
_FEW = 512  # recordings made at a time


def make(
    *,
    train_size: int = 1500,
    test_size: int = 500,
    sample_rate: int = 8000,
    limit: int = 0,
    seed: int = 0,
) -> Splits:
    """Synthesises the two parts; about four seconds.

    Fields: "audio" int16 [S], zeros after the word; "length" int32, its samples. Labels, int32:
    "label" (the word, 10) and "speaker" (6).

    Args:
      train_size, test_size: recordings.
      sample_rate: in Hz, at most 192000, and at least 7000, or the highest formant does not fit
        below half of it.
      limit: recordings of each part at most; 0 for all. `audio` has it too: a config with it takes
        either.
      seed: of everything.

    Raises:
      ValueError: a size below 1, a sample rate too low.
    """
    for name, size in (("train_size", train_size), ("test_size", test_size)):
        if size < 1:
            raise ValueError(f"{name}={size}; expected 1 or more.")
    if not 7000 <= sample_rate <= 192_000:
        raise ValueError(f"sample_rate={sample_rate}; expected 7000 to 192000 Hz.")
    if limit < 0:
        raise ValueError(f"limit={limit}; expected a number of recordings, or 0 for all.")
    if limit:
        train_size, test_size = min(train_size, limit), min(test_size, limit)
    longest = round(_SECONDS[1] * sample_rate)

    def part(number: int, name: str, size: int) -> Source:
        rng = generator(seed, number)
        word, speaker = (rng.integers(len(of), size=size) for of in (WORDS, SPEAKERS))
        length = (rng.uniform(*_SECONDS, size) * sample_rate).astype(np.int32)
        audio = np.concatenate(
            [
                _say(rng, word[at], speaker[at], length[at], longest, sample_rate)
                for at in (slice(i, i + _FEW) for i in range(0, size, _FEW))
            ]
        )
        arrays = {
            "audio": audio,
            "length": length,
            "label": word.astype(np.int32),
            "speaker": speaker.astype(np.int32),
        }
        return from_arrays(
            f"vowels/{name}", arrays, {"label": len(WORDS), "speaker": len(SPEAKERS)}
        )

    return Splits(part(0, "train", train_size), part(1, "test", test_size))


def _say(rng, word, speaker, length, longest, rate):
    """Recordings int16 [N, longest]."""
    count, time = len(word), np.arange(longest) / rate
    pitch, scale = np.array(SPEAKERS)[speaker].T
    pitch = pitch * (1 + 0.05 * rng.standard_normal(count))
    bend = np.sin(
        2 * np.pi * (rng.uniform(0.5, 2, (count, 1)) * time[None] + rng.uniform(size=(count, 1)))
    )
    phase = np.cumsum(pitch[:, None] * (1 + 0.1 * bend) / rate, axis=1)
    pulses = np.diff(np.floor(phase), axis=1, prepend=0) > 0
    source = pulses + 0.02 * rng.standard_normal((count, longest))

    # Where in the word each frame is: 0, 1, 2 in the middle of a vowel, between them on the way.
    frame = round(_FRAME_SECONDS * rate)
    at = np.clip(np.arange(0, longest, frame)[None] / length[:, None] * 3 - 0.5, 0, 2)
    before = np.minimum(at.astype(int), 1)
    share = (at - before)[..., None]
    vowels = np.array([[FORMANTS_HZ[vowel] for vowel in spelt] for spelt in WORDS], float)[word]
    rows = np.arange(count)[:, None]
    formants = (1 - share) * vowels[rows, before] + share * vowels[rows, before + 1]
    formants = formants * scale[:, None, None] * (1 + 0.02 * rng.standard_normal(formants.shape))
    voiced = _filtered(source.T, np.minimum(formants, 0.47 * rate).T, frame, rate).T

    inside = np.arange(longest)[None] < length[:, None]
    voiced = np.where(inside, voiced, 0)
    peak = np.abs(voiced).max(1, keepdims=True) + 1e-9
    loud = voiced / peak * rng.uniform(0.3, 0.7, (count, 1))
    wave = loud + 0.004 * rng.standard_normal(loud.shape)
    return np.where(inside, np.clip(np.rint(wave * 2**15), -32768, 32767), 0).astype(np.int16)


def _filtered(source, formants, frame, rate):
    """Source [S, N] through three resonances in a row, formants [3, frames, N] in Hz."""
    radius = np.exp(-np.pi * np.array(_BANDWIDTHS_HZ) / rate)[:, None]
    once = (2 * radius[:, None] * np.cos(2 * np.pi * formants / rate)).transpose(1, 0, 2)
    twice, gain = -(radius**2), 1 - radius
    out = np.empty_like(source)
    last = np.zeros((3, source.shape[1]))
    before = last
    for t, x in enumerate(source):
        # A filter reads what the one before it gave a sample ago: a delay, and one step for all.
        now = gain * np.stack([x, last[0], last[1]]) + once[t // frame] * last + twice * before
        before, last = last, now
        out[t] = now[2]
    return out
