"""BigGAN: spectral norm against singular values and flax's own, parameter counts by hand, blocks
against their definition, the same on any number of devices."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from cl_jax.encoders import biggan, spectral
from tests.losses.compiled import program
from tests.losses.parity import AXIS

RNG = np.random.default_rng(0)
SIZES = {"label": 10}


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(module, *args):
    """(output, variables) as shapes, without compiling."""
    init = partial(module.init_with_output, jax.random.key(0), train=True)
    return jax.eval_shape(init, *args)


def real(*shape):
    return jnp.asarray(RNG.normal(size=shape).astype(np.float32))


def test_power_iteration_finds_the_largest_singular_value():
    kernel, u = real(3, 3, 4, 5), spectral._unit(real(5), 1e-6)
    for _ in range(200):
        normal, u = spectral.spectral_norm(kernel, u, train=True)
    values = np.linalg.svd(np.asarray(normal).reshape(-1, 5), compute_uv=False)
    np.testing.assert_allclose(values[0], 1, rtol=1e-5)
    again, same = spectral.spectral_norm(kernel, u, train=False)
    np.testing.assert_allclose(again, normal, rtol=1e-5)
    np.testing.assert_array_equal(u, same)


def test_one_iteration_equals_flax():
    x = real(6, 3)
    ours = spectral.SpectralDense(4)
    variables = program(ours.init)(jax.random.key(0), x, train=True)
    theirs = nn.SpectralNorm(nn.Dense(4), epsilon=1e-6)
    name = "layer_instance/kernel/u"
    given = program(theirs.init)(jax.random.key(1), x, update_stats=True)
    given = {
        "params": {"layer_instance": variables["params"]},
        "batch_stats": {**given["batch_stats"], name: variables["batch_stats"]["u"][None]},
    }

    def value(apply, params):
        y, changed = apply(params)
        return (y**2).sum(), changed

    def differentiated(f):
        return jax.jit(jax.value_and_grad(f, has_aux=True))

    (_, after), gradient = differentiated(
        lambda p: value(
            lambda p: ours.apply(
                {**variables, "params": p}, x, train=True, mutable=["batch_stats"]
            ),
            p,
        ),
    )(variables["params"])
    (_, theirs_after), expected = differentiated(
        lambda p: value(
            lambda p: theirs.apply(
                {**given, "params": p}, x, update_stats=True, mutable=["batch_stats"]
            ),
            p,
        ),
    )(given["params"])
    np.testing.assert_allclose(
        gradient["kernel"], expected["layer_instance"]["kernel"], rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        after["batch_stats"]["u"],
        theirs_after["batch_stats"][name][0],
        rtol=1e-5,
        atol=1e-6,
    )


def conv(size, inputs, outputs, bias=True):
    return size * size * inputs * outputs + outputs * bias


def test_parameters_of_the_cifar10_networks():
    """The authors' configuration, counted layer by layer from their description."""
    generator = biggan.make(role="generator", sizes=SIZES, widths=(384,) * 4, attention=2)
    noise, labels = (
        jax.ShapeDtypeStruct((2, 80), jnp.float32),
        jax.ShapeDtypeStruct((2,), jnp.int32),
    )
    image, variables = shapes(generator, noise, labels)
    condition = 128 + 20
    block = 2 * 2 * condition * 384 + 2 * conv(3, 384, 384) + conv(1, 384, 384)
    attention = 2 * conv(1, 384, 48, False) + 2 * conv(1, 384, 192, False) + 1
    expected = 10 * 128 + (20 + 1) * 384 * 16 + 3 * block + attention + 2 * 384 + conv(3, 384, 3)
    assert count(variables["params"]) == expected == 9_416_196
    assert image.shape == (2, 32, 32, 3)

    discriminator = biggan.make(role="discriminator", sizes=SIZES, widths=(192,) * 4, attention=1)
    out, variables = shapes(discriminator, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32))
    first = conv(1, 3, 192) + conv(3, 3, 192) + conv(3, 192, 192)
    later = 3 * 2 * conv(3, 192, 192) + conv(1, 192, 192)
    attention = 2 * conv(1, 192, 24, False) + 2 * conv(1, 192, 96, False) + 1
    heads = 193 + 193 * 512 + 10 * 512
    assert count(variables["params"]) == first + later + attention + heads == 2_517_186
    assert out["score"].shape == (2,) and out["z"].shape == (2, 512) and out["h"].shape == (2, 192)


def small(role, **changes):
    own = (
        dict(widths=(8, 16, 8), bottom=2, noise_dim=6, shared_dim=5, channels=1)
        if role == "generator"
        else dict(widths=(8, 16, 16), embed_dim=6)
    )
    return biggan.make(role=role, sizes={"label": 3}, **(own | changes))


def test_condition_enters_by_the_batch_norms_alone():
    """1 + gain and bias are linear in the class and the noise's own part."""
    norm = biggan.ConditionalBatchNorm()
    x, condition = real(4, 2, 2, 3), real(4, 5)
    variables = program(norm.init)(jax.random.key(0), x, condition, train=True)
    y = program(norm.apply)(variables, x, condition, train=False)
    plain = x / np.sqrt(1 + 1e-4)

    def linear(name):
        kernel, u = (variables[kind][name] for kind in ("params", "batch_stats"))
        return condition @ spectral.spectral_norm(kernel["kernel"], u["u"], train=False)[0]

    expected = plain * (1 + linear("gain")[:, None, None]) + linear("bias")[:, None, None]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_attention_against_loops():
    module, x = biggan.Attention(), real(2, 4, 4, 8)
    variables = program(module.init)(jax.random.key(0), x, train=False)
    np.testing.assert_array_equal(
        program(module.apply)(variables, x, train=False), x
    )  # the gain starts at 0
    variables["params"]["gain"] = jnp.float32(0.5)

    def project(name, y):
        kernel, u = (variables[kind][name] for kind in ("params", "batch_stats"))
        return y @ spectral.spectral_norm(kernel["kernel"], u["u"], train=False)[0][0, 0]

    def pooled(y):
        return np.asarray(y).reshape(2, 2, 2, 2, 2, -1).max((2, 4)).reshape(2, 4, -1)

    query = project("query", x).reshape(2, 16, 1)
    key, value = pooled(project("key", x)), pooled(project("value", x))
    weights = np.asarray(jax.nn.softmax(jnp.asarray(query @ key.transpose(0, 2, 1))))
    expected = x + 0.5 * project("out", jnp.asarray((weights @ value).reshape(2, 4, 4, 4)))
    np.testing.assert_allclose(
        program(module.apply)(variables, x, train=False), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("role", biggan.ROLES)
def test_same_on_four_devices(role):
    """Outputs, new statistics and gradients of a training call, batch norm synchronised."""
    module = small(role, **({"axis_name": AXIS} if role == "generator" else {}))
    args = (real(8, 6), jnp.arange(8) % 3) if role == "generator" else (real(8, 8, 8, 1),)
    alone = small(role)
    variables = jax.jit(partial(alone.init, jax.random.key(0), train=True))(*args)

    def step(module, axis, params, *args):
        def objective(params):
            out, changed = module.apply(
                {**variables, "params": params}, *args, train=True, mutable=["batch_stats"]
            )
            square = sum((leaf**2).mean() for leaf in jax.tree.leaves(out))
            return square, (out, changed)

        (_, (out, changed)), gradient = jax.value_and_grad(objective, has_aux=True)(params)
        return out, (changed, gradient if axis is None else jax.lax.pmean(gradient, axis))

    out, rest = jax.jit(partial(step, alone, None))(variables["params"], *args)
    mesh = jax.make_mesh((4,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    same, each = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(
        partial(step, module, AXIS),
        mesh=mesh,
        in_specs=(same, *[each] * len(args)),
        out_specs=(each, same),
        check_vma=False,
    )
    for a, b in zip(
        jax.tree.leaves(jax.jit(mapped)(variables["params"], *args)), jax.tree.leaves((out, rest))
    ):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(role="critic"), "have generator, discriminator"),
        (dict(sizes={}), "labels: none. Set label"),
        (dict(noise_dim=7), "divisible into 3 parts.*try 9"),
        (dict(attention=3), "attention=3 of 2 blocks"),
        (dict(widths=(4,)), "one for the first map"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    given = dict(role="generator", sizes=SIZES, widths=(4, 4, 4), noise_dim=6) | changes
    with pytest.raises(ValueError, match=message):
        biggan.make(**given)


def test_an_image_that_cannot_be_halved():
    with pytest.raises(ValueError, match="multiples of 4, since 2 blocks halve them"):
        shapes(small("discriminator"), jax.ShapeDtypeStruct((2, 6, 6, 1), jnp.float32))
