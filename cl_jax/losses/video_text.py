"""Video and text: the support set of cross-captioning, its caption loss, and margin losses for
retrieval."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, axis_size, first_row, gather, mean, total
from cl_jax.core.numerics import dots, log_softmax, prepared, real_count, wide
from cl_jax.core.shapes import check, check_axis, check_integer, check_positive
from cl_jax.losses._rows import over_rows
from cl_jax.losses.calm import token_counts, token_log_likelihood
from cl_jax.losses.contrast import check_plan, separate_unlabelled


class SupportSet(NamedTuple):
    """vectors: [B, D]. attention, allowed: [B, B_global], or [B, B_global + K] with a memory of K
    videos, rows of this device's captions. entropy: [B] in nats."""

    vectors: jax.Array
    attention: jax.Array
    allowed: jax.Array
    entropy: jax.Array


@any_mesh
def support_set(
    t: jax.Array,
    v: jax.Array,
    video_id: jax.Array | None = None,
    memory: jax.Array | None = None,
    memory_allowed: jax.Array | None = None,
    *,
    temperature: float,
    support: str = "cross",
    normalise: bool = True,
    axis_name: AxisName = None,
) -> SupportSet:
    """Mixes the videos that caption i may be written from, by how well each agrees with caption i.

    vectors_i = sum_j attention_ij v_j,
    attention_i = softmax over allowed j of <t_i, v_j> / temperature

    Args:
      t: [B, D] caption embeddings, normalised here; gradient flows.
      v: [B, D] video embeddings, normalised here; gradient flows, through the attention
        too.
      video_id: [B] integers; captions of one video share a number (below 0: no video in common),
        and `support="cross"` then leaves out every copy of the own video. Default: all
        differ.
      memory: [K, D] videos of earlier batches, which captions may be written from besides those of
        the batch; the same on every device, no gradient. Default: none.
      memory_allowed: [B, K] booleans, which of them each caption may be written from. Default: all.
      temperature: above 0.
      support: "cross" (all videos but the own: the authors' proposal), "hybrid" (all), "identity"
        (the own alone).
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: mapped axis over which the batch is split; the support set is the global batch and
        the memory.

    Returns:
      `SupportSet`, at least float32. A caption without any allowed video (a batch of one under
      "cross") has attention, vector and entropy 0. Entropy is log of the number of allowed videos
      where all similarities are equal.

    Raises:
      ValueError: shapes that disagree, a temperature that is not above 0, an unknown `support`, a
        memory with "identity", `memory_allowed` without a memory, `axis_name` not mapped.

    Reference: Patrick et al., Support-set bottlenecks for video-text representation learning, ICLR
      2021.
    There is no released code: modes and temperature follow descriptions of the paper.
    """
    t, v = prepared(normalise, t=t, v=v)
    if support not in ("cross", "hybrid", "identity"):
        raise ValueError(f"support is {support!r}; expected 'cross', 'hybrid' or 'identity'.")
    check_positive(temperature=temperature)
    ids = _ids(t, v, video_id, axis_name)
    memory, remembered = _remembered(t, memory, memory_allowed, support)
    positions = _ids(t, v, None, axis_name)
    other = ids[:, None] != gather(ids, axis_name)[None, :]
    own = positions[:, None] == gather(positions, axis_name)[None, :]
    allowed = {"cross": other, "hybrid": jnp.ones_like(other), "identity": own}[support]
    videos = gather(v, axis_name)
    if memory is not None:
        videos = jnp.concatenate([wide(videos), wide(memory)])
        allowed = jnp.concatenate([allowed, remembered], axis=1)
    # A finite floor: a row without allowed videos must stay free of NaN in value and gradient.
    logits = jnp.where(allowed, dots("id,jd->ij", t, videos) / temperature, -1e30)
    log_attention = log_softmax(logits, axis=1)
    attention = jnp.where(allowed, jnp.exp(log_attention), 0)
    entropy = -jnp.where(allowed, attention * log_attention, 0).sum(axis=1)
    return SupportSet(dots("ij,jd->id", attention, wide(videos)), attention, allowed, entropy)


@any_mesh
def caption_loss(logits: jax.Array, labels: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
    """Cross-entropy of captions: mean over the tokens of each caption, then over captions, so that
    lengths count alike.

    loss = mean_i -token_log_likelihood_i / max(targets of caption i, 1)

    Args:
      logits: [B, T, K] of a decoder that sees the support vector; gradient flows.
      labels: [B, T] integers, -100 where there is no target.
      axis_name: mapped axis over which the batch is split.

    Returns:
      Scalar in nats per token; log K at chance level. A caption without tokens counts as 0.

    Raises:
      ValueError: as `token_log_likelihood`, or `axis_name` not mapped.

    Reference: Patrick et al., ICLR 2021: the second term of loss = ranking + weight * captioning
      (weight 10).
    """
    check_axis(axis_name)
    return mean(caption_rows(logits, labels).mean(), axis_name)


@any_mesh
def caption_rows(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The terms [B] whose mean is `caption_loss`."""
    rows = token_log_likelihood(logits, labels)
    return -rows / jnp.maximum(token_counts(labels), 1).astype(rows.dtype)


@any_mesh
def ranking_loss(
    t: jax.Array,
    v: jax.Array,
    video_id: jax.Array | None = None,
    *,
    margin: float,
    reduction: str = "hardest",
    normalise: bool = True,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> jax.Array:
    """Pulls a caption's own video above every other video by a margin, and a video's own caption
    likewise.

    loss = mean_i [ R_j (margin + <t_i, v_j> - <t_i, v_i>)_+
                    + R_j (margin + <t_j, v_i> - <t_i, v_i>)_+ ]
    over j of other videos; R is the maximum ("hardest") or the sum ("sum").

    Args:
      t: [B, D] caption embeddings, normalised here; gradient flows.
      v: [B, D] video embeddings, normalised here; gradient flows.
      video_id: [B] integers; pairs of one video are no negatives (below 0: no video in
        common). Default: all videos differ.
      margin: the gap asked for (0.2 in VSE++ and in the paper).
      reduction: "hardest" or "sum".
      normalise: features to unit length here; False takes them as they are. What a memory holds
        is taken as it is.
      axis_name: mapped axis over which the batch is split; negatives come from the global batch.
      block_size: rows whose similarities are held at a time; 0 for the whole matrix, None to choose
        by size.

    Returns:
      Scalar, in units of similarity; 0 once all margins hold or where there are no negatives, 2 *
      margin ("hardest") where all similarities are equal. At a tie of the maximum the gradient is
      shared among the tied.

    Raises:
      ValueError: shapes that disagree, an unknown `reduction`, `axis_name` not mapped.

    Reference: Faghri et al., VSE++, BMVC 2018, equations 5 and 6, as used by Patrick et al., ICLR
      2021.
    """
    text, video = ranking_rows(
        t,
        v,
        video_id,
        margin=margin,
        reduction=reduction,
        axis_name=axis_name,
        block_size=block_size,
        normalise=normalise,
    )
    return mean((text + video).mean(), axis_name)


@any_mesh
def ranking_rows(
    t: jax.Array,
    v: jax.Array,
    video_id: jax.Array | None = None,
    *,
    margin: float,
    reduction: str = "hardest",
    normalise: bool = True,
    axis_name: AxisName = None,
    block_size: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The terms of `ranking_loss` for this device's rows: captions against videos [B], videos
    against captions [B].

    Raises:
      ValueError: as `ranking_loss`.
    """
    t, v = prepared(normalise, t=t, v=v)
    if reduction not in ("hardest", "sum"):
        raise ValueError(f"reduction is {reduction!r}; expected 'hardest' or 'sum'.")
    check_plan("gather", block_size)
    ids = _ids(t, v, video_id, axis_name)
    every = gather(ids, axis_name)
    own = (wide(t) * wide(v)).sum(axis=1)

    def against(anchors, others):
        others = gather(others, axis_name)

        def rows(anchors, own, ids):
            hinge = jax.nn.relu(margin + dots("id,jd->ij", anchors, others) - own[:, None])
            hinge = jnp.where(ids[:, None] == every[None, :], 0, hinge)
            return hinge.max(axis=1) if reduction == "hardest" else hinge.sum(axis=1)

        return over_rows(rows, anchors, own, ids, columns=others.shape[0], block_size=block_size)

    return against(t, v), against(v, t)


@any_mesh
def max_margin(
    similarity: jax.Array,
    *,
    margin: float,
    count_diagonal: bool = False,
    axis_name: AxisName = None,
) -> jax.Array:
    """The ranking loss averaged over all negatives, of a similarity that any model made.

    loss = mean over i != j of both directions:
    (margin + s_ij - s_ii)_+ and (margin + s_ji - s_ii)_+

    Args:
      similarity: [B, B_global], row i of this device against all columns; the pair of row i is the
        column of the same position in the global batch. Gradient flows.
      margin: the gap asked for.
      count_diagonal: average over all 2 B^2 entries, the diagonal's constant `margin` included
        (`fix_norm=False` of the authors' code).
      axis_name: mapped axis over which the rows are split.

    Returns:
      Scalar, in units of similarity; `margin` where all similarities are equal; 0 for one row.

    Raises:
      ValueError: a matrix that is not square over all devices, `axis_name` not mapped.

    Reference: Gabeur et al., Multi-modal Transformer for Video Retrieval, ECCV 2020: the authors'
      MaxMarginRankingLoss.
    """
    s, rows = _square(similarity, axis_name)
    own, columns = jnp.take_along_axis(s, rows[:, None], axis=1), s.shape[1]
    off = jnp.arange(columns)[None, :] != rows[:, None]
    hinge = jax.nn.relu(margin + s - own) + jax.nn.relu(margin + s - gather(own, axis_name).T)
    if count_diagonal:
        return total(hinge.sum(), axis_name) / real_count(2 * columns * columns)
    pairs = 2 * columns * (1 if columns == 1 else columns - 1)
    return total(jnp.where(off, hinge, 0).sum(), axis_name) / real_count(pairs)


@any_mesh
def similarity_info_nce(similarity: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
    """Cross-entropy of rows plus cross-entropy of columns, of a similarity that any model made
    (scaled already).

    loss = mean_i [ log sum_j exp(s_ij) - s_ii ] + mean_i [ log sum_j exp(s_ji) - s_ii ]

    Args:
      similarity: [B, B_global], row i of this device against all columns, as for `max_margin`;
        gradient flows.
      axis_name: mapped axis over which the rows are split.

    Returns:
      Scalar in nats; 2 log B_global at chance level. The sum of both directions, not their mean.

    Raises:
      ValueError: a matrix that is not square over all devices, `axis_name` not mapped.

    Reference: Gabeur et al., ECCV 2020: the authors' InfoNceLoss.
    """
    s, rows = _square(similarity, axis_name)
    columns = lax.dynamic_slice_in_dim(gather(s, axis_name), rows[0], s.shape[0], axis=1).T

    def log_p(s):
        return jnp.take_along_axis(log_softmax(s, axis=1), rows[:, None], axis=1)[:, 0]

    return -mean((log_p(s) + log_p(columns)).mean(), axis_name)


def _remembered(t, memory, allowed, support):
    """The memory [K, D] without gradient and what of it each caption is allowed [B, K]."""
    if memory is None:
        if allowed is not None:
            raise ValueError("memory_allowed is given without a memory; pass memory [K, D] too.")
        return None, None
    if support == "identity":
        raise ValueError(
            'support="identity" writes each caption from its own video; leave out the memory.'
        )
    sizes = check("k d", check("b d", t=t), memory=memory)
    shape = sizes["b"], sizes["k"]
    allowed = jnp.ones(shape, bool) if allowed is None else jnp.asarray(allowed)
    if allowed.dtype != bool or allowed.shape != shape:
        raise ValueError(
            f"memory_allowed is {allowed.dtype}{list(allowed.shape)}; expected booleans "
            f"{list(shape)}, captions by rows of the memory."
        )
    return lax.stop_gradient(memory), allowed


def _ids(t, v, video_id, axis_name):
    """[B] the number of each row's video: its position in the global batch unless given."""
    sizes = check("b d", t=t, v=v)
    check_axis(axis_name)
    if video_id is None:
        return first_row(sizes["b"], axis_name) + jnp.arange(sizes["b"])
    check_integer("b", sizes, video_id=video_id)
    return separate_unlabelled(video_id, axis_name)


def _square(similarity, axis_name):
    """The matrix, wide, and the positions of its rows in the global batch."""
    sizes = check("b n", similarity=similarity)
    check_axis(axis_name)
    rows = sizes["b"]
    expected = rows * axis_size(axis_name)
    if sizes["n"] != expected:
        raise ValueError(
            f"similarity has shape {similarity.shape}; expected [{rows}, {expected}]: every "
            "row against every column. With axis_name, pass this device's rows and all columns."
        )
    return wide(similarity), first_row(rows, axis_name) + jnp.arange(rows)
