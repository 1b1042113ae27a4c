"""The products that stand for a convolution of small maps: the same values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cl_jax.encoders.convolve import convolve
from cl_jax.planning import costs

NUMBERS = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), ("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize(
    ("side", "strides", "padding"),
    [
        (2, (1, 1), ((1, 1), (1, 1))),
        (4, (2, 2), ((1, 1), (1, 1))),
        pytest.param(4, (2, 2), "SAME", marks=pytest.mark.slow),
        (3, (2, 1), ((0, 1), (1, 1))),
        pytest.param(3, (1, 1), "SAME", marks=pytest.mark.slow),
        (1, (1, 1), "SAME"),
        (8, (2, 2), ((1, 1), (1, 1))),
    ],
)
def test_equals_the_convolution(side, strides, padding):
    rng = np.random.default_rng(side)
    x, kernel = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((2, side, side, 3), (3, 3, 3, 4))
    )

    def value(f):
        return lambda x, kernel: jnp.sin(
            f(x, kernel, strides, padding, dimension_numbers=NUMBERS)
        ).sum()

    @jax.jit
    def both(x, kernel):
        forms = (convolve, lax.conv_general_dilated)
        return [jax.value_and_grad(value(f), (0, 1))(x, kernel) for f in forms]

    ours, theirs = both(x, kernel)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("channels", [4, 32])  # windows of a row, Winograd's form
def test_forward_mode_and_products_with_the_hessian(channels):
    rng = np.random.default_rng(channels)
    shapes = (1, 8, 8, channels), (3, 3, channels, channels)
    point, along = (
        tuple(jnp.asarray(rng.normal(size=shape) / 9, jnp.float32) for shape in shapes)
        for _ in range(2)
    )

    @jax.jit
    def derivatives(f, point, along):
        def value(x, kernel):
            return jnp.sin(f(x, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS)).sum()

        once = jax.jvp(value, point, along)
        frozen = jax.jvp(lambda x: value(x, point[1]), point[:1], along[:1])
        return once, frozen, jax.jvp(jax.grad(value, (0, 1)), point, along)[1]

    ours, theirs = (
        jax.tree.leaves(derivatives(jax.tree_util.Partial(f), point, along))
        for f in (convolve, lax.conv_general_dilated)
    )
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_nothing_is_multiplied_for_what_does_not_move():
    """Of images and of frozen kernels there is no gradient, on any platform."""
    x, kernel = jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 4, 4))

    def products(of):
        value = jax.grad(
            lambda *a: convolve(*a, (1, 1), "SAME", dimension_numbers=NUMBERS).sum(), of
        )
        return costs.flops(jax.make_jaxpr(value)(x, kernel))

    assert products(0) < products((0, 1)) and products(1) < products((0, 1))


def test_nothing_is_multiplied_by_the_margin():
    """Of a 2 x 2 map each tap joins 1, 2 or 4 of the 4 inputs with results: 16 products and not
    36."""
    x, kernel = jnp.zeros((1, 2, 2, 3)), jnp.zeros((3, 3, 3, 4))
    program = jax.make_jaxpr(
        lambda x, k: convolve(x, k, (1, 1), "SAME", dimension_numbers=NUMBERS)
    )(x, kernel)
    assert costs.flops(program) == 2 * 16 * 3 * 4


def test_only_small_maps_take_it():
    def program(side):
        x, kernel = jnp.zeros((1, side, side, 3)), jnp.zeros((3, 3, 3, 4))
        return str(
            jax.make_jaxpr(lambda x, k: convolve(x, k, (1, 1), "SAME", dimension_numbers=NUMBERS))(
                x, kernel
            )
        )

    assert "conv_general_dilated" not in program(2) and "conv_general_dilated" in program(8)


def test_a_kernel_larger_than_its_map_leaves_nothing():
    x, kernel = jnp.ones((2, 2, 1, 3)), jnp.ones((5, 5, 3, 4))
    for padding in (((1, 1), (1, 1)), "VALID"):
        ours, theirs = (
            f(x, kernel, (1, 1), padding, dimension_numbers=NUMBERS)
            for f in (convolve, lax.conv_general_dilated)
        )
        assert ours.shape == theirs.shape and ours.size == 0


def test_the_result_has_the_type_that_is_asked_for():
    x, kernel = jnp.ones((1, 2, 2, 3), jnp.bfloat16), jnp.ones((3, 3, 3, 4), jnp.bfloat16)
    for asked in (None, jnp.float32):
        ours, theirs = (
            f(x, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS, preferred_element_type=asked)
            for f in (convolve, lax.conv_general_dilated)
        )
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
