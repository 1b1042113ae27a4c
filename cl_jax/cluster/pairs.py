"""All pairs of rows above a similarity, exactly, without comparing all pairs."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cl_jax.core.numerics import unit
from cl_jax.core.shapes import check, check_scalar

ROWS, COLUMNS = 4096, 256  # of a tile
STRIP = 128  # rows of it that are compared at once: their products stay in a core's cache
WAITING = 16  # tiles on the device before their counts are read
HEAD = 32  # coordinates that are compared before all are
BITS = 2**33  # of (row, cell) that are held: 1 GiB
ROUNDING = 1e-5  # of a squared distance in float32
MAX_PAIRS = 20_000_000


# A cosine from which on pictures are taken for copies: within a sixth of what a pair in a thousand
# is apart, and between these.
COPIES, NEARER = (0.98, 0.9999), 6


class Pairs(NamedTuple):
    """first, second: [P] rows, first < second. similarity: [P] float32, the cosine. All in order of
    (first, second)."""

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray


class Joined(NamedTuple):
    """groups: see `groups`. similarity: [N] float32, the cosine of each row with its most similar
    partner, 0 without one."""

    groups: list[np.ndarray]
    similarity: np.ndarray


def usual(x: np.ndarray, share: float = 0.001) -> float:
    """The cosine that this share of all pairs of rows [N, D] exceed, from 20,000 drawn ones."""
    if len(x) < 2:
        return 0.0
    drawn = np.random.default_rng(0).integers(0, len(x), (2, 20_000))
    drawn = drawn[:, drawn[0] != drawn[1]]
    a, b = (x[rows] / np.linalg.norm(x[rows], axis=1, keepdims=True).clip(1e-12) for rows in drawn)
    return float(np.quantile((a * b).sum(1), 1 - share))


def likely_copies(x: np.ndarray) -> float:
    """A threshold for near-duplicates among rows [N, D]. How alike unrelated pictures are depends
    on the network, so that none fits all."""
    low, high = COPIES
    return round(min(max(1 - (1 - usual(x)) / NEARER, low), high), 4)


def pairs_above(
    x: np.ndarray | jax.Array,
    threshold: float,
    *,
    cells: int = 0,
    max_pairs: int = MAX_PAIRS,
) -> Pairs:
    """Every pair of rows whose cosine is at least `threshold`.

    Rows are divided into the cells of some of them (each row to the nearest). The segment between
    two rows of different cells crosses the plane between the two centres, so that one of the two
    is within half of the threshold's distance, sqrt(2 - 2 t) / 2, of that plane. Only such rows are
    compared with the rows of the other cell, in tiles on the device, first by a few coordinates
    that bound the cosine from above: nothing is lost, and the closer the threshold is to 1, the
    less is done.

    Args:
      x: [N, D]; lengths do not matter. A zero row is like no other.
      threshold: t, above 0 and at most 1.
      cells: how many; 0 for 4 sqrt(N).
      max_pairs: more are an error.

    Raises:
      ValueError: no row, a threshold out of range, NaN, more than `max_pairs` pairs.
    """
    size = _checked_size(x, threshold)
    none = np.zeros(0, np.int32)
    found = [(none, none, np.zeros(0, np.float32))]
    total = 0
    for part in _found(x, threshold, cells):
        found.append(part)
        total += len(part[0])
        if total > 2 * max_pairs:
            break
    a, b, similarity = (np.concatenate(arrays) for arrays in zip(*found))
    first, second = np.minimum(a, b), np.maximum(a, b)
    # Two rows that are both near the plane between their cells were compared twice.
    _, order = np.unique(first.astype(np.int64) * size + second, return_index=True)
    if len(order) > max_pairs or total > 2 * max_pairs:
        raise ValueError(
            f"more than {max_pairs:,} pairs are at least {threshold:g} alike; raise the threshold."
        )
    return Pairs(first[order], second[order], similarity[order])


def groups(size: int, pairs: Pairs) -> list[np.ndarray]:
    """Rows that pairs join, directly or through others, as sorted arrays: the largest group first,
    rows without a partner in none.

    Raises:
      ValueError: pairs of rows beyond `size`, the number of rows.
    """
    most = int(pairs.second.max(initial=-1))
    if most >= size:
        raise ValueError(
            f"size is {size}, and a pair has row {most}; expected the number of rows that the "
            "pairs are of."
        )
    return _members(_components(size, pairs.first, pairs.second))


def groups_above(
    x: np.ndarray | jax.Array, threshold: float, *, max_pairs: int = MAX_PAIRS
) -> Joined:
    """`groups` of the pairs of `pairs_above`, however many there are: n equal rows are one group of
    n (n - 1) / 2 pairs.

    Args:
      x, threshold: see `pairs_above`.
      max_pairs: that are held at a time. Where there are more, rows that pairs have joined already
        are not compared again, and the similarity is the largest of those that were.

    Raises:
      ValueError: as `pairs_above`, of the number of pairs never.
    """
    size = _checked_size(x, threshold)
    label, similarity = np.arange(size), np.zeros(size, np.float32)
    held: list[tuple[np.ndarray, np.ndarray]] = []

    def joined(left: np.ndarray, right: np.ndarray) -> bool:
        one = label[right[0]]
        return bool((label[right] == one).all() and (label[left] == one).all())

    def join() -> None:
        nonlocal label
        if held:
            first, second = (label[np.concatenate(rows)] for rows in zip(*held))
            label = _components(size, first, second)[label]
            held.clear()

    for first, second, cosine in _found(x, threshold, joined=joined):
        np.maximum.at(similarity, first, cosine)
        np.maximum.at(similarity, second, cosine)
        held.append((first, second))
        if sum(len(rows) for rows, _ in held) > max_pairs:
            join()
    join()
    return Joined(_members(label), similarity)


def _components(size: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[size] the component of each node of a graph with these edges."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(first), np.int8)
    graph = sparse.csr_matrix((ones, (first, second)), (size, size))
    return np.asarray(connected_components(graph, directed=False)[1])


def _members(label: np.ndarray) -> list[np.ndarray]:
    """The rows of each label that has several, in the order of `groups`."""
    counts = np.bincount(label)
    members = np.flatnonzero(counts[label] > 1)
    by_label = members[np.argsort(label[members], kind="stable")]
    starts = np.flatnonzero(np.diff(label[by_label], prepend=-1))
    parts = np.split(by_label, starts[1:]) if len(by_label) else []
    return sorted(parts, key=lambda rows: (-len(rows), rows[0]))


def _checked_size(x: np.ndarray | jax.Array, threshold: float) -> int:
    """The number of rows."""
    size = check("n d", x=x)["n"]
    if not size:
        raise ValueError("x has no row; expected one or more.")
    check_scalar(threshold=threshold)
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected a cosine above 0 and at most 1.")
    if not np.isfinite(np.asarray(x)).all():
        raise ValueError("x has NaN or inf; leave those rows out.")
    return size


def _found(
    x: np.ndarray | jax.Array,
    threshold: float,
    cells: int = 0,
    joined: Callable[[np.ndarray, np.ndarray], bool] = lambda left, right: False,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(row, other row, similarity) of the pairs of `pairs_above` in parts; some pairs come twice.
    Two sets of rows that are `joined` are not compared."""
    size = len(x)
    rows = _unit_and_zero(jnp.asarray(x))
    count = min(size, cells or round(min(4 * size**0.5, max(BITS / size, 1))))
    drawn = np.sort(np.random.default_rng(0).choice(size, count, replace=False))
    reach = np.float32(np.sqrt(max(2 - 2 * threshold, 0) + ROUNDING))
    candidates = _candidates(rows, rows[drawn], reach)
    return _compared(rows, candidates, np.float32(threshold), joined)


@jax.jit
def _unit_and_zero(x):
    """Rows of unit length, and a row of zeros, which is like no other, to fill tiles with."""
    return jnp.pad(unit(x.astype(jnp.float32)), ((0, 1), (0, 0)))


def _heads(rows: jax.Array) -> jax.Array:
    """[N + 1, HEAD + 1] for rows [N + 1, D]: the coordinates of most variance and the length of
    what is left, so that no product of two of them is below the cosine of the rows (Cauchy and
    Schwarz); the rows themselves where D is about as small."""
    size, width = rows.shape
    if width <= HEAD + HEAD // 2:
        return rows
    some = np.random.default_rng(0).choice(size - 1, min(size - 1, 20_000), replace=False)
    drawn = np.asarray(rows[np.sort(some)], np.float64)
    axes = np.linalg.eigh(drawn.T @ drawn)[1][:, ::-1].astype(np.float32)
    return _turned(rows, axes)


@jax.jit
def _turned(rows, axes):
    first = jnp.matmul(rows, axes[:, :HEAD], precision=lax.Precision.HIGHEST)
    rest = jnp.matmul(rows, axes[:, HEAD:], precision=lax.Precision.HIGHEST)
    return jnp.concatenate([first, jnp.linalg.norm(rest, axis=1, keepdims=True)], axis=1)


@jax.jit
def _placed(rows, centres, reach):
    """([N] the nearest centre a of each row x, [ceil(N / 8), C] for each cell b a bit of each row:
    whether x, (|x - b|^2 - |x - a|^2) / (2 |a - b|) from the plane between a and b, is within
    reach / 2)."""
    between = jnp.matmul(centres, centres.T, precision=lax.Precision.HIGHEST)
    apart = jnp.sqrt(jnp.maximum(2 - 2 * between, 0.0))
    below = (reach * apart + ROUNDING) / 2  # x is near where x b >= x a - below
    numbers = jnp.arange(len(centres), dtype=jnp.int32)
    powers = (2 ** jnp.arange(8, dtype=jnp.int32))[None, :, None]
    size = len(rows)
    strip = min(STRIP, -(-size // 8) * 8)
    count = -(-size // strip)
    filled = jnp.pad(rows, ((0, count * strip - size), (0, 0)))

    def one(part):
        dots = jnp.matmul(part, centres.T, precision=lax.Precision.HIGHEST)
        best = jnp.max(dots, axis=1, keepdims=True)
        cell = jnp.min(jnp.where(dots == best, numbers[None], len(centres) - 1), axis=1)
        near = (dots >= best - below[cell]) & (numbers[None] != cell[:, None])
        bits = jnp.sum(near.reshape(strip // 8, 8, -1) * powers, axis=1)
        return cell, bits.astype(jnp.uint8)

    cell, bits = lax.map(one, filled.reshape(count, strip, -1))
    return cell.reshape(-1)[:size], bits.reshape(-1, len(centres))[: -(-size // 8)]


def _candidates(
    rows: jax.Array, centres: jax.Array, reach: np.float32
) -> Iterator[tuple[np.ndarray, np.ndarray, bool]]:
    """(rows, members of a cell, whether the rows are these members) of each comparison."""
    cell, near = (np.asarray(found) for found in _placed(rows[:-1], centres, reach))
    near = np.ascontiguousarray(near.T)
    by_cell = np.argsort(cell, kind="stable").astype(np.int32)
    starts = np.searchsorted(cell[by_cell], np.arange(len(centres) + 1))
    for number in range(len(centres)):
        inside = by_cell[starts[number] : starts[number + 1]]
        if len(inside):
            yield inside, inside, True
            bits = np.unpackbits(near[number], count=len(cell), bitorder="little")
            outside = np.flatnonzero(bits.view(bool)).astype(np.int32)
            if len(outside):
                yield outside, inside, False


@jax.jit
def _possible(heads, left, right, threshold):
    """Whether a pair of some rows with others may be above the threshold."""
    columns = heads[right].T

    def most(rows):
        return jnp.max(jnp.matmul(heads[rows], columns, precision=lax.Precision.HIGHEST))

    return jnp.max(lax.map(most, left.reshape(-1, min(STRIP, len(left))))) >= threshold - ROUNDING


@jax.jit
def _cosines(rows, left, right):
    return jnp.matmul(rows[left], rows[right].T, precision=lax.Precision.HIGHEST)


def _compared(
    rows: jax.Array,
    candidates: Iterator[tuple[np.ndarray, np.ndarray, bool]],
    threshold: np.float32,
    joined: Callable[[np.ndarray, np.ndarray], bool],
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(row, other row, similarity) of the pairs in each tile that has some."""
    heads, zero = _heads(rows), len(rows) - 1
    waiting: list[tuple[np.ndarray, np.ndarray, bool, tuple[np.ndarray, ...], jax.Array]] = []

    def ready() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for left, right, same, padded, possible in waiting:
            if not bool(possible):
                continue
            values = np.asarray(_cosines(rows, *padded))[: len(left), : len(right)]
            a, b = np.nonzero(values >= threshold)
            if same:  # each pair once, and no row with itself
                keep = left[a] < right[b]
                a, b = a[keep], b[keep]
            if len(a):
                yield left[a], right[b], values[a, b]
        waiting.clear()

    for some, inside, same in candidates:
        for j in range(0, len(inside), COLUMNS):
            right = inside[j : j + COLUMNS]
            columns = _padded(right, COLUMNS, zero)
            for i in range(0, len(some), ROWS):
                left = some[i : i + ROWS]
                if same and left[0] >= right[-1]:
                    break  # of ascending rows: these pairs were found from the other side
                if joined(left, right):
                    continue
                padded = _padded(left, ROWS, zero), columns
                waiting.append((left, right, same, padded, _possible(heads, *padded, threshold)))
                if len(waiting) == WAITING:
                    yield from ready()
    yield from ready()


def _padded(rows: np.ndarray, most: int, zero: int) -> np.ndarray:
    """Row numbers, with that of the row of zeros up to a power of two: few shapes are compiled."""
    size = min(most, max(64, 1 << (len(rows) - 1).bit_length()))
    return np.pad(rows, (0, size - len(rows)), constant_values=zero)
