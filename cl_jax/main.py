"""Trains a config, or resumes or evaluates its run. `cl-jax train` and `cl-jax eval` do the same.

example:
  python -m cl_jax.main --config=configs/simclr_v2.py --workdir=runs/first
"""

import sys
from collections.abc import Sequence

from cl_jax.core import heap, xla
from cl_jax.tools import train
from cl_jax.training import configs, stopping


def main(argv: Sequence[str] | None = None) -> int:
    options = train.parser("python -m cl_jax.main", __doc__)
    options.add_argument(
        "--mode",
        choices=("train", "eval"),
        default="train",
        help="train, or evaluate the finished run in --workdir",
    )
    settings, words = configs.take_settings(sys.argv[1:] if argv is None else argv)
    args = options.parse_args(words)
    if not (args.config and args.workdir):
        options.error("--config and --workdir are needed")
    return train.run(args, args.config, settings, args.mode)


if __name__ == "__main__":
    if not {"-h", "--help"} & set(sys.argv):
        heap.restart_with_huge_pages()
    xla.keep_programs()
    stopping.end(main())
