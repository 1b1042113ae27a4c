"""Statistics over devices equal those of all rows on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cl_jax.core import axis


def mapped(f, x, devices=4):
    """f on each device's rows of x, its results stacked by device."""
    return jax.pmap(f, axis_name="batch")(x.reshape(devices, -1, *x.shape[1:]))


def test_without_a_name_everything_is_the_identity():
    x = jnp.arange(6.0).reshape(3, 2)
    for f in (axis.gather, axis.mean, axis.total, axis.gather_own):
        assert f(x, None) is x or (f(x, None) == x).all()
    assert axis.axis_size(None) == 1 and axis.first_row(3, None) == 0


def test_statistics_of_devices_are_those_of_all_rows():
    x = jax.random.normal(jax.random.key(0), (8, 3))

    def f(rows):
        return {
            "gather": axis.gather(rows, "batch"),
            "mean": axis.mean(rows.mean(), "batch"),
            "total": axis.total(rows.sum(), "batch"),
            "log_total": axis.log_total(rows, "batch"),
            "first": axis.first_row(rows.shape[0], "batch"),
        }

    found = mapped(f, x)
    for device in range(4):
        np.testing.assert_array_equal(found["gather"][device], x)
    np.testing.assert_allclose(found["mean"], x.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["total"], x.sum(), rtol=1e-5)
    np.testing.assert_allclose(found["log_total"], jax.nn.logsumexp(x), rtol=1e-5)
    assert found["first"].tolist() == [0, 2, 4, 6]


def test_log_total_of_large_values_is_finite():
    assert axis.log_total(jnp.array([1000.0, 1000.0]), None) == pytest.approx(1000 + np.log(2))


def test_gather_sends_gradient_to_every_device_and_gather_own_to_its_own():
    x, weights = jnp.ones((4, 1)), jnp.arange(1.0, 5.0)[:, None]

    def gradient(how):
        def value(rows):
            return (how(rows, "batch") * weights).sum()

        return mapped(jax.grad(value), x)[:, 0, 0]

    assert gradient(axis.gather).tolist() == [4.0, 8.0, 12.0, 16.0]  # once from each of 4 devices
    assert gradient(axis.gather_own).tolist() == [1.0, 2.0, 3.0, 4.0]


def test_any_mesh_keeps_values_and_shardings():
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    x = jnp.arange(16.0).reshape(8, 2)
    on_mesh = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))

    @axis.any_mesh
    def centred(rows, *, scale):
        return (rows - rows.mean(axis=0, keepdims=True)) * scale, rows.sum()

    rows, total = centred(on_mesh, scale=2.0)
    np.testing.assert_allclose(rows, (x - x.mean(0, keepdims=True)) * 2)
    assert total == x.sum()
    assert rows.sharding.spec[0] == "data" and not total.sharding.spec


def test_any_mesh_takes_typed_keys_of_the_mesh():
    """As `jax.random.key` makes them inside `jax.set_mesh`."""
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Explicit,), devices=jax.devices()[:4])
    ids = jnp.arange(8)
    on_mesh = jax.device_put(ids, NamedSharding(mesh, PartitionSpec("data")))

    @axis.any_mesh
    def drawn(key, ids):
        return jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(ids)

    with jax.set_mesh(mesh):
        found = drawn(jax.random.key(0), on_mesh)
    np.testing.assert_array_equal(found, drawn(jax.random.key(0), ids))
    assert found.sharding.spec[0] == "data"


def test_rows_are_split_over_the_axes_that_divide_them():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    found = {}

    def count(rows):
        found[rows.shape[0]] = axis.num_splits(rows.shape[0], rows)
        return rows

    for size in (8, 6, 7):
        x = jnp.zeros((size, 2))
        spec = PartitionSpec("a") if size % 2 == 0 else PartitionSpec()
        jax.jit(count)(jax.device_put(x, NamedSharding(mesh, spec)))
    assert found == {8: 4, 6: 2, 7: 1}
    assert axis.num_splits(8, jnp.zeros((8, 2))) == 1  # not traced
