"""Finds pictures by their embeddings: similar ones, duplicates, clusters, outliers, a diverse few.

examples:
  cl-jax search photos.npz
  cl-jax search photos.npz --like=cat/01.png --sheet=similar.png
  cl-jax search photos.npz --like=new_photos --k=5 --out=matches.csv
  cl-jax search photos.npz --duplicates=0.99 --out=copies.csv
  cl-jax search photos.npz --clusters=20 --sheet=clusters.png
  cl-jax search photos.npz --subset=100 --out=to_label.csv

Similarity is the cosine, 1 for equal features. All searches are exact, on the device, block by
block. Without a question: how many rows there are, likely duplicates, clusters and outliers.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cl_jax.core.paths import user_path
from cl_jax.tools import verbs

if TYPE_CHECKING:
    import numpy as np

    from cl_jax.data.embeddings import Embeddings

REFERENCE = 5_000  # rows that outliers are measured against
CHOSEN = None  # a threshold, or a number of clusters, that the rows decide
_SHOWN = 12
_SUBSET = ("rank", "path", "radius", "label")  # columns of the table that people fill in


def parser() -> argparse.ArgumentParser:
    options = verbs.parser("search", __doc__)
    options.add_argument("embeddings", metavar="EMBEDDINGS", help="a file of `cl-jax embed`")
    asked = options.add_mutually_exclusive_group()
    asked.add_argument(
        "--like",
        metavar="PATH",
        help="the rows nearest to a row of the file, by its path; or to a picture, or each picture "
        "of a folder, which the run of the file then embeds",
    )
    asked.add_argument(
        "--duplicates",
        nargs="?",
        type=float,
        default=False,
        const=CHOSEN,
        metavar="SIMILARITY",
        help="groups of rows that are at least so similar (default: .98 or more, by how alike "
        "unrelated rows are)",
    )
    asked.add_argument(
        "--clusters",
        nargs="?",
        type=int,
        default=False,
        const=CHOSEN,
        metavar="K",
        help="k-means, and the example nearest to its centre",
    )
    asked.add_argument(
        "--outliers",
        nargs="?",
        type=int,
        const=50,
        metavar="N",
        help="the rows least similar to their nearest ones (default %(const)s)",
    )
    asked.add_argument(
        "--subset",
        type=int,
        metavar="N",
        help="N rows that cover all others (k-centre greedy): what to label first; labels in the "
        "table of an earlier --subset are kept",
    )
    options.add_argument("--k", type=int, default=8, help="neighbours (default %(default)s)")
    options.add_argument("--feature", default="", help="which one, where the file has several")
    options.add_argument("--run", default="", help="embeds --like (default: the file's own run)")
    options.add_argument("--pictures", default="", help="the folder of the paths, where it moved")
    options.add_argument("--sheet", default="", help="a PNG of the pictures that were found")
    options.add_argument("--out", default="", help="the result as .csv")
    return options


class Found(NamedTuple):
    """An answer. text: for people. columns: {name: values} of its table. rows: of the sheet, a
    title and [(row of the embeddings or path of a file, caption)]."""

    text: str
    columns: Mapping[str, Any]
    rows: list[tuple[str, list[tuple[Any, str]]]]


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return verbs.called(search, args)


def search(args: argparse.Namespace) -> int:
    """Answers what the options ask; returns the exit status."""
    from cl_jax.core.errors import ConfigError
    from cl_jax.data import embeddings
    from cl_jax.data.tables import check_place, write_table

    if args.k < 1:
        raise ConfigError(f"--k={args.k}; expected at least 1.")
    if args.like == "":
        raise ConfigError("--like is empty; expected a path in the file, a picture or a folder.")
    for path, suffix in ((args.out, ".csv"), (args.sheet, ".png")):
        check_place(path, suffix)
    held = embeddings.load(args.embeddings)
    x = held[_feature(args, held)]
    if args.sheet:
        _root(args, held)  # before anything is computed
    began = time.perf_counter()
    if args.like is not None:
        found = like(args, held, x)
    elif args.duplicates is not False:
        found = duplicates(held, x, args.duplicates)
    elif args.clusters is not False:
        found = clusters(held, x, args.clusters, args.k)
    elif args.outliers is not None:
        found = outliers(held, x, args.outliers, args.k)
    elif args.subset is not None:
        found = subset(held, x, args.subset, _filled_in(args, held))
    else:
        found = overview(args, held, x)
    print(found.text)
    print(f"{len(x):,} rows of {x.shape[1]}, {time.perf_counter() - began:.1f} s", file=sys.stderr)
    if args.out:
        write_table(args.out, found.columns)
        print(f"{args.out}: {len(next(iter(found.columns.values()))):,} rows")
    if args.sheet:
        _write_sheet(args, held, found)
    return 0


def _feature(args: argparse.Namespace, held: "Embeddings") -> str:
    from cl_jax.core.errors import ConfigError
    from cl_jax.core.names import nearest

    names = list(held)
    if args.feature and args.feature not in names:
        raise ConfigError(
            f"{args.embeddings} has no feature {args.feature!r}{nearest(args.feature, names)}; it "
            f"has {', '.join(names)}."
        )
    return args.feature or ("h" if "h" in names else names[0])


# Questions --------------------------------------


def like(args: argparse.Namespace, held: "Embeddings", x: "np.ndarray") -> Found:
    """The nearest rows of each query."""
    import numpy as np

    from cl_jax.core.neighbours import nearest_rows

    at = _row_of(args.like, held)
    if at is not None:  # without the row itself
        names, queries, own = [str(held.paths[at])], x[at : at + 1], [at]
        origin: list[Any] = [at]
    else:
        names, queries, origin = _embedded(args, held)
        own = [-1]
    k = min(args.k + (at is not None), len(x))
    score, row = (np.asarray(a) for a in nearest_rows(x, queries, k))
    table: dict[str, list[Any]] = {"query": [], "rank": [], "path": [], "similarity": []}
    lines, rows = [], []
    for i, name in enumerate(names):
        pairs = [(j, s) for j, s in zip(row[i].tolist(), score[i].tolist()) if j not in own]
        pairs = pairs[: args.k]
        lines.append(f"nearest to {_clean(name)}")
        lines += [f"  {s:6.3f}  {_clean(held.paths[j])}{_label(held, j)}" for j, s in pairs]
        for rank, (j, s) in enumerate(pairs, 1):
            for key, value in zip(table, (name, rank, held.paths[j], f"{s:.6f}")):
                table[key].append(value)
        tiles = [(origin[i], "query"), *((j, f"{s:.3f}\n{held.paths[j]}") for j, s in pairs)]
        rows.append((f"nearest to {name}", tiles))
    return Found("\n".join(lines), table, rows)


def duplicates(held: "Embeddings", x: "np.ndarray", threshold: float | None) -> Found:
    """Groups of rows that are joined by pairs at least so similar; None chooses a threshold."""
    from cl_jax.cluster.pairs import groups_above, likely_copies, usual

    threshold = likely_copies(x) if threshold is None else threshold
    found, best = groups_above(x, threshold)
    extra = sum(len(rows) for rows in found) - len(found)
    mixed = [rows for rows in found if len({_label(held, i) for i in rows} - {""}) > 1]
    lines = [
        f"of any two rows, one pair in a thousand is more than {usual(x):.3f} alike",
        f"{len(found):,} groups of rows at least {threshold:g} alike: {extra:,} rows are "
        "copies of others" + (f"; {len(mixed):,} groups have different labels" if mixed else ""),
    ]
    for rows in found[:_SHOWN]:
        lines.append(f"  {len(rows)} alike: {_first(held, rows)}")
    if len(found) > _SHOWN:
        lines.append(f"  and {len(found) - _SHOWN:,} groups more (--out=FILE.csv for all)")
    every = [(number, i) for number, rows in enumerate(found) for i in rows.tolist()]
    columns = {
        "group": [number for number, _ in every],
        "path": [held.paths[i] for _, i in every],
        "similarity": [f"{best[i]:.6f}" for _, i in every],
    }
    sheet = [
        (f"group {number}: {len(rows)} alike", [(i, _caption(held, i, best[i])) for i in rows])
        for number, rows in enumerate(found)
    ]
    return Found("\n".join(lines), columns, sheet)


def clusters(held: "Embeddings", x: "np.ndarray", count: int | None, k: int) -> Found:
    """k-means of unit rows, in so many clusters or, of None, in a number by that of the rows; the
    rows nearest to each centre stand for it."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cl_jax.cluster.kmeans import kmeans
    from cl_jax.core.errors import ConfigError
    from cl_jax.core.numerics import unit

    count = int(np.clip(round((len(x) / 2) ** 0.5), 2, 50)) if count is None else count
    if not 1 < count <= len(x):
        raise ConfigError(f"--clusters={count}; expected 2 to the {len(x):,} rows.")
    rows = jax.jit(lambda x: unit(x))(jnp.asarray(x))
    found = kmeans(
        jax.random.key(0),
        rows,
        count,
        spherical=True,
        start="spread",
        max_points_per_centroid=1000,
    )
    cluster, distance = np.asarray(found.assignment), np.asarray(found.distance)
    order = np.lexsort((distance, cluster))
    starts = np.searchsorted(cluster[order], np.arange(count + 1))
    members = [order[a:b] for a, b in itertools.pairwise(starts)]
    members.sort(key=len, reverse=True)
    lines = [f"{count} clusters; the rows nearest to the centre of each:"]
    sheet = []
    for number, rows_of in enumerate(members):
        what = f"cluster {number}: {len(rows_of):,} rows{_mostly(held, rows_of)}"
        lines.append(f"  {what}: {_first(held, rows_of, 3)}")
        sheet.append((what, [(i, _caption(held, i, 1 - distance[i] / 2)) for i in rows_of[:k]]))
    every = [(number, rank, i) for number, of in enumerate(members) for rank, i in enumerate(of)]
    columns = {
        "cluster": [number for number, _, _ in every],
        "rank": [rank for _, rank, _ in every],
        "path": [held.paths[i] for _, _, i in every],
        "similarity": [f"{1 - distance[i] / 2:.6f}" for _, _, i in every],
    }
    return Found("\n".join(lines), columns, sheet)


def outliers(held: "Embeddings", x: "np.ndarray", count: int, k: int) -> Found:
    """The rows with the least mean similarity to their k nearest among REFERENCE rows, all where
    there are no more (Sugiyama and Borgwardt 2013)."""
    import numpy as np

    from cl_jax.core.errors import ConfigError
    from cl_jax.core.neighbours import nearest_rows

    if count < 1:
        raise ConfigError(f"--outliers={count}; expected at least 1.")
    some = np.arange(len(x))
    if len(x) > REFERENCE:
        some = np.sort(np.random.default_rng(0).choice(len(x), REFERENCE, replace=False))
    k = min(k, len(some) - 1)
    if k < 1:
        raise ConfigError("outliers need two rows or more.")
    score, row = (np.asarray(a) for a in nearest_rows(x[some], x, k + 1, block_size=REFERENCE))
    others = some[row] != np.arange(len(x))[:, None]
    # a row that is not in the reference, or that its copies keep out of the list, has k + 1 others
    others[others.all(axis=1), -1] = False
    mean = np.where(others, score, 0).sum(axis=1) / k
    order = np.argsort(mean, kind="stable")[:count]
    against = "" if len(some) == len(x) else f" of {len(some):,} rows drawn at random"
    lines = [f"least similar to their {k} nearest{against}:"]
    lines += [f"  {mean[i]:6.3f}  {_clean(held.paths[i])}{_label(held, i)}" for i in order[:_SHOWN]]
    columns = {
        "rank": range(1, len(order) + 1),
        "path": held.paths[order],
        "similarity": [f"{mean[i]:.6f}" for i in order],
    }
    return Found("\n".join(lines), columns, _in_rows("outliers", held, order, mean))


def subset(
    held: "Embeddings", x: "np.ndarray", count: int, filled: Mapping[str, str] = {}
) -> Found:
    """A coreset: rows that cover all others.

    filled: {path: label} that people wrote into the table of an earlier subset. They are in the new
    table too; those of paths outside the subset come last, without rank and radius.
    """
    import jax.numpy as jnp
    import numpy as np

    from cl_jax.cluster.coreset import coreset
    from cl_jax.core.errors import ConfigError

    if not 1 <= count <= len(x):
        raise ConfigError(f"--subset={count}; expected 1 to the {len(x):,} rows.")
    found = coreset(jnp.asarray(x), count)
    rows, radius = np.asarray(found.rows), np.asarray(found.radius)
    least = 1 - radius[-1] ** 2 / 2
    lines = [f"{count:,} rows; every other is at least {least:.3f} similar to one of them:"]
    lines += [f"  {_clean(held.paths[i])}{_label(held, i)}" for i in rows[:_SHOWN]]
    if count > _SHOWN:
        lines.append(f"  and {count - _SHOWN:,} more (--out=FILE.csv for all)")
    known = held.words("label") if "label" in held.labels else [""] * len(x)
    labels = {str(held.paths[i]): known[i] for i in rows} | dict(filled)
    chosen = set(held.paths[rows].tolist())
    outside = [path for path in filled if path not in chosen]
    if filled:
        lines.append(
            f"{len(filled):,} labels of the table that was there are kept"
            + (f", {len(outside):,} of rows outside the subset" if outside else "")
        )
    none = [""] * len(outside)
    paths = [*held.paths[rows].tolist(), *outside]
    table = (
        [*range(1, count + 1), *none],
        paths,
        [*(f"{value:.6f}" for value in radius), *none],
        [labels[path] for path in paths],  # to be filled in, for `cl-jax label`
    )
    columns = dict(zip(_SUBSET, table, strict=True))
    return Found("\n".join(lines), columns, _in_rows("subset", held, rows))


def overview(args: argparse.Namespace, held: "Embeddings", x: "np.ndarray") -> Found:
    """What is in the file, and the first answers to three questions."""
    lines = [f"{args.embeddings}: {len(x):,} rows, " + _sizes(held)]
    for name in held.labels:
        words = held.words(name)
        counts = {word: words.count(word) for word in sorted(set(words))[:_SHOWN]}
        told = ", ".join(f"{_clean(word) or 'none'} {count:,}" for word, count in counts.items())
        lines.append(f"{name}: {told}" + (", ..." if len(set(words)) > _SHOWN else ""))
    found = duplicates(held, x, CHOSEN)
    lines += ["", found.text]
    if len(x) > 2:
        kinds = clusters(held, x, CHOSEN, args.k).text.split("\n")
        if len(kinds) > 1 + _SHOWN:
            kinds[1 + _SHOWN :] = [f"  and {len(kinds) - 1 - _SHOWN} clusters more (--clusters)"]
        lines += ["", *kinds, "", outliers(held, x, 8, args.k).text]
    return Found("\n".join(lines), found.columns, found.rows)


# Queries that are not in the file --------------------------------------


def _row_of(path: str, held: "Embeddings") -> int | None:
    """The row of a path: as the file has it, or of the same file on the disk."""
    import numpy as np

    root = held.about.get("root", "")
    at = np.flatnonzero(held.paths == path)
    if not len(at):
        file = user_path(path).resolve()
        names = {str(file)}
        if root and file.is_relative_to(root):
            names.add(file.relative_to(root).as_posix())
        at = np.flatnonzero(np.isin(held.paths, list(names)))
    return int(at[0]) if len(at) else None


def _embedded(
    args: argparse.Namespace, held: "Embeddings"
) -> tuple[list[str], "np.ndarray", list[Any]]:
    """(names, rows, files) of pictures that the run of the embeddings looks at now."""
    from cl_jax.core.errors import ConfigError, NotFoundError
    from cl_jax.core.names import nearest
    from cl_jax.training import trained

    path = user_path(args.like)
    if args.like in held.about.get("bad", {}):
        raise ConfigError(
            f"--like={_clean(args.like)} could not be read when {args.embeddings} was made: "
            f"{held.about['bad'][args.like]}. Mend the picture and embed again."
        )
    if not path.exists():
        raise NotFoundError(
            f"--like={args.like} is neither a path in {args.embeddings} nor a picture or folder on "
            f"this machine{nearest(args.like, held.paths.tolist())}."
        )
    run_path = args.run or held.about.get("run", "")
    if not run_path:
        raise ConfigError(
            f"{args.embeddings} does not say which run it is of, so {args.like} cannot be "
            "embedded; give --run=WORKDIR."
        )
    run = trained.load(run_path)
    if held.about.get("network", run.checksum) != run.checksum:
        run = _other_checkpoint(run_path, held, args.embeddings)
    feature = _feature(args, held)
    found = run.embed(path, features=(feature,))
    if found[feature].shape[1] != held[feature].shape[1]:
        raise ConfigError(
            f"{feature} of {run_path} has {found[feature].shape[1]} numbers, that of "
            f"{args.embeddings} {held[feature].shape[1]}: they are of different runs."
        )
    bad = found.about["bad"]
    if not len(found):
        name, reason = next(iter(bad.items()))
        raise ConfigError(f"--like={args.like}: no picture can be read; {_clean(name)}: {reason}.")
    for name, reason in bad.items():
        print(f"{_clean(name)} cannot be read: {reason}", file=sys.stderr)
    files = [path if path.is_file() else path / name for name in found.paths]
    return found.paths.tolist(), found[feature], files


def _other_checkpoint(run_path: str, held: "Embeddings", name: str) -> Any:
    """The run's best checkpoint, where the embeddings are of that."""
    from cl_jax.core.errors import ConfigError, NotFoundError
    from cl_jax.training import trained

    try:
        run = trained.load(run_path, best=True)
        if run.checksum == held.about["network"]:
            return run
    except NotFoundError:
        pass
    raise ConfigError(
        f"{name} is of another network than the checkpoints of {run_path} (it was of step "
        f"{held.about.get('step', '?')}): the features would not compare. Embed again, or give the "
        "right --run."
    )


# Words and files --------------------------------------


def _filled_in(args: argparse.Namespace, held: "Embeddings") -> dict[str, str]:
    """{path: label} that people wrote into the table at --out, which a new one replaces; empty
    without one. Labels of the data, which the table began with, are not among them.

    Raises:
      ConfigError: the file is not a table of --subset, has a line that cannot be carried over, or
        has labels of other pictures.
    """
    import csv
    import io

    from cl_jax.core.errors import ConfigError
    from cl_jax.data import lines

    file = user_path(args.out) if args.out else None
    if file is None or not file.exists():
        return {}
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
        text = opened.read()
    between = lines.separator(text.split("\n", 1)[0])
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=between)
    mend = "Mend it, or give another --out."
    if tuple(reader.fieldnames or ()) != _SUBSET:
        raise ConfigError(
            f"--out={args.out} is there and is not a table of --subset, with the columns "
            f"{', '.join(_SUBSET)}; give another --out."
        )
    own: dict[str, str] = {}
    if "label" in held.labels:
        own = dict(zip(held.paths.tolist(), held.words("label")))
    found: dict[str, str] = {}
    for row in reader:
        if None in row or None in row.values():
            raise ConfigError(
                f"{args.out}, line {reader.line_num}: expected {len(_SUBSET)} columns. {mend}"
            )
        path, word = row["path"], row["label"].strip()
        # A picture that is no longer there had the name of its folder.
        if own and word == own.get(path, path.split("/")[0]):
            continue
        if word and found.setdefault(path, word) != word:
            raise ConfigError(
                f"{args.out}, line {reader.line_num}: {_clean(path)} has another label above; "
                f"expected one label a picture. {mend}"
            )
    known = set(held.paths.tolist())
    lost = [path for path in found if path not in known]
    if lost:
        raise ConfigError(
            f"{args.out} has labels of {len(lost):,} pictures that are not in {args.embeddings}, "
            f"such as {_clean(lost[0])}. Remove those lines, or give another --out."
        )
    return found


def _clean(name: Any) -> str:
    from cl_jax.data.images import printable

    return printable(str(name))


def _label(held: "Embeddings", i: int) -> str:
    if "label" not in held.labels:
        return ""
    value = int(held.labels["label"][i])
    names = held.classes.get("label")
    return "" if value < 0 else f"  [{_clean(names[value] if names else value)}]"


def _mostly(held: "Embeddings", rows: "np.ndarray") -> str:
    """The most frequent label of rows, with its share."""
    import numpy as np

    if "label" not in held.labels or not len(rows):
        return ""
    known = held.labels["label"][rows]
    known = known[known >= 0]
    if not len(known):
        return ""
    value, counts = np.unique(known, return_counts=True)
    best = int(value[np.argmax(counts)])
    names = held.classes.get("label")
    share = counts.max() / len(known)
    return f", {100 * share:.0f} % {_clean(names[best] if names else best)}"


def _caption(held: "Embeddings", i: int, score: float) -> str:
    return f"{score:.3f}{_label(held, i)}\n{held.paths[i]}"


def _first(held: "Embeddings", rows: "np.ndarray", count: int = 4) -> str:
    from cl_jax.core.names import some

    # one more than is shown, of what may be all rows
    return some([_clean(held.paths[i]) + _label(held, i) for i in rows[: count + 1]], count)


def _sizes(held: "Embeddings") -> str:
    return ", ".join(f"{name} [{held[name].shape[1]}]" for name in held)


def _in_rows(
    title: str, held: "Embeddings", rows: "np.ndarray", score: "np.ndarray | None" = None
) -> list[tuple[str, list[tuple[Any, str]]]]:
    """A sheet of ten pictures a row."""
    tiles = [
        (i, f"{held.paths[i]}" if score is None else _caption(held, i, score[i]))
        for i in rows.tolist()
    ]
    return [
        (f"{title} {at + 1} to {min(at + 10, len(tiles))}", tiles[at : at + 10])
        for at in range(0, len(tiles), 10)
    ]


def _root(args: argparse.Namespace, held: "Embeddings") -> str:
    """The folder of the pictures."""
    from cl_jax.core.errors import ConfigError

    root = args.pictures or held.about.get("root", "")
    if not root:
        raise ConfigError(
            f"{args.embeddings} does not say where its pictures are; give --pictures=FOLDER."
        )
    return str(root)


def _write_sheet(args: argparse.Namespace, held: "Embeddings", found: Found) -> None:
    from cl_jax.core.errors import ConfigError, SaveError
    from cl_jax.data import contact_sheet
    from cl_jax.data.contact_sheet import Row, Tile

    root = _root(args, held)

    def file(what: Any) -> Path:
        return what if isinstance(what, Path) else user_path(root) / held.paths[what]

    rows = [
        Row(title, [Tile(file(what), caption) for what, caption in tiles])
        for title, tiles in found.rows
    ]
    try:
        shown, missing = contact_sheet.write(user_path(args.sheet), rows)
    except OSError as error:
        raise SaveError(f"{args.sheet} cannot be written: {error}.") from error
    if shown and missing == shown:
        raise ConfigError(
            f"none of the {shown} pictures is in {root}, or can be read; where are they now? Give "
            "--pictures=FOLDER."
        )
    print(
        f"{args.sheet}: {shown} pictures"
        + (f", {missing} of which cannot be read in {root}" if missing else "")
    )
