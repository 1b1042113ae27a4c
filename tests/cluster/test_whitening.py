"""PCA whitening against its definition, whole and in blocks."""

import jax
import numpy as np
import pytest

from cl_jax.cluster import whitening


def data(n=300, d=6, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 50).astype(np.float32)


def test_directions_are_equally_spread():
    x = data()
    fitted = whitening.fit([x], 4)
    y = (x - np.asarray(fitted.mean)) @ np.asarray(fitted.projection)
    np.testing.assert_allclose(y.T @ y, np.eye(4), atol=1e-3)
    out = np.asarray(whitening.pca_whiten(x, 4))
    np.testing.assert_allclose(out, y / np.linalg.norm(y, axis=1, keepdims=True), atol=1e-5)
    _, vectors = np.linalg.eigh(np.cov(x.T.astype(np.float64)))
    cosine = np.abs(np.sum(vectors[:, ::-1][:, :4] * np.asarray(fitted.projection), axis=0))
    np.testing.assert_allclose(cosine / np.linalg.norm(fitted.projection, axis=0), 1, atol=1e-3)


def test_blocks_of_any_sizes():
    x = data()
    whole = whitening.moments(x)
    merged = whitening.merge(
        whitening.moments(x[:1]),
        whitening.merge(whitening.moments(x[1:40]), whitening.moments(x[40:])),
    )
    for a, b in zip(merged, whole):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-2)
    pieces = np.asarray(whitening.apply(whitening.fit(iter([x[:17], x[17:80], x[80:]]), 3), x))
    together = np.asarray(whitening.pca_whiten(x, 3))
    sign = np.sign(np.sum(pieces * together, axis=0))
    np.testing.assert_allclose(pieces * sign, together, atol=2e-3)


def test_degenerate_features_stay_finite():
    x = data()
    x[:, 1] = x[:, 0]
    assert np.isfinite(whitening.pca_whiten(x, 6)).all()
    np.testing.assert_array_equal(whitening.pca_whiten(np.ones((4, 3), np.float32), 2), 0)


def test_one_component_is_a_sign():
    np.testing.assert_allclose(np.abs(whitening.pca_whiten(data(), 1)), 1, atol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="num_components is 7; expected 1 to 6"):
        whitening.pca_whiten(data(), 7)
    with pytest.raises(ValueError, match="blocks is empty"):
        whitening.fit([], 2)
    with pytest.raises(ValueError, match="x has shape"):
        whitening.apply(whitening.fit([data()], 2), jax.numpy.ones((3, 4)))
