"""Text files, the tokenizer, embedded sentences: what a user may have, and what may be wrong."""

import gzip
import lzma

import numpy as np
import pytest

from cl_jax.core.tokens import END, MASK, PAD, START, UNKNOWN
from cl_jax.data import captions, lines, text, tokenizer

WORDS = "the a red green cat dog bird sees hears finds one two small large".split()


def written(path, rows):
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    return str(path)


def rows(count, columns=1, seed=0):
    rng = np.random.default_rng(seed)
    return [[" ".join(rng.choice(WORDS, 6)) for _ in range(columns)] for _ in range(count)]


def made(path, tmp_path, **settings):
    given = dict(path=path, length=12, vocab_size=200, tokenizer_cache=str(tmp_path / "cache"))
    return text.make(**given | settings)


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_columns_are_sentence_positive_and_hard_negative(tmp_path, columns):
    given = rows(60, columns)
    splits = made(written(tmp_path / "given.tsv", given), tmp_path)
    assert set(splits.train.arrays) == set(text.FIELDS[:columns])
    assert splits.train.size + splits.test.size == 60 and splits.test.size > 0
    vocabulary = splits.train.sizes["tokens"]
    assert splits.train.sizes == dict.fromkeys(text.FIELDS[:columns], vocabulary)
    first = tokenizer.load(next((tmp_path / "cache").glob("*.model")))
    for number, field in enumerate(text.FIELDS[:columns]):
        tokens = splits.train.arrays[field]
        assert tokens.dtype == np.uint16 and (tokens[:, 0] == START).all()
        assert set(first.decode(tokens)) <= {row[number] for row in given}


@pytest.mark.parametrize("compress", [gzip.open, lzma.open])
def test_compressed_files_are_the_same_text(tmp_path, compress):
    plain = written(tmp_path / "a.txt", rows(40))
    packed = tmp_path / {gzip.open: "a.txt.gz", lzma.open: "a.txt.xz"}[compress]
    with compress(packed, "wt") as file:
        file.write((tmp_path / "a.txt").read_text())
    one, other = made(plain, tmp_path), made(str(packed), tmp_path)
    np.testing.assert_array_equal(one.train.arrays["tokens"], other.train.arrays["tokens"])


def test_new_sentences_move_no_old_one_between_the_parts(tmp_path):
    given = rows(200)
    name = str(tmp_path / "model")
    (tmp_path / "model").write_bytes(tokenizer.train([r[0] for r in given], vocab_size=60).model)
    few = made(written(tmp_path / "few.txt", given[:100]), tmp_path, tokenizer_path=name)
    all_ = made(written(tmp_path / "all.txt", given), tmp_path, tokenizer_path=name)

    def sentences(source):
        return {row.tobytes() for row in source.arrays["tokens"]}

    assert sentences(few.test) <= sentences(all_.test)
    assert not sentences(all_.test) & sentences(all_.train)


def test_a_test_file_is_the_test_part(tmp_path):
    splits = made(
        written(tmp_path / "a.txt", rows(30)),
        tmp_path,
        test_path=written(tmp_path / "b.txt", rows(7, seed=1)),
    )
    assert (splits.train.size, splits.test.size) == (30, 7)


def test_scored_pairs_with_and_without_names(tmp_path):
    path = written(tmp_path / "a.txt", rows(30))
    plain = written(
        tmp_path / "p.tsv",
        [
            ["a cat", "the cat", "4.5"],
            ["a dog", "one bird", ""],
            ["a dog", "a cat", "2"],
        ],
    )
    sts = made(path, tmp_path, sts=plain).more
    assert set(sts) == {"sts"} and sts["sts"].arrays["score"].tolist() == [4.5, 2]
    named = written(
        tmp_path / "n.tsv",
        [
            ["set", "score", "a", "b"],
            ["x", "1", "a cat", "a dog"],
            ["y", "2", "red", "green"],
            ["x", "3", "a bird", "a bird"],
            ["y", "0", "one", "red"],
        ],
    )
    sts = made(path, tmp_path, sts=named).more
    assert {name: source.arrays["score"].tolist() for name, source in sts.items()} == {
        "sts/x": [1, 3],
        "sts/y": [2, 0],
    }
    assert set(sts["sts/x"].arrays) == {"tokens", "tokens_b", "score"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"a\tb\tc\td\n", "has 4 columns; expected 1"),
        (b"a\tb\nc\n", "line 2: 1 columns where the first line has 2"),
        (b"one sentence\n\nanother one\n", "empty sentences in line 2"),
        (b"a cat\tone\na dog\t \n", "empty sentences in line 2"),
        ("caf\u00e9 au lait\n".encode("latin1"), "not UTF-8: byte 0xe9 in line 1"),
        ("a cat\n".encode("utf-16"), "UTF-16"),
        (b"a\0b\n", "zero bytes"),
        ("a cat\n".encode("utf-16-le"), "or UTF-16 without its mark; then iconv"),
        (b"a cat\ta dog\n" * 9, "has 9 sentences, 1 of them different: too few"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, content, message):
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        made(str(tmp_path / "bad.txt"), tmp_path)


@pytest.mark.parametrize(("name", "told"), [("pairs.csv", True), ("pairs.txt", False)])
def test_a_table_with_commas_is_told_to_be_sentences(name, told, tmp_path, caplog):
    (tmp_path / name).write_text("first,second\n" + "".join(f"cat {i},dog\n" for i in range(9)))
    with caplog.at_level("WARNING"):
        made(str(tmp_path / name), tmp_path)
    assert (
        "taken for one sentence, a header among them, for instance 'first" in caplog.text
    ) == told


def test_other_mistakes(tmp_path):
    good = written(tmp_path / "a.txt", rows(30))
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"a cat sees\n" * 99)[:-9])
    (tmp_path / "no.model").write_bytes(b"not a model")
    for settings, message in (
        (dict(path=str(tmp_path / "none.txt")), "is not a file"),
        (dict(path=str(tmp_path / "cut.txt.gz")), "Is it complete"),
        (dict(path=written(tmp_path / "one.txt", rows(1))), "too few"),
        (dict(test_path=written(tmp_path / "t.tsv", rows(3, 2))), "has 2 columns and"),
        (dict(sts=written(tmp_path / "s.tsv", [["a", "b", "high"]])), "'high' is not a number"),
        (dict(sts=written(tmp_path / "s2.tsv", [["a", "b"]])), "expected at least three"),
        (dict(sts=written(tmp_path / "s3.tsv", [["a", "b", "1", "2"]])), "is no header with"),
        (dict(tokenizer_path=str(tmp_path / "no.model")), "not a sentencepiece model"),
        (dict(vocab_size=7), "expected 16 to 65536"),
        (dict(vocab_size=16), "raise vocab_size"),
        (dict(length=2), "expected 3 or more"),
        (dict(embedded="x"), "expected 'scenes' or 'prose'"),
        (dict(path="", test_path=good), "without path; expected the training file too"),
    ):
        with pytest.raises(ValueError, match=message):
            made(**dict(path=good, tmp_path=tmp_path) | settings)


def test_skip_leaves_empty_sentences_out_and_counts_them(tmp_path, caplog):
    given = [*rows(20), [""], *rows(20, seed=1), [" "]]
    splits = made(written(tmp_path / "a.txt", given), tmp_path, on_error="skip")
    assert splits.train.size + splits.test.size == 40 and splits.train.skipped == 2
    assert "skipped 2 lines with empty sentences: lines 21, 42." in caplog.text


def test_token_arrays_are_checked(tmp_path):
    tokens = np.random.default_rng(0).integers(1, 50, (40, 6))
    path = str(tmp_path / "t.npz")
    np.savez(path, tokens=tokens)
    splits = text.make(path=path, vocab_size=50)
    assert splits.train.arrays["tokens"].dtype == np.uint16 and splits.train.sizes == {"tokens": 50}
    with pytest.raises(ValueError, match="goes from 1 to 49; expected 0 to 39"):
        text.make(path=path, vocab_size=40)
    tokens[3] = 0
    np.savez(path, tokens=tokens)
    with pytest.raises(ValueError, match="row 3 of tokens is padding alone"):
        text.make(path=path, vocab_size=50)
    np.savez(path, words=tokens)
    with pytest.raises(ValueError, match="has the arrays words; expected tokens"):
        text.make(path=path, vocab_size=50)


def test_tasks_beside_token_arrays_are_read_by_their_tokenizer(tmp_path):
    made = tokenizer.train([row[0] for row in rows(80)], vocab_size=60, cache=tmp_path)
    (model,) = tmp_path.glob("*.model")
    path = str(tmp_path / "t.npz")
    np.savez(path, tokens=made.encode([row[0] for row in rows(40)], 9))
    sts = written(tmp_path / "sts.tsv", [["a cat", "a dog", "1"], ["a cat", "the cat", "4"]])
    given = dict(path=path, vocab_size=60, sts=sts)
    for wrong in (given, dict(path=path, vocab_size=60, classify="nowhere.tsv")):
        with pytest.raises(ValueError, match="give tasks_tokenizer_path, the tokenizer of these"):
            text.make(**wrong)
    for setting in ("tasks_tokenizer_path", "tokenizer_path"):
        found = text.make(**given, **{setting: str(model)}).more["sts"].arrays
        np.testing.assert_array_equal(found["tokens"], made.encode(["a cat", "a cat"], 9))
    with pytest.raises(ValueError, match=r"is for token numbers in a \.npz"):
        text.make(tasks_tokenizer_path=str(model))
    with pytest.raises(ValueError, match="is not a file"):
        text.make(**given, tokenizer_path=str(model), classify="nowhere.tsv")
    np.savez(path, tokens=np.full((40, 9), 49) - np.arange(40)[:, None])  # of another vocabulary
    with pytest.raises(ValueError, match="pieces; expected at most vocab_size=50"):
        text.make(**given | dict(vocab_size=50), tokenizer_path=str(model))


@pytest.mark.parametrize("limit", [4, 7])
def test_few_sentences_of_each_part_are_read_for_a_trial(tmp_path, limit, monkeypatch):
    read, train = [], tokenizer.train
    monkeypatch.setattr(tokenizer, "train", lambda s, **of: read.append(len(s)) or train(s, **of))
    path = written(tmp_path / "a.txt", rows(90, columns=2))
    whole, some = (made(path, tmp_path, test_share=0.4, limit=most) for most in (0, limit))
    for all_of, few in zip(whole[:2], some[:2]):
        assert limit // 2 < few.size <= limit and set(few.names) < set(all_of.names)
        assert few.names[-1] in all_of.names[-all_of.size // 3 :]
    assert read == [2 * whole.train.size, 2 * some.train.size]  # the tokenizer, both columns
    numbers = np.random.default_rng(0).integers(1, 50, (90, 6))
    np.savez(tmp_path / "t.npz", tokens=numbers, tokens_b=numbers)
    found = text.make(path=str(tmp_path / "t.npz"), vocab_size=50, test_share=0.4, limit=limit)
    for part in found[:2]:
        assert limit // 2 < part.size <= limit
        np.testing.assert_array_equal(part.arrays["tokens"], part.arrays["tokens_b"])


def test_the_tokenizer_is_the_same_each_time_and_reverses(tmp_path):
    given = [row[0] for row in rows(80)]
    one = tokenizer.train(given, vocab_size=100, cache=tmp_path / "a")
    other = tokenizer.train(given, vocab_size=100, cache=tmp_path / "b")
    assert one.model == other.model and one.fingerprint == other.fingerprint
    kept = next((tmp_path / "a").glob("*.model"))
    kept.write_bytes(b"damaged")
    assert tokenizer.train(given, vocab_size=100, cache=tmp_path / "a").model == one.model
    tokens = one.encode([given[0], "the zzz"], 16)
    assert one.decode(tokens)[0] == given[0]
    assert tokens[0, 0] == START and END in tokens[0] and tokens[0, -1] == PAD
    assert UNKNOWN in tokens[1] and MASK not in tokens
    cut = one.encode([" ".join(WORDS)], 5)
    assert cut[0, 0] == START and cut[0, -1] == END


def test_embedded_scenes_say_what_is_on_the_image(tmp_path):
    given = dict(train_size=64, test_size=48, length=20, tokenizer_cache=str(tmp_path))
    splits = text.make(**given)
    same = text.make(**given)
    for field in ("tokens", "tokens_b", "tokens_c"):
        np.testing.assert_array_equal(splits.train.arrays[field], same.train.arrays[field])
    model = tokenizer.load(next(tmp_path.glob("*.model")))
    for sentence, other, against, digit in zip(
        *(model.decode(splits.train.arrays[field]) for field in text.FIELDS),
        splits.train.arrays["label"],
    ):
        assert any(word in sentence for word in captions.DIGITS[digit])
        assert any(word in other for word in captions.DIGITS[digit])
        assert against not in (sentence, other)
    score = splits.more["sts"].arrays["score"]
    assert splits.more["sts"].size == 48 and set(score * 4) <= set(range(5)) and len(set(score)) > 2


def test_contradictions_differ_in_one_factor():
    rng = np.random.default_rng(0)
    given = np.stack([rng.integers(n, size=200) for n in (10, 8, 3, 3)], axis=1)
    changed = captions.contradictions(rng, given)
    assert ((given != changed).sum(axis=1) == 1).all()
    assert (changed >= 0).all() and (changed < [10, 8, 3, 3]).all()
    assert ((given != changed).sum(axis=0) > 20).all()


@pytest.mark.slow
def test_prose_is_sentences():
    found = text.prose()
    assert len(found) > 2000 and len(set(found)) == len(found)
    assert all(s[0].isupper() and s[-1] in ".!?" and ">>>" not in s for s in found)


def test_tables_of_named_columns(tmp_path):
    (tmp_path / "a.csv").write_text('file,caption\n"x, y.png","a ""b"" c"\n')
    (tmp_path / "a.jsonl").write_text('{"file": "x", "caption": ["a", "b"]}\n\n')
    assert lines.table(tmp_path / "a.csv") == [
        {"file": "x, y.png", "caption": 'a "b" c', "line": 2}
    ]
    assert lines.table(tmp_path / "a.jsonl") == [{"file": "x", "caption": ["a", "b"], "line": 1}]
    (tmp_path / "b.csv").write_text("file,caption\nx,a,b\n")
    (tmp_path / "b.jsonl").write_text('{"file": "x"\n')
    (tmp_path / "c.jsonl").write_text("[1]\n")
    for name, message in (
        ("b.csv", "line 2: 3 columns where the header has 2"),
        ("b.jsonl", "line 1 is not JSON"),
        ("c.jsonl", "line 1 is list; expected an object"),
        ("a.xlsx", "ends in .csv, .tsv or .jsonl"),
    ):
        with pytest.raises(ValueError, match=message):
            lines.table(tmp_path / name)
