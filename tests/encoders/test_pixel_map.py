"""The flow of colours keeps volumes and starts as the identity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.encoders.pixel_map import PixelMap
from tests.losses.compiled import program


def test_flow_starts_as_the_identity_and_keeps_volumes():
    flow = PixelMap("flow", layers=4, width=5)
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 3))
    variables = program(flow.init)(jax.random.key(1), x)
    np.testing.assert_allclose(program(flow.apply)(variables, x), x, atol=1e-6)
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    variables = jax.tree.unflatten(
        tree, [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves)]
    )

    def pixel(p):
        return flow.apply(variables, p[None, None, None])[0, 0, 0]

    jacobians = np.asarray(jax.vmap(jax.jacfwd(pixel))(x.reshape(-1, 3)))
    np.testing.assert_allclose(np.abs(np.linalg.det(jacobians)), 1, rtol=1e-3)
    assert np.abs(jacobians - np.eye(3)).max() > 0.5


def test_settings_that_cannot_be():
    with pytest.raises(ValueError, match="expected one of flow, convolutions"):
        PixelMap("affine").init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)))
    with pytest.raises(ValueError, match="the images have one; use colour images"):
        PixelMap().init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
