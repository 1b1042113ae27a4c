"""Whether the method, data and config of a run have all that its evaluators read; asked before the
run begins."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from cl_jax.core import parallel
from cl_jax.core.errors import ConfigError
from cl_jax.core.logs import RESERVED
from cl_jax.core.method import Method, State
from cl_jax.core.names import nearest
from cl_jax.core.parallel import EACH, SAME
from cl_jax.data.source import Source, Splits
from cl_jax.evals import Evaluator, _labels


def check(
    evaluators: Mapping[str, Evaluator],
    method: Method,
    data: Splits,
    config: ConfigDict,
    features: Sequence[str] | None,
    views: Sequence[Any] = (),
) -> None:
    """Checks that all that evaluators read is there.

    Args:
      evaluators: those that the data have labels and sources for (`with_data`).
      features: what "encode" gives (`encoded`); None for not to be looked at.
      views: of training.

    Raises:
      ConfigError: a function, feature, field or source that is missing, with the nearest name; a
        figure `evals.best` that is not measured; a figure with a name of the trainer's own, or
        that two evaluators measure; data or a method that an evaluator refuses.
    """
    for name in () if features is None else features_asked(evaluators, config):
        if name not in features:
            raise ConfigError(
                f"the evaluation reads the feature {name!r} (config.evals.feature or that "
                f"of a protocol), which the method does not have{nearest(name, features)}; it has "
                f"{', '.join(sorted(features))}."
            )
    fields = set(data.train.read(0)) & set(data.test.read(0))
    of: dict[str, str] = {}  # which evaluator a figure is of
    for name, one in evaluators.items():
        for figure in (*one.better, *one.figures):
            if figure in RESERVED:
                raise ConfigError(reserved(name, figure))
            if of.setdefault(figure, name) != name:
                raise ConfigError(
                    f"evals.protocols.{of[figure]} and evals.protocols.{name} both measure "
                    f"{figure!r}, and one would overwrite the other. Give one another name, "
                    f"--config.evals.protocols.{name}.figure=NAME, if its evaluator has this "
                    f"setting; {setting_without(name)} leaves it out."
                )
        wanted = (
            ("function of the method", one.needs.functions, method.functions),
            ("field of the data", one.needs.fields, fields),
            ("further source of the data", one.needs.sources, data.more),
        )
        for kind, asked, there in wanted:
            for what in asked:
                if what not in there:
                    raise ConfigError(
                        f"evals.protocols.{name} reads the {kind} {what!r}, which is missing"
                        f"{nearest(what, there)}; there are "
                        f"{', '.join(sorted(there)) or 'none'}."
                    )
    best, better = config.evals.get("best", ""), measured_always(evaluators)
    if best and best not in better:
        raise ConfigError(
            f"evals.best={best!r} is not measured{nearest(best, better)}; the protocols "
            f"measure {', '.join(better) or 'nothing that has a better end'}."
        )
    for name, one in evaluators.items():
        try:
            if one.check is not None:
                one.check(data)
            if one.check_method is not None:
                one.check_method(method, views)
        except ValueError as error:
            raise ConfigError(
                f"evals.protocols.{name}: {error} {setting_without(name)} leaves it out."
            ) from error


def with_data(
    evaluators: Mapping[str, Evaluator], data: Splits, *, quiet: bool = False
) -> dict[str, Evaluator]:
    """The evaluators whose labels and kinds of further sources the data have, as their `Needs` say;
    `quiet`: without a word on the others in the log."""
    found = {}
    kinds = {key.split("/")[0] for key in data.more}
    for name, one in evaluators.items():
        if one.needs.kinds and not kinds & set(one.needs.kinds):
            if not quiet:
                logging.warning(
                    "evals.protocols.%s is left out: %s has no %s; give a file of them as data.%s.",
                    name,
                    data.train.name,
                    " or ".join(one.needs.kinds),
                    one.needs.kinds[0],
                )
            continue
        # Figures over a kind of source that the data lack are not measured.
        lacking = set(one.needs.kinds) - kinds
        better = {key: way for key, way in one.better.items() if key.split("/")[0] not in lacking}
        one = one._replace(better=better)
        missing = [
            label
            for label in one.needs.labels
            if any(label not in source.sizes for source in data[:2])
        ]
        if not missing:
            empty = [
                (label, part)
                for label in one.needs.labels
                for part in one.needs.labelled
                if not _any_labelled(getattr(data, part), label)
            ]
            if not empty:
                found[name] = one
            elif not quiet:
                logging.warning(
                    "evals.protocols.%s is left out: no example of the %s part has a %s; all are "
                    "-1.",
                    name,
                    *reversed(empty[0]),
                )
        elif not quiet:
            there = sorted(set(data.train.sizes) & set(data.test.sizes))
            logging.log(
                logging.WARNING if there else logging.INFO,  # without labels it is expected
                "evals.protocols.%s is left out: the data have no %s%s; they have %s.",
                name,
                ", ".join(missing),
                nearest(missing[0], there),
                ", ".join(there) or "no labels",
            )
    return found


def _any_labelled(source: Source, label: str) -> bool:
    """Whether an example has the label; True where all would have to be read to find out."""
    known = _labels.at_hand(source, label)
    return known is None or known.size > 0


def features_asked(evaluators: Mapping[str, Evaluator], config: ConfigDict) -> tuple[str, ...]:
    """The names of the features of "encode" that are read: the run's own and those of evaluators,
    sorted."""
    own = config.evals.get("feature", "h")
    asked = {own, *(name for one in evaluators.values() for name in one.needs.features)}
    return tuple(sorted(asked - {""}))


def measured_always(evaluators: Mapping[str, Evaluator]) -> dict[str, int]:
    """{"name/figure": +1 or -1} of what is measured at each evaluation."""
    return {
        figure: sign
        for one in evaluators.values()
        if one.when == "always"
        for figure, sign in one.better.items()
    }


def encoded(
    method: Method, state: State, batch: dict[str, Any], mesh: jax.sharding.Mesh
) -> list[str]:
    """The names of the features that "encode" gives; nothing is compiled.

    Args:
      state, batch: arrays, or their shapes and types.
    """
    lifted = parallel.lift(method.encode, mesh, (SAME, EACH), EACH)
    return list(jax.eval_shape(lifted, state, batch))


def setting_without(name: str) -> str:
    """The setting that leaves an evaluator out."""
    return f"--config.evals.protocols.{name}=None"


def reserved(name: str, figure: str) -> str:
    """What to say of an evaluator's figure with a name of the trainer's own."""
    return (
        f"evals.protocols.{name} measures {figure!r}, the name of what the trainer logs itself; "
        f"give it another one, such as '{name}/{figure}'. The trainer's are {', '.join(RESERVED)}."
    )
