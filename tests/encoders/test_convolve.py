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
        (4, (2, 2), "SAME"),
        (3, (2, 1), ((0, 1), (1, 1))),
        (3, (1, 1), "SAME"),
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

    ours, theirs = (
        jax.value_and_grad(value(f), (0, 1))(x, kernel)
        for f in (convolve, lax.conv_general_dilated)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(a, b, atol=1e-5)


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
