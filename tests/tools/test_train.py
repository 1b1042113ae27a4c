"""What the verb does before a run: the folder of compiled programs."""

import pwd

from cl_jax.tools import train


def test_compiled_programs_are_kept_in_the_user_s_cache(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert train.compilation_cache() == "/home/me/.cache/cl_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # the same as none, by its standard
    assert train.compilation_cache() == "/home/me/.cache/cl_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert train.compilation_cache() == "/fast/cl_jax"


def test_a_user_without_a_home_directory_has_no_cache(monkeypatch):
    def unknown(_):
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert train.compilation_cache() == ""
