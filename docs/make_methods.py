"""python docs/make_methods.py: writes docs/reference/methods/, a page for each config from its
docstring and a table of all. The build of the documentation runs it (docs/hooks.py).

A config's docstring is the method's record, in paragraphs: its name with the papers in brackets;
the idea; "Default:"; "Variants:", a name and a text each, with what is published after
"Published:"; "Differences from ...:", an item each; "Command:"; "Reached:". The last column of the
table is read from docs/results/scenes.json, rows of `cl-jax benchmark`."""

import ast
import json
import re
from pathlib import Path

from cl_jax.training import configs

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "reference" / "methods"
SECTIONS = ("Default", "Variants", "Differences", "Command", "Reached")
RESULTS = "docs/results.md"  # as docstrings name it, which are read in the file too


def names() -> list[str]:
    """The configs."""
    return configs.names()


def docstring(name: str) -> str:
    """What a config says of itself."""
    return ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text()))


def sections(text: str) -> dict[str, str]:
    """{"title", "papers", "idea", and each of SECTIONS, "Differences" with its heading: text}.

    "Default", "Variants" and "Differences" may be left out.

    Raises:
      ValueError: a docstring that is not in the form above.
    """
    first, _, rest = text.partition("\n\n")
    head = re.fullmatch(r"(.+?) \((.+)\)\.", _line(first))
    pattern = r"^(Default|Variants|Differences [^\n:]*|Command|Reached):"
    idea, *parts = re.split(pattern, rest, flags=re.MULTILINE)
    found = dict(zip(parts[::2], parts[1::2]))
    kinds = [key.split()[0] for key in found]
    in_order = [kind for kind in SECTIONS if kind in kinds]
    if head is None or kinds != in_order or not {"Command", "Reached"} <= set(kinds):
        raise ValueError(
            f"a config's docstring starts {first!r} and has the sections {list(found)}; expected "
            f"'Name (papers).', the idea, then in this order {', '.join(SECTIONS)}."
        )
    return {"title": head[1], "papers": head[2], "idea": idea.strip(), **found}


def variants(text: str) -> list[tuple[list[str], str, str]]:
    """(names, setting, what is published) of each entry of "Variants:"."""
    entries = re.findall(r"^  (?! )(\S+(?:, \S+)*)  +(.*(?:\n {3,}.*)*)", text, flags=re.MULTILINE)
    rows = []
    for given, body in entries:
        setting, _, published = _line(body).partition(" Published: ")
        rows.append((given.split(", "), setting, published.removesuffix(".")))
    return rows


def knn_on_scenes() -> dict[str, float]:
    """{config: kNN accuracy on `scenes` by its default} of those that were measured."""
    rows = json.loads((ROOT / "docs" / "results" / "scenes.json").read_text())
    return {row["method"]: row["knn"] for row in rows}


def page(name: str) -> str:
    """The page of a config."""
    found = sections(docstring(name))
    method = configs.load(name).method.name
    lines = [f"# {found['title']}", "", f"{_papers(found)}."]
    if not method.count("."):
        lines += ["", f"Config `configs/{name}.py`, method `cl_jax.methods.{method}`."]
    lines += ["", found["idea"]]
    if "Default" in found:
        lines += ["", "## Default", "", _sentence(found["Default"])]
    if "Variants" in found:
        rows = [
            f"| {', '.join(f'`{given}`' for given in names)} | {setting} | {published or '-'} |"
            for names, setting, published in variants(found["Variants"])
        ]
        lines += [
            "",
            "## Variants",
            "",
            f"After a colon, with commas between them: `{name}:debug`.",
            "",
            "| variant | setting | published |",
            "|---|---|---|",
            *rows,
        ]
    for heading in (key for key in found if key.startswith("Differences")):
        items = re.findall(r"^  - (.*(?:\n {4}.*)*)", found[heading], flags=re.MULTILINE)
        lines += ["", f"## {heading}", "", *(f"- {_line(item)}" for item in items)]
    command = _line(found["Command"])
    lines += ["", "## Command", "", f"    {command}"]
    lines += ["", "## Reached", "", _sentence(found["Reached"]), ""]
    return "\n".join(lines).replace(RESULTS, "[Results](../../results.md)")


def index() -> str:
    """The table of all configs."""
    rows, measured = [], knn_on_scenes()
    for name in names():
        found = sections(docstring(name))
        knn = f"{100 * measured[name]:.1f} %" if name in measured else ""
        rows.append(f"| [{found['title']}]({name}.md) | `{name}` | {_papers(found)} | {knn} |")
    return "\n".join(
        [
            "# All methods",
            "",
            "Each is one file in `cl_jax/methods/` and one config. The last column is the kNN",
            "accuracy on `scenes` by the default of the config, where it was measured.",
            "",
            "| method | config | paper | kNN on scenes |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def _papers(found: dict[str, str]) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", found["papers"])


def _sentence(text: str) -> str:
    line = _line(text)
    return line[:1].upper() + line[1:]


def _line(text: str) -> str:
    return " ".join(text.split())


def main() -> None:
    PAGES.mkdir(exist_ok=True, parents=True)
    for name in names():
        (PAGES / f"{name}.md").write_text(page(name))
    (PAGES / "index.md").write_text(index())


if __name__ == "__main__":
    main()
