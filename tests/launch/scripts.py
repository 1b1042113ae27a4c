"""Runs a launch script with stand-ins for the programs of a cluster."""

import os
import stat
import subprocess
from pathlib import Path

LAUNCH = Path(__file__).parents[2] / "launch"


def run(script, *words, timeout=60, **environment):
    """Runs launch/<script>; `environment` is added to what it inherits."""
    return subprocess.run(
        [str(LAUNCH / script), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {name: str(value) for name, value in environment.items()},
    )


def program(folder, name, body):
    """A stand-in on a PATH: a shell script."""
    path = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def before(folder):
    """A PATH on which the stand-ins of a folder come first."""
    return f"{folder}:{os.environ['PATH']}"
