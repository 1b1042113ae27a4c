"""The linear probe on augmented views: a new crop and flip of each training image each epoch."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cl_jax.core import parallel
from cl_jax.core.method import Method
from cl_jax.core.shapes import check_count, check_positive
from cl_jax.data import batches
from cl_jax.data.source import Source, labels_of, subset
from cl_jax.evals import Evaluator, Given, Needs
from cl_jax.evals._labels import check_test_classes
from cl_jax.evals.linear import accuracies, probe_batches
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

    Raises:
      ValueError: a setting that is not above 0.
    """
    check_count(batch_size=batch_size)
    check_positive(total_epochs=total_epochs, learning_rate=learning_rate)

    def measure(given: Given) -> dict[str, float]:
        method, (train, test) = given.method, given.data[:2]
        _check_method(method, given.recipes)
        seen = given.recipes[0]
        train, test = (labelled(source, label) for source in (train, test))
        rows = min(batch_size, train.size)
        steps = train.size // rows

        def epoch_of(epoch: int) -> Iterator[dict[str, Any]]:
            read = batches.host_batches(
                train,
                batch_size=rows,
                seed=given.seed,
                start_step=epoch * steps,
                steps=(epoch + 1) * steps,
            )
            return ({"image": b["image"], "label": b[label], "id": b["id"]} for b in read)

        def test_images() -> Iterator[dict[str, Any]]:
            for batch in batches.sequential(test, min(rows, test.size)):
                real = batch["valid"]
                yield {"image": batch["image"][real], "label": batch[label][real]}

        found = probe_batches(
            lambda held, images: method.features(held[0], held[1], images, False)[0][
                feature or given.feature
            ],
            parallel.fetch(method.evaluated(given.state)),
            epoch_of,
            test_images,
            recipe=dataclasses.replace(
                seen.recipe,
                jitter=0.0,
                gray=0.0,
                blur=0.0,
                solarize=0.0,
                quarter_turns=False,
            ),
            steps_per_epoch=steps,
            num_classes=train.sizes[label],
            total_epochs=total_epochs,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            seed=given.seed,
            clean=lambda images: method.clean({"image": images}),
        )
        return accuracies("linear/augmented", found)

    return Evaluator(
        measure,
        Needs(
            features=(feature,),
            fields=("image",),
            labels=(label,),
            labelled=("train", "test"),
        ),
        when="asked",
        better={"linear/augmented/top1": 1},
        titles={"linear/augmented/top1": "linear probe, augmented views %"},
        check=lambda data: check_test_classes(data, label),
        check_method=_check_method,
    )


def _check_method(method: Method, views: Sequence[Any]) -> None:
    lacking = [name for name in ("features", "clean") if getattr(method, name) is None]
    if lacking or not views or not isinstance(views[0], ImageView):
        has = f"has no {lacking[0]}" if lacking else "sees none"
        raise ValueError(
            f"the augmented probe is of methods that see augmented images, and this one {has}. "
            "The evaluator linear is a probe of clean images."
        )


def labelled(source: Source, label: str) -> Source:
    """The examples of a source that have a label."""
    known = labels_of(source, label) >= 0
    return source if known.all() else subset(source, np.flatnonzero(known))
