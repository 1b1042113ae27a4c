"""Graphs of a batch side by side in arrays of fixed length, and sums over their nodes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Graphs(NamedTuple):
    """B graphs in M places for nodes and P for edges; what is left over is padding.

    x: [M, F] features of the nodes, 0 at padding.
    graph: [M] int32, the row of the batch that a node belongs to; B at padding.
    send, receive: [P] int32, places of the nodes at an edge's ends; M at padding. An undirected
      edge is there twice, once in each direction.
    fits: [B] bool, False for a graph that found no place. It has no nodes here, and `pool` makes it
      NaN, so that no figure is computed from it in silence.
    """

    x: jax.Array
    graph: jax.Array
    send: jax.Array
    receive: jax.Array
    fits: jax.Array

    @property
    def real(self) -> jax.Array:
        """[M] bool: the places that hold a node."""
        return self.graph < self.fits.shape[0]


def messages(graphs: Graphs, x: jax.Array) -> jax.Array:
    """[M, D] of nodes -> [M, D], the sum over each node's neighbours; 0 where it has none."""
    nodes = x.shape[0]
    sent = x.at[graphs.send].get(mode="fill", fill_value=0)
    return jax.ops.segment_sum(sent, graphs.receive, num_segments=nodes)


def pool(graphs: Graphs, x: jax.Array) -> jax.Array:
    """[M, D] of nodes -> [B, D], the sum over each graph's nodes; NaN for a graph that found no
    place."""
    rows = graphs.fits.shape[0]
    summed = jax.ops.segment_sum(x, graphs.graph, num_segments=rows)
    return jnp.where(graphs.fits[:, None], summed, jnp.nan)
