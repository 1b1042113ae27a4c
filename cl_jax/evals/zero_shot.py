"""Zero-shot classification: the class of an image is that whose prompts are nearest to it."""

import numpy as np

from cl_jax.data.source import Splits, labels_of
from cl_jax.evals import Evaluator, Given, Needs
from cl_jax.evals._labels import at_hand


def class_weights(prompts: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """[C, D] unit rows: of each class, the mean of its unit prompts, made unit again.

    Args:
      prompts: [P, D] features of prompts.
      labels: [P] the class that each names.

    Raises:
      ValueError: a class without a prompt.

    Reference: Radford et al. 2021, arXiv 2103.00020, section 3.1.4 and their notebook.
    """
    _check_prompts(labels, num_classes)
    unit = _unit(prompts)
    return _unit(np.stack([unit[labels == k].mean(axis=0) for k in range(num_classes)]))


def accuracy(features: np.ndarray, weights: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """The share of rows [N, D] whose label is among the k classes of largest cosine; of equal ones
    the lower class is first. Rows with a negative label are left out; one whose cosines are not
    finite counts as wrong."""
    known = labels >= 0
    scores = _unit(features[known]) @ weights.T
    first = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    right = (first == labels[known][:, None]).any(axis=1) & np.isfinite(scores).all(axis=1)
    return float(np.mean(right))


def make(
    *,
    source: str = "prompts",
    image: str = "image_z",
    text: str = "text_z",
    label: str = "label",
) -> Evaluator:
    """Accuracy on the test part: "zero_shot/top1", and "zero_shot/top5" with more than 5 classes.

    Args:
      source: a name of `Splits.more` with tokens and `label`, the class of each prompt.
      image, text: features of "encode"; the prompts have no image.
      label: of the test images.
    """

    def check(data: Splits) -> None:
        known = at_hand(data.more[source], label)
        if known is not None:
            _check_prompts(known, data.more[source].sizes[label])

    def measure(given: Given) -> dict[str, float]:
        prompts = given.data.more[source]
        classes = prompts.sizes[label]
        weights = class_weights(given.features(prompts, text), labels_of(prompts, label), classes)
        features, truth = given.features(given.data.test, image), labels_of(given.data.test, label)
        found = {"zero_shot/top1": accuracy(features, weights, truth)}
        if classes > 5:
            found["zero_shot/top5"] = accuracy(features, weights, truth, 5)
        return found

    return Evaluator(
        measure,
        Needs(features=(image, text), labels=(label,), labelled=("test",), sources=(source,)),
        better={"zero_shot/top1": 1},
        titles={"zero_shot/top1": "zero-shot by prompts %"},
        check=check,
    )


def _check_prompts(labels: np.ndarray, num_classes: int) -> None:
    missing = sorted(set(range(num_classes)) - set(labels.tolist()))
    if missing:
        raise ValueError(f"no prompt names class {missing[0]} (of {len(missing)} such classes).")


def _unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
