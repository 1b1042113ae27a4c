"""The documentation: a page for each config, made from its docstring, and links that hold."""

import contextlib
import functools
import importlib
import importlib.util
import io
import re
import shlex
from argparse import ArgumentParser
from pathlib import Path

import pytest

from cl_jax.__main__ import VERBS
from cl_jax.training import configs, experiment

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("make_methods", ROOT / "docs" / "make_methods.py")
make_methods = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_methods)


@pytest.mark.parametrize("name", make_methods.names())
def test_every_config_has_a_page(name):
    page = make_methods.page(name)
    assert page.startswith("# ") and "## Command" in page and "docs/results.md" not in page
    where = "[Results](../../results.md)"
    assert (where in page) == ("docs/results.md" in make_methods.docstring(name))


def test_the_index_links_every_page():
    links = re.findall(r"\]\(([a-z0-9_]+)\.md\)", make_methods.index())
    assert links == make_methods.names()


def test_knn_of_the_index_is_that_of_the_results():
    text = (ROOT / "docs" / "results.md").read_text()
    section = text.split("\n## On scenes, by each config's default\n")[1].split("\n#")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")]
    knn = rows[0].index("kNN 200")
    told = {row[1].strip("`"): row[knn] for row in rows[1:]}
    found = {name: f"{100 * knn:.1f} %" for name, knn in make_methods.knn_on_scenes().items()}
    assert len(told) > 15 and found == told


def test_configs_that_the_guide_to_methods_lists_are_there():
    text = (ROOT / "docs" / "guides" / "methods.md").read_text()
    section = re.search(r"^## Every system$(.*?)^## ", text, flags=re.MULTILINE | re.DOTALL)[1]
    listed = re.findall(r"\[(\w+)\]\(\.\./reference/methods/\1\.md\)", section)
    assert len(listed) > 40 and len(set(listed)) == len(listed)
    assert not set(listed) - set(configs.names())


def test_configs_that_readme_lists_are_there():
    table = (ROOT / "README.md").read_text().split("## What is in it")[1].split("\n## ")[0]
    systems = [row.split("|")[2] for row in table.splitlines() if row.startswith("| ")]
    listed = re.findall(r"`(\w+)`", "".join(systems))
    assert len(listed) > 40 and len(set(listed)) == len(listed)
    assert not set(listed) - set(configs.names())


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


def test_the_change_that_readme_shows_is_of_the_file_that_it_names():
    diff = re.search(r"```diff\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[1]
    before = [line[1:] for line in diff.splitlines() if not line.startswith("+")]
    method = (ROOT / "cl_jax" / "methods" / "simclr_v1.py").read_text()
    assert "\n".join(before) in method and "\n+" in diff


def test_files_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = {path for path in re.findall(r"`([\w./]+\.(?:py|md))`", text) if "<" not in path}
    assert named and not [path for path in named if not (ROOT / path).exists()]
    folders = set(re.findall(r"`(cl_jax/\w+/|tests/\w+/)", text))
    assert len(folders) > 8 and not [path for path in folders if not (ROOT / path).is_dir()]


# A plan's data by their sizes; the view of a section without `kind`; the patches of CPC v2.
INTERNAL_MODULES = {"declared", "image", "warp"}


@pytest.mark.parametrize(
    "folder, page, form",
    [
        ("data", "data", "| `{}` |"),
        ("views", "views", "| `{}` |"),
        ("encoders", "encoders", "| `encoders/{}.py` |"),
        ("heads", "encoders", "| `heads/{}.py` |"),
    ],
)
def test_every_module_that_a_section_may_name_is_in_its_guide(folder, page, form):
    text = (ROOT / "docs" / "guides" / f"{page}.md").read_text()
    names = [
        file.stem
        for file in sorted((ROOT / "cl_jax" / folder).glob("[a-z]*.py"))
        if re.search("^def make", file.read_text(), flags=re.MULTILINE)
        and file.stem not in INTERNAL_MODULES
    ]
    assert len(names) > 3 and not [name for name in names if form.format(name) not in text]


def has_name(module, name):
    """Whether a module of the package defines or imports a name, by its text: nothing is
    imported."""
    place = ROOT / module.replace(".", "/")
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.exists() or not name:
        return file.exists()
    defined = rf"^(def|class) {name}\b|^{name}\b.* = |^    {name},$|^from .* import .*\b{name}\b"
    beside = place / name
    return bool(
        re.search(defined, file.read_text(), flags=re.MULTILINE)
        or beside.is_dir()
        or beside.with_suffix(".py").exists()
    )


def test_imports_of_the_pages_are_there():
    pattern = r"^ *from (cl_jax[\w.]*) import ([\w, ]+)$|^ *import (cl_jax[\w.]*)$"
    pages = [page for page in (ROOT / "docs").rglob("*.md") if "reference" not in page.parts]
    missing, count = [], 0
    for page in [*pages, *ROOT.glob("*.md")]:
        for module, names, alone in re.findall(pattern, page.read_text(), flags=re.MULTILINE):
            for name in re.findall(r"(\w+)(?: as \w+)?", names) or [""]:
                count += 1
                if not has_name(module or alone, name):
                    missing.append(f"{page.name}: {module or alone} {name}")
    assert count > 20 and not missing


class Parsed(Exception):
    """Raised in place of running a command: its parser, and what that made of the words."""


def parsed(verb, words):
    """(parser, namespace or None where the words are refused) of a command, which is not run."""
    module = VERBS[verb][0] if verb in VERBS else "cl_jax.main"
    found = []

    def stopping(parse):
        def wrapped(self, *given, **more):
            found.append(self)
            raise Parsed(parse(self, *given, **more))

        return wrapped

    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(ArgumentParser, name, stopping(getattr(ArgumentParser, name)))
        try:
            importlib.import_module(module).main(list(words))
        except Parsed as told:
            return found[0], told.args[0]
        except SystemExit:
            return found[0], None
    raise AssertionError(f"{verb} ran without reading {words}")


COMMAND = re.compile(
    r"(?P<before>^ *|^Command: |`|&& )"
    r"(?:(?:cl-jax|python -m cl_jax) (?P<verb>[a-z]+)|python -m cl_jax\.main)"
    r"(?P<words>(?: (?! )[^`\n|&]*)?)",
    flags=re.MULTILINE,
)


def commands():
    """(page, whether it is a whole line, verb, words) of every command of the pages, the configs
    and the help texts."""
    pages = [
        *(page for page in (ROOT / "docs").rglob("*.md") if "reference" not in page.parts),
        *ROOT.glob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
        *(ROOT / "configs").glob("*.py"),
        *(ROOT / "cl_jax" / "tools").glob("*.py"),
    ]
    for page in pages:
        text = re.sub(r"\\\n *", "", page.read_text())
        for found in COMMAND.finditer(text):
            told = re.split(r"  |, which| #|\. ", found["words"].strip())[0].rstrip(".,;)")
            if not re.search(r"[{}]", told):  # of a message
                whole = found["before"].strip() in ("", "Command:")
                yield page.relative_to(ROOT), whole, found["verb"] or "main", shlex.split(told)


PLACEHOLDER = re.compile(r"[A-Z_]+|<.*>|\.\.\.|my_\w+(\.\w+)*|configs/NAME\.py")


def wrong_names(args, settings):
    """What is not a config, variant or setting among the words of a command."""
    names = [getattr(args, key, None) for key in ("config", "given")]
    for key in ("configs", "methods"):
        names += (getattr(args, key, None) or "").split(",")
    for name in names:
        if name and name != "all" and not PLACEHOLDER.fullmatch(name.split(":")[0]):
            yield from wrong_settings(name, tuple(settings))


@functools.cache
def wrong_settings(name, settings):
    """What is wrong with a config's name, its variants and its settings; pages repeat commands."""
    try:
        config = configs.load(name)
        known = flat(config)
        configs.change(config, settings)
    except ValueError as error:
        return [str(error)]
    wrong = []
    for key, _ in settings:
        *sections, last = key.split(".")
        if "protocols" in sections:
            section = functools.reduce(lambda at, name: at[name], sections, config)
            maker = section.get("name", sections[-1])
            if last not in {"name", *experiment.parameters("cl_jax.evals", maker)}:
                wrong.append(f"{key} is not a setting of the evaluator")
        elif key not in known and key not in experiment.defaults(config):
            wrong.append(f"{key} is not a setting of {name}")
    return wrong


def test_the_words_of_every_command_are_understood(monkeypatch):
    """By the command's own parser; configs, variants and settings are looked up, nothing is run."""
    monkeypatch.chdir(ROOT)
    wrong, count = [], 0
    for page, whole, verb, words in commands():
        told = f"{page}: {verb} {' '.join(words)}"
        if verb not in VERBS and verb != "main":
            if whole:
                wrong.append(told)
            continue
        settings, others = configs.take_settings(words)
        parser, args = parsed(verb, words)
        there = {*re.findall(r"--[a-zA-Z][\w-]*", parser.format_help()), "--mode"}
        flags = {word.split("=")[0] for word in others if word.startswith("--")}
        unfinished = "..." in words or not others  # `cl-jax train`, of the verb itself
        if flags - there or (whole and args is None and not unfinished):
            wrong.append(told)
        elif args is not None:
            wrong += [f"{told}: {what}" for what in wrong_names(args, settings)]
            count += 1
    assert count > 150 and not wrong


def test_scripts_that_the_pages_run_are_there_with_their_options():
    """Of the repository: `python benchmarks/x.py --option`, `launch/x.sh`; an option is in the text
    of the script or of a module beside it."""
    pages = [
        *(page for page in (ROOT / "docs").rglob("*.md") if "reference" not in page.parts),
        *ROOT.glob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
    ]
    wrong, count = [], 0
    for page in pages:
        text = re.sub(r"\\\n *", "", page.read_text())
        for path, told in re.findall(
            r"(?:python |`|^ {4})((?:benchmarks|launch|docs)/[\w/]+\.(?:py|sh))([^`\n|&#]*)",
            text,
            flags=re.MULTILINE,
        ):
            script, count = ROOT / path, count + 1
            if not script.exists():
                wrong.append(f"{page.name}: {path}")
                continue
            beside = [script, *script.parent.glob("_*.py"), *script.parent.glob("steps.py")]
            known = "".join(one.read_text() for one in beside)
            options = re.findall(r"--([a-z][\w-]*)(?![\w.])", told)
            wrong += [
                f"{page.name}: {path} --{option}"
                for option in options
                if f"--{option}" not in known and option not in ("config", "workdir")
            ]
    assert count > 30 and not wrong


@pytest.mark.parametrize(
    "verb, words, wrong",
    [
        ("train", "simclr_v1 --workdir=a --config.method.temperature=1", None),
        ("train", "simclr_v1 --wordir=a", "refused"),
        ("train", "simclr_v1:cifar11 --workdir=a", "variant 'cifar11'"),
        ("train", "simclr --workdir=a", "simclr"),
        (
            "train",
            "simclr_v1 --workdir=a --config.method.temprature=1",
            "is not a setting of simclr_v1",
        ),
        (
            "eval",
            "dino --workdir=a --config.evals.protocols.knn.kk=1",
            "not a setting of the evaluator",
        ),
        ("verify", "--configs=byol,mocco", "mocco"),
    ],
)
def test_a_wrong_word_of_a_command_is_found(verb, words, wrong):
    settings, others = configs.take_settings(words.split())
    _, args = parsed(verb, others)
    found = ["refused"] if args is None else list(wrong_names(args, settings))
    assert not found if wrong is None else wrong in " ".join(found)


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
            f"--config.{option} is not a key of configs/{name}.py"
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


def test_a_docstring_of_another_form_is_refused():
    with pytest.raises(ValueError, match="expected 'Name"):
        make_methods.sections("BYOL\n\nA method.\n\nCommand: none\n")
