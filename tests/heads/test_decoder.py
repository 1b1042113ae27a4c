"""MAE's decoder: shapes, and that a patch's prediction is in the patch's place."""

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.encoders import masking
from cl_jax.heads.decoder import Decoder
from tests.losses.compiled import program


def test_predicts_every_patch_and_does_not_depend_on_the_order_of_the_kept():
    decoder = Decoder(outputs=12, width=8, depth=1, heads=2)
    rng = np.random.default_rng(0)
    noise = rng.uniform(size=(3, 6))
    tokens = jnp.asarray(rng.normal(size=(3, 6, 5)), jnp.float32)
    cls = jnp.ones((3, 1, 5))

    def decode(noise):
        found = masking.random_masking(noise, 2)
        given = jnp.concatenate([cls, masking.take(tokens, found.kept)], axis=1)
        return given, found

    given, found = decode(noise)
    variables = program(decoder.init)(jax.random.key(0), given, found.restore, grid=(2, 3))
    prediction = program(decoder.apply)(variables, given, found.restore, grid=(2, 3))
    assert prediction.shape == (3, 6, 12)
    swapped = np.array(noise)  # the two kept patches the other way round
    rows = np.arange(3)[:, None]
    swapped[rows, np.asarray(found.kept)] = noise[rows, np.asarray(found.kept)[:, ::-1]]
    given, found = decode(swapped)
    again = program(decoder.apply)(variables, given, found.restore, grid=(2, 3))
    np.testing.assert_allclose(again, prediction, atol=1e-5)
