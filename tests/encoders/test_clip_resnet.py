"""CLIP's ResNet: the authors' number of parameters, what the pool is, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.encoders import clip_resnet
from tests.losses.compiled import program


def test_parameters_are_as_many_as_the_authors():
    """RN50's image encoder: the 102,007,137 of the whole less the text's 63,690,241."""
    model = clip_resnet.make()
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False)
    )
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == 38_316_896


@pytest.mark.parametrize(
    "variant, side, out_dim, millions",
    [
        pytest.param("101", 224, 512, 56.26, marks=pytest.mark.slow),
        ("50x4", 288, 640, 87.14),
        pytest.param("50x64", 448, 1024, 420.38, marks=pytest.mark.slow),
    ],
)
def test_sizes_of_the_published_encoders(variant, side, out_dim, millions):
    """Of the image's part, as open_clip's docs/model_profile.csv lists them."""
    model = clip_resnet.make(variant=variant)
    image = jnp.zeros((1, side, side, 3))
    out, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), image, train=False)
    )
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert round(count / 1e6, 2) == millions and out["h"].shape == (1, out_dim)


def test_the_pool_is_attention_of_the_mean():
    pool = clip_resnet.AttentionPool(out_dim=3, heads=2)
    x = jax.random.normal(jax.random.key(0), (2, 2, 3, 4))
    variables = program(pool.init)(jax.random.key(1), x)
    p = jax.tree.map(np.asarray, variables["params"])
    places = np.asarray(x).reshape(2, 6, 4)
    tokens = np.concatenate([places.mean(1, keepdims=True), places], 1) + p["positions"]
    q, k, v = (tokens @ p[n]["kernel"] + p[n]["bias"] for n in ("query", "key", "value"))
    out = np.zeros((2, 4))
    for h in (slice(0, 2), slice(2, 4)):
        scores = np.einsum("bd,bsd->bs", q[:, 0, h], k[:, :, h]) / np.sqrt(2)
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        out[:, h] = np.einsum("bs,bsd->bd", weights, v[:, :, h])
    expected = out @ p["out"]["kernel"] + p["out"]["bias"]
    np.testing.assert_allclose(program(pool.apply)(variables, x), expected, rtol=2e-4, atol=1e-5)


def test_shapes_and_errors():
    model = clip_resnet.make(blocks=(1, 1, 1, 1), width=2, out_dim=5, heads=2)
    out = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, 64, 32, 3)), train=True)[0]
    )
    assert out["h"].shape == (2, 5) and out["stage4"].shape == (2, 2, 1, 64)
    with pytest.raises(ValueError, match="at least 32"):
        model.init(jax.random.key(0), jnp.zeros((2, 16, 16, 3)), train=True)
    for settings, text in (
        (dict(variant="18"), "variant '18'"),
        (dict(blocks=(1, 1)), "expected four numbers"),
        (dict(heads=7), "heads=7"),
    ):
        with pytest.raises(ValueError, match=text):
            clip_resnet.make(**settings)
