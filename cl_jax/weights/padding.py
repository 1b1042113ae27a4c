"""A narrow ResNet as a part of one of width 1, for libraries that have that width alone: the same
function, where the channels that the narrow one lacks are 0 everywhere."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.weights.network import Answers, Network


def padded(net: Network) -> Network:
    """The ResNet at width 1. Kernels, scales and biases of the further channels are 0, so that
    they put out 0 through every norm, rectifier and sum; variances are 1."""
    encoder = net.encoder.clone(width=1.0, stem_width=None)
    image = jnp.zeros((1, net.side, net.side, net.channels))
    wide = jax.eval_shape(lambda key: encoder.init(key, image, train=False), jax.random.key(0))

    def filled(path: Any, like: jax.ShapeDtypeStruct, ours: np.ndarray) -> np.ndarray:
        behind = [(0, there - here) for there, here in zip(like.shape, ours.shape, strict=True)]
        return np.pad(ours, behind, constant_values=path[-1].key == "var")

    params, stats = (
        jax.tree_util.tree_map_with_path(filled, wide[name], held)
        for name, held in (("params", net.params), ("batch_stats", net.stats))
    )
    section = {key: value for key, value in net.section.items() if key != "stem_width"}
    return net._replace(
        encoder=encoder, section=section | {"width": 1.0}, params=params, stats=stats
    )


def with_zeros(answers: Answers, net: Network) -> Answers:
    """The features of the narrow network as its padded form (`net`) has them."""
    h = answers["h"]
    return {"h": np.pad(h, ((0, 0), (0, features(net) - h.shape[1])))}


def told(net: Network) -> str:
    """What happened to a narrow network, in words."""
    wide = features(net._replace(encoder=net.encoder.clone(width=1.0, stem_width=None)))
    return (
        f"width {net.encoder.width:g} is written as width 1, whose further channels are 0: of the "
        f"{wide} features the first {features(net)} are the run's"
    )


def features(net: Network) -> int:
    """How many features a ResNet has."""
    counts, bottleneck = net.encoder.stages()
    return net.encoder.channels(64 * 2 ** (len(counts) - 1)) * (4 if bottleneck else 1)
