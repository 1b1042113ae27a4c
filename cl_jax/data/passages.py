"""`passages`: sentences that follow one another, for methods that predict the next ones.

    book.txt          one sentence a line, in order; an empty line ends a document
    book.txt.gz       compressed by gzip, xz or bzip2

Without a file: the documentation that ships with Python and numpy, a document for each topic and
docstring; it differs between versions of the two. An example is a run of sentences of one document:
"passage" uint16 [n, T], token numbers of n sentences, 0 for padding; `sizes["passage"]` is the
vocabulary.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from cl_jax.data import lines, text, tokenizer
from cl_jax.data.source import Source, Splits, from_arrays


def make(
    *,
    path: str = "",
    sentences: int = 8,
    stride: int = 0,
    length: int = 32,
    vocab_size: int = 4000,
    lowercase: bool = True,
    tokenizer_path: str = "",
    tokenizer_cache: str = "",
    test_share: float = 0.1,
    limit: int = 0,
) -> Splits:
    """Passages of a text.

    Args:
      path: the text; "" for the embedded documentation.
      sentences: n, in a passage. Documents with fewer are left out.
      stride: sentences from one passage to the next of a document; 0: as many as it has, so that
        none is in two.
      length: T, tokens of a sentence, start and end included; longer ones are cut.
      vocab_size, lowercase, tokenizer_path, tokenizer_cache: as of `text`.
      test_share: of the documents, by a hash of their first sentence.
      limit: passages of each part at most; 0 for all.

    Raises:
      ValueError: a file that is missing, damaged or no UTF-8 text; no document that is long enough;
        a setting out of range.
    """
    if sentences < 2 or stride < 0 or limit < 0:
        raise ValueError(
            f"sentences={sentences}, stride={stride}, limit={limit}; expected two sentences or "
            "more, and the others at least 0."
        )
    if not 0 < test_share < 1:
        raise ValueError(f"test_share={test_share}; expected above 0 and below 1.")
    documents = documents_of(lines.read(path)) if path else text.documents()
    long = [one for one in documents if len(one) >= sentences]
    if len(long) < 2:
        raise ValueError(
            f"{path or 'the text'} has {len(long)} documents of {sentences} sentences or more, of "
            f"{len(documents)}; expected at least two. An empty line ends a document; lower "
            "data.sentences for shorter ones."
        )
    if len(long) < len(documents):
        logging.info(
            "%d of %d documents are too short.", len(documents) - len(long), len(documents)
        )
    name = Path(path).name.split(".")[0] if path else "prose"
    parts = dict(zip(("train", "test"), _divided(long, test_share)))
    passages = {part: _cut(of, sentences, stride or sentences, limit) for part, of in parts.items()}
    made = (
        tokenizer.load(tokenizer_path)
        if tokenizer_path
        else tokenizer.train(
            [sentence for one in passages["train"] for sentence in one],
            vocab_size=vocab_size,
            lowercase=lowercase,
            cache=tokenizer_cache or None,
        )
    )

    def source(part: str) -> Source:
        flat = made.encode([sentence for one in passages[part] for sentence in one], length)
        arrays = {"passage": flat.reshape(-1, sentences, length)}
        return from_arrays(f"{name}_passages/{part}", arrays, {"passage": made.size})

    return Splits(source("train"), source("test"))


def documents_of(rows: Sequence[str]) -> list[list[str]]:
    """Documents of a file's lines: sentences between empty lines."""
    found: list[list[str]] = [[]]
    for row in rows:
        if row.strip():
            found[-1].append(row.strip())
        elif found[-1]:
            found.append([])
    return [one for one in found if one]


def _divided(documents: list[list[str]], share: float) -> tuple[list[list[str]], list[list[str]]]:
    """(train, test), both with a document at least."""
    place = np.array(
        [
            int.from_bytes(hashlib.sha256(one[0].encode()).digest()[:8], "big") / 2**64
            for one in documents
        ]
    )
    test = place < share
    test[place.argmin()] = True
    test[place.argmax()] = False
    return (
        [one for one, held in zip(documents, test) if not held],
        [one for one, held in zip(documents, test) if held],
    )


def _cut(
    documents: Sequence[list[str]], sentences: int, stride: int, limit: int
) -> list[list[str]]:
    found = [
        one[start : start + sentences]
        for one in documents
        for start in range(0, len(one) - sentences + 1, stride)
    ]
    return found[:limit] if limit else found
