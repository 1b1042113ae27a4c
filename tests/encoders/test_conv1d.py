"""CPC's audio encoder and context: sizes of the paper, what a latent has seen, parameters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.encoders import conv1d, gru


def _init(module, x):
    return jax.jit(partial(module.init, train=True))(jax.random.key(0), x)


def test_a_window_of_the_paper_has_128_latents_and_its_parameters():
    """5 layers of 512: 10 x 512, 8 x 512 x 512, three of 4 x 512 x 512, and biases."""
    x = jnp.zeros((2, 20480))
    variables = jax.eval_shape(partial(conv1d.make().init, train=True), jax.random.key(0), x)
    out = jax.eval_shape(partial(conv1d.make().apply, train=True), variables, x)
    assert out["sequence"].shape == (2, 128, 512) and out["h"].shape == (2, 512)
    expected = (10 * 512 + 512) + (8 * 512**2 + 512) + 3 * (4 * 512**2 + 512)
    assert sum(v.size for v in jax.tree.leaves(variables)) == expected == 5_250_560


def test_a_latent_sees_465_samples():
    """The paper's receptive field, from the latents that change with one sample."""
    module = conv1d.make(channels=2)
    x = jnp.zeros((1, 2400))
    variables = jax.tree.map(lambda v: jnp.ones_like(v), _init(module, x))
    seen = jax.jit(jax.grad(lambda x: module.apply(variables, x, train=True)["sequence"][0, 7, 0]))
    at = np.flatnonzero(np.asarray(seen(x))[0])
    assert at[-1] - at[0] + 1 == 465


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_equals_the_definition(norm):
    rng = np.random.default_rng(0)
    module = conv1d.make(channels=3, kernels=(4, 3), strides=(2, 2), padding=(1, 0), norm=norm)
    x = rng.normal(size=(2, 21)).astype(np.float32)
    variables = _init(module, x)
    p = jax.device_get(variables["params"])
    y = x[..., None]
    for i, (kernel, stride, pad) in enumerate(((4, 2, 1), (3, 2, 0)), 1):
        y = np.pad(y, ((0, 0), (pad, pad), (0, 0)))
        starts = range(0, y.shape[1] - kernel + 1, stride)
        w, b = p[f"conv{i}"]["kernel"], p[f"conv{i}"]["bias"]
        y = np.stack([np.einsum("bkc,kcd->bd", y[:, s : s + kernel], w) + b for s in starts], 1)
        if norm == "layer":
            y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
        y = np.maximum(y, 0)
    out = jax.jit(partial(module.apply, train=True))(variables, x)
    assert out["sequence"].shape[1] == conv1d.times_of(21, (4, 3), (2, 2), (1, 0))
    np.testing.assert_allclose(out["sequence"], y, atol=1e-5)
    np.testing.assert_allclose(out["h"], y.mean(1), atol=1e-5)


def test_a_context_knows_the_past_alone():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2, 6, 3)).astype(np.float32)
    module = gru.make(width=4)
    variables = _init(module, z)
    apply = jax.jit(partial(module.apply, variables, train=True))
    out, changed = apply(z), apply(np.concatenate([z[:, :4], 1 + z[:, 4:]], axis=1))
    np.testing.assert_array_equal(out["sequence"][:, :4], changed["sequence"][:, :4])
    assert np.abs(out["sequence"][:, 4:] - changed["sequence"][:, 4:]).min(-1).max() > 1e-3
    np.testing.assert_allclose(out["h"], out["sequence"].mean(1), atol=1e-6)


def test_parameters_of_the_paper_s_context():
    """512 to 256: three gates of input and state. A second bias is what PyTorch's GRU has besides,
    3 x 256 numbers that add to the first but for the candidate's, which flax has too."""
    shapes = jax.eval_shape(
        partial(gru.make().init, train=True), jax.random.key(0), jnp.zeros((1, 2, 512))
    )
    expected = 3 * (512 * 256 + 256 * 256) + 3 * 256 + 256
    assert sum(v.size for v in jax.tree.leaves(shapes)) == expected


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="as many of each"):
        conv1d.make(kernels=(10, 8), strides=(5, 4), padding=(3,))
    with pytest.raises(ValueError, match="none, layer"):
        conv1d.make(norm="batch")
    with pytest.raises(ValueError, match="100 samples are too few"):
        _init(conv1d.make(padding=(0,) * 5), jnp.zeros((1, 100)))
    with pytest.raises(ValueError, match=r"expected waves \[B, S\]"):
        _init(conv1d.make(channels=2), jnp.zeros((1, 100, 1)))
    with pytest.raises(ValueError, match=r"expected sequences \[B, T, D\]"):
        _init(gru.make(width=2), jnp.zeros((1, 100)))
    with pytest.raises(ValueError, match="width=0"):
        gru.make(width=0)
