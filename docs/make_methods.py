"""python docs/make_methods.py: writes docs/methods/<config>.md, a page for each config, from its
docstring.

A config's docstring is the method's record, in paragraphs: its name with the papers in brackets;
the idea; "Default:"; "Variants:", a name and a text each, with what is published after
"Published:"; "Differences from ...:", an item each; "Command:"; "Reached:". What was reached is
read from the tables of `cl-jax benchmark` in docs/results."""

import ast
import importlib
import json
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "methods"
SECTIONS = ("Default", "Variants", "Differences", "Command", "Reached")
REACHED = (
    ("knn", "kNN 200"),
    ("knn20", "kNN 20"),
    ("linear_cached", "linear, cached"),
    ("linear_augmented", "linear, augmented"),
)


def names() -> list[str]:
    """The configs."""
    return sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")


def docstring(name: str) -> str:
    """What a config says of itself."""
    return ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text()))


def sections(text: str) -> dict[str, str]:
    """{"title", "papers", "idea", and each of SECTIONS, "Differences" with its heading: text}.

    Raises:
      ValueError: a docstring that is not in the form above.
    """
    first, _, rest = text.partition("\n\n")
    head = re.fullmatch(r"(.+?) \((.+)\)\.", _line(first))
    pattern = r"^(Default|Variants|Differences [^\n:]*|Command|Reached):"
    idea, *parts = re.split(pattern, rest, flags=re.MULTILINE)
    found = dict(zip(parts[::2], parts[1::2]))
    if head is None or tuple(key.split()[0] for key in found) != SECTIONS:
        raise ValueError(
            f"a config's docstring starts {first!r} and has the sections {list(found)}; expected "
            f"'Name (papers).', the idea, then {', '.join(SECTIONS)}."
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


def results() -> dict[str, list[dict]]:
    """{name of a table in docs/results: its rows}; none where there are none."""
    return {
        path.stem: json.loads(path.read_text())
        for path in sorted((ROOT / "docs" / "results").glob("*.json"))
    }


def reached(name: str, tables: dict[str, list[dict]]) -> str:
    """The Markdown table of a config's rows, in percent, mean and deviation over seeds; "Not run."
    where there are none."""
    lines = []
    for table, rows in tables.items():
        mine = [row for row in rows if row.get("method") == name and "error" not in row]
        if mine:
            cells = [table, f"{mine[0]['epochs']:g}", str(len(mine))]
            for key, _ in REACHED:
                values = [100 * row[key] for row in mine if row.get(key) is not None]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f} %{spread}" if values else "")
            lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return "Not run."
    head = ["table", "epochs", "seeds", *(title for _, title in REACHED)]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines]) + (
        "\n\nThe network and budget of all methods alike, one protocol: the tables in docs/results."
    )


def page(name: str, tables: dict[str, list[dict]]) -> str:
    """The page of a config."""
    found = sections(docstring(name))
    title, heading = found["title"], next(key for key in found if key.startswith("Differences"))
    method = importlib.import_module(f"configs.{name}").get_config().method.name
    papers = re.sub(
        r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", found["papers"]
    )
    rows = [
        f"| {', '.join(f'`{given}`' for given in names)} | {setting} | {published or '-'} |"
        for names, setting, published in variants(found["Variants"])
    ]
    items = re.findall(r"^  - (.*(?:\n {4}.*)*)", found[heading], flags=re.MULTILINE)
    return "\n".join(
        [
            f"<!-- Made by docs/make_methods.py from configs/{name}.py: change that, and run it "
            f"again. -->",
            f"# {title}",
            "",
            f"{papers}. [Config](../../configs/{name}.py), "
            f"[method](../../cl_jax/methods/{method}.py).",
            "",
            found["idea"],
            "",
            "## Default",
            _line(found["Default"])[:1].upper() + _line(found["Default"])[1:],
            "",
            "## Variants",
            f"After a colon, with commas between them: `configs/{name}.py:cifar10,debug`.",
            "",
            "| variant | setting | published |",
            "|---|---|---|",
            *rows,
            "",
            f"## {heading}",
            *(f"- {_line(item)}" for item in items),
            "",
            "## Command",
            f"    {_line(found['Command'])}",
            "",
            "## Reached",
            reached(name, tables),
            "",
        ]
    )


def _line(text: str) -> str:
    return " ".join(text.split())


def main() -> None:
    sys.path.insert(0, str(ROOT))
    PAGES.mkdir(exist_ok=True)
    tables = results()
    for name in names():
        (PAGES / f"{name}.md").write_text(page(name, tables))


if __name__ == "__main__":
    main()
