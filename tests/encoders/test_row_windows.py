"""3x3 convolution of few channels by windows of a row: the plain sums' values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cl_jax.core import parallel
from cl_jax.encoders import row_windows
from cl_jax.encoders.convolve import WINDOWS, convolve

NUMBERS = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), ("NHWC", "HWIO", "NHWC"))


def draw(*shapes, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def plain(x, kernel, pads):
    return lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=NUMBERS)


@pytest.mark.parametrize(
    ("sides", "pads"),
    [
        ((8, 9), ((1, 1), (1, 1))),
        ((5, 4), ((0, 0), (0, 0))),
        ((5, 6), ((0, 1), (2, 2))),
    ],
)
def test_equals_the_plain_sums(monkeypatch, sides, pads):
    monkeypatch.setattr(row_windows, "CACHE", 2 * 12 * (sides[0] + 2) * sides[1] * 5)
    x, kernel = draw((6, *sides, 5), (3, 3, 5, 4))  # three parts of two images
    y, back = jax.vjp(lambda x, kernel: plain(x, kernel, pads), x, kernel)
    (dy,) = draw(y.shape, seed=1)
    dx, dkernel = back(dy)
    other = tuple((2 - before, 2 - after) for before, after in pads)
    found = (
        row_windows.forward(x, kernel, pads),
        row_windows.forward(dy, row_windows.turned(kernel), other),
        row_windows.kernel_gradient(x, dy, pads),
    )
    assert row_windows._parts(x, x).shape[:2] == (3, 2)
    for a, b in zip(found, (y, dx, dkernel)):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    ("sides", "size", "strides", "pads"),
    [
        ((9, 12), (7, 7), (2, 2), ((3, 3), (3, 3))),
        ((8, 11), (5, 6), (3, 2), ((1, 2), (0, 3))),
    ],
)
def test_a_strided_stem_equals_the_plain_sums(monkeypatch, sides, size, strides, pads):
    monkeypatch.setattr(row_windows, "CACHE", 1 << 14)
    x, kernel = draw((6, *sides, 3), (*size, 3, 4))
    exact = lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NUMBERS)
    found = row_windows.strided(x, kernel, strides, pads)
    np.testing.assert_allclose(found, exact, atol=1e-4)
    settings = dict(dimension_numbers=NUMBERS)
    forward = jax.jit(lambda x, kernel: convolve(x, kernel, strides, pads, **settings))
    for platform in ("cpu", "cuda"):
        program = forward.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in program) == (platform == "cuda")


def value(**settings):
    return lambda x, kernel: jnp.sin(
        convolve(x, kernel, (1, 1), "SAME", dimension_numbers=NUMBERS, **settings)
    ).sum()


def test_a_convolution_of_few_channels_takes_it_on_a_cpu():
    x, kernel = draw((4, WINDOWS[1], WINDOWS[1], 3), (3, 3, 3, WINDOWS[0]))

    def program(platform, x=x, kernel=kernel):
        traced = jax.jit(jax.grad(value(), (0, 1))).trace(x, kernel)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert "stablehlo.convolution" not in program("cpu")
    assert "dot_general" not in program("cuda") and "while" not in program("cuda")
    assert "stablehlo.convolution" in program("cpu", x[:, 1:])  # a side less
    more = jnp.zeros((3, 3, 3, WINDOWS[0] + 1))
    assert "stablehlo.convolution" in program("cpu", kernel=more)
    found, exact = (
        jax.value_and_grad(value(for_cpu=own), (0, 1))(x, kernel) for own in (True, False)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(exact)):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-4)


def test_an_empty_batch_and_an_explicit_mesh_take_the_plain_sums():
    x, kernel = draw((4, 8, 8, 3), (3, 3, 3, 4))
    gradient = jax.eval_shape(jax.grad(value(), (0, 1)), x[:0], kernel)
    assert [g.shape for g in gradient] == [(0, 8, 8, 3), (3, 3, 3, 4)]
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        divided = jax.device_put(x, NamedSharding(mesh, P("data")))
        found = jax.jit(value())(divided, kernel)  # JAX has no gradient of a convolution there
        by_features = jax.device_put(kernel, NamedSharding(mesh, P(None, None, None, "data")))
        with pytest.raises(Exception, match="out_sharding"):  # lax's own words, and its way out
            jax.jit(value())(x, by_features)
    np.testing.assert_allclose(found, value(for_cpu=False)(x, kernel), atol=1e-3)


def test_bfloat16_is_summed_in_float32():
    pads = ((1, 1), (1, 1))
    x, kernel, dy = draw((4, 8, 8, 16), (3, 3, 16, 16), (4, 8, 8, 16), dtype=jnp.bfloat16)
    wide = [a.astype(jnp.float32) for a in (x, kernel)]
    exact, back = jax.vjp(lambda x, kernel: plain(x, kernel, pads), *wide)
    y, dkernel = row_windows.forward(x, kernel, pads), row_windows.kernel_gradient(x, dy, pads)
    assert y.dtype == dkernel.dtype == jnp.bfloat16
    for a, b in ((y, exact), (dkernel, back(dy.astype(jnp.float32))[1])):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=2**-7, atol=0.02)


@pytest.mark.parametrize("check_vma", [True, False])
def test_across_devices(check_vma):
    x, kernel = draw((4, 8, 8, 3), (3, 3, 3, 4))

    def local(kernel, x):
        return lax.psum(value()(x, kernel), parallel.AXIS)

    mapped = jax.shard_map(
        local,
        mesh=parallel.make_mesh(2),
        in_specs=(P(), P(parallel.AXIS)),
        out_specs=P(),
        check_vma=check_vma,
    )
    exact = jax.grad(value(for_cpu=False), 1)(x, kernel)
    np.testing.assert_allclose(jax.jit(jax.grad(mapped))(kernel, x), exact, atol=1e-4)
