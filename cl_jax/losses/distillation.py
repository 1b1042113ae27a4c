"""A student that learns from a teacher network: soft labels, and contrastive representation
distillation."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, mean, total
from cl_jax.core.numerics import common_type, dots, log_softmax, unit, wide, wide_type
from cl_jax.core.shapes import check, check_axis, check_integer, check_positive, known_value
from cl_jax.core.sharded import Sharded
from cl_jax.losses._views import Softmaxes, cross_entropies
from cl_jax.losses.nce import Normalizer, cross_nce


class SoftLabels(NamedTuple):
    """loss; distill: the teacher's part; labels: the true labels' part, 0 where nothing is
    labelled."""

    loss: jax.Array
    distill: jax.Array
    labels: jax.Array


@any_mesh
def soft_label_rows(
    student_logits: jax.Array, teacher_logits: jax.Array, *, temperature: float
) -> jax.Array:
    """[B] cross-entropy of softmax(student / temperature) under softmax(teacher / temperature),
    nats."""
    check("b c", student_logits=student_logits, teacher_logits=teacher_logits)
    check_positive(temperature=temperature)
    scale = 1 / jnp.asarray(temperature, wide_type(common_type(student_logits, teacher_logits)))
    targets = Softmaxes([lax.stop_gradient(teacher_logits)], None, scale)
    return cross_entropies([student_logits], scale, targets, [[0]])[0]


@any_mesh
def soft_labels(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array | None = None,
    labelled: jax.Array | None = None,
    *,
    temperature: float,
    alpha: float = 1.0,
    axis_name: AxisName = None,
) -> SoftLabels:
    """SimCLR v2: the student's distribution is pulled to the teacher's, and to the labels where
    there are some.

    distill = -1/B sum_i sum_y P_T(y|x_i) log P_S(y|x_i), both at `temperature`, without a factor
      temperature^2;
    labels = -mean over labelled i of log softmax(student_i)_{y_i};
    loss = alpha distill + (1 - alpha) labels

    Args:
      student_logits: [B, C]; gradient flows.
      teacher_logits: [B, C]; no gradient.
      labels: [B] integers, below 0 for a row without a label; or None with alpha = 1.
      labelled: [B] booleans, which rows have a label; by default those at or above 0.
      temperature: 0.1 for self-distillation, 1 from big to small.
      alpha: weight of the teacher; 1 is unlabelled data only, the paper's default.
      axis_name: device axis that splits the batch.

    Returns:
      SoftLabels of nats, means over the global batch; `log C` at chance level.

    Raises:
      ValueError: shapes that disagree, alpha below 1 without labels, an axis that is not mapped.

    Reference: Chen et al. 2020, arXiv 2006.10029, equations 2 and 3. No code is released; means
      instead of sums and the label term at temperature 1 are our choice.
    """
    sizes = check("b c", student_logits=student_logits)
    check_axis(axis_name)
    distill = mean(
        jnp.mean(soft_label_rows(student_logits, teacher_logits, temperature=temperature)),
        axis_name,
    )
    if labels is None:
        if known_value(alpha) != 1:
            raise ValueError(
                f"alpha is {alpha} but labels is None; expected labels, or alpha=1 for soft "
                f"labels alone."
            )
        return SoftLabels(distill, distill, jnp.zeros_like(distill))
    check_integer("b", sizes, labels=labels)
    log_p = log_softmax(student_logits)
    labels = jnp.asarray(labels)
    labelled = jnp.ones(labels.shape, bool) if labelled is None else labelled
    if labelled.shape != labels.shape:
        raise ValueError(
            f"labelled has shape {labelled.shape}; expected that of labels, {labels.shape}."
        )
    labelled = labelled & (labels >= 0)
    picked = jnp.take_along_axis(log_p, jnp.where(labelled, labels, 0)[:, None], axis=1)[:, 0]
    count = total(jnp.sum(labelled.astype(log_p.dtype)), axis_name)
    hard = -total(jnp.sum(jnp.where(labelled, picked, 0)), axis_name) / jnp.maximum(count, 1)
    return SoftLabels(alpha * distill + (1 - alpha) * hard, distill, hard)


@any_mesh
def knowledge_distillation(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    *,
    temperature: float,
    axis_name: AxisName = None,
) -> jax.Array:
    """Hinton's form: the student's softened distribution is pulled to the teacher's.

    L = temperature^2 / B
        sum_i KL(softmax(teacher_i / temperature) || softmax(student_i / temperature))

    Args:
      student_logits: [B, C]; gradient flows.
      teacher_logits: [B, C]; no gradient.
      temperature: 4 in the CRD benchmark. The factor temperature^2 keeps the gradient's scale.
      axis_name: device axis that splits the batch.

    Returns:
      Nats times temperature^2, mean over the global batch; 0 where the student equals the teacher.

    Raises:
      ValueError: shapes that disagree, a temperature that is not above 0, an axis that is not
        mapped.

    Reference: Hinton et al. 2015, arXiv 1503.02531, section 2.
    """
    check("b c", student_logits=student_logits, teacher_logits=teacher_logits)
    check_positive(temperature=temperature)
    check_axis(axis_name)
    log_t = log_softmax(lax.stop_gradient(teacher_logits), temperature)
    log_s = log_softmax(student_logits, temperature)
    # Where a class underflows to probability 0, 0 * log 0 is 0. NaN is passed on.
    rows = jnp.sum(jnp.where(log_t == -jnp.inf, 0, jnp.exp(log_t) * (log_t - log_s)), axis=1)
    return temperature**2 * mean(jnp.mean(rows), axis_name)


@any_mesh
def embed(features: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """[B, D] unit embeddings of [B, F] features by one linear layer [F, D], [D]: the head CRD gives
    both networks."""
    check("d", check("f d", check("b f", features=features), kernel=kernel), bias=bias)
    return unit(dots("bf,fd->bd", features, kernel) + wide(bias)[None, :])


@any_mesh
def crd(
    z_student: jax.Array,
    z_teacher: jax.Array,
    bank_student: jax.Array | Sharded,
    bank_teacher: jax.Array | Sharded,
    indices: jax.Array,
    normalizers: Sequence[Normalizer],
    *,
    temperature: float,
    momentum: float | None = None,
    eps: float = 1e-7,
    block_size: int | None = None,
    normalise: bool = True,
    axis_name: AxisName = None,
) -> tuple[jax.Array, tuple[Normalizer, Normalizer]]:
    """CRD: the student is pulled to what is stored of the teacher for the same image, and the
    teacher's head back.

    L = nce(z_student, bank_teacher) + nce(z_teacher, bank_student); see `nce`.

    Args:
      z_student, z_teacher: [B, D] embeddings of the two networks' features (`embed`), normalised
        here. Gradient reaches each from its own term alone: the student none from the second, the
        teacher's head only that.
      bank_student, bank_teacher: [N, D] stored embeddings; no gradient.
      indices: [B, 1 + K]; column 0 the image's own row (or, "relaxed", one of its class), then
        images of *other classes*.
      normalizers: (of the student's term, of the teacher's); `init_normalizer(1.0)` for both is the
        paper's critic, which has no Z.
      temperature: 0.07 in CRD.
      The others as in `nce`.

    Returns:
      (loss, normalizers), nats, mean over the global batch; `2 nce_chance(K)` at chance level.

    Raises:
      ValueError: shapes that disagree, and as `nce`.

    Reference: Tian et al. 2020, arXiv 1910.10699, equations 17 to 19.
    """
    check(
        "n d",
        check("b d", z_student=z_student, z_teacher=z_teacher),
        bank_student=bank_student,
        bank_teacher=bank_teacher,
    )
    return cross_nce(
        z_student,
        z_teacher,
        bank_student,
        bank_teacher,
        indices,
        normalizers,
        temperature=temperature,
        momentum=momentum,
        eps=eps,
        block_size=block_size,
        axis_name=axis_name,
        normalise=normalise,
    )
