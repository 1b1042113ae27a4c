"""The jigsaw head's order of crops, norm and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.heads.jigsaw import JigsawHead, draw_permutations


@pytest.mark.parametrize("mlp", [False, True])
def test_crops_are_taken_in_the_order_given(mlp):
    head = JigsawHead(width=4, num_crops=3, mlp=mlp)
    h = jax.random.normal(jax.random.key(0), (6, 5))
    straight, order = jnp.tile(jnp.arange(3), (2, 1)), jnp.array([[2, 0, 1], [0, 2, 1]])
    params = head.init(jax.random.key(1), h, straight)
    shuffled = h.reshape(2, 3, 5)[jnp.arange(2)[:, None], order].reshape(6, 5)
    out = head.apply(params, h, order)
    np.testing.assert_allclose(out, head.apply(params, shuffled, straight), atol=1e-6)
    assert np.abs(out - head.apply(params, h, straight)).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-6)
    assert ("fc1_hidden" in params["params"]) == mlp


def test_permutations_follow_the_example():
    orders = draw_permutations(jax.random.key(0), jnp.array([4, 7, 4]), 9)
    np.testing.assert_array_equal(jnp.sort(orders, axis=1), jnp.tile(jnp.arange(9), (3, 1)))
    np.testing.assert_array_equal(orders[0], orders[2])
    assert (orders[0] != orders[1]).any()


def test_errors():
    head = JigsawHead(width=4, num_crops=3)
    with pytest.raises(ValueError, match="h has 5 rows; expected 2 images times 3 crops"):
        head.init(jax.random.key(0), jnp.ones((5, 2)), jnp.zeros((2, 3), int))
    with pytest.raises(ValueError, match="permutations has shape"):
        head.init(jax.random.key(0), jnp.ones((6, 2)), jnp.zeros((2, 4), int))
