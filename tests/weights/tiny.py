"""Small networks with random weights, as the exporters take them."""

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.encoders import ms_clip, resnet, transformer, vit
from cl_jax.methods import clip
from cl_jax.weights.network import Network

_MAKE = {"resnet": resnet, "vit": vit, "transformer": transformer, "clip": ms_clip}
TEXT = dict(vocab_size=30, length=9, width=16, depth=2, heads=2)
CLIP = TEXT | dict(image_size=16, patch=8, share="none")


def network(kind, side=32, channels=3, head=False, **section):
    """A Network of a kind and its encoder's section."""
    section |= dict(dtype="float32")
    more = dict(for_cpu=False) if kind == "resnet" else {}
    encoder = _MAKE[kind].make(**section, **more)
    images = jnp.zeros((1, side, side, channels))
    if kind == "clip":
        pair = clip.Pair(encoder, 8, 10.0, None)
        inputs = {"image": images, "tokens": jnp.zeros((1, encoder.length), jnp.int32)}
        shapes = jax.eval_shape(lambda key: pair.init(key, inputs, True), jax.random.key(0))
    else:
        x = jnp.zeros((1, encoder.length), jnp.int32) if kind == "transformer" else images
        shapes = jax.eval_shape(lambda key: encoder.init(key, x, train=False), jax.random.key(0))
    rng = np.random.default_rng(0)

    def drawn(path, like):
        values = 0.3 * rng.standard_normal(like.shape).astype(np.float32)
        if path[-1].key == "var":
            return np.abs(values) + np.float32(0.5)
        if path[-1].key == "scale":
            return 1 + values
        if path[-1].key == "kernel":
            return values * np.float32(3 / np.prod(like.shape[:-1]) ** 0.5)
        return values

    found = jax.tree_util.tree_map_with_path(drawn, shapes)
    dense = {"kernel": np.eye(16, dtype=np.float32), "bias": np.ones(16, np.float32)}
    return Network(
        kind,
        dict(name="ms_clip" if kind == "clip" else kind) | section,
        encoder,
        found["params"],
        found.get("batch_stats", {}),
        {"dense": dense} if head else None,
        side,
    )
