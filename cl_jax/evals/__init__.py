"""Evaluators: what a trained State is worth. `cl_jax/evals/<name>.py` has `make(**section) ->
Evaluator`; `config.evals.protocols = {name: section}` chooses them (docs/guides/evals.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cl_jax.data.source import Source, Splits

if TYPE_CHECKING:  # kNN and geometry can be imported where only jax and numpy are installed
    from cl_jax.core.method import Method, State


class Given(NamedTuple):
    """One State, as evaluators see it.

    data: the run's sources.
    features: (Source, name) -> [N, D], a feature of "encode" of every example, in order; "" is the
      run's own, `config.evals.feature`. Computed once for all evaluators.
    rows: (name of a function, Source) -> NumPy rows, in order, over all devices.
    views: (Source, name, train) -> [N, D], the same feature of the first training view of every
      example, in batches of the run's size; `train`: with the statistics of each batch. None where
      the network does not take a view as it takes a clean input.
    feature: the name of the run's own feature.
    recipes: the run's training views, as its config writes them.
    batch_size: of the run, global.
    final: the run has ended. asked: evaluated on request (`cl-jax eval`). trained: False for the
      State before the first step.
    seed: the run's. workdir: where pictures go.
    """

    data: Splits
    features: Callable[[Source, str], np.ndarray]
    rows: Callable[[str, Source], Any]
    views: Callable[[Source, str, bool], np.ndarray | None]
    method: Method
    state: State
    feature: str
    recipes: tuple[Any, ...]
    batch_size: int
    final: bool
    asked: bool
    trained: bool
    seed: int
    workdir: Path


class Needs(NamedTuple):
    """What an evaluator reads, checked before the first step.

    functions: of the method. features: of "encode"; "" is the run's own. fields: of the training
    and test examples. labels: fields of theirs that have classes; where the data lack one, the
    evaluator is left out. labelled: of "train" and "test", the parts that need an example with each
    of these labels; where all are -1, the evaluator is left out. sources: names in `Splits.more`.
    kinds: beginnings of such names up to a slash, "sts" of "sts/STS12"; where the data have no
    source of any of them, the evaluator is left out. The first is also the key of
    `config.data` that names the file. views: features of training views, too.
    """

    functions: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    labelled: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    views: bool = False


class Evaluator(NamedTuple):
    """One protocol of evaluation.

    measure:   Given -> {"name/figure": number}. Values of another type, NaN and inf, and names
               that the trainer logs itself (`core.logs.RESERVED`) are left out with a warning.
    needs:     what it reads.
    when:      "always"; "final", at the end of a run and on request; "asked", on request alone.
    untrained: also measured of the State before the first step, as "untrained/name/figure".
    better:    {"name/figure": +1 or -1}, which way is better: what `config.evals.best` may name,
               and how the benchmark's table, sweeps, the curve and the diagnosis read it.
    figures:   names of figures without a better end. No two evaluators of a run may have a name in
               `better` or `figures` in common.
    titles:    {"name/figure": text} for the summary; "%" in the text stands for a share in percent.
    baseline:  Given -> {"name/figure": value}, figures of the data alone, without a network;
               measured once.
    draw:      Given -> None, pictures in the workdir, at the end of a run.
    check:     Splits -> None; raises ValueError where `measure` would refuse these data: too few
               examples of a class, images of another shape. Called when the run is built, of data
               that have what `needs` names, so that no run trains up to an evaluation that fails.
               It reads what is at hand, labels and one example, and not the whole data.
    check_method: (Method, the views of training) -> None; the same of the method.
    """

    measure: Callable[[Given], dict[str, float]]
    needs: Needs = Needs()
    when: str = "always"
    untrained: bool = True
    better: Mapping[str, int] = MappingProxyType({})
    titles: Mapping[str, str] = MappingProxyType({})
    baseline: Callable[[Given], dict[str, float]] | None = None
    draw: Callable[[Given], None] | None = None
    check: Callable[[Splits], None] | None = None
    figures: tuple[str, ...] = ()
    check_method: Callable[[Method, Sequence[Any]], None] | None = None
