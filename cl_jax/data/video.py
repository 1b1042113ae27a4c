"""`video`: the user's own folder of films or clips.

    clips/run/*.mp4                 films: any container that PyAV reads (pip install av)
    clips/run/a.npy                 frames as an array uint8 [T, H, W] or [T, H, W, C]
    clips/run/b/0001.jpg ...        a folder of pictures is one clip, in the order of their names
    clips/train/...  clips/test/... parts, by any of the names that `folder` knows

Sub-folders above the clips are the label, by name in alphabetical order. A table captions.csv (or
.tsv, .jsonl) in the folder adds a sentence to each; its column "split" of train and test, where it
has one, divides the films. All frames are cut to their central square and resized, and lie in
memory.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from cl_jax.core.paths import user_path
from cl_jax.data import images, lines, listing, tokenizer
from cl_jax.data.images import map_threads, printable, report_bad
from cl_jax.data.labels import refuse_alike
from cl_jax.data.listing import Listing
from cl_jax.data.parts import ADVICE, ON_PARTS, check_folders, drawn, few, of_folders, role
from cl_jax.data.reading import learnt_of, scale_of
from cl_jax.data.source import Source, Splits, from_arrays, with_learnt

CONTAINERS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ogv", ".wmv")
# Films in formats that are not read.
_UNREAD = frozenset(
    ".flv .f4v .3gp .3g2 .ts .mts .m2ts .vob .rm .rmvb .asf .divx .ogm .mxf .y4m .gif .mjpeg .npz "
    ".heic .avif".split()
)
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff")
SAMPLING = ("pieces", "spread")
_TABLES = tuple(f"captions{suffix}" for suffix in (".csv", ".tsv", ".jsonl"))
_SHOWN = 5  # films that an error names
_ALIKE = "Name them alike, or set labels=False."


def make(
    *,
    path: str,
    frames: int = 16,
    every: int = 1,
    sampling: str = "pieces",
    image_size: int = 64,
    channels: int = 3,
    labels: bool = True,
    test_share: float = 0.1,
    file_column: str = "file",
    caption_column: str = "caption",
    length: int = 32,
    vocab_size: int = 4000,
    lowercase: bool = True,
    tokenizer_path: str = "",
    tokenizer_cache: str = "",
    value_range: tuple[float, float] | None = None,
    max_bytes: int = 2**32,
    limit: int = 0,
    on_error: str = "raise",
    on_parts: str = "raise",
    workers: int = 4,
    learnt: Mapping[str, Any] | None = None,
) -> Splits:
    """The films below `path` as clips of `frames` frames.

    Fields: "clip" uint8 [frames, image_size, image_size, channels]; "video" int32, the number of
    the film that it is of; "label" int32 where there are sub-folders; "tokens" uint16 [length], or
    [K, length] where a film has up to K captions, where there is a table of them. A clip has the
    name of its film, and of several of one film "#1", "#2", ... behind it.

    Args:
      path: the folder.
      frames: of a clip. every: frames of the film from one of a clip to the next.
      sampling: "pieces" cuts a film into clips one after the other, and leaves out a rest that is
        too short; "spread" makes one clip of a film, its frames evenly over the whole, which fits
        captions of whole films.
      image_size, channels: of the stored squares; 1 or 3 channels.
      labels: sub-folders are the label. False takes the films of all sub-folders without one.
      test_share: of the films of each label, by a hash of their path, where there is no folder
        "test". Of a single film, the last clips.
      file_column, caption_column: of the table of captions, where there is one; files are named
        relative to it.
      length, vocab_size, lowercase, tokenizer_path, tokenizer_cache: as in `data.text`.
      value_range: of pictures of more than 8 bits, as in `data.folder`.
      max_bytes: all clips together may take.
      limit: at most so many films of each part are read, of each label as many, and in pieces only
        the beginning of each, about so many clips of a part; 0 for all. For trying a command.
      on_error: "raise" names the films that cannot be used; "skip" leaves them out, logs them and
        counts them in `Source.skipped`.
      on_parts: of folders that would be labels and are named like parts ("my_train" and "my_test").
        "raise" refuses them, "warn" takes them for labels.
      workers: threads that read.
      learnt: see `Source`: {"tokenizer"}, and "value_range" as in `data.folder`. Without the first,
        captions are left out. `path` may then be one film.

    Raises:
      ValueError: no such folder, no film in it, films that cannot be read or are too short, an
        array of another shape or type, captions without a film or films without a caption, more
        than `max_bytes`, a label that the test part writes in another way.
    """
    _check(frames, every, sampling, image_size, channels, test_share, limit, on_error, on_parts)
    suffixes = (".npy", *CONTAINERS, *PICTURES)
    root, listed = listing.at(path, "films or clips", suffixes, _UNREAD, one=learnt is not None)
    names, refused = _films(root, listed)
    if not names:
        seen = f" It has {listing.unread_in(listed)}." if listed.unread else ""
        raise ValueError(
            f"{path} holds no film: neither folders of pictures nor files that end in .npy, "
            f"{', '.join(CONTAINERS)}.{seen}"
        )
    if listed.unread:
        logging.warning("%s: skipped files: %s.", path, listing.unread_in(listed))
    if labels and learnt is None:
        listing.refuse_lost(path, listed, names, 1 if of_folders(names) else 0, "film")
    table = (file_column, caption_column, learnt is None)
    texts, splits = _captions(root, names, *table) if user_path(path).is_dir() else ({}, {})
    if texts and learnt is not None and not ("tokenizer" in learnt or tokenizer_path):
        logging.warning("%s: its captions are left out; the run kept no tokenizer for them.", path)
        texts = {}
    divides = learnt is None and not splits
    if (labels or divides) and not of_folders(names):
        try:
            check_folders(path, names, ADVICE, on_parts=on_parts, labels=labels, shared=1)
        except ValueError as error:
            if learnt is None:
                raise
            logging.warning("no labels: %s", error)
            labels = False
    fewer: dict[str, str] = {}
    if limit and len(names) > 1:
        fewer = _few(path, root, names, labels, test_share, splits, limit)
        names = [name for name in names if name in fewer]
    most = -(-2 * limit // len(names))
    shown = [name for name in listed.files if _is_picture(name) and name not in listed.bad]
    scale = scale_of(root, shown, value_range, learnt)
    kept = learnt_of(scale)

    def stored(name: str) -> np.ndarray | str:
        if name in refused:
            return refused[name]
        try:
            return _clips(root / name, frames, every, sampling, image_size, channels, scale, most)
        except (ValueError, OSError) as error:
            return str(error)

    found = map_threads(stored, names, workers)
    bad = refused | {name: one for name, one in zip(names, found) if isinstance(one, str)}
    if bad:
        report_bad("films", path, bad, on_error)
    good = {name: one for name, one in zip(names, found) if not isinstance(one, str)}
    if not good:
        raise ValueError(f"{path}: none of its {len(names)} films can be used.")
    taken = sum(one.nbytes for one in good.values())
    if taken > max_bytes:
        raise ValueError(
            f"{path}: its clips take {taken / 2**30:.1f} GiB, more than max_bytes="
            f"{max_bytes / 2**30:.1f} GiB. Lower image_size, raise every, or raise max_bytes."
        )
    folders, kinds, tokens, vocabulary = {}, {}, None, 0
    try:
        if labels or learnt is None:
            folders = of_folders(list(good))
        if labels:
            kinds = _labels(path, list(good), folders)
    except ValueError as error:
        if learnt is None:
            raise
        logging.warning("no labels: %s", error)
    if splits and folders:
        raise ValueError(
            f"{path} has folders that are parts and a table of captions with a column split; "
            "expected one of the two. Rename the column."
        )
    parts = {"": list(good.items())}
    if learnt is None:
        parts = _parts(root, good, folders, kinds, test_share, fewer or splits)
        for which, films in parts.items():
            if not films:
                raise ValueError(f"{path}: no film of its {which} part can be used.")
        if not fewer:
            train, test = ([kinds.get(n, "") for n, _ in parts[part]] for part in ("train", "test"))
            refuse_alike(path, train, test, "label folders", _ALIKE)
    classes = sorted(set(kinds.values()))
    if texts:
        most = max(len(texts[name]) for name in good)
        taught = dict.fromkeys(name for name, _ in parts.get("train", ()))
        made = tokenizer.of_text(
            [text for name in taught for text in texts[name]],
            learnt=learnt,
            path=tokenizer_path,
            vocab_size=vocab_size,
            lowercase=lowercase,
            cache=tokenizer_cache,
        )
        kept, vocabulary = kept | {"tokenizer": made.plain}, made.size
        tokens = {name: _rows(made.encode(texts[name], length), most) for name in good}
    number = {name: k for k, name in enumerate(good)}

    def part(which: str) -> Source:
        chosen = parts[which]
        arrays = {
            "clip": np.concatenate([clips for _, clips in chosen]),
            "video": np.concatenate(
                [np.full(len(clips), number[name], np.int32) for name, clips in chosen]
            ),
        }
        sizes = {"video": len(good)}
        each = [name for name, clips in chosen for _ in clips]
        clip_names = [
            name if len(good[name]) == 1 else f"{name}#{i}"
            for name, clips in chosen
            for i in _numbers(len(clips), len(good[name]), which)
        ]
        if classes:
            arrays["label"] = np.array([classes.index(kinds[name]) for name in each], np.int32)
            sizes["label"] = len(classes)
        if tokens is not None:
            arrays["tokens"] = np.stack([tokens[name] for name in each])
            sizes["tokens"] = vocabulary
        called = f"{root.name}/{which}" if which else user_path(path).resolve().name
        made = from_arrays(called, arrays, sizes)
        skipped = 0 if which == "test" else len(bad)
        named = {"label": tuple(classes)} if classes else {}
        return dataclasses.replace(made, skipped=skipped, names=clip_names, classes=named)

    if learnt is not None:
        whole = part("")
        return with_learnt(Splits(whole, whole), learnt or None)
    return with_learnt(Splits(part("train"), part("test")), kept or None)


def read(
    path: str | Path, *, channels: int = 3, scale: images.Scale | None = None
) -> Iterator[np.ndarray]:
    """The frames of one film, uint8 [H, W, channels], in order. `scale` is of pictures of more than
    8 bits, as in `images.decode`.

    Raises:
      ValueError: a file that cannot be read or is not a film, an array of another shape or type, no
        PyAV for a container.
    """
    file = Path(path)
    if file.is_dir():
        return _of_pictures(file, channels, scale)
    if file.suffix.lower() == ".npy":
        return _of_array(file, channels)
    return _of_container(file, channels)


def _of_pictures(folder: Path, channels: int, scale: images.Scale | None) -> Iterator[np.ndarray]:
    for name in sorted(_pictures(folder), key=_natural):
        yield images.decode(folder / name, name, image_size=None, channels=channels, scale=scale)


def _of_array(file: Path, channels: int) -> Iterator[np.ndarray]:
    try:
        frames = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # of a damaged header: tokenize.TokenError too
        raise ValueError(f"is not an array that can be read ({error})") from None
    if frames.dtype != np.uint8 or frames.ndim not in (3, 4):
        raise ValueError(
            f"is {frames.dtype}{list(frames.shape)}; expected uint8 [T, H, W] or [T, H, W, C]"
        )
    if frames.ndim == 4 and frames.shape[-1] not in (1, 3):
        raise ValueError(f"has {frames.shape[-1]} channels on its last axis; expected 1 or 3")
    for frame in frames:
        picture = Image.fromarray(frame[..., 0] if frame.shape[-1:] == (1,) else frame)
        yield _array(picture.convert("L" if channels == 1 else "RGB"))


def _of_container(file: Path, channels: int) -> Iterator[np.ndarray]:
    try:
        import av
    except ImportError:
        raise ValueError("is a film; install a reader of films with pip install av") from None
    try:
        with av.open(str(file)) as opened:
            if not opened.streams.video:
                raise ValueError("has no pictures")
            for frame in opened.decode(video=0):
                yield _array(frame.to_image().convert("L" if channels == 1 else "RGB"))
    except av.error.FFmpegError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None


def _array(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _clips(
    file: Path,
    frames: int,
    every: int,
    sampling: str,
    size: int,
    channels: int,
    scale: images.Scale | None,
    most: int,
) -> np.ndarray:
    """[N, frames, size, size, channels] of one film, of pieces at most `most`; 0 for all."""
    step = every if sampling == "pieces" else 1
    end = most * frames * step if most and sampling == "pieces" else None
    shown = itertools.islice(read(file, channels=channels, scale=scale), end)
    kept = [_square(frame, size) for number, frame in enumerate(shown) if number % step == 0]
    if len(kept) < frames:
        given = f" one in {every}" if every > 1 and sampling == "pieces" else ""
        raise ValueError(f"has {len(kept)} frames{given}, fewer than frames={frames}")
    if sampling == "spread":
        at = np.rint(np.linspace(0, len(kept) - 1, frames)).astype(int)
        return np.stack([kept[i] for i in at])[None]
    count = len(kept) // frames
    whole = np.stack(kept[: count * frames])
    return whole.reshape(count, frames, *whole.shape[1:])


def _square(frame: np.ndarray, size: int) -> np.ndarray:
    """The central square, resized with an antialiasing filter to [size, size, C]."""
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    picture = Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)
    box = (left, top, left + side, top + side)
    return _array(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _films(root: Path, found: Listing) -> tuple[list[str], dict[str, str]]:
    """(paths inside the folder of all films, sorted; {path: reason} of those that may not be
    opened)."""
    films: dict[str, str] = {}
    for name in found.files:
        if _is_picture(name):
            folder = name.rpartition("/")[0]
            if not folder:
                raise ValueError(
                    f"{root} has pictures beside its clips, such as {printable(name)}. A clip is a "
                    "folder of pictures: move them into one."
                )
            reason = found.bad.get(name, "")
            films[folder] = films.get(folder) or (reason and f"{printable(name)}: {reason}")
        else:
            films[name] = found.bad.get(name, "")
    links = {name: reason for name, reason in found.bad.items() if name not in found.files}
    return sorted(films, key=_natural), {n: reason for n, reason in films.items() if reason} | links


def _is_picture(name: str) -> bool:
    return images.suffix(name) in PICTURES


def _pictures(folder: Path) -> list[str]:
    return [
        file.name
        for file in folder.iterdir()
        if _is_picture(file.name) and not file.name.startswith(".")
    ]


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers in names count as numbers: frame 9 comes before frame 10."""
    return [
        (int(word), "") if word.isdecimal() else (-1, word) for word in re.split(r"(\d+)", name)
    ]


def _parts(
    root: Path,
    clips: Mapping[str, np.ndarray],
    parts: Mapping[str, str],
    labels: Mapping[str, str],
    share: float,
    splits: Mapping[str, str],
) -> dict[str, list[tuple[str, np.ndarray]]]:
    """{part: [(film, its clips)]}. parts: those of the top folders, empty where these are none;
    splits: those of the films by their table, likewise."""
    if len(clips) == 1 and not splits and "test" not in parts.values():
        ((name, whole),) = clips.items()
        if len(whole) < 2:
            raise ValueError(
                f"{root} makes one clip, too few for a train and a test part. Add films, or lower "
                "frames or every."
            )
        count = min(max(1, round(share * len(whole))), len(whole) - 1)
        logging.info("%s is one film: its last %d clips are the test part.", root, count)
        return {"train": [(name, whole[:-count])], "test": [(name, whole[-count:])]}
    of = _division(root, list(clips), parts, labels, share, splits)
    return {
        part: [(name, one) for name, one in clips.items() if of[name] == part]
        for part in ("train", "test")
    }


def _division(
    root: Path,
    names: Sequence[str],
    parts: Mapping[str, str],
    labels: Mapping[str, str],
    share: float,
    splits: Mapping[str, str],
) -> dict[str, str]:
    """{film: "train" or "test"} of several films; `parts` and `splits` as in `_parts`."""
    if splits:
        return dict(splits)
    if "test" in parts.values():
        return {name: parts[name.split("/")[0]] for name in names}
    chosen = drawn(names, share, labels or None)
    if not chosen:
        raise ValueError(
            f"{root} has one film of each label, too few for a train and a test part. Add films."
        )
    return {name: "test" if name in chosen else "train" for name in names}


def _numbers(count: int, of_film: int, part: str) -> range:
    """From 1, the numbers of clips of a film: all, or the last where the others train."""
    return range(of_film - count + 1, of_film + 1) if part == "test" else range(1, count + 1)


def _few(
    path: str,
    root: Path,
    names: Sequence[str],
    labels: bool,
    share: float,
    splits: Mapping[str, str],
    limit: int,
) -> dict[str, str]:
    """{film: its part} of at most `limit` films of each part, chosen before any is read."""
    folders = of_folders(names)
    kinds = _labels(path, names, folders) if labels else {}
    of = _division(root, names, folders, kinds, share, splits)
    parts = {part: [name for name in names if of[name] == part] for part in ("train", "test")}
    train, test = ([kinds.get(name, "") for name in films] for films in parts.values())
    refuse_alike(path, train, test, "label folders", _ALIKE)
    return {name: part for part, films in few(parts, limit, kinds).items() for name in films}


def _labels(path: str, names: Sequence[str], parts: Mapping[str, str]) -> dict[str, str]:
    """{film: label} of the first sub-folder; {} where films have none, or all the same."""
    inside = [name.split("/")[1:] if parts else name.split("/") for name in names]
    folders = {words[0] for words in inside if len(words) > 1}
    if len(folders) < 2:
        return {}
    beside = [name for name, words in zip(names, inside) if len(words) < 2]
    if beside:
        raise ValueError(
            f"{path} has films beside its label folders, such as {printable(beside[0])}. Move them "
            "into one, or set labels=False."
        )
    return {name: words[0] for name, words in zip(names, inside)}


def _captions(
    root: Path, names: Sequence[str], file: str, caption: str, divides: bool
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """({film: its captions}, {film: "train" or "test"}); {} without a table, or a column split that
    `divides` the films."""
    tables = [root / name for name in _TABLES if (root / name).is_file()]
    if not tables:
        return {}, {}
    found: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for row in lines.table(tables[0]):
        missing = [column for column in (file, caption) if column not in row]
        if missing:
            raise ValueError(
                f"{tables[0]}, line {row['line']} has no {missing[0]!r}; it has "
                f"{', '.join(map(str, row))}. Name the columns by file_column and caption_column."
            )
        name, texts = lines.words(row[file]).rstrip("/"), lines.every(row[caption])
        if not name or not texts or not all(texts):
            raise ValueError(f"{tables[0]}, line {row['line']}: an empty file name or caption.")
        found.setdefault(name, []).extend(texts)
        if divides and (split := lines.split_of(row)):
            part = role(split)
            if part not in ("train", "test"):
                raise ValueError(
                    f"{tables[0]}, line {row['line']}: split is {split!r}; expected train or test "
                    "(or validation, valid, val, dev)."
                )
            if splits.setdefault(name, part) != part:
                raise ValueError(
                    f"{tables[0]}, line {row['line']}: {printable(name)} is in both parts."
                )
    lost = sorted(set(found) - set(names))
    if lost:
        raise ValueError(
            f"{tables[0]} has captions of {len(lost)} films that are not there, such as "
            f"{printable(lost[0])}. Films are named relative to {root}."
        )
    silent = [name for name in names if name not in found]
    if silent:
        raise ValueError(
            f"{len(silent)} films have no caption in {tables[0]}, such as {printable(silent[0])}. "
            "Add one for each, or remove the table."
        )
    if splits and (without := [name for name in names if name not in splits]):
        raise ValueError(
            f"{tables[0]} says of some films which split they are of, and of {len(without)} "
            f"nothing, such as {printable(without[0])}. Fill the column, or remove it."
        )
    return found, splits


def _rows(tokens: np.ndarray, most: int) -> np.ndarray:
    """[T], or [most, T] where films have several captions; fewer are repeated."""
    return tokens[0] if most == 1 else tokens[np.arange(most) % len(tokens)]


def _check(
    frames: int,
    every: int,
    sampling: str,
    image_size: int,
    channels: int,
    test_share: float,
    limit: int,
    on_error: str,
    on_parts: str,
) -> None:
    if min(frames, every, image_size) < 1:
        raise ValueError(
            f"frames={frames}, every={every}, image_size={image_size}; expected 1 or more of each."
        )
    choices: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (
        ("sampling", sampling, SAMPLING),
        ("channels", channels, (1, 3)),
        ("on_error", on_error, ("raise", "skip")),
        ("on_parts", on_parts, ON_PARTS),
    )
    for name, value, known in choices:
        if value not in known:
            raise ValueError(f"{name}={value!r}; expected one of {known}.")
    if not 0 < test_share < 1:
        raise ValueError(f"test_share={test_share}; expected above 0 and below 1.")
    if limit < 0:
        raise ValueError(f"limit={limit}; expected a number of films, or 0 for all.")
