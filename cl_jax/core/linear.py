"""A linear function whose transpose is written by hand, under every transformation of JAX.

`jax.custom_vjp` refuses forward mode. With `jax.custom_jvp` and `linear` in its rule a function has
both: forward mode runs the tangents, reverse mode the transpose, and either can be differentiated
again, vectorised, exported or run inside `jax.shard_map`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir


def linear(
    fun: Callable[[Any, Any], Any],
    transpose: Callable[[Any, Any], Any],
    residuals: Any,
    inputs: Any,
) -> Any:
    """fun(residuals, inputs), which is linear in inputs.

    Args:
      fun: of two trees; linear in the second.
      transpose: of residuals and the cotangents of what `fun` returns; a tree like `inputs`. Both
        functions are differentiated by JAX where a derivative of higher order asks for it. They may
        close over constants, not over arrays that are being traced.
      residuals: tree of arrays, which receive no cotangent from this call.
      inputs: tree of floating arrays.
    """
    residual_leaves, residual_tree = jax.tree.flatten(residuals)
    leaves, tree = jax.tree.flatten(inputs)
    count = len(residual_leaves)
    out_tree: list[Any] = []

    def flat(*args):
        out = fun(
            jax.tree.unflatten(residual_tree, args[:count]),
            jax.tree.unflatten(tree, args[count:]),
        )
        out_leaves, structure = jax.tree.flatten(out)
        out_tree[:] = [structure]
        return out_leaves

    def flat_transpose(*args):
        out = transpose(
            jax.tree.unflatten(residual_tree, args[:count]),
            jax.tree.unflatten(out_tree[0], args[count:]),
        )
        return jax.tree.leaves(out)

    out = _bind(flat, flat_transpose, residual_leaves, leaves)
    return jax.tree.unflatten(out_tree[0], out)


_linear_p = Primitive("linear_with_transpose")
_linear_p.multiple_results = True


def _bind(fun, transpose, residuals, inputs):
    closed = jax.make_jaxpr(fun)(*residuals, *inputs)
    consts = list(closed.consts)
    if consts:  # arrays of an enclosing trace become residuals, so that none hides in a parameter
        inner, inner_transpose, count = fun, transpose, len(consts)

        def fun(*args):
            return inner(*args[count:])

        def transpose(*args):
            return inner_transpose(*args[count:])

        hoisted = closed.jaxpr
        closed = jax.make_jaxpr(
            lambda *args: jaxpr_as_fun(ClosedJaxpr(hoisted, args[:count]))(*args[count:])
        )(*consts, *residuals, *inputs)
    return _linear_p.bind(
        *consts,
        *residuals,
        *inputs,
        fun=fun,
        transpose=transpose,
        closed=closed,
        count=len(consts) + len(residuals),
    )


def _run(*args, closed, **_):
    return jaxpr_as_fun(closed)(*args)


def _avals(*_, closed, **__):
    return closed.out_avals


def _jvp(primals, tangents, *, fun, transpose, closed, count):
    knobs = {"fun": fun, "transpose": transpose, "closed": closed, "count": count}
    out, parts = _linear_p.bind(*primals, **knobs), []
    if any(type(t) is not ad.Zero for t in tangents[count:]):
        moved = map(ad.instantiate_zeros, tangents[count:])
        parts.append(_linear_p.bind(*primals[:count], *moved, **knobs))
    moving = [i for i in range(count) if type(tangents[i]) is not ad.Zero]
    if moving:

        def of(values):
            args = list(primals)
            for i, value in zip(moving, values):
                args[i] = value
            return fun(*args)

        point, direction = ([x[i] for i in moving] for x in (primals, tangents))
        parts.append(jax.jvp(of, (point,), (direction,))[1])
    return out, [sum(terms[1:], terms[0]) for terms in zip(*parts)]


def _transpose(cotangents, *args, transpose, count, **_):
    out = transpose(*args[:count], *map(ad.instantiate_zeros, cotangents))
    wanted = map(ad.is_undefined_primal, args[count:])
    return [None] * count + [x if want else None for x, want in zip(out, wanted)]


def _batch(args, axes, *, fun, transpose, count, closed):
    size = next(x.shape[axis] for x, axis in zip(args, axes) if axis is not None)

    def in_front(x, axis):
        if axis is None:
            return jnp.broadcast_to(x[None], (size, *jnp.shape(x)))
        return jnp.moveaxis(x, axis, 0)

    inputs = [in_front(x, axis) for x, axis in zip(args[count:], axes[count:])]
    residual_axes = tuple(axes[:count])
    out = _bind(
        jax.vmap(fun, in_axes=(*residual_axes, *[0] * len(inputs))),
        jax.vmap(transpose, in_axes=(*residual_axes, *[0] * len(closed.out_avals))),
        args[:count],
        inputs,
    )
    return out, [0] * len(out)


_linear_p.def_impl(_run)
_linear_p.def_abstract_eval(_avals)
ad.primitive_jvps[_linear_p] = _jvp
ad.primitive_transposes[_linear_p] = _transpose
batching.primitive_batchers[_linear_p] = _batch
mlir.register_lowering(_linear_p, mlir.lower_fun(_run, multiple_results=True))
