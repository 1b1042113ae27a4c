"""Every public loss, memory and clustering function stands, by its name, in a page of the API."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import jax
import pytest

import cl_jax.losses
from cl_jax import cluster, memory
from tests.losses.test_table import FAMILIES

GUIDES = Path(__file__).resolve().parents[2] / "docs" / "guides"
PAGES = sorted((GUIDES / "losses").glob("*.md"))
WORDS = set(
    re.findall(
        r"\w+",
        " ".join(
            re.findall(
                r"`[^`]+`|^    .+|^```.*?^```",
                "\n".join(page.read_text() for page in [*PAGES, GUIDES / "search.md"]),
                re.MULTILINE | re.DOTALL,
            )
        ),
    )
)


INTERNAL = {"check_plan", "side_of_tile"}
# Plain JAX in every run; flax.nnx and Equinox, seconds each, by those of the first page.
BLOCKS = [
    pytest.param(
        block,
        id=f"{page.stem}-{i}",
        marks=[pytest.mark.slow]
        if page.stem != "README" and re.search("^(import equinox|from flax)", block, re.M)
        else [],
    )
    for page in PAGES
    for i, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
    if block.startswith("import ")  # others are fragments
]


@pytest.mark.parametrize("block", BLOCKS)
def test_examples_run(block):
    with jax.numpy_rank_promotion("allow"):  # users' programs run under JAX's defaults
        exec(compile(block, "example", "exec"), {})


@pytest.mark.parametrize("what", ["import jax\n", "from flax import nnx", "import equinox as eqx"])
def test_every_family_has_a_page_with_examples(what):
    pages = {str(block.id).rsplit("-", 1)[0] for block in BLOCKS if what in block.values[0]}
    assert pages == {page.stem for page in PAGES} - {"migration", "transformations"}


def test_names_on_the_page_of_other_libraries_are_there():
    page = next(page for page in PAGES if page.stem == "migration").read_text()
    here = [line.split("|")[2] for line in page.splitlines() if line.startswith("| ")]
    for family, name in re.findall(r"losses\.(\w+)\.(\w+)", " ".join(here)):
        assert name in FAMILIES[family], (family, name)
    top = set(re.findall(r"`(\w+)\(", " ".join(here)))
    assert {"nt_xent", "supcon", "vicreg", "dino"} <= top <= set(cl_jax.losses.__all__)


def test_names_of_optax_are_there():
    page = next(page for page in PAGES if page.stem == "migration").read_text()
    section = page.split("## optax")[1]
    there = " ".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    names = re.findall(r"`(losses|projections)\.(\w+)", there)
    assert len(names) > 5
    for module, name in names:
        assert hasattr(importlib.import_module(f"optax.{module}"), name), name


def test_losses():
    names = [name for family in FAMILIES.values() for name in family]
    assert [name for name in names if name not in WORDS | INTERNAL] == []


def test_keywords_in_the_pages_exist():
    """Those of `name(rows, *, keyword)` and `name(keyword=...)`."""
    functions = {name: f for family in FAMILIES.values() for name, f in family.items()}
    text = " ".join(page.read_text() for page in PAGES)
    wrong = []
    for name, given in re.findall(r"`(?:losses\.)?(?:\w+\.)?(\w+)\(([^()`]+)\)", text):
        if name in functions:
            named = re.findall(r"(\w+)=", given) + re.findall(r"\w+", given.partition("*,")[2])
            there = inspect.signature(functions[name]).parameters
            wrong += [f"{name}: {keyword}" for keyword in named if keyword not in there]
    assert wrong == []


@pytest.mark.parametrize("package", [memory, cluster])
def test_functions_of(package):
    for module in pkgutil.iter_modules(package.__path__):
        if module.name.startswith("_"):
            continue
        functions = inspect.getmembers(
            importlib.import_module(f"{package.__name__}.{module.name}"), inspect.isfunction
        )
        names = {module.name} | {
            name
            for name, f in functions
            if name[0] != "_" and f.__module__ == f"{package.__name__}.{module.name}"
        }
        assert sorted(names - WORDS) == []
