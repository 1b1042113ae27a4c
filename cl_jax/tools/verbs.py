"""What the verbs on a trained run have in common: their options, and how they end."""

import argparse
from collections.abc import Callable
from typing import Any


def parser(verb: str, text: str | None) -> argparse.ArgumentParser:
    """The parser of `cl-jax VERB`; text is the verb's docstring."""
    return argparse.ArgumentParser(
        f"cl-jax {verb}",
        description=text,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def of_run(verb: str, text: str | None) -> argparse.ArgumentParser:
    """The same, with RUN and which of its checkpoints."""
    options = parser(verb, text)
    options.add_argument("run", metavar="RUN", help="the workdir of a run, or of one of its stages")
    options.add_argument(
        "--best", action="store_true", help="the best checkpoint by its evaluations, not the newest"
    )
    return options


def with_feature(options: argparse.ArgumentParser) -> None:
    """Adds --feature, one of the network's."""
    options.add_argument(
        "--feature", default="", help="of the network (default: the one that evaluations read)"
    )


def called(f: Callable[[Any], int], args: argparse.Namespace) -> int:
    """The exit status of a verb: a mistake of the user is one sentence and status 1."""
    from cl_jax.tools import train
    from cl_jax.training import configs

    configs.see_working_folder()
    train.prepare()
    try:
        return f(args)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        return train.failed(error)
