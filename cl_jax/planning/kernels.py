"""The kernels of a program compiled for a GPU: the bytes that each moves, its products, and so a
floor of its time."""

import math
import re
from typing import NamedTuple

from cl_jax.planning import hlo
from cl_jax.planning.costs import COLLECTIVES

# No kernel: names for memory.
_FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "partition-id",
    "replica-id",
    "after-all",
)
_IN_PLACE = {
    "dynamic-update-slice": 1,
    "scatter": 2,
}  # and which of their operands they write into the first
# What transformations write into the path of an operation.
_AROUND = re.compile(
    r"jit\([^()]*\)/?|\b(?:jvp|vmap|transpose)\(|\)|\b(?:shard_map|while/body|checkpoint|closed_call)/"
)


class Kernel(NamedTuple):
    """One kernel of one step: how often it runs, and of one run the bytes of its operands and
    results and its products.

    `scope` is where in the program it was written ("Network/encoder/stage1_block1/conv1"), `kind`
    what runs it, `dtype` what it multiplies or writes, `exact` whether its float32 products are
    asked for at HIGHEST, without TF32.
    """

    scope: str
    kind: str
    times: int
    bytes: int
    flops: float
    dtype: str
    exact: bool = False

    def floor(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Seconds that all its runs take at least: its bytes or its products, whichever is
        longer."""
        return self.times * max(self.bytes / bytes_per_second, self.flops / flops_per_second)


def kernels_of(text: str) -> list[Kernel]:
    """The kernels of a compiled program's text, in the order of the schedule; collectives are not
    among them.

    An operand counts as read once, in whole unless only slices of it are; a slice that is written
    in place as its own size. Products are those of convolutions, matrix products and cuDNN's
    attention ([B, T, heads, D])."""
    computations, entry = hlo.computations(text)
    found: list[Kernel] = []

    def visit(name: str, times: int) -> None:
        known: dict[str, str] = {}
        for one in computations.get(name, ()):
            known[one.name] = one.shape
            if one.kind in ("while", "conditional", "call"):
                for inner in one.called:
                    visit(inner, times * one.trips)
            elif one.kind not in (*_FREE, *COLLECTIVES) and not one.kind.endswith("-done"):
                body = (
                    [line for inner in one.called for line in computations.get(inner, ())]
                    if one.kind == "fusion"
                    else []
                )
                found.append(
                    _kernel(one, [known.get(operand, "") for operand in one.operands], body, times)
                )

    visit(entry, 1)
    return found


def _kernel(
    one: hlo.Instruction, operands: list[str], body: list[hlo.Instruction], times: int
) -> Kernel:
    named = re.search(r'op_name="([^"]*)"', one.line)
    path = named[1] if named else ""
    target = re.search(r'custom_call_target="([^"]+)"', one.line)
    results, given = (
        hlo.shapes(one.shape),
        [shape for operand in operands for shape in hlo.shapes(operand)],
    )
    if target and len(results) > 1 and results[-1][0] in ("u8", "s8"):
        results = results[:-1]  # the library's scratch space
    shapes = {inside.name: inside.shape for inside in body}
    flops = _flops(one, target[1] if target else "", given, results) + sum(
        _flops(
            inside,
            "",
            [shape for name in inside.operands for shape in hlo.shapes(shapes.get(name, ""))],
            hlo.shapes(inside.shape),
        )
        for inside in body
    )
    dtype = given[0][0] if flops and given else results[0][0] if results else ""
    scope = _AROUND.sub("", path.split(";")[-1]).rpartition("/")[0].strip("/")
    return Kernel(
        scope,
        target[1].strip("_") if target else one.kind,
        times,
        _moved(results, operands, body),
        flops,
        dtype,
        any("highest" in line.line.lower() for line in (one, *body)),
    )


def _flops(
    one: hlo.Instruction, target: str, given: list[hlo.Shape], results: list[hlo.Shape]
) -> float:
    """Products and sums of one instruction; 0 for what multiplies no matrices."""
    if one.kind == "convolution" or "cudnn$conv" in target:
        # Images, kernel, result stand in the labels' order; of those of a gradient by cuDNN one is
        # the result.
        labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.line)
        order = (
            (2, 1, 0)
            if "BackwardInput" in target
            else (0, 2, 1)
            if "BackwardFilter" in target
            else (0, 1, 2)
        )
        arrays = [given[0][1], given[1][1], results[0][1]]
        kernel, out = arrays[order[1]], arrays[order[2]]
        return (
            2.0 * math.prod(kernel) * math.prod(out) / kernel[labels[2].index("o")]
            if labels
            else 0.0
        )
    if one.kind == "dot" or "matmul" in target or "gemm" in target:
        contracted = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d",]*)', one.line)
        shared = (
            [given[0][1][int(axis)] for axis in re.findall(r"\d+", contracted[1])]
            if contracted and given
            else [0]
        )
        return 2.0 * math.prod(results[0][1]) * math.prod(shared)
    if (
        "cudnn$fmha" in target
    ):  # two products forward; backward five, the logits being made once more
        return 2.0 * (5 if "Backward" in target else 2) * math.prod(given[0][1]) * given[1][1][1]
    return 0.0


def _moved(results: list[hlo.Shape], operands: list[str], body: list[hlo.Instruction]) -> int:
    """Bytes of a kernel's operands and results."""
    numbers = {
        int(one.line.split("parameter(")[1].split(")")[0]): one.name
        for one in body
        if one.kind == "parameter"
    }
    total = 0
    for number, operand in enumerate(operands):
        part = _read(body, numbers[number]) if number in numbers else None
        for kind, dims in hlo.shapes(operand):
            total += hlo.width(kind) * (
                math.prod(dims) if part is None else min(part, math.prod(dims))
            )
    named = {one.name: one for one in body}
    roots = body[-1:]
    if roots and roots[0].kind == "tuple":
        roots = [named[operand] for operand in roots[0].operands if operand in named]
    for root in roots:
        written = root.operands[_IN_PLACE[root.kind]] if root.kind in _IN_PLACE else root.name
        total += sum(map(hlo.size, hlo.shapes(named[written].shape)))
    return total if roots else total + sum(map(hlo.size, results))


def _read(body: list[hlo.Instruction], name: str) -> int | None:
    """Numbers that a fusion reads of one of its values: of slices alone, none of what it writes in
    place; None if it reads all of them."""
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
            total += sum(math.prod(dims) for _, dims in hlo.shapes(one.shape))
        elif one.kind not in _IN_PLACE or one.operands[0] != name:
            return None
    return total
