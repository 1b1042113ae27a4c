"""What `mkdocs build` makes before it reads the pages: the methods' pages from the configs'
docstrings, and the reference of every module from its own."""

import runpy
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
API = ROOT / "docs" / "reference" / "api"
# folder -> what its page says first
PACKAGES = {
    "core": "The contract of a method, and what every folder uses.",
    "losses": "Pure functions that import jax alone.",
    "memory": "Banks, queues and centres: explicit state, updated by pure functions.",
    "views": "Augmentation on the device, keyed by example.",
    "encoders": "Networks that give features.",
    "heads": "Projection, prediction and prototype heads.",
    "cluster": "k-means, DBSCAN, whitening, agreement of clusterings.",
    "data": "Sources of examples.",
    "methods": "One file each: `make(...)` builds a `Method`.",
    "training": "Builds a config, trains it, saves and resumes it.",
    "evals": "Evaluators by name.",
    "checks": "Device checks, replay, diagnosis.",
    "weights": "Networks of other libraries, in and out.",
    "reports": "Figures and findings of a run's page.",
    "planning": "Memory and time of a run before it runs.",
}


def on_pre_build(config: Any) -> None:
    sys.path.insert(0, str(ROOT))
    runpy.run_path(str(ROOT / "docs" / "make_methods.py"), run_name="__main__")
    API.mkdir(parents=True, exist_ok=True)
    lines = ["# Modules", ""]
    for package, says in PACKAGES.items():
        lines.append(f"- [`cl_jax.{package}`]({package}.md): {says}")
        write(API / f"{package}.md", page(package, says))
    write(API / "index.md", "\n".join([*lines, ""]))


def page(package: str, says: str) -> str:
    """The reference page of a folder: its modules in order."""
    folder = ROOT / "cl_jax" / package
    modules = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    parts = [f"# cl_jax.{package}", "", says, ""]
    for module in modules:
        parts += [f"::: cl_jax.{package}.{module}", ""]
    return "\n".join(parts)


def write(path: Path, text: str) -> None:
    """Writes only what changed, so that `mkdocs serve` does not build for ever."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
