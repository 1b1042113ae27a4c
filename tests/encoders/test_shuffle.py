"""Shuffled batches: a permutation of the global batch, undone exactly, the same on any number of
devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cl_jax.encoders.shuffle import shuffle_batch, unshuffle_batch
from tests.losses.parity import AXIS


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_round_trip_and_device_independence(devices):
    x, key = jnp.arange(24.0).reshape(8, 3), jax.random.key(1)
    expected, permutation = shuffle_batch(key, x, None)
    np.testing.assert_array_equal(expected, x[permutation])
    assert (permutation != jnp.arange(8)).any()

    def both(x):
        shuffled, permutation = shuffle_batch(key, x, AXIS)
        return shuffled, unshuffle_batch(shuffled, permutation, AXIS)

    # vmap with a name maps as pmap does.
    shuffled, back = jax.jit(jax.vmap(both, axis_name=AXIS))(x.reshape(devices, -1, 3))
    np.testing.assert_array_equal(shuffled.reshape(8, 3), expected)
    np.testing.assert_array_equal(back.reshape(8, 3), x)
    np.testing.assert_array_equal(unshuffle_batch(expected, permutation, None), x)


@pytest.mark.parametrize("devices", [2, 8])
def test_only_the_rows_that_move_are_exchanged(devices):
    x, key = jnp.arange(128.0).reshape(64, 2), jax.random.key(1)
    expected, permutation = shuffle_batch(key, x, None)
    np.testing.assert_array_equal(jnp.sort(permutation), jnp.arange(64))
    to_and_from = np.zeros((8, 8), int)
    np.add.at(to_and_from, (np.arange(64) // 8, np.asarray(permutation) // 8), 1)
    np.testing.assert_array_equal(to_and_from, 1)

    def both(x):
        shuffled, permutation = shuffle_batch(key, x, AXIS)
        return shuffled, unshuffle_batch(shuffled, permutation, AXIS)

    mesh = jax.make_mesh(
        (devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    compiled = (
        jax.jit(
            jax.shard_map(
                both, mesh=mesh, in_specs=PartitionSpec(AXIS), out_specs=PartitionSpec(AXIS)
            )
        )
        .lower(x)
        .compile()
    )
    text = compiled.as_text()
    # The images go by one all-to-all; what comes back, embeddings in use, is gathered.
    counts = [
        len(re.findall(rf" {kind}(?:-start)?\(", text)) for kind in ("all-to-all", "all-gather")
    ]
    assert counts == [1, 1]
    shuffled, back = compiled(jax.device_put(x, NamedSharding(mesh, PartitionSpec(AXIS))))
    np.testing.assert_array_equal(shuffled, expected)
    np.testing.assert_array_equal(back, x)


def test_gradient_comes_back_to_its_row():
    weights = jnp.arange(8.0).reshape(2, 4)

    def loss(x, weights):
        return jax.lax.psum(jnp.sum(shuffle_batch(jax.random.key(2), x, AXIS)[0] * weights), AXIS)

    def total(x):
        return jax.vmap(loss, axis_name=AXIS)(x, weights)[0]

    _, permutation = shuffle_batch(jax.random.key(2), jnp.zeros(8), None)
    grads = jax.jit(jax.grad(total))(jnp.zeros((2, 4)))
    np.testing.assert_array_equal(grads.reshape(8)[permutation], weights.reshape(8))


def test_unmapped_axis_is_refused():
    with pytest.raises((ValueError, NameError), match="elsewhere"):
        shuffle_batch(jax.random.key(0), jnp.zeros(4), "elsewhere")
