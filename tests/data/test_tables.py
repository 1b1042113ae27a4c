"""Tables are replaced whole, or stay."""

import csv

import pytest

from cl_jax.core.errors import ConfigError, SaveError
from cl_jax.data import tables


def test_columns_become_rows(tmp_path):
    path = tmp_path / "t.csv"
    tables.write_table(str(path), {"path": ["a,b.png", "ü.png"], "score": [0.5, 1]})
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["path", "score"], ["a,b.png", "0.5"], ["ü.png", "1"]]


def test_an_old_table_stays_when_a_new_one_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables.Path, "replace", full)
    with pytest.raises(SaveError, match="cannot be written: No space left on device"):
        tables.write_table(str(path), {"a": [1]})
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["t.csv"]


def test_places_that_cannot_be_written_are_found_before(tmp_path):
    tables.check_place("", ".csv")
    tables.check_place(str(tmp_path / "T.CSV"), ".csv")
    with pytest.raises(ConfigError, match=r"expected a name that ends in \.csv"):
        tables.check_place(str(tmp_path / "t.txt"), ".csv")
    with pytest.raises(ConfigError, match="its folder does not exist"):
        tables.check_place(str(tmp_path / "no" / "t.csv"), ".csv")
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(ConfigError, match=r"t\.csv is a folder; give the name of a file"):
        tables.check_place(str(tmp_path / "t.csv"), ".csv")
    with pytest.raises(ConfigError, match=r"/proc/t\.csv cannot be written: .* user may write"):
        tables.check_place("/proc/t.csv", ".csv")
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
