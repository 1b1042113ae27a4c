"""Masking: which tokens stay, that they return to their places, and how many."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.encoders import masking


def test_keeps_the_smallest_noise_and_fills_the_rest():
    noise = np.random.default_rng(0).uniform(size=(4, 9))
    tokens = jnp.asarray(np.random.default_rng(1).normal(size=(4, 9, 3)))
    found = masking.random_masking(noise, 4)
    assert (found.kept == np.argsort(noise, axis=1)[:, :4]).all()
    assert (found.mask.sum(axis=1) == 5).all()
    token = jnp.arange(3.0)
    filled = masking.fill(masking.take(tokens, found.kept), token, found.restore)
    expected = np.where(
        np.asarray(found.mask)[..., None], np.broadcast_to(token, (4, 9, 3)), tokens
    )
    np.testing.assert_array_equal(filled, expected)


def test_ties_of_the_noise_hide_each_token_once():
    found = masking.random_masking(jnp.zeros((2, 6)), 2)
    assert (np.asarray(found.kept) == np.arange(2)).all()
    assert (np.sort(found.restore, axis=1) == np.arange(6)).all()


def test_the_token_gets_the_gradient_of_what_is_hidden():
    found = masking.random_masking(np.random.default_rng(0).uniform(size=(2, 5)), 2)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 3)))

    def total(kept, token):
        return (masking.fill(kept, token, found.restore) * weight).sum()

    grad = jax.grad(total, argnums=1)(jnp.zeros((2, 2, 3)), jnp.zeros(3))
    hidden = np.asarray(found.mask)[..., None] * weight
    np.testing.assert_allclose(grad, hidden.sum(axis=(0, 1)), rtol=1e-5)


def test_counts_in_double_precision():
    assert masking.kept_count(196, 0.75) == 49
    assert masking.kept_count(20, 0.9) == 1
    with pytest.raises(ValueError, match=r"a mask ratio of 0\.9 leaves 0 of 10 patches"):
        masking.kept_count(10, 0.9)
    with pytest.raises(ValueError, match=r"expected a ratio from 0, below 1"):
        masking.kept_count(10, -0.1)
