"""The linear probe on augmented views: a new crop and flip of each training image each epoch."""

import dataclasses

from cl_jax.core import parallel
from cl_jax.core.shapes import check_count, check_positive
from cl_jax.data.source import labels_of
from cl_jax.evals import Evaluator, Given, Needs
from cl_jax.evals.linear import probe_augmented
from cl_jax.views import ImageView


def make(
    *,
    total_epochs: float = 30.0,
    batch_size: int = 256,
    learning_rate: float = 0.1,
    weight_decay: float = 0.0,
    feature: str = "",
    label: str = "label",
) -> Evaluator:
    """A linear classifier on the frozen network, which sees random crops and flips of the training
    images, on request: "linear/augmented/top1" and "linear/augmented/top5".

    The views are those of the run's first recipe without its changes of colour. The settings: see
    `linear.make`.
    """
    check_count(batch_size=batch_size)
    check_positive(total_epochs=total_epochs, learning_rate=learning_rate)

    def measure(given: Given) -> dict[str, float]:
        method, (train, test) = given.method, given.data[:2]
        if train.arrays is None or test.arrays is None:
            raise ValueError(
                "the augmented probe reads images in memory, and this set is read from disk; raise "
                "data.cache_bytes, or leave evals.protocols.linear_augmented out."
            )
        if method.features is None or not isinstance(given.recipes[0], ImageView):
            raise ValueError("the augmented probe is of methods that see augmented images.")
        recipe = dataclasses.replace(
            given.recipes[0].recipe, jitter=0.0, gray=0.0, blur=0.0, solarize=0.0
        )
        rows = [labels_of(source, label) >= 0 for source in (train, test)]
        found = probe_augmented(
            lambda held, images: method.features(held[0], held[1], images, False)[0][
                feature or given.feature
            ],
            parallel.fetch(method.evaluated(given.state)),
            train.arrays["image"][rows[0]],
            labels_of(train, label)[rows[0]],
            test.arrays["image"][rows[1]],
            labels_of(test, label)[rows[1]],
            recipe=recipe,
            num_classes=train.sizes[label],
            total_epochs=total_epochs,
            batch_size=min(batch_size, int(rows[0].sum())),
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            seed=given.seed,
            clean=lambda images: method.clean({"image": images}),
        )
        return {
            "linear/augmented/top1": float(found.top1),
            "linear/augmented/top5": float(found.top5),
        }

    return Evaluator(
        measure,
        Needs(features=(feature,), fields=("image",), labels=(label,)),
        when="asked",
        better={"linear/augmented/top1": 1},
        titles={"linear/augmented/top1": "linear probe, augmented views %"},
    )
