"""Placing arrays and mapping functions over devices."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.core import parallel
from cl_jax.core.parallel import EACH, SAME
from cl_jax.data.source import allocate


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh(4)


def test_devices_are_in_the_order_of_their_processes():
    """As a TPU slice is found by topology: processes 0, 1, 0, 1."""
    found = [SimpleNamespace(process_index=i % 2, id=i) for i in (2, 1, 0, 3)]
    assert [d.id for d in parallel.in_order(found)] == [0, 2, 1, 3]


def test_a_mesh_has_the_devices_that_were_asked_for(mesh):
    assert mesh.devices.size == 4 and mesh.axis_names == (parallel.AXIS,)
    with pytest.raises(ValueError, match="devices=99 asked for"):
        parallel.make_mesh(99)


def test_rows_are_split_in_order_and_come_back_whole(mesh):
    rows = np.arange(8.0, dtype=np.float32).reshape(8, 1)
    placed = parallel.place_batch({"x": rows}, mesh)["x"]
    assert [s.data.ravel().tolist() for s in placed.addressable_shards] == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
    ]
    np.testing.assert_array_equal(parallel.fetch(placed), rows)


def test_replicated_trees_are_whole_on_each_device_keys_too(mesh):
    tree = {"w": jnp.ones((3,)), "key": jax.random.key(2)}
    copied = parallel.replicate(tree, mesh)
    assert copied["w"].is_fully_replicated and len(copied["w"].addressable_shards) == 4
    assert (jax.random.key_data(copied["key"]) == jax.random.key_data(tree["key"])).all()


def test_cpu_devices_use_an_allocated_array_without_a_copy(mesh):
    values = allocate((3, 5, 2), np.int32)
    values[...] = np.arange(30).reshape(3, 5, 2)
    placed = parallel.replicate({"x": values}, mesh)["x"]
    for shard in placed.addressable_shards:
        assert shard.data.unsafe_buffer_pointer() == values.ctypes.data
        np.testing.assert_array_equal(shard.data, values)


def test_a_lifted_function_sees_its_rows_and_the_axis(mesh):
    def f(scale, rows):
        return rows * scale, parallel.total(rows.sum(), parallel.AXIS)

    rows = jnp.arange(8.0)
    found, total = parallel.lift(f, mesh, (SAME, EACH), (EACH, SAME))(2.0, rows)
    np.testing.assert_array_equal(found, 2 * rows)
    assert total == 28


def test_new_values_take_the_place_of_old_ones_in_type_and_sharding(mesh):
    old = parallel.place_batch({"x": np.zeros((4, 2), np.float32)}, mesh)
    new = parallel.place_as({"x": np.arange(8).reshape(4, 2)}, old)
    assert new["x"].dtype == jnp.float32 and new["x"].sharding == old["x"].sharding
    assert parallel.place_as(old["x"], old["x"]) is old["x"]


@pytest.mark.parametrize(
    "environment",
    [
        {"JAX_NUM_PROCESSES": "2"},
        {"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": "a:1"},
    ],
)
def test_half_a_job_description_is_refused(monkeypatch, environment):
    for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "JAX_COORDINATOR_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="expected the three of"):
        parallel.join()
