"""Encoder and projection head: the features by name, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cl_jax.core.network import Network, applier, features_of


class Doubled(nn.Module):
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, images, train):
        return {"h": 2 * images}


class Head(nn.Module):
    @nn.compact
    def __call__(self, h, train):
        seen = self.variable("batch_stats", "mean", lambda: jnp.zeros(h.shape[-1]))
        if train and not self.is_initializing():
            seen.value = h.mean(0)
        return h + 1, [h, h * 3]


def test_features_are_h_the_hidden_layers_and_z():
    network, x = Network(Doubled(), Head()), jnp.arange(6.0).reshape(3, 2)
    stats = network.init(jax.random.key(0), x, True)["batch_stats"]
    apply = applier(network)
    (z, named), changed = apply({}, stats, x, True)
    assert sorted(named) == ["h", "proj1", "z"]
    np.testing.assert_array_equal(named["h"], 2 * x)
    np.testing.assert_array_equal(named["proj1"], 6 * x)
    np.testing.assert_array_equal(z, 2 * x + 1)
    np.testing.assert_array_equal(changed["head"]["mean"], (2 * x).mean(0))
    alone, same = features_of(apply)({}, stats, x, False)
    np.testing.assert_array_equal(alone["z"], z)
    assert (same["head"]["mean"] == 0).all()  # running statistics stay in evaluation


def test_a_module_without_batch_norm_keeps_what_it_was_given():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, images, train):
            return images

    assert applier(Plain())({}, {}, jnp.ones(2), True)[1] == {}


def test_a_drop_path_that_nobody_draws_is_refused():
    with pytest.raises(ValueError, match=r"drop_path=0\.1: this method does not draw it"):
        Network(Doubled(drop_path=0.1), Head()).init(jax.random.key(0), jnp.ones((2, 2)), True)
