"""Poolers against loops, SimCSE's head, the texts of errors."""

import jax
import numpy as np
import pytest

from cl_jax.heads.pooling import POOLERS, SentenceHead, pool


def test_poolers_of_loops():
    states = np.random.default_rng(0).normal(size=(4, 3, 5, 2)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    layers = {"avg": [3], "avg_top2": [2, 3], "avg_first_last": [1, 3]}
    for pooler in POOLERS:
        for i in range(3):
            tokens = (
                [
                    np.mean([states[layer, i, j] for layer in layers.get(pooler, [])], 0)
                    for j in range(5)
                    if mask[i, j]
                ]
                if pooler != "cls"
                else [states[3, i, 0]]
            )
            np.testing.assert_allclose(
                pool(states, mask, pooler=pooler)[i], np.mean(tokens, 0), rtol=1e-5
            )
    assert not np.any(pool(states, 0 * mask, pooler="avg"))


def test_sentence_head():
    h = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    params = SentenceHead().init(jax.random.key(0), h)
    kernel = params["params"]["dense"]["kernel"]
    np.testing.assert_allclose(
        SentenceHead().apply(params, h), np.tanh(h @ kernel), rtol=1e-5, atol=1e-6
    )


def test_errors():
    states, mask = np.zeros((3, 2, 5, 4), np.float32), np.ones((2, 5))
    with pytest.raises(ValueError, match="pooler is 'max'; expected one of cls, avg"):
        pool(states, mask, pooler="max")
    with pytest.raises(ValueError, match=r"attention_mask has shape \(5, 2\).*\(2, 5\)"):
        pool(states, mask.T, pooler="avg")
    with pytest.raises(ValueError, match="embeddings first and at least one layer"):
        pool(states[:1], mask, pooler="avg")
