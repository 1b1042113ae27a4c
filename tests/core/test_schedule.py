"""A value that waits for another on a CPU: itself, and memory that a gradient does not keep."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cl_jax.core.schedule import not_before
from cl_jax.encoders import norm


def test_is_the_value_and_passes_nan_on():
    value, known = jnp.arange(3.0), jnp.ones((2, 2))
    np.testing.assert_array_equal(not_before(value, known), value)
    assert not_before(value.astype(jnp.bfloat16), known).dtype == jnp.bfloat16
    assert jnp.isnan(not_before(value, known.at[0, 0].set(jnp.nan))).all()
    of_value, of_known = jax.grad(lambda *a: not_before(*a).sum(), (0, 1))(value, known)
    assert (of_value == 1).all() and (of_known == 0).all()


def test_does_not_wait_for_nothing_or_for_what_lies_on_an_explicit_mesh():
    value = jnp.arange(3.0)
    np.testing.assert_array_equal(not_before(value, jnp.ones((0, 2))), value)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        known = jax.device_put(jnp.ones((4, 2)), NamedSharding(mesh, PartitionSpec("data")))
        np.testing.assert_array_equal(jax.jit(not_before)(value, known), value)


def test_other_platforms_have_no_trace_of_it():
    traced = jax.jit(not_before).trace(jnp.ones(3), jnp.ones(2))
    assert "compare" in traced.lower(lowering_platforms=("cpu",)).as_text()
    for platform in ("cuda", "tpu"):
        assert "compare" not in traced.lower(lowering_platforms=(platform,)).as_text()


def test_a_gradient_does_not_keep_what_it_makes_of_its_input(monkeypatch):
    """Of a chain of layers, the normalised maps of the gradient: without the wait they are all kept
    from the forward pass on."""
    x = jax.ShapeDtypeStruct((64, 16, 16, 8), jnp.float32)
    kernel = jax.ShapeDtypeStruct((8, 8), jnp.float32)

    def loss(kernels, x):
        for kernel in kernels:
            x = lax.dot_general(x, kernel, (((3,), (0,)), ((), ())))
            x = jax.nn.relu(norm._normalise(x, None, None, None, 1e-5, jnp.float32)[0])
        return jnp.square(x).sum()

    def temporaries():
        compiled = jax.jit(jax.grad(loss)).lower([kernel] * 4, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    waiting = temporaries()
    monkeypatch.setattr(norm, "not_before", lambda value, known: value)
    assert waiting < 0.85 * temporaries()
