"""Contrastive predictive coding: a prediction of a later latent picks it out among other latents of
the batch."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, axis_size, first_row, gather, mean, num_splits
from cl_jax.core.numerics import dots, log_sum_exp, wide_type
from cl_jax.core.shapes import check, check_axis, check_integer, check_key, check_positive
from cl_jax.losses.contrast import allow, contrast, row_ids, same_example, same_id, side_of_tile


class Steps(NamedTuple):
    """loss: [K] nats of each step. accuracy: [K] shares of predictions whose own latent scores
    highest, no gradient; a tie with a copy of it counts."""

    loss: jax.Array
    accuracy: jax.Array


@any_mesh
def predictions(c: jax.Array, w: jax.Array) -> jax.Array:
    """Linear predictions of the latents of K steps: [..., C] contexts, [K, D, C] matrices -> [K,
    ..., D] of W_k c.

    Reference: van den Oord et al. 2018, arXiv 1807.03748, equation 3: one matrix per step, no bias.
    """
    check("k d c", check("... c", c=c), w=w)
    return dots("...c,kdc->k...d", c, w)


@any_mesh
def cpc(
    p: jax.Array,
    z: jax.Array,
    negatives: jax.Array | Sequence[jax.Array] | None = None,
    *,
    scale: float = 1.0,
    common_window: bool = True,
    exclude_own: bool = False,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls the prediction for time t + k to the latent found there, away from other latents of the
    batch.

    loss = mean_k mean_(b t) -log( e(z_b(t+k)) / (e(z_b(t+k)) + sum_j e(z_j)) ),
    e(z) = exp(scale <p_(k b t), z>)

    Args:
      p: [K, B, T, D] predictions, `p[k-1, b, t]` of `z[b, t+k]` from what is known at t
        (`predictions`); gradient flows. Times without a target are not used.
      z: [B, T, D] latents of the encoder, not of the context (which has seen them); gradient flows
        to positives and negatives. Neither side is normalised.
      negatives: None: all other latents of the global batch. Or integers, positions in the latents
        of the global batch, z.reshape(B * T, D): [B, N, T-K], N for each (b, t), the same for all
        steps (`sample_negatives`), or for each step an array [B, N, T-k or T-K]. A negative that is
        the positive counts as a second class, as in both public programs.
      scale: multiplies the scores; above 0. 1 in the paper, 1/D in CPC_audio (mean over channels).
      common_window: True: times t < T - K for every step (CPC_audio). False: t < T - k for step k,
        all there are.
      exclude_own: with negatives=None, leaves out the sequence's own other latents.
      axis_name: mapped axis over which the batch is split. Latents are gathered, sequences in rank
        order; `negatives` are those of this device's sequences.
      plan, block_size: with negatives=None, how devices share latents and the side of a tile, as in
        `contrast`.

    Returns:
      Scalar in nats; log(number of classes) at chance level. log(classes) - loss bounds mutual
      information from below. Both public programs differ in what they sum: CPC_audio adds the
      steps (`cpc_steps(...).loss.sum()`).

    Raises:
      ValueError: shapes that disagree, as many steps as times or more, negatives of a wrong shape
        or type, a scale not above 0, `axis_name` not mapped.

    Reference: van den Oord et al., Representation learning with contrastive predictive coding,
      2018, equation 4.
    """
    return cpc_steps(
        p,
        z,
        negatives,
        scale=scale,
        common_window=common_window,
        exclude_own=exclude_own,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    ).loss.mean()


@any_mesh
def cpc_steps(
    p: jax.Array,
    z: jax.Array,
    negatives: jax.Array | Sequence[jax.Array] | None = None,
    *,
    scale: float = 1.0,
    common_window: bool = True,
    exclude_own: bool = False,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> Steps:
    """Loss and accuracy of each step of `cpc`, over the global batch.

    Raises:
      ValueError: as `cpc`.
    """
    if negatives is not None:
        if exclude_own:
            raise ValueError(
                "exclude_own has no meaning where negatives are given: choose them from other "
                "sequences."
            )
        index = _indices(p, z, negatives, common_window)
        logits = cpc_logits(
            p, z, negatives, scale=scale, common_window=common_window, axis_name=axis_name
        )
        steps = [_first_of(s, *at) for s, at in zip(logits, _positions(z, index, axis_name))]
    else:
        sizes = _check_times(p, z, axis_name, scale)
        example, queries, labels = row_ids(sizes["b"], axis_name)[:, None], [], []
        for step in range(1, sizes["k"] + 1):
            window = sizes["t"] - (sizes["k"] if common_window else step)
            queries.append(p[step - 1, :, :window])
            labels.append(example * sizes["t"] + step + jnp.arange(window)[None])
        steps = _among_all(queries, z, labels, scale, exclude_own, axis_name, plan, block_size)
    return _stack(steps, axis_name)


@any_mesh
def cpc_logits(
    p: jax.Array,
    z: jax.Array,
    negatives: jax.Array | Sequence[jax.Array],
    *,
    scale: float = 1.0,
    common_window: bool = True,
    axis_name: AxisName = None,
) -> tuple[jax.Array, ...]:
    """K arrays [B, 1+N, T-K or T-k]: the scores that `cpc` with given negatives compares, the
    positive first."""
    sizes = _check_times(p, z, axis_name, scale)
    index = _indices(p, z, negatives, common_window)
    everyone = gather(z, axis_name).reshape(-1, sizes["d"])
    shared = everyone[index[0]] if _is_shared(negatives) else None
    logits = []
    for step, positions in enumerate(index, start=1):
        window = positions.shape[2]
        other = everyone[positions] if shared is None else shared
        candidates = jnp.concatenate([z[:, None, step : step + window], other], axis=1)
        logits.append(scale * dots("bwd,bnwd->bnw", p[step - 1, :, :window], candidates))
    return tuple(logits)


@any_mesh
def cpc_grid(
    p: jax.Array,
    z: jax.Array,
    *,
    offsets: Sequence[int],
    scale: float,
    exclude_own: bool = False,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> jax.Array:
    """Pulls a patch's prediction for the patch some rows below to its latent, away from every other
    patch of the batch.

    loss = mean_k mean_(b r w) -log softmax_j( scale <p_(k b r w), z_j> )[z_b(r + offset_k)w],
    j over all patches

    Args:
      p: [K, B, H, W, D] predictions, `p[k, b, r, w]` of `z[b, r + offsets[k], w]` (`predictions`),
        made from rows up to r alone; gradient flows.
      z: [B, H, W, D] latents of the patches, not of the context; gradient flows to all. Neither
        side is normalised. For the other directions of CPC v2 flip or transpose the grid first.
      offsets: K row offsets, 1 to H - 1. Patches that overlap by half share pixels with the row
        below: skip it.
      scale: multiplies the scores; above 0 (1 in CPC, 0.1 in CPC v2).
      exclude_own: leaves out the image's own other patches, which otherwise are negatives, the
        context's among them.
      axis_name: mapped axis over which the batch is split; patches of all devices are classes.
      plan, block_size: how devices share patches and the side of a tile, as in `contrast`.

    Returns:
      Scalar in nats; log(B H W) at chance level.

    Raises:
      ValueError: shapes that disagree, offsets outside 1 to H - 1 or another number of them than of
        predictions, a scale not above 0, `axis_name` not mapped.

    Reference: van den Oord et al. 2018, section 3.2; Henaff et al., Data-efficient image
      recognition with contrastive predictive coding, ICML 2020, whose pseudo-code loops over one
      offset only.
    """
    return cpc_grid_steps(
        p,
        z,
        offsets=offsets,
        scale=scale,
        exclude_own=exclude_own,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    ).loss.mean()


@any_mesh
def cpc_grid_steps(
    p: jax.Array,
    z: jax.Array,
    *,
    offsets: Sequence[int],
    scale: float,
    exclude_own: bool = False,
    axis_name: AxisName = None,
    plan: str = "gather",
    block_size: int | None = None,
) -> Steps:
    """Loss and accuracy of each offset of `cpc_grid`, over the global batch.

    Raises:
      ValueError: as `cpc_grid`.
    """
    sizes = check("k b h w d", check("b h w d", z=z), p=p)
    check_positive(scale=scale)
    check_axis(axis_name)
    offsets, height, width = tuple(int(offset) for offset in offsets), sizes["h"], sizes["w"]
    if len(offsets) != sizes["k"] or not all(1 <= offset < height for offset in offsets):
        raise ValueError(
            f"offsets are {list(offsets)}; expected {sizes['k']} row offsets from 1 to "
            f"{height - 1}, one "
            f"for each of the predictions {p.shape}."
        )
    example = row_ids(sizes["b"], axis_name)[:, None, None]
    queries = [predicted[:, : height - offset] for predicted, offset in zip(p, offsets)]
    labels = [
        (example * height + jnp.arange(offset, height)[None, :, None]) * width
        + jnp.arange(width)[None, None]
        for offset in offsets
    ]
    return _stack(
        _among_all(queries, z, labels, scale, exclude_own, axis_name, plan, block_size), axis_name
    )


@any_mesh
def offset_negatives(draw_batch: jax.Array, draw_offset: jax.Array, *, length: int) -> jax.Array:
    """Positions of CPC_audio's negatives: sequence draw_batch at time (t + draw_offset) mod T; [B,
    N, W] each."""
    check_integer("b n w", check_integer("b n w", draw_batch=draw_batch), draw_offset=draw_offset)
    return (
        draw_batch * length + (draw_offset + jnp.arange(draw_offset.shape[2])[None, None]) % length
    )


@any_mesh
def sample_negatives(
    keys: jax.Array, *, batch_size: int, length: int, window: int, num_negatives: int
) -> jax.Array:
    """Draws CPC_audio's negatives: any sequence of the batch, at any time but the context's own.

    Args:
      keys: [B] `jax.random` keys, one for each example, so that draws do not depend on the number
        of devices.
      batch_size: of the global batch.
      length: T, latents per sequence; at least 2.
      window: times that are predicted from, T - K.
      num_negatives: N.

    Returns:
      [B, N, window] positions in z.reshape(batch_size * T, D) for `cpc`.

    Raises:
      ValueError: no vector of random keys, a length below 2, no negatives.
    """
    check_key(1, keys=keys)
    if length < 2 or num_negatives < 1 or not 1 <= window < length:
        raise ValueError(
            f"length is {length}, window {window}, num_negatives {num_negatives}; expected a "
            f"length of at "
            "least 2, a window below it and at least one negative."
        )

    def one(key):
        sequence, offset = jax.random.split(key)
        shape = (num_negatives, window)
        return (
            jax.random.randint(sequence, shape, 0, batch_size),
            jax.random.randint(offset, shape, 1, length),
        )

    return offset_negatives(*jax.vmap(one)(keys), length=length)


@any_mesh
def permuted_negatives(
    permutations: jax.Array, *, batch_size: int, length: int, step: int
) -> jax.Array:
    """Negatives of one step from permutations of all latents, the scheme of Spijkervet's audio CPC.

    Args:
      permutations: [N, B * T] integers, each row a permutation.
      batch_size, length: B, T.
      step: k, from 1.

    Returns:
      [B, N, T-k] positions for `cpc(..., common_window=False)`: the last B (T - k) entries of each
      permutation, dealt to the (b, t) in order. A negative can be the positive.

    Raises:
      ValueError: permutations that are not integers [N, B * T].
    """
    check_integer("n m", {"m": batch_size * length}, permutations=permutations)
    window = length - step
    dealt = permutations[:, batch_size * step :].reshape(-1, batch_size, window)
    return jnp.moveaxis(dealt, 0, 1)


def _check_times(p, z, axis_name, scale):
    sizes = check("k b t d", check("b t d", z=z), p=p)
    check_positive(scale=scale)
    check_axis(axis_name)
    if sizes["k"] >= sizes["t"]:
        raise ValueError(
            f"p has shape {p.shape}: {sizes['k']} steps of {sizes['t']} times; expected fewer "
            f"steps than "
            "times, since step k is predicted from the first T - k. Is p [K, B, T, D]?"
        )
    return sizes


def _is_shared(negatives):
    return not isinstance(negatives, (list, tuple))


def _indices(p, z, negatives, common_window):
    """Negatives as one array for each step, of checked shapes."""
    steps, batch, times = p.shape[:3]
    if _is_shared(negatives) and not common_window:
        raise ValueError(
            "One array of negatives serves all steps only over the common window T - K. Pass a "
            "list of K "
            "arrays [B, N, T-k], or common_window=True."
        )
    each = [negatives] * steps if _is_shared(negatives) else list(negatives)
    if len(each) != steps:
        raise ValueError(
            f"There are negatives for {len(each)} steps and predictions for {steps}; expected as "
            f"many."
        )
    for step, positions in enumerate(each, start=1):
        window = times - (steps if common_window else step)
        check_integer(
            "b n w", {"b": batch, "w": window}, **{f"negatives of step {step}": positions}
        )
    return each


def _positions(z, index, axis_name):
    """For each step the positions of negatives and positives among all latents."""
    batch, times = z.shape[:2]
    example = first_row(batch, axis_name) + jnp.arange(batch)[:, None]
    return [
        (positions, (example * times + step + jnp.arange(positions.shape[2])[None])[:, None])
        for step, positions in enumerate(index, start=1)
    ]


def _first_of(logits, negative_at, positive_at):
    """Cross-entropy to candidate 0 of [B, 1+N, W], and the share where it wins; it wins against
    copies of itself."""
    positive, negative = logits[:, 0], logits[:, 1:]
    beaten = (negative > positive[:, None]) & (negative_at != positive_at)
    return (log_sum_exp(logits, axis=1) - positive).mean(), 1 - beaten.any(axis=1).mean(
        dtype=logits.dtype
    )


def _among_all(queries, z, labels, scale, exclude_own, axis_name, plan, block_size):
    """For each step the cross-entropy of queries [B, ..., D] to the latents numbered `labels` [B,
    ...] among those of all devices, and the share where they win, ties included."""
    places = z[0].size // z.shape[-1]
    keys = z.reshape(-1, z.shape[-1])
    ids = row_ids(keys.shape[0], axis_name)
    cols = {"id": ids, "example": ids // places}
    if block_size is None:  # the logits of all steps wait for the backward pass together
        predicted = sum(label.size for label in labels)
        columns = keys.shape[0] * axis_size(axis_name)
        parts = num_splits(queries[0].shape[0], z)
        block_size = side_of_tile(predicted * columns * wide_type(z.dtype).itemsize // parts)

    def others_and_target(rows, cols):
        return allow(~same_example(rows, cols) | same_id(rows, cols))

    def step(queries, label):
        label = label.reshape(-1)
        out = contrast(
            queries.reshape(-1, z.shape[-1]),
            keys,
            scale=scale,
            rows={"id": label, "example": label // places},
            cols=cols,
            positive=same_id,
            log_weight=others_and_target if exclude_own else None,
            axis_name=axis_name,
            plan=plan,
            block_size=block_size,
        )
        return out.gap.mean(), (out.pos >= out.highest).mean(dtype=out.gap.dtype)

    return [step(*pair) for pair in zip(queries, labels)]


def _stack(steps, axis_name):
    loss, accuracy = (mean(jnp.stack(values), axis_name) for values in zip(*steps))
    return Steps(loss, lax.stop_gradient(accuracy))
