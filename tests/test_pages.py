"""The documentation: a page for each config, made from its docstring, and links that hold."""

import contextlib
import importlib
import importlib.util
import io
import re
from pathlib import Path

import pytest

from cl_jax.__main__ import VERBS
from cl_jax.training import configs

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("make_methods", ROOT / "docs" / "make_methods.py")
make_methods = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_methods)


@pytest.mark.parametrize("name", make_methods.names())
def test_every_config_has_a_page(name):
    page = make_methods.page(name, make_methods.results())
    assert page.startswith("# ") and "## Command" in page


def test_the_index_links_every_page():
    links = re.findall(r"\]\(([a-z0-9_]+)\.md\)", make_methods.index(make_methods.results()))
    assert links == make_methods.names()


def test_links_of_the_pages_lead_somewhere():
    """Those into docs/reference/ are made by the build, which is strict about them."""
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md"]
    dead = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in pages
        if "reference" not in page.parts
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if not link.startswith("http") and "reference/" not in link
        if not (page.parent / link).exists()
    ]
    assert not dead


def test_files_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = {path for path in re.findall(r"`([\w./]+\.(?:py|md))`", text) if "<" not in path}
    assert named and not [path for path in named if not (ROOT / path).exists()]
    folders = set(re.findall(r"`(cl_jax/\w+/|tests/\w+/)", text))
    assert len(folders) > 8 and not [path for path in folders if not (ROOT / path).is_dir()]


def commands():
    """(page, words) of every `cl-jax VERB ...` in a page or a config."""
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "configs").glob("*.py")]
    for page in pages:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"(?:^ {4}|`|&& )(cl-jax [a-z]+[^`\n|]*)", text, flags=re.MULTILINE):
            yield page.relative_to(ROOT), line.split()


def test_commands_of_the_pages_have_options_that_there_are():
    helps, wrong, count = {}, [], 0
    for page, (_, verb, *words) in commands():
        if verb not in VERBS:
            wrong.append(f"{page}: {verb}")
            continue
        if verb not in helps:
            with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
                importlib.import_module(VERBS[verb][0]).main(["--help"])
            helps[verb] = said.getvalue()
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        options = {word for word in options if not word.startswith("--config.")} - {"--help"}
        wrong += [f"{page}: {verb} {word}" for word in options if word not in helps[verb]]
        count += 1
    assert count > 20 and not wrong


@pytest.mark.parametrize("name", make_methods.names())
def test_docstring_names_the_variants_and_options_that_there_are(name):
    with pytest.raises(ValueError, match=r"is unknown; have |has no variants") as refused:
        configs.load(f"{name}:no such")
    _, have, listed = str(refused.value).partition("; have ")
    known = listed.removesuffix(".").split(", ") if have else []
    told = [
        variant
        for names, _, _ in make_methods.variants(
            make_methods.sections(make_methods.docstring(name)).get("Variants", "")
        )
        for variant in names
    ]
    assert sorted(told) == sorted(known)
    found = [configs.load(name), *(configs.load(f"{name}:{variant}") for variant in known)]
    for option in re.findall(r"--config\.([a-z_]+(?:\.[a-z_]+)*)", make_methods.docstring(name)):
        assert any(option in flat(config) for config in found), (
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
