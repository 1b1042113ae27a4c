"""Position tables: the authors' numbers are in the golden vectors; here identities and errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.encoders.positions import interpolate, sincos_2d


def test_same_grid_is_returned_as_it_is():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(1, 17, 3)), jnp.float32)
    assert interpolate(table, 32, 32, patch=8) is table


def test_constant_table_stays_constant():
    resized = jax.jit(partial(interpolate, height=48, width=31, patch=8))(jnp.full((1, 17, 3), 2.5))
    np.testing.assert_allclose(resized, np.full((1, 19, 3), 2.5), rtol=1e-6)


def test_sincos_rows_have_equal_length_and_the_class_token_none():
    table = sincos_2d(3, 5, 8)
    norms = np.linalg.norm(table[0], axis=1)
    np.testing.assert_allclose(norms, [0, *[2.0] * 15], atol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_2d(2, 2, 6)
    with pytest.raises(ValueError, match="square"):
        interpolate(jnp.zeros((1, 12, 4)), 3, 3, patch=1)
    with pytest.raises(ValueError, match="no patch"):
        interpolate(jnp.zeros((1, 17, 4)), 8, 32, patch=16)
