"""Cross-entropies of views' rows of logits under distributions: DINO, SwAV and soft labels.

One pass over the logits, some rows at a time, gives the cross-entropies and their gradient, which
is the only array of the logits' size that is kept: JAX's own derivative keeps several, and reads
and writes them all.
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
from cl_jax.core.numerics import at_least_one, capped, common_type, wide, wide_type
from cl_jax.core.shapes import check
from cl_jax.losses._blocks import by_rows

Views = jax.Array | Sequence[jax.Array]  # [V, B, K], or V arrays [B, K]


class Codes(NamedTuple):
    """Distributions that are written out."""

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
    targets: Codes | Softmaxes,
    predicts: Sequence[Sequence[int]],
) -> jax.Array:
    """[V, B] -<sum of the targets that a view predicts, log softmax(scale * view)> of each row.

    predicts: of each view, the numbers of those targets.
    """
    arrays, *knobs = targets
    dtype = wide_type(common_type(*jax.tree.leaves((views, arrays))))
    targets = type(targets)(_tuple(arrays), *knobs)
    given = varying((_tuple(views), jnp.asarray(scale, dtype), targets))
    return jnp.concatenate(_entropies(tuple(map(tuple, predicts)), *given), axis=1).T


def _tuple(views: Any) -> Any:
    return tuple(views) if isinstance(views, list) else views


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _entropies(predicts, views, scale, targets) -> tuple[jax.Array, ...]:
    """[B, 1] of each view."""
    return _by_rows(partial(_values, predicts), views, scale, targets)


def _entropies_jvp(predicts, primals, tangents):
    views, scale, targets = primals
    d_views, d_scale, d_targets = tangents
    if _moves((d_views, d_scale)):
        learned = not _is_zero(d_scale)
        together = list if not isinstance(views, tuple) else tuple
        f = partial(_values_and_gradients, predicts, learned, together)
        out, *gradients = _by_rows(f, *primals)
        inputs = _instantiated(d_views), d_scale if learned else None
        moved = linear(_tangents, _transposed, (views, *gradients), varying((inputs, views))[0])
    else:
        out = _entropies(predicts, *primals)
        moved = jax.tree.map(jnp.zeros_like, out)
    if _moves(d_targets):
        f = partial(_values, predicts, views, scale)
        of_targets = jax.jvp(f, (targets,), (_instantiated(d_targets),))[1]
        moved = jax.tree.map(jnp.add, moved, of_targets)
    return out, moved


_entropies.defjvp(_entropies_jvp, symbolic_zeros=True)


def _by_rows(f, views, scale, targets):
    arrays, *knobs = targets
    return by_rows(
        lambda views, arrays: f(views, scale, type(targets)(arrays, *knobs)), views, arrays
    )


def _tangents(residuals, moved):
    (_, gradients, slopes), (d_views, d_scale) = residuals, moved
    rows = [
        jnp.sum(g * wide(d).astype(g.dtype), axis=1, keepdims=True)
        for g, d in zip(gradients, d_views)
    ]
    if d_scale is not None:
        rows = [row + d_scale * slope for row, slope in zip(rows, slopes)]
    return tuple(rows)


def _transposed(residuals, by_row):
    views, gradients, slopes = residuals
    if isinstance(views, tuple):
        d_views = tuple((c * g).astype(x.dtype) for x, g, c in zip(views, gradients, by_row))
    else:
        d_views = (jnp.stack(by_row) * gradients).astype(views.dtype)
    if not slopes:
        return d_views, None
    return d_views, sum(jnp.sum(c * slope) for c, slope in zip(by_row, slopes))


def _is_zero(x):
    return isinstance(x, SymbolicZero)


def _moves(tangents) -> bool:
    return not all(map(_is_zero, jax.tree.leaves(tangents, is_leaf=_is_zero)))


def _instantiated(tangents):
    def one(x):
        return jnp.zeros(x.shape, x.dtype) if _is_zero(x) else x

    return jax.tree.map(one, tangents, is_leaf=_is_zero)


def _values(predicts, views, scale, targets):
    return _values_and_gradients(predicts, False, tuple, views, scale, targets)[0]


def _values_and_gradients(predicts, learned, together, views, scale, targets):
    """[B, 1] of each view, the gradients to the views, and where it is learned to the scale."""
    distributions, masses = _distributions(targets, scale.dtype)
    rows, gradients, slopes = [], [], []
    for view, own in zip(views, predicts):
        x = wide(view).astype(scale.dtype)
        top = _top(x)
        below = capped(x - top)
        scaled = _scaled(below, top, scale)
        powers = jnp.exp(scaled)
        total = _total(powers)
        predicted = _chosen(own, distributions)
        rows.append(jnp.sum(predicted * (jnp.log(total) - scaled), axis=1, keepdims=True))
        g = _chosen(own, masses) / total * powers - predicted
        gradients.append(scale * g)
        if learned:
            slopes.append(jnp.sum(g * below, axis=1, keepdims=True))
    return tuple(rows), together(gradients), tuple(slopes)


def _distributions(targets, dtype):
    """The targets [B, K], and the mass [B, 1] of each."""
    if isinstance(targets, Codes):
        found = [wide(x).astype(dtype) for x in targets.given]
        return found, [jnp.sum(x, axis=1, keepdims=True) for x in found]
    found = []
    for x in targets.logits:
        x = wide(x).astype(dtype)
        if targets.centre is not None:
            # Large logits, less the largest, lose nothing to the rounding of the subtraction.
            x = (x - _top(x)) - wide(targets.centre).astype(dtype)[None]
        top = _top(x)
        powers = jnp.exp(_scaled(capped(x - top), top, targets.scale))
        found.append(powers / _total(powers))
    return found, [jnp.ones((1, 1), dtype)] * len(found)


def _chosen(own, arrays):
    parts = [arrays[a] for a in own]
    return sum(parts[1:], parts[0]) if parts else jnp.zeros_like(arrays[0])


def _top(x):
    return jnp.max(lax.stop_gradient(x), axis=1, keepdims=True)


def _total(powers):
    return at_least_one(jnp.sum(powers, axis=1, keepdims=True))


def _scaled(below, top, scale):
    # A scale for each row: of a scalar, XLA's sums over rows on a CPU read an array as large as x.
    return below * jnp.where(jnp.isnan(top), top, scale)
