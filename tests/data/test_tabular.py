"""Tables: standardised by the training part, equal rows in one part, errors that name the cell."""

import numpy as np
import pytest

from cl_jax.data import tabular


@pytest.mark.parametrize(("name", "columns", "classes"), [("digits", 64, 10), ("wine", 13, 3)])
def test_embedded_tables(name, columns, classes):
    splits = tabular.make(embedded=name)
    train, test = (part.arrays for part in splits[:2])
    assert train["row"].shape[1] == test["row"].shape[1] == columns
    assert splits.train.sizes == {"label": classes}
    assert set(train["label"]) == set(test["label"]) == set(range(classes))
    assert 0.15 < splits.test.size / (splits.test.size + splits.train.size) < 0.25
    deviation = train["row"].std(0)
    np.testing.assert_allclose(train["row"].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(deviation[deviation > 0], 1, atol=1e-4)
    assert not {row.tobytes() for row in train["row"]} & {row.tobytes() for row in test["row"]}


def write(folder, text, name="t.csv"):
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_file_of_ones_own(tmp_path):
    rows = "".join(f"{i},{'cat' if i % 2 else 'ant'},7,{i * i}\n" for i in range(20))
    splits = tabular.make(path=write(tmp_path, "a,label,same,b\n" + rows + "3,,7,1\n"))
    assert splits.train.classes == {"label": ["ant", "cat"]}
    row = np.concatenate([part.arrays["row"] for part in splits[:2]])
    assert row.shape == (21, 3) and not row[:, 1].any()
    labels = np.concatenate([part.arrays["label"] for part in splits[:2]])
    assert sorted(set(labels)) == [-1, 0, 1]


def test_the_test_part_is_measured_by_the_training_part(tmp_path):
    train = write(tmp_path, "x,y\n0,0\n2,4\n")
    test = write(tmp_path, "y,x\n2,5\n", "test.csv")
    splits = tabular.make(path=train, test_path=test, label="")
    np.testing.assert_allclose(splits.train.arrays["row"], [[-1, -1], [1, 1]])
    np.testing.assert_allclose(splits.test.arrays["row"], [[4, 0]])
    assert "label" not in splits.train.sizes


def test_classes_are_alike_however_they_are_written(tmp_path):
    """pandas writes the classes of a column with an empty cell as 0.0 and 1.0, else as 0 and 1."""
    train = write(tmp_path, "x,label\n0,0.0\n2,1.0\n4,\n6,10.0\n")
    test = write(tmp_path, "x,label\n1,1\n2,0\n3,10\n", "test.csv")
    splits = tabular.make(path=train, test_path=test)
    assert splits.train.classes == {"label": ["0", "1", "10"]}
    assert splits.train.arrays["label"].tolist() == [0, 1, -1, 2]
    assert splits.test.arrays["label"].tolist() == [1, 0, 2]
    names = write(tmp_path, "x,label\n0,007\n1,7\n2,7.0\n", "names.csv")
    assert tabular.make(path=names, test_path=names).train.sizes == {"label": 3}


def test_a_class_that_the_test_part_writes_in_another_way_is_refused(tmp_path, caplog):
    train = write(tmp_path, "x,kind\n0,Cat\n2,dog\n")
    test = write(tmp_path, "x,kind\n1,cat\n2,dog\n3,\n", "test.csv")
    with pytest.raises(ValueError, match=r"train has Cat, dog, test has cat besides. .*label=''"):
        tabular.make(path=train, test_path=test, label="kind")
    test = write(tmp_path, "x,kind\n1,dog\n2,eel\n", "test.csv")
    splits = tabular.make(path=train, test_path=test, label="kind")
    assert splits.test.arrays["label"].tolist() == [1, 2] and "test has eel besides" in caplog.text


def test_equal_rows_are_in_one_part_and_more_rows_move_none(tmp_path):
    lines = [f"{i},{i % 3},a\n" for i in range(60)] * 2
    short = tabular.make(path=write(tmp_path, "x,y,label\n" + "".join(lines)))
    assert not {row.tobytes() for row in short.train.arrays["row"]} & {
        row.tobytes() for row in short.test.arrays["row"]
    }
    assert short.train.size % 2 == short.test.size % 2 == 0


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_files_of_spreadsheets(mark, separator, tmp_path):
    rows = [("label", "x", "y"), *(("ab"[i % 2], str(i), str(i % 3)) for i in range(20))]
    text = mark + "".join(separator.join(row) + "\r\n" for row in rows)
    splits = tabular.make(path=write(tmp_path, text))
    assert splits.train.arrays["row"].shape[1] == 2 and splits.train.sizes == {"label": 2}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (
            "0.5,1.5,7",
            "its first line is taken for the header, and has numbers alone (0.5, 1.5, 7)",
        ),
        (",x,y", "the column without a name counts the rows, as pandas writes them"),
        ("x,label,y", "the column 'label' has 7 values in 12 rows, and each is taken for a class"),
        ("x,y,label", ""),
    ],
)
def test_tables_that_may_be_misread_are_told(header, said, tmp_path, caplog):
    text = f"{header}\n" + "".join(f"{i},{i % 7},{i % 3}\n" for i in range(12))
    with caplog.at_level("WARNING"):
        tabular.make(path=write(tmp_path, text), label="label" if "label" in header else "")
    assert said in caplog.text and bool(said) == bool(caplog.text)


def test_encodings_and_numbers_beyond_float64(tmp_path):
    text = "x,label\n" + "".join(f"{i}e300,a\n" for i in range(9))
    with pytest.raises(ValueError, match="deviation of column 'x'"):
        tabular.make(path=write(tmp_path, text))
    (tmp_path / "wide.csv").write_bytes(text.encode("utf-16"))
    with pytest.raises(ValueError, match="is UTF-16; expected UTF-8: iconv"):
        tabular.make(path=str(tmp_path / "wide.csv"))


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("x,label\n1,a\nred,b\n", {}, "line 3: column 'x' is 'red'; expected a finite number"),
        ("x;label\n1,5;a\n2,5;b\n", {}, "Write 1,5 as 1.5, with a decimal point"),
        ("x,label\n1,a\nnan,b\n", {}, "line 3: column 'x' is 'nan'"),
        ("x,label\n1,a\n2\n", {}, "line 3: 1 cells; expected 2"),
        ("x,y\n1,2\n", {}, "has 0 columns 'label'; expected one. Its columns: x, y"),
        ('x,label\n1,a\n"2,b\n3,c\n', {}, "line 4: 1 cells; .* Is a quotation mark left open"),
        ("x,x,label\n1,2,a\n", {}, "has 2 columns 'x'"),
        ("x,label\n", {}, "1 columns of numbers and 0 rows"),
        ("x,label\n1,a\n1,b\n", {}, "2 rows, 1 of them different"),
        ("x,label\n1,a\n2,b\n", {}, "Each class has one row; for a column that holds no classes"),
        ("x,label\n1,a\n", {"columns": ("z",)}, "has 0 columns 'z'"),
    ],
)
def test_errors_of_a_file(text, settings, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        tabular.make(path=write(tmp_path, text), **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"embedded": "digit"}, "embedded='digit'; expected one of digits"),
        ({"embedded": "wine", "columns": ("a",)}, "wine has no column 'a'; its columns: alcohol"),
        ({"path": "none.csv"}, "none.csv is not a file; expected a .csv with a header"),
        ({"test_path": "none.csv"}, "without path"),
        ({"test_share": 1.0}, "test_share=1.0"),
    ],
)
def test_errors_of_settings(settings, words):
    with pytest.raises(ValueError, match=words):
        tabular.make(**settings)


def test_columns_of_any_unit_are_standardised(tmp_path):
    rows = [f"{3 + i}e-19,{3 + i}e12,1e-19,{'ab'[i % 2]}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["charge,count,same,label", *rows]))
    row = tabular.make(path=str(tmp_path / "t.csv")).train.arrays["row"]
    np.testing.assert_allclose(row.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(row.std(0), [1, 1, 0], atol=1e-5)


def test_other_rows_are_read_without_labels(tmp_path):
    (tmp_path / "mine.csv").write_text("a,label\n" + "".join(f"{i},x\n{-i},y\n" for i in range(9)))
    (tmp_path / "other.csv").write_text("a\n1\n2\n")
    learnt = tabular.make(path=str(tmp_path / "mine.csv")).learnt
    found = tabular.make(path=str(tmp_path / "other.csv"), learnt=learnt).train
    assert found.size == 2 and (found.arrays["label"] == -1).all() and found.sizes["label"] == 2
    with pytest.raises(ValueError, match="0 columns 'label'"):
        tabular.make(path=str(tmp_path / "other.csv"))
