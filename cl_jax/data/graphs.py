"""`graphs`: the user's own graphs, from a folder of the TU collection or a plain list of edges.

    MUTAG/MUTAG_A.txt                 an edge a line, "i, j": nodes numbered from 1 over all graphs
    MUTAG/MUTAG_graph_indicator.txt   the graph of each node, numbered from 1
    MUTAG/MUTAG_graph_labels.txt      a label for each graph (may be missing); -1 is a class here,
                                      as in MUTAG, whose labels are 1 and -1
    MUTAG/MUTAG_node_labels.txt       a tag for each node (may be missing)

    edges.txt                         "graph node node" a line, by any names; labels.txt "graph
                                      label" and tags.txt "graph node tag" beside it, where given;
                                      a header is left out, with a warning

Graphs are undirected: an edge counts once, however often and in whichever direction it is listed,
and an edge from a node to itself not at all.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from cl_jax.core.names import some
from cl_jax.core.paths import user_path
from cl_jax.data import lines
from cl_jax.data.source import TO_KEEP, Source, Splits, from_arrays, subset, with_learnt

FEATURES = ("auto", "tags", "degree", "constant")
ON_ERROR = ("raise", "skip", "keep")
_SPLIT_SEED = 20201022
_SHOWN = 5  # graphs or lines that an error names


class Files(NamedTuple):
    """What files of graphs hold. name: of each graph. tags: the word of each number in
    `GraphSet.tag`. labels: of each in `GraphSet.label`, empty without labels."""

    graphs: "GraphSet"
    name: Callable[[int], str]
    tags: list[str]
    labels: list[str]


class GraphSet(NamedTuple):
    """Graphs one after the other: nodes [G] and edges [G] in each; tag [sum of nodes], from 0;
    edge [sum of edges, 2], nodes numbered from 0 in each graph; label [G], from 0, or None."""

    nodes: np.ndarray
    edges: np.ndarray
    tag: np.ndarray
    edge: np.ndarray
    label: np.ndarray | None


def make(
    *,
    path: str,
    labels: str = "",
    tags: str = "",
    features: str = "auto",
    max_degree: int = 100,
    folds: int = 0,
    fold: int = 0,
    on_error: str = "raise",
    learnt: Mapping[str, Any] | None = None,
) -> Splits:
    """The graphs at `path`.

    Fields: "node" uint8 or uint16 [N], 1 + the node's tag, 0 after the last node; "edge" int16 [E,
    2], each edge once, -1 after the last. int32: "label" where there are labels, "nodes" and
    "edges", how many a graph has.

    Args:
      path: a folder of the TU collection, or a file of edges.
      labels, tags: further files, where `path` is a file of edges.
      features: what a node's tag is. "tags": as given; "degree": its degree, up to `max_degree`;
        "constant": the same for all; "auto": as given, and constant where none are given.
      max_degree: larger degrees count as this.
      folds, fold: the test part is fold number `fold` of `folds`, which are shuffled, the same on
        every machine, and have the labels in equal shares; the training part is the others. 0 folds
        make all graphs both parts: for an evaluation that divides them itself, as the field's.
      on_error: of a graph without edges or nodes. "raise" names it, "skip" leaves it out, "keep"
        takes graphs without edges, which a network sees as loose nodes.
      learnt: see `Source`: {"features", "tags"}, the tags as words in the order of their numbers.
        All graphs are then both parts. Degrees above the run's largest count as that one.

    Raises:
      ValueError: no such path, files missing or with lines that are not what they should be, edges
        between graphs or to nodes that are not there, as many labels or tags as there should not
        be, graphs without edges or nodes, too many nodes or tags.
    """
    if features not in FEATURES:
        raise ValueError(f"features={features!r}; expected one of {', '.join(FEATURES)}.")
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error={on_error!r}; expected one of {', '.join(ON_ERROR)}.")
    if folds and not (folds >= 2 and 0 <= fold < folds):
        raise ValueError(f"folds={folds}, fold={fold}; expected 0, or 2 and more, and fold below.")
    if max_degree < 1:
        raise ValueError(f"max_degree={max_degree}; expected at least 1.")
    place = user_path(path)
    if learnt is not None:  # those of the run's own graphs say nothing of others
        labels, tags = _beside(place, labels), _beside(place, tags)
    if place.is_dir():
        if labels or tags:
            raise ValueError(
                f"labels={labels!r}, tags={tags!r} belong to a file of edges, and path={path!r} is "
                "a folder; leave them out."
            )
        graphs, names, words, kinds = _tu_folder(place)
    elif place.is_file():
        graphs, names, words, kinds = _edge_list(place, labels, tags)
    else:
        raise ValueError(
            f"path={path!r} does not exist. Give a folder with files such as NAME_A.txt and "
            "NAME_graph_indicator.txt, or a file of edges."
        )
    given = graphs.tag.size > 0
    features = (learnt or {}).get("features", features)
    if features == "auto":
        features = "tags" if given else "constant"
    if features == "tags" and not given:
        raise ValueError(f"{path} has no tags for its nodes; set features='degree' or 'constant'.")
    count = len(graphs.nodes)
    graphs, usable = _usable(path, _simple(path, graphs), names, on_error)
    known = None if learnt is None else learnt.get("tags")
    if features == "degree":
        tag, known = _of_degrees(path, np.minimum(degrees(graphs), max_degree), known)
    elif features == "constant":
        tag, known = np.zeros(graphs.nodes.sum(), np.int64), [""]
    elif learnt is not None and known is None:
        raise ValueError(
            "the run did not keep the tags of its training data, and those that occur here would "
            f"have other numbers. {TO_KEEP}"
        )
    else:
        tag, known = _of_words(path, graphs.tag, words, known)
    kept = {"features": features, "tags": known}
    whole = source_of(place.stem, graphs._replace(tag=tag), tags=len(known))
    if kinds and not _reads_as_none(kinds):
        named = {"label": tuple(kinds[: whole.sizes["label"]])}
        whole = dataclasses.replace(whole, classes=named)
    if len(usable) < count:  # each keeps the number that it has in the files
        called = [f"{place.stem}/{i}" for i in usable]
        whole = dataclasses.replace(whole, skipped=count - len(usable), names=called)
    if not folds or learnt is not None:
        return with_learnt(Splits(whole, whole), kept)
    if whole.size < folds:
        raise ValueError(f"{path} has {whole.size} graphs, too few for folds={folds}.")
    of = _folds(graphs.label, whole.size, folds)
    train, test = (subset(whole, np.flatnonzero(one)) for one in (of != fold, of == fold))
    return with_learnt(Splits(train, test), kept)


def _of_degrees(
    path: str, degree: np.ndarray, known: Sequence[str] | None
) -> tuple[np.ndarray, Sequence[str]]:
    """(the tag of each node, the words of the tags): its degree, up to the largest that is
    known."""
    most = int(degree.max())
    if known is None:
        return degree, [str(i) for i in range(most + 1)]
    if most >= len(known):
        logging.warning(
            "%s has nodes of degree %d; they count as %d, the largest that the run was trained on.",
            path,
            most,
            len(known) - 1,
        )
    return np.minimum(degree, len(known) - 1), known


def _of_words(
    path: str, tag: np.ndarray, words: Sequence[str], known: Sequence[str] | None
) -> tuple[np.ndarray, Sequence[str]]:
    """(the tag of each node by its place in `known`, `known`), which is None for the words that
    occur."""
    numbers, which = np.unique(tag, return_inverse=True)
    occurring = [words[i] for i in numbers]
    place = {word: i for i, word in enumerate(occurring if known is None else known)}
    strange = [word for word in occurring if word not in place]
    if strange:
        raise ValueError(
            f"{path} has nodes with the tags {some(strange)}, which did not occur where the run "
            f"was trained; expected {some(list(place))}. Leave out the graphs that have them."
        )
    return np.array([place[word] for word in occurring])[which], list(place)


def _folds(label: np.ndarray | None, size: int, folds: int) -> np.ndarray:
    """[N] the fold of each graph: dealt in a random order, label by label."""
    shuffled = np.argsort(np.random.Philox(_SPLIT_SEED).random_raw(size), kind="stable")
    if label is not None:
        shuffled = shuffled[np.argsort(label[shuffled], kind="stable")]
    of = np.empty(size, np.int64)
    of[shuffled] = np.arange(size) % folds
    return of


def source_of(
    name: str,
    graphs: GraphSet,
    *,
    tags: int | None = None,
    places: tuple[int, int] | None = None,
) -> Source:
    """A source over graphs, padded.

    Args:
      tags: how many tags there are; None: as many as occur.
      places: (nodes, edges) of a padded graph, for parts of one data set; None: of the largest.

    Raises:
      ValueError: more nodes in a graph than int16 counts, or more tags than uint16.
    """
    count = len(graphs.nodes)
    tags = int(graphs.tag.max()) + 1 if tags is None else tags
    nodes, edges = places or (int(graphs.nodes.max()), max(int(graphs.edges.max()), 1))
    if nodes > 2**15:
        raise ValueError(
            f"{name}: graph {int(graphs.nodes.argmax())} has {nodes} nodes; expected at most "
            f"{2**15} in each. Cut it into parts."
        )
    if tags + 1 > 2**16:
        raise ValueError(
            f"{name}: its nodes have {tags} different tags; expected at most {2**16 - 1}. Are they "
            "measurements? Set features='degree' or 'constant'."
        )
    node = np.zeros((count, nodes), np.uint8 if tags < 2**8 else np.uint16)
    graph, at = _numbered(graphs.nodes)
    node[graph, at] = graphs.tag + 1
    edge = np.full((count, edges, 2), -1, np.int16)
    graph, at = _numbered(graphs.edges)
    edge[graph, at] = graphs.edge
    arrays = {
        "node": node,
        "edge": edge,
        "nodes": graphs.nodes.astype(np.int32),
        "edges": graphs.edges.astype(np.int32),
    }
    sizes = {"node": tags + 1, "nodes": nodes + 1, "edges": edges + 1}
    if graphs.label is not None:
        arrays["label"] = graphs.label.astype(np.int32)
        sizes["label"] = int(graphs.label.max()) + 1
    return from_arrays(name, arrays, sizes)


def degrees(graphs: GraphSet) -> np.ndarray:
    """[sum of nodes], how many edges each node has."""
    first = np.cumsum(graphs.nodes) - graphs.nodes
    ends = graphs.edge + np.repeat(first, graphs.edges)[:, None]
    return np.bincount(ends.ravel(), minlength=int(graphs.nodes.sum()))


def _numbered(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([sum] graph, [sum] number inside the graph) of things of which a graph has `counts`."""
    graph = np.repeat(np.arange(len(counts)), counts)
    return graph, np.arange(len(graph)) - np.repeat(np.cumsum(counts) - counts, counts)


def _simple(path: str, graphs: GraphSet) -> GraphSet:
    """Each undirected edge once, none from a node to itself."""
    graph = np.repeat(np.arange(len(graphs.nodes)), graphs.edges)
    low, high = graphs.edge.min(1, initial=2**31), graphs.edge.max(1, initial=-1)
    loops = low == high
    if loops.any():
        logging.info("%s: %d edges from a node to itself left out.", path, loops.sum())
    rows = np.stack([graph, low, high], axis=1)[~loops]
    rows = np.unique(rows, axis=0) if len(rows) else rows
    counts = np.bincount(rows[:, 0], minlength=len(graphs.nodes))
    return graphs._replace(edges=counts, edge=rows[:, 1:])


def _usable(
    path: str, graphs: GraphSet, names: Callable[[int], str], on_error: str
) -> tuple[GraphSet, np.ndarray]:
    """(the graphs that can be used, their numbers from 0)."""
    bare, empty = graphs.edges == 0, graphs.nodes == 0
    bad = empty if on_error == "keep" else bare | empty
    ids = np.flatnonzero(~bad)
    if not bad.any():
        return graphs, ids
    shown = [
        f"{names(i)} has no {'nodes' if empty[i] else 'edges'}"
        for i in np.flatnonzero(bad)[:_SHOWN]
    ]
    text = ", ".join(shown) + ", ..." * bool(bad.sum() > _SHOWN)
    if on_error != "skip":
        more = "" if on_error == "keep" else ", or 'keep' to take those without edges"
        raise ValueError(
            f"{path}: {bad.sum()} of {len(bad)} graphs cannot be used: {text}. Mend or remove "
            f"them, or set on_error='skip' to leave them out{more}."
        )
    if bad.all():
        raise ValueError(f"{path}: none of its {len(bad)} graphs has nodes and edges.")
    logging.warning("%s: skipped %d graphs: %s.", path, bad.sum(), text)
    return chosen(graphs, ids), ids


def chosen(graphs: GraphSet, ids: np.ndarray) -> GraphSet:
    """The graphs `ids`, ascending."""
    keep = np.zeros(len(graphs.nodes), bool)
    keep[ids] = True
    return GraphSet(
        graphs.nodes[keep],
        graphs.edges[keep],
        graphs.tag[np.repeat(keep, graphs.nodes)] if graphs.tag.size else graphs.tag,
        graphs.edge[np.repeat(keep, graphs.edges)],
        None if graphs.label is None else graphs.label[keep],
    )


# The TU collection
# --------------------------------------


def _beside(place: Path, given: str) -> str:
    """The file of that name beside a file of edges; "" where there is none."""
    file = place.with_name(Path(given).name) if given and place.is_file() else place
    return str(file) if file != place and file.is_file() else ""


def _tu_folder(folder: Path) -> Files:
    found = sorted(folder.glob("*_A.txt"))
    if len(found) != 1:
        raise ValueError(
            f"{folder} holds {len(found)} files that end in _A.txt; expected one, the edges of a "
            "data set of the TU collection."
        )
    stem = found[0].name.removesuffix("_A.txt")

    def file(part: str) -> Path:
        return folder / f"{stem}_{part}.txt"

    if not file("graph_indicator").exists():
        raise ValueError(
            f"{file('graph_indicator')} is missing: the graph of each node, one a line."
        )
    indicator = _integers(file("graph_indicator"), 1)[:, 0]
    pairs = _integers(found[0], 2)
    most = len(indicator)
    if file("graph_labels").exists():
        most = max(most, len(_integers(file("graph_labels"), None)))
    rule = "graphs are numbered from 1 on, and each has a node"
    _check_range(file("graph_indicator"), indicator, 1, most, rule)
    _check_range(found[0], pairs, 1, len(indicator), "nodes are numbered from 1 to the last one")
    order = np.argsort(indicator, kind="stable")
    nodes = np.bincount(indicator - 1)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    first = np.cumsum(nodes) - nodes
    graph = indicator[pairs - 1] - 1
    crossing = np.flatnonzero(graph[:, 0] != graph[:, 1])
    if crossing.size:
        i = crossing[0]
        raise ValueError(
            f"{found[0]}: line {i + 1} joins node {pairs[i, 0]} of graph {graph[i, 0] + 1} with "
            f"node {pairs[i, 1]} of graph {graph[i, 1] + 1}; expected both ends in one graph."
        )
    by_graph = np.argsort(graph[:, 0], kind="stable")
    local = place[pairs - 1] - first[graph]
    label, tag, words, kinds = None, None, list[str](), list[str]()
    if file("graph_labels").exists():
        label = _counted(file("graph_labels"), len(nodes), "graphs")
        numbers, label = np.unique(label, return_inverse=True)
        kinds = [str(number) for number in numbers]
    if file("node_labels").exists():
        tag = _counted(file("node_labels"), len(indicator), "nodes")[order]
        numbers, tag = np.unique(tag, return_inverse=True)
        words = [str(number) for number in numbers]
    graphs = GraphSet(
        nodes,
        np.bincount(graph[:, 0], minlength=len(nodes)),
        np.zeros(0, np.int64) if tag is None else tag,
        local[by_graph],
        label,
    )
    return Files(graphs, lambda i: f"graph {i + 1}", words, kinds)


def _counted(file: Path, count: int, what: str) -> np.ndarray:
    """One integer for each line; of several columns the first."""
    values = _integers(file, None)[:, 0]
    if len(values) != count:
        raise ValueError(
            f"{file} has {len(values)} lines and there are {count} {what}; expected one for each."
        )
    return values


def _integers(file: Path, columns: int | None) -> np.ndarray:
    """Integers [lines, columns], separated by commas or spaces."""
    given = lines.read(file)
    if not any(map(str.strip, given)):
        raise ValueError(f"{file} is empty; expected {_integers_in_words(columns)} a line.")
    try:
        rows = np.loadtxt([line.replace(",", " ") for line in given], np.int64, ndmin=2)
    except ValueError as error:
        raise ValueError(f"{file}: {_first_bad_line(given, columns) or error}") from None
    if columns is not None and rows.shape[1] != columns:
        raise ValueError(f"{file}: {_first_bad_line(given, columns)}")
    return rows


def _integers_in_words(columns: int | None) -> str:
    return f"{columns} integers" if columns and columns > 1 else "an integer"


def _first_bad_line(given: Sequence[str], columns: int | None) -> str:
    for i, line in enumerate(given, 1):
        words = re.split(r"[,\s]+", line.strip())
        right = all(map(_is_whole, words))
        if line.strip() and (not right or (columns is not None and len(words) != columns)):
            return f"line {i} is {line.strip()[:60]!r}; expected {_integers_in_words(columns)}."
    return ""


def _check_range(file: Path, values: np.ndarray, low: int, high: int | None, rule: str) -> None:
    wrong = (values < low) | (values > (np.inf if high is None else high))
    if wrong.any():
        line = int(np.argwhere(wrong)[0][0])
        raise ValueError(
            f"{file}: line {line + 1} has {values[line].tolist()}; expected {low} or more"
            + ("" if high is None else f" and at most {high}")
            + f": {rule}."
        )


# A list of edges
# --------------------------------------


def _edge_list(file: Path, labels: str, tags: str) -> Files:
    rows = _words(file, 3, "graph node node")
    tagged = _words(user_path(tags), 3, "graph node tag") if tags else []
    labelled = _words(user_path(labels), 2, "graph label") if labels else []
    names = _sorted({row[0] for row in rows} | {row[0] for row in tagged + labelled})
    number = {name: i for i, name in enumerate(names)}
    nodes: list[dict[str, int]] = [{} for _ in names]
    for graph, *ends in rows:
        for end in ends:
            nodes[number[graph]].setdefault(end, len(nodes[number[graph]]))
    for graph, node, _ in tagged:
        nodes[number[graph]].setdefault(node, len(nodes[number[graph]]))
    every_node = [(graph, node) for graph, of in zip(names, nodes) for node in of]
    at = [[nodes[number[graph]][a], nodes[number[graph]][b]] for graph, a, b in rows]
    owner = np.array([number[graph] for graph, _, _ in rows])
    tag = _attached(tags, "tag", tagged, every_node) if tags else np.zeros(0, np.int64)
    label = None
    if labels:
        label = _attached(labels, "label", labelled, [(name,) for name in names])
    graphs = GraphSet(
        np.array([len(of) for of in nodes]),
        np.bincount(owner, minlength=len(names)),
        tag,
        np.array(at, np.int64)[np.argsort(owner, kind="stable")],
        label,
    )
    kinds = _sorted({row[1] for row in labelled})
    return Files(graphs, lambda i: f"graph {names[i]}", _sorted({row[2] for row in tagged}), kinds)


def _attached(
    file: str, what: str, rows: Sequence[Sequence[str]], things: Sequence[tuple[str, ...]]
) -> np.ndarray:
    """The tag of each node, or the label of each graph, as numbers from 0."""
    given: dict[tuple[str, ...], str] = {}
    for *names, value in rows:
        if given.setdefault(tuple(names), value) != value:
            raise ValueError(f"{file}: {_thing(names)} has two {what}s.")
    missing = [thing for thing in things if thing not in given]
    if missing:
        raise ValueError(
            f"{file} has no {what} for {_thing(missing[0])}, and for {len(missing) - 1} more; "
            "expected one for each."
        )
    known = {value: i for i, value in enumerate(_sorted(set(given.values())))}
    return np.array([known[given[thing]] for thing in things])


def _thing(names: Sequence[str]) -> str:
    return f"graph {names[0]}" if len(names) == 1 else f"node {names[1]} of graph {names[0]}"


def _words(file: Path, columns: int, form: str) -> list[list[str]]:
    """The words of each line, without a header; lines that begin with # are comments."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist; expected a file with a line {form!r} for each.")
    found = []
    for i, line in enumerate(lines.read(file), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = re.split(r"[,\s]+", line.strip())
        if len(words) != columns:
            raise ValueError(
                f"{file}: line {i} is {line.strip()[:60]!r}; expected {columns} words, {form!r}."
            )
        found.append(words)
    if _is_header(found):
        logging.warning(
            "%s: its first line, %r, is taken for a header and left out.", file, " ".join(found[0])
        )
        del found[0]
    if not found:
        raise ValueError(f"{file} is empty; expected a line {form!r} for each.")
    return found


def _is_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns: it begins with "graph", or has no number where all
    others have one; and no other row is of a graph of that name."""
    if not rows or rows[0][0] in {row[0] for row in rows[1:]}:
        return False
    if re.fullmatch(r"graph([_-]?(id|name|index|number))?", rows[0][0].lower()):
        return True
    words = not any(map(_is_whole, rows[0]))
    return words and any(all(map(_is_whole, column)) for column in zip(*rows[1:]))


def _is_whole(word: str) -> bool:
    return bool(re.fullmatch(r"[-+]?\d+", word))


def _reads_as_none(labels: Sequence[str]) -> bool:
    """Whether a table of labels under these names would be read as one without some of them: a
    number below 0 stands for none there."""
    return all(map(_is_whole, labels)) and any(int(label) < 0 for label in labels)


def _sorted(names: set[str]) -> list[str]:
    """By number where all are numbers, otherwise by name."""
    whole = all(map(_is_whole, names))
    return sorted(names, key=(lambda name: (int(name), name)) if whole else None)
