"""Token losses of text-to-text planning: CALM's generator and discriminator, and the pieces
captioning losses share."""

import jax
import jax.numpy as jnp

from cl_jax.core.axis import AxisName, any_mesh, total
from cl_jax.core.numerics import log_softmax
from cl_jax.core.shapes import check, check_axis, check_integer

IGNORE = -100
"""The usual label of a position without a target, padding; any label below 0 means the same."""


@any_mesh
def token_log_likelihood(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Log-likelihood of each target under teacher forcing: what ranks a true sentence against its
    distractor.

    row_i = sum over t with labels_it >= 0 of log softmax(logits_it)[labels_it]

    Args:
      logits: [B, T, K] scores of the K tokens of the vocabulary; gradient flows.
      labels: [B, T] integers: target tokens, -100 where there is none.

    Returns:
      [B] log-likelihoods in nats, at least float32; -T log K for uniform logits, 0 for a row
      without targets.

    Raises:
      ValueError: shapes that disagree, integer logits, labels that are not integers.
    """
    sizes = check("b t k", logits=logits)
    check_integer("b t", sizes, labels=labels)
    scored = jnp.asarray(labels) >= 0
    log_p = log_softmax(logits)
    chosen = jnp.take_along_axis(log_p, jnp.where(scored, labels, 0)[:, :, None], axis=2)[:, :, 0]
    return jnp.where(scored, chosen, 0).sum(axis=1)


@any_mesh
def token_counts(labels: jax.Array) -> jax.Array:
    """Number of targets of each row: positions of `labels` [B, T] that are not -100."""
    return (jnp.asarray(labels) >= 0).sum(axis=1)


@any_mesh
def token_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, axis_name: AxisName = None
) -> jax.Array:
    """Cross-entropy of the targets, averaged over all tokens of the global batch: long rows weigh
    more.

    loss = -sum_i token_log_likelihood_i / max(number of targets in the global batch, 1)

    Args:
      logits: [B, T, K]; gradient flows.
      labels: [B, T] integers, -100 where there is no target.
      axis_name: mapped axis over which the batch is split.

    Returns:
      Scalar in nats per token; log K at chance level; 0 for a batch without targets.

    Raises:
      ValueError: as `token_log_likelihood`, or `axis_name` not mapped.

    Reference: the cross-entropy of T5 as CALM uses it (`ignore_index=-100`), which averages over
      the tokens of one device's batch; here over all devices.
    """
    check_axis(axis_name)
    rows = token_log_likelihood(logits, labels)
    count = total(token_counts(labels).sum().astype(rows.dtype), axis_name)
    return -total(rows.sum(), axis_name) / jnp.maximum(count, 1)


@any_mesh
def shift_right(labels: jax.Array, *, pad_id: int) -> jax.Array:
    """Decoder inputs of teacher forcing: `labels` [B, T] one step later, `pad_id` in front and in
    place of -100."""
    check_integer("b t", labels=labels)
    shifted = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=pad_id)
    return jnp.where(shifted < 0, pad_id, shifted)


@any_mesh
def calm(
    logits_gen: jax.Array,
    labels_gen: jax.Array,
    logits_dis: jax.Array,
    labels_dis: jax.Array,
    *,
    weight_gen: float,
    weight_dis: float,
    axis_name: AxisName = None,
) -> jax.Array:
    """Joint objective of CALM: restore the sentence from its distractor, and pick it out from
    beside a generated one.

    loss = weight_gen * token_cross_entropy(logits_gen, labels_gen)
         + weight_dis * token_cross_entropy(logits_dis, labels_dis)

    The contrast of true sentence and distractor lies in the second task's input text; there is no
    embedding, no temperature and no negative from the batch. Generating the distractor is the
    caller's, without gradient.

    Args:
      logits_gen: [B, T_gen, K] of the corrector; gradient flows.
      labels_gen: [B, T_gen] integers, -100 where there is no target.
      logits_dis: [B, T_dis, K] of the question with two options; gradient flows. T_dis may differ
        from T_gen.
      labels_dis: [B, T_dis]; a row of -100 drops an example whose distractor failed.
      weight_gen, weight_dis: 1 and 1 in the authors' code.
      axis_name: mapped axis over which the batch is split.

    Returns:
      Scalar in nats per token; (weight_gen + weight_dis) log K at chance level.

    Raises:
      ValueError: as `token_cross_entropy`.

    Reference: Zhou et al., Pre-training Text-to-Text Transformers for Concept-centric Common Sense,
      ICLR 2021, arXiv 2011.07956, the joint training of generator and discriminator.
    """
    for part, logits, labels in (("gen", logits_gen, labels_gen), ("dis", logits_dis, labels_dis)):
        sizes = check("b t k", None, **{f"logits_{part}": logits})
        check_integer("b t", sizes, **{f"labels_{part}": labels})
    return weight_gen * token_cross_entropy(
        logits_gen, labels_gen, axis_name=axis_name
    ) + weight_dis * token_cross_entropy(logits_dis, labels_dis, axis_name=axis_name)
