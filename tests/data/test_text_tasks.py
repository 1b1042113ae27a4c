"""Scored pairs and classification tasks: which rows are which source, and what may be wrong."""

import pytest

from cl_jax.data import text, text_tasks


def written(path, rows):
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    return str(path)


def sentences(path):
    words = "a cat dog bird sees hears two small large".split()
    return written(path, [[f"{one} {other}"] for one in words for other in words[:4]])


def made(path, tmp_path, **settings):
    given = dict(path=path, length=12, vocab_size=60, tokenizer_cache=str(tmp_path / "cache"))
    return text.make(**given | settings)


def test_sentences_with_classes_are_sources_by_set(tmp_path):
    path = sentences(tmp_path / "a.txt")
    header = ["set", "split", "label", "text"]
    table = [
        header,
        ["MR", "all", "1", "a cat"],
        ["MR", "all", "0", "a dog"],
        ["TREC", "train", "HUM", "who sees"],
        ["TREC", "train", "LOC", "where"],
        ["TREC", "dev", "XXX", "left out"],
        ["TREC", "test", "LOC", "a bird"],
    ]
    more = made(path, tmp_path, classify=written(tmp_path / "c.tsv", table)).more
    assert {name: source.arrays["label"].tolist() for name, source in more.items()} == {
        "classify/MR": [1, 0],
        "classify/TREC": [0, 1],
        "classify/TREC/test": [1],
    }
    assert more["classify/TREC"].sizes["label"] == 2
    for part in ("", "/test"):
        one = more[f"classify/TREC{part}"]
        assert one.classes == {"label": ("HUM", "LOC")} and len(one.names) == one.size
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    written(tasks / "TREC.tsv", [row[1:] for row in table if row[0] in ("set", "TREC")])
    pairs = [["label", "text", "text_b"], ["0", "a", "b"], ["1", "a cat", "a cat"]]
    written(tasks / "MRPC.tsv", pairs)
    more = made(path, tmp_path, classify=str(tasks)).more
    assert set(more) == {"classify/TREC", "classify/TREC/test", "classify/MRPC"}
    assert set(more["classify/MRPC"].arrays) == {"tokens", "tokens_b", "label"}
    for wrong, message in (
        ([pairs[0], ["0", "a", " "]], "empty sentences, labels or sets in line 2. Fill them in or"),
        ([["a", "b"], ["c", "d"]], "expected a header with label and text"),
        ([header, ["MR", "all", "1", " "]], "empty sentences, labels or sets in line 2"),
        ([header, ["MR", "all", "1", "x"]], "expected two or more"),
        ([*table, ["MR", "test", "2", "x"]], "train has 0, 1, test has 2 besides"),
    ):
        with pytest.raises(ValueError, match=message):
            made(path, tmp_path, classify=written(tmp_path / "w.tsv", wrong))


def test_skip_leaves_empty_sentences_of_evaluation_out(tmp_path):
    path = sentences(tmp_path / "a.txt")
    header = ["set", "split", "label", "text"]
    filled = [["CR", "all", "1", "a cat"], ["CR", "all", "0", "a dog"]]
    classify = written(tmp_path / "c.tsv", [header, *filled, ["CR", "all", "0", " "]])
    pairs = [["a cat", "", "3"], ["a cat", "a dog", "2"], ["a dog", "a dog", "5"]]
    scored = written(tmp_path / "s.tsv", pairs)
    with pytest.raises(ValueError, match="empty sentences or sets in line 1"):
        made(path, tmp_path, sts=scored)
    with pytest.raises(ValueError, match="empty sentences, labels or sets in line 4"):
        made(path, tmp_path, classify=classify)
    more = made(path, tmp_path, classify=classify, sts=scored, on_error="skip").more
    assert more["classify/CR"].size == 2 and more["sts"].arrays["score"].tolist() == [2, 5]


def test_dev_pairs_are_apart_and_training_pairs_left_out(tmp_path):
    table = [
        ["set", "split", "part", "score", "a", "b"],
        ["STSB", "train", "news", "1", "a", "b"],
        ["STSB", "dev", "news", "2", "c", "d"],
        ["STSB", "dev", "news", "1", "d", "d"],
        ["STSB", "test", "news", "3", "e", "f"],
        ["STSB", "test", "forums", "4", "g", "h"],
        ["STS13", "all", "news", "5", "i", "j"],
        ["STS13", "all", "news", "0", "k", "l"],
    ]
    found = text_tasks.read_scored(written(tmp_path / "all.tsv", table))
    assert {name: score.tolist() for name, (*_, score) in found.items()} == {
        "sts_dev/STSB": [2, 1],
        "sts/STSB": [3, 4],
        "sts/STS13": [5, 0],
    }
    folder = tmp_path / "folder"
    folder.mkdir()
    written(folder / "STSB.tsv", [row[1:] for row in table[:6]])
    found = text_tasks.read_scored(str(folder))
    assert {name: score.tolist() for name, (*_, score) in found.items()} == {
        "sts/STSB": [3, 4],
        "sts_dev/STSB": [2, 1],
    }
    for table_, message in (
        ([table[0], ["X", "first", "", "1", "a", "b"]], "line 2: split is 'first'; expected train"),
        (table[:2], "no pair with a score outside of the split train"),
        (table[1:], "has 6 columns and its first line is no header with a, b and score"),
    ):
        with pytest.raises(ValueError, match=message):
            text_tasks.read_scored(written(tmp_path / "wrong.tsv", table_))


def test_scored_pairs_of_a_folder_are_a_set_a_file(tmp_path):
    """The subsets of a file are one set: correlation is of all its pairs."""
    folder = tmp_path / "sts"
    folder.mkdir()
    header = ["set", "score", "a", "b"]
    written(folder / "STS12.tsv", [header, ["x", "1", "a", "b"], ["y", "3", "c", "d"]])
    written(folder / "SICK.tsv", [["a", "b", "2"], ["c", "d", "4"]])
    found = text_tasks.read_scored(str(folder))
    assert list(found) == ["sts/SICK", "sts/STS12"]
    assert found["sts/STS12"][0] == ["a", "c"] and found["sts/STS12"][2].tolist() == [1, 3]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no files"):
        text_tasks.read_scored(str(tmp_path / "empty"))


def test_files_that_would_lose_rows_in_silence_are_refused(tmp_path):
    folder = tmp_path / "sets"
    folder.mkdir()
    written(folder / "SICK.tsv", [["a", "b", "2"], ["c", "d", "4"]])
    written(folder / "SICK.txt", [["e", "f", "1"], ["g", "h", "3"]])
    with pytest.raises(ValueError, match=r"SICK\.tsv and SICK\.txt, which would both be"):
        text_tasks.read_scored(str(folder))
    for read, wrong, message in (
        (text_tasks.read_scored, [["a", "b", "score", "a"], ["x", "y", "1", "z"]], "columns 'a'"),
        (text_tasks.read_classes, [["label", "text", "text"], ["0", "x", "y"]], "columns 'text'"),
        (text_tasks.read_classes, [["label", "text"]], "no sentence with a label"),
        (text_tasks.read_scored, [["a,b,score"], ["x,y,1"]], "three, divided by tabs"),
        (text_tasks.read_classes, [["label,text"], ["1,x"]], "label and text, divided by tabs"),
    ):
        with pytest.raises(ValueError, match=message):
            read(written(tmp_path / "wrong.tsv", wrong))


def test_a_set_of_one_pair_is_refused_where_it_is_read(tmp_path):
    """An evaluation would fail on it after the first epoch."""
    header = ["set", "split", "score", "a", "b"]
    rows = [["x", "test", "1", "a", "b"], ["x", "dev", "2", "c", "d"], ["x", "test", "3", "e", "f"]]
    alone = r"has one pair for sts_dev/(x|alone); expected two or more.*Add pairs of this set and"
    file = written(tmp_path / "pairs.tsv", [header, *rows])
    with pytest.raises(ValueError, match=alone):
        text_tasks.read_scored(file)
    folder = tmp_path / "folder"
    folder.mkdir()
    written(folder / "alone.tsv", [header, *rows])
    with pytest.raises(ValueError, match=alone):
        text_tasks.read_scored(str(folder))
    written(folder / "alone.tsv", [header, *rows, ["y", "dev", "4", "g", "h"]])
    assert len(text_tasks.read_scored(str(folder))["sts_dev/alone"][0]) == 2
    with pytest.raises(ValueError, match="has one pair for sts;"):
        text_tasks.read_scored(written(tmp_path / "one.tsv", [["a cat", "a dog", "1"]]))
    embedded = text.make(
        train_size=32, test_size=1, vocab_size=60, tokenizer_cache=str(tmp_path / "cache")
    )
    assert embedded.test.size == 1 and embedded.more["sts"].size == 2


def test_an_empty_name_of_a_set_is_an_empty_cell(tmp_path):
    header = ["set", "score", "a", "b"]
    rows = [["x", "1", "a", "b"], ["x", "3", "c", "d"], [" ", "2", "e", "f"], ["", "4", "g", "h"]]
    file = written(tmp_path / "pairs.tsv", [header, *rows])
    with pytest.raises(ValueError, match=r"empty sentences or sets in lines 4, 5\. Fill them in"):
        text_tasks.read_scored(file)
    found = text_tasks.read_scored(file, on_error="skip")
    assert list(found) == ["sts/x"] and len(found["sts/x"][0]) == 2
    folder = tmp_path / "folder"  # where the file names the set
    folder.mkdir()
    written(folder / "mine.tsv", [header, *rows])
    assert len(text_tasks.read_scored(str(folder))["sts/mine"][0]) == 4
    tasks = [["set", "label", "text"], ["x", "0", "a"], ["x", "1", "b"], ["", "1", "c"]]
    with pytest.raises(ValueError, match="empty sentences, labels or sets in line 4"):
        text_tasks.read_classes(written(tmp_path / "tasks.tsv", tasks))
