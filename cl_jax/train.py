"""The loop: build, restore, step, log, save, refresh, evaluate. It names no method."""

import contextlib
import importlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from cl_jax import checkpoint, metrics, optim, parallel, views
from cl_jax.data import batches
from cl_jax.data.source import Splits, fraction
from cl_jax.evals import protocols
from cl_jax.method import Method, Run, Stage, State
from cl_jax.parallel import AXIS, EACH, SAME

RESIDENT_BYTES = 2 << 30  # sets up to this size live on the device as uint8


class Built(NamedTuple):
    """What a config means on this machine."""

    method: Method
    data: Splits
    run: Run
    mesh: jax.sharding.Mesh
    learning_rate: Callable[[Any], Any]


class Interrupted(Exception):
    """The run was told to stop (SIGTERM); it saved first and resumes by the same command."""


def load_data(config: ConfigDict) -> Splits:
    """The config's data, with `fraction` of the training labels when the section asks for it."""
    section = dict(config.data)
    share = section.pop("fraction", 1.0)
    splits: Splits = _call("cl_jax.data", section)
    return splits._replace(train=fraction(splits.train, share, seed=config.seed)) if share < 1 else splits


def build(config: ConfigDict, previous: Stage | None = None) -> Built:
    """Data, devices, networks, optimiser and method of a config; every mistake in it is found here."""
    mesh = parallel.make_mesh(config.devices or None)
    data = load_data(config)
    size, batch = data.train.size, config.batch_size
    if size < batch:
        raise ValueError(f"{data.train.name} has {size} training examples, fewer than one batch of {batch}. "
                         f"Set --config.batch_size={max(size // 2, 1)} or give more data.")
    if batch % mesh.size:
        raise ValueError(f"batch_size={batch} is not divisible by {mesh.size} devices; "
                         f"try --config.batch_size={max(batch // mesh.size, 1) * mesh.size}.")
    steps_per_epoch = size // batch
    total_steps = max(1, round(config.total_epochs * steps_per_epoch))
    run = Run(AXIS, batch, size, steps_per_epoch, total_steps, dict(data.train.classes), previous)
    encoder = _call("cl_jax.encoders", dict(config.encoder), axis_name=AXIS)
    tx, learning_rate = _checked(optim.build, dict(config.optimizer), batch_size=batch, steps_per_epoch=steps_per_epoch,
                                 total_steps=total_steps)
    recipes = []
    for name in sorted(config.views):
        section = dict(config.views[name])
        copies = section.pop("copies", 1)
        recipes += [views.make(section)] * copies
    method = _call("cl_jax.methods", dict(config.method), encoder=encoder, tx=tx, views=tuple(recipes), run=run)
    missing = [field for field in method.needs if field not in data.train.read(0)]
    if missing:
        raise ValueError(f"{config.method.name} needs the batch fields {missing}; {data.train.name} has "
                         f"{sorted(data.train.read(0))}.")
    return Built(method, data, run, mesh, learning_rate)


def load(workdir: str | Path, *, best: bool = False) -> tuple[ConfigDict, Built, State]:
    """A finished (or interrupted) run from its workdir: config, what it built, and its newest State."""
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{workdir} holds no run: {path} is missing. Train first, with --workdir={workdir}.")
    config = ConfigDict(json.loads(path.read_text()))
    built = build(config, _previous(config, workdir))
    like = initial_state(built, config)
    checkpoints = checkpoint.Checkpoints(workdir, keep=config.keep_checkpoints)
    state = checkpoints.restore(like, best=best)
    checkpoints.close()
    if state is None:
        raise FileNotFoundError(f"{workdir} has no checkpoint yet.")
    return config, built, state


def initial_state(built: Built, config: ConfigDict) -> State:
    """The State of step 0, one compiled program."""
    example = built.data.train.read(0)
    fields = _fields(built.method, example)
    batch = {name: np.zeros((built.run.batch_size, *np.shape(example[name])), np.asarray(example[name]).dtype)
             for name in fields} | {"id": np.zeros(built.run.batch_size, np.int32)}
    init = parallel.lift(built.method.init, built.mesh, (SAME, EACH), SAME)
    key = jax.random.fold_in(jax.random.key(config.seed), 0x1217)
    return init(parallel.replicate(key, built.mesh), parallel.place_batch(_local(batch), built.mesh))


def train(config: ConfigDict, workdir: str | Path) -> dict[str, float]:
    """Runs one stage to its end, from its newest checkpoint if there is one; returns the final evaluation."""
    built = build(config, _previous(config, workdir))
    run = built.run
    checkpoint.check_config(workdir, json.loads(config.to_json()))
    state = initial_state(built, config)
    checkpoints = checkpoint.Checkpoints(workdir, keep=config.keep_checkpoints)
    restored = checkpoints.restore(state)
    start = 0 if restored is None else int(restored.step)
    log = metrics.Metrics(workdir, run.total_steps, start)
    with contextlib.closing(checkpoints), contextlib.closing(log):
        return _train(config, workdir, built, state, restored, checkpoints, log)


def _train(config: ConfigDict, workdir: str | Path, built: Built, state: State, restored: State | None,
           checkpoints: checkpoint.Checkpoints, log: metrics.Metrics) -> dict[str, float]:
    method, data, run, mesh, _ = built
    start = 0 if restored is None else int(restored.step)
    log.say(describe(config, built, state))
    evaluate = protocols.Evaluator(method, data, mesh, config, workdir)
    history = [(row["step"], row["knn/top1"]) for row in metrics.read(workdir) if "knn/top1" in row]
    if restored is None:
        if config.evals.baselines:
            log.write(0, evaluate.baselines(state))
    else:
        state = restored
        log.say(f"resuming at step {start} of {run.total_steps}")
    step_of = stepper(built, config, start)
    save_steps = config.checkpoint_steps
    eval_steps = max(1, round(config.evals.every_epochs * run.steps_per_epoch)) if config.evals.every_epochs else 0
    pending = _Pending(config, built, log)
    results: dict[str, float] = {}
    with _Stop() as stop:
        for step in range(start, run.total_steps):
            if method.refresh is not None and step % run.steps_per_epoch == 0:
                state = method.refresh(state, lambda f: evaluate.encode_all(f, state), step // run.steps_per_epoch)
            state, values = step_of(state)
            done = step + 1
            pending.add(done, values)
            last = done == run.total_steps
            if done % config.log_steps == 0 or last:
                pending.log()
            if (eval_steps and done % eval_steps == 0) or last:
                pending.flush()
                results = evaluate.online(state, final=last)
                log.write(done, results)
                score = results.get("knn/top1")
                best = score is not None and all(score > s for _, s in history)
                if score is not None:
                    history.append((done, score))
                checkpoints.save(state, score, best)
                pending.restart_clock()
            elif (save_steps and done % save_steps == 0) or stop.asked:
                pending.flush()
                checkpoints.save(state)
            if stop.asked and not last:
                raise Interrupted(f"stopped at step {done} of {run.total_steps}; the same command resumes there.")
    if start >= run.total_steps:
        results = evaluate.online(state, final=True)
    rows = metrics.read(workdir)
    if jax.process_index() == 0:
        protocols.draw_curve(workdir, rows)
    log.say(protocols.summary(rows))
    return results


def evaluate(workdir: str | Path) -> dict[str, float]:
    """Every evaluation of the newest State of a run, printed and written to `eval.json`."""
    config, built, state = load(workdir)
    evaluator = protocols.Evaluator(built.method, built.data, built.mesh, config, workdir)
    results = evaluator.online(state, final=True)
    if config.probe.augment:
        results |= evaluator.linear_augmented(state)
    if jax.process_index() == 0:
        (Path(workdir) / "eval.json").write_text(json.dumps({"step": int(state.step), **results}, indent=2) + "\n")
        print("\n".join(f"{name:<28} {value:.4f}" for name, value in sorted(results.items())))
    return results


def stepper(built: Built, config: ConfigDict, start: int) -> Callable[[State], tuple[State, dict[str, jax.Array]]]:
    """State -> (State, metrics) for the next batch: rows of device-resident data, or batches loaded on the host."""
    method, data, run, mesh, _ = built
    key = parallel.replicate(jax.random.key(config.seed), mesh)
    fields = _fields(method, data.train.read(0))

    def update(state: State, batch: dict[str, jax.Array], key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        return method.update(state, batch, jax.random.fold_in(key, state.step))

    resident = batches.resident(data.train, max_bytes=RESIDENT_BYTES)
    if resident is not None:
        rows = parallel.replicate({name: resident[name] for name in fields}, mesh)

        def indexed(state, rows, ids, key):
            return update(state, {name: values[ids] for name, values in rows.items()} | {"id": ids}, key)

        compiled = parallel.lift(indexed, mesh, (SAME, SAME, EACH, SAME), SAME, donate=(0,))
        steps = iter(range(start, run.total_steps))

        def next_step(state: State) -> tuple[State, dict[str, jax.Array]]:
            ids = batches.ids_at(next(steps), seed=config.seed, size=run.size, batch_size=run.batch_size)
            return compiled(state, rows, parallel.place_batch(_local({"id": ids}), mesh)["id"], key)
        return next_step

    compiled = parallel.lift(update, mesh, (SAME, EACH, SAME), SAME, donate=(0,))
    loaded: Iterator[dict[str, np.ndarray]] = batches.host_batches(
        data.train, batch_size=run.batch_size, seed=config.seed, start_step=start, steps=run.total_steps,
        process_index=jax.process_index(), process_count=jax.process_count())

    def next_loaded(state: State) -> tuple[State, dict[str, jax.Array]]:
        batch = next(loaded)
        return compiled(state, parallel.place_batch({name: batch[name] for name in (*fields, "id")}, mesh), key)
    return next_loaded


def describe(config: ConfigDict, built: Built, state: State) -> str:
    """What is about to run, in one block."""
    run, mesh = built.run, built.mesh

    def megabytes(tree: Any) -> float:
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / 2**20

    number = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    kind = mesh.devices.flat[0].device_kind
    return "\n".join((
        f"{config.method.name} on {built.data.train.name}: {run.size} training examples, {built.data.test.size} test",
        f"process {jax.process_index() + 1} of {jax.process_count()}; {mesh.size} device(s): {kind}",
        f"global batch {run.batch_size} ({run.batch_size // mesh.size} a device), {run.steps_per_epoch} steps an epoch, "
        f"{run.total_steps} steps ({config.total_epochs:g} epochs)",
        f"parameters {number:,}; State {megabytes(state):.1f} MiB a device: parameters {megabytes(state.params):.1f}, "
        f"optimiser {megabytes(state.opt):.1f}, target {megabytes(state.target):.1f}, memory {megabytes(state.memory):.1f}",
    ))


class _Pending:
    """Metrics on their way from the device. They are read one logging interval late, so that no step waits for the host."""

    def __init__(self, config: ConfigDict, built: Built, log: metrics.Metrics):
        self.config, self.built, self.log_to = config, built, log
        self.waiting: list[list[tuple[int, dict[str, jax.Array]]]] = []
        self.current: list[tuple[int, dict[str, jax.Array]]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        self.since, self.steps = time.perf_counter(), 0

    def add(self, step: int, values: dict[str, jax.Array]) -> None:
        self.current.append((step, values))
        self.steps += 1

    def log(self) -> None:
        """Closes an interval and writes the one before it."""
        self.waiting.append(self.current)
        self.current = []
        while len(self.waiting) > 1:
            self._write(self.waiting.pop(0))

    def flush(self) -> None:
        """Writes all there is; waits for the device. Nothing is saved before this has seen that it is finite."""
        if self.current:
            self.waiting.append(self.current)
            self.current = []
        while self.waiting:
            self._write(self.waiting.pop(0))

    def _write(self, rows: list[tuple[int, dict[str, jax.Array]]]) -> None:
        if not rows:
            return
        steps = [step for step, _ in rows]
        values = parallel.fetch([value for _, value in rows])
        bad = metrics.first_bad(steps, values)
        if bad is not None and self.config.stop_on_nan:
            run = self.built.run
            ids = batches.ids_at(bad - 1, seed=self.config.seed, size=run.size, batch_size=run.batch_size)
            raise FloatingPointError(
                f"step {bad}: loss {values[steps.index(bad)]['loss']}, gradient norm "
                f"{values[steps.index(bad)].get('grad_norm')}. Batch ids: {np.array2string(ids, threshold=32)}. "
                "The newest checkpoint is of a step before this one. Likely causes: a learning rate too high, a "
                "temperature too low; lower it, or set --config.stop_on_nan=False to go on.")
        mean = {name: float(np.mean([row[name] for row in values])) for name in values[0]}
        elapsed = time.perf_counter() - self.since
        self.log_to.write(steps[-1], mean | {
            "learning_rate": float(self.built.learning_rate(steps[-1] - 1)),
            "epoch": steps[-1] / self.built.run.steps_per_epoch,
            "images_per_second": self.steps * self.built.run.batch_size / max(elapsed, 1e-9)})


class _Stop:
    """Turns SIGTERM into a flag that the loop reads between steps."""

    asked = False

    def __enter__(self) -> "_Stop":
        self.main = threading.current_thread() is threading.main_thread()
        if self.main:
            self.before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def _ask(self, *_: Any) -> None:
        logging.warning("SIGTERM: saving after this step")
        self.asked = True

    def __exit__(self, *_: Any) -> None:
        if self.main:
            signal.signal(signal.SIGTERM, self.before)


def _previous(config: ConfigDict, workdir: str | Path) -> Stage | None:
    """The stage that `config.previous` names, a path relative to this stage's workdir."""
    name = config.get("previous", "")
    if not name:
        return None
    _, built, state = load(os.path.normpath(Path(workdir) / name))  # "../pretrain" of a folder that is not there yet
    return Stage(built.method, state)


def _fields(method: Method, example: dict[str, Any]) -> list[str]:
    return [name for name in example if name in method.needs or name == "image_b"]


def _local(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """This process's rows of a global batch."""
    count, index = jax.process_count(), jax.process_index()
    return {name: rows[len(rows) // count * index:len(rows) // count * (index + 1)] for name, rows in batch.items()}


def _call(package: str, section: dict[str, Any], **given: Any) -> Any:
    """`make` of the module a section names, with the section as keywords."""
    name = section.pop("name", "")
    folder = Path(importlib.import_module(package).__path__[0])
    known = sorted(path.stem for path in folder.glob("*.py") if "\ndef make(" in path.read_text())
    if name not in known:
        raise ValueError(f"{package}.{name or '(no name)'} does not exist; have {', '.join(known)}"
                         f"{checkpoint.nearest(name, known)}.")
    return _checked(importlib.import_module(f"{package}.{name}").make, section, **given)


def _checked(make: Callable[..., Any], section: dict[str, Any], **given: Any) -> Any:
    """Calls a factory; a keyword it does not have is an error that names the nearest one."""
    known = make.__code__.co_varnames[:make.__code__.co_argcount + make.__code__.co_kwonlyargcount]
    for key in section:
        if key not in known or key in given:
            options = [name for name in known if name not in given]
            raise ValueError(f"{make.__module__}.{make.__name__} has no setting {key!r}"
                             f"{checkpoint.nearest(key, options)}. It takes {', '.join(options)}.")
    return make(**{key: _plain(value) for key, value in section.items()}, **given)


def _plain(value: Any) -> Any:
    return value.to_dict() if isinstance(value, ConfigDict) else value


def stages(config: ConfigDict, workdir: str | Path) -> list[tuple[str, ConfigDict, Path]]:
    """(name, config, workdir) of what is to run: one run, the stage asked for, or all stages in their order."""
    config = ConfigDict(config.copy_and_resolve_references()).unlock()
    overrides, order, asked = config.stages, list(config.get("stage_order", ())), config.stage
    del config.stages, config.stage
    if "stage_order" in config:
        del config.stage_order
    if not order:
        if asked:
            raise ValueError(f"stage={asked!r}: this config has one stage only; leave it out.")
        return [("", config, Path(workdir))]
    if asked not in ("", "all", *order):
        raise ValueError(f"stage={asked!r} is unknown; have all, {', '.join(order)}{checkpoint.nearest(asked, order)}.")
    chosen = order if asked == "all" else [asked or order[0]]
    found = []
    for name in chosen:
        stage = ConfigDict(config.copy_and_resolve_references()).unlock()
        for section, value in overrides[name].items():
            if section in stage and isinstance(stage[section], ConfigDict):
                if section == "views" or "name" in value:
                    stage[section] = ConfigDict(value)
                else:
                    stage[section].update(value)
            else:
                stage[section] = value
        found.append((name, stage, Path(workdir) / name))
    return found
