"""SwAV's queue: newest first, any batch against any length, the same bits on all devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.memory import crop_queue


def test_newest_first_and_filled_once_the_oldest_row_is_there():
    queue, pushed = crop_queue.init(2, 5, 3), np.zeros((2, 0, 3))
    for step in range(3):
        z = np.random.default_rng(step).normal(size=(2, 2, 3)).astype(np.float32)
        np.testing.assert_array_equal(crop_queue.filled(queue), False)
        queue, pushed = crop_queue.push(queue, jnp.asarray(z)), np.concatenate([z, pushed], axis=1)
    np.testing.assert_array_equal(queue, pushed[:, :5])
    np.testing.assert_array_equal(crop_queue.filled(queue), True)
    np.testing.assert_array_equal(crop_queue.filled(queue.at[1, -1].set(0)), [True, False])


def test_a_batch_longer_than_the_queue():
    z = np.arange(8.0).reshape(1, 8, 1)
    np.testing.assert_array_equal(crop_queue.push(crop_queue.init(1, 3, 1), z)[0, :, 0], [0, 1, 2])


def test_all_devices_hold_the_queue_of_the_global_batch():
    z, queue = jnp.arange(24.0).reshape(2, 6, 2), crop_queue.init(2, 8, 2)
    by_device = jnp.moveaxis(z.reshape(2, 3, 2, 2), 1, 0)
    many = jax.vmap(lambda z: crop_queue.push(queue, z, axis_name="i"), axis_name="i")(by_device)
    for held in many:
        np.testing.assert_array_equal(held, crop_queue.push(queue, z))


def test_no_gradient_and_own_type():
    queue, z = crop_queue.init(1, 3, 2, dtype=jnp.bfloat16), jnp.ones((1, 2, 2))
    assert crop_queue.push(queue, z).dtype == jnp.bfloat16
    assert not np.any(jax.grad(lambda z: crop_queue.push(queue, z).sum().astype(jnp.float32))(z))


def test_errors():
    with pytest.raises(ValueError, match=r"z has shape \(1, 4, 3\).*a = 2"):
        crop_queue.push(crop_queue.init(2, 5, 3), np.ones((1, 4, 3)))
    with pytest.raises(ValueError, match="length 0"):
        crop_queue.init(2, 0, 3)
