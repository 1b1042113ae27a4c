"""Every encoder of images, maps and waves gives empty features of an empty batch."""

import jax
import jax.numpy as jnp
import pytest

from cl_jax.encoders import alexnet, clip_resnet, conv, conv1d, gru, mlp, resnet, vit

SMALL = [
    (alexnet.make(width=0.05), (64, 64, 3)),
    (clip_resnet.make(blocks=(1, 1, 1, 1), width=4, out_dim=8, heads=2), (32, 32, 3)),
    (conv.make(width=0.05), (32, 32, 3)),
    (conv1d.make(channels=2, kernels=(4,), strides=(2,), padding=(1,), norm="layer"), (9,)),
    (gru.make(width=4), (3, 2)),
    (mlp.make(widths=(8,), out_dim=4), (5,)),
    (resnet.make(depth=10, width=0.125, stem="imagenet"), (32, 32, 3)),
    (vit.make(size="tiny", width=8, depth=1, heads=2, patch=4, image_size=8), (8, 8, 3)),
]


@pytest.mark.parametrize(
    ("encoder", "shape"), [pytest.param(*one, id=type(one[0]).__name__) for one in SMALL]
)
def test_features_are_empty(encoder, shape):
    def features(key):
        return encoder.init_with_output(key, jnp.zeros((0, *shape)), train=True)[0]

    found = jax.eval_shape(features, jax.random.key(0))
    assert found["h"].shape[0] == 0 and all(size > 0 for size in found["h"].shape[1:])


@pytest.mark.parametrize("encoder", [conv1d.make(), gru.make()])
def test_integers_are_refused(encoder):
    whole = jnp.zeros((2, 400) if isinstance(encoder, conv1d.Conv1d) else (2, 4, 3), jnp.int16)
    with pytest.raises(ValueError, match="expected floating-point features"):
        encoder.init(jax.random.key(0), whole, train=True)
