"""Cross-entropies of views' rows of logits under distributions: what DINO, SwAV, DeepCluster, soft
labels and plain labels share.

Passes over the logits keep sums of rows alone. What a pass needs of an entry it computes again: as
an array of the logits' size it would cost more to write and read than its exponential. The
derivative is by hand, since JAX's own keeps such arrays.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from cl_jax.core.axis import varying
from cl_jax.core.linear import linear
from cl_jax.core.numerics import at_least_one, common_type, wide, wide_type
from cl_jax.core.shapes import check
from cl_jax.losses._blocks import by_rows

Views = jax.Array | Sequence[jax.Array]  # [V, B, K], or V arrays [B, K]


class Codes(NamedTuple):
    """Distributions that are written out."""

    given: Any


class Labels(NamedTuple):
    """Distributions with all mass on one class: integer labels, arrays [B]."""

    given: Any


class Softmaxes(NamedTuple):
    """softmax(scale * (logits - centre)), not written out. centre: [K] or None."""

    logits: Any
    centre: jax.Array | None
    scale: jax.Array


def check_views(
    spec: str, name: str, views: Any, sizes: Mapping[str, int] | None = None
) -> dict[str, int]:
    """`shapes.check` of an array of views, or of each array of a list."""
    if not isinstance(views, (list, tuple)) or not views:
        return check(spec, sizes, **{name: views})
    count, of_each = spec.split(" ", 1)
    named = {f"{name}[{i}]": x for i, x in enumerate(views)}
    return check(of_each, sizes, **named) | {count: len(views)}


def of_others(views: int, owners: Sequence[int]) -> list[list[int]]:
    """For each view the numbers of the targets that another view owns."""
    return [[a for a, owner in enumerate(owners) if owner != view] for view in range(views)]


def cross_entropies(
    views: Views,
    scale: jax.Array,
    targets: Codes | Labels | Softmaxes,
    predicts: Sequence[Sequence[int]],
) -> jax.Array:
    """[V, B] -<sum of the targets that a view predicts, log softmax(scale * view)> of each row.

    predicts: of each view, the numbers of those targets.
    """
    arrays, *knobs = targets
    if isinstance(targets, Labels):
        arrays = [x[:, None] for x in arrays]
    floats = views if isinstance(targets, Labels) else (views, arrays)
    dtype = wide_type(common_type(*jax.tree.leaves(floats)))
    targets = type(targets)(_tuple(arrays), *knobs)
    given = varying((_tuple(views), jnp.asarray(scale, dtype), targets))
    rows = _entropies(tuple(map(tuple, predicts)), *given)[0]
    return jnp.concatenate(rows, axis=1).T


def _tuple(views: Any) -> Any:
    return tuple(views) if isinstance(views, list) else views


class _Sums(NamedTuple):
    """What is summed of rows, [B, 1] of each view: top, the highest logit; log_total, the logarithm
    of the sum of exponentials below it; of_targets, see `_distributions`."""

    top: tuple[jax.Array, ...]
    log_total: tuple[jax.Array, ...]
    of_targets: Any


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _entropies(predicts, views, scale, targets) -> tuple[tuple[jax.Array, ...], _Sums]:
    """[B, 1] of each view, and what its gradient is computed from."""
    arrays, *knobs = targets

    def f(views, arrays):
        return _values(predicts, views, scale, type(targets)(arrays, *knobs))

    return by_rows(f, views, arrays)


def _entropies_jvp(predicts, primals, tangents):
    out = _entropies(predicts, *primals)
    views, scale, targets = primals
    d_views, d_scale, d_targets = tangents
    moved = jax.tree.map(jnp.zeros_like, out)
    if _moves((d_views, d_scale)):
        learned = not _is_zero(d_scale)
        inputs = _instantiated(d_views), d_scale if learned else None
        rows, totals = linear(
            partial(_tangents, predicts),
            partial(_transposed, predicts, learned),
            (*primals, out[1]),
            varying((inputs, views))[0],
        )
        moved = rows, moved[1]._replace(log_total=totals)
    if _moves(d_targets):
        f = partial(_values, predicts, views, scale)
        of_targets = jax.jvp(f, (targets,), (_instantiated(d_targets),))[1]
        moved = jax.tree.map(jnp.add, moved, of_targets)
    return out, moved


_entropies.defjvp(_entropies_jvp, symbolic_zeros=True)


def _is_zero(x):
    return isinstance(x, SymbolicZero)


def _moves(tangents) -> bool:
    return not all(map(_is_zero, jax.tree.leaves(tangents, is_leaf=_is_zero)))


def _instantiated(tangents):
    def one(x):
        return jnp.zeros(x.shape, x.dtype) if _is_zero(x) else x

    return jax.tree.map(one, tangents, is_leaf=_is_zero)


def _values(predicts, views, scale, targets):
    distributions, of_targets = _distributions(targets, views[0].shape, scale.dtype)
    rows, tops, totals = [], [], []
    for view, own in zip(views, predicts):
        x = wide(view).astype(scale.dtype)
        top = _top(x)
        below = _scaled(_below(x, top), top, scale)
        log_total = jnp.log(_total(jnp.exp(below)))
        predicted = _chosen(own, distributions)
        rows.append(jnp.sum(predicted * (log_total - below), axis=1, keepdims=True))
        tops.append(top)
        totals.append(log_total)
    return tuple(rows), _Sums(tuple(tops), tuple(totals), of_targets)


def _terms(predicts, views, scale, targets, sums):
    """Of each view: its logits below their maximum, their softmax, the sum of what it predicts, and
    that sum's mass."""
    shape, dtype = views[0].shape, scale.dtype
    distributions, of_targets = _distributions(targets, shape, dtype, sums.of_targets)
    ones = [jnp.ones((1, 1), scale.dtype)] * len(distributions)
    masses = of_targets if isinstance(targets, Codes) else ones
    for view, own, top, log_total in zip(views, predicts, sums.top, sums.log_total):
        below = _below(wide(view).astype(scale.dtype), top)
        softmax = jnp.exp(_scaled(below, top, scale) - log_total)
        yield below, softmax, _chosen(own, distributions), _chosen(own, masses)


def _tangents(predicts, residuals, moved):
    views, scale, targets, sums = residuals
    arrays, *knobs = targets
    d_views, d_scale = moved

    def f(views, arrays, sums, d_views):
        rows, totals = [], []
        given = type(targets)(arrays, *knobs)
        terms = _terms(predicts, views, scale, given, sums)
        for (below, softmax, predicted, mass), d in zip(terms, d_views):
            d = scale * wide(d).astype(scale.dtype)
            if d_scale is not None:
                d = d + d_scale * below
            rows.append(jnp.sum((mass * softmax - predicted) * d, axis=1, keepdims=True))
            totals.append(jnp.sum(softmax * d, axis=1, keepdims=True))
        return tuple(rows), tuple(totals)

    return by_rows(f, views, arrays, sums, d_views)


def _transposed(predicts, learned, residuals, cotangents):
    views, scale, targets, sums = residuals
    arrays, *knobs = targets
    stacked = not isinstance(views, tuple)

    def f(views, arrays, sums, of_rows, of_totals):
        d_views, d_scale = [], []
        given = type(targets)(arrays, *knobs)
        terms = _terms(predicts, views, scale, given, sums)
        for view, term, by_row, by_total in zip(views, terms, of_rows, of_totals):
            below, softmax, predicted, mass = term
            of_softmax = by_row * mass + by_total
            g = (scale * of_softmax) * softmax - (scale * by_row) * predicted
            d_views.append(g.astype(view.dtype))
            if learned:
                g = of_softmax * softmax - by_row * predicted
                d_scale.append(jnp.sum(g * below, axis=1, keepdims=True))
        return d_views if stacked else tuple(d_views), tuple(d_scale)

    d_views, d_scale = by_rows(f, views, arrays, sums, *cotangents)
    return d_views, sum(map(jnp.sum, d_scale)).astype(scale.dtype) if learned else None


def _distributions(targets, shape, dtype, sums=None):
    """The targets [B, K], and of each the sums of rows: of codes the mass; of a softmax the highest
    logit before the centre is taken off, that after it, and the logarithm of the sum of
    exponentials below it."""
    if isinstance(targets, Codes):
        found = [wide(x).astype(dtype) for x in targets.given]
        if sums is None:
            sums = tuple(jnp.sum(x, axis=1, keepdims=True) for x in found)
        return found, sums
    if isinstance(targets, Labels):
        classes = jnp.arange(shape[1])[None]
        return [(classes.astype(x.dtype) == x).astype(dtype) for x in targets.given], ()
    found, by_target = [], []
    for i, x in enumerate(targets.logits):
        highest, top, log_total = (None, None, None) if sums is None else sums[i]
        x = wide(x).astype(dtype)
        if targets.centre is not None:
            # Large logits, less the largest, lose nothing to the rounding of the subtraction.
            highest = _top(x) if highest is None else highest
            x = (x - highest) - wide(targets.centre).astype(dtype)[None]
        top = _top(x) if top is None else top
        below = _scaled(_below(x, top), top, targets.scale)
        if log_total is None:
            powers = jnp.exp(below)
            total = _total(powers)
            found.append(powers / total)
            log_total = jnp.log(total)
        else:
            found.append(jnp.exp(below - log_total))
        by_target.append((highest, top, log_total))
    return found, tuple(by_target)


def _chosen(own, arrays):
    parts = [arrays[a] for a in own]
    return sum(parts[1:], parts[0]) if parts else jnp.zeros_like(arrays[0])


def _top(x):
    return lax.stop_gradient(jnp.max(x, axis=1, keepdims=True))


def _total(powers):
    return at_least_one(jnp.sum(powers, axis=1, keepdims=True))


def _scaled(below, top, scale):
    # A scale for each row: of a scalar, XLA's sums over rows on a CPU read an array as large as x.
    return below * jnp.where(jnp.isnan(top), top, scale)


@jax.custom_jvp
def _below(x, top):
    """`capped` of x - top, in one operation less where it is not differentiated."""
    return jnp.minimum(x - top, 0)


@_below.defjvp
def _below_jvp(primals, tangents):
    return _below(*primals), tangents[0] - tangents[1]
