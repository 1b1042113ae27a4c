"""Log-mel spectrograms of recordings, as images of one channel."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

_FLOOR = 1e-10  # of power: digital silence has no logarithm


@dataclasses.dataclass(frozen=True)
class SpectrogramView:
    """The log-mel spectrogram of a window of `samples` samples: [B, samples // hop, mels, 1]
    float32 from -1 to 1.

    From "audio", int16 [B, S], of which the first "length" [B] samples are real. The window lies
    around the middle of the recording; where it is longer, the rest is silence. Power is in
    decibels below the loudest cell of the window, from -range_db (-1) to 0 (1). Clean has none of
    the changes below.

    sample_rate: of the recordings, in Hz.
    samples, hop: the window and the distance of frames. frame: samples of one, under a Hann window.
    mels: bands, equally wide in mel from 0 Hz to half the rate.
    shift: the largest shift in time, as a share of the window, to either side.
    speed: the largest change of speed, and with it of pitch: .2 is from 1/1.2 to 1.2 times.
    noise: the largest amplitude of white noise, as a share of the root mean square of the window.

    Shift, log speed and amplitude are uniform; each of the three is left out with probability .5.
    """

    sample_rate: int = 16000
    samples: int = 16000
    frame: int = 2048
    hop: int = 500
    mels: int = 32
    range_db: float = 80.0
    shift: float = 0.0
    speed: float = 0.0
    noise: float = 0.0
    needs: ClassVar[tuple[str, ...]] = ("audio", "length")
    wants: ClassVar[tuple[str, ...]] = ()

    def draw(self, keys: jax.Array, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Spectrograms of a batch. keys: [B] typed keys, one for each recording."""

        def one(key: jax.Array, wave: jax.Array, length: jax.Array) -> jax.Array:
            coins, moved, sped, loud, hiss = jax.random.split(key, 5)
            on = jax.random.bernoulli(coins, shape=(3,))
            limits = jnp.array([self.shift * self.samples, math.log1p(self.speed)])
            ends = jnp.stack([jax.random.uniform(k, minval=-1.0) for k in (moved, sped)])
            shift, log_speed = jnp.where(on[:2], limits * ends, 0.0)
            cut = self._cut(wave, length, shift, jnp.exp(log_speed))
            if self.noise:
                amplitude = self.noise * jax.random.uniform(loud) * on[2]
                rms = jnp.sqrt(jnp.square(cut).mean())
                cut = cut + amplitude * rms * jax.random.normal(hiss, cut.shape)
            return cut

        return self._spectrum(jax.vmap(one)(keys, *self._waves(batch)))

    def clean(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The spectrograms without changes."""

        def one(wave: jax.Array, length: jax.Array) -> jax.Array:
            return self._cut(wave, length, jnp.float32(0), jnp.float32(1))

        return self._spectrum(jax.vmap(one)(*self._waves(batch)))

    def _waves(self, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        wave = jnp.asarray(batch["audio"], jnp.float32) / 2**15
        return wave, jnp.asarray(batch["length"], jnp.int32)

    def _cut(
        self, wave: jax.Array, length: jax.Array, shift: jax.Array, speed: jax.Array
    ) -> jax.Array:
        """The window of one recording, by linear interpolation between samples where the speed may
        change."""
        start, middle = (length - self.samples) // 2, self.samples / 2

        def sample(i: jax.Array) -> jax.Array:
            inside = (i >= 0) & (i < length)
            return jnp.where(inside, wave[jnp.clip(i, 0, len(wave) - 1)], 0.0)

        if not self.speed:
            return sample(start + jnp.round(shift).astype(jnp.int32) + jnp.arange(self.samples))
        at = start + middle + shift + (jnp.arange(self.samples) - middle) * speed
        low = jnp.floor(at).astype(jnp.int32)
        share = at - low
        return (1 - share) * sample(low) + share * sample(low + 1)

    def _spectrum(self, waves: jax.Array) -> jax.Array:
        frames = self.samples // self.hop
        around = self.frame - self.hop
        padded = jnp.pad(waves, ((0, 0), (max(around // 2, 0), max(around - around // 2, 0))))
        at = self.hop * np.arange(frames)[:, None] + np.arange(self.frame)[None]
        hann = jnp.asarray(np.hanning(self.frame + 1)[:-1], jnp.float32)
        spectrum = jnp.fft.rfft(padded[:, at] * hann[None, None])
        power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
        bands = power @ jnp.asarray(filters(self.sample_rate, self.frame, self.mels), jnp.float32)
        db = 10 * jnp.log10(jnp.maximum(bands, _FLOOR))
        below = db - db.max((1, 2), keepdims=True)
        return (1 + 2 * jnp.maximum(below, -self.range_db) / self.range_db)[..., None]


def filters(sample_rate: int, frame: int, mels: int) -> np.ndarray:
    """[frame // 2 + 1, mels] triangles over the frequencies of a transform of `frame` samples:
    each rises from the middle of the band below to 1 and falls to the middle of the next. A band
    between two frequencies of the transform takes the nearest one.

    The scale is mel = 2595 log10(1 + Hz / 700).
    """
    hertz = np.fft.rfftfreq(frame, 1 / sample_rate)
    edges = 700 * (10 ** (np.linspace(0, _mel(sample_rate / 2), mels + 2) / 2595) - 1)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rise = (hertz[:, None] - low) / (middle - low)
    fall = (high - hertz[:, None]) / (high - middle)
    found = np.maximum(0, np.minimum(rise, fall))
    empty = np.flatnonzero(found.sum(0) == 0)
    found[np.abs(hertz[:, None] - middle[empty]).argmin(0), empty] = 1
    return found


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def make(
    *,
    sample_rate: int = 16000,
    samples: int = 16000,
    frame: int = 2048,
    hop: int = 500,
    mels: int = 32,
    range_db: float = 80.0,
    shift: float = 0.0,
    speed: float = 0.0,
    noise: float = 0.0,
) -> SpectrogramView:
    """A `SpectrogramView` from a config section; the defaults are 32 x 32 cells of a second at 16
    kHz, those of i-Mix's Speech Commands.

    Raises:
      ValueError: a size below 1, a hop longer than a frame or than the window, a negative change.
    """
    for name, value in (
        ("sample_rate", sample_rate),
        ("samples", samples),
        ("frame", frame),
        ("hop", hop),
        ("mels", mels),
    ):
        if value < 1:
            raise ValueError(f"{name}={value}; expected at least 1.")
    if hop > min(frame, samples):
        raise ValueError(f"hop={hop}; expected at most frame={frame} and samples={samples}.")
    if not range_db > 0:
        raise ValueError(f"range_db={range_db}; expected above 0.")
    for name, change in (("shift", shift), ("speed", speed), ("noise", noise)):
        if not change >= 0:
            raise ValueError(f"{name}={change}; expected at least 0.")
    return SpectrogramView(sample_rate, samples, frame, hop, mels, range_db, shift, speed, noise)
