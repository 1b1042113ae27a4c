"""BERT's tokenizer beside that of Hugging Face (transformers 4.46, BertTokenizer)."""

import json

import numpy as np
import pytest

from cl_jax.core.tokens import END, MARKS, START, UNKNOWN, pieces_of
from cl_jax.data import tokenizer, wordpiece
from cl_jax.encoders import bert_weights

PIECES = [
    "[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "un", "##want", "##ed",
    "##s", "runn", "##ing", ",", ".", "!", "a", "e", "cafe", "b", "'", "don", "t", "中", "##e",
    "word",
]  # fmt: skip
# Sentence -> BERT's own numbers.
EXPECTED = {
    "The unwanted, running!": [3, 6, 7, 8, 9, 13, 11, 12, 15, 4],
    "Café don't\tstop": [3, 18, 21, 20, 22, 2, 4],
    "中a the": [3, 23, 16, 6, 4],
    " the" + "a" * 120: [3, 2, 4],
}


def test_pieces_are_those_of_bert():
    made = wordpiece.WordPiece(PIECES)
    rows = made.encode(list(EXPECTED), 12)
    theirs = bert_weights.order(PIECES)
    for row, numbers in zip(rows, EXPECTED.values()):
        np.testing.assert_array_equal(theirs[row[: len(numbers)]], numbers)
        assert not row[len(numbers) :].any()
    assert made.decode(rows)[0] == "the unwanted , running !"
    assert made.size == len(PIECES)


def test_numbers_are_those_of_this_package(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    made = tokenizer.load(tmp_path / "vocab.txt")
    row = made.encode(["the stop the the"], 5)[0]
    assert [row[0], row[2], row[4]] == [START, UNKNOWN, END]
    assert made.fingerprint == wordpiece.WordPiece(PIECES).fingerprint
    again = tokenizer.restored(json.loads(json.dumps(made.plain)))
    np.testing.assert_array_equal(again.encode(["the Stop"], 5), made.encode(["the Stop"], 5))
    kept = tmp_path / "learnt.json"
    kept.write_text(json.dumps({"tokenizer": made.plain}))
    assert tokenizer.load(kept).plain == made.plain
    kept.write_text("{}")
    with pytest.raises(ValueError, match=r"learnt\.json holds no tokenizer of a run"):
        tokenizer.load(kept)
    with pytest.raises(ValueError, match=r"is not a file\. .* the learnt\.json of a run"):
        tokenizer.load(tmp_path / "gone" / "vocab.txt")
    with pytest.raises(ValueError, match="what the run kept is not a tokenizer"):
        tokenizer.restored({"sentencepiece": "?"})
    assert [PIECES[i] for i in bert_weights.order(PIECES)[:5]] == list(MARKS)


def test_a_piece_may_be_a_separator_of_unicode(tmp_path):
    """As in Python's own `for line in file`: U+2028 ends no line of a vocabulary."""
    odd = ["\u2028", "\x85", "a\x0cb"]
    vocab = tmp_path / "vocab.txt"
    for end in ("", "\n"):
        vocab.write_text("\n".join([*PIECES, *odd]) + end, encoding="utf-8")
        assert pieces_of(vocab) == [*PIECES, *odd]
    vocab.write_bytes("\r\n".join(PIECES).encode())
    assert pieces_of(vocab) == PIECES
    vocab.write_text("")
    assert pieces_of(vocab) == []


def test_errors_say_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match=r"no \[MASK\]; expected BERT's vocabulary"):
        wordpiece.WordPiece([piece for piece in PIECES if piece != "[MASK]"])
    with pytest.raises(ValueError, match="is not a file"):
        wordpiece.load(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"is not text in UTF-8: .*expected BERT's vocab.txt"):
        wordpiece.load(tmp_path / "vocab.txt")
    with pytest.raises(ValueError, match="length=2"):
        wordpiece.WordPiece(PIECES).encode(["a"], 2)
