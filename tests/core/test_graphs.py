"""Sums over neighbours and over graphs, beside loops."""

import jax.numpy as jnp
import numpy as np

from cl_jax.core.graphs import Graphs, messages, pool


def two_graphs():
    """A path of three nodes and a single node, in 6 places; a third graph found no place."""
    return Graphs(
        x=jnp.array([[1.0], [2.0], [4.0], [8.0], [0.0], [0.0]]),
        graph=jnp.array([0, 0, 0, 1, 3, 3]),
        send=jnp.array([0, 1, 1, 2, 6, 6]),
        receive=jnp.array([1, 0, 2, 1, 6, 6]),
        fits=jnp.array([True, True, False]),
    )


def test_real_places_hold_nodes():
    assert two_graphs().real.tolist() == [True, True, True, True, False, False]


def test_messages_are_sums_over_neighbours_and_0_without_any():
    graphs = two_graphs()
    assert messages(graphs, graphs.x)[:, 0].tolist() == [2.0, 5.0, 2.0, 0.0, 0.0, 0.0]


def test_pool_sums_nodes_and_says_nan_of_a_graph_without_a_place():
    graphs = two_graphs()
    np.testing.assert_array_equal(pool(graphs, graphs.x)[:, 0], [7.0, 8.0, np.nan])
