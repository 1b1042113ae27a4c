"""Losses between views of one example with nothing pushed apart: BYOL, SimSiam, FastSiam, DINO."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import AxisName, any_mesh, axes_of, mean, num_splits, spread, varying
from cl_jax.core.linear import linear
from cl_jax.core.numerics import at_least_one, common_type, unit, wide, wide_type
from cl_jax.core.shapes import check, check_axis, check_positive
from cl_jax.losses._owners import check_owners


@any_mesh
def byol(
    p_a: jax.Array,
    p_b: jax.Array,
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    released_gradient: bool = False,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pulls the prediction made from each view to the target's projection of the other view.

    loss = mean_i [ |n(p_a) - n(z_b)|^2 + |n(p_b) - n(z_a)|^2 ],  |n(p) - n(z)|^2 = 2 - 2 cos(p, z)

    Args:
      p_a, p_b: [B, D] predictions of the online network for views a and b, not normalised; gradient
        flows.
      z_a, z_b: [B, D] projections of the target network for views a and b, not normalised; no
        gradient.
      released_gradient: a prediction shorter than 1e-6 has zero gradient; True gives it the one of
        the authors' code, up to 1e6 times the others'.
      axis_name: mapped axis over which the batch is split.

    Returns:
      Scalar from 0 (aligned) to 8 (opposite); 4 at chance level. A zero row is normalised to zero:
      1 per direction.

    Raises:
      ValueError: shapes that disagree, inputs that are not real, `axis_name` not mapped.

    Reference: Grill et al., Bootstrap your own latent, NeurIPS 2020, equation 2 both ways; n(x)
      divides by max(|x|, 1e-6), as the authors' code.
    """
    check("b d", p_a=p_a, p_b=p_b, z_a=z_a, z_b=z_b)
    check_axis(axis_name)
    rows = byol_rows(p_a, z_b, released_gradient=released_gradient)
    rows += byol_rows(p_b, z_a, released_gradient=released_gradient)
    return mean(rows.mean(), axis_name)


@any_mesh
def byol_rows(p: jax.Array, z: jax.Array, *, released_gradient: bool = False) -> jax.Array:
    """One direction of `byol` per row: [B, D], [B, D] -> [B] from 0 to 4; no gradient to z."""
    check("b d", p=p, z=z)
    p = unit(p, 1e-6, short_gradient=released_gradient)
    return jnp.square(p - unit(lax.stop_gradient(z), 1e-6)).sum(axis=-1)


@any_mesh
def simsiam(
    p_a: jax.Array,
    p_b: jax.Array,
    z_a: jax.Array,
    z_b: jax.Array,
    *,
    released_gradient: bool = False,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pulls the prediction made from each view to the same network's projection of the other view.

    loss = -1/2 mean_i [ cos(p_a, z_b) + cos(p_b, z_a) ]

    Args:
      p_a, p_b: [B, D] predictions for views a and b, not normalised; gradient flows.
      z_a, z_b: [B, D] projections for views a and b, not normalised; no gradient *in this use*:
        through p = predictor(z) it flows, so pass z as it is.
      released_gradient: a prediction shorter than 1e-8 has zero gradient; True gives it the one of
        the authors' code, up to 1e8 times the others'.
      axis_name: mapped axis over which the batch is split.

    Returns:
      Scalar from -1 (aligned, or collapsed) to 1; 0 at chance level. A zero row counts 0.

    Raises:
      ValueError: shapes that disagree, inputs that are not real, `axis_name` not mapped.

    Reference: Chen and He, Exploring simple Siamese representation learning, CVPR 2021, equations 1
      to 4; each norm is at least 1e-8, as in the authors' cosine.
    """
    check("b d", p_a=p_a, p_b=p_b, z_a=z_a, z_b=z_b)
    check_axis(axis_name)
    rows = simsiam_rows(p_a, z_b, released_gradient=released_gradient)
    rows += simsiam_rows(p_b, z_a, released_gradient=released_gradient)
    return mean(rows.mean() / 2, axis_name)


@any_mesh
def simsiam_rows(p: jax.Array, z: jax.Array, *, released_gradient: bool = False) -> jax.Array:
    """The negative cosine of each row: [B, D], [B, D] -> [B] from -1 to 1; no gradient to z."""
    check("b d", p=p, z=z)
    p = unit(p, 1e-8, short_gradient=released_gradient)
    return -(p * unit(lax.stop_gradient(z), 1e-8)).sum(axis=-1)


@any_mesh
def fastsiam(p: jax.Array, z: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
    """Pulls the prediction made from each of V views to the mean of the same network's projections
    of all others.

    loss = -1/V mean_i sum_v cos(p_v, 1/(V-1) sum_{w != v} z_w); two views are `simsiam`

    Args:
      p: [V, B, D] predictions, not normalised; gradient flows.
      z: [V, B, D] projections, not normalised, nor before their mean; no gradient in this use, as
        in `simsiam`.
      axis_name: mapped axis over which the batch is split.

    Returns:
      Scalar from -1 (aligned, or collapsed) to 1; 0 at chance level. A zero row counts 0.

    Raises:
      ValueError: shapes that disagree, fewer than two views, inputs that are not real, `axis_name`
        not mapped.

    Reference: Pototzky, Sultan and Schmidt-Thieme, FastSiam: resource-efficient self-supervised
      learning on a single GPU, GCPR 2022, every view predicting in turn; as in lightly's program of
      it.
    """
    check("v b d", p=p, z=z)
    check_axis(axis_name)
    views = p.shape[0]
    if views < 2:
        raise ValueError(
            f"p has shape {p.shape}: {views} view; each predicts the others, so expected 2 or more."
        )
    z = lax.stop_gradient(wide(z))
    others = [jnp.concatenate([z[:v], z[v + 1 :]]).mean(axis=0) for v in range(views)]
    return mean(jnp.stack([simsiam_rows(p[v], others[v]) for v in range(views)]).mean(), axis_name)


@any_mesh
def dino(
    student: jax.Array | Sequence[jax.Array],
    teacher: jax.Array | Sequence[jax.Array],
    centre: jax.Array,
    *,
    student_temperature: float,
    teacher_temperature: float | jax.Array,
    axis_name: AxisName = None,
) -> jax.Array:
    """Pulls the student's distribution on every view to the teacher's centred, sharpened one on
    every *other* view.

    loss = 1/(T (V - 1)) sum_j sum_(v != j) mean_i  -<softmax((teacher_j - centre) /
                                                      teacher_temperature), log softmax(student_v /
                                                      student_temperature)>

    Args:
      student: [V, B, K] logits of all views, those the teacher sees first and in its order, or a
        list of V arrays [B, K]; gradient flows. A list is faster than its stack on a CPU.
      teacher: [T, B, K] logits of the first T views (the two global crops), or a list; raw; no
        gradient.
      centre: [K] running mean of the teacher's logits, not yet moved by this step; no gradient.
        Move it after the loss with `cl_jax.memory.centre.update`.
      student_temperature: above 0 (0.1).
      teacher_temperature: above 0 (0.04 to 0.07, see `teacher_temperature`).
      axis_name: mapped axis over which the batch is split.

    Returns:
      Scalar in nats; log K at chance level, and after a collapse to the uniform distribution.

    Raises:
      ValueError: shapes that disagree, fewer than two student views, more teacher than student
        views, a temperature that is not above 0, `axis_name` not mapped.

    Reference: Caron et al., Emerging properties in self-supervised vision transformers, ICCV 2021,
      equation 3, algorithm 1.
    """
    apart = isinstance(student, (list, tuple))
    views: jax.Array = _stacked("student", student)
    seen: jax.Array = _stacked("teacher", teacher)
    sizes = check("t b k", check("v b k", student=views), teacher=seen)
    check("k", sizes, centre=centre)
    check_positive(student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    check_axis(axis_name)
    check_owners(sizes["v"], sizes["t"], range(sizes["t"]))
    dtype = wide_type(common_type(views, seen))
    student_scale, teacher_scale = (
        1 / jnp.asarray(t, dtype) for t in (student_temperature, teacher_temperature)
    )
    views, student_scale, *of_teacher = varying(
        (views, student_scale, *lax.stop_gradient((seen, centre, teacher_scale)))
    )
    # The stack of a list is not made where views are read one by one; blocks would need it.
    if not apart and _rows_of_block(views, of_teacher[0]):
        rows = _dino_rows_in_blocks(views, student_scale, *of_teacher)
    else:
        rows = _dino_rows(views, student_scale, _targets(*of_teacher))
    value = jnp.sum(jnp.mean(rows, axis=1)) / (sizes["t"] * (sizes["v"] - 1))
    return mean(value, axis_name)


def _stacked(name: str, views: Any) -> Any:
    if not isinstance(views, (list, tuple)) or not views:
        return views
    check("b k", **{f"{name}[{i}]": x for i, x in enumerate(views)})
    return jnp.stack(views)


class _Targets(NamedTuple):
    """The teacher's distributions, from its logits and what is summed of each row, not written out.

    logits: T arrays [B, K]. centre: [K]. scale: 1 / temperature. Each T arrays [B, 1]: highest, of
    the logits; top, of the centred logits; log_total, of their exponentials' sum below the top.
    """

    logits: list[jax.Array]
    centre: jax.Array
    scale: jax.Array
    highest: list[jax.Array]
    top: list[jax.Array]
    log_total: list[jax.Array]

    def others(self, view: int) -> jax.Array:
        """[B, K] sum of the distributions of all views but this one."""
        powers = []
        for j, log_total in enumerate(self.log_total):
            if j != view:
                x = _centred(self.logits[j], self.highest[j], self.centre, log_total.dtype)
                powers.append(jnp.exp(_scaled_below(x, self.top[j], self.scale) - log_total))
        if not powers:  # of one teacher's view, this one
            return jnp.zeros(self.logits[0].shape, self.scale.dtype)
        return sum(powers[1:], powers[0])

    def count(self, view: int) -> int:
        return sum(j != view for j in range(len(self.log_total)))


def _targets(logits: jax.Array, centre: jax.Array, scale: jax.Array) -> _Targets:
    sums, views = [], _apart(list(logits))
    for x in views:
        highest = _top(wide(x))
        top = _top(_centred(x, highest, centre, scale.dtype))
        below = _scaled_below(_centred(x, _apart(highest), centre, scale.dtype), top, scale)
        sums.append((highest, top, _log_total(below)))
    return _Targets(views, centre, scale, *_apart([list(x) for x in zip(*sums)]))


@jax.custom_jvp
def _dino_rows(student: jax.Array, scale: jax.Array, targets: _Targets) -> jax.Array:
    """[V, B] sum over the others of `targets` of their cross-entropies with a view of the student.

    Passes over the logits keep sums of rows alone. What a pass needs of an entry it computes
    again: as an array of the logits' size it would cost a CPU more to write and read than its
    exponential. The derivative is by hand, since JAX's own keeps such arrays.
    """
    rows = []
    for view, logits in enumerate(_apart(list(student))):
        x = wide(logits).astype(scale.dtype)
        top, log_total = _student_sums(x, scale)
        below = _scaled_below(x, top, scale)
        rows.append(jnp.sum(targets.others(view) * (log_total - below), axis=1))
    return jnp.stack(rows)


@_dino_rows.defjvp
def _dino_rows_jvp(primals, tangents):
    return _dino_rows(*primals), linear(_dino_tangent, _dino_transpose, primals, tangents[:2])


def _dino_gradients(student, scale, targets):
    """Of each view: its logits below their maximum, and the gradient to them where scaled."""
    sums = _apart((targets.highest, targets.top, targets.log_total))
    targets = targets._replace(highest=sums[0], top=sums[1], log_total=sums[2])
    for view, logits in enumerate(_apart(list(student))):
        x = wide(logits).astype(scale.dtype)
        top, log_total = _apart(_student_sums(x, scale))
        softmax = jnp.exp(_scaled_below(x, top, scale) - log_total)
        yield x - top, targets.count(view) * softmax - targets.others(view)


def _dino_tangent(primals, moved):
    d_student, d_scale = moved
    scale = primals[1]
    return jnp.stack(
        [
            jnp.sum(g * (scale * wide(d).astype(g.dtype) + d_scale * x), axis=1)
            for (x, g), d in zip(_dino_gradients(*primals), d_student)
        ]
    )


def _dino_transpose(primals, cotangents):
    student, scale, _ = primals
    d_student, d_scale = _apart(jnp.zeros_like(student)), jnp.zeros_like(scale)
    for view, ((x, g), by_row) in enumerate(zip(_dino_gradients(*primals), cotangents)):
        # In place, since XLA's CPU compiler fills a `jnp.stack` number by number; and into zeros
        # that it does not know to be zeros, or it would pad each view and add them.
        d_view = (g * (scale * by_row)[:, None]).astype(student.dtype)
        d_student = lax.dynamic_update_index_in_dim(d_student, d_view, view, axis=0)
        d_scale += jnp.sum(jnp.sum(g * x, axis=1) * by_row)
    return d_student, d_scale


# Logits of a block, of all views: what a CPU's nearest cache holds; and up to how many are taken at
# once, from the cache of all cores.
BLOCK, WHOLE = 1 << 18, 1 << 21


def _rows_of_block(student: jax.Array, teacher: jax.Array) -> int:
    """How many rows a CPU takes at a time; 0 for all at once."""
    views, count, width = student.shape
    if jax.default_backend() != "cpu" or not isinstance(count, int) or not isinstance(width, int):
        return 0
    each = (views + teacher.shape[0]) * width
    if count * each <= WHOLE or num_splits(count, student, teacher) > 1:
        return 0
    fit = [n for n in range(1, count + 1) if count % n == 0 and n * each <= BLOCK]
    rows = max(fit, default=1)
    return rows if 4 * rows * each >= BLOCK else 0  # not in splinters


@jax.custom_jvp
def _dino_rows_in_blocks(student, scale, teacher, centre, teacher_scale) -> jax.Array:
    """`_dino_rows`, of some rows at a time, whose passes then stay in a CPU's cache."""

    def some(block):
        targets = _targets(_part(teacher, block, rows), centre, teacher_scale)
        return _dino_rows(_part(student, block, rows), scale, targets)

    rows = _rows_of_block(student, teacher)
    found = lax.map(some, jnp.arange(student.shape[1] // rows))
    return jnp.moveaxis(found, 0, 1).reshape(student.shape[:2])


@_dino_rows_in_blocks.defjvp
def _dino_rows_in_blocks_jvp(primals, tangents):
    return _dino_rows_in_blocks(*primals), linear(
        _blocks_tangent, _blocks_transpose, primals, tangents[:2]
    )


def _blocks_tangent(primals, moved):
    student, scale, *of_teacher = primals
    return _dino_tangent((student, scale, _targets(*of_teacher)), moved)


def _blocks_transpose(primals, cotangents):
    student, scale, teacher, centre, teacher_scale = primals
    rows = _rows_of_block(student, teacher)
    blocks = student.shape[1] // rows

    def gradients(block):
        targets = _targets(_part(teacher, block, rows), centre, teacher_scale)
        found = _dino_gradients(_part(student, block, rows), scale, targets)
        return zip(found, _part(cotangents, block, rows))

    def to_student(block, d_student):
        for view, ((_, g), by_row) in enumerate(gradients(block)):
            d_view = (g * (scale * by_row)[:, None]).astype(student.dtype)[None]
            d_student = lax.dynamic_update_slice(d_student, d_view, (view, block * rows, 0))
        return d_student

    def to_scale(block):
        return sum(jnp.sum(jnp.sum(g * x, axis=1) * by_row) for (x, g), by_row in gradients(block))

    zeros = spread(jnp.zeros(student.shape, student.dtype), axes_of(student))
    # A loop of its own, which is left out where no temperature is learned.
    d_scale = jnp.sum(lax.map(to_scale, jnp.arange(blocks))).astype(scale.dtype)
    return lax.fori_loop(0, blocks, to_student, zeros), d_scale


def _part(x: jax.Array, block: jax.Array, rows: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, block * rows, rows, axis=1)


def _student_sums(x: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    top = _top(x)
    return _apart((top, _log_total(_scaled_below(x, top, scale))))


def _centred(x: jax.Array, highest: jax.Array, centre: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Large logits, less the largest, lose nothing to the rounding of the centre's subtraction."""
    return (wide(x) - highest).astype(dtype) - wide(centre).astype(dtype)[None]


def _top(x: jax.Array) -> jax.Array:
    return lax.stop_gradient(jnp.max(x, axis=1, keepdims=True))


def _scaled_below(x: jax.Array, top: jax.Array, scale: jax.Array) -> jax.Array:
    """scale * (x - top), at most 0."""
    # A scale for each row: of a scalar, XLA's sums over rows on a CPU read an array as large as x.
    by_row = jnp.where(jnp.isnan(top), top, scale)
    return (_at_most(x, top) - top) * by_row


@jax.custom_jvp
def _at_most(x: jax.Array, top: jax.Array) -> jax.Array:
    """x, held at its row's maximum, above which another kernel may have rounded it; with the
    gradient of x."""
    return jnp.minimum(x, top)


@_at_most.defjvp
def _at_most_jvp(primals, tangents):
    return _at_most(*primals), tangents[0]


def _log_total(x: jax.Array) -> jax.Array:
    return jnp.log(at_least_one(jnp.sum(jnp.exp(x), axis=1, keepdims=True)))


# The compiler takes what it returns for other numbers: what is computed of them is computed again
# and not kept. Views that went through it are cut out of their stack once, and not for each pass.
_apart = lax.optimization_barrier


def teacher_temperature(
    epoch: jax.Array | int, *, start: float, final: float, warmup_epochs: int
) -> jax.Array:
    """DINO's teacher temperature in an epoch: linear from `start`, at `final` from epoch
    warmup_epochs - 1 on.

    Args:
      epoch: number or array of numbers, the first is 0.
      start: temperature of epoch 0 (0.04).
      final: temperature after the warm-up (0.04 to 0.07).
      warmup_epochs: 0 for `final` throughout; 1 gives `start` in epoch 0 alone.

    Returns:
      Floating-point array of the shape of `epoch`.

    Raises:
      ValueError: a temperature that is not above 0.

    Reference: Caron et al., ICCV 2021, appendix; the authors' ramp includes both ends.
    """
    check_positive(start=start, final=final)
    epoch = jnp.asarray(epoch, jnp.result_type(float))
    ramp = start + (final - start) * (epoch / max(warmup_epochs - 1, 1))
    return jnp.where(epoch < warmup_epochs, ramp, final)


@any_mesh
def swapped_cross_entropy(log_p: jax.Array, targets: jax.Array, owners: Sequence[int]) -> jax.Array:
    """Mean of -<targets_a, log_p_v> over the batch and all pairs (a, v) of different views, what
    SwAV and DINO share; for distributions of your own.

    Args:
      log_p: [V, B, K] log-probabilities predicted from each view; gradient flows.
      targets: [A, B, K] distributions; no gradient.
      owners: A numbers: targets[a] was computed from view owners[a], which is not asked to predict
        it.

    Returns:
      Scalar in nats over this device's rows.

    Raises:
      ValueError: shapes that disagree, fewer than two views, an owner that is not a view.
    """
    sizes = check("v b k", log_p=log_p)
    sizes = check("a b k", sizes, targets=targets)
    views, owners = sizes["v"], check_owners(sizes["v"], sizes["a"], owners)
    dtype = wide_type(common_type(targets, log_p))
    targets, log_p = lax.stop_gradient(jnp.asarray(targets, dtype)), jnp.asarray(log_p, dtype)
    # One pass over all arrays, where a product of so few rows would move them into place first.
    rows = sum(
        jnp.sum(target * sum(log_p[v] for v in range(views) if v != owner), axis=1)
        for target, owner in zip(targets, owners)
    )
    return -jnp.sum(rows) / (len(owners) * (views - 1) * sizes["b"])
