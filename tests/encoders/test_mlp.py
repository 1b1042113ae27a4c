"""The perceptron of tables against its formula."""

import jax
import numpy as np
import pytest

from cl_jax.encoders import mlp


def test_the_last_layer_is_the_largest_of_its_units():
    network = mlp.make(widths=(6,), out_dim=3, maxout=2)
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    found, changed = jax.jit(lambda key: network.init_with_output(key, x, train=True))(
        jax.random.key(0)
    )
    layers = jax.tree.map(np.asarray, changed["params"]["layers"])
    first, last = layers["dense1"], layers["dense2"]
    hidden = x @ first["kernel"]
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5)
    units = np.maximum(hidden, 0) @ last["kernel"] + last["bias"][None]
    expected = units.reshape(8, 3, 2).max(-1)
    np.testing.assert_allclose(found["h"], expected, rtol=1e-4, atol=1e-5)


def test_errors():
    with pytest.raises(ValueError, match="expected rows"):
        jax.eval_shape(
            lambda x: mlp.make().init(jax.random.key(0), x, train=True), np.ones((2, 3, 4))
        )
    with pytest.raises(ValueError, match="maxout is 0"):
        mlp.make(maxout=0)
    with pytest.raises(ValueError, match="widths is 0"):
        mlp.make(widths=(4, 0))
    with pytest.raises(ValueError, match="initialisation 'he' is unknown"):
        mlp.make(kernel_init="he")
