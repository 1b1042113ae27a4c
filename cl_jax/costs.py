"""What a program costs, read from the program: products, bytes between devices, what the losses hold, a GPU's kernels."""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

# Products -------------------------------------------------------------------------------------------------------------


def flops(jaxpr: Any) -> float:
    """Floating-point operations of the matrix products and convolutions of a jaxpr, two for a multiplication with its
    addition; under `shard_map`, of one device.

    This is the count that model FLOP utilisation divides by. Loops are counted as often as they run (a `while` whose end is
    not known once), of the branches of a `cond` the dearest, of `lax.platform_dependent` the default, and a convolution
    without the taps that meet padding or the zeros of a dilated gradient, which is why the three convolutions of a training
    step count the same whatever the stride.
    """
    total = 0.0
    for equation in _plain(jaxpr).eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "cond":
            branches = equation.params["branches"]
            by_platform = equation.params.get("branches_platforms") is not None  # the last for platforms not named
            total += flops(branches[-1]) if by_platform else max(flops(branch) for branch in branches)
        else:
            times = equation.params["length"] if name == "scan" else 1
            total += times * sum(flops(inner) for inner in _inside(equation))
    return total


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
        at = (np.arange(out[params.out_spec[2 + axis]])[:, None] * given["window_strides"][axis]
              + np.arange(size) * spread - before)
        taps *= np.count_nonzero((at >= 0) & (at <= (side - 1) * dilated) & (at % dilated == 0))
    return 2 * taps * kernel[params.rhs_spec[1]] * out[params.out_spec[0]] * out[params.out_spec[1]]


# What one part of the code holds ---------------------------------------------------------------------------------------


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
    last.update({variable: len(jaxpr.eqns) for variable in jaxpr.outvars if not hasattr(variable, "val")})
    alive: dict[Any, int] = {}
    peak = 0
    for number, equation in enumerate(jaxpr.eqns):
        inner = max((peak_bytes(part, folder) for part in _inside(equation)), default=0)
        if _from(equation, folder):
            alive |= {variable: _bytes(variable.aval) for variable in equation.outvars}
        peak = max(peak, sum(alive.values()) + inner)
        alive = {variable: size for variable, size in alive.items() if last.get(variable, -1) > number}
    return peak


def _from(equation: Any, folder: str) -> bool:
    trace = equation.source_info.traceback
    return trace is not None and any(folder in frame.file_name for frame in trace.frames)


def _bytes(aval: Any) -> int:
    return int(np.prod(aval.shape, dtype=np.int64)) * getattr(aval.dtype, "itemsize", 4)


# Between devices ------------------------------------------------------------------------------------------------------

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_WIDTH = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8, "f64": 8}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][a-z\-]*?)(-start)?\((.*)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of collective in one step: how many, the bytes of their results, and the bytes that a device sends."""

    count: int
    bytes: int
    sent: float


def collectives(text: str, devices: int) -> dict[str, Collective]:
    """The collectives of a compiled program's text, over all devices of a program of `devices`.

    `sent` is what a device sends in the usual ring: of n devices, an all-gather of b bytes sends b (n - 1) / n from each,
    a reduce-scatter to b bytes b (n - 1), an all-reduce 2 b (n - 1) / n, a permutation b.
    """
    found: dict[str, list[float]] = {}
    chains: set[tuple[str, str]] = set()
    share = (devices - 1) / devices
    computations, entry = _computations(text)
    for name, times in _runs(computations, entry).items():
        for line in computations[name]:
            match = _INSTRUCTION.search(line)
            if match is None or match[3] not in COLLECTIVES:
                continue
            # A TPU's program shows one that runs beside other work once in each computation that it runs beside.
            chain = re.search(r'chain_id="(\d+)"', line)
            if chain and (match[3], chain[1]) in chains:
                continue
            chains |= {(match[3], chain[1])} if chain else set()
            kind, shapes = match[3], _sizes(match[2])
            size = sum(shapes)
            if match[4] and kind in ("all-gather", "collective-permute", "reduce-scatter"):
                # Started asynchronously, it names its operands too: results are the larger half, or the smaller one.
                size = min(shapes) if kind == "reduce-scatter" else max(shapes)
            sent = {"all-gather": size * share, "all-reduce": 2 * size * share, "all-to-all": size * share,
                    "reduce-scatter": size * (devices - 1), "collective-permute": size if devices > 1 else 0}[kind]
            row = found.setdefault(kind, [0, 0, 0.0])
            row[:] = row[0] + times, row[1] + times * size, row[2] + times * sent
    return {kind: Collective(int(count), int(size), sent) for kind, (count, size, sent) in sorted(found.items())}


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """({name: lines}, name of the entry)."""
    parts: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            name = head[2]
            parts[name] = []
            entry = name if head[1] else entry
        elif name:
            parts[name].append(line)
    return parts, entry


def _runs(parts: dict[str, list[str]], entry: str) -> Counter[str]:
    """How often each computation runs; a loop without a known end counts once."""
    runs: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        runs[name] += times
        for line in parts.get(name, ()):
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            for called, branches in _CALLED.findall(line):
                for inner in [called] if called else re.findall(r"[\w.\-]+", branches):
                    if inner in parts:
                        visit(inner, times * (int(trips[1]) if trips else 1))

    visit(entry, 1)
    return runs


def _sizes(shapes: str) -> list[int]:
    return [math.prod(dims) * _WIDTH.get(kind, 4) for kind, dims in _shapes(shapes)]


def _shapes(text: str) -> list[tuple[str, list[int]]]:
    return [(kind, [int(d) for d in dims.split(",") if d]) for kind, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", text)]


# Kernels of a GPU -----------------------------------------------------------------------------------------------------

# No kernel: names for memory, and what is launched elsewhere.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "after-all")
# What transformations write into the path of an operation.
_AROUND = re.compile(r"jit\([^()]*\)/?|\b(?:jvp|vmap|transpose)\(|\)|\b(?:shard_map|while/body|checkpoint|closed_call)/")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of one step: how often it runs, and of one run the bytes of its operands and results and its products.

    `scope` is where in the program it was written ("Network/encoder/stage1_block1/conv1"), `backward` whether for a
    gradient, `kind` what runs it, `dtype` what it multiplies or writes.
    """

    scope: str
    backward: bool
    kind: str
    times: int
    bytes: int
    flops: float
    dtype: str

    def floor(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Seconds that all its runs take at least: its bytes or its products, whichever is longer."""
        return self.times * max(self.bytes / bytes_per_second, self.flops / flops_per_second)


_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}  # and which of their operands they write into the first


class _Instruction(NamedTuple):
    name: str
    shape: str
    kind: str
    operands: list[str]
    line: str


def kernels(text: str) -> list[Kernel]:
    """The kernels of a program compiled for a GPU, in the order of the schedule; collectives are not among them.

    An operand counts as read once, in whole unless only slices of it are; a slice that is written in place as its own
    size. Products are those of cuDNN's convolutions, cuBLAS's matrix products and cuDNN's attention ([B, T, heads, D]).
    """
    lines, entry = _computations(text)
    parsed = {name: [_parsed(match) for match in map(_INSTRUCTION.search, body) if match] for name, body in lines.items()}
    found: list[Kernel] = []

    def visit(name: str, times: int) -> None:
        shapes: dict[str, str] = {}
        for one in parsed.get(name, ()):
            shapes[one.name] = one.shape
            called = [inner for single, several in _CALLED.findall(one.line)
                      for inner in ([single] if single else re.findall(r"[\w.\-]+", several))]
            if one.kind in ("while", "conditional", "call"):
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', one.line)
                for inner in called:
                    visit(inner, times * (int(trips[1]) if trips else 1))
            elif one.kind not in (*_FREE, *COLLECTIVES) and not one.kind.endswith("-done"):
                body = parsed.get(called[0], []) if one.kind == "fusion" and called else []
                found.append(_kernel(one, [shapes.get(operand, "") for operand in one.operands], body, times))

    visit(entry, 1)
    return found


def _parsed(match: re.Match) -> _Instruction:
    name, shape, kind, _, rest = match.groups()
    return _Instruction(name, shape, kind, re.findall(r"%([\w.\-]+)", rest.split(")")[0]), match.string)


def _read(body: list[_Instruction], name: str) -> int | None:
    """Numbers that a fusion reads of one of its values: of slices alone, none of what it writes in place; else None, all."""
    total = 0
    for one in body:
        if name not in one.operands:
            continue
        if one.kind in ("bitcast", "convert"):
            inner = _read(body, one.name)
            if inner is None:
                return None
            total += inner
        elif one.kind in ("slice", "dynamic-slice", "gather") and one.operands[0] == name:
            total += sum(math.prod(dims) for _, dims in _shapes(one.shape))
        elif one.kind not in _IN_PLACE or one.operands[0] != name:
            return None
    return total


def _moved(shape: str, operands: list[str], body: list[_Instruction]) -> int:
    """Bytes of a kernel's operands and results."""
    named = {one.name: one for one in body}
    numbers = {int(re.search(r"parameter\((\d+)\)", one.line)[1]): one.name for one in body if one.kind == "parameter"}
    total = 0
    for number, operand in enumerate(operands):
        part = _read(body, numbers[number]) if number in numbers else None
        for dtype, dims in _shapes(operand):
            total += _WIDTH.get(dtype, 4) * (math.prod(dims) if part is None else min(part, math.prod(dims)))
    roots = body[-1:]
    if roots and roots[0].kind == "tuple":
        roots = [named[operand] for operand in roots[0].operands if operand in named]
    for root in roots:
        written = root.operands[_IN_PLACE[root.kind]] if root.kind in _IN_PLACE else root.name
        total += sum(_sizes(named[written].shape))
    return total if roots else total + sum(_sizes(shape))


def _kernel(one: _Instruction, operands: list[str], body: list[_Instruction], times: int) -> Kernel:
    named = re.search(r'op_name="([^"]*)"', one.line)
    path = named[1] if named else ""
    target = re.search(r'custom_call_target="([^"]+)"', one.line)
    kind = target[1].strip("_") if target else one.kind
    results, given = _shapes(one.shape), [found for operand in operands for found in _shapes(operand)]
    size = _moved(one.shape, operands, body)
    if target and len(results) > 1 and results[-1][0] in ("u8", "s8"):
        size -= math.prod(results.pop()[1])  # the library's scratch space
    flops = 0.0
    if kind.startswith("cudnn$conv"):
        # Images, kernel, result stand in the labels' order; of those of a gradient one is the result.
        labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.line)
        order = {"cudnn$convBackwardInput": (2, 1, 0), "cudnn$convBackwardFilter": (0, 2, 1)}.get(kind, (0, 1, 2))
        arrays = [given[0][1], given[1][1], results[0][1]]
        kernel, out = arrays[order[1]], arrays[order[2]]
        if labels:
            flops = 2.0 * math.prod(kernel) * math.prod(out) / kernel[labels[2].index("o")]
    elif "matmul" in kind or "gemm" in kind:
        contracted = re.search(r'"lhs_contracting_dimensions":\[([\d",]*)\]', one.line)
        shared = [given[0][1][int(axis)] for axis in re.findall(r"\d+", contracted[1])] if contracted else [0]
        flops = 2.0 * math.prod(results[0][1]) * math.prod(shared)
    elif kind.startswith("cudnn$fmha"):
        # Two products forward; backward five, the logits being made once more.
        flops = 2.0 * (5 if "Backward" in kind else 2) * math.prod(given[0][1]) * given[1][1][1]
    dtype = given[0][0] if flops else (results[0][0] if results else "")
    scope = _AROUND.sub("", path.split(";")[-1]).rpartition("/")[0].strip("/")
    return Kernel(scope, "transpose(jvp" in path, kind, times, size, flops, dtype)
