"""A subword tokenizer, trained on the text that a run reads: the same text gives the same tokens.

Token numbers below `SPECIAL` are reserved (`cl_jax.core.tokens`): 0 padding, 1 unknown, 2 start,
3 end, 4 mask.
"""

import base64
import binascii
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from absl import logging

from cl_jax.core import paths
from cl_jax.core.paths import user_path
from cl_jax.core.tokens import END, MASK, PAD, START, UNKNOWN
from cl_jax.data import kept, wordpiece
from cl_jax.data.source import TO_KEEP
from cl_jax.data.wordpiece import MAX_VOCAB, WordPiece

_MOST = 500_000  # sentences that training reads, evenly spaced over the text
_LONGEST = 4192  # bytes of a sentence, above which sentencepiece leaves it out


class Tokenizer:
    """Sentences to padded rows of token numbers, and back.

    model: a serialised sentencepiece model whose reserved numbers are those of `core.tokens`.
    """

    def __init__(self, model: bytes, name: str = "the tokenizer"):
        self.model = model
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"{name} is not a sentencepiece model: {error}") from None
        p = self._pieces
        given = (p.pad_id(), p.unk_id(), p.bos_id(), p.eos_id(), p.piece_to_id("[MASK]"))
        if given != (PAD, UNKNOWN, START, END, MASK):
            raise ValueError(
                f"{name} has padding, unknown, start, end and [MASK] at {given}; expected "
                f"{(PAD, UNKNOWN, START, END, MASK)}. Train it with pad_id=0, unk_id=1, bos_id=2, "
                "eos_id=3 and control_symbols=['[MASK]']."
            )
        if self.size > MAX_VOCAB:
            raise ValueError(
                f"{name} has {self.size} pieces; expected at most {MAX_VOCAB}: tokens are stored "
                "in 16 bits."
            )

    @property
    def size(self) -> int:
        """How many token numbers there are."""
        return int(self._pieces.get_piece_size())

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that differ where the model does."""
        return hashlib.sha256(self.model).hexdigest()[:12]

    @property
    def plain(self) -> dict[str, Any]:
        """The tokenizer as values that JSON holds; `restored` takes them back."""
        return {"sentencepiece": base64.b64encode(self.model).decode()}

    def encode(self, sentences: Sequence[str], length: int) -> np.ndarray:
        """uint16 [N, length]: start, pieces, end, then padding. A sentence that is too long loses
        its last pieces and keeps the end.

        Raises:
          ValueError: length below 3.
        """
        if length < 3:
            raise ValueError(f"length={length}; expected 3 or more: start, one piece, end.")
        rows = np.zeros((len(sentences), length), np.uint16)
        cut = 0
        for row, pieces in zip(rows, self._pieces.encode(list(sentences), num_threads=1)):
            cut += len(pieces) > length - 2
            pieces = [START, *pieces[: length - 2], END]
            row[: len(pieces)] = pieces
        if cut:
            logging.info("%d of %d sentences are cut to %d tokens.", cut, len(rows), length)
        return rows

    def decode(self, tokens: np.ndarray) -> list[str]:
        """The text of rows of tokens [N, T], up to the first end of each; reserved numbers have
        none."""
        texts = []
        for row in np.asarray(tokens):
            ends = np.flatnonzero(row == END)
            pieces = [int(t) for t in row[: ends[0] if len(ends) else len(row)] if t > MASK]
            texts.append(self._pieces.decode(pieces))
        return texts


def of_text(
    sentences: Sequence[str],
    *,
    learnt: Mapping[str, Any] | None,
    path: str,
    vocab_size: int,
    lowercase: bool,
    cache: str,
) -> "Tokenizer | WordPiece":
    """The tokenizer that a source reads its text by.

    Args:
      sentences: the training part.
      learnt: `Source.learnt` of the run that the text is read for; None where the text is of a new
        run. Only then a tokenizer is trained.
      path: as of `load`; "" to train one.
      vocab_size, lowercase, cache: as of `train`; a cache of "" is None.

    Raises:
      ValueError: the run did not keep its tokenizer; as of `load` and `train`.
    """
    if learnt is not None and "tokenizer" in learnt:
        return restored(learnt["tokenizer"])
    if path:
        return load(path)
    if learnt is not None:
        raise ValueError(
            "the run did not keep the pieces of its tokenizer, and those trained on this text "
            f"would have other numbers. {TO_KEEP}"
        )
    return train(sentences, vocab_size=vocab_size, lowercase=lowercase, cache=cache or None)


def restored(plain: Mapping[str, Any]) -> "Tokenizer | WordPiece":
    """The tokenizer whose `plain` values are given.

    Raises:
      ValueError: they are not those of a tokenizer.
    """
    try:
        if "pieces" in plain:
            return WordPiece(plain["pieces"], plain["lowercase"], "the run's vocabulary")
        model = base64.b64decode(plain["sentencepiece"], validate=True)
    except (KeyError, TypeError, binascii.Error) as error:
        raise ValueError(f"what the run kept is not a tokenizer: {error!r}.") from None
    return Tokenizer(model, "the run's tokenizer")


def train(
    sentences: Sequence[str],
    *,
    vocab_size: int = 4000,
    lowercase: bool = True,
    cache: str | Path | None = None,
) -> Tokenizer:
    """A byte-pair tokenizer of at most `vocab_size` pieces; fewer where the text has fewer.

    Args:
      sentences: the text; of more than 500,000, as many evenly spaced ones.
      vocab_size: pieces, the five reserved ones among them.
      lowercase: case is folded, as in BERT's uncased models.
      cache: a folder where models are kept under a hash of text and settings; None for
        `~/.cache/cl_jax/tokenizers` (or below XDG_CACHE_HOME). A model that is not there is trained
        again, to the same bytes.

    Raises:
      ValueError: a vocab_size that 16 bits do not hold, or too small for the text's characters; no
        text.
    """
    if not 16 <= vocab_size <= MAX_VOCAB:
        raise ValueError(f"vocab_size={vocab_size}; expected 16 to {MAX_VOCAB}.")
    chosen = sentences
    if len(sentences) > _MOST:
        chosen = [sentences[i] for i in np.linspace(0, len(sentences) - 1, _MOST).astype(int)]
    if not any(sentence.strip() for sentence in chosen):
        raise ValueError("there is no text to train a tokenizer on; every sentence is empty.")
    rule = "nmt_nfkc_cf" if lowercase else "nmt_nfkc"
    digest = hashlib.sha256(f"{sentencepiece.__version__} bpe {vocab_size} {rule}\n".encode())
    for sentence in chosen:
        digest.update(sentence.encode() + b"\n")
    folder = _folder(cache)
    if folder is None:
        return Tokenizer(_trained(chosen, vocab_size, rule))
    file = folder / f"{digest.hexdigest()[:32]}.model"
    try:
        if file.exists():
            return Tokenizer(file.read_bytes(), str(file))
    except (OSError, ValueError) as error:
        logging.warning("%s is trained again: %s", file, error)
    tokenizer = Tokenizer(_trained(chosen, vocab_size, rule))
    _keep(file, tokenizer.model)
    return tokenizer


def load(path: str | Path) -> "Tokenizer | WordPiece":
    """The tokenizer of a sentencepiece model file, of BERT's vocab.txt (any .txt), or of a run, by
    its `learnt.json`.

    Raises:
      ValueError: no such file, no model, other reserved numbers than `core.tokens`.
    """
    file = user_path(path)
    if not file.is_file():
        raise ValueError(
            f"tokenizer_path={str(path)!r} is not a file. Give a sentencepiece model, BERT's "
            "vocab.txt or the learnt.json of a run, or leave it out to train one. A run that has "
            "kept its own needs none; one that has not needs the file where it was."
        )
    if file.suffix == ".txt":
        return wordpiece.load(file)
    if file.suffix == ".json":
        try:
            plain = json.loads(file.read_text())["tokenizer"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no tokenizer of a run: {error!r}.") from None
        return restored(plain)
    return Tokenizer(file.read_bytes(), str(path))


def _trained(sentences: Iterable[str], vocab_size: int, rule: str) -> bytes:
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=written,
            model_type="bpe",  # unigram cuts the words of a small text into letters
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=0.9999,
            normalization_rule_name=rule,
            max_sentence_length=_LONGEST,
            num_threads=1,  # sums in a fixed order: the same bytes each time
            pad_id=PAD,
            unk_id=UNKNOWN,
            bos_id=START,
            eos_id=END,
            pad_piece="[PAD]",
            unk_piece="[UNK]",
            bos_piece="[CLS]",
            eos_piece="[SEP]",
            control_symbols=["[MASK]"],
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"no tokenizer of vocab_size={vocab_size} for this text: {error} A vocabulary holds at "
            "least every character; raise vocab_size."
        ) from None
    return written.getvalue()


def _folder(cache: str | Path | None) -> Path | None:
    """Where models are kept; None where nothing is."""
    if cache is not None:
        return user_path(cache)
    own = paths.cache()
    return own and own / "tokenizers"


def _keep(file: Path, model: bytes) -> None:
    """Keeps a model; a folder that cannot be written costs the training time alone."""
    try:
        kept.put(file, lambda out: out.write(model))
    except OSError as error:
        logging.warning("the tokenizer is not kept: %s", error)
