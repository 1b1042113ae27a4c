"""ResNet and AlexNet: padding conventions, starting values, devices, bfloat16, errors. Sizes are in
test_tables."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.encoders import alexnet, resnet
from cl_jax.encoders.resnet import _pool_shortcut
from tests.losses.parity import AXIS

TINY = partial(resnet.make, blocks=(1, 1), width=0.125, stem="cifar")
IMAGES = np.random.default_rng(0).uniform(size=(8, 8, 8, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(partial(TINY(variant="simclr").init, train=False))(jax.random.key(0), IMAGES[:1])


def _train(net, variables, x):
    return net.apply(variables, x, train=True, mutable=["batch_stats"])


def test_blocks_start_as_the_identity(variables):
    """The last scale is 0 in the simclr variant: with a plain shortcut a block is relu(x), and x is
    not negative."""
    net = TINY(variant="simclr", zero_init_last=True)
    features = jax.jit(partial(net.apply, train=False))(variables, IMAGES)
    kernel = variables["params"]["stage1_block1"]["shortcut_conv"]["kernel"][0, 0]
    projected = features["stem"] @ kernel / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(features["stage1"], jax.nn.relu(projected), atol=1e-5)
    np.testing.assert_allclose(features["h"], features["stage2"].mean((1, 2)), atol=1e-6)
    assert set(features) == {"conv1", "stem", "stage1", "stage2", "h"}


@pytest.mark.parametrize("splits", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_devices_agree(variables, splits):
    """Features, statistics and gradients of one device and of four, batch norm over all or over
    four groups."""
    # Not the identity any more.
    variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)

    def step(x, axis_name):
        def loss(params):
            net = TINY(blocks=(1,), variant="simclr", axis_name=axis_name, splits=splits)
            features, stats = _train(net, variables | {"params": params}, x)
            value = jnp.mean(jnp.square(features["h"]))
            return value, (features["h"], stats)

        (value, (h, stats)), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        mean = (
            (lambda tree: tree)
            if axis_name is None
            else partial(jax.lax.pmean, axis_name=axis_name)
        )
        return mean(value), h, stats, mean(grads)

    value, h, stats, grads = jax.jit(partial(step, axis_name=None))(IMAGES)
    mapped = jax.jit(jax.vmap(partial(step, axis_name=AXIS), axis_name=AXIS))(
        IMAGES.reshape(4, 2, 8, 8, 3)
    )
    np.testing.assert_allclose(mapped[0], np.full(4, value), rtol=1e-5)
    np.testing.assert_allclose(mapped[1].reshape(h.shape), h, atol=2e-5)
    for ours, expected in zip(jax.tree.leaves(mapped[2:]), jax.tree.leaves((stats, grads))):
        for device in range(4):
            np.testing.assert_allclose(
                ours[device], expected, atol=2e-5 * max(1, np.abs(expected).max())
            )


def test_bfloat16_computes_in_it_and_keeps_float32(variables):
    net = TINY(variant="simclr", dtype="bfloat16")
    features, state = jax.jit(partial(_train, net))(variables, IMAGES)
    assert features["stage2"].dtype == jnp.bfloat16 and features["h"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    shapes = jax.eval_shape(partial(net.init, train=False), jax.random.key(0), IMAGES)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    full, _ = jax.jit(partial(_train, TINY(variant="simclr")))(variables, IMAGES)
    np.testing.assert_allclose(features["h"], full["h"], atol=0.05)


@pytest.mark.parametrize(
    "variant, same", [("torchvision", False), ("simclr", False), ("byol", True)]
)
def test_strided_convolutions_pad_as_the_authors_do(variant, same):
    """A 3x3 kernel that reads its upper left corner: what it sees at the first place depends on the
    padding."""
    net = resnet._conv(
        1,
        3,
        2,
        same=resnet.VARIANTS[variant].same_convolutions,
        kernel_init="zeros",
        dtype=None,
        name=None,
    )
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[0, 0] = 1
    x = np.arange(1.0, 17.0, dtype=np.float32).reshape(1, 4, 4, 1)
    y = net.apply({"params": {"kernel": kernel}}, x)[0, :, :, 0]
    np.testing.assert_array_equal(y, x[0, ::2, ::2, 0] if same else [[0, 0], [0, x[0, 1, 1, 0]]])


@pytest.mark.parametrize("name, uniform", [("torch", True), (None, False)])
def test_kernels_start_as_the_variant_s_or_as_asked(name, uniform):
    """PyTorch's layers start at U(+-1/sqrt(fan_in)), of deviation 1/sqrt(3 fan_in); torchvision's
    network at a normal distribution of variance 2/fan_out."""
    net = TINY(variant="torchvision", width=1.0, kernel_init=name)
    kernel = jax.jit(partial(net.init, train=False))(jax.random.key(0), IMAGES[:1])
    kernel = np.asarray(kernel["params"]["stage2_block1"]["conv1"]["kernel"])  # 3x3, 64 to 128
    spread = (3 * 9 * 64) ** -0.5 if uniform else (2 / (9 * 128)) ** 0.5
    np.testing.assert_allclose(kernel.std(), spread, rtol=0.02)
    assert (np.abs(kernel).max() <= (9 * 64) ** -0.5) == uniform


def test_shortcut_pool_counts_padding_only_where_it_strides():
    x = np.ones((1, 3, 3, 1), np.float32)
    np.testing.assert_allclose(_pool_shortcut(x, 1)[0, :, :, 0], np.ones((3, 3)))
    np.testing.assert_allclose(_pool_shortcut(x, 2)[0, :, :, 0], [[1, 0.5], [0.5, 0.25]])


def test_errors_say_what_is_known():
    x = jnp.zeros((1, 8, 8, 3))
    for settings, message in (
        ({"depth": 19}, "have 10, 18, 34"),
        ({"variant": "keras"}, "have simclr, byol"),
        ({"stem": "stl"}, "have imagenet, cifar"),
        ({"width": 0.001}, "at least 1/64"),
        ({"blocks": (2, 0)}, "one positive number per stage"),
        ({"kernel_init": "keras"}, "have torch, he_fan_out"),
    ):
        with pytest.raises(ValueError, match=message):
            resnet.make(**settings).init(jax.random.key(0), x, train=False)
    with pytest.raises(ValueError, match="B, H, W, C"):
        resnet.make().init(jax.random.key(0), x[0], train=False)
    with pytest.raises(ValueError, match="astype"):
        resnet.make().init(jax.random.key(0), x.astype(jnp.uint8), train=False)
    with pytest.raises(ValueError, match="cifar stem"):
        alexnet.make().init(jax.random.key(0), x, train=False)


def test_initial_weights_have_the_frameworks_spread():
    from cl_jax.encoders import initializers

    shape = (3, 3, 64, 128)
    fan_in, fan_out = 9 * 64, 9 * 128
    expected = {
        "torch": (3 * fan_in) ** -0.5,
        "he_fan_out": (2 / fan_out) ** 0.5,
        "lecun": fan_in**-0.5,
        "haiku": 0.8796 * fan_in**-0.5,
        "normal_0.01": 0.01,
        "trunc_0.02": 0.02,
    }

    @jax.jit
    def started(key):
        bias = initializers.bias("torch", 100)(key, (10000,), jnp.float32)
        return {name: initializers.kernel(name)(key, shape=shape) for name in expected}, bias

    weights, bias = started(jax.random.key(0))
    for name, std in expected.items():
        assert abs(np.std(weights[name]) / std - 1) < 0.01, name
    assert 0.0995 < np.abs(bias).max() <= 0.1
    with pytest.raises(ValueError, match="he_fan_out"):
        initializers.kernel("he_fan_in_out")
