"""An imported encoder: features, and no training of its own."""

import jax
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run
from cl_jax.encoders.resnet import ResNet
from cl_jax.methods import imported
from cl_jax.views import make as recipe

VIEW = recipe({"name": "crop_flip", "crop": "none", "size": 8, "test_crop": 1.0})
RUN = Run(None, 4, 8, 2, 2, {})
BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8),
    "id": np.arange(4, dtype=np.int32),
}


def test_features_are_the_encoders_and_a_step_is_refused():
    encoder = ResNet(blocks=(1,), width=0.125, stem="cifar", for_cpu=False)
    method = imported.make(encoder=encoder, tx=optax.sgd(0.1), views=(VIEW,), run=RUN)
    state = jax.jit(method.init)(jax.random.key(0), BATCH)
    found = method.encode(state, BATCH)
    variables = {"params": state.params["encoder"], "batch_stats": state.stats["encoder"]}
    expected = encoder.apply(variables, VIEW.clean(BATCH), train=False)["h"]
    np.testing.assert_allclose(found["h"], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="an imported encoder is not trained by itself"):
        method.update(state, BATCH, jax.random.key(1))


def test_an_encoder_without_a_view_is_refused():
    with pytest.raises(ValueError, match="views are empty"):
        imported.make(encoder=None, tx=optax.sgd(0.1), views=(), run=RUN)
