"""`audio`: the user's own folder of recordings, WAV, FLAC or Ogg, of one sample rate or of many.

    speech/*.wav                         no labels
    speech/anna/*.flac  speech/ben/...   sub-folders are the label, by name in alphabetical order
    speech/train/...  speech/test/...    parts, each in one of the forms above; they may have the
                                         other names that `folder` knows

Or a pattern reads the labels from the files' names. Several channels become their mean. WAV needs
nothing further; for the other formats `pip install soundfile`.
"""

import dataclasses
import math
import re
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from scipy.signal import resample_poly

from cl_jax.core.paths import user_path
from cl_jax.data import listing
from cl_jax.data.images import map_threads, printable, report_bad
from cl_jax.data.labels import NONE, refuse_alike
from cl_jax.data.parts import ADVICE, ON_PARTS, check_folders, drawn, few, of_folders
from cl_jax.data.source import TO_KEEP, Source, Splits, from_arrays, with_learnt

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif")
# Recordings in formats that are not read.
_UNREAD = frozenset(
    ".m4a .m4b .mp4 .aac .wma .amr .au .snd .caf .w64 .rf64 .mka .weba .webm .ac3 .ape .wv .tta "
    ".spx .mp2 .3gp .aifc .sph .alac".split()
)
_SILENCE = 2**-14  # of full scale: below, all samples are 0, 1 or -1 in 16 bits
_FULL = 1 - 2**-14
_FOLDERS = "label folders", "set labels=False"
_SHOWN = 5  # recordings that an error names


class Recording(NamedTuple):
    """samples: float32 [S], full scale 1. rate: of samples, in Hz."""

    samples: np.ndarray
    rate: int


def make(
    *,
    path: str,
    sample_rate: int = 0,
    seconds: float = 0.0,
    labels: bool = True,
    pattern: str = "",
    test_pattern: str = "",
    test_share: float = 0.1,
    max_clipped: float = 0.01,
    limit: int = 0,
    on_error: str = "raise",
    on_parts: str = "raise",
    workers: int = 4,
    learnt: Mapping[str, Any] | None = None,
) -> Splits:
    """The recordings below `path`, in memory.

    Fields: "audio" int16 [S], zeros after the recording, and "length" int32, its samples. int32
    labels: "label" of sub-folders, and the named groups of `pattern`.

    A recording is refused where it cannot be read, has no samples, or is silent: no sample of it
    exceeds 2^-14 of full scale. Loud ones of which more than `max_clipped` of the samples are at
    full scale are kept and counted in a warning.

    Args:
      path: the folder.
      sample_rate: in Hz; recordings of other rates are resampled, with an antialiasing filter. 0:
        they must have one rate and keep it.
      seconds: longer recordings end there; 0: none is cut, and all are stored as long as the
        longest.
      labels: sub-folders are the label. False takes the recordings of all sub-folders without one,
        such as those of speakers, others in each part.
      pattern: a regular expression with named groups, searched for in each path inside the folder:
        r"(?P<label>\\d)_(?P<speaker>[a-z]+)_\\d+" makes two labels. Sub-folders are then no label.
        A group that takes no part in a match is a recording without that label, -1.
      test_pattern: a regular expression: recordings in whose path it is found are the test part.
      test_share: of the recordings of each "label", by a hash of their path, where there is neither
        a folder "test" nor a `test_pattern`.
      max_clipped: a share of a recording's samples.
      limit: at most so many recordings of each part are read, of each label as many; 0 for all. For
        trying a command.
      on_error: "raise" names the recordings that cannot be used; "skip" leaves them out, logs them
        and counts them in `Source.skipped`.
      on_parts: of folders that would be labels and are named like parts ("my_train" and "my_test").
        "raise" refuses them, "warn" takes them for labels.
      workers: threads that read.
      learnt: see `Source`: {"sample_rate"}, where none was asked for. `path` may then be one
        recording; those without a label by the run's rules have none.

    Raises:
      ValueError: no such folder, no recordings in it, a label folder of formats that are not read,
        recordings that cannot be used, several sample rates where none is asked for, a pattern
        that is wrong or not found, a part without recordings, a "label" that the test part
        writes in another way.
    """
    _check_settings(sample_rate, seconds, test_share, max_clipped, limit, on_error)
    if on_parts not in ON_PARTS:
        raise ValueError(f"on_parts={on_parts!r}; expected 'raise' or 'warn'.")
    root, listed = listing.at(path, "recordings", SUFFIXES, _UNREAD, one=learnt is not None)
    files, rate = listed.files, sample_rate
    if learnt is not None and not rate:
        rate = learnt.get("sample_rate", 0)
        if not rate:
            logging.warning(
                "%s keeps its own sample rate; the run did not keep that of its training data. %s",
                path,
                TO_KEEP,
            )
    if not files:
        seen = f" It has {listing.unread_in(listed)}." if listed.unread else ""
        raise ValueError(
            f"{path} holds no recording; their names end in {', '.join(SUFFIXES)}, at any depth."
            f"{seen}"
        )
    if listed.unread:
        logging.warning("%s: skipped files: %s.", path, listing.unread_in(listed))
    words: dict[str, list[str]] = {}
    of_folder = labels and not pattern
    if of_folder and learnt is None:
        depth = 1 if of_folders(files) else 0
        listing.refuse_lost(path, listed, files, depth, "recording")
    try:
        divides = learnt is None and not test_pattern
        if (of_folder or divides) and not of_folders(files):
            check_folders(path, files, ADVICE, on_parts=on_parts, labels=of_folder, shared=1)
        if labels or pattern:
            words = _labels(path, files, pattern, some=learnt is not None)
    except ValueError as error:
        if learnt is None:
            raise
        logging.warning("no labels: %s", error)
    is_test = [False] * len(files)
    if learnt is None:
        is_test = _test_part(path, files, test_pattern, test_share, words.get("label"))
    if "label" in words and learnt is None:  # others may be in one part on purpose: speakers
        of = words["label"]
        train = [one for one, tested in zip(of, is_test) if not tested]
        test = [one for one, tested in zip(of, is_test) if tested]
        what, mend = ("labels", "rename the group") if pattern else _FOLDERS
        refuse_alike(path, train, test, what, f"Name them alike, or {mend}.")
    numbers = {field: _numbered(of) for field, of in words.items()}
    if limit:
        parts = {
            part: [name for name, tested in zip(files, is_test) if tested == (part == "test")]
            for part in ("train", "test")
        }
        groups = dict(zip(files, words["label"])) if "label" in words else None
        kept = set().union(*few(parts, limit, groups).values())
        at = [i for i, name in enumerate(files) if name in kept]
        files, is_test = [files[i] for i in at], [is_test[i] for i in at]
        numbers = {field: (of[at], names) for field, (of, names) in numbers.items()}

    def stored(name: str) -> Stored | str:
        return listed.bad.get(name) or _stored(root / name, rate, seconds)

    found = map_threads(stored, files, workers)
    bad = listed.bad | {name: one for name, one in zip(files, found) if isinstance(one, str)}
    if bad:
        report_bad("recordings", path, bad, on_error)
    good = [i for i, one in enumerate(found) if not isinstance(one, str)]
    if not good:
        raise ValueError(f"{path}: none of its {len(files)} recordings can be used.")
    waves = [found[i] for i in good]
    _tell(path, [files[i] for i in good], waves, max_clipped, seconds)
    longest = max(len(one.samples) for one in waves)

    def part(name: str, test: bool) -> Source:
        rows = [k for k, i in enumerate(good) if is_test[i] == test]
        if not rows:
            which = "test" if test else "train"
            raise ValueError(f"{path}: no recording of its {which} part can be used.")
        audio = np.zeros((len(rows), longest), np.int16)
        for row, k in enumerate(rows):
            audio[row, : len(waves[k].samples)] = waves[k].samples
        lengths = np.array([len(waves[k].samples) for k in rows], np.int32)
        arrays: dict[str, np.ndarray] = {"audio": audio, "length": lengths}
        for field, (of, _) in numbers.items():
            arrays[field] = of[[good[k] for k in rows]]
        classes = {field: of_field for field, (_, of_field) in numbers.items()}
        sizes = {field: len(of_field) for field, of_field in classes.items()}
        found = from_arrays(name, arrays, sizes)
        skipped = sum(is_test[i] == test for i in range(len(files))) - len(rows)
        names = [files[good[k]] for k in rows]
        return dataclasses.replace(found, skipped=skipped, names=names, classes=classes)

    if learnt is not None:
        whole = part(user_path(path).resolve().name, False)
        return with_learnt(Splits(whole, whole), learnt or None)
    splits = Splits(part(f"{root.name}/train", False), part(f"{root.name}/test", True))
    return with_learnt(splits, None if sample_rate else {"sample_rate": waves[0].rate})


def read(file: str | Path) -> Recording:
    """One recording, the mean of its channels.

    Raises:
      ValueError: a file that is damaged or of another format, or no soundfile for one that is not
        WAV.
    """
    file = Path(file)
    if not file.stat().st_size:
        raise ValueError("an empty file")
    if file.suffix.lower() == ".wav":
        try:
            return _wav(file)
        except Exception as error:  # of a damaged header: RuntimeError and struct.error too
            reason = str(error) or "it ends before its data"
            if "unknown format" not in reason:
                raise ValueError(f"not a WAV file that can be read ({reason})") from None
            # Floats and compressed samples: soundfile reads them.
    try:
        import soundfile
    except ImportError:
        raise ValueError(
            "is not a plain WAV; install a reader of other formats with pip install soundfile"
        ) from None
    try:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"cannot be read ({error.error_string})") from None
    return Recording(samples.mean(1), int(rate))


def _wav(file: Path) -> Recording:
    with wave.open(str(file), "rb") as opened:
        width, channels, count = opened.getsampwidth(), opened.getnchannels(), opened.getnframes()
        rate, data = opened.getframerate(), opened.readframes(count)
    if len(data) < count * width * channels:
        raise EOFError(f"{len(data)} bytes of samples of {count * width * channels}")
    if width == 1:  # the one width without a sign
        values = np.frombuffer(data, np.uint8).astype(np.float32) / 128 - 1
    elif width == 3:
        parts = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.int32)
        values = (parts[:, 0] << 8 | parts[:, 1] << 16 | parts[:, 2] << 24) / np.float32(2**31)
    elif width in (2, 4):
        values = np.frombuffer(data, f"<i{width}") / np.float32(2 ** (8 * width - 1))
    else:
        raise wave.Error(f"{8 * width} bits a sample")
    return Recording(values.reshape(-1, channels).mean(1, dtype=np.float32), rate)


class Stored(NamedTuple):
    """A recording as a source has it. samples: int16 [S]. rate: in Hz. clipped: share of the file's
    samples at full scale. cut: whether it went on."""

    samples: np.ndarray
    rate: int
    clipped: float
    cut: bool


def _stored(file: Path, rate: int, seconds: float) -> Stored | str:
    """The recording at `rate`, or why it cannot be used."""
    try:
        samples, given = read(file)
    except (ValueError, OSError) as error:
        return str(error)
    if not len(samples):
        return "has no samples"
    if not np.isfinite(samples).all():
        return "has samples that are NaN or inf"
    if given < 1:
        return f"has a sample rate of {given} Hz"
    loudness = np.abs(samples)
    if loudness.max() <= _SILENCE:
        return "is silent"
    clipped = float((loudness >= _FULL).mean())
    rate = rate or given
    if given != rate:
        common = math.gcd(given, rate)
        samples = resample_poly(samples, rate // common, given // common)
    most = max(1, round(seconds * rate)) if seconds else len(samples)
    whole = np.clip(np.rint(samples[:most] * 2**15), -(2**15), 2**15 - 1).astype(np.int16)
    return Stored(whole, rate, clipped, len(samples) > most)


def _tell(
    path: str, files: Sequence[str], recordings: Sequence[Stored], most: float, seconds: float
) -> None:
    """Refuses several rates; logs what was cut and what is clipped."""
    first = recordings[0].rate
    for name, one in zip(files, recordings):
        if one.rate != first:
            raise ValueError(
                f"{path}: {printable(files[0])} has {first} samples a second and {printable(name)} "
                f"{one.rate}. Set sample_rate={min(first, one.rate)}, to which all are resampled."
            )
    if cut := sum(one.cut for one in recordings):
        logging.info("%s: %d recordings end after %g s.", path, cut, seconds)
    clipped = [name for name, one in zip(files, recordings) if one.clipped > most]
    if clipped:
        logging.warning(
            "%s: in %d of %d recordings, such as %s, more than %g %% of the samples are at full "
            "scale: clipped. They are kept.",
            path,
            len(clipped),
            len(files),
            printable(clipped[0]),
            100 * most,
        )


def _test_part(
    path: str,
    files: Sequence[str],
    pattern: str,
    share: float,
    labels: Sequence[str] | None,
) -> list[bool]:
    """Whether each recording is of the test part: by the pattern, by the folders, or a share of
    each label."""
    if pattern:
        found = [bool(_compiled("test_pattern", pattern).search(name)) for name in files]
        if all(found) or not any(found):
            raise ValueError(
                f"test_pattern={pattern!r} is found in {'all' if all(found) else 'none'} of the "
                f"{len(files)} paths in {path}, such as {printable(files[0])}; expected some."
            )
        return found
    parts = of_folders(files)
    if "test" in parts.values():
        return [parts[name.split("/")[0]] == "test" for name in files]
    if len(files) < 2:
        raise ValueError(f"{path} has one recording, too few for a train and a test part.")
    groups = dict(zip(files, labels)) if labels is not None else None
    chosen = drawn(files, share, groups)
    if not chosen:
        raise ValueError(
            f"{path} has one recording of each label, too few for a train and a test part. Add "
            "recordings."
        )
    return [name in chosen for name in files]


def _labels(path: str, files: Sequence[str], pattern: str, some: bool) -> dict[str, list[str]]:
    """{label field: the name of each recording's label, "" for none}. `some`: the pattern need be
    found in some of the paths alone."""
    if pattern:
        matches = [_compiled("pattern", pattern).search(name) for name in files]
        fields = list(_compiled("pattern", pattern).groupindex)
        if not fields:
            raise ValueError(f"pattern={pattern!r} has no named group, such as (?P<label>[a-z]+).")
        lost = [name for name, match in zip(files, matches) if match is None]
        if lost and not some:
            raise ValueError(
                f"pattern={pattern!r} is not found in {len(lost)} of the {len(files)} paths in "
                f"{path}, such as {printable(lost[0])}."
            )
        texts = {field: [(m[field] or "") if m else "" for m in matches] for field in fields}
    else:
        skip = 1 if of_folders(files) else 0
        inside = [name.split("/")[skip:] for name in files]
        folders = {parts[0] for parts in inside if len(parts) > 1}
        beside = [name for name, parts in zip(files, inside) if len(parts) < 2]
        if len(folders) < 2:  # one folder tells nothing apart
            return {}
        if beside:
            raise ValueError(
                f"{path} has recordings beside its label folders, such as {printable(beside[0])}. "
                "Move them into one, read labels by a pattern, or set labels=False."
            )
        texts = {"label": [parts[0] for parts in inside]}
    if some:
        texts = {field: values for field, values in texts.items() if any(values)}
    for field, values in texts.items():
        if field in ("audio", "length", "id"):
            raise ValueError(
                f"pattern={pattern!r}: {field!r} is not a name for a label; rename it."
            )
        if not any(values):
            raise ValueError(f"pattern={pattern!r}: no recording has a {field!r}.")
    return texts


def _numbered(words: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(int32 [N], the names of the values)."""
    names = tuple(sorted(set(words) - {""}))
    number = {name: k for k, name in enumerate(names)}
    return np.array([number.get(one, NONE) for one in words], np.int32), names


def _compiled(setting: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{setting}={pattern!r} is not a regular expression: {error}.") from None


def _check_settings(
    sample_rate: int,
    seconds: float,
    test_share: float,
    max_clipped: float,
    limit: int,
    on_error: str,
) -> None:
    if sample_rate < 0 or seconds < 0:
        raise ValueError(
            f"sample_rate={sample_rate}, seconds={seconds}; expected a number above 0, or 0."
        )
    if not 0 < test_share < 1:
        raise ValueError(f"test_share={test_share}; expected above 0 and below 1.")
    if not 0 <= max_clipped <= 1:
        raise ValueError(f"max_clipped={max_clipped}; expected a share from 0 to 1.")
    if limit < 0:
        raise ValueError(f"limit={limit}; expected a number of recordings, or 0 for all.")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}; expected 'raise' or 'skip'.")
