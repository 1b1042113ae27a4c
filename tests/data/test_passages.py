"""Passages: sentences in order, never across documents, parts by document."""

import numpy as np
import pytest

from cl_jax.data import passages, text, tokenizer

# Documents of 7, 3, 12 and 6 sentences.
SIZES = (7, 3, 12, 6)


def _file(tmp_path):
    lines = []
    for d, size in enumerate(SIZES):
        lines += [f"document {d} has its sentence number {s} here." for s in range(size)] + [""]
    file = tmp_path / "book.txt"
    file.write_text("\n".join(lines))
    return str(file)


def _make(tmp_path, **settings):
    settings = dict(vocab_size=64, length=24, tokenizer_cache=str(tmp_path / "kept")) | settings
    return passages.make(path=_file(tmp_path), **settings)


def test_passages_are_runs_of_one_document(tmp_path):
    """Decoded again: consecutive numbers of one document, each as often as the stride says."""
    splits = _make(tmp_path, sentences=3)
    (kept,) = (tmp_path / "kept").rglob("*.model")
    made = tokenizer.load(kept)
    found = []
    for source in splits[:2]:
        rows = source.arrays["passage"]
        assert rows.dtype == np.uint16 and rows.shape[1:] == (3, 24)
        assert source.sizes == {"passage": made.size}
        for passage in rows:
            words = [sentence.split() for sentence in made.decode(passage)]
            numbers = [int(one[6]) for one in words]
            (document,) = {int(one[1]) for one in words}
            assert numbers == list(range(numbers[0], numbers[0] + 3))
            found.append((document, numbers[0]))
    assert sorted(found) == [(d, s) for d, n in enumerate(SIZES) for s in range(0, n - 2, 3)]


def test_a_document_is_in_one_part(tmp_path):
    splits = _make(tmp_path, sentences=3, stride=1)
    train, test = (source.arrays["passage"] for source in splits[:2])
    sentences = [{one.tobytes() for passage in part for one in passage} for part in (train, test)]
    assert not sentences[0] & sentences[1]
    assert len(train) + len(test) == sum(n - 2 for n in SIZES)
    assert len(_make(tmp_path, sentences=3, stride=1, limit=2).train.arrays["passage"]) == 2


def test_documents_that_begin_alike_have_a_test_part_too(tmp_path):
    """Chats that all start with one greeting; equal ones are in one part."""
    chats = [f"How can I help you?\nA word about {d}.\nThanks for {d}.\n" for d in range(12)]
    (tmp_path / "chats.txt").write_text("\n".join([*chats, *chats]))
    given = dict(path=str(tmp_path / "chats.txt"), sentences=3, vocab_size=64, length=8)
    splits = passages.make(**given, test_share=0.3)
    sizes = [part.size for part in splits[:2]]
    assert min(sizes) >= 2 and sum(sizes) == 24 and not any(size % 2 for size in sizes)
    (tmp_path / "chats.txt").write_text("\n".join([chats[0]] * 5))
    with pytest.raises(ValueError, match="1 different documents of 3 sentences"):
        passages.make(**given)


def test_a_long_document_is_divided(tmp_path):
    """Chapters of four sentences: of 7, 3, 12 and 6 there are 1, 0, 3 and 1 that are whole."""
    splits = _make(tmp_path, sentences=4, chapter=4)
    assert sum(len(source.arrays["passage"]) for source in splits[:2]) == 5


def test_sentences_with_classes_are_passages_of_one(tmp_path):
    tasks = tmp_path / "tasks.tsv"
    rows = ["set\tsplit\tlabel\ttext"] + [f"A\tall\t{i % 2}\tsentence {i} here" for i in range(6)]
    tasks.write_text("\n".join(rows))
    splits = _make(tmp_path, sentences=3, classify=str(tasks))
    source = splits.more["classify/A"]
    assert source.arrays["passage"].shape == (6, 1, 24)
    assert source.sizes == {"passage": splits.train.sizes["passage"], "label": 2}
    np.testing.assert_array_equal(source.arrays["label"], np.arange(6) % 2)


def test_embedded_sentences_know_their_package(tmp_path):
    splits = passages.make(
        packages=("optax", "flax"), sentences=3, limit=40, vocab_size=600, length=24,
        tokenizer_cache=str(tmp_path),
    )  # fmt: skip
    source = splits.more["classify/origin"]
    assert len(splits.train.arrays["passage"]) == 40 and source.sizes["label"] == 2
    assert set(source.arrays["label"]) == {0, 1}
    assert source.classes == {"label": ("optax", "flax")} and len(source.names) == source.size


def test_documents_are_the_sentences_of_a_package_in_order():
    documents = text.documents(("optax",))
    flat = [sentence for one in documents for sentence in one]
    assert len(set(flat)) == len(flat) > 100 and max(map(len, documents)) > 5
    first = next(i for i, s in enumerate(flat) if s.startswith("Lion is discovered"))
    assert flat[first + 1].startswith("Unlike most adaptive optimizers")
    with pytest.raises(ValueError, match="'no_such_package' is not installed"):
        text.documents(("no_such_package",))


def test_errors_say_what_was_expected(tmp_path):
    for settings, message in (
        (dict(sentences=1), "two sentences or more"),
        (dict(chapter=4), "a chapter of as many"),
        (dict(packages=()), "one at least"),
        (dict(test_share=0.0), "above 0 and below 1"),
        (dict(sentences=8), r"1 different documents of 8 sentences or more, of 4"),
    ):
        with pytest.raises(ValueError, match=message):
            _make(tmp_path, **settings)
    with pytest.raises(ValueError, match="is not a file"):
        passages.make(path=str(tmp_path / "none.txt"))
