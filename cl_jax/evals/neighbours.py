"""A picture of test images with the training images nearest to them."""

from collections.abc import Sequence

import numpy as np

from cl_jax.core.neighbours import nearest_rows
from cl_jax.data.source import Source, labels_of
from cl_jax.evals import Evaluator, Given, Needs

QUERIES = 8


def make(*, k: int = 8, feature: str = "", label: str = "label") -> Evaluator:
    """`neighbours.png` at the end of a run: eight test images, each with its k nearest training
    images, with the label and the name of the file where there are such, framed by whether they
    share its label."""

    def draw(given: Given) -> None:
        train, test = given.data[:2]
        if "image" not in train.read(0) or "image" not in test.read(0):
            return
        bank, rows = (given.features(source, feature) for source in (train, test))
        queries = np.linspace(0, test.size - 1, QUERIES).astype(int)
        found = np.asarray(nearest_rows(bank, rows[queries], min(k, len(bank)))[1])
        correct = None
        if label in train.sizes and label in test.sizes:
            truth = labels_of(test, label)[queries][:, None]
            correct = (labels_of(train, label)[found] == truth) & (truth >= 0)
        from cl_jax.evals import pictures  # matplotlib: only where something is drawn

        pictures.neighbour_grid(
            given.workdir / "neighbours.png",
            _images(test, queries),
            _images(train, found),
            correct,
            captions=[
                _captions(test, [query], label) + _captions(train, row, label)
                for query, row in zip(queries, found)
            ],
        )

    return Evaluator(lambda given: {}, Needs(features=(feature,)), untrained=False, draw=draw)


def _images(source: Source, rows: np.ndarray) -> np.ndarray:
    """Those of rows [...], which are read where they are not in memory: [..., H, W, 1 or 3]. Of
    several pictures on one channel axis (`data.aligned`) the first one."""
    if source.arrays is not None:
        found = source.arrays["image"][rows]
    else:
        read = np.stack([source.read(int(row))["image"] for row in rows.ravel()])
        found = read.reshape(*rows.shape, *read.shape[1:])
    return found[..., :3] if found.shape[-1] >= 3 else found[..., :1]


def _captions(source: Source, rows: Sequence[int] | np.ndarray, label: str) -> list[str]:
    """Label and name of each row, in lines."""
    lines: list[list[str]] = [[] for _ in rows]
    if label in source.sizes:
        names = source.classes.get(label)
        for words, value in zip(lines, labels_of(source, label)[np.asarray(rows)].tolist()):
            words.append("" if value < 0 else names[value] if names else str(value))
    if source.names is not None:
        for words, row in zip(lines, rows):
            words.append(source.names[row].rsplit("/", 1)[-1])
    return ["\n".join(words) for words in lines]
