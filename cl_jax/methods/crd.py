"""CRD (Tian et al. 2020, arXiv 1910.10699): a student whose representation of an image picks out
the teacher's of the same image among those of images of other classes, beside the cross-entropy of
the labels and the teacher's soft labels.

Stored embeddings of both networks are what the other one is contrasted with; a linear layer on each
network's "h" makes embeddings of one width, and both layers are trained."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cl_jax import losses
from cl_jax.core.clocks import PerVisit
from cl_jax.core.errors import of_another_run
from cl_jax.core.keys import batch_key
from cl_jax.core.method import Aux, Batch, Method, Run, Variables, from_loss
from cl_jax.core.parallel import gather
from cl_jax.core.shapes import check_count
from cl_jax.core.sharded import Sharded, whole
from cl_jax.losses import distillation, nce
from cl_jax.memory import bank
from cl_jax.methods.distill import Student, features_of, of_student
from cl_jax.views import View, keywords


class Memory(NamedTuple):
    """Stored embeddings [N, D] of each network, split over devices, and NCE's Z of each term."""

    student: Sharded
    teacher: Sharded
    normalizers: tuple[nce.Normalizer, nce.Normalizer]


class Classes(NamedTuple):
    """Examples sorted by class: order [N], and where each class starts and how many it has, [C]."""

    order: jax.Array
    start: jax.Array
    members: jax.Array


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    label_weight: float = 1.0,
    kd_weight: float = 0.0,
    crd_weight: float = 0.8,
    kd_temperature: float = 4.0,
    temperature: float = 0.07,
    num_negatives: int = 16384,
    momentum: PerVisit = 0.5,
    out_dim: int = 128,
    positive: str = "exact",
    use_z: bool = True,
    block_size: int | None = None,
) -> Method:
    """CRD, from the previous stage, whose features must have "h" and "logits".

    The teacher is frozen, with running batch statistics, and sees the student's own view.

    label_weight, kd_weight, crd_weight: of the labels' cross-entropy, of the teacher's soft labels
      (`losses.distillation.knowledge_distillation`) and of `losses.distillation.crd`. With
      crd_weight 0 there is no memory: knowledge distillation alone.
    kd_temperature: of the soft labels. temperature: of the scores.
    num_negatives: K, drawn with replacement from the images of other classes; an image's draw is
      keyed by its id. momentum: of the stored embeddings. out_dim: their width.
    positive: "exact", the image's own stored embedding; "class", that of any image of its class.
    use_z: the authors' constant Z, estimated on the first batch and kept; False is the paper's
      critic without it.
    block_size: see `nce.bank_logits`.

    Features are "h", "logits" and "z", the student's embedding.

    Raises:
      ValueError: no teacher, more views than one, an unknown `positive`, data without labels.
    """
    if run.previous is None:
        raise ValueError(
            "CRD needs a teacher: set config.previous to a run whose features have logits, or run "
            "--stage=all."
        )
    if len(views) != 1:
        raise ValueError(f"CRD sees one view of each image; the config has {len(views)}.")
    if positive not in ("exact", "class"):
        raise ValueError(f'positive={positive!r}; expected "exact" or "class".')
    if "label" not in run.sizes or run.labels is None:
        raise ValueError('CRD reads the label "label", which the data do not have.')
    teacher = run.previous
    of_teacher = features_of("CRD", teacher)
    student = Student(encoder, run.sizes["label"])
    of_network = of_student(student)
    classes = by_class(run.labels("label"), run.sizes["label"]) if crd_weight else None

    def taught_by(params: Any, stats: Any, images: jax.Array) -> dict[str, jax.Array]:
        named, _ = of_teacher(params, stats, images, False)
        for name in ("h", "logits"):
            if name not in named:
                raise ValueError(
                    f"the teacher has no {name}, only {', '.join(sorted(named))}; start from a "
                    "supervised or fine-tuned stage."
                )
        return jax.lax.stop_gradient(named)

    def features(
        params: Any, stats: Any, images: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        named, stats = of_network(params["network"], stats, images, train)
        if crd_weight:
            named["z"] = distillation.embed(named["h"], **params["student"])
        return named, stats

    def variables(key: jax.Array, batch: Batch) -> Variables:
        network_key, *keys = jax.random.split(key, 5)
        images = views[0].clean(batch)
        start = student.init(network_key, images, True)
        held = teacher.method.evaluated(teacher.state)
        params, memory = {"network": start["params"]}, None
        if crd_weight:
            found = jax.eval_shape(
                lambda: of_network(start["params"], start.get("batch_stats", {}), images, False)[0]
            )
            with of_another_run():
                taught = jax.eval_shape(lambda: taught_by(held[0], held[1], images))
            widths = {"student": found["h"].shape[-1], "teacher": taught["h"].shape[-1]}
            for name, head_key in zip(widths, keys):
                params[name] = {
                    "kernel": nn.initializers.lecun_normal()(head_key, (widths[name], out_dim)),
                    "bias": jnp.zeros(out_dim),
                }
            z = None if use_z else 1.0
            memory = Memory(
                whole(bank.init(keys[2], run.size, out_dim)),
                whole(bank.init(keys[3], run.size, out_dim)),
                (nce.init_normalizer(z), nce.init_normalizer(z)),
            )
        return Variables(params, start.get("batch_stats", {}), held, memory)

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        (view,) = inputs
        taught = taught_by(target.params, target.stats, view)
        named, stats = features(params, stats, view, True)
        found = {"student": named["logits"], "teacher": taught["logits"]}
        if crd_weight:
            found["z_student"] = named["z"]
            found["z_teacher"] = distillation.embed(taught["h"], **params["teacher"])
        return found, stats, target.stats

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        metrics = {
            "labels": losses.cross_entropy(
                outputs["student"], batch["label"], axis_name=run.axis_name
            ),
            "kd": distillation.knowledge_distillation(
                outputs["student"],
                outputs["teacher"],
                temperature=kd_temperature,
                axis_name=run.axis_name,
            ),
        }
        value = label_weight * metrics["labels"] + kd_weight * metrics["kd"]
        if crd_weight:
            contrast, memory = contrasted(outputs, memory, batch, key)
            value = value + crd_weight * contrast
            metrics |= {
                "crd": contrast,
                "crd_chance": jnp.float32(2 * nce.nce_chance(num_negatives)),
                "log_z": memory.normalizers[0].log_z,
            }
        said = [outputs[name].argmax(axis=1) for name in ("student", "teacher")]
        return value, Aux(metrics | {"agreement": jnp.mean(said[0] == said[1])}, memory)

    def contrasted(
        outputs: Any, memory: Memory, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Memory]:
        ids, fresh = batch["id"], (outputs["z_student"], outputs["z_teacher"])
        indices = draw_indices(
            batch_key(key), ids, batch["label"], classes, num_negatives, positive == "exact"
        )
        value, normalizers = distillation.crd(
            fresh[0],
            fresh[1],
            memory.student,
            memory.teacher,
            indices,
            memory.normalizers,
            temperature=temperature,
            block_size=block_size,
            axis_name=run.axis_name,
        )
        everyone = gather(ids, run.axis_name)
        student, teacher = (
            bank.update(
                rows,
                gather(new, run.axis_name),
                everyone,
                momentum=momentum,
                axis_name=run.axis_name,
            )
            for rows, new in zip((memory.student, memory.teacher), fresh)
        )
        return value, Memory(student, teacher, normalizers)

    return from_loss(
        variables=variables,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features,
        axis_name=run.axis_name,
        **keywords(views, "label"),
        negatives=num_negatives if crd_weight else None,
    )


def by_class(labels: np.ndarray, num_classes: int) -> Classes:
    """The examples of each class.

    Raises:
      ValueError: an example without a label, or a class that all examples are of.
    """
    labels = np.asarray(labels)
    count = np.bincount(labels[labels >= 0], minlength=num_classes)
    if (labels < 0).any():
        raise ValueError(
            f"{int((labels < 0).sum())} of {len(labels)} examples have no label; CRD's negatives "
            "are images of other classes, so every image needs one."
        )
    if count.max() == len(labels):
        raise ValueError("all examples are of one class; CRD's negatives are of other classes.")
    order = np.argsort(labels, kind="stable").astype(np.int32)
    start = np.concatenate([[0], np.cumsum(count)[:-1]])
    return Classes(*(jnp.asarray(x, jnp.int32) for x in (order, start, count)))


def draw_indices(
    key: jax.Array,
    ids: jax.Array,
    labels: jax.Array,
    classes: Classes,
    num_negatives: int,
    exact: bool,
) -> jax.Array:
    """[B, 1 + K] rows of the banks: the example's own, or with exact=False any of its class, then K
    of other classes, uniform with replacement. A row's draw is keyed by its id."""
    check_count(num_negatives=num_negatives)
    size = len(classes.order)

    def draw(i: jax.Array, label: jax.Array) -> jax.Array:
        own_key, other_key = jax.random.split(jax.random.fold_in(key, i))
        start, count = classes.start[label], classes.members[label]
        others = jax.random.randint(other_key, (num_negatives,), 0, size - count)
        others = classes.order[others + jnp.where(others >= start, count, 0)]
        own = i if exact else classes.order[start + jax.random.randint(own_key, (), 0, count)]
        return jnp.concatenate([own[None].astype(jnp.int32), others])

    return jax.vmap(draw)(ids, labels)
