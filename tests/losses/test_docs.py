"""Every public loss, memory and clustering function stands, by its name, in a page of the API."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

from cl_jax import cluster, losses, memory

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs" / "guides" / "losses").glob("*.md"))
WORDS = set(
    re.findall(
        r"\w+",
        " ".join(
            re.findall(
                r"`[^`]+`|^    .+|^```.*?^```",
                "\n".join(page.read_text() for page in PAGES),
                re.MULTILINE | re.DOTALL,
            )
        ),
    )
)


def test_losses():
    assert [name for name in losses.__all__ if name not in WORDS] == []


@pytest.mark.parametrize("package", [memory, cluster])
def test_functions_of(package):
    for module in pkgutil.iter_modules(package.__path__):
        functions = inspect.getmembers(
            importlib.import_module(f"{package.__name__}.{module.name}"), inspect.isfunction
        )
        names = {module.name} | {
            name
            for name, f in functions
            if name[0] != "_" and f.__module__ == f"{package.__name__}.{module.name}"
        }
        assert sorted(names - WORDS) == []
