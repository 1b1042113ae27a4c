"""Features with names and labels: three formats, pieces that can be resumed, files of other origin
and files that are damaged."""

import json
import zipfile

import numpy as np
import pytest

from cl_jax.core.errors import ConfigError, NotFoundError, SaveError
from cl_jax.data import embeddings
from cl_jax.data.embeddings import Embeddings, Pieces


def some(count=7, first=0, **about):
    rng = np.random.default_rng(first)
    return Embeddings(
        {
            "h": rng.standard_normal((count, 3)).astype(np.float32),
            "proj1": rng.standard_normal((count, 2)).astype(np.float32),
        },
        np.array([f"päth, {first + i}.png" for i in range(count)]),
        {
            "label": (np.arange(count, dtype=np.int32) % 3) - 1,
            "fold": np.arange(count, dtype=np.int32),
        },
        {"label": ("a cat", "dog")},
        {"run": "runs/mine", "step": 3, **about},
    )


def same(a, b):
    assert list(a.paths) == list(b.paths) and set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    assert a.words("label") == b.words("label")
    for name in a.labels:
        np.testing.assert_array_equal(a.labels[name], b.labels[name])


@pytest.mark.parametrize("suffix", embeddings.SUFFIXES)
def test_a_file_gives_the_same_rows_back(suffix, tmp_path):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path, written = tmp_path / f"e{suffix}", some()
    written.save(path)
    found = embeddings.load(path)
    same(found, written)
    assert found.words("label")[:3] == ["", "a cat", "dog"]
    if suffix != ".csv":
        assert found.about == written.about and found.classes == written.classes
    some(4).save(path)
    assert len(embeddings.load(path)) == 4 and [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", embeddings.SUFFIXES)
def test_pieces_become_one_file(suffix, tmp_path):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path, about = tmp_path / f"e{suffix}", {"run": "a", "features": ["h", "proj1"]}
    pieces = Pieces(path, about)
    pieces.add(some(0, bad={"x.png": "cut"}), 2)
    pieces.add(some(5, 2), 7)
    assert not path.exists()
    again = Pieces(path, about)
    assert again.done == 7
    again.add(some(3, 7), 11)
    assert again.finish(about, {"y.png": "empty"}) == {"x.png": "cut", "y.png": "empty"}
    found = embeddings.load(path)
    np.testing.assert_array_equal(found["h"][:5], some(5, 2)["h"])
    np.testing.assert_array_equal(found["h"][5:], some(3, 7)["h"])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    if suffix != ".csv":
        assert found.about["bad"] == {"x.png": "cut", "y.png": "empty"}


def test_pieces_of_other_rows_are_refused(tmp_path):
    Pieces(tmp_path / "e.npz", {"run": "a", "step": 1})
    with pytest.raises(ConfigError, match="step 1 then, 2 now"):
        Pieces(tmp_path / "e.npz", {"run": "a", "step": 2})


def test_overwrite_keeps_pieces_of_the_same_rows_alone(tmp_path):
    path, about = tmp_path / "e.npz", {"run": "a", "names": "1"}
    Pieces(path, about).add(some(2), 2)
    assert Pieces(path, about, overwrite=True).done == 2
    assert Pieces(path, about | {"names": "2"}, overwrite=True).done == 0
    again = Pieces(path, about | {"names": "2"})
    assert again.done == 0


def test_nothing_readable_leaves_no_file(tmp_path):
    pieces = Pieces(tmp_path / "e.npz", {})
    pieces.add(some(0, bad={"x.png": "cut"}), 2)
    with pytest.raises(ConfigError, match=r"no example can be read; x\.png: cut"):
        pieces.finish({})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "e.npz"
    some(4).save(path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "open", full)
    with pytest.raises(SaveError, match="No space left"):
        some(5).save(path)
    monkeypatch.undo()
    assert len(embeddings.load(path)) == 4 and len(list(tmp_path.iterdir())) == 1


def test_files_of_other_origin(tmp_path):
    rows = np.arange(6.0).reshape(3, 2)
    np.save(tmp_path / "a.npy", rows)
    found = embeddings.load(tmp_path / "a.npy")
    assert list(found) == ["features"] and list(found.paths) == ["0", "1", "2"]
    np.savez(tmp_path / "a.npz", emb=rows, filename=["x", "y", "z"], species=["b", "a", ""])
    found = embeddings.load(tmp_path / "a.npz")
    assert list(found.paths) == ["x", "y", "z"] and found.words("species") == ["b", "a", ""]
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"file": ["x", "y"], "emb": [[1.0, 2.0], [3.0, 4.0]], "n": [5, None]})
    pq.write_table(table, tmp_path / "a.parquet")
    found = embeddings.load(tmp_path / "a.parquet")
    np.testing.assert_array_equal(found["emb"], [[1, 2], [3, 4]])
    assert list(found.labels["n"]) == [5, -1]
    # rows of 2 and 4 numbers are not two of 3
    pq.write_table(pa.table({"emb": [[1.0, 2.0], [3.0] * 4]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="rows of emb have different lengths, 0 of them none"):
        embeddings.load(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("\ufefffile;emb.0;emb.1\nx;1;2\ny;3;4\n")
    found = embeddings.load(tmp_path / "a.csv")
    np.testing.assert_array_equal(found["emb"], [[1, 2], [3, 4]])


def test_wrong_files_are_one_sentence(tmp_path):
    def put(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    def npz(name, **arrays):
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    some().save(tmp_path / "good.npz")
    whole = (tmp_path / "good.npz").read_bytes()
    nan = np.array([[1.0, np.nan]])
    hostile = np.array([{"a": 1}], object)
    for path, message in (
        (tmp_path / "none.npz", "is not a file"),
        (put("e.txt", b""), r"ends in '\.txt'"),
        (put("cut.npz", whole[: len(whole) // 2]), r"cut\.npz cannot be read"),
        (put("e.parquet", b"PAR1"), r"e\.parquet cannot be read"),
        (put("e.csv", b"path,h.0\na,1\nb\n"), "line 3: 1 columns; expected 2"),
        (put("2.csv", b"h.0,day,day\n1,2,3\n"), "several columns 'day'; expected each name once"),
        (put("c.csv", b"h.0;h.1\n0,5;1\n"), "Write 0,5 as 0.5, with a decimal point"),
        (put("h.csv", b"path,h_0,h_1\na,1,2\n"), r"in a \.csv as columns NAME\.0, NAME\.1, \.\.\."),
        (put("w.csv", b"path,h.0\na,x\n"), "line 2: could not convert .*'x'; expected numbers"),
        (put("u.csv", "path,h.0\na,1\n".encode("utf-16")), "zero bytes; expected a table as UTF-8"),
        (put("i.csv", b"path,h.0\na,1e300\n"), r"h has NaN, inf .* in 1 rows, such as a"),
        (npz("n.npz", h=nan), "h has NaN, inf or numbers beyond 1e.17 in 1 rows, such as 0"),
        (npz("b.npz", h=np.full((1, 2), -1e30)), "or numbers beyond 1e.17 in 1 rows, such as 0"),
        (npz("t.npz", h=np.ones((1, 2)), about="[1]"), "notes .'about'. are not those that"),
        (npz("r.npz", h=np.ones((1, 2)), about='{"root": 5}'), "notes .'about'. are not those"),
        (
            npz("x.npz", h=np.ones((1, 2)), label=[2], about='{"classes": {"label": ["a"]}}'),
            "label goes up to 2, and its notes name 1 classes",
        ),
        (npz("l.npz", h=np.ones((2, 2)), label=np.zeros(3, int)), "label has 3 rows"),
        (npz("f.npz", label=np.zeros(3, int)), "has no features: its columns are label"),
        (npz("o.npz", h=hostile), "Object arrays cannot .* text as numpy.array"),
    ):
        with pytest.raises(ConfigError, match=message):
            embeddings.load(path)
    with pytest.raises(NotFoundError):
        embeddings.load(tmp_path / "none.npz")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path, message in (
        (tmp_path / "e.txt", "expected a name that ends in"),
        (tmp_path / "file" / "e.npz", "cannot be written"),
        ("/proc/e.npz", "cannot be written"),
    ):
        with pytest.raises(ConfigError, match=message):
            some().save(path)


def test_notes_are_text_alone(tmp_path):
    some(root="/x").save(tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz", allow_pickle=False) as kept:
        assert json.loads(str(kept["about"]))["root"] == "/x"


def test_labels_beyond_32_bits_are_names(tmp_path):
    many = np.array([2**40, 0, 2**40, 1])
    np.savez(tmp_path / "a.npz", h=np.ones((4, 2), np.float32), label=many, few=many % 7)
    found = embeddings.load(tmp_path / "a.npz")
    assert found.labels["label"].tolist() == [2, 0, 2, 1]
    assert found.classes == {"label": ("0", "1", str(2**40))}
    assert found.labels["few"].tolist() == (many % 7).tolist()


def test_a_table_of_another_program(tmp_path):
    file = tmp_path / "e.csv"
    columns = ["path", *(f"h.{i}" for i in sorted(map(str, range(11)))), "id64", "day"]
    assert columns[3] == "h.10"
    row = ["x", *(name[2:] for name in columns[1:12]), str(2**40), "2"]
    file.write_text("\n".join([",".join(columns), ",".join(row), "", ",".join(row), "", ""]))
    found = embeddings.load(file)
    assert found["h"].tolist() == [list(range(11))] * 2  # by their numbers, not as text sorts them
    assert found.words("id64") == [str(2**40)] * 2 and found.labels["day"].tolist() == [2, 2]


def test_labels_of_bytes_are_text(tmp_path):
    np.savez(tmp_path / "e.npz", h=np.ones((2, 3)), kind=np.array(["dög".encode(), b"cat"]))
    assert embeddings.load(tmp_path / "e.npz").words("kind") == ["dög", "cat"]


def test_labels_are_the_same_in_every_format(tmp_path):
    """Whole numbers kept as floats, as tables with a missing label have them; true and false; what
    lies beyond 32 bits."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    gone = {
        "day": [2.0, np.nan, 0.0],
        "big": [2**40, -1, 7],
        "score": [0.5, 1.0, 2.0],
    }
    rows = np.eye(3, dtype=np.float32)
    np.savez(tmp_path / "e.npz", h=rows, **gone)
    pq.write_table(pa.table({"h": list(rows)} | gone), tmp_path / "e.parquet")
    cells = [",".join(map(str, row)) for row in zip(*rows.astype(int).T, *gone.values())]
    text = "\n".join(["h.0,h.1,h.2,day,big,score", *cells]).replace("nan", "")
    (tmp_path / "e.csv").write_text(text)
    for suffix in ("npz", "parquet", "csv"):
        found = embeddings.load(tmp_path / f"e.{suffix}")
        assert found.labels["day"].tolist() == [2, -1, 0] and "day" not in found.classes
        assert found.words("big") == [str(2**40), "", "7"]
        assert found.labels["big"].tolist() == [0, -1, 1]
    few, ok = pa.array([3, None, 200], pa.uint8()), [True, None, False]
    pq.write_table(pa.table({"h": list(rows), "few": few, "ok": ok}), tmp_path / "b.parquet")
    found = embeddings.load(tmp_path / "b.parquet").labels
    assert found["few"].tolist() == [3, -1, 200] and found["ok"].tolist() == [1, -1, 0]


def test_names_of_digits_stay_apart(tmp_path):
    (tmp_path / "e.csv").write_text("h.0,code,kind\n1,007, cat\n2,7,cat\n3,,dog \n")
    found = embeddings.load(tmp_path / "e.csv")
    assert found.words("code") == ["007", "7", ""]
    assert found.words("kind") == ["cat", "cat", "dog"]


@pytest.mark.parametrize("suffix", ["csv", "npz"])
def test_rows_are_named_by_their_path_wherever_it_stands(suffix, tmp_path):
    """The column id stands first, and its numbers are a label."""
    paths = ["a/1.jpg", "b/2.jpg"]
    if suffix == "csv":
        rows = "".join(f"{7 + i},{path},{i},1\n" for i, path in enumerate(paths))
        (tmp_path / "e.csv").write_text("id,Path,h.0,h.1\n" + rows)
    else:
        np.savez(tmp_path / "e.npz", id=np.array([7, 8]), Path=paths, h=np.eye(2))
    found = embeddings.load(tmp_path / f"e.{suffix}")
    assert found.paths.tolist() == paths
    assert {name: rows.tolist() for name, rows in found.labels.items()} == {"id": [7, 8]}
