"""The accuracy of a classifier that was trained with the network: fine-tuning, distillation."""

import numpy as np

from cl_jax.data.source import labels_of
from cl_jax.evals import Evaluator, Given, Needs


def make(*, feature: str = "logits", label: str = "label") -> Evaluator:
    """The share of labelled test examples whose largest logit is their label's: "classifier/top1".
    One with a logit that is NaN or inf is wrong.

    feature: of "encode", [N, classes]. label: a label field.
    """

    def measure(given: Given) -> dict[str, float]:
        truth = labels_of(given.data.test, label)
        logits = given.features(given.data.test, feature)
        right = (logits.argmax(axis=1) == truth) & np.isfinite(logits).all(axis=1)
        return {"classifier/top1": float(np.mean(right[truth >= 0]))}

    return Evaluator(
        measure,
        Needs(features=(feature,), labels=(label,), labelled=("test",)),
        untrained=False,
        better={"classifier/top1": 1},
        titles={"classifier/top1": "classifier %"},
    )
