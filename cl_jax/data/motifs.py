"""`motifs`: generated graphs without a download. A graph is a random tree with small motifs hung
into it, and its family says which.

A family is a pair of motifs, a ring of three and a ring of four for instance, so that no motif
alone tells a family. How many copies there are, how large the tree is, where they hang, some edges
and the nodes' tags vary from graph to graph and say nothing about the family.
"""

from itertools import combinations

import numpy as np

from cl_jax.core.seeds import generator
from cl_jax.data.graphs import GraphSet, source_of
from cl_jax.data.source import Source, Splits

MOTIFS = {  # edges between nodes 0, 1, ...
    "triangle": ((0, 1), (1, 2), (0, 2)),
    "square": ((0, 1), (1, 2), (2, 3), (0, 3)),
    "pentagon": ((0, 1), (1, 2), (2, 3), (3, 4), (0, 4)),
    "star": ((0, 1), (0, 2), (0, 3), (0, 4)),
    "clique": ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)),
}
FAMILIES = tuple(combinations(MOTIFS, 2))
_TAGS = 3
_TREE = (5, 20)  # nodes, the last one left out
_COPIES = (2, 6)  # of each motif
_NOISE = (0, 3)  # edges between random nodes


def make(*, train_size: int = 600, test_size: int = 200, seed: int = 0) -> Splits:
    """Generates the two parts; about a tenth of a second.

    Fields: "node" uint8 [N], 1 + a tag without meaning, 0 after the last node; "edge" int16 [E, 2],
    -1 after the last edge. int32: "label" (the family, 10), "nodes" and "edges", how many a graph
    has.

    Args:
      train_size, test_size: graphs.
      seed: of everything.

    Raises:
      ValueError: a size below 1.
    """
    for name, size in (("train_size", train_size), ("test_size", test_size)):
        if size < 1:
            raise ValueError(f"{name}={size}; expected 1 or more.")
    parts = [_generated(seed, number, size) for number, size in enumerate((train_size, test_size))]
    places = (
        max(int(part.nodes.max()) for part in parts),
        max(int(part.edges.max()) for part in parts),
    )

    def source(name: str, graphs: GraphSet) -> Source:
        return source_of(f"motifs/{name}", graphs, tags=_TAGS, places=places)

    return Splits(source("train", parts[0]), source("test", parts[1]))


def _generated(seed: int, number: int, size: int) -> GraphSet:
    rng = generator(seed, number)
    label = rng.integers(len(FAMILIES), size=size)
    graphs = [_graph(rng, FAMILIES[family]) for family in label]
    nodes = np.array([count for count, _ in graphs])
    edges = np.array([len(edge) for _, edge in graphs])
    tag = rng.integers(_TAGS, size=int(nodes.sum()))
    return GraphSet(nodes, edges, tag, np.concatenate([edge for _, edge in graphs]), label)


def _graph(rng: np.random.Generator, family: tuple[str, str]) -> tuple[int, np.ndarray]:
    """(nodes, edges [E, 2], each once and in order)."""
    tree = int(rng.integers(*_TREE))
    edges = [(int(rng.integers(node)), node) for node in range(1, tree)]
    count = tree
    for motif in family:
        for _ in range(int(rng.integers(*_COPIES))):
            edges += [(count + a, count + b) for a, b in MOTIFS[motif]]
            edges.append((int(rng.integers(tree)), count))
            count += 1 + max(map(max, MOTIFS[motif]))
    for _ in range(int(rng.integers(*_NOISE))):
        a, b = rng.choice(count, 2, replace=False)
        edges.append((int(min(a, b)), int(max(a, b))))
    shuffled = rng.permutation(count)
    found = np.sort(shuffled[np.array(edges)], axis=1)
    return count, np.unique(found, axis=0)
