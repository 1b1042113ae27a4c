"""Runs the evaluators of a config on the States of one run."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from cl_jax.core import parallel, xla
from cl_jax.core.logs import RESERVED
from cl_jax.core.method import Batch, Method, State, views_of
from cl_jax.core.parallel import EACH, SAME
from cl_jax.data import batches
from cl_jax.data.source import Source, Splits
from cl_jax.evals import Evaluator, Given, requirements
from cl_jax.evals.geometry import pair_count


class Evaluation:
    """Evaluates States of one run by the evaluators of its config.

    Features are always clean: no augmentation, running batch statistics. `between` is called after
    each block of examples; it may raise to stop an evaluation.
    """

    def __init__(
        self,
        evaluators: Mapping[str, Evaluator],
        method: Method,
        data: Splits,
        mesh: jax.sharding.Mesh,
        config: ConfigDict,
        workdir: str | Path,
        recipes: Sequence[Any] = (),
        between: Callable[[], None] = lambda: None,
    ):
        self.method, self.data, self.mesh = method, data, mesh
        self.config, self.workdir, self.between = config, Path(workdir), between
        self.recipes = tuple(recipes)
        self.evaluators = requirements.with_data(evaluators, data)
        self.feature = config.evals.get("feature", "h")
        self.wanted = requirements.features_asked(self.evaluators, config)
        self.compiled: dict[Any, Any] = {}
        self.ahead: Future[None] | None = None  # of `compile_ahead`
        # State and features of the final measurement, until `draw`
        self.measured: tuple[State, Given] | None = None

    # What the evaluators need --------------------------------------

    def check(self, state: State) -> None:
        """Checks that all that the evaluators read is there; see `requirements.check`.

        Raises:
          ConfigError: a function, feature, field or source that is missing, with the nearest name.
        """
        batch = few(self.method, self.data.test, self.mesh)
        features = requirements.encoded(self.method, state, batch, self.mesh)
        requirements.check(
            self.evaluators, self.method, self.data, self.config, features, self.recipes
        )

    @property
    def better(self) -> dict[str, int]:
        """{"name/figure": +1 or -1} of what is measured each time."""
        return requirements.measured_always(self.evaluators)

    @property
    def best(self) -> str:
        """The figure by which the best checkpoint is chosen: `config.evals.best`, else the first
        that has a better end; "" for none."""
        return self.config.evals.get("best", "") or next(iter(self.better), "")

    def score(self, results: Mapping[str, float]) -> float | None:
        """The figure `best`, the higher the better; None where it was not measured."""
        if self.best not in results:
            return None
        return self.better[self.best] * results[self.best]

    # Compiling --------------------------------------

    def compile_ahead(self, state: State) -> None:
        """Begins to compile, in a thread, what each evaluation runs over the examples, while the
        caller takes its steps; a second call does nothing.

        On CPUs with a core to spare alone: a GPU's compiler tries kernels on the device, which the
        steps need. Nothing runs, so that no figure depends on it, and what does not compile says
        so where it is called.
        """
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        if self.ahead is not None or not on_cpu or batches.cores() < 2:
            return
        state = jax.tree.map(_shape, dataclasses.replace(state, opt=None))
        thread = ThreadPoolExecutor(1)
        self.ahead = thread.submit(self._compile, state)
        thread.shutdown(wait=False)

    def _compile(self, state: State) -> None:
        needs = [one.needs for one in self.evaluators.values() if one.when == "always"]
        programs: list[tuple[Callable[..., Any], Source, int]] = []
        if any(one.views for one in needs):
            test, size = self.data.test, self.config.batch_size
            if pair_count(test, size) and self._viewed is not None:
                programs += [(self._viewed, test, size)]
        if any(one.features for one in needs):
            size = self.config.evals.batch_size
            programs += [(self._encode, source, size) for source in self.data[:2]]
        for f, source, batch_size in programs:
            size = block_size(source, batch_size, self.mesh)
            block = shape_of_block(self.method, source, size, self.mesh)
            self._program(f).lower(state, block).compile()

    def _program(self, f: Callable[[State, Batch], Any]) -> Any:
        """f, compiled once for `blocks`."""
        if f not in self.compiled:
            self.compiled[f] = over_blocks(f, self.mesh, quick=True)
        return self.compiled[f]

    # Measuring --------------------------------------

    def measure(
        self, state: State, *, final: bool = False, asked: bool = False
    ) -> dict[str, float]:
        """The figures of all evaluators whose time it is, and "eval_seconds"."""
        began = time.perf_counter()
        self.measured = None
        given = self._given(state, final, asked)
        found: dict[str, float] = {}
        for name, one in self.evaluators.items():
            if one.when == "always" or (one.when == "final" and final) or asked:
                found |= self._checked(name, one.measure, given, found)
        if final and any(one.draw is not None for one in self.evaluators.values()):
            self.measured = state, given  # so that `draw` does not encode again
        return found | {"eval_seconds": time.perf_counter() - began}

    def baselines(self, state: State) -> dict[str, float]:
        """What training has to beat: figures of the State before the first step, as
        "untrained/...", and of the data alone."""
        given = self._given(state, False, False, trained=False)
        found: dict[str, float] = {}
        untrained: dict[str, float] = {}
        for name, one in self.evaluators.items():
            if one.baseline is not None:
                found |= self._checked(name, one.baseline, given, found)
            if one.untrained and one.when == "always":
                untrained |= self._checked(name, one.measure, given, untrained)
        return found | {f"untrained/{figure}": value for figure, value in untrained.items()}

    def draw(self, state: State) -> None:
        """The pictures of all evaluators. All processes call it; process 0 writes. One that cannot
        be drawn is a warning: a run has ended by then, and other processes draw on."""
        measured, self.measured = self.measured, None
        if measured is not None and measured[0] is state:
            given = measured[1]._replace(asked=False)
        else:
            given = self._given(state, True, False)
        for name, one in self.evaluators.items():
            if one.draw is None:
                continue
            try:
                one.draw(given)
            except Exception as error:
                logging.warning(
                    "the picture of %s could not be drawn: %s: %s",
                    name,
                    type(error).__name__,
                    error,
                )

    def encode_all(self, f: Callable[[State, Batch], Any], state: State) -> Any:
        """The training split through f, in order: what a method's `refresh` reads."""
        return self.rows(f, state, self.data.train)

    def rows(
        self, f: Callable[[State, Batch], Any], state: State, source: Source, batch_size: int = 0
    ) -> Any:
        """f(State, batch) over a source in order, as NumPy rows [N, ...]; f is compiled once."""
        state = dataclasses.replace(state, opt=None)  # which nothing reads that encodes
        parts = []
        for part in blocks(
            self._program(f),
            state,
            source,
            self.mesh,
            fields=needed_fields(self.method, source),
            batch_size=batch_size or self.config.evals.batch_size,
            workers=self.config.get("loading", {}).get("workers", 0),
        ):
            parts.append(part)
            self.between()
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def _given(self, state: State, final: bool, asked: bool, trained: bool = True) -> Given:
        if self.ahead is not None:
            wait([self.ahead])  # or both would compile the same
        encoded: dict[int, dict[str, np.ndarray]] = {}
        viewed: dict[int, Sequence[dict[str, np.ndarray]] | None] = {}

        def features(source: Source, name: str) -> np.ndarray:
            if id(source) not in encoded:
                encoded[id(source)] = self.rows(self._encode, state, source)
            return encoded[id(source)][name or self.feature]

        def rows(name: str, source: Source) -> Any:
            return self.rows(self.method.functions[name], state, source)

        def views(source: Source, name: str, train: bool) -> np.ndarray | None:
            f = self._viewed
            if id(source) not in viewed:
                viewed[id(source)] = f and self.rows(f, state, source, self.config.batch_size)
            found = viewed[id(source)]
            return None if found is None else found[train][name or self.feature]

        return Given(
            data=self.data,
            features=features,
            rows=rows,
            views=views,
            method=self.method,
            state=state,
            feature=self.feature,
            recipes=self.recipes,
            batch_size=self.config.batch_size,
            final=final,
            asked=asked,
            trained=trained,
            seed=self.config.seed,
            workdir=self.workdir,
        )

    def _encode(self, state: State, batch: Batch) -> dict[str, jax.Array]:
        """The features that evaluators read, and no others: all would not fit in memory."""
        found = self.method.encode(state, batch)
        return {name: found[name] for name in self.wanted if name in found}

    @functools.cached_property
    def _viewed(self) -> Callable[[State, Batch], list[dict[str, jax.Array]]] | None:
        """(State, batch) -> features of the first training view, of the network as it is evaluated
        and as it is trained: one program, which draws the view once. None where the network does
        not take it as it takes a clean input. Traces the views: not before an evaluator reads
        them."""
        method = self.method
        if method.views is None or method.features is None or method.clean is None:
            return None
        batch = few(method, self.data.test, self.mesh)
        if set(method.needs) - set(batch):
            return None
        drawn = first_view(method, batch, self.mesh)
        if drawn is None:
            return None
        clean = jax.eval_shape(parallel.lift(method.clean, self.mesh, EACH, EACH), batch)
        if jax.tree.map(_kind, clean) != jax.tree.map(_kind, drawn):
            return None

        def features(state: State, batch: Batch) -> list[dict[str, jax.Array]]:
            inputs = views_of(method, batch, jax.random.key(0))[0]
            found = [
                method.features(*method.evaluated(state), inputs, train)[0]
                for train in (False, True)
            ]
            return [{name: one[name] for name in self.wanted if name in one} for one in found]

        return features

    def _checked(
        self,
        name: str,
        measure: Callable[[Given], dict[str, float]],
        given: Given,
        before: Mapping[str, float],
    ) -> dict[str, float]:
        """The figures of an evaluator that the log can hold. Others are named and left out, so that
        those of the other evaluators are not lost: what is NaN or inf, as of a probe that failed,
        or not a number, or has a name of the trainer's own or of a figure measured `before`. An
        error says how the run goes on without them."""
        try:
            found = measure(given)
        except Exception as error:
            error.add_note(
                f"This was the evaluator evals.protocols.{name}. A run saves before it evaluates: "
                f"the same command with {requirements.setting_without(name)} goes on from there."
            )
            raise
        if not isinstance(found, Mapping):
            logging.warning(
                "evals.protocols.%s returned a %s and is left out; expected {figure: number}.",
                name,
                type(found).__name__,
            )
            return {}
        kept: dict[str, float] = {}
        for figure, value in found.items():
            number = _number(value)
            if figure in RESERVED:
                logging.warning("%s It is left out.", requirements.reserved(name, figure))
            elif figure in before:
                logging.warning(
                    "evals.protocols.%s: %s is left out: another evaluator has measured a figure "
                    "of this name.",
                    name,
                    figure,
                )
            elif number is None:
                logging.warning(
                    "evals.protocols.%s: %s is %r and left out; expected a number.",
                    name,
                    figure,
                    value,
                )
            elif not np.isfinite(number):
                logging.warning("%s: %s is NaN or inf and left out", name, figure)
            else:
                kept[figure] = number
        return kept


def few(method: Method, source: Source, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """The shapes of a block of two rows a device, for a trace."""
    return shape_of_block(method, source, 2 * mesh.size, mesh)


def _number(value: Any) -> float | None:
    """A number of Python, NumPy or jax; None of anything else."""
    try:
        return None if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return None


def first_view(method: Method, batch: dict[str, Any], mesh: jax.sharding.Mesh) -> Any:
    """The first training view of a batch, as shapes; nothing is compiled. None where training draws
    none; or, as a warning says, where it reads more than the fields of the data or `views` does not
    return a list.

    Args:
      batch: arrays, or their shapes and types.
    """
    if method.views is None:
        return None

    def first(batch: Batch) -> Any:
        return views_of(method, batch, jax.random.key(0))[0]

    try:
        return jax.eval_shape(parallel.lift(first, mesh, EACH, EACH), batch)
    except KeyError as missing:  # a step gives its views more, such as an adversarial one
        logging.warning(
            "figures of training views are left out: the method's views read %s, which is no "
            "field of the data that the method needs; these are %s.",
            missing,
            ", ".join(sorted(method.needs)),
        )
    except ValueError as error:
        logging.warning("figures of training views are left out: %s", error)
    return None


def over_blocks(
    f: Callable[[State, Batch], Any], mesh: jax.sharding.Mesh, quick: bool = False
) -> Callable[..., Any]:
    """f(State, batch), compiled over the devices of a mesh for `blocks`. `quick`: on a CPU in two
    thirds of the usual time, for a program that takes about as long for a few thousand examples;
    its results differ in the last bits."""

    def placed(state: State, batch: Batch) -> Any:
        return f(state, batch), batch["place"]

    options = xla.optimised(2, mesh.devices.flat[0].platform) if quick else None
    compiled: Callable[..., Any] = parallel.lift(placed, mesh, (SAME, EACH), EACH, compiler=options)
    return compiled


def blocks(
    compiled: Callable[..., Any],
    state: State,
    source: Source,
    mesh: jax.sharding.Mesh,
    *,
    fields: Sequence[str],
    batch_size: int,
    workers: int = 0,
) -> Iterator[Any]:
    """The results of a function over a source in order, one block of examples after the other.

    Each process reads its share of each block. The compiled function returns every row's place in
    the block beside it, so that the order does not depend on how the mesh orders devices.

    Args:
      compiled: by `over_blocks`.
      fields: of the source that the function reads.
      batch_size: examples of a block, rounded up to a multiple of the devices.
      workers: threads that read examples; 0 for one a core.

    Yields:
      NumPy rows [batch_size, ...]; fewer in the last block.
    """
    size = block_size(source, batch_size, mesh)
    local = batches.local_rows(size, jax.process_index(), jax.process_count())

    def rows(start: int, result: Any) -> Any:
        out, place = parallel.fetch(result)
        real = np.argsort(place)[: source.size - start]
        return jax.tree.map(lambda x: x[real], out)

    waiting = None  # the devices work on a block while the host takes the one before
    for number, batch in enumerate(batches.sequential(source, size, rows=local, workers=workers)):
        given = {name: batch[name] for name in (*fields, "id")}
        given["place"] = np.arange(size, dtype=np.int32)[local]
        result = compiled(state, parallel.place_batch(given, mesh))
        if waiting is not None:
            yield rows(*waiting)
        waiting = number * size, result
    yield rows(*waiting)


def block_size(source: Source, batch_size: int, mesh: jax.sharding.Mesh) -> int:
    """Examples of a block of `blocks`."""
    return -(-min(batch_size, source.size) // mesh.size) * mesh.size


def shape_of_block(
    method: Method, source: Source, size: int, mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and places of a block of `blocks`, as its compiled function gets it."""
    fields = (*needed_fields(method, source), "id", "place")
    example: dict[str, Any] = {**source.read(0), "id": np.int32(0), "place": np.int32(0)}
    sharding = jax.sharding.NamedSharding(mesh, EACH)

    def rows(x: Any) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(np.asarray(x).dtype)
        return jax.ShapeDtypeStruct((size, *np.shape(x)), dtype, sharding=sharding)

    return {name: rows(example[name]) for name in fields}


def needed_fields(method: Method, source: Source) -> list[str]:
    """The fields of a source that the functions of a method read."""
    there = source.arrays if source.arrays is not None else source.read(0)
    return [name for name in method.needs if name in there]


def _shape(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _kind(x: Any) -> tuple[Any, ...]:
    return x.shape, x.dtype
