"""XLA's text of a compiled program: its computations, their instructions, shapes and bytes."""

import math
import re
from collections import Counter
from typing import NamedTuple

_WIDTH = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "s64": 8,
    "u64": 8,
    "f64": 8,
}
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][a-z\-]*?)(-start)?\((.*)"
)
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}"
)

Shape = tuple[str, list[int]]  # element type and sides


class Instruction(NamedTuple):
    """One line: `kind` without "-start", which `started` says; `shape` as written, a tuple's in
    brackets."""

    name: str
    shape: str
    kind: str
    started: bool
    operands: list[str]
    line: str

    @property
    def called(self) -> list[str]:
        """The computations that it runs: a loop's body and condition, a fusion's inside."""
        return [
            name
            for one, several in _CALLED.findall(self.line)
            for name in ([one] if one else _names(several))
        ]

    @property
    def trips(self) -> int:
        """Trip count of a loop; 1 where the compiler does not know it."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"', self.line)
        return int(found[1]) if found else 1


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """({name: instructions}, name of the entry)."""
    parts: dict[str, list[Instruction]] = {}
    entry, name = "", ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            name = head[2]
            parts[name] = []
            entry = name if head[1] else entry
        elif name and (match := _INSTRUCTION.match(line)):
            result, shape, kind, start, rest = match.groups()
            parts[name].append(
                Instruction(result, shape, kind, bool(start), _names(rest.split(")")[0], "%"), line)
            )
    return parts, entry


def runs(parts: dict[str, list[Instruction]], entry: str) -> Counter[str]:
    """How often each computation runs; a loop of unknown trip count counts once."""
    found: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        found[name] += times
        for one in parts.get(name, ()):
            for inner in one.called:
                if inner in parts:
                    visit(inner, times * one.trips)

    visit(entry, 1)
    return found


def shapes(text: str) -> list[Shape]:
    """The shapes named in a text."""
    return [
        (kind, [int(d) for d in dims.split(",") if d])
        for kind, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", text)
    ]


def size(shape: Shape) -> int:
    """Its bytes."""
    return math.prod(shape[1]) * width(shape[0])


def width(kind: str) -> int:
    """Bytes of one number of an element type."""
    return _WIDTH.get(kind, 4)


def _names(text: str, mark: str = "") -> list[str]:
    return re.findall(mark + r"([\w.\-]+)", text)
