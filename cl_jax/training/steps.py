"""From a State to the next: which batch, how many steps at once, and what happens to numbers that
are not finite."""

import dataclasses
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from jax import lax
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from cl_jax.core import heap, parallel, sharded
from cl_jax.core.logs import RESERVED
from cl_jax.core.method import EncodeAll, Method, State, Target, check_metrics
from cl_jax.core.parallel import AXIS, EACH, FIRST, SAME
from cl_jax.data import batches
from cl_jax.training import programs
from cl_jax.training.experiment import Built, fields_of, loading_of

IN_FLIGHT = 3  # host batches that may wait on the device for their step
Metrics = dict[str, jax.Array]


class Stepper:
    """Advances a State through the run's batches.

    A data set that fits lies on the device as uint8, and up to `dispatch_steps` steps are one
    compiled program that scans over their example ids; other sets are loaded on the host, one batch
    a step. Both see the same batches. How steps are grouped depends on their number alone (and
    where `until` cuts), so a resumed run computes bit for bit what an unbroken one does.

    A step whose loss or gradient norm is not finite leaves the State as it was, `step` included,
    and so do all after it: whoever reads the metrics later holds the State before that step.
    `nonfinite="ignore"` lets it through.
    """

    def __init__(self, built: Built, config: ConfigDict, start: int):
        self.method, self.data, self.run, self.mesh = built[:4]
        self.config = config
        self.seed, self.step = config.seed, start
        self.wait_seconds = 0.0  # spent waiting for the host's data
        self.compile_seconds = 0.0  # 0 until something is compiled
        self.program: Any = None  # of the step, once it is compiled
        self.calls: dict[int, Callable[..., Any]] = {}  # steps of a dispatch -> its program
        self.epoch_order: np.ndarray | None = None  # by the method's `order`
        self.ordered = -1  # the epoch that it is of
        self.key = parallel.replicate(jax.random.key(self.seed), self.mesh)
        self.fields = fields_of(self.method, self.data.train.read(0))
        self.loading = loading_of(config)
        limit = self.loading.resident_limit(device_bytes())
        resident = batches.resident(self.data.train, max_bytes=limit)
        self.rows = None
        step = step_of(self.method, config)
        if resident is not None:
            self.rows = parallel.replicate(
                {name: resident[name] for name in self.fields}, self.mesh
            )
            self.one = parallel.lift(
                step.indexed,
                self.mesh,
                (SAME, SAME, EACH, SAME, SAME),
                (FIRST, SAME),
                donate=(0,),
            )
            self.many = parallel.lift(
                step.scanned,
                self.mesh,
                (SAME, SAME, P(None, AXIS), SAME, SAME),
                (FIRST, SAME),
                donate=(0,),
            )
        else:
            self.one = parallel.lift(
                step.update, self.mesh, (SAME, EACH, SAME, SAME), (FIRST, SAME), donate=(0,)
            )
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        asked = config.dispatch_steps or (1 if on_cpu else config.log_steps)
        self.at_once = asked if self.rows is not None else 1
        if self.at_once > 1 and on_cpu:
            logging.warning(
                "dispatch_steps=%d on a CPU: convolutions inside a loop are compiled to programs "
                "about 20 times "
                "slower; 1 is faster, and the same run.",
                self.at_once,
            )
        if asked != self.at_once and config.dispatch_steps:
            logging.warning(
                "dispatch_steps=%d is 1 here: %s does not lie on the device and is loaded a batch "
                "a step.",
                asked,
                self.data.train.name,
            )
        self.loaded: Iterator[dict[str, np.ndarray]] | None = None
        self.flying: deque[jax.Array] = deque()

    def __call__(self, state: State) -> tuple[State, Metrics]:
        """One step."""
        state, stacked = self.advance(state, self.step + 1)
        return state, jax.tree.map(lambda x: x[0], stacked)

    def advance(self, state: State, until: int) -> tuple[State, Metrics]:
        """The next steps, as many as one dispatch takes and none at or beyond `until`; metrics are
        stacked, [steps]."""
        self._order(state)
        within = self.step % self.run.steps_per_epoch
        count = self.at_once
        if within % count or within + count > self.run.steps_per_epoch or self.step + count > until:
            count = 1
        expected = np.int32(self.step)
        if self.rows is None:
            batch = self._load(state)
            state, metrics = self._dispatch(self.one, 1, state, batch, self.key, expected)
            metrics = jax.tree.map(lambda x: x[None], metrics)
            self.flying.append(metrics["loss"])
            if len(self.flying) > IN_FLIGHT:
                self.flying.popleft().block_until_ready()
        elif count == 1:
            ids = self._place({"id": self._ids(self.step)}, EACH)["id"]
            state, metrics = self._dispatch(self.one, 1, state, self.rows, ids, self.key, expected)
            metrics = jax.tree.map(lambda x: x[None], metrics)
        else:
            stacked = np.stack([self._ids(self.step + i) for i in range(count)])
            ids = self._place({"id": stacked}, P(None, AXIS))["id"]
            state, metrics = self._dispatch(
                self.many, count, state, self.rows, ids, self.key, expected
            )
        self.step += count
        return state, metrics

    def again(self, state: State, count: int) -> Metrics:
        """The metrics of one step from `state`, re-run by the program that does it alone or
        first of `count`."""
        if count == 1:
            return self(state)[1]
        self._order(state)
        ids = self._place({"id": np.stack([self._ids(self.step)] * count)}, P(None, AXIS))["id"]
        expected = np.int32(self.step)
        _, metrics = self._dispatch(self.many, count, state, self.rows, ids, self.key, expected)
        return jax.tree.map(lambda x: x[0], metrics)

    def skip(self, state: State) -> State:
        """Skips the failed step and resumes after its batch: what followed it is run again."""
        self.step = int(state.step) + 1
        self.loaded = None
        return dataclasses.replace(
            state,
            step=state.step + 1,
            opt=_one_later(state.opt),
            target=_moved_once_more(state.target),
        )

    def ids(self, step: int) -> np.ndarray:
        """The examples [B] of the global batch of a step of the current epoch."""
        return batches.ids_at(
            step,
            seed=self.seed,
            size=self.run.size,
            batch_size=self.run.batch_size,
            epoch_order=self.epoch_order,
            epoch_steps=self.run.steps_per_epoch,
        )

    # On the host --------------------------------------

    def _dispatch(self, lifted: Any, count: int, *arguments: Any) -> tuple[State, Metrics]:
        """Calls the program of so many steps, which is compiled, or read, at its first call."""
        if count not in self.calls:
            began = time.perf_counter()
            name = "one" if lifted is self.one else "many"
            program = programs.compiled(name, lifted, arguments, self.config, self.run)
            self.calls[count], self.program = program, self.program or program
            self.compile_seconds += time.perf_counter() - began
            heap.give_back()
        try:
            found: tuple[State, Metrics] = self.calls[count](*arguments)
        except (TypeError, ValueError):  # it takes arrays that are placed as its first ones alone
            self.calls[count] = lifted
            found = lifted(*arguments)
        return found

    # Computed when read: XLA's analysis takes a tenth of a second for a small network.

    @functools.cached_property
    def flops(self) -> float:
        """Of one step on one device, after the first step."""
        return float((self.program.cost_analysis() or {}).get("flops", 0.0))

    @functools.cached_property
    def temporary_bytes(self) -> int:
        """Of one step on one device, after the first step."""
        memory = self.program.memory_analysis()
        return 0 if memory is None else int(memory.temp_size_in_bytes)

    def _ids(self, step: int) -> np.ndarray:
        return self.ids(step)[
            batches.local_rows(self.run.batch_size, jax.process_index(), jax.process_count())
        ]

    def _place(self, rows: dict[str, np.ndarray], spec: P) -> dict[str, jax.Array]:
        return parallel.place_batch(rows, self.mesh, spec)

    def _order(self, state: State) -> None:
        run = self.run
        epoch = self.step // run.steps_per_epoch
        if self.method.order is None or self.ordered == epoch:
            return
        ids = np.asarray(self.method.order(state, epoch, self.seed))
        expected = (run.steps_per_epoch * run.batch_size,)
        if ids.shape != expected or ids.dtype.kind not in "iu":
            raise ValueError(
                f"the method's order of epoch {epoch} is {ids.dtype}{list(ids.shape)}; expected "
                f"integers {list(expected)}: {run.steps_per_epoch} batches of {run.batch_size}."
            )
        if not (0 <= ids.min() and ids.max() < run.size):  # on a device such rows are clamped
            raise ValueError(
                f"the method's order of epoch {epoch} goes from {ids.min()} to {ids.max()}; "
                f"expected numbers of examples, 0 to {run.size - 1}."
            )
        self.epoch_order, self.ordered = ids.astype(np.int32), epoch
        self.loaded = None

    def _load(self, state: State) -> dict[str, jax.Array]:
        if self.loaded is None:
            # With an order of its own, the batches of later epochs are not known yet.
            end = (
                self.run.total_steps
                if self.epoch_order is None
                else (self.ordered + 1) * self.run.steps_per_epoch
            )
            self.loaded = batches.host_batches(
                self.data.train,
                batch_size=self.run.batch_size,
                seed=self.seed,
                start_step=self.step,
                steps=end,
                epoch_order=self.epoch_order,
                epoch_steps=self.run.steps_per_epoch,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                workers=self.loading.workers,
                worker_processes=self.loading.worker_processes,
                prefetch=self.loading.prefetch,
            )
        began = time.perf_counter()
        batch = next(self.loaded)
        self.wait_seconds += time.perf_counter() - began
        return self._place({name: batch[name] for name in (*self.fields, "id")}, EACH)


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step does on each device with its rows. method: its name, for messages."""

    advance: Callable[[State, dict[str, jax.Array], jax.Array], tuple[State, Metrics]]
    guard: bool
    method: str = ""

    def update(
        self, state: State, batch: dict[str, jax.Array], key: jax.Array, expected: jax.Array
    ) -> tuple[State, Metrics]:
        after, metrics = self.advance(state, batch, jax.random.fold_in(key, state.step))
        _check_metrics(metrics, self.method)
        check_state(state, after, "a step")
        # A State that stood still would be taken for one after a step that failed.
        after = dataclasses.replace(after, step=state.step + 1)
        if not self.guard:
            return sharded.settle(after, AXIS), metrics
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics.get("grad_norm", 0.0))
        go = finite & (state.step == expected)
        return sharded.settle(sharded.choose(go, after, state), AXIS), metrics

    def indexed(
        self,
        state: State,
        rows: dict[str, jax.Array],
        ids: jax.Array,
        key: jax.Array,
        expected: jax.Array,
    ) -> tuple[State, Metrics]:
        batch = {name: values[ids] for name, values in rows.items()} | {"id": ids}
        return self.update(state, batch, key, expected)

    def scanned(
        self,
        state: State,
        rows: dict[str, jax.Array],
        ids: jax.Array,
        key: jax.Array,
        expected: jax.Array,
    ) -> tuple[State, Metrics]:
        def body(state, given):
            offset, ids = given
            return self.indexed(state, rows, ids, key, expected + offset)

        return lax.scan(body, state, (jnp.arange(ids.shape[0], dtype=jnp.int32), ids))


def step_of(method: Method, config: ConfigDict) -> Step:
    """The step of a method under a config."""
    return Step(
        method.update, config.nonfinite != "ignore", config.get("method", {}).get("name", "")
    )


def _check_metrics(metrics: Metrics, method: str) -> None:
    check_metrics(metrics, f"the method {method}" if method else "the method")
    for name, value in metrics.items():
        if name in RESERVED:
            raise ValueError(
                f"the metric {name!r} has the name of one that the trainer logs itself; give it "
                f"another one. The trainer's are {', '.join(RESERVED)}."
            )
        number = isinstance(value, (jax.Array, np.ndarray, np.generic, int, float))
        if not number or jnp.shape(value) != ():
            raise ValueError(f"the metric {name!r} is {_kind(value)}; expected a scalar.")


def check_state(before: State, after: State, by: str) -> None:
    """Checks that a step or a refresh returned a State of the same structure, shapes and types:
    another one could not be restored, and the next step would be compiled again.

    Raises:
      ValueError: names the first array that differs.
    """
    if not isinstance(after, State):
        raise ValueError(f"{by} returned a {type(after).__name__}; expected the State.")
    sides = [
        dict(jax.tree_util.tree_leaves_with_path(state, is_leaf=sharded.is_sharded))
        for state in (before, after)
    ]
    for path in dict.fromkeys((*sides[0], *sides[1])):
        old, new = (_kind(side[path]) if path in side else "missing" for side in sides)
        if old != new:
            raise ValueError(
                f"{jax.tree_util.keystr(path)[1:]} of the State is {old} before {by} and {new} "
                "after it; expected the same structure, shapes and types."
            )


def refreshed(
    refresh: Callable[[State, EncodeAll, int], State],
    state: State,
    encode_all: EncodeAll,
    epoch: int,
) -> State:
    """The State after a method's `refresh`, each array placed as the step takes it.

    Raises:
      ValueError: another structure, other shapes or types than before.
    """
    after = refresh(state, encode_all, epoch)
    check_state(state, after, "refresh")
    placed: State = parallel.place_as(after, state)
    return placed


def _kind(value: Any) -> str:
    if not hasattr(value, "dtype"):
        return f"a {type(value).__name__}"
    return f"{'Sharded ' if sharded.is_sharded(value) else ''}{value.dtype}{list(value.shape)}"


def device_bytes() -> int | None:
    """Memory of one of this machine's devices, all of it; None where that is not told. The devices
    of a run are alike, so that all its processes decide alike what lies on them."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")


def _one_later(opt: Any) -> Any:
    """An optimiser's state in which every schedule is one step further, as the log's is. A state
    that is nothing but a count belongs to a schedule; counts beside moments (Adam's) are of the
    updates made."""

    def clock(node: Any) -> bool:
        return isinstance(node, optax.ConditionallyMaskState) or (
            isinstance(node, tuple) and getattr(node, "_fields", ()) == ("count",)
        )

    def later(node: Any) -> Any:
        if isinstance(node, optax.ConditionallyMaskState):  # frozen until a step
            counts = [leaf for leaf in jax.tree.leaves(node.inner_state) if jnp.ndim(leaf) == 0]
            moves = any(int(count) > 0 for count in counts)
            inner = _one_later(node.inner_state) if moves else node.inner_state
            return node._replace(step=node.step + 1, inner_state=inner)
        return node._replace(count=node.count + 1) if clock(node) else node

    return jax.tree.map(later, opt, is_leaf=clock)


def _moved_once_more(target: Any) -> Any:
    """The target, or those of a population's members, of which some may have none, with the count
    of its moves one higher: schedules of its momentum follow the log's step too."""

    def one(node: Any) -> Any:
        if not isinstance(node, Target):
            return node
        return dataclasses.replace(node, ema=node.ema._replace(count=node.ema.count + 1))

    return jax.tree.map(one, target, is_leaf=lambda node: isinstance(node, Target))


def stepper(built: Built, config: ConfigDict, start: int) -> Stepper:
    """The steps of a run from step `start` on."""
    return Stepper(built, config, start)
