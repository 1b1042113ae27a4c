"""`passages`: sentences that follow one another, for methods that predict the next ones.

    book.txt          one sentence a line, in order; an empty line ends a document
    book.txt.gz       compressed by gzip, xz or bzip2

Without a file: the documentation that comes with Python, numpy, scipy and scikit-learn, a document
for each topic and docstring; it differs between their versions. An example is a run of sentences of
one document: "passage" uint16 [n, T], token numbers of n sentences, 0 for padding;
`sizes["passage"]` is the vocabulary.

`more["classify/<set>"]` has sentences with classes: "passage" [1, T] and "label". Without a file of
the user's, the embedded text has "classify/origin": which package a sentence of the test part is
from.
"""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from cl_jax.data import lines, text, text_tasks, tokenizer
from cl_jax.data.parts import drawn
from cl_jax.data.source import ForEvaluation, Source, Splits, from_arrays, with_learnt


def make(
    *,
    path: str = "",
    packages: Sequence[str] = ("python", "numpy", "scipy", "sklearn"),
    sentences: int = 8,
    stride: int = 0,
    chapter: int = 200,
    length: int = 32,
    vocab_size: int = 4000,
    lowercase: bool = True,
    tokenizer_path: str = "",
    tokenizer_cache: str = "",
    classify: ForEvaluation[str] = "",
    on_error: str = "raise",
    test_share: float = 0.1,
    limit: int = 0,
    learnt: Mapping[str, Any] | None = None,
) -> Splits:
    """Passages of a text.

    Args:
      path: the text; "" for the embedded documentation.
      packages: whose documentation is the embedded text, see `data.text.documents`.
      sentences: n, in a passage. Documents with fewer are left out.
      stride: sentences from one passage to the next of a document; 0: as many as it has, so that
        none is in two.
      chapter: a longer document is divided after so many sentences, so that a book without empty
        lines has a test part too; no passage crosses the division.
      length: T, tokens of a sentence, start and end included; longer ones are cut.
      vocab_size, lowercase, tokenizer_path, tokenizer_cache, classify: as of `text`.
      on_error: for empty sentences of `classify`, "raise" or "skip", as of `text`.
      test_share: of the documents, by a hash of their text; equal ones are in one part.
      limit: passages of each part at most; 0 for all.
      learnt: see `Source`: {"tokenizer"}. The passages at `path` are then both parts.

    Raises:
      ValueError: a file that is missing, damaged or no UTF-8 text; no document that is long enough;
        a package that is not installed; a setting out of range.
    """
    if sentences < 2 or stride < 0 or limit < 0 or chapter < sentences:
        raise ValueError(
            f"sentences={sentences}, stride={stride}, chapter={chapter}, limit={limit}; expected "
            "two sentences or more, a chapter of as many at least, and the others at least 0."
        )
    if not 0 < test_share < 1:
        raise ValueError(f"test_share={test_share}; expected above 0 and below 1.")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}; expected 'raise' or 'skip'.")
    if isinstance(packages, str) or not packages:
        raise ValueError(f"packages={packages!r}; expected a sequence of names, one at least.")
    groups = (
        {"": documents_of(lines.read(path))}
        if path
        else {package: text.documents((package,)) for package in packages}
    )
    divided = {origin: _chapters(documents, chapter) for origin, documents in groups.items()}
    long = [one for documents in divided.values() for one in documents if len(one) >= sentences]
    count = sum(map(len, divided.values()))
    least = 2 if learnt is None else 1
    different = len(set(map(_name, long)))
    if different < least:
        raise ValueError(
            f"{path or 'the text'} has {different} different documents of {sentences} sentences or "
            f"more, of {count}; expected at least {least}. An empty line ends a document; lower "
            "data.sentences for shorter ones, or data.chapter to divide a long one."
        )
    if len(long) < count:
        logging.info("%d of %d documents are too short.", count - len(long), count)
    name = Path(path).name.split(".")[0] if path else "prose"
    held = drawn(list(dict.fromkeys(map(_name, long))), test_share)
    parts = {
        part: [one for one in long if (_name(one) in held) == (part == "test")]
        for part in ("train", "test")
    }
    if learnt is not None:
        parts = dict.fromkeys(parts, long)
    passages = {part: _cut(of, sentences, stride or sentences, limit) for part, of in parts.items()}
    made = tokenizer.of_text(
        list(dict.fromkeys(sentence for one in passages["train"] for sentence in one)),
        learnt=learnt,
        path=tokenizer_path,
        vocab_size=vocab_size,
        lowercase=lowercase,
        cache=tokenizer_cache,
    )

    def source(part: str) -> Source:
        flat = made.encode([sentence for one in passages[part] for sentence in one], length)
        arrays = {"passage": flat.reshape(-1, sentences, length)}
        return from_arrays(f"{name}_passages/{part}", arrays, {"passage": made.size})

    tasks: Mapping[str, text_tasks.Classes] = {}
    if classify:
        tasks = text_tasks.read_classes(classify, on_error)
        pairs = [key for key, one in tasks.items() if one.second]
        if pairs:
            raise ValueError(
                f"{classify}: {pairs[0]} has pairs of sentences; passages are of single ones. "
                "Leave it out of the file."
            )
    elif len(groups) > 1:
        tasks = {"classify/origin": _origins(divided, held, limit)}
    more = {
        key: one.named(
            from_arrays(
                f"{name}_passages/{key}",
                {"passage": made.encode(one.sentences, length)[:, None], "label": one.labels},
                {"passage": made.size, "label": len(one.classes)},
            )
        )
        for key, one in tasks.items()
    }
    train = source("train")
    if learnt is not None:
        return with_learnt(Splits(train, train, more), learnt)
    return with_learnt(Splits(train, source("test"), more), {"tokenizer": made.plain})


def _chapters(documents: Sequence[list[str]], size: int) -> list[list[str]]:
    return [one[at : at + size] for one in documents for at in range(0, len(one), size)]


def _name(document: Sequence[str]) -> str:
    """The name of a document: all of its text, since many may begin with the same sentence."""
    return "\n".join(document)


def _origins(
    divided: Mapping[str, list[list[str]]], held: Container[str], limit: int
) -> text_tasks.Classes:
    """The sentences of the documents with the names `held`, and the number of the group each is
    from."""
    found = [
        (sentence, number)
        for number, documents in enumerate(divided.values())
        for one in documents
        if _name(one) in held
        for sentence in one
    ]
    if limit:
        found = found[:: max(len(found) // limit, 1)]
    return text_tasks.Classes(
        [sentence for sentence, _ in found],
        [],
        np.array([number for _, number in found], np.int32),
        list(divided),
    )


def documents_of(rows: Sequence[str]) -> list[list[str]]:
    """Documents of a file's lines: sentences between empty lines."""
    found: list[list[str]] = [[]]
    for row in rows:
        if row.strip():
            found[-1].append(row.strip())
        elif found[-1]:
            found.append([])
    return [one for one in found if one]


def _cut(
    documents: Sequence[list[str]], sentences: int, stride: int, limit: int
) -> list[list[str]]:
    found = [
        one[start : start + sentences]
        for one in documents
        for start in range(0, len(one) - sentences + 1, stride)
    ]
    return found[:limit] if limit else found
