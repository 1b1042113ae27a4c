"""BERT's tokenizer, from its vocab.txt: words in pieces, the longest that is known first
(Devlin et al. 2019, arXiv 1810.04805)."""

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cl_jax.core.paths import user_path
from cl_jax.core.tokens import END, MARKS, SPECIAL, START, UNKNOWN, pieces_of

MAX_VOCAB = 2**16  # tokens are stored in 16 bits
_LONGEST = 100  # letters of a word, above which it is unknown


class WordPiece:
    """Sentences to padded rows of token numbers, and back, as `tokenizer.Tokenizer`.

    Numbers are not those of vocab.txt: padding, unknown, start, end and mask are 0 to 4, as
    everywhere in this package, and all other pieces follow in their order
    (`encoders.bert_weights.order`).

    pieces: the lines of vocab.txt. lowercase: case and accents are removed, BERT uncased.
    """

    def __init__(self, pieces: Sequence[str], lowercase: bool = True, name: str = "vocab.txt"):
        missing = [mark for mark in MARKS if mark not in pieces]
        if missing or not SPECIAL < len(pieces) <= MAX_VOCAB:
            raise ValueError(
                f"{name} has {len(pieces)} pieces"
                + (f" and no {', '.join(missing)}" if missing else "")
                + f"; expected BERT's vocabulary, a piece a line, at most {MAX_VOCAB}."
            )
        others = [piece for piece in pieces if piece not in MARKS]
        self._pieces = [*MARKS, *others]
        self._number = {piece: i for i, piece in enumerate(self._pieces)}
        self._lowercase = lowercase

    @property
    def pieces(self) -> tuple[str, ...]:
        """The vocabulary, in the order of its numbers."""
        return tuple(self._pieces)

    @property
    def size(self) -> int:
        """How many token numbers there are."""
        return len(self._pieces)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that differ where the vocabulary does."""
        return hashlib.sha256("\n".join(self._pieces).encode()).hexdigest()[:12]

    @property
    def plain(self) -> dict[str, Any]:
        """The tokenizer as values that JSON holds; see `tokenizer.restored`."""
        return {"pieces": list(self._pieces), "lowercase": self._lowercase}

    def encode(self, sentences: Sequence[str], length: int) -> np.ndarray:
        """uint16 [N, length]: start, pieces, end, then padding; what is too long is cut.

        Raises:
          ValueError: length below 3.
        """
        if length < 3:
            raise ValueError(f"length={length}; expected 3 or more: start, one piece, end.")
        rows = np.zeros((len(sentences), length), np.uint16)
        for row, sentence in zip(rows, sentences):
            numbers = [n for word in self._words(sentence) for n in self._cut(word)]
            numbers = [START, *numbers[: length - 2], END]
            row[: len(numbers)] = numbers
        return rows

    def decode(self, tokens: np.ndarray) -> list[str]:
        """The pieces of rows of tokens [N, T] up to the first end, joined to words by spaces."""
        texts = []
        for row in np.asarray(tokens):
            ends = np.flatnonzero(row == END)
            pieces = [
                self._pieces[t] for t in row[: ends[0] if len(ends) else None] if t >= SPECIAL
            ]
            texts.append(" ".join(pieces).replace(" ##", ""))
        return texts

    def _words(self, sentence: str) -> list[str]:
        """Words and marks: divided at spaces, and around punctuation and Chinese characters."""
        text = sentence
        if self._lowercase:
            plain = unicodedata.normalize("NFD", sentence.lower())
            text = "".join(c for c in plain if unicodedata.category(c) != "Mn")
        spaced = []
        for c in text:
            if c in "\t\n\r" or unicodedata.category(c) == "Zs":
                spaced.append(" ")
            elif ord(c) in (0, 0xFFFD) or unicodedata.category(c).startswith("C"):
                continue
            else:
                spaced.append(f" {c} " if _mark(c) or _ideograph(c) else c)
        return "".join(spaced).split()

    def _cut(self, word: str) -> list[int]:
        if len(word) > _LONGEST:
            return [UNKNOWN]
        found: list[int] = []
        start = 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in self._number:
                    found.append(self._number[piece])
                    start = end
                    break
            else:
                return [UNKNOWN]
        return found


def load(path: str | Path, lowercase: bool = True) -> WordPiece:
    """The tokenizer of a vocab.txt.

    Raises:
      ValueError: no such file, or no vocabulary of BERT.
    """
    file = user_path(path)
    if not file.is_file():
        raise ValueError(f"{path} is not a file; expected BERT's vocab.txt.")
    return WordPiece(pieces_of(file), lowercase, str(path))


def _mark(c: str) -> bool:
    """Punctuation, and all signs of ASCII."""
    ascii_sign = 33 <= ord(c) < 127 and not c.isalnum()
    return ascii_sign or unicodedata.category(c).startswith("P")


def _ideograph(c: str) -> bool:
    return any(
        low <= ord(c) <= high
        for low, high in (
            (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2CEAF),
            (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
        )
    )  # fmt: skip
