"""What is measured of a run, under fixed names (docs/evals.md): while it trains, at its end, and
afterwards."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cl_jax import evals, views
from cl_jax.core import parallel
from cl_jax.core.method import Method, State
from cl_jax.core.parallel import EACH, SAME
from cl_jax.data import batches
from cl_jax.data.source import Source, Splits, labels_of
from cl_jax.evals import geometry, linear
from cl_jax.evals import knn as nearest

GEOMETRY_ROWS = 2048  # test examples that the geometry of features is measured on
GRID_QUERIES = 8


class Evaluator:
    """Evaluates States of one run. Features are always clean: no augmentation, running batch
    statistics."""

    def __init__(
        self,
        method: Method,
        data: Splits,
        mesh: jax.sharding.Mesh,
        config: ConfigDict,
        workdir: str | Path,
    ):
        self.method, self.data, self.mesh, self.config, self.workdir = (
            method,
            data,
            mesh,
            config,
            Path(workdir),
        )
        self.compiled: dict[Any, Callable[..., Any]] = {}
        self.classes = data.train.sizes.get("label", 0)
        first = dict(config.views[min(config.views)])
        first.pop("copies", None)
        self.recipe = views.make(first)
        self.drawn = {train: geometry.drawn(method, self.recipe, train) for train in (False, True)}

    def rows(
        self, f: Callable[[State, Any], Any], state: State, source: Source, batch_size: int = 0
    ) -> Any:
        """f(State, batch) over a source in order, as NumPy rows [N, ...]; f is compiled once."""
        if f not in self.compiled:
            self.compiled[f] = parallel.lift(f, self.mesh, (SAME, EACH), EACH)
        batch_size = (
            batch_size or -(-self.config.evals.batch_size // self.mesh.size) * self.mesh.size
        )
        parts = []
        local = batches.local_rows(batch_size, jax.process_index(), jax.process_count())
        workers = self.config.get("loading", {}).get("workers", 0)
        for batch in batches.sequential(source, batch_size, workers=workers):
            given = {"image": batch["image"][local], "id": batch["id"][local]}
            out = parallel.fetch(self.compiled[f](state, parallel.place_batch(given, self.mesh)))
            parts.append(jax.tree.map(lambda x: x[batch["valid"]], out))
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def encode_all(self, f: Callable[[State, Any], Any], state: State) -> Any:
        """The training split through f, in order: what a method's `refresh` reads."""
        return self.rows(f, state, self.data.train)

    def features(self, state: State) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Clean features of the training and the test split, {name: [N, D]}."""
        return (
            self.rows(self.method.encode, state, self.data.train),
            self.rows(self.method.encode, state, self.data.test),
        )

    def baselines(self, state: State) -> dict[str, float]:
        """kNN of raw pixels, and of the network as it starts, whose State this is: what training
        has to beat; the rank that it starts from."""
        found: dict[str, float] = {}
        if (
            pairs := self._pairs(state)
        ) is not None:  # with batch statistics: the running ones are not of any data yet
            of_batches = geometry.of_pairs(pairs[1], pairs[1], self.config.batch_size)
            found = {
                evals.UNTRAINED_EFFECTIVE_RANK: geometry.measure(pairs[1][0])[
                    evals.GEOMETRY_EFFECTIVE_RANK
                ],
                evals.UNTRAINED_SAME_BATCH: of_batches[evals.PAIRS_SAME_BATCH],
            }
        if not self.classes or self.data.train.arrays is None or self.data.test.arrays is None:
            return found
        pixels = [
            nearest.raw_pixels(arrays["image"])
            for arrays in (self.data.train.arrays, self.data.test.arrays)
        ]
        train, test = self.features(state)
        name = self.config.evals.feature
        return found | {
            "knn/raw_pixels": self._knn(*pixels),
            "knn/random_network": self._knn(train[name], test[name]),
        }

    def _pairs(self, state: State) -> tuple[np.ndarray, np.ndarray] | None:
        """Features [2, N, D] of two views of test images, with the running statistics and with
        those of training batches."""
        size = self.config.batch_size
        source = geometry.pair_source(self.data.test, size)
        if source is None or not geometry.fits(
            self.method, self.recipe, np.stack([source.read(0)["image"]] * 2)
        ):
            return None
        clean, trained = (
            self.rows(self.drawn[train], state, source, size)[self.config.evals.feature]
            for train in (False, True)
        )
        return clean.reshape(2, len(clean) // 2, -1), trained.reshape(2, len(trained) // 2, -1)

    def online(self, state: State, final: bool = False) -> dict[str, float]:
        """kNN and the geometry of the features; at the end of a run also the cached linear probe
        and the pictures."""
        began = time.perf_counter()
        train, test = self.features(state)
        name = self.config.evals.feature
        if name not in test:
            raise ValueError(
                f"evals.feature={name!r} is not a feature of this method; have "
                f"{', '.join(sorted(test))}."
            )
        pairs = self._pairs(state)
        results = geometry.measure(
            test[name][:GEOMETRY_ROWS],
            _labels(self.data.test)[:GEOMETRY_ROWS] if self.classes else None,
            None if pairs is None else (pairs[0][0], pairs[0][1]),
        )
        if pairs is not None:
            results |= geometry.of_pairs(*pairs, self.config.batch_size)
        if self.classes:
            results["knn/top1"] = self._knn(train[name], test[name])
            if "logits" in test:
                results["classifier/top1"] = float(
                    np.mean(test["logits"].argmax(1) == _labels(self.data.test))
                )
            if final:
                results |= self.linear_cached(train[name], test[name])
        if final and jax.process_index() == 0:
            self._pictures(train[name], test[name])
        results["eval_seconds"] = time.perf_counter() - began
        return results

    def linear_cached(self, train: np.ndarray, test: np.ndarray) -> dict[str, float]:
        """A linear classifier on frozen features, computed once."""
        section = self.config.probe
        found = linear.probe(
            train,
            _labels(self.data.train),
            test,
            _labels(self.data.test),
            num_classes=self.classes,
            total_epochs=section.total_epochs,
            batch_size=min(section.batch_size, len(train)),
            learning_rate=section.learning_rate,
            weight_decay=section.weight_decay,
            seed=self.config.seed,
        )
        return {"linear/cached/top1": float(found.top1)}

    def linear_augmented(self, state: State) -> dict[str, float]:
        """A linear classifier on the frozen network, which sees random crops and flips of the
        training images: the first view's recipe without its changes of colour."""
        method, section, name = self.method, self.config.probe, self.config.evals.feature
        train, test = self.data.train, self.data.test
        if train.arrays is None or test.arrays is None:
            raise ValueError(
                "the augmented probe wants the data in memory; this set is read from disk."
            )
        recipe = dataclasses.replace(self.recipe, jitter=0.0, gray=0.0, blur=0.0, solarize=0.0)
        found = linear.probe_augmented(
            lambda held, images: method.features(held[0], held[1], images, False)[0][name],
            parallel.fetch(method.evaluated(state)),
            train.arrays["image"],
            _labels(train),
            test.arrays["image"],
            _labels(test),
            recipe=recipe,
            num_classes=self.classes,
            total_epochs=section.total_epochs,
            batch_size=min(section.batch_size, train.size),
            learning_rate=section.learning_rate,
            weight_decay=section.weight_decay,
            seed=self.config.seed,
            clean=method.clean,
        )
        return {"linear/augmented/top1": float(found.top1)}

    def _knn(self, train: np.ndarray, test: np.ndarray) -> float:
        settings = self.config.evals
        found = nearest.knn(
            train,
            _labels(self.data.train),
            test,
            _labels(self.data.test),
            k=min(settings.knn_k, len(train)),
            temperature=settings.knn_temperature,
            num_classes=self.classes,
        )
        return float(found.top1)

    def _pictures(self, train: np.ndarray, test: np.ndarray) -> None:
        if self.data.train.arrays is not None and self.data.test.arrays is not None:
            queries = np.linspace(0, self.data.test.size - 1, GRID_QUERIES).astype(int)
            found = np.asarray(nearest.neighbours(train, test[queries], k=min(8, len(train))))
            correct = None
            if self.classes:
                correct = (
                    _labels(self.data.train)[found] == _labels(self.data.test)[queries][:, None]
                )
            from cl_jax.evals import pictures  # matplotlib: only where something is drawn

            pictures.neighbour_grid(
                self.workdir / "neighbours.png",
                self.data.test.arrays["image"][queries],
                self.data.train.arrays["image"][found],
                correct,
            )


def draw_curve(workdir: str | Path, rows: list[dict[str, float]]) -> None:
    """The kNN curve of a run's log, with its baselines."""
    points = [(row["step"], row["knn/top1"]) for row in rows if "knn/top1" in row]
    lines: dict[str, float] = {
        name: row[name]
        for row in rows
        for name in ("knn/raw_pixels", "knn/random_network")
        if name in row
    }
    if points:
        from cl_jax.evals import pictures

        pictures.knn_curve(
            Path(workdir) / "knn.png",
            [s for s, _ in points],
            [v for _, v in points],
            lines,
            xlabel="step",
        )


def summary(rows: list[dict[str, float]]) -> str:
    """The last lines of a run: what was reached, beside what raw pixels and an untrained network
    reach."""
    latest: dict[str, float] = {}
    for row in rows:
        latest.update(row)
    names = (
        ("knn/top1", "kNN, trained network"),
        ("knn/raw_pixels", "kNN, raw pixels"),
        ("knn/random_network", "kNN, untrained network"),
        ("linear/cached/top1", "linear probe, cached features"),
        ("classifier/top1", "classifier"),
    )
    width = max(len(text) for _, text in names)
    return "\n".join(
        f"{text:<{width}}  {100 * latest[name]:5.1f} %" for name, text in names if name in latest
    )


def _labels(source: Source) -> np.ndarray:
    return np.asarray(labels_of(source, "label"))
