"""Paths as a user gives them: home directories, and what no path may be."""

import pwd
from pathlib import Path

import pytest

from cl_jax.core.errors import ConfigError
from cl_jax.core.paths import cache, user_path


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


def test_what_can_be_made_again_is_kept_in_the_user_s_cache(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache() == Path("/home/me/.cache/cl_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # the same as none, by its standard
    assert cache() == Path("/home/me/.cache/cl_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert cache() == Path("/fast/cl_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/fast")  # an image's ENV, which no shell expands
    assert cache() == Path("/home/me/fast/cl_jax")


def test_a_user_without_a_home_directory_has_no_cache(monkeypatch):
    def unknown(_):
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert cache() is None
