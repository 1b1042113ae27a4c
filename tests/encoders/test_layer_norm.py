"""Layer normalisation: flax's values, and a gradient that keeps little."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cl_jax.core import parallel
from cl_jax.encoders.layer_norm import LayerNorm

D = 6


def given(dtype=jnp.float32, level=0.0):
    rng = np.random.default_rng(0)
    x = jnp.asarray(level + rng.normal(size=(4, 3, D)), dtype)
    params = {name: jnp.asarray(rng.normal(size=D), jnp.float32) for name in ("scale", "bias")}
    return x, params


def value(module):
    return lambda x, params: jnp.sin(module.apply({"params": params}, x)).sum()


def test_values_gradients_and_second_gradients_are_flaxs():
    x, params = given()
    ours, theirs = (value(kind(epsilon=1e-5)) for kind in (LayerNorm, nn.LayerNorm))

    def both(f):
        def along(x, params):
            moved = jax.grad(f, (0, 1))(x, params)
            return sum(jnp.vdot(a, a) for a in jax.tree.leaves(moved))

        return jax.jit(lambda *a: (f(*a), jax.grad(f, (0, 1))(*a), jax.grad(along, (0, 1))(*a)))

    found, exact = both(ours)(x, params), both(theirs)(x, params)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_forward_mode_is_flaxs():
    given_now, along = given(), jax.tree.map(jnp.cos, given())
    ours, theirs = (
        jax.jvp(value(kind(epsilon=1e-5)), given_now, along) for kind in (LayerNorm, nn.LayerNorm)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_starts_as_flax_does_and_keeps_the_type():
    x, _ = given(jnp.bfloat16)
    ours, theirs = (kind().init(jax.random.key(0), x) for kind in (LayerNorm, nn.LayerNorm))
    assert jax.tree.map(lambda a: (a.shape, str(a.dtype)), ours) == jax.tree.map(
        lambda a: (a.shape, str(a.dtype)), theirs
    )
    assert LayerNorm().apply(ours, x).dtype == jnp.bfloat16
    assert LayerNorm(dtype=jnp.float32).apply(ours, x).dtype == jnp.float32


def test_numpys_float64_is_read_as_jax_reads_it_and_integers_are_refused():
    x, params = given()
    for wrong, words in ((np.ones((2, 3), int), "floating-point"), (np.float32(1), "scalar")):
        with pytest.raises(ValueError, match=words):
            LayerNorm().init(jax.random.key(0), wrong)
    wide = np.asarray(x, np.float64)
    np.testing.assert_array_equal(
        LayerNorm().apply({"params": params}, wide), LayerNorm().apply({"params": params}, x)
    )


def test_a_large_mean_loses_nothing():
    x, params = given()
    near, far = (LayerNorm().apply({"params": params}, x.round(1) + level) for level in (0.0, 4096))
    np.testing.assert_allclose(far, near, atol=0.01)


def test_products_of_the_gradient_are_in_float32_on_accelerators():
    x, params = given()
    traced = jax.jit(jax.grad(value(LayerNorm()))).trace(x, params)
    lines = traced.lower(lowering_platforms=("tpu",)).as_text().splitlines()
    products = [line for line in lines if "dot_general" in line]
    assert len(products) == 2 and all("HIGHEST" in line for line in products)


def test_the_gradient_keeps_the_input_and_two_numbers_a_row():
    x, params = given()
    back = jax.eval_shape(lambda x, params: jax.vjp(value(LayerNorm()), x, params)[1], x, params)
    theirs = jax.eval_shape(
        lambda x, params: jax.vjp(value(nn.LayerNorm()), x, params)[1], x, params
    )
    kept, more = (
        sum(leaf.size == x.size for leaf in jax.tree.leaves(saved)) for saved in (back, theirs)
    )
    assert kept == 2 < more  # the input and what the sine keeps


@pytest.mark.parametrize("check_vma", [True, False])
def test_across_devices(check_vma):
    x, params = given()
    f = value(LayerNorm())

    def local(params, x):
        return jax.lax.psum(f(x, params), parallel.AXIS)

    mapped = jax.shard_map(
        local,
        mesh=parallel.make_mesh(2),
        in_specs=(P(), P(parallel.AXIS)),
        out_specs=P(),
        check_vma=check_vma,
    )
    found = jax.jit(jax.grad(mapped))(params, x)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(jax.grad(f, 1)(x, params))):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("features", [None, "data"])
def test_parameters_or_features_may_be_divided_over_explicit_axes(features):
    x, params = given()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))

    def gradient(params, x):
        return jax.grad(value(LayerNorm()), (0, 1))(x, params)

    expected = jax.tree.leaves(gradient(params, x))
    with jax.set_mesh(mesh):
        divided = jax.device_put(params, NamedSharding(mesh, P("data")))
        x = jax.device_put(x, NamedSharding(mesh, P(None, None, features)))
        for a, b in zip(jax.tree.leaves(jax.jit(gradient)(divided, x)), expected):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
