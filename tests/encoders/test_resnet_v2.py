"""Pre-activation ResNets: maps, counts of parameters, examples that do not meet."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.encoders import resnet_v2


def shapes_of(network, side):
    x = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    return jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x, train=True), x)


def test_maps_and_parameters_of_cpc_v2s_network():
    """ResNet-161: a third stage of 46 blocks, 4096 channels and bottlenecks of 512."""
    out, variables = shapes_of(resnet_v2.make(depth=161), 64)
    assert out["h"].shape == (2, 4096) and out["stage3"].shape == (2, 4, 4, 4096)
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(variables["params"]))
    third = sum(
        math.prod(x.shape)
        for name, block in variables["params"].items()
        if name.startswith("stage3_")
        for x in jax.tree.leaves(block)
    )
    # 46 blocks of 1x1, 3x3, 1x1 with their norms; the first from 512 channels with a shortcut.
    inner = 4096 * 512 + 9 * 512**2 + 512 * 4096 + 2 * (4096 + 512 + 512)
    first = inner - 4096 * 512 + 512 * 512 - 2 * (4096 - 512) + 512 * 4096
    assert third == 45 * inner + first and count > third


@pytest.mark.slow
def test_examples_do_not_meet():
    network = resnet_v2.make(stages=((1, 2, 4), (1, 4, 8)), width=1, stem="cifar")
    x = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))

    @jax.jit
    def h(x):
        variables = network.init(jax.random.key(0), x[:1], train=True)
        return network.apply(variables, x, train=True)["h"]

    np.testing.assert_allclose(h(x)[0], h(x.at[1:].multiply(100.0))[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"depth": 18}, "depth 18 is unknown; have 50, 101, 161"),
        ({"num_stages": 5}, "num_stages=5; a ResNet-101 here has 1 to 4"),
        ({"width": 0.001}, "has a stage without blocks or channels"),
    ],
)
def test_networks_that_do_not_exist_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        resnet_v2.make(**settings)


def test_unknown_stems_and_norms_are_refused():
    for settings in ({"stem": "mnist"}, {"norm": "batch"}):
        with pytest.raises(ValueError, match="is unknown; have"):
            shapes_of(resnet_v2.make(stages=((1, 2, 4),), **settings), 8)
