"""Momentum encoders: what the slow copy is after each step."""

import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.core.ema import ema_of_params


def test_starts_as_a_copy_and_moves_by_one_minus_the_momentum():
    params = {"w": jnp.array([1.0, 2.0])}
    tx = ema_of_params(0.9)
    state = tx.init(params)
    np.testing.assert_array_equal(state.ema["w"], params["w"])
    target, state = tx.update({"w": jnp.array([2.0, 0.0])}, state)
    np.testing.assert_allclose(target["w"], [1.1, 1.8], rtol=1e-6)
    np.testing.assert_array_equal(target["w"], state.ema["w"])


def test_the_momentum_may_be_a_schedule_of_the_step():
    tx = ema_of_params(lambda count: jnp.where(count == 0, 1.0, 0.0))
    state = tx.init({"w": jnp.array([1.0])})
    target, state = tx.update({"w": jnp.array([5.0])}, state)
    assert target["w"] == 1.0
    target, _ = tx.update({"w": jnp.array([5.0])}, state)
    assert target["w"] == 5.0


def test_bfloat16_parameters_have_a_float32_copy_that_moves():
    start = {"w": jnp.ones((1,), jnp.bfloat16)}
    tx = ema_of_params(0.9995)
    target, _ = tx.update({"w": jnp.zeros((1,), jnp.bfloat16)}, tx.init(start))
    assert target["w"].dtype == jnp.float32
    assert float(target["w"][0]) == pytest.approx(0.9995)
