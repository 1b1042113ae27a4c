"""Labels all pictures from a few: a classifier on a run's features, what it says of the rest, and
which pictures to label next.

examples:
  cl-jax label runs/mine labels.csv --pictures=photos --out=predictions.csv
  cl-jax label runs/mine labels.csv --embeddings=photos.npz --next=40

labels.csv has a column path (as `cl-jax embed` writes it, inside the folder) and a column label; an
empty label is none. The penalty of the classifier is chosen by cross-validation, and its confidence
is calibrated on the same held-out predictions. --finetune trains the whole network from that
classifier, and keeps it where the held-out pictures say that it is better.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_jax.core.paths import user_path
from cl_jax.tools import verbs

if TYPE_CHECKING:
    import numpy as np

    from cl_jax.data.embeddings import Embeddings
    from cl_jax.evals.few_labels import Probe
    from cl_jax.evals.fine_tuned import Tuned
    from cl_jax.training.trained import Trained

_SHOWN = 10
_LABELS = ("label", "class", "category", "target")


def parser() -> argparse.ArgumentParser:
    options = verbs.of_run("label", __doc__)
    verbs.with_feature(options)
    options.add_argument("labels", metavar="LABELS", help="a table of paths and labels, .csv")
    options.add_argument(
        "--pictures", default="", help="the folder of all pictures (default: the run's own)"
    )
    options.add_argument(
        "--embeddings", default="", help="a file of `cl-jax embed`, in place of --pictures"
    )
    options.add_argument(
        "--finetune",
        action="store_true",
        help="train the whole network on the labels too; minutes, and more with more labels",
    )
    options.add_argument(
        "--out", default="predictions.csv", help="the table to write (default %(default)s)"
    )
    options.add_argument(
        "--next", type=int, default=20, help="how many to suggest (default %(default)s)"
    )
    return options


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.next < 0:
        parser().error(f"--next={args.next}; expected 0 or more.")
    return verbs.called(label, args)


def label(args: argparse.Namespace) -> int:
    """Writes the predictions that the options ask for; returns the exit status."""
    import numpy as np

    from cl_jax.data.tables import check_place
    from cl_jax.evals import few_labels, fine_tuned
    from cl_jax.training import trained

    check_place(args.out, ".csv")
    given = read_labels(args.labels)
    run = trained.load(args.run, best=args.best)
    if args.finetune:  # before minutes of embedding
        (feature,) = run.names(args.feature)
        variables = run.method.evaluated(run.state)
        fine_tuned.check(run.method, variables, run.example, feature, run.mesh)
    held = _embeddings(args, run)
    if held is None:
        return 75
    x = held[args.feature or next(iter(held))]
    rows, names = matched(args.labels, given, held)
    _refuse_to_lose(args, [*given, *held.paths[rows].tolist()])
    classes = sorted(set(names))
    if len(classes) < 2:
        only = f"one class, {classes[0]!r}" if classes else "no label"
        raise _error(f"{args.labels} has {only}; expected two or more classes.")
    number = {name: i for i, name in enumerate(classes)}
    truth = np.array([number[name] for name in names])
    linear = few_labels.fit(x[rows], truth)
    probe: Probe | Tuned = linear
    probabilities = linear.probabilities(x)
    if args.finetune:
        probe, probabilities = _fine_tuned(args, run, held, rows, truth, linear, probabilities)
    chosen = few_labels.next_to_label(x, probabilities, rows, args.next)
    _write(args.out, held, dict(zip(rows.tolist(), names)), classes, probabilities, chosen)
    _tell(args, held, rows, truth, classes, probe, probabilities, chosen)
    return 0


def read_labels(path: str) -> dict[str, str]:
    """{path: label} of a table with a column path (or file, filename, name, id) and a column label
    (or class, category, target), or of two columns without a header; empty labels are left out.

    Raises:
      ConfigError: no such file, columns or labels; a path with two labels.
    """
    found = _labels_in(path)
    if not found:
        raise _error(f"{path} has no label.")
    return found


def _labels_in(path: str) -> dict[str, str]:
    """`read_labels` of a table that may have none."""
    import csv
    import io

    from cl_jax.core.errors import NotFoundError
    from cl_jax.data import lines
    from cl_jax.data.embeddings import PATHS
    from cl_jax.data.images import printable

    file = user_path(path)
    if not file.is_file():
        raise NotFoundError(f"{path} is not a file; expected a table of paths and labels.")
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
            text = opened.read()
        if "\0" in text:
            raise _error(
                f"{path} has zero bytes; expected a table as UTF-8 text, .csv. {lines.TO_UTF8}"
            )
        between = lines.separator(text.split("\n", 1)[0])
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=between)
        table = [row for row in reader if any(map(str.strip, row))]
    except (OSError, csv.Error) as error:
        raise _error(f"{path} cannot be read: {error}.") from None
    header = [word.strip().lower() for word in table[0]] if table else []
    at = next((header.index(word) for word in PATHS if word in header), None)
    of = next((header.index(word) for word in _LABELS if word in header), None)
    if at is not None and of is not None:
        rows = enumerate(table[1:], 2)
    elif len(header) == 2 and at is None and of is None:
        at, of, rows = 0, 1, enumerate(table, 1)
    else:
        raise _error(
            f"{path} has the columns {', '.join(header) or 'none'}; expected path and label."
        )
    found: dict[str, str] = {}
    for line, row in rows:
        if len(row) <= max(at, of):
            raise _error(f"{path}, line {line}: {len(row)} columns; expected {len(header)}.")
        name, word = row[at].strip(), row[of].strip()
        if word and not name:
            raise _error(f"{path}, line {line}: a label and no path; expected both.")
        if word and found.setdefault(name, word) != word:
            raise _error(
                f"{path}, line {line}: {printable(name)} is {word!r} here and {found[name]!r} "
                "above; expected one label a picture."
            )
    return found


def _refuse_to_lose(args: argparse.Namespace, labelled: Sequence[str]) -> None:
    """Raises ConfigError if the table at --out, which a new one replaces, has labels of pictures
    that are not among the labelled ones, by either of their paths: people fill it in."""
    from cl_jax.data.images import printable

    if not user_path(args.out).exists():
        return
    known = set(labelled)
    lost = [name for name in _labels_in(args.out) if name not in known]
    if lost:
        raise _error(
            f"--out={args.out} is there and has labels of {len(lost):,} pictures that have none in "
            f"{args.labels}, such as {printable(lost[0])}. Give {args.out} in place of "
            f"{args.labels} to use them, or another --out."
        )


def matched(path: str, given: dict[str, str], held: "Embeddings") -> tuple["np.ndarray", list[str]]:
    """(rows of the embeddings that have a label, their labels). A path may be absolute, begin with
    the folder's name, or be a file's name alone where only one file has it.

    Raises:
      ConfigError: labels of pictures that are not there, or that cannot be read.
    """
    import numpy as np

    from cl_jax.data import lines
    from cl_jax.data.images import printable

    place = {name: i for i, name in enumerate(held.paths.tolist())}
    root = str(held.about.get("root", ""))
    short: dict[str, list[int]] = {}
    for name, i in place.items():
        short.setdefault(name.rsplit("/", 1)[-1], []).append(i)

    def row(name: str) -> int | None:
        for word in (
            name,
            name.removeprefix("./"),
            name.removeprefix(f"{root}/"),
            name.removeprefix(f"{Path(root).name}/"),
        ):
            if word in place:
                return place[word]
        alone = short.get(name, [])
        return alone[0] if len(alone) == 1 else None

    found = {name: row(name) for name in given}
    bad = held.about.get("bad", {})
    lost = [name for name, at in found.items() if at is None]
    if lost:
        broken = [name for name in lost if name in bad]
        what = (
            f"{printable(broken[0])} cannot be read: {bad[broken[0]]}"
            if broken
            else f"{printable(lost[0])} is not among the {len(held):,} pictures, such as "
            f"{printable(str(held.paths[0]))}"
        )
        escaped = any("\udc80" <= letter <= "\udcff" for name in lost for letter in name)
        raise _error(
            f"{path} has labels for {len(lost):,} of {len(given):,} pictures that are not there; "
            f"{what}. Give paths inside the folder, or remove those lines."
            + f" The table is not UTF-8. {lines.TO_UTF8}"
            * escaped
        )
    twice = len(found) - len(set(found.values()))
    if twice:
        raise _error(f"{path} has two paths for one picture, {twice} times; keep one of each.")
    rows = np.array([found[name] for name in given])
    return rows, list(given.values())


def _fine_tuned(
    args: argparse.Namespace,
    run: "Trained",
    held: "Embeddings",
    rows: "np.ndarray",
    truth: "np.ndarray",
    probe: "Probe",
    probabilities: "np.ndarray",
) -> "tuple[Probe | Tuned, np.ndarray]":
    """What to predict with, and its probabilities of all pictures: the network fine-tuned on the
    labels, or the probe where that is better on held-out pictures."""
    import numpy as np
    from scipy.special import softmax

    from cl_jax.data.images import printable
    from cl_jax.data.source import names_of, subset
    from cl_jax.evals import evaluation, fine_tuned
    from cl_jax.training.progress import Progress

    folder = args.pictures or str(run.config.data.get("path", "") or "")
    if not folder:
        raise _error("--finetune reads the pictures again; give --pictures=FOLDER.")
    if not np.isfinite(probe.accuracy):
        raise _error("--finetune needs two labels of a class: else nothing tells whether it helps.")
    source, _ = run.source(folder)
    place = {name: i for i, name in enumerate(names_of(source))}
    lost = [name for name in held.paths.tolist() if name not in place]
    if lost:
        raise _error(
            f"--finetune reads the pictures again, and {printable(lost[0])} is not in {folder}; "
            "give the folder of the embeddings as --pictures."
        )
    source = subset(source, np.array([place[name] for name in held.paths.tolist()]))
    method, fields = run.method, evaluation.needed_fields(run.method, source)
    wanted = [*fields, *(name for name in method.wants if name in source.read(0))]
    examples = [source.read(int(i)) for i in rows]
    params, stats = method.evaluated(run.state)
    x = held[args.feature]
    with Progress("fine-tuning", fine_tuned.trainings(truth)) as progress:
        tuned = fine_tuned.fit(
            method,
            (params, stats),
            {name: np.stack([example[name] for example in examples]) for name in wanted},
            np.asarray(x[rows], np.float64),
            truth,
            probe,
            feature=args.feature,
            after_epoch=lambda: progress.advance(1),
        )
    print(
        f"fine-tuned, of pictures that it did not see: {100 * tuned.accuracy:.1f} % right, log "
        f"loss {tuned.log_loss:.3f} after {tuned.epochs} epochs; the network as it is: "
        f"{100 * probe.accuracy:.1f} %, {probe.log_loss:.3f}"
    )
    if not fine_tuned.better(tuned, probe, truth):
        print("that is no better by more than chance: the network as it is predicts")
        return probe, probabilities
    compiled = evaluation.over_blocks(fine_tuned.logits(method, args.feature), run.mesh)
    variables: Any = tuned.params, stats
    found = evaluation.blocks(
        compiled,
        variables,
        source,
        run.mesh,
        fields=fields,
        batch_size=run.config.evals.batch_size,
    )
    logits = np.concatenate([part["logits"] for part in found])
    return tuned, softmax(logits / tuned.temperature, axis=1)


def _embeddings(args: argparse.Namespace, run: "Trained") -> "Embeddings | None":
    """The features of all pictures, from the file that is given or made now; None where that was
    interrupted."""
    from cl_jax.data import embeddings
    from cl_jax.data.source import checksum_of, names_of
    from cl_jax.tools import embed
    from cl_jax.training import fingerprint

    (feature,) = run.names(args.feature)
    args.feature = feature
    if args.embeddings:
        held = embeddings.load(args.embeddings)
        if feature not in list(held):
            raise _error(f"{args.embeddings} has {', '.join(held)}, and not {feature!r}.")
        if held.about.get("network", run.checksum) != run.checksum:
            raise _error(
                f"{args.embeddings} is of another network than {args.run}, step {run.step} (it is "
                f"of {held.about.get('run')}, step {held.about.get('step')}). Embed again, or give "
                "the run of the file."
            )
        return held
    folder = args.pictures or str(run.config.data.get("path", "") or "")
    if not folder:
        raise _error(
            f"the data of {args.run} are not a folder; give --pictures=FOLDER or --embeddings=FILE."
        )
    name = f"{user_path(folder).resolve().stem}-{feature}-{run.checksum}.npz"
    out = user_path(args.run) / "embeddings" / name
    if out.is_file():
        source, _ = run.source(folder)
        held = embeddings.load(out)
        now = {
            "names": checksum_of(source),
            "times": fingerprint.times_of(user_path(folder), names_of(source)),
        }
        if all(held.about.get(key) == value for key, value in now.items()):
            return held
    words = [args.run, folder, f"--out={out}", f"--features={feature}", "--overwrite"]
    status = embed.embed(embed.parser().parse_args(words + ["--best"] * args.best))
    return embeddings.load(out) if status == 0 else None


def _write(
    path: str,
    held: "Embeddings",
    given: dict[int, str],
    classes: list[str],
    probabilities: "np.ndarray",
    chosen: "np.ndarray",
) -> None:
    import numpy as np

    from cl_jax.data.tables import write_table

    order = np.argsort(-probabilities, axis=1)[:, :2]
    rank = {row: i + 1 for i, row in enumerate(chosen.tolist())}
    every = range(len(held))
    write_table(
        path,
        {
            "path": held.paths,
            "label": [given.get(i, "") for i in every],
            "prediction": [classes[j] for j in order[:, 0]],
            "confidence": [f"{probabilities[i, order[i, 0]]:.4f}" for i in every],
            "second": [classes[j] for j in order[:, 1]],
            "second_confidence": [f"{probabilities[i, order[i, 1]]:.4f}" for i in every],
            "next": [rank.get(i, "") for i in every],
        },
    )


def _tell(
    args: argparse.Namespace,
    held: "Embeddings",
    rows: "np.ndarray",
    truth: "np.ndarray",
    classes: list[str],
    probe: "Probe | Tuned",
    probabilities: "np.ndarray",
    chosen: "np.ndarray",
) -> None:
    import numpy as np

    from cl_jax.data.images import printable
    from cl_jax.evals.few_labels import Probe, doubtful

    counts = np.bincount(truth, minlength=len(classes))
    told = ", ".join(f"{name} {count}" for name, count in zip(classes[:_SHOWN], counts))
    print(
        f"{len(rows):,} labels of {len(classes)} classes: {told}{', ...' * (len(classes) > _SHOWN)}"
    )
    if np.isfinite(probe.accuracy):
        print(
            f"of pictures that it did not see (cross-validation): {100 * probe.accuracy:.1f} % "
            f"right (the most frequent class: {100 * counts.max() / counts.sum():.1f} %), "
            f"calibration error {100 * probe.calibration_error:.1f} %"
        )
        how = f"penalty 1/C = {1 / probe.c:g}, " if isinstance(probe, Probe) else ""
        print(f"{how}temperature {probe.temperature:.2f}")
    else:
        print("no class has two labels: nothing is known of how good this is", file=sys.stderr)
    few = [name for name, count in zip(classes, counts) if count < 2]
    if few and np.isfinite(probe.accuracy):
        print(f"one label alone: {', '.join(few[:_SHOWN])}", file=sys.stderr)
    wrong = doubtful(probe.held_out, truth)
    if len(wrong):
        print(f"{len(wrong)} labels are likely wrong:")
        for i in wrong[:_SHOWN]:
            best = int(np.argmax(probe.held_out[i]))
            print(
                f"  {printable(str(held.paths[rows[i]]))}: {classes[truth[i]]} given, "
                f"{classes[best]} at {probe.held_out[i, best]:.2f}"
            )
    rest = np.setdiff1d(np.arange(len(held)), rows)
    if len(rest) and np.isfinite(probe.accuracy):
        sure = 100 * float(np.mean(probabilities[rest].max(1)))
        print(f"{len(rest):,} others predicted; by their confidence {sure:.0f} % are right")
    if len(chosen):
        print("label next:")
        for i in chosen[:_SHOWN]:
            print(f"  {printable(str(held.paths[i]))}")
        if len(chosen) > _SHOWN:
            print(f"  and {len(chosen) - _SHOWN} more, by the column next of {args.out}")
    print(f"{args.out}: {len(held):,} rows")


def _error(text: str) -> Exception:
    from cl_jax.core.errors import ConfigError

    return ConfigError(text)
