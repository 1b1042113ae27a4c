"""Kept arrays are those that were made, bit for bit, or are made again."""

import os

import numpy as np
import pytest

from cl_jax.data import kept


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "cl_jax" / "squares"


class Squares:
    def __init__(self):
        self.made = 0

    def __call__(self):
        self.made += 1
        numbers = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
        return {"b/image": numbers**2, "a/label": np.array([5, -1], np.int32)}


def check(found):
    expected = Squares()()
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)


def test_arrays_are_made_once_and_read_where_a_device_can_use_them(cache):
    make = Squares()
    for _ in range(2):
        found = kept.arrays("squares", "one", make)
        check(found)
    assert make.made == 1
    assert all(values.ctypes.data % 64 == 0 for values in found.values())
    kept.arrays("squares", "two", make)
    assert make.made == 2
    assert len(list(cache.iterdir())) == 2  # nothing partial is left


@pytest.mark.parametrize("damage", ["changed", "cut", "empty", "text"])
def test_a_damaged_file_is_made_again(cache, damage):
    make = Squares()
    kept.arrays("squares", "one", make)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    at = whole.index(bytes([0, 1, 4, 9, 16])) + 2
    changed = whole[:at] + b"\x07" + whole[at + 1 :]
    damaged = {"changed": changed, "cut": whole[:at], "empty": b"", "text": b"squares"}
    file.write_bytes(damaged[damage])
    check(kept.arrays("squares", "one", make))
    assert make.made == 2
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_or_is_not_there_stops_nothing(cache, monkeypatch):
    make = Squares()
    cache.parent.write_text("a file in place of the folder")
    check(kept.arrays("squares", "one", make))
    monkeypatch.setattr(kept.paths, "cache", lambda: None)
    check(kept.arrays("squares", "one", make))
    assert make.made == 2


def test_two_writers_of_one_file_do_not_meet(cache):
    """Processes of two hosts that share a home directory may have one number."""
    file = cache / "one.npz"

    def outer(out):
        out.write(b"outer")
        kept.put(file, lambda other: other.write(b"an inner one"))
        assert file.read_bytes() == b"an inner one"

    kept.put(file, outer)
    assert file.read_bytes() == b"outer" and list(cache.iterdir()) == [file]


def test_the_newest_files_are_kept(cache, monkeypatch):
    monkeypatch.setattr(kept, "FILES", 2)
    make = Squares()
    for time, key in enumerate(("one", "two")):
        kept.arrays("squares", key, make)
        for file in cache.iterdir():
            os.utime(file, (time, time))
    kept.arrays("squares", "three", make)
    assert len(list(cache.iterdir())) == 2
    kept.arrays("squares", "three", make)
    assert make.made == 3
