"""docs/methods: a page for each config, made from its docstring, which says what the config has."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("make_methods", ROOT / "docs" / "make_methods.py")
make_methods = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_methods)


def test_pages_are_what_the_program_makes():
    expected = {
        name: make_methods.page(name, make_methods.results()) for name in make_methods.names()
    }
    found = {
        path.stem: path.read_text()
        for path in make_methods.PAGES.glob("*.md")
        if path.stem != "README"
    }
    stale = [
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    ]
    assert not stale, f"run python docs/make_methods.py: {sorted(stale)}"


@pytest.mark.parametrize("name", make_methods.names())
def test_docstring_names_the_variants_and_options_that_there_are(name):
    get_config = importlib.import_module(f"configs.{name}").get_config
    with pytest.raises(ValueError, match="is unknown; have ") as refused:
        get_config("no such")
    known = str(refused.value).split("; have ")[1].removesuffix(".").split(", ")
    told = [
        variant
        for names, _, _ in make_methods.variants(
            make_methods.sections(make_methods.docstring(name))["Variants"]
        )
        for variant in names
    ]
    wanted = {"debug"}
    if get_config().data.name == "scenes":
        wanted |= {"cifar10", "imagenet2012"}
    assert sorted(told) == sorted(known) and wanted <= set(known)
    configs = [get_config(), *map(get_config, known)]
    for option in re.findall(r"--config\.([a-z_]+(?:\.[a-z_]+)*)", make_methods.docstring(name)):
        assert any(option in flat(config) for config in configs), (
            f"--config.{option} is no key of configs/{name}.py"
        )


def flat(config):
    keys = set()
    for key, value in config.items():
        keys |= (
            {key, *(f"{key}.{inner}" for inner in flat(value))}
            if hasattr(value, "items")
            else {key}
        )
    return keys


def test_every_page_is_linked():
    links = re.findall(r"\]\(([a-z0-9_]+)\.md\)", (make_methods.PAGES / "README.md").read_text())
    assert set(links) == set(make_methods.names())


def test_reached_is_mean_and_deviation_of_the_rows_that_ended_well():
    rows = [
        {"method": "byol", "epochs": 200.0, "knn": 0.86, "linear_cached": None},
        {"method": "byol", "epochs": 200.0, "knn": 0.88},
        {"method": "byol", "error": "broken"},
    ]
    line = make_methods.reached("byol", {"cifar10": rows}).splitlines()[2]
    assert line == "| cifar10 | 200 | 2 | 87.0 % ± 1.4 |  |  |  |"
    assert make_methods.reached("swav", {"cifar10": rows}) == "Not run."
    with pytest.raises(ValueError, match="expected 'Name"):
        make_methods.sections("BYOL\n\nA method.\n\nCommand: none\n")
