"""Evaluates the newest checkpoint of a run: prints all figures and writes them to eval.json.

examples:
  cl-jax eval --workdir=runs/first
  cl-jax eval simclr_v2 --workdir=runs/first --config.evals.protocols.knn.k=20

Without CONFIG the run's own config is used; of a run in stages give one, as runs/first/pretrain,
once several have begun. Settings of the evaluation may be changed; a config that would train
another run is refused, with the difference shown.
"""

import sys
from collections.abc import Sequence

from cl_jax.tools import train
from cl_jax.training import configs


def main(argv: Sequence[str] | None = None) -> int:
    options = train.parser("cl-jax eval", __doc__)
    options.add_argument("given", nargs="?", metavar="CONFIG", help="the same as --config")
    settings, words = configs.take_settings(sys.argv[1:] if argv is None else argv)
    args = options.parse_intermixed_args(words)
    if not args.workdir:
        options.error("--workdir is needed: cl-jax eval --workdir=runs/first")
    return train.run(args, args.config or args.given, settings, "eval")
