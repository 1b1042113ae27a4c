"""`cl-jax search`: what it finds against NumPy, tables and sheets, and mistakes in one sentence."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import cl_jax
from cl_jax.data import embeddings
from cl_jax.tools import search
from tests.tools import kept


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """(folder, run, file of embeddings) of sixteen pictures, and a copy of one of them."""
    root = tmp_path_factory.mktemp("search")
    folder = kept.pictures(root / "pets")
    (folder / "dog" / "copy.png").write_bytes((folder / "dog" / "02.png").read_bytes())
    run = kept.run(root / "run")
    loaded = cl_jax.load(run)
    found = loaded.embed(folder)
    found.about["root"], found.about["network"] = str(folder), loaded.checksum
    found.save(root / "pets.npz")
    return folder, run, root / "pets.npz"


def table(path):
    with path.open(newline="") as opened:
        return list(csv.DictReader(opened))


def cosine(pets):
    x = embeddings.load(pets[2])["h"]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def test_neighbours_of_a_row_of_a_file_and_of_a_folder(pets, tmp_path, capsys):
    folder, _, file = pets
    paths = embeddings.load(file).paths.tolist()
    at = paths.index("dog/02.png")
    scores = cosine(pets)[at]
    expected = [paths[i] for i in np.argsort(-scores, kind="stable") if i != at][:3]
    out, sheet = tmp_path / "like.csv", tmp_path / "like.png"
    for name in ("dog/02.png", str(folder / "dog" / "02.png")):
        words = [f"--like={name}", f"--out={out}", f"--sheet={sheet}", "--k=3"]
        assert search.main([str(file), *words]) == 0
        assert [row["path"] for row in table(out)] == expected
        assert "1.000  dog/copy.png  [dog]" in capsys.readouterr().out
        with Image.open(sheet) as picture:
            assert picture.size[0] > 4 * 96
    new = kept.pictures(tmp_path / "new", count=2)
    assert search.main([str(file), f"--like={new}", f"--out={out}", "--k=2"]) == 0
    rows = table(out)
    assert len(rows) == 8 and [row["query"] for row in rows[::2]] == [
        f"{label}/{i:02d}.png" for label in ("cat", "dog") for i in range(2)
    ]
    assert rows[0]["path"] == "cat/00.png"  # drawn with the same seed, so the same picture
    assert float(rows[0]["similarity"]) == pytest.approx(1, abs=1e-5)


def test_a_copy_without_a_label_is_no_wrong_label(monkeypatch):
    """Three groups of copies; of one of them two labels differ. The search for them stands in."""
    from cl_jax.cluster import pairs

    close = [np.array([2, 3, 4]), np.array([0, 1]), np.array([5, 6])]
    joined = pairs.Joined(close, np.ones(7, np.float32))
    monkeypatch.setattr(pairs, "groups_above", lambda *_: joined)
    monkeypatch.setattr(pairs, "usual", lambda x: 0.5)

    def said(label):
        held = SimpleNamespace(
            labels={"label": np.array(label)}, classes={}, paths=np.array(list("abcdefg"))
        )
        return search.duplicates(held, np.zeros((7, 2), np.float32), 0.9).text

    assert "different labels" not in said([0, -1, 1, 1, -1, -1, -1])
    assert "1 groups have different labels" in said([0, -1, 0, 1, -1, 1, 1])


def test_duplicates_clusters_outliers_and_a_subset(pets, tmp_path, capsys):
    file, out = str(pets[2]), tmp_path / "t.csv"
    paths, scores = embeddings.load(file).paths, cosine(pets)
    assert search.main([file, "--duplicates=0.999999", f"--out={out}"]) == 0
    assert [row["path"] for row in table(out)] == ["dog/02.png", "dog/copy.png"]
    assert "1 groups of rows at least 0.999999 alike" in capsys.readouterr().out
    sheet = tmp_path / "c.png"
    words = [file, "--clusters=2", "--k=3", f"--out={out}", f"--sheet={sheet}"]
    assert search.main(words) == 0
    rows = table(out)
    assert len(rows) == 17 and {row["cluster"] for row in rows} == {"0", "1"}
    said = capsys.readouterr().out
    assert "cluster 0: " in said and " % dog: " in said and sheet.stat().st_size > 1000
    assert search.main([file, "--outliers=4", "--k=3", f"--out={out}"]) == 0
    np.fill_diagonal(scores, -np.inf)
    mean = np.sort(scores, axis=1)[:, -3:].mean(1)
    found = [row["path"] for row in table(out)]
    np.testing.assert_allclose(
        [mean[paths.tolist().index(name)] for name in found], np.sort(mean)[:4], atol=1e-5
    )
    np.testing.assert_allclose(
        [float(row["similarity"]) for row in table(out)], np.sort(mean)[:4], atol=1e-5
    )
    out = tmp_path / "s.csv"
    assert search.main([file, "--subset=5", f"--out={out}"]) == 0
    chosen = [row["path"] for row in table(out)]
    assert len(set(chosen)) == 5 and {name.split("/")[0] for name in chosen} == {"cat", "dog"}
    assert [row["label"] for row in table(out)] == [name.split("/")[0] for name in chosen]
    assert search.main([file]) == 0
    said = capsys.readouterr().out
    assert "17 rows, h [" in said and "label: cat 8, dog 9" in said and "clusters" in said


def four(place):
    """A file of embeddings of four rows."""
    rows = np.array([[1, 0, 0], [0.8, 0.6, 0], [-1, 0, 0], [0, 0, 1]], np.float32)
    np.savez(place / "e.npz", h=rows, path=list("abcd"))
    return str(place / "e.npz")


def test_labels_that_were_written_into_the_table_of_a_subset_are_kept(tmp_path, capsys):
    out = tmp_path / "to_label.csv"
    words = [four(tmp_path), f"--out={out}"]
    assert search.main([*words, "--subset=2"]) == 0
    first, second = (row["path"] for row in table(out))
    # as a spreadsheet of some countries saves it, and with a row that the person added
    other = next(name for name in "abcd" if name not in (first, second))
    lines = ["rank;path;radius;label", f"1;{first};2.0;", f"2;{second};1.0;dög ", f";{other};;cat"]
    out.write_text("\ufeff" + "\r\n".join(lines), "utf-8")
    assert search.main([*words, "--subset=4"]) == 0
    found = table(out)
    assert [row["path"] for row in found[:2]] == [first, second] and len(found) == 4
    assert {row["path"]: row["label"] for row in found if row["label"]} == {
        second: "dög",
        other: "cat",
    }
    assert "2 labels of the table that was there are kept\n" in capsys.readouterr().out
    assert search.main([*words, "--subset=1"]) == 0
    assert [[*row.values()] for row in table(out)][1:] == [
        ["", row["path"], "", row["label"]] for row in found if row["label"]
    ]
    assert "are kept, 2 of rows outside the subset" in capsys.readouterr().out


def test_labels_of_the_data_are_not_those_that_people_wrote(tmp_path, capsys):
    """The table begins with them, and a later one need not keep them."""
    given = dict(np.load(four(tmp_path)), path=["x/a", "x/b", "y/c", "y/d"], label=list("xxyy"))
    np.savez(tmp_path / "e.npz", **given)
    out = tmp_path / "to_label.csv"
    words = [str(tmp_path / "e.npz"), f"--out={out}"]
    assert search.main([*words, "--subset=4"]) == 0
    out.write_text(out.read_text().replace("x/a", "x/gone"))
    assert search.main([*words, "--subset=2"]) == 0
    assert len(table(out)) == 2 and "are kept" not in capsys.readouterr().out
    first = table(out)[0]
    out.write_text(f"rank,path,radius,label\n1,{first['path']},2,z\n")
    assert search.main([*words, "--subset=2"]) == 0
    assert table(out)[0]["label"] == "z" and "1 labels" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,label\na,cat\n", "is not a table of --subset, with the columns rank, path"),
        ("rank,path,radius,label,notes\n", "is not a table of --subset"),
        ("", "is not a table of --subset"),
        ("rank,path,radius,label\n1,a,2.0,\na,cat\n", "line 3: expected 4 columns"),
        ("rank,path,radius,label\n1,a,2,x\n,a,,y\n", "line 3: a has another label above"),
        ("rank,path,radius,label\n1,a,2,x\n2,z,,y\n", "1 pictures that are not in"),
    ],
)
def test_a_table_that_would_lose_something_is_refused(text, message, tmp_path, capsys):
    out = tmp_path / "to_label.csv"
    out.write_text(text)
    assert search.main([four(tmp_path), f"--out={out}", "--subset=2"]) == 1
    said = capsys.readouterr().err
    assert message in said and "give another --out" in said and "Traceback" not in said
    assert out.read_text() == text


def test_outliers_of_many_rows_are_measured_against_some(monkeypatch, tmp_path, capsys):
    rows = 1 + 0.01 * np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    rows[7] = (-1, 1, -1, 1)
    np.save(tmp_path / "e.npy", rows)
    monkeypatch.setattr(search, "REFERENCE", 20)
    assert search.main([str(tmp_path / "e.npy"), "--outliers=1", "--k=4"]) == 0
    said = capsys.readouterr().out
    assert "of 20 rows drawn at random" in said and said.split()[-1] == "7"


def test_names_of_labels_cannot_rewrite_the_terminal(tmp_path, capsys):
    given = dict(h=np.eye(3), path=["a", "b", "c"], label=["x\n\x1b[2J", "y", "y"])
    np.savez(tmp_path / "e.npz", **given)
    assert search.main([str(tmp_path / "e.npz"), "--outliers=3"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "[x\\n\\x1b[2J]" in said


def test_mistakes_are_one_sentence(pets, tmp_path, capsys):
    file = str(pets[2])
    other = embeddings.load(file)
    other.about["network"] = "00000000"
    other.save(tmp_path / "other.npz")
    other.about.clear()
    other.about["bad"] = {"dog/cut.png": "is truncated"}
    other.save(tmp_path / "nowhere.npz")
    other, nowhere = str(tmp_path / "other.npz"), str(tmp_path / "nowhere.npz")
    new = kept.pictures(tmp_path / "new", count=1)
    for words, message in (
        ([str(tmp_path / "none.npz")], "is not a file"),
        ([file, "--like=dog/2.png"], "did you mean 'dog/02.png'"),
        ([file, "--duplicates=1.2"], "threshold is 1.2"),
        ([file, "--duplicates=0"], "threshold is 0"),
        ([file, "--clusters=99"], "--clusters=99; expected 2 to the 17 rows"),
        ([file, "--clusters=0"], "--clusters=0; expected 2 to the 17 rows"),
        ([file, "--like="], "--like is empty"),
        ([file, "--outliers=0"], "expected at least 1"),
        ([file, "--subset=18"], "expected 1 to the 17 rows"),
        ([file, "--k=0"], "--k=0"),
        ([file, "--feature=z"], "has no feature 'z'"),
        ([file, "--out=/none/x.csv"], "its folder does not exist"),
        ([file, "--sheet=x.pdf"], "ends in .png"),
        ([other, f"--like={new}"], "is of another network"),
        ([nowhere, f"--like={new}"], "give --run=WORKDIR"),
        ([nowhere, "--like=dog/cut.png"], "could not be read when"),
        (
            [nowhere, f"--sheet={tmp_path / 's.png'}", f"--out={tmp_path / 't.csv'}"],
            "--pictures=FOLDER",
        ),
    ):
        assert search.main(words) == 1
        said = capsys.readouterr()
        assert message in said.err and "Traceback" not in said.err, said.err
    assert not (tmp_path / "s.png").exists() and not (tmp_path / "t.csv").exists()


def test_pictures_that_are_gone_are_grey_on_the_sheet(pets, tmp_path, capsys):
    sheet = tmp_path / "s.png"
    words = [str(pets[2]), "--subset=17", f"--sheet={sheet}", f"--pictures={tmp_path}"]
    assert search.main(words) == 1
    assert "none of the 17 pictures is in" in capsys.readouterr().err and not sheet.exists()
    kept.pictures(tmp_path, count=1)
    assert search.main(words) == 0
    assert "17 pictures, 15 of which cannot be read" in capsys.readouterr().out and sheet.exists()
