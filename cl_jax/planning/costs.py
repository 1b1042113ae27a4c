"""What a program costs, read from the program: products, bytes between devices, what the losses
hold."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax import lax

from cl_jax.planning import hlo

# Products --------------------------------------


def flops(jaxpr: Any, *, exact: bool = False) -> float:
    """Floating-point operations of the matrix products and convolutions of a jaxpr, two for a
    multiplication with its addition; under `shard_map`, of one device.

    This is the count that model FLOP utilisation divides by. Loops are counted as often as they run
    (a `while` of unknown trip count once), of the branches of a `cond` the most expensive, of
    `lax.platform_dependent` the default, and a convolution without the taps that meet padding or
    the zeros of a dilated gradient, which is why the three convolutions of a training step count
    the same whatever the stride. `exact` counts products of float32 at HIGHEST alone."""
    total = 0.0
    for equation in _plain(jaxpr).eqns:
        name = equation.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            if not exact or _is_exact(equation):
                total += _dot(equation) if name == "dot_general" else _convolution(equation)
        elif name == "cond":
            branches = equation.params["branches"]
            by_platform = (
                equation.params.get("branches_platforms") is not None
            )  # the last for platforms not named
            total += (
                flops(branches[-1], exact=exact)
                if by_platform
                else max(flops(branch, exact=exact) for branch in branches)
            )
        else:
            times = equation.params["length"] if name == "scan" else 1
            total += times * sum(flops(inner, exact=exact) for inner in _inside(equation))
    return total


def _is_exact(equation: Any) -> bool:
    asked = equation.params["precision"]
    asked = asked if isinstance(asked, tuple) else (asked,)
    wide = all(variable.aval.dtype == np.float32 for variable in equation.invars)
    return wide and lax.Precision.HIGHEST in asked


def _plain(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _inside(equation: Any) -> Iterator[Any]:
    """The jaxprs among an equation's parameters."""
    for value in equation.params.values():
        for held in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(_plain(held), "eqns"):
                yield held


def _dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shared = [equation.invars[0].aval.shape[i] for i in contracted]
    return 2 * float(np.prod(shared)) * float(np.prod(equation.outvars[0].aval.shape))


def _convolution(equation: Any) -> float:
    given, params = equation.params, equation.params["dimension_numbers"]
    x, kernel = (v.aval.shape for v in equation.invars)
    out = equation.outvars[0].aval.shape
    taps = 1.0
    for axis, (before, _) in enumerate(given["padding"]):
        side, size = x[params.lhs_spec[2 + axis]], kernel[params.rhs_spec[2 + axis]]
        dilated, spread = given["lhs_dilation"][axis], given["rhs_dilation"][axis]
        at = (
            np.arange(out[params.out_spec[2 + axis]])[:, None] * given["window_strides"][axis]
            + np.arange(size) * spread
            - before
        )
        taps *= np.count_nonzero((at >= 0) & (at <= (side - 1) * dilated) & (at % dilated == 0))
    return 2 * taps * kernel[params.rhs_spec[1]] * out[params.out_spec[0]] * out[params.out_spec[1]]


# What one part of the code holds
# --------------------------------------


def peak_bytes(jaxpr: Any, folder: str) -> int:
    """The most bytes alive at once of values that code below `folder` makes, forward and backward.

    Read before compilation, which fuses many of these values away: a bound from above.
    """
    jaxpr = _plain(jaxpr)
    last = {}
    for number, equation in enumerate(jaxpr.eqns):
        for variable in equation.invars:
            if not hasattr(variable, "val"):
                last[variable] = number
    last.update(
        {variable: len(jaxpr.eqns) for variable in jaxpr.outvars if not hasattr(variable, "val")}
    )
    alive: dict[Any, int] = {}
    peak = 0
    for number, equation in enumerate(jaxpr.eqns):
        inner = max((peak_bytes(part, folder) for part in _inside(equation)), default=0)
        if _from(equation, folder):
            alive |= {variable: _bytes(variable.aval) for variable in equation.outvars}
        peak = max(peak, sum(alive.values()) + inner)
        alive = {
            variable: size for variable, size in alive.items() if last.get(variable, -1) > number
        }
    return peak


def _from(equation: Any, folder: str) -> bool:
    trace = equation.source_info.traceback
    return trace is not None and any(folder in frame.file_name for frame in trace.frames)


def _bytes(aval: Any) -> int:
    return int(np.prod(aval.shape, dtype=np.int64)) * getattr(aval.dtype, "itemsize", 4)


# Between devices --------------------------------------

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of collective in one step: how many, the bytes of their results, and the bytes that
    a device sends."""

    count: int
    bytes: int
    sent: float


def collectives(text: str, devices: int) -> dict[str, Collective]:
    """The collectives of a compiled program's text, over all devices of a program of `devices`.

    `sent` is what a device sends in the usual ring: of n devices, an all-gather of b bytes sends b
    (n - 1) / n from each, a reduce-scatter to b bytes b (n - 1), an all-reduce 2 b (n - 1) / n, a
    permutation b."""
    found: dict[str, list[float]] = {}
    chains: set[tuple[str, str]] = set()
    share = (devices - 1) / devices
    computations, entry = hlo.computations(text)
    for name, times in hlo.runs(computations, entry).items():
        for one in computations[name]:
            kind = one.kind
            if kind not in COLLECTIVES:
                continue
            # A TPU's program shows one that runs beside other work once in each computation that it
            # runs beside.
            chain = re.search(r'chain_id="(\d+)"', one.line)
            if chain and (kind, chain[1]) in chains:
                continue
            chains |= {(kind, chain[1])} if chain else set()
            shapes = [hlo.size(shape) for shape in hlo.shapes(one.shape)]
            size = sum(shapes)
            if one.started and kind in ("all-gather", "collective-permute", "reduce-scatter"):
                # Started asynchronously, it names its operands too: results are the larger half, or
                # the smaller one.
                size = min(shapes) if kind == "reduce-scatter" else max(shapes)
            sent = {
                "all-gather": size * share,
                "all-reduce": 2 * size * share,
                "all-to-all": size * share,
                "reduce-scatter": size * (devices - 1),
                "collective-permute": size if devices > 1 else 0,
            }[kind]
            row = found.setdefault(kind, [0, 0, 0.0])
            row[:] = row[0] + times, row[1] + times * size, row[2] + times * sent
    return {
        kind: Collective(int(count), int(size), sent)
        for kind, (count, size, sent) in sorted(found.items())
    }
