"""GraphCL's views of a graph: nodes dropped, edges moved, features masked, a connected part kept.

A batch comes as padded rows, "node" [B, N] and "edge" [B, E, 2], and leaves packed side by side as
`core.graphs.Graphs`: a graph then costs its own nodes and not those of the largest.

>>> view = make(sizes=source.sizes, labels=partial(labels_of, source))
>>> graphs = view.draw(keys, batch)
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.core.graphs import Graphs

OPERATORS = ("none", "drop", "edges", "mask", "subgraph")
FILLS = ("mean", "noise")


class Budget(NamedTuple):
    """Places for a batch: `nodes[k]` holds the 2^k graphs that have most nodes, `edges[k]` those
    that have most edges."""

    nodes: tuple[int, ...]
    edges: tuple[int, ...]

    def of(self, rows: int) -> tuple[int, int]:
        """(nodes, edges) that hold any `rows` different graphs."""
        return _held(self.nodes, rows), _held(self.edges, rows)


def budget_of(nodes: np.ndarray, edges: np.ndarray) -> Budget:
    """The budget of a data set, from the nodes [N] and edges [N] of each of its graphs."""

    def sums(counts: np.ndarray) -> tuple[int, ...]:
        total = np.cumsum(np.sort(np.asarray(counts, np.int64))[::-1])
        steps = [2**k for k in range(len(total).bit_length())]
        return tuple(int(total[min(step, len(total)) - 1]) for step in [*steps, len(total)])

    return Budget(sums(nodes), sums(edges))


def _held(table: tuple[int, ...], rows: int) -> int:
    """Sums of the largest are concave in their number: bounded by the next step, and by the step
    before, scaled up."""
    k = min(rows.bit_length() - 1, len(table) - 1)
    above = table[min(k + 1, len(table) - 1)]
    return table[k] if rows == 2**k else min(above, -(-table[k] * rows // 2**k))


@dataclasses.dataclass(frozen=True)
class GraphView:
    """One view of each graph by one of `operators`, drawn for each graph with equal chances.

    "none" leaves the graph as it is. "drop" takes floor(ratio n) nodes away, with their edges.
    "edges" replaces floor(ratio e) edges by as many between nodes drawn at random. "mask" replaces
    the features of floor(ratio n) nodes: by the graph's mean feature (`fill` "mean"), or by normal
    noise of mean and deviation 0.5 ("noise"). "subgraph" keeps floor(keep n) nodes, at least one:
    from a random node, a random neighbour of what is kept is added again and again, as long as
    there is one.

    values: how many values "node" has, padding included.
    budget: places for drawn batches, which hold any batch of different graphs; None holds any, at
      the price of its padding. Clean batches are always packed so.
    """

    operators: tuple[str, ...] = ("drop", "edges", "mask", "subgraph")
    ratio: float = 0.2
    keep: float = 0.8
    fill: str = "mean"
    values: int = 0
    budget: Budget | None = None
    needs: ClassVar[tuple[str, ...]] = ("node", "edge")
    wants: ClassVar[tuple[str, ...]] = ()

    def draw(self, keys: jax.Array, batch: Mapping[str, jax.Array]) -> Graphs:
        """Views of a batch. keys: [B] typed keys, one for each graph."""
        rows, _nodes = batch["node"].shape
        places = None if self.budget is None else self.budget.of(rows)
        packed = pack(batch["node"], batch["edge"], self.values, places)
        return transform(self, draw(self, keys, packed), packed)

    def clean(self, batch: Mapping[str, jax.Array]) -> Graphs:
        """The graphs as they are."""
        return _both_ways(pack(batch["node"], batch["edge"], self.values))


def make(
    *,
    operators: Sequence[str] = ("drop", "edges", "mask", "subgraph"),
    ratio: float = 0.2,
    keep: float = 0.8,
    fill: str = "mean",
    sizes: Mapping[str, int] = MappingProxyType({}),
    labels: Callable[[str], np.ndarray] | None = None,
) -> GraphView:
    """A `GraphView` from a config section. GraphCL's random2 is ("drop", "subgraph"), random3 adds
    "edges", random4 "mask".

    Args:
      operators, ratio, keep, fill: see `GraphView`.
      sizes: `Source.sizes` of the training data; "node" says how many features a node has.
      labels: field -> [N], "nodes" and "edges" of each training graph, for the budget; without them
        there is none.

    Raises:
      ValueError: an unknown operator or fill, none, or a share outside its range.
    """
    operators = tuple(operators)
    unknown = [name for name in operators if name not in OPERATORS]
    if unknown or not operators:
        raise ValueError(
            f"operators={list(operators)}; expected one or more of {', '.join(OPERATORS)}."
        )
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio={ratio}; expected a share of a graph, at least 0 and below 1.")
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep}; expected a share of a graph, above 0 and at most 1.")
    if fill not in FILLS:
        raise ValueError(f"fill={fill!r}; expected one of {', '.join(FILLS)}.")
    budget = None
    if labels is not None and {"nodes", "edges"} <= set(sizes):
        budget = budget_of(labels("nodes"), labels("edges"))
    return GraphView(
        operators, float(ratio), float(keep), fill, values=sizes.get("node", 0), budget=budget
    )


class Packed(NamedTuple):
    """`Graphs` with each undirected edge once, and what draws need. node, edge: place inside the
    own graph; nodes, edges: [B] how many a graph has; first: [B] its first node's place."""

    graphs: Graphs
    node: jax.Array
    edge: jax.Array
    edge_graph: jax.Array
    nodes: jax.Array
    edges: jax.Array
    first: jax.Array


def pack(
    node: jax.Array, edge: jax.Array, values: int, places: tuple[int, int] | None = None
) -> Packed:
    """Padded rows side by side.

    Args:
      node: [B, N] integers: 0 where a row has no more nodes, otherwise 1 + the node's tag.
      edge: [B, E, 2] integers, each undirected edge once, -1 where a row has no more.
      values: tags + 1; the features are one-hot tags.
      places: (nodes, edges) of the result; None: B N and B E, which hold any batch. Rows are placed
        in order, and those after it is full do not fit.

    Raises:
      ValueError: other shapes, fewer than two values.
    """
    if node.ndim != 2 or edge.ndim != 3 or edge.shape[2] != 2 or len(node) != len(edge):
        raise ValueError(
            f"node has shape {node.shape} and edge {edge.shape}; expected [B, N] and [B, E, 2]."
        )
    if values < 2:
        raise ValueError(
            f"the view knows of {values} values of node; expected the tags and 0. Give "
            "views.graph.make the data's sizes=source.sizes."
        )
    node, edge, rows = jnp.asarray(node), jnp.asarray(edge), len(node)
    nodes = (node > 0).sum(1, dtype=jnp.int32)
    edges = (edge[..., 0] >= 0).sum(1, dtype=jnp.int32)
    size, links = places or (node.size, edge.shape[0] * edge.shape[1])
    size, links = min(size, node.size), min(links, edge.shape[0] * edge.shape[1])
    node_end, edge_end = jnp.cumsum(nodes), jnp.cumsum(edges)
    fits = (node_end <= size) & (edge_end <= links)
    graph, at = _places(node_end, nodes, size)
    tag = jnp.where(graph < rows, node[jnp.minimum(graph, rows - 1), at], 0).astype(jnp.int32)
    graph = jnp.where(fits.at[graph].get(mode="fill", fill_value=False), graph, rows)
    x = jax.nn.one_hot(jnp.where(graph < rows, tag, 0) - 1, values - 1)

    edge_graph, edge_at = _places(edge_end, edges, links)
    edge_graph = jnp.where(fits.at[edge_graph].get(mode="fill", fill_value=False), edge_graph, rows)
    own = jnp.minimum(edge_graph, rows - 1)
    first = node_end - nodes
    ends = edge[own, edge_at].astype(jnp.int32) + first[own][:, None]
    ends = jnp.where((edge_graph < rows)[:, None], ends, size)
    graphs = Graphs(x, graph, ends[:, 0], ends[:, 1], fits)
    return Packed(graphs, at, edge_at, edge_graph, nodes, edges, first)


def _places(end: jax.Array, count: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """(row that each of `size` places belongs to, number inside the row); one past the last row
    where the rows have ended."""
    place = jnp.arange(size, dtype=jnp.int32)
    row = jnp.searchsorted(end, place, side="right").astype(jnp.int32)
    start = (end - count).at[row].get(mode="fill", fill_value=0)
    return row, jnp.where(row < len(end), place - start, 0)


class Draw(NamedTuple):
    """Everything random about a batch of views.

    operator: [B] numbers in `operators`. node: [M] uniform, ranks nodes to drop or to mask. wait:
    [M] exponential, how long a node that could be added to a subgraph waits. start: [M] uniform;
    the least is where the subgraph starts. edge: [P] uniform, ranks edges to move. ends: [P, 2]
    uniform in [0, 1), where to. noise: [M, F] normal, or None.
    """

    operator: jax.Array
    node: jax.Array
    wait: jax.Array
    start: jax.Array
    edge: jax.Array
    ends: jax.Array
    noise: jax.Array | None


def draw(view: GraphView, keys: jax.Array, packed: Packed) -> Draw:
    """The random numbers of a batch: a node's or edge's come from its graph's key and its number in
    the graph."""
    rows, graphs = len(keys), packed.graphs
    kinds = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
    operator = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(view.operators)))

    def of(kind: int, graph: jax.Array, number: jax.Array) -> jax.Array:
        return jax.vmap(jax.random.fold_in)(kinds[jnp.minimum(graph, rows - 1), kind], number)

    node_keys = of(1, graphs.graph, packed.node)
    edge_keys = of(2, packed.edge_graph, packed.edge)
    node = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(node_keys)
    edge = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(edge_keys)
    noise = None
    if view.fill == "noise" and "mask" in view.operators:
        noise_keys = of(3, graphs.graph, packed.node)
        noise = jax.vmap(lambda key: jax.random.normal(key, graphs.x.shape[1:]))(noise_keys)
    return Draw(
        operator(kinds[:, 0]),
        node[:, 0],
        -jnp.log1p(-node[:, 1]),
        node[:, 2],
        edge[:, 0],
        edge[:, 1:],
        noise,
    )


def transform(view: GraphView, drawn: Draw, packed: Packed) -> Graphs:
    """The deterministic part of `GraphView.draw`."""
    rows, graphs = len(packed.nodes), packed.graphs
    number = {name: i for i, name in enumerate(view.operators)}

    def chosen(name: str, graph: jax.Array) -> jax.Array:
        """Whether each node's or edge's graph drew that operator; padding draws none."""
        drew = drawn.operator == number[name]
        return drew.at[graph].get(mode="fill", fill_value=False)

    def few(count: jax.Array, graph: jax.Array, share: float) -> jax.Array:
        # A share such as 0.1 of 30 must be 3, and is 2.9999998 in float32.
        return jnp.floor(count * share + 1e-4).astype(jnp.int32)[jnp.minimum(graph, rows - 1)]

    keep, rank = graphs.real, None
    if {"drop", "mask"} & number.keys():
        rank = _rank(drawn.node, graphs.graph, packed.first)
        lowest = rank < few(packed.nodes, graphs.graph, view.ratio)
    if "drop" in number:
        keep &= ~(chosen("drop", graphs.graph) & lowest)
    if "subgraph" in number:
        time = _times(graphs, drawn, chosen("subgraph", graphs.graph))
        early = _rank(time, graphs.graph, packed.first) < jnp.maximum(
            few(packed.nodes, graphs.graph, view.keep), 1
        )
        keep &= ~chosen("subgraph", graphs.graph) | (early & jnp.isfinite(time))
    if "edges" in number:
        graphs = _moved(view, drawn, packed, chosen("edges", packed.edge_graph), few)
    x = graphs.x
    if "mask" in number:
        fill = drawn.noise
        if fill is None:
            own = jax.ops.segment_sum(x, graphs.graph, num_segments=rows)
            fill = (own / jnp.maximum(packed.nodes, 1)[:, None])[
                jnp.minimum(graphs.graph, rows - 1)
            ]
        x = jnp.where((chosen("mask", graphs.graph) & lowest)[:, None], fill, x)
    places = len(keep)
    both = keep.at[graphs.send].get(mode="fill", fill_value=False) & keep.at[graphs.receive].get(
        mode="fill", fill_value=False
    )
    return _both_ways(
        packed._replace(
            graphs=Graphs(
                jnp.where(keep[:, None], x, 0),
                jnp.where(keep, graphs.graph, rows),
                jnp.where(both, graphs.send, places),
                jnp.where(both, graphs.receive, places),
                graphs.fits,
            )
        )
    )


def _rank(score: jax.Array, graph: jax.Array, first: jax.Array) -> jax.Array:
    """Place of each node, or edge, in the ascending order of its own graph's scores, from 0.
    first: [B] the place where a graph's begin."""
    places = jnp.arange(len(score), dtype=jnp.int32)
    _, _, order = jax.lax.sort((graph, score, places), num_keys=2)
    position = jnp.zeros_like(places).at[order].set(places)
    return position - first.at[graph].get(mode="fill", fill_value=0)


def _times(graphs: Graphs, drawn: Draw, active: jax.Array) -> jax.Array:
    """[M] when a node joins the subgraph; inf where none of its neighbours ever does.

    Each node waits an exponential time from the moment that a neighbour has joined. Exponential
    times are memoryless, so that at any moment all nodes that could be next are equally likely to
    be.
    """
    nodes, rows = len(graphs.graph), len(graphs.fits)
    least = jax.ops.segment_min(
        jnp.where(graphs.real, drawn.start, jnp.inf), graphs.graph, num_segments=rows
    )
    begin = active & (drawn.start == least.at[graphs.graph].get(mode="fill", fill_value=-1.0))
    send = jnp.concatenate([graphs.send, graphs.receive])
    receive = jnp.concatenate([graphs.receive, graphs.send])

    def spread(carry):
        time, _ = carry
        sent = time.at[send].get(mode="fill", fill_value=jnp.inf)
        reached = jax.ops.segment_min(sent, receive, num_segments=nodes) + drawn.wait
        new = jnp.minimum(time, reached)
        return new, jnp.any(new < time)

    start = jnp.where(begin, 0.0, jnp.inf).astype(drawn.wait.dtype)
    time, _ = jax.lax.while_loop(lambda carry: carry[1], spread, (start, jnp.array(True)))
    return time


def _moved(view, drawn, packed, chosen, few):
    """The graphs with some edges between other nodes."""
    graphs, rows = packed.graphs, len(packed.nodes)
    edge_first = jnp.cumsum(packed.edges) - packed.edges
    moves = _rank(drawn.edge, packed.edge_graph, edge_first) < few(
        packed.edges, packed.edge_graph, view.ratio
    )
    own = jnp.minimum(packed.edge_graph, rows - 1)
    count = packed.nodes[own]
    a = jnp.minimum(jnp.floor(drawn.ends[:, 0] * count).astype(jnp.int32), count - 1)
    step = jnp.floor(drawn.ends[:, 1] * (count - 1)).astype(jnp.int32)
    b = (a + 1 + jnp.minimum(step, count - 2)) % jnp.maximum(count, 1)  # another node than a
    moves &= chosen & (count > 1)
    send = jnp.where(moves, packed.first[own] + a, graphs.send)
    receive = jnp.where(moves, packed.first[own] + b, graphs.receive)
    return graphs._replace(send=send, receive=receive)


def _both_ways(packed: Packed) -> Graphs:
    graphs = packed.graphs
    return graphs._replace(
        send=jnp.concatenate([graphs.send, graphs.receive]),
        receive=jnp.concatenate([graphs.receive, graphs.send]),
    )
