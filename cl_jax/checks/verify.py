"""Checks that a config trains to the same numbers on any number of devices: `cl-jax verify`.

Every number of devices trains on the same global batches. The loss and gradient norm of every step,
and parameters, optimiser, target, memory and batch statistics after the last step, may differ from
one device's by as much as the order of floating-point sums explains. That much is measured: one
device trains again, NUDGES times, from parameters that are one unit in the last place (ulp) higher
or lower at random. Such a change is of the size of one rounding, and the difference between two of
these runs is what rounding may grow to in this method. The bound on an absolute difference is

    FACTOR x (lower quartile of the differences between any two of the runs)
      + FLOOR x float32's epsilon x (largest magnitude)

and zero for integers. A bound above LOOSEST of the magnitude is too loose to show a fault: the
check is then repeated with the next seed, up to SEEDS times, and fails if none gives a bound.

ReLU, a nearest neighbour and the edge of a cluster are not continuous: rounding sometimes tips one
over, and two runs then differ by more. So the bound uses the quartile, and a number of devices that
breaks it trains again from each nudged start and is compared with one device from the same start.
A tipped unit depends on the start; a fault is there from every start. A nudge does not change the
images, whose last bit may depend on how many of them a device has, so the next seed is tried too,
up to SEEDS times. A fault is there at every seed.

The optimiser is SGD with momentum at a small rate. Gradients are averaged before an optimiser sees
them, so no optimiser can depend on the number of devices. But Adam makes steps of full length of
the rounding where the true gradient is zero, and large steps let rounding grow without bound. SGD's
momentum is the sum of the gradients, so it shows a wrong scale, which Adam and LARS hide."""

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.extend
import numpy as np
from ml_collections import ConfigDict

from cl_jax.core import parallel
from cl_jax.core.errors import ConfigError
from cl_jax.core.method import Stage, State, check_metrics
from cl_jax.evals.evaluation import Evaluation
from cl_jax.training import configs
from cl_jax.training.experiment import Built, build, initial_state, parameters
from cl_jax.training.stages import stages
from cl_jax.training.steps import refreshed, stepper
from cl_jax.training.workdir import replace_text

DEVICES = (1, 2, 4, 8)
STEPS = 10
NUDGES = 7
SEEDS = 4
FACTOR = 4.0
FLOOR = 2.0
LOOSEST = 1e-3
OPTIMIZER = {
    "name": "sgd",
    "learning_rate": 1e-4,
    "learning_rate_scaling": "none",
    "schedule": "constant",
    "momentum": 0.9,
    "nesterov": False,
    "clip_global_norm": None,
    "clip_tensor_norm": None,
    "parts": {},
}
QUANTITIES = {
    "loss": "loss",
    "grad_norm": "gradient norm",
    "params": "parameters",
    "opt": "optimiser",
    "target": "target",
    "memory": "memory",
    "stats": "batch statistics",
}


class Outcome(NamedTuple):
    """What a run came to: values of each step, [steps], and the State after the last, in NumPy."""

    loss: np.ndarray
    grad_norm: np.ndarray
    state: State

    def leaves(self) -> dict[str, list[np.ndarray]]:
        """The arrays of each quantity that there is."""
        trees = [
            self.loss,
            self.grad_norm,
            *(getattr(self.state, name) for name in list(QUANTITIES)[2:]),
        ]
        found = {
            name: [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
            for name, tree in zip(QUANTITIES, trees)
        }
        return {name: leaves for name, leaves in found.items() if leaves}


@dataclasses.dataclass(frozen=True)
class Record:
    """One stage of one config: by quantity its bound and its largest magnitude; by number of
    devices the largest absolute differences from one device, and how many starts it took to find
    them within the bounds (all, where none was). Without differences where the bounds say
    nothing."""

    name: str
    bounds: dict[str, float]
    magnitudes: dict[str, float]
    differences: dict[int, dict[str, float]]
    starts: dict[int, int]
    seed: int = 0

    def broken(self, devices: int) -> list[str]:
        """The quantities that differ by more than their bound."""
        return [
            name
            for name, difference in self.differences[devices].items()
            if not difference <= self.bounds[name]
        ]

    def loose(self) -> list[str]:
        """The quantities whose bound says nothing."""
        return [
            name
            for name, bound in self.bounds.items()
            if not bound <= LOOSEST * self.magnitudes[name]
        ]

    def same(self) -> bool:
        """Whether every quantity is within a bound that says something."""
        return not self.loose() and not any(map(self.broken, self.differences))


def nudged(tree: Any, seed: int) -> Any:
    """A tree of arrays with every floating-point number one ulp higher or lower, at random; zeros
    stay."""
    random = np.random.default_rng(seed)

    def nudge(x):
        x = np.asarray(x)
        if not jax.dtypes.issubdtype(x.dtype, np.floating):
            return x
        towards = np.where(random.random(x.shape) < 0.5, -np.inf, np.inf).astype(x.dtype)
        return np.where(x == 0, x, np.nextafter(x, towards))

    return jax.tree.map(nudge, tree)


def compare(
    run: Callable[[int, int | None], Outcome], devices: Sequence[int], name: str, seed: int = 0
) -> Record:
    """Verifies a method from one seed.

    Args:
      run: (number of devices, seed of a nudge of the initial parameters or None) -> Outcome, of the
        same global batches.
      devices: the numbers of devices to compare with one.
    """
    one = {nudge: run(1, nudge) for nudge in (None, *range(NUDGES))}
    magnitudes = {
        name: max(
            float(np.abs(np.float64(x)).max(initial=0)) if _inexact(x) else 0.0 for x in leaves
        )
        for name, leaves in one[None].leaves().items()
    }
    growth = [differences(a, b) for a, b in combinations(one.values(), 2)]
    epsilon = float(np.finfo(np.float32).eps)
    bounds = {
        name: FACTOR * float(np.quantile([grown[name] for grown in growth], 0.25, method="lower"))
        + FLOOR * epsilon * magnitude
        for name, magnitude in magnitudes.items()
    }
    record = Record(name, bounds, magnitudes, {}, {}, seed)
    for count in devices:
        if count == 1 or record.loose():
            continue
        for starts, nudge in enumerate(one, start=1):
            record.differences[count], record.starts[count] = (
                differences(one[nudge], run(count, nudge)),
                starts,
            )
            if not record.broken(count):
                break
    return record


def differences(a: Outcome, b: Outcome) -> dict[str, float]:
    """The largest absolute difference of each quantity; infinite where integers differ or a number
    is not finite."""
    theirs = b.leaves()
    return {
        name: max(_difference(x, y) for x, y in zip(leaves, theirs[name], strict=True))
        for name, leaves in a.leaves().items()
    }


def _difference(x: np.ndarray, y: np.ndarray) -> float:
    if x.shape != y.shape or x.dtype != y.dtype:
        return np.inf
    if not _inexact(x):
        return 0.0 if np.array_equal(x, y) else np.inf
    largest = float(np.abs(np.float64(x) - np.float64(y)).max(initial=0))
    return largest if np.isfinite(largest) else np.inf


def _inexact(x: np.ndarray) -> bool:
    return bool(jax.dtypes.issubdtype(x.dtype, np.inexact))


# Configs --------------------------------------


def debug_stages(name: str, micro_batches: int = 1) -> list[tuple[str, ConfigDict]]:
    """(name, config) of all stages of a config in its `debug` variant, if it has one; of several
    micro-batches, of those first stages whose method takes them."""
    config = configs.smallest(name)
    config.stage = "all" if config.get("stage_order", ()) else ""
    found = [(stage, settings) for stage, settings, _ in stages(config, "unused")]
    if micro_batches == 1:
        return found
    stage, first = found[0]
    if "micro_batches" not in parameters("cl_jax.methods", first.method.name):
        return []
    first.method.micro_batches = micro_batches
    return [(f"{stage} micro_batches={micro_batches}".strip(), first)]


class Runner:
    """A run on some devices, compiled once; called with the seed of a nudge or None, it trains from
    `state` to its end.

    state: where to start, in NumPy; None for an initial State of its own.
    """

    def __init__(self, built: Built, config: ConfigDict, state: State | None = None):
        self.built = built
        self.state = parallel.fetch(initial_state(built, config)) if state is None else state
        self.stepper = stepper(built, config, 0)
        self.name = config.get("method", {}).get("name", "")
        self.evaluator = Evaluation({}, built.method, built.data, built.mesh, config, "unused")

    def __call__(self, seed: int | None) -> Outcome:
        method, run = self.built.method, self.built.run
        start = (
            self.state
            if seed is None
            else dataclasses.replace(self.state, params=nudged(self.state.params, seed))
        )
        state, step, rows = parallel.replicate(start, self.built.mesh), copy.copy(self.stepper), []
        while step.step < run.total_steps:
            if method.refresh is not None and step.step % run.steps_per_epoch == 0:
                held = state
                state = refreshed(
                    method.refresh,
                    held,
                    lambda f: self.evaluator.encode_all(f, held),
                    step.step // run.steps_per_epoch,
                )
            state, values = step(state)
            check_metrics(values, f"the method {self.name}", ("loss", "grad_norm"))
            rows.append((values["loss"], values["grad_norm"]))
        loss, norm = (np.array(column) for column in zip(*parallel.fetch(rows)))
        return Outcome(loss, norm, parallel.fetch(state))


def optimizer(section: Mapping[str, Any], per_epoch: int, steps: int) -> dict[str, Any]:
    """The optimiser above, with what a config's section `optimizer` decays and freezes, and its
    warm-up if that ends within so many steps, `per_epoch` an epoch."""
    warm_up = section.get("warmup_steps")
    if warm_up is None:
        warm_up = round(section.get("warmup_epochs", 0.0) * per_epoch)
    without = {"warmup_steps": 0, "warmup_epochs": 0.0} if warm_up > steps else {}
    return {**section, **OPTIMIZER, **without}


def runner(
    config: ConfigDict, devices: int, previous: Stage | None, steps: int, state: State | None = None
) -> Runner:
    """A stage of a config on so many devices, for so many steps, under the optimiser above."""
    config = config.copy_and_resolve_references()
    config.devices = devices
    per_epoch = build(config, previous).run.steps_per_epoch
    config.total_epochs = steps / per_epoch
    config.optimizer = ConfigDict(optimizer(configs.plain(config.optimizer), per_epoch, steps))
    return Runner(build(config, previous), config, state)


def verify(
    name: str, devices: Sequence[int] = DEVICES, steps: int = STEPS, micro_batches: int = 1
) -> Iterator[tuple[Record, Stage]]:
    """Every stage of a config in its `debug` variant: (Record, the stage as one device trained it);
    the next starts there.

    One device and the largest number each make an initial State of their own; the others are given
    one device's. With `micro_batches` above 1 the first stage alone, nothing where its method does
    not take them."""
    previous = None
    for stage, config in debug_stages(name, micro_batches):
        for seed in range(SEEDS):
            config.seed = seed
            one = current = runner(config, 1, previous, steps)
            outcomes = []

            def run(count: int, nudge: int | None) -> Outcome:
                nonlocal current
                if current.built.mesh.size != count:
                    current = runner(
                        config, count, previous, steps, None if count == max(devices) else one.state
                    )
                outcomes.append(current(nudge))
                return outcomes[-1]

            record = compare(run, devices, f"{name} {stage}".strip(), seed)
            if not record.loose() and not any(record.broken(count) for count in record.differences):
                break
        previous = Stage(one.built.method, outcomes[0].state)
        yield record, previous


# Command line --------------------------------------


def table(records: Sequence[Record]) -> str:
    """All records as a Markdown table."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def numbers(values: dict[str, float]) -> list[str]:
        return [f"{values[name]:.1e}" if name in values else "" for name in QUANTITIES]

    lines = [
        line(["method", "devices", *QUANTITIES.values(), "verdict"]),
        "|---" * (len(QUANTITIES) + 3) + "|",
    ]
    for record in records:
        loose = record.loose()
        verdict = (
            "says nothing: " + ", ".join(QUANTITIES[name] for name in loose)
            if loose
            else (f"seed {record.seed}" if record.seed else "")
        )
        lines.append(line([f"**{record.name}**", "bound", *numbers(record.bounds), verdict]))
        for devices, found in record.differences.items():
            broken = record.broken(devices)
            verdict = (
                "same"
                if record.starts[devices] == 1
                else f"same, from start {record.starts[devices]}"
            )
            if broken:
                verdict = "DIFFERS: " + ", ".join(QUANTITIES[name] for name in broken)
            lines.append(line(["", str(devices), *numbers(found), verdict]))
    return "\n".join(lines)


def stored(path: Path) -> dict[str, Record]:
    """The records of a JSON file, by name; none where there is no file.

    Raises:
      ConfigError: a file that cannot be read, or that holds something else.
    """
    if not path.exists():
        return {}

    def by_devices(found: dict[str, Any]) -> dict[int, Any]:
        return {int(number): value for number, value in found.items()}

    try:
        found = {
            row["name"]: Record(
                row["name"],
                row["bounds"],
                row["magnitudes"],
                by_devices(row["differences"]),
                by_devices(row["starts"]),
                row["seed"],
            )
            for row in json.loads(path.read_text())["methods"]
        }
        table(list(found.values()))  # as the next run will, after its first config
        if not all(name.split() for name in found):
            raise ValueError("a record without a name")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} holds no records that `cl-jax verify` wrote: {type(error).__name__}: {error}. "
            "Move it away, or give another --json."
        ) from None
    return found


def store(path: Path, records: Sequence[Record], steps: int) -> None:
    """Writes records as JSON; the old file stays until the new one is whole.

    Raises:
      SaveError: it cannot be written.
    """
    rows = [
        {
            "name": record.name,
            "same": record.same(),
            "bounds": record.bounds,
            "magnitudes": record.magnitudes,
            "differences": record.differences,
            "starts": record.starts,
            "seed": record.seed,
        }
        for record in records
    ]
    about = {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "steps": steps,
        "nudges": NUDGES,
        "factor": FACTOR,
        "floor": FLOOR,
        "optimizer": OPTIMIZER,
    }
    replace_text(path, json.dumps(about | {"methods": rows}, indent=1) + "\n")


_BEGIN, _END = "<!-- verify -->\n", "<!-- end of verify -->"


def put_into(page: Path, text: str) -> None:
    """Replaces what stands between the two marks of a Markdown page; errors as of `store`."""
    before, after = around(page)
    replace_text(page, f"{before}{_BEGIN}{text}\n{_END}{after}")


def around(page: Path) -> tuple[str, str]:
    """What a Markdown page has before and after the table.

    Raises:
      ValueError: no such page, one that cannot be read, or one without the two marks.
    """
    try:
        text = page.read_text() if page.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{page} cannot be read as text: {error}. Give a Markdown page."
        ) from None
    before, mark, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (mark and end):
        raise ValueError(
            f"{page} is no page with the lines {_BEGIN.strip()} and {_END} to put the table "
            "between."
        )
    return before, after
