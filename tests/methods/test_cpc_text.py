"""CPC on text: the encoder of sentences, and the step over passages."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run
from cl_jax.encoders import gru, sentences
from cl_jax.methods import cpc_text
from cl_jax.views import passage

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(5, 30, (4, 5, 6)).astype(np.uint16)
TOKENS[:, :, 4:] = 0
TOKENS[0, 1, 2:] = 0
ENCODER = sentences.make(sizes={"passage": 30}, width=3, embedding=4, kernel=3)


@pytest.fixture(scope="module")
def encoder():
    init = jax.jit(partial(ENCODER.init, train=True))
    return init(jax.random.key(0), TOKENS)


def test_a_sentence_is_the_mean_of_what_the_convolution_says(encoder):
    p = jax.device_get(encoder["params"])
    out = jax.jit(partial(ENCODER.apply, train=True))(encoder, TOKENS)
    expected = np.zeros((4, 5, 3))
    for b in range(4):
        for s in range(5):
            real = TOKENS[b, s][TOKENS[b, s] > 0]
            words = np.pad(p["embed"]["embedding"][real], ((1, 1), (0, 0)))
            said = [
                np.maximum(
                    np.einsum("kc,kcd->d", words[t : t + 3], p["conv"]["kernel"])
                    + p["conv"]["bias"],
                    0,
                )
                for t in range(len(real))
            ]
            expected[b, s] = np.mean(said, axis=0)
    np.testing.assert_allclose(out["sequence"], expected, atol=1e-5)
    np.testing.assert_allclose(out["h"], expected.mean(1), atol=1e-5)


def test_padding_does_not_count(encoder):
    apply = jax.jit(partial(ENCODER.apply, train=True))
    longer = np.pad(TOKENS, ((0, 0), (0, 0), (0, 5)))
    np.testing.assert_allclose(
        apply(encoder, TOKENS)["sequence"], apply(encoder, longer)["sequence"], atol=1e-6
    )


def test_a_step_and_its_functions():
    method = cpc_text.make(
        encoder={"sentence": ENCODER, "context": gru.make(width=4)},
        tx=optax.sgd(0.1),
        views=(passage.make(),),
        run=Run(None, 4, 16, 4, 8, {"passage": 30}),
        steps=2,
    )
    batch = {"passage": TOKENS, "id": np.arange(4, dtype=np.int32)}
    state = jax.jit(method.init)(jax.random.key(0), batch)
    after, metrics = jax.jit(method.update)(state, batch, jax.random.key(1))
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    np.testing.assert_allclose(metrics["chance"], np.log(20), rtol=1e-6)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), after.params, state.params)
    assert all(change > 0 for change in jax.tree.leaves(moved))
    said = jax.jit(method.functions["predictions"])(state, batch)
    assert said["p"].shape == (4, 2, 5, 3) and said["z"].shape == (4, 5, 3)


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="sections sentence and context"):
        cpc_text.make(
            encoder={"wave": ENCODER},
            tx=optax.sgd(0.1),
            views=(passage.make(),),
            run=Run(None, 4, 16, 4, 8, {}),
        )
    with pytest.raises(ValueError, match="no passages"):
        sentences.make(sizes={"tokens": 30})
    with pytest.raises(ValueError, match="kernel=0"):
        sentences.make(sizes={"passage": 30}, kernel=0)
