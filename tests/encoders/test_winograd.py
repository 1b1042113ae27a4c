"""Convolutions as a CPU runs them: the plain ones' values and gradients, and no trace of them on
other devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax
from jax.sharding import PartitionSpec as P

from cl_jax.core import parallel
from cl_jax.encoders import resnet, winograd
from cl_jax.encoders.convolve import LARGE, WINOGRAD, convolve
from cl_jax.planning import costs

FEWEST = LARGE[0]
NUMBERS = lax.conv_dimension_numbers((1, 1, 1, 1), (1, 1, 1, 1), ("NHWC", "HWIO", "NHWC"))


def draw(*shapes, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def plain(x, kernel, pads):
    return lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=NUMBERS)


def distance(ours, exact):
    """Of two arrays, by the spread of the exact one."""
    exact = np.asarray(exact)
    return np.abs(np.asarray(ours, exact.dtype) - exact).max() / exact.std()


@pytest.mark.parametrize(
    ("sides", "pads"),
    [
        ((8, 6), ((1, 1), (1, 1))),
        ((7, 5), ((1, 1), (1, 1))),
        ((6, 7), ((0, 0), (0, 0))),
        ((5, 6), ((0, 1), (2, 2))),
    ],
)
def test_equals_the_plain_sums(sides, pads):
    x, kernel = draw((7, *sides, 5), (3, 3, 5, 4))
    (dy,) = draw(jax.eval_shape(lambda *given: plain(*given, pads), x, kernel).shape, seed=1)
    turned = tuple((2 - before, 2 - after) for before, after in pads)

    @jax.jit
    def both(x, kernel, dy):
        y, back = jax.vjp(lambda x, kernel: plain(x, kernel, pads), x, kernel)
        ours = (
            winograd.forward(x, kernel, pads),
            winograd.forward(dy, kernel, turned, turned=True),
            winograd.kernel_gradient(x, dy, pads),
        )
        return ours, (y, *back(dy))

    for ours, exact in zip(*both(x, kernel, dy)):
        assert distance(ours, exact) < 5e-6


def test_images_are_taken_in_parts(monkeypatch):
    x, kernel, dy = draw((6, 4, 4, 8), (3, 3, 8, 8), (6, 4, 4, 8))
    pads = ((1, 1), (1, 1))

    def both():
        return jax.jit(
            lambda x, kernel, dy: (
                winograd.forward(x, kernel, pads),
                winograd.kernel_gradient(x, dy, pads),
            )
        )(x, kernel, dy)

    whole = both()
    split = winograd.parts
    assert split(jnp.zeros((6, 1)), 1).shape == (1, 6, 1)
    assert split(jnp.zeros((6, 1)), 1 << 30).shape == (6, 1, 1)
    assert split(jnp.zeros((6, 1)), 1 << 30, 8 << 30).shape == (
        2,
        3,
        1,
    )  # of at most four, three divide six
    monkeypatch.setattr(winograd, "parts", lambda x, *_: split(x, 1 << 30))
    for a, b in zip(whole, both()):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_rounded_about_as_the_plain_convolution_rounds():
    pads = ((1, 1), (1, 1))
    x, kernel, dy = draw((4, 8, 8, 64), (3, 3, 64, 64), (4, 8, 8, 64), dtype=jnp.bfloat16)

    @jax.jit
    def both(x, kernel, dy):
        ours = winograd.forward(x, kernel, pads), winograd.kernel_gradient(x, dy, pads)
        x, kernel, dy = (a.astype(jnp.float32) for a in (x, kernel, dy))
        exact, back = jax.vjp(lambda x, kernel: plain(x, kernel, pads), x, kernel)
        return ours, (exact, back(dy)[1])

    (y, dkernel), (exact, exact_dkernel) = both(x, kernel, dy)
    assert y.dtype == dkernel.dtype == jnp.bfloat16
    exact = np.asarray(exact)
    rounded = np.std(exact.astype(jnp.bfloat16).astype(np.float32) - exact)
    assert np.std(np.asarray(y, np.float32) - exact) < 4 * rounded
    assert distance(dkernel, exact_dkernel) < 0.02


def value(strides, padding, **settings):
    return lambda x, kernel: jnp.sin(
        convolve(x, kernel, strides, padding, dimension_numbers=NUMBERS, **settings)
    ).sum()


@pytest.mark.parametrize(
    ("size", "strides", "padding"),
    [
        (3, (1, 1), "SAME"),
        (3, (2, 2), "SAME"),
        (3, (2, 2), ((1, 1), (1, 1))),
        (1, (1, 1), "SAME"),
        (1, (2, 2), ((0, 0), (0, 0))),
        (3, (1, 1), ((3, 1), (0, -1))),
        (5, (2, 1), ((2, 2), (1, 3))),
    ],
)
def test_many_channels_give_the_plain_values_and_gradients(size, strides, padding):
    x, kernel = draw((3, 16, 17, FEWEST), (size, size, FEWEST, FEWEST + 3))
    kernel = kernel / np.sqrt(size * size * FEWEST)
    values = [
        jax.value_and_grad(value(strides, padding, for_cpu=own), (0, 1)) for own in (True, False)
    ]
    ours, theirs = jax.jit(lambda *given: [one(*given) for one in values])(x, kernel)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * max(1, np.abs(b).max()))


def test_other_devices_get_xlas_own_convolution():
    x, kernel = draw((2, 16, 16, FEWEST), (3, 3, FEWEST, FEWEST))

    def program(platform, x=x, **settings):
        traced = jax.jit(jax.grad(value((1, 1), "SAME", **settings), (0, 1))).trace(x, kernel)
        return traced.lower(lowering_platforms=(platform,)).as_text(), costs.flops(traced.jaxpr)

    (gpu, flops), (cpu, _), (off, plainly) = (
        program("cuda"),
        program("cpu"),
        program("cpu", for_cpu=False),
    )
    assert gpu.count("stablehlo.convolution") == off.count("stablehlo.convolution") == 3
    assert "dot_general" not in gpu and "while" not in gpu
    assert "stablehlo.convolution" not in cpu and "dot_general" in cpu
    assert "stablehlo.convolution" in program("cpu", x[:, :1, :8])[0]
    assert x[0, :1, :8, 0].size * FEWEST**2 < WINOGRAD[1]
    assert flops == plainly  # a model's arithmetic is that of its sums, however they are done


def test_a_program_for_any_batch_size_can_be_exported():
    (batch,) = export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, 16, 16, FEWEST), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, FEWEST, FEWEST), jnp.float32)
    assert export.export(jax.jit(value((1, 1), "SAME")))(x, kernel).out_avals[0].shape == ()


@pytest.mark.slow
def test_the_program_does_not_depend_on_the_cores(monkeypatch):
    x, kernel = draw((2, 16, 16, FEWEST), (3, 3, FEWEST, FEWEST))
    programs = set()
    for cores in (1, 64):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        jax.clear_caches()
        lowered = jax.jit(lambda x, kernel: value((1, 1), "SAME")(x, kernel)).lower(x, kernel)
        programs.add(lowered.as_text())
    assert len(programs) == 1 and "stablehlo.convolution" not in programs.pop()


@pytest.mark.parametrize("check_vma", [True, False])
def test_across_devices(check_vma):
    mesh = parallel.make_mesh(4)
    x, kernel = draw((8, 16, 16, FEWEST), (3, 3, FEWEST, FEWEST))

    def whole(kernel, x, **settings):
        return sum(value(strides, "SAME", **settings)(x, kernel) for strides in ((1, 1), (2, 2)))

    def local(kernel, x):
        return lax.psum(whole(kernel, x), parallel.AXIS)

    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P(parallel.AXIS)), out_specs=P(), check_vma=check_vma
    )
    ours = jax.jit(jax.grad(mapped))(kernel, x)
    exact = jax.jit(jax.grad(partial(whole, for_cpu=False)))(kernel, x)
    np.testing.assert_allclose(ours, exact, atol=1e-4 * np.abs(exact).max())


@pytest.mark.slow
def test_a_resnet_is_the_same_network():
    (images,) = draw((4, 8, 8, 3))
    networks = [resnet.make(blocks=(1, 1), stem="cifar", for_cpu=own) for own in (True, False)]
    variables = jax.jit(lambda: networks[1].init(jax.random.key(0), images, train=True))()

    def loss(params, network):
        seen, _ = network.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return (seen["h"] ** 2).mean()

    own, others = (
        str(jax.make_jaxpr(loss, static_argnums=1)(variables["params"], network))
        for network in networks
    )
    assert "platform_index" in own and "platform_index" not in others
    ours, theirs = (
        jax.jit(jax.grad(loss), static_argnums=1)(variables["params"], network)
        for network in networks
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1e-3, float(jnp.abs(b).max())) + 1e-7)
