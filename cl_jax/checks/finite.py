"""Where a program's numbers stop being finite: it is evaluated one operation at a time, in its own
types or in float64.

What is not finite is followed back from the results to the operation that made it of finite
numbers. So a mask of -inf, or the log of a zero that is masked away, is not blamed: only what
reaches the results is."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import source_info_util
from jax.extend import core

from cl_jax.core import parallel


class Cause(NamedTuple):
    """Where numbers stopped being finite: an equation of the program, in a scope. `equation` None:
    in what the step was given, which `where` names. The smaller `order`, the earlier."""

    equation: Any
    where: str
    output: str
    inputs: tuple[str, ...] = ()
    order: int = -1

    def __str__(self) -> str:
        if self.equation is None:
            return f"{self.where}{self.output and ': '}{self.output}"
        return "\n".join(
            (
                f"{self.equation.primitive.name} -> {self.output}",
                f"  at {_source(self.equation)}",
                *([f"  in {self.where}"] if self.where else []),
                *(f"  of {text}" for text in self.inputs),
            )
        )


def evaluate(
    update: Callable[..., Any], given: tuple[Any, ...], wide: bool = False
) -> tuple[dict[str, float], Cause | None]:
    """(metrics, cause or None) of update(state, batch, key) -> (state, metrics) on one device, one
    operation at a time.

    The cause is that of the loss where it is not finite, else of the gradient norm, else of the new
    State."""
    closed, shapes = jax.make_jaxpr(update, axis_env=[(parallel.AXIS, 1)], return_shape=True)(
        *given
    )
    leaves = [
        (name, path)
        for name, tree in zip(("State", "Batch", "Key"), given)
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    named = [
        f"{name} given to the step, {name.lower()}{jax.tree_util.keystr(path)}"
        for name, path in leaves
    ]
    with jax.enable_x64(wide):
        flat = [
            _widened(x) if wide else jnp.asarray(x) if isinstance(x, np.ndarray) else x
            for x in jax.tree.leaves(given)
        ]
        program = jax.make_jaxpr(_rewritten(closed.jaxpr, closed.consts, wide))(*flat)
        causes = [
            None if _finite(x) else Cause(None, name, _told(x)) for name, x in zip(named, flat)
        ]
        outputs, blame = _walk(program.jaxpr, program.consts, flat, causes)
        structure = jax.tree.structure(shapes)
        _, metrics = jax.tree.unflatten(structure, outputs)
        of_state, of_metrics = jax.tree.unflatten(structure, blame)
        found = [of_metrics[name] for name in ("loss", "grad_norm") if name in metrics]
        cause = next(
            (c for c in [*found, *jax.tree.leaves(of_state, is_leaf=_is_cause)] if _is_cause(c)),
            None,
        )
        return {name: float(value) for name, value in metrics.items()}, cause


def _is_cause(x: Any) -> bool:
    return isinstance(x, Cause)


INLINED = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "checkpoint",
    "remat2",
}
# Collectives of one device.
ALONE: dict[str, Callable[..., Any]] = {
    "axis_index": lambda p: [np.int32(0)],
    "all_gather": lambda p, x: [x if p["tiled"] else jnp.expand_dims(x, p["all_gather_dimension"])],
    "reduce_scatter": lambda p, x: [x if p["tiled"] else jnp.squeeze(x, p["scatter_dimension"])],
    "all_to_all": lambda p, x: [
        x if p["tiled"] else jnp.expand_dims(jnp.squeeze(x, p["split_axis"]), p["concat_axis"])
    ],
}
ALONE.update(
    dict.fromkeys(
        ("psum", "pmax", "pmin", "ppermute", "pvary", "pcast", "psum_invariant"),
        lambda p, *x: list(x),
    )
)


def _rewritten(jaxpr: Any, consts: Sequence[Any], wide: bool) -> Callable[..., list[Any]]:
    """The same program for one device without a mapped axis, without calls, and with `wide` in
    float64 throughout."""

    def run(*args: Any) -> list[Any]:
        values = dict(
            zip(
                [*jaxpr.constvars, *jaxpr.invars],
                [*(_widened(c) if wide else c for c in consts), *args],
            )
        )
        for eqn in jaxpr.eqns:
            inputs = [
                _literal(v, wide) if isinstance(v, core.Literal) else values[v] for v in eqn.invars
            ]
            name, params, info = eqn.primitive.name, eqn.params, eqn.source_info
            stack = source_info_util.current_name_stack() + info.name_stack
            with source_info_util.user_context(info.traceback, name_stack=stack):
                if name in INLINED:
                    inner = params.get("jaxpr", params.get("call_jaxpr"))
                    outputs = _rewritten(*_parts(inner), wide)(*inputs)
                elif name in ALONE:
                    outputs = ALONE[name](params, *inputs)
                elif wide and name == "reduce_precision":
                    outputs = inputs
                elif (
                    wide and name == "bitcast_convert_type"
                ):  # the bits are those of the narrow type
                    narrow = jnp.asarray(inputs[0], eqn.invars[0].aval.dtype)
                    outputs = [_widened(jax.lax.bitcast_convert_type(narrow, params["new_dtype"]))]
                else:
                    changed = {key: _parameter(value, wide) for key, value in params.items()}
                    outputs = eqn.primitive.bind(*inputs, **changed)
                    outputs = outputs if eqn.primitive.multiple_results else [outputs]
            values.update(zip(eqn.outvars, outputs))
        return [
            _literal(v, wide) if isinstance(v, core.Literal) else values[v] for v in jaxpr.outvars
        ]

    return run


def _parts(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, core.ClosedJaxpr) else (jaxpr, ())


def _parameter(value: Any, wide: bool) -> Any:
    """A parameter of an operation: programs in it rewritten, types of floating-point numbers
    widened."""
    if isinstance(value, tuple) and any(isinstance(x, core.ClosedJaxpr) for x in value):
        parts = (_parameter(x, wide) for x in value)
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
        jaxpr, consts = _parts(value)
        avals = [
            jax.ShapeDtypeStruct(v.aval.shape, _wider(v.aval.dtype) if wide else v.aval.dtype)
            for v in jaxpr.invars
        ]
        closed = jax.make_jaxpr(_rewritten(jaxpr, consts, wide))(*avals)
        return closed if isinstance(value, core.ClosedJaxpr) else closed.jaxpr
    if wide and (
        isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic))
    ):
        return _wider(np.dtype(value))
    return value


def _wider(dtype: Any) -> Any:
    return np.dtype(np.float64) if jnp.issubdtype(dtype, jnp.floating) else dtype


def _widened(x: Any) -> Any:
    dtype = getattr(x, "dtype", None)
    if dtype is None or jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return x
    return jnp.asarray(x, _wider(dtype))


def _literal(literal: Any, wide: bool) -> Any:
    return np.asarray(literal.val, _wider(literal.aval.dtype) if wide else literal.aval.dtype)


_CONSTANT = Cause(None, "an infinity that is written into the program", "")  # no fault by itself


def _walk(
    jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], given: Sequence[Cause | None]
) -> tuple[list[Any], list[Cause | None]]:
    """Outputs, and per output what it is not finite of."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args]))
    blame = dict(
        zip(
            [*jaxpr.constvars, *jaxpr.invars],
            [*(None if _finite(c) else _CONSTANT for c in consts), *given],
        )
    )
    last = {
        v: i
        for i, eqn in enumerate(jaxpr.eqns)
        for v in eqn.invars
        if not isinstance(v, core.Literal)
    }
    last |= dict.fromkeys(
        (v for v in jaxpr.outvars if not isinstance(v, core.Literal)), len(jaxpr.eqns)
    )

    def read(v: Any) -> tuple[Any, Cause | None]:
        if isinstance(v, core.Literal):
            value = _literal(v, False)
            return value, None if _finite(value) else _CONSTANT
        return values[v], blame[v]

    for i, eqn in enumerate(jaxpr.eqns):
        inputs, causes = zip(*map(read, eqn.invars)) if eqn.invars else ((), ())
        outputs = eqn.primitive.bind(*inputs, **eqn.params)
        outputs = list(outputs) if eqn.primitive.multiple_results else [outputs]
        values.update(zip(eqn.outvars, outputs))
        blame.update(
            (v, None if _finite(x) else _cause(i, eqn, inputs, causes, x))
            for v, x in zip(eqn.outvars, outputs)
        )
        for v in (*eqn.invars, *eqn.outvars):  # no more is held than the program itself holds
            if not isinstance(v, core.Literal) and last.get(v, -1) <= i:
                values.pop(v, None)
    results = [read(v) for v in jaxpr.outvars]
    return [value for value, _ in results], [cause for _, cause in results]


def _cause(
    i: int, eqn: Any, inputs: Sequence[Any], causes: Sequence[Cause | None], output: Any
) -> Cause:
    """Why an output is not finite: what its inputs are not finite of, or this operation."""
    broken = [(x, cause) for x, cause in zip(inputs, causes) if cause is not None]
    if _nan(output):  # rather of the inputs that are NaN than of those that are infinite
        broken = [pair for pair in broken if _nan(pair[0])] or broken
    earlier = [cause for _, cause in broken if cause is not _CONSTANT]
    if earlier:
        return min(earlier, key=lambda cause: cause.order)
    within = _within(eqn, inputs, causes)
    if within is not None:
        return within._replace(order=i)
    if broken and (not _nan(output) or any(_nan(x) for x, _ in broken)):
        return _CONSTANT
    return Cause(eqn, str(eqn.source_info.name_stack), _told(output), tuple(map(_told, inputs)), i)


def _within(eqn: Any, inputs: Sequence[Any], causes: Sequence[Cause | None]) -> Cause | None:
    """The cause inside a loop or a branch, or None."""
    name, p = eqn.primitive.name, eqn.params

    def pick(blame: Sequence[Cause | None]) -> Cause | None:
        return next((c for c in blame if c is not None and c is not _CONSTANT), None)

    if name == "cond":
        branch = p["branches"][int(inputs[0])]
        return pick(_walk(branch.jaxpr, branch.consts, inputs[1:], causes[1:])[1])
    if name == "scan":
        fixed, carried, body = p["num_consts"], p["num_carry"], p["jaxpr"]
        carry, blame = list(inputs[fixed : fixed + carried]), list(causes[fixed : fixed + carried])
        for i in reversed(range(p["length"])) if p["reverse"] else range(p["length"]):
            rows = [x[i] for x in inputs[fixed + carried :]]
            outputs, found = _walk(
                body.jaxpr,
                body.consts,
                [*inputs[:fixed], *carry, *rows],
                [*causes[:fixed], *blame, *causes[fixed + carried :]],
            )
            if pick(found):
                return pick(found)
            carry, blame = outputs[:carried], found[:carried]
    if name == "while":
        test, body, a, b = (
            p["cond_jaxpr"],
            p["body_jaxpr"],
            p["cond_nconsts"],
            p["cond_nconsts"] + p["body_nconsts"],
        )
        carry, blame = list(inputs[b:]), list(causes[b:])
        while bool(
            _walk(test.jaxpr, test.consts, [*inputs[:a], *carry], [*causes[:a], *blame])[0][0]
        ):
            carry, blame = _walk(
                body.jaxpr, body.consts, [*inputs[a:b], *carry], [*causes[a:b], *blame]
            )
            if pick(blame):
                return pick(blame)
    return None


def _floating(x: Any) -> bool:
    return jnp.issubdtype(getattr(x, "dtype", np.int32), jnp.floating)


def _finite(x: Any) -> bool:
    return not _floating(x) or bool(np.isfinite(np.asarray(x)).all())


def _nan(x: Any) -> bool:
    return _floating(x) and bool(np.isnan(np.asarray(x)).any())


def _told(x: Any) -> str:
    """Type, shape and what is in it."""
    text = f"{x.dtype}{list(x.shape)}"
    if not _floating(x) or not x.size:
        return text
    numbers = np.asarray(x, np.float64)
    finite = numbers[np.isfinite(numbers)]
    counted = {
        "nan": np.isnan(numbers).sum(),
        "inf": np.isposinf(numbers).sum(),
        "-inf": np.isneginf(numbers).sum(),
    }
    parts = [f"{count} {name}" for name, count in counted.items() if count]
    parts += (
        [f"{finite.min():.4g} to {finite.max():.4g}, nearest to zero {np.abs(finite).min():.4g}"]
        if finite.size
        else []
    )
    return f"{text}: {'; '.join(parts)}"


def _source(eqn: Any) -> str:
    """file:line (function) of an operation, and of the first line outside installed packages that
    led to it."""
    frames = list(source_info_util.user_frames(eqn.source_info.traceback))
    if not frames:
        return "an unknown line"
    own = next((f for f in frames if "site-packages" not in f.file_name), frames[0])
    return ", from ".join(
        f"{f.file_name}:{f.start_line} ({f.function_name})" for f in dict.fromkeys((frames[0], own))
    )
