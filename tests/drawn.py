"""Variables of a network without the program that initialises them."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def drawn(network: nn.Module, *inputs: Any, **settings: Any) -> Any:
    """Random variables with the names, shapes and types of those of `network.init`.

    To initialise a small network takes as long to compile as the network itself. Norms and biases
    are not at 1 and 0 here, so that a test sees whether they are used.
    """
    shapes = jax.eval_shape(lambda key: network.init(key, *inputs, **settings), jax.random.key(0))
    random = np.random.default_rng(0)

    def leaf(path, like):
        noise, name = random.normal(size=like.shape), path[-1].key
        if name in ("scale", "var"):
            noise = 1 + 0.1 * np.tanh(noise)
        elif name in ("bias", "mean"):
            noise = 0.1 * noise
        else:
            noise = noise / math.sqrt(math.prod(like.shape[:-1]))
        return jnp.asarray(noise.astype(like.dtype))

    return jax.tree_util.tree_map_with_path(leaf, shapes)
