"""Writes the features of all pictures in a folder, or of a run's own data, with path and label.

examples:
  cl-jax embed runs/mine photos --out=photos.parquet
  cl-jax embed runs/mine --features=h,z --out=mine.npz

Without FOLDER: the run's own data, all their parts, with a column "split". The suffix of --out
decides the format: .parquet (needs pyarrow), .npz or .csv. A picture that cannot be read has no
row; it is named, and its reason kept in the file. The same command continues where it was stopped.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cl_jax.core.paths import user_path
from cl_jax.tools import verbs

if TYPE_CHECKING:
    from cl_jax.data.embeddings import Pieces
    from cl_jax.data.source import Source
    from cl_jax.training.trained import Trained

STOPPED = 75  # as of a training run that can be resumed
FLUSH_SECONDS, FLUSH_BYTES = 20.0, 64 << 20
_SHOWN = 5


def parser() -> argparse.ArgumentParser:
    options = verbs.of_run("embed", __doc__)
    options.add_argument(
        "folder",
        nargs="?",
        metavar="FOLDER",
        help="pictures, at any depth; of a run that reads sentences, sound or graphs, a file or "
        "folder of these",
    )
    options.add_argument(
        "--out", help="the file to write (default: RUN/embeddings/NAME.npz, by the folder's name)"
    )
    options.add_argument(
        "--features", default="", help="names with commas, or all (default: that of evaluations)"
    )
    options.add_argument(
        "--batch_size", type=int, default=0, help="examples at a time (default: the run's)"
    )
    options.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a file that is there, or the beginning of one of other rows",
    )
    return options


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.batch_size < 0:
        parser().error(f"--batch_size={args.batch_size}; expected 1 or more.")
    return verbs.called(embed, args)


def embed(args: argparse.Namespace) -> int:
    """Writes the file that the options ask for; returns the exit status."""
    from cl_jax.core.errors import ConfigError
    from cl_jax.data import embeddings, images
    from cl_jax.data.source import checksum_of, names_of
    from cl_jax.training import fingerprint, trained

    called = user_path(args.folder).resolve().stem if args.folder else "data"
    out = user_path(args.out or user_path(args.run) / "embeddings" / f"{called}.npz")
    if args.out:
        embeddings.check_place(out)
    if out.exists() and not args.overwrite:
        raise ConfigError(f"{out} exists. Give --overwrite to replace it, or another --out.")
    run = trained.load(args.run, best=args.best)
    names = run.names(args.features if args.features in ("", trained.ALL) else _listed(args))
    source, bad, root = _source(run, args.folder)
    place = args.folder or str(run.config.data.get("path", "") or "")
    about = run.about(source) | {
        "features": list(names),
        "root": root,
        "examples": source.size,
        "network": run.checksum,
        "names": checksum_of(source),
        # Names alone do not tell a file that was written again.
        "times": fingerprint.times_of(user_path(place), names_of(source)) if place else "",
    }
    pieces, listed = embeddings.Pieces(out, about, overwrite=args.overwrite), dict(bad)
    done = pieces.done
    if done:
        print(f"resuming at example {done:,} of {source.size:,}", file=sys.stderr)
    try:
        rate = _fill(run, source, bad, names, args.batch_size, pieces)
    except KeyboardInterrupt:
        print(
            f"stopped after {pieces.done:,} of {source.size:,}; the same command resumes there.",
            file=sys.stderr,
        )
        return STOPPED
    bad = pieces.finish(about, listed)
    if bad:
        print(f"{len(bad):,} cannot be read and have no row:", file=sys.stderr)
        for name, reason in sorted(bad.items())[:_SHOWN]:
            print(f"  {images.printable(name)}: {reason}", file=sys.stderr)
        if len(bad) > _SHOWN:
            print(f"  and {len(bad) - _SHOWN:,} more", file=sys.stderr)
    wide = ", ".join(f"{name} [{run.dimensions[name]}]" for name in names)
    rows = source.size - (len(bad) - len(listed))
    print(f"{out}: {rows:,} rows of {wide}" + (f", {rate:,.0f}/s" if rate else ""))
    print(f"next: cl-jax search {shlex.quote(str(out))}")
    return 0


def _listed(args: argparse.Namespace) -> list[str]:
    return [name.strip() for name in args.features.split(",") if name.strip()]


def _source(run: "Trained", folder: str | None) -> tuple["Source", dict[str, str], str]:
    """(source, what cannot be read, the folder of its paths or "")."""
    from cl_jax.data.source import joined

    if folder is not None:
        source, bad = run.source(folder)
        return source, bad, _root(folder, source)
    if run.config.data.name == "folder" and not run.config.data.path:  # an imported network
        raise ValueError(
            f"{run.workdir} has no data of its own; give a folder of images as FOLDER."
        )
    data = run.data
    parts = {"train": data.train, "test": data.test} | {
        name: source
        for name, source in data.more.items()
        if set(run.example) & set(run.method.needs) <= set(source.read(0))
    }
    if data.test is data.train:
        del parts["test"]
    source = joined(data.train.name.split("/")[0], parts)
    return source, {}, _root(run.config.data.get("path", ""), data.train)


def _root(path: str, source: "Source") -> str:
    """The folder of a source's names, "" of one without."""
    if not path or source.names is None:
        return ""
    place = user_path(path).resolve()
    return str(place.parent if place.is_file() else place)


def _fill(
    run: "Trained",
    source: "Source",
    bad: dict[str, str],
    names: Sequence[str],
    batch_size: int,
    pieces: "Pieces",
) -> float:
    """Adds the rows that are missing, a piece every FLUSH_SECONDS; returns how many a second."""
    import numpy as np

    from cl_jax.data.source import subset
    from cl_jax.training.progress import Progress

    first = at = pieces.done
    if at == source.size:
        return 0.0
    left = subset(source, np.arange(at, source.size)) if at else source
    held: list[dict[str, np.ndarray]] = []
    flushed = time.monotonic()

    def flush() -> None:
        nonlocal first, flushed
        if held:
            rows = {name: np.concatenate([part[name] for part in held]) for name in names}
            part = run.embeddings(subset(source, np.arange(first, at)), rows, bad)
            pieces.add(part, at)
        held.clear()
        first, flushed = at, time.monotonic()

    with Progress("embedding", source.size, at) as progress:
        try:
            for part in run.blocks(left, features=names, batch_size=batch_size):
                held.append(part)
                at += len(part[names[0]])
                progress.advance(len(part[names[0]]))
                size = (at - first) * sum(4 * rows.shape[1] for rows in part.values())
                if size > FLUSH_BYTES or time.monotonic() - flushed > FLUSH_SECONDS:
                    flush()
        finally:  # of Ctrl-C too
            flush()
        return progress.rate
