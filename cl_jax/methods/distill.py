"""Distillation of a fine-tuned teacher into a student on unlabelled images (SimCLR v2, Chen et al.
2020, equation 2)."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax import losses
from cl_jax.core.axis import AxisName, total
from cl_jax.core.method import Aux, Batch, Method, Run, Stage, Variables, from_loss
from cl_jax.core.network import check_no_drop_path
from cl_jax.views import View, keywords

Features = Callable[[Any, Any, Any, bool], tuple[dict[str, jax.Array], Any]]


class Student(nn.Module):
    """An encoder with a linear classifier on h."""

    encoder: nn.Module
    num_classes: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        check_no_drop_path(self.encoder)
        h = self.encoder(images, train=train)["h"]
        return {"h": h, "logits": nn.Dense(self.num_classes, name="classifier")(jnp.float32(h))}


def of_student(student: Student) -> Any:
    """`Method.features` of a student: (params, stats, images, train) -> (named, stats)."""

    def features(
        params: Any, stats: Any, images: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        named, changed = student.apply(
            {"params": params, "batch_stats": stats}, images, train, mutable=["batch_stats"]
        )
        return named, changed.get("batch_stats", {})

    return features


def check_labelled(what: str, run: Run) -> None:
    """Refuses data without the field "label", which says how many classes there are."""
    if "label" not in run.sizes:
        raise ValueError(
            f'{what} reads the label "label", which the data do not have; their labels: '
            f"{', '.join(sorted(run.sizes)) or 'none'}. Give classes: of a folder of images, each "
            "in a sub-folder."
        )


def features_of(what: str, before: Stage) -> Features:
    """`Method.features` of the stage before, which a stage `what` starts from."""
    found = before.method.features
    if found is None:
        raise ValueError(
            f"{what} calls the features of the previous stage's method, which has none: its "
            "parameters alone do not determine them. Expected Method.features; set config.previous "
            "to a run of another method."
        )
    return found


def accuracy(logits: jax.Array, labels: jax.Array, axis_name: AxisName) -> jax.Array:
    """The share of the labelled rows of the global batch whose largest logit is their label's; 0
    where no row is labelled."""
    right = (logits.argmax(axis=1) == labels) & (labels >= 0)
    count = total((labels >= 0).sum(), axis_name)
    return total(right.sum(), axis_name) / jnp.maximum(count, 1).astype(jnp.float32)


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    temperature: float = 1.0,
    label_weight: float = 0.0,
) -> Method:
    """Distillation from the previous stage, whose features must have "logits".

    The teacher is frozen, with running batch statistics, and sees the student's own view.
    temperature: 0.1 where the student has the teacher's size, 1 from big to small. label_weight:
      weight of the labels' cross-entropy; 0 is soft labels alone.

    Raises:
      ValueError: no teacher or one without features, more views than one, data without labels.
    """
    if run.previous is None:
        raise ValueError(
            "distillation needs a teacher: set config.previous to a fine-tuned run, or run "
            "--stage=all."
        )
    if len(views) != 1:
        raise ValueError(f"distillation sees one view of each image; the config has {len(views)}.")
    teacher = run.previous
    check_labelled("distillation", run)
    of_teacher = features_of("distillation", teacher)
    student = Student(encoder, run.sizes["label"])
    features = of_student(student)

    def variables(key: jax.Array, batch: Batch) -> Variables:
        start = student.init(key, views[0].clean(batch), True)
        return Variables(
            start["params"], start.get("batch_stats", {}), teacher.method.evaluated(teacher.state)
        )

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        (view,) = inputs
        named, stats = features(params, stats, view, True)
        taught, _ = of_teacher(target.params, target.stats, view, False)
        if "logits" not in taught:
            raise ValueError(
                f"the teacher has no logits, only {', '.join(sorted(taught))}; fine-tune it first."
            )
        return (
            {"student": named["logits"], "teacher": jax.lax.stop_gradient(taught["logits"])},
            stats,
            target.stats,
        )

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        labels = batch["label"] if label_weight else None
        found = losses.soft_labels(
            outputs["student"],
            outputs["teacher"],
            labels,
            temperature=temperature,
            alpha=1.0 - label_weight if label_weight else 1.0,
            axis_name=run.axis_name,
        )
        agree = jnp.mean(outputs["student"].argmax(axis=1) == outputs["teacher"].argmax(axis=1))
        return found.loss, Aux({"agreement": agree})

    return from_loss(
        variables=variables,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features,
        axis_name=run.axis_name,
        **keywords(views, *(("label",) if label_weight else ())),
    )
