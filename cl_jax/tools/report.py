"""Writes one HTML page on a run: what was run, its curves, and a map of what the network sees.

examples:
  cl-jax report runs/mine
  cl-jax report runs/mine --data=/path/to/images --out=report.html

The page opens from the disk, without a network. It has the run's settings and verdict, its curves,
the augmented views of eight examples, a map of the embeddings with the picture of each example and
its neighbours, similarities of positive and negative pairs, the kNN's confusion, clusters,
duplicates, likely false negatives and likely wrong labels.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from cl_jax.core.paths import user_path
from cl_jax.tools import verbs


def parser() -> argparse.ArgumentParser:
    options = verbs.of_run("report", __doc__)
    verbs.with_feature(options)
    options.add_argument(
        "--data",
        default="",
        metavar="PATH",
        help="examples to show: train, test (the default) or another part of the run's data, or a "
        "folder of images",
    )
    options.add_argument(
        "--rows",
        type=int,
        default=10_000,
        help="examples on the map, drawn by chance of more (default %(default)s)",
    )
    options.add_argument("--label", default="", help="the label of the map's first colours")
    options.add_argument("--out", default="", help="default: RUN/report.html")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        import plotly  # noqa: F401
    except ImportError:
        print("error: a report needs plotly: pip install 'cl_jax[report]'.", file=sys.stderr)
        return 1
    return verbs.called(report, args)


def report(args: argparse.Namespace) -> int:
    """Writes the page; returns the exit status."""
    import os
    import tempfile

    import cl_jax
    from cl_jax.core.errors import SaveError
    from cl_jax.data.images import printable
    from cl_jax.tools import _page

    if args.rows < 3:
        raise ValueError(f"--rows={args.rows}; expected 3 or more.")
    run = cl_jax.load(args.run, best=args.best)
    out = user_path(args.out or run.workdir / "report.html")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise ValueError(f"--out={out}: {out.parent} is not a folder that one may write to.")
    if out.is_dir():
        raise ValueError(f"--out={out} is a folder; give the name of a file, such as report.html.")
    text = _page.of_run(run, args)
    # names of files need not be text
    how: Any = dict(encoding="utf-8", errors="backslashreplace")
    try:
        with tempfile.NamedTemporaryFile("w", dir=out.parent, delete=False, **how) as file:
            try:
                file.write(text)
                file.close()
                os.chmod(file.name, 0o644)
                os.replace(file.name, out)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise SaveError(
            f"{out} cannot be written: {error.strerror}. Make room there, or give another --out."
        ) from error
    print(f"{printable(str(out))}, {out.stat().st_size / 2**20:.1f} MB. It opens in any browser.")
    return 0
