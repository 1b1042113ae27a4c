"""The accuracy of a classifier that was trained with the network: fine-tuning, distillation."""

import numpy as np

from cl_jax.data.source import labels_of
from cl_jax.evals import Evaluator, Given, Needs


def make(*, feature: str = "logits", label: str = "label") -> Evaluator:
    """The share of labelled test examples whose largest logit is their label's: "classifier/top1".

    feature: of "encode", [N, classes]. label: a label field.
    """

    def measure(given: Given) -> dict[str, float]:
        truth = labels_of(given.data.test, label)
        said = given.features(given.data.test, feature).argmax(axis=1)
        return {"classifier/top1": float(np.mean(said[truth >= 0] == truth[truth >= 0]))}

    return Evaluator(
        measure,
        Needs(features=(feature,), labels=(label,)),
        untrained=False,
        better={"classifier/top1": 1},
        titles={"classifier/top1": "classifier %"},
    )
