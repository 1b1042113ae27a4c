"""A picture of test images with the training images nearest to them."""

import numpy as np

from cl_jax.core.neighbours import nearest_rows
from cl_jax.data.source import labels_of
from cl_jax.evals import Evaluator, Given, Needs

QUERIES = 8


def make(*, k: int = 8, feature: str = "", label: str = "label") -> Evaluator:
    """`neighbours.png` at the end of a run: eight test images, each with its k nearest training
    images, framed by whether they share its label where there are labels. Of images in memory."""

    def draw(given: Given) -> None:
        train, test = given.data[:2]
        if train.arrays is None or test.arrays is None or "image" not in train.arrays:
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
            test.arrays["image"][queries],
            train.arrays["image"][found],
            correct,
        )

    return Evaluator(lambda given: {}, Needs(features=(feature,)), untrained=False, draw=draw)
