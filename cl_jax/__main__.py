"""cl-jax VERB ...: the command line. `python -m cl_jax VERB ...` is the same.

A verb is a module with `main(argv) -> int`. It imports jax in `main`, after it has read its
options, so that its help appears at once.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from cl_jax import __version__
from cl_jax.core import heap, xla
from cl_jax.core.names import nearest
from cl_jax.training import stopping

VERBS = {
    "train": ("cl_jax.tools.train", "train a config, or resume its run"),
    "eval": ("cl_jax.tools.evaluate", "evaluate a run"),
    "embed": ("cl_jax.tools.embed", "features of a folder, with paths and labels, as a file"),
    "search": ("cl_jax.tools.search", "similar pictures, duplicates, clusters, outliers, a subset"),
    "label": ("cl_jax.tools.label", "label all pictures from a few, and say which to label next"),
    "export": ("cl_jax.tools.export", "write a run's encoder for another library"),
    "import": ("cl_jax.tools.import_", "make a run of weights of another library"),
    "plan": ("cl_jax.tools.plan", "memory, arithmetic and traffic of a run, before it runs"),
    "verify": ("cl_jax.tools.verify", "compare configs on 1, 2, 4 and 8 devices"),
    "replay": ("cl_jax.tools.replay", "run a step with a NaN again and find its first tensor"),
    "report": ("cl_jax.tools.report", "one HTML page: curves, a map of the embeddings, findings"),
    "diagnose": ("cl_jax.tools.diagnose", "say from its log whether a run is healthy"),
    "benchmark": ("cl_jax.tools.benchmark", "train and evaluate many methods by one protocol"),
}


def text() -> str:
    """The help of the command itself."""
    width = max(map(len, VERBS))
    return "\n".join(
        (
            "usage: cl-jax VERB [OPTIONS]",
            "",
            "Contrastive and self-supervised learning in JAX.",
            "",
            *(f"  {verb:<{width}}  {help_}" for verb, (_, help_) in VERBS.items()),
            "",
            "example: cl-jax train simclr_v2 --workdir=runs/first",
            "`cl-jax VERB --help` lists the options of a verb with an example.",
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    verb = words[0] if words else "--help"
    if verb in ("-h", "--help", "help"):
        print(text())
        return 0
    if verb == "--version":
        print(f"cl_jax {__version__}")
        return 0
    if verb not in VERBS:
        print(
            f"cl-jax has no verb {verb!r}{nearest(verb, VERBS)}. It has {', '.join(VERBS)}.",
            file=sys.stderr,
        )
        return 2
    try:
        return importlib.import_module(VERBS[verb][0]).main(words[1:])
    except KeyboardInterrupt:
        return stopping.KILLED


def script() -> NoReturn:
    """The program `cl-jax`."""
    if sys.argv[1:2] in (["train"], ["benchmark"]) and not {"-h", "--help"} & set(sys.argv):
        heap.restart_with_huge_pages()
    xla.keep_programs()
    stopping.end_by_ctrl_c()
    stopping.end(main())


if __name__ == "__main__":
    script()
