"""`image_text`: pictures with sentences about them. The user's own, or `scenes` with captions.

    photos/captions.csv      a header and a row for each caption: file,caption
    photos/captions.jsonl    or an object a line: {"file": "a/1.jpg", "caption": "a cat"}
    photos/a/1.jpg           files are named relative to the table

A file named in several rows, or with a list of captions in JSON, has several captions. A column
"split" of train and test divides the pictures; without one, a hash of the file's name does. With a
column of classes (`label_column`) there are labels, and prompts for zero-shot classification.

Fields: "image" uint8 [S, S, C] and "tokens" uint16 [T], or [K, T] where pictures have up to K
captions (fewer are repeated; a view draws one of them). "label" where there are classes.
`more["prompts"]`: "tokens" and "label", sentences that name each class.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from cl_jax.core.names import some
from cl_jax.core.paths import user_path
from cl_jax.core.seeds import generator
from cl_jax.data import captions, images, lines, scenes, tokenizer
from cl_jax.data.labels import NONE
from cl_jax.data.parts import ON_PARTS, check_folders, drawn, role, spaced
from cl_jax.data.reading import learnt_of, read_or_next, scale_of
from cl_jax.data.source import Example, ForEvaluation, Source, Splits, from_arrays, with_learnt
from cl_jax.data.tokenizer import Tokenizer
from cl_jax.data.wordpiece import WordPiece

TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "a {}.")
_TABLES = tuple(f"captions{suffix}" for suffix in (".csv", ".tsv", ".jsonl"))
_ADVICE = (
    "A column split of train and test divides the pictures, and without one a hash of their names; "
    'add the column. Where none of these folders is a part, set on_parts="warn".'
)
_SHOWN = 5
_LONGEST = 255  # bytes of a file's name


def make(
    *,
    path: str = "",
    image_size: int = 32,
    channels: int = 3,
    file_column: str = "file",
    caption_column: str = "caption",
    label_column: str = "",
    templates: ForEvaluation[Sequence[str]] = TEMPLATES,
    test_share: float = 0.1,
    limit: int = 0,
    length: int = 32,
    vocab_size: int = 4000,
    lowercase: bool = True,
    tokenizer_path: str = "",
    tokenizer_cache: str = "",
    level: str = "easy",
    train_size: int = 8192,
    test_size: int = 2048,
    seed: int = 0,
    on_error: str = "raise",
    on_parts: str = "raise",
    value_range: tuple[float, float] | None = None,
    max_pixels: int = images.MAX_PIXELS,
    cache_bytes: int = 2**31,
    workers: int = 8,
    learnt: Mapping[str, Any] | None = None,
) -> Splits:
    """Pictures and captions.

    Args:
      path: the table of captions, or the folder that holds captions.csv, captions.tsv or
        captions.jsonl; "" for `scenes` with captions.
      image_size, channels: of the stored squares, as in `data.folder`; `scenes` are 32 by 32.
      file_column, caption_column: names of the table's columns.
      label_column: a column of class names; "" for none. An empty cell is a picture without a
        label, -1. A class may be in the test part alone: zero-shot classification asks for those.
      templates: prompts of a class, with {} in the place of its name.
      test_share: of the pictures, where no column "split" divides them.
      limit: at most so many pictures of each part are read, from its whole length; 0 for all. For
        trying a command.
      length, vocab_size, lowercase, tokenizer_path, tokenizer_cache: as in `data.text`.
      level, train_size, test_size, seed: of `scenes`.
      on_error: "raise" names pictures that cannot be used and empty captions; "skip" leaves them
        out and counts them in `Source.skipped`.
      on_parts: of pictures in folders that are named like parts, where no column "split" divides
        them. "raise" refuses them, "warn" divides them by the hash all the same.
      value_range, max_pixels, cache_bytes, workers: as in `data.folder`.
      learnt: see `Source`: {"tokenizer"}, and "value_range" as in `data.folder`. A table without
        the column `label_column`, or with none of its cells filled, has then no labels, and a
        column "split" says nothing.

    Raises:
      ValueError: a table that is missing, damaged or lacks a column; a caption without its picture;
        an empty caption; a picture that cannot be used; a picture in two parts.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}; expected 'raise' or 'skip'.")
    if on_parts not in ON_PARTS:
        raise ValueError(f"on_parts={on_parts!r}; expected 'raise' or 'warn'.")
    if not 0 < test_share < 1:
        raise ValueError(
            f"test_share={test_share}; expected above 0 and below 1: evaluation needs pictures of "
            "its own."
        )
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}; expected 1 or 3.")
    if limit < 0:
        raise ValueError(f"limit={limit}; expected a number of pictures, or 0 for all.")
    if wrong := [template for template in templates if template.count("{}") != 1]:
        raise ValueError(f"templates has {wrong[0]!r}; expected one {{}} in each, for the class.")

    def tokens_by(sentences: Sequence[str]) -> Tokenizer | WordPiece:
        return tokenizer.of_text(
            sentences,
            learnt=learnt,
            path=tokenizer_path,
            vocab_size=vocab_size,
            lowercase=lowercase,
            cache=tokenizer_cache,
        )

    if not path:
        if image_size != scenes.IMAGE_SIZE or channels != 3:
            raise ValueError(
                f"image_size={image_size} and channels={channels}; `scenes` are "
                f"{scenes.IMAGE_SIZE} pixels wide, of 3 channels. Leave both out, or give path."
            )
        return _of_scenes(tokens_by, length, level, train_size, test_size, seed)
    table = _table(path)
    rows = _rows(table, file_column, caption_column, label_column, on_error, learnt is not None)
    _check_files(table, rows)
    parts = {"": list(rows)} if learnt is not None else _divided(table, rows, test_share, on_parts)
    if limit:
        parts = {part: spaced(names, limit) for part, names in parts.items()}
    classes = sorted({row.label for row in rows.values()} - {""})
    if label_column and not classes and learnt is None:
        raise ValueError(f"{table}: no picture has a {label_column!r}; set label_column=''.")
    taught = parts.get("train", ())
    made = tokens_by([text for name in taught for text in rows[name].captions])
    most = max(len(row.captions) for row in rows.values())
    shown = [name for names in parts.values() for name in names]
    scale = scale_of(table.parent, shown, value_range, learnt)
    sources = {
        part: _source(
            f"{table.parent.name}/{part}".rstrip("/"),
            table.parent,
            names,
            rows,
            _tokens(made, length, [rows[name].captions for name in names], most),
            made.size,
            classes,
            dict(image_size=image_size, channels=channels, max_pixels=max_pixels, scale=scale),
            on_error,
            cache_bytes,
            workers,
            decode=learnt is not None,
        )
        for part, names in parts.items()
    }
    more = {}
    if classes:
        prompts = [
            (template.replace("{}", name), k)
            for k, name in enumerate(classes)
            for template in templates
        ]
        more["prompts"] = _prompts(table.parent.name, made, length, prompts, len(classes))
    if learnt is not None:
        return with_learnt(Splits(sources[""], sources[""], more), learnt)
    kept = learnt_of(scale) | {"tokenizer": made.plain}
    return with_learnt(Splits(sources["train"], sources["test"], more), kept)


class _Picture(NamedTuple):
    line: int
    captions: list[str]
    split: str
    label: str


def _of_scenes(tokens_by, length, level, train_size, test_size, seed) -> Splits:
    parts = scenes.make(
        level=level, share=None, train_size=train_size, test_size=test_size, seed=seed
    )
    texts = []
    for number, source in enumerate((parts.train, parts.test)):
        rng = generator(seed, 32 + number)
        texts.append(captions.sentences(rng, captions.factors(source)))
    prompts, digits = captions.prompts()
    # Prompts are among the text that the vocabulary is of, so that every word of them has pieces.
    made = tokens_by([*texts[0], *prompts])

    def part(name: str, source: Source, sentences: list[str]) -> Source:
        arrays = {
            key: source.arrays[key]
            for key in ("image", "label", "colour", "place", "background", "instance")
        }
        sizes = {key: source.sizes[key] for key in arrays if key in source.sizes}
        tokens = made.encode(sentences, length)
        return from_arrays(
            f"scenes_captions/{name}", arrays | {"tokens": tokens}, sizes | {"tokens": made.size}
        )

    pairs = list(zip(prompts, digits))
    more = {"prompts": _prompts("scenes_captions", made, length, pairs, len(captions.DIGITS))}
    train, test = part("train", parts.train, texts[0]), part("test", parts.test, texts[1])
    return with_learnt(Splits(train, test, more), {"tokenizer": made.plain})


def _prompts(
    name: str,
    made: Tokenizer | WordPiece,
    length: int,
    prompts: Sequence[tuple[str, Any]],
    classes: int,
) -> Source:
    arrays = {
        "tokens": made.encode([text for text, _ in prompts], length),
        "label": np.array([label for _, label in prompts], np.int32),
    }
    return from_arrays(f"{name}/prompts", arrays, {"tokens": made.size, "label": classes})


def _table(path: str) -> Path:
    root = user_path(path)
    if root.is_file():
        return root
    if not root.is_dir():
        raise ValueError(f"path={path!r} is neither a folder nor a table of captions.")
    found = [root / name for name in _TABLES if (root / name).is_file()]
    if not found:
        raise ValueError(
            f"{path} holds none of {', '.join(_TABLES)}. Give the table itself as path, or name it "
            "so."
        )
    return found[0]


def _rows(
    table: Path,
    file_column: str,
    caption_column: str,
    label_column: str,
    on_error: str,
    other: bool,
) -> dict[str, _Picture]:
    """The pictures of a table by file name. `other`: it is not the run's own, may lack the column
    of labels, and is not divided."""
    found: dict[str, _Picture] = {}
    empty: list[int] = []
    wanted = [file_column, caption_column, "" if other else label_column]
    for row in lines.table(table):
        missing = [column for column in wanted if column and column not in row]
        if missing:
            raise ValueError(
                f"{table}, line {row['line']} has no {missing[0]!r}; it has "
                f"{', '.join(map(str, row))}. Name the columns by file_column, caption_column and "
                "label_column."
            )
        name, texts = lines.words(row[file_column]), lines.every(row[caption_column])
        line = int(row["line"])
        if not name or not texts or not all(texts):
            empty.append(line)
            continue
        label = lines.words(row[label_column]) if label_column and label_column in row else ""
        one = _Picture(line, texts, "" if other else lines.split_of(row), label)
        before = found.get(name)
        if before is not None and (before.split, before.label) != (one.split, one.label):
            raise ValueError(
                f"{table}: {images.printable(name)} is in line {before.line} and, with another "
                f"split or label, in line {line}."
            )
        found[name] = one if before is None else before._replace(captions=before.captions + texts)
    if empty and on_error == "raise":
        raise ValueError(
            f"{table} has an empty file name or caption in {lines.some(empty)}. Mend those lines, "
            "or set on_error='skip' to leave them out."
        )
    if empty:
        logging.warning("%s: skipped %d lines without file or caption.", table, len(empty))
    if not found:
        raise ValueError(f"{table} holds no caption.")
    return found


def _check_files(table: Path, rows: Mapping[str, _Picture]) -> None:
    root = table.parent.resolve()
    for name, row in rows.items():
        longest = max(len(part.encode("utf-8", "replace")) for part in name.split("/"))
        if longest > _LONGEST or "\0" in name:
            raise ValueError(
                f"{table}, line {row.line}: {images.printable(name)[:60]!r}... is not a file's "
                "name. Are the columns file_column and caption_column the right way round?"
            )
        if not (root / name).resolve().is_relative_to(root):
            raise ValueError(
                f"{table}, line {row.line}: {images.printable(name)} leads out of the folder."
            )
    lost = [
        f"{images.printable(name)} (line {row.line})"
        for name, row in rows.items()
        if not (root / name).is_file()
    ]
    if lost:
        mend = " Write / in place of \\ in their names." if "\\" in lost[0] else ""
        raise ValueError(
            f"{table} has {len(lost)} captions without their picture: {some(lost, _SHOWN)}. "
            f"Files are named relative to {table.parent}.{mend}"
        )


def _divided(
    table: Path, rows: Mapping[str, _Picture], share: float, on_parts: str
) -> dict[str, list[str]]:
    given = {row.split for row in rows.values()}
    if given != {""}:
        wrong = {name for name in given if role(name) not in ("train", "test")}
        if wrong:
            raise ValueError(
                f"{table}: the column split holds {sorted(wrong)[0]!r}; expected train or test (or "
                "validation, valid, val, dev)."
            )
        parts = {
            part: [name for name, row in rows.items() if role(row.split) == part]
            for part in ("train", "test")
        }
    else:
        check_folders(str(table), list(rows), _ADVICE, on_parts=on_parts, labels=False)
        chosen = drawn(list(rows), share, {name: row.label for name, row in rows.items()})
        parts = {
            "train": [name for name in rows if name not in chosen],
            "test": [name for name in rows if name in chosen],
        }
    short = [part for part, names in parts.items() if not names]
    if short:
        raise ValueError(f"{table} has no picture for its {short[0]} part. Add pictures.")
    return parts


def _tokens(
    made: Tokenizer | WordPiece, length: int, texts: Sequence[Sequence[str]], most: int
) -> np.ndarray:
    """uint16 [N, length], or [N, most, length] where a picture has several captions."""
    if most == 1:
        return made.encode([given[0] for given in texts], length)
    flat = made.encode([given[k % len(given)] for given in texts for k in range(most)], length)
    return flat.reshape(len(texts), most, length)


def _source(
    name: str,
    root: Path,
    names: Sequence[str],
    rows: Mapping[str, _Picture],
    tokens: np.ndarray,
    vocabulary: int,
    classes: Sequence[str],
    how: dict[str, Any],
    on_error: str,
    cache_bytes: int,
    workers: int,
    decode: bool,
) -> Source:
    """A part of the pictures, decoded once where they fit `cache_bytes`, else as they are read.
    `decode`: those too are decoded first, to find all damage: none may take another's place."""
    fields, sizes = {"tokens": tokens}, {"tokens": vocabulary}
    if classes:
        numbers = {label: k for k, label in enumerate(classes)} | {"": NONE}
        fields["label"] = np.array([numbers[rows[n].label] for n in names], np.int32)
        sizes["label"] = len(classes)
    named = {"label": tuple(classes)} if classes else {}
    keep = len(names) * how["image_size"] ** 2 * how["channels"] <= cache_bytes

    def decoded(i: int) -> np.ndarray:
        return images.decode(root / names[i], names[i], **how)

    def tried(i: int) -> np.ndarray | str:
        try:
            if keep:
                return decoded(i)
            if decode:
                decoded(i)
                return ""
            images.inspect(root / names[i], names[i], max_pixels=how["max_pixels"])
            return ""
        except ValueError as error:
            return str(error)

    results = images.map_threads(tried, range(len(names)), workers)
    bad = [result for result in results if isinstance(result, str) and result]
    if bad and on_error == "raise":
        raise ValueError(
            f"{len(bad)} of the pictures of {name} cannot be used:\n  "
            + "\n  ".join(bad[:_SHOWN])
            + "\nMend or remove them, or leave them out: --config.data.on_error=skip."
        )
    for line in bad:
        logging.warning("skipped %s", line)
    good = np.array(
        [i for i, result in enumerate(results) if not (isinstance(result, str) and result)],
        np.int64,
    )
    if not len(good):
        raise ValueError(f"no picture of {name} can be used.")
    fields = {key: values[good] for key, values in fields.items()}
    files = [names[i] for i in good]
    if keep:
        pixels = np.stack([results[i] for i in good])
        made = from_arrays(name, {"image": pixels, **fields}, sizes)
        return dataclasses.replace(made, skipped=len(bad), names=files, classes=named)
    from_arrays(name, fields, sizes)  # checks the numbers

    def read_one(i: int) -> Example:
        return {
            "image": decoded(int(good[i])),
            **{key: values[i] for key, values in fields.items()},
        }

    read: Callable[[int], Example] = read_one
    if on_error == "skip" and not decode:  # damage in the middle of a file is found when it is read
        read = functools.partial(read_or_next, name, read_one, len(good), fields.get("label"))
    return Source(
        name,
        len(good),
        read,
        sizes,
        labels=fields.__getitem__,
        skipped=len(bad),
        names=files,
        classes=named,
    )
