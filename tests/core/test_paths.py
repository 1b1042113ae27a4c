"""Paths as a user gives them: home directories, and what no path may be."""

from pathlib import Path

import pytest

from cl_jax.core.errors import ConfigError
from cl_jax.core.paths import user_path


def test_a_tilde_is_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert user_path("~/photos") == Path("/home/me/photos")
    assert user_path(Path("a") / "~b") == Path("a/~b")
    assert user_path("a b/\u202fc") == Path("a b/\u202fc")


@pytest.mark.parametrize(
    "path, words",
    [
        ("", "is empty, and would be the current folder"),
        ("~nobody-of-that-name/x", "home directory that is not known"),
        ("a\x1b[2Jb", r"'a\\x1b\[2Jb' has a control character"),
        ("a\0b", "control character"),
        ("gs://bucket/photos", "is a URL; a file system is needed. Mount the bucket"),
        (Path("s3://bucket") / "e.npz", "'s3:/bucket/e.npz' is a URL"),
        ("file://other/data", "is on the machine other"),
    ],
)
def test_what_is_no_path_is_a_sentence(path, words):
    with pytest.raises(ConfigError, match=words):
        user_path(path)


def test_a_file_url_is_the_path_that_it_names():
    assert user_path("file:///data/a%20b") == Path("/data/a b")
    assert user_path("/a:/b") == Path("/a:/b")
