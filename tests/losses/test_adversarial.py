"""Adversarial views: direction, size and constancy of the step, for any encoder and loss, over
devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.losses import adversarial
from cl_jax.losses.infonce import nt_xent
from tests.losses.compiled import compiled

module = compiled(adversarial)

LOSS = partial(nt_xent, temperature=0.5)


def setup(seed=0):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(12, 6))
    return weights, rng.normal(size=(8, 3, 4))


def encode(weights, x):
    return jnp.tanh(x.reshape(x.shape[0], -1) @ weights)


def oracle_gradient(weights, x, step=1e-6):
    """Central differences of a loop NT-Xent between the clean anchor and the moved copy."""

    def nll(a, b):
        z = np.concatenate([np.tanh(v.reshape(len(v), -1) @ weights) for v in (a, b)])
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        n, total = len(z), 0.0
        for i in range(n):
            others = [np.exp(z[i] @ z[j] / 0.5) for j in range(n) if j != i]
            total += np.log(sum(others)) - z[i] @ z[(i + n // 2) % n] / 0.5
        return total / n

    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (nll(x, up) - nll(x, down)) / (2 * step)
    return nll(x, x), gradient


def test_equals_finite_differences_of_loops():
    weights, x = setup()
    value, gradient = oracle_gradient(weights, x[:4])
    with jax.enable_x64(True):
        view = module.adversarial_view(
            partial(encode, weights), LOSS, jnp.asarray(x[:4]), epsilon=0.03
        )
    np.testing.assert_allclose(view.loss, value, atol=1e-12)
    np.testing.assert_allclose(view.gradient, gradient, atol=1e-8)
    np.testing.assert_allclose(view.x, x[:4] + 0.03 * np.sign(gradient), atol=1e-12)


def test_the_step_raises_the_loss_and_zero_gradient_stays():
    weights, x = setup()
    weights[:4] = 0  # the first row of every input is not seen

    def clean(copy):
        return LOSS(encode(weights, x), encode(weights, copy))

    view = module.adversarial_view(partial(encode, weights), LOSS, jnp.asarray(x), epsilon=1e-3)
    assert clean(view.x) > clean(x)
    np.testing.assert_array_equal(view.x[:, 0], jnp.asarray(x)[:, 0])
    np.testing.assert_allclose(np.abs(view.x - x)[:, 1:], 1e-3, rtol=1e-2)


def test_no_gradient_flows_through_the_attack():
    weights, x = setup()

    def total(weights):
        return module.adversarial_view(
            partial(encode, weights), LOSS, jnp.asarray(x), epsilon=0.1
        ).x.sum()

    assert not np.any(jax.grad(total)(jnp.asarray(weights)))


def test_encoders_may_differ_between_attack_and_training():
    """The adversarial branch has its own norm: total = L(clean a, clean b) + alpha L(clean a,
    adversarial a)."""
    weights, x = setup()
    other = setup(1)[1]

    def train(weights):
        view = module.adversarial_view(
            lambda v: 2 * encode(weights, v) + 1, LOSS, jnp.asarray(x), epsilon=0.03
        )
        z_a, z_b = encode(weights, x), encode(weights, other)
        return module.adversarial_contrast(
            LOSS, z_a, z_b, 2 * encode(weights, view.x) + 1, weight=0.5
        )

    parts = train(jnp.asarray(weights))
    np.testing.assert_allclose(parts.total, parts.clean + 0.5 * parts.adversarial, rtol=1e-6)
    np.testing.assert_allclose(
        parts.clean, LOSS(encode(weights, x), encode(weights, other)), rtol=1e-6
    )
    assert np.any(jax.grad(lambda w: train(w).total)(jnp.asarray(weights)))


def test_bfloat16_views_stay_bfloat16_and_zero_views_finite():
    weights, x = setup()
    x = jnp.asarray(x, jnp.bfloat16).at[0].set(0)
    view = module.adversarial_view(
        partial(encode, jnp.asarray(weights, jnp.bfloat16)), LOSS, x, epsilon=0.03
    )
    assert view.x.dtype == jnp.bfloat16 and all(
        np.isfinite(np.asarray(a, np.float32)).all() for a in view
    )


@pytest.mark.parametrize("n", [2, 8])
def test_the_view_does_not_depend_on_devices(n):
    weights, x = setup()

    def attack(x, axis_name=None):
        return module.adversarial_view(
            partial(encode, weights), partial(LOSS, axis_name=axis_name), x, epsilon=0.03
        ).x

    with jax.enable_x64(True):
        expected = jax.jit(attack)(x)
        shards = x.reshape(n, 8 // n, *x.shape[1:])
        actual = jax.pmap(partial(attack, axis_name="i"), axis_name="i", devices=jax.devices()[:n])(
            shards
        )
    np.testing.assert_allclose(np.asarray(actual).reshape(x.shape), expected, atol=1e-12)


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda x: module.adversarial_view(
                jnp.ravel, LOSS, (x * 9).astype(np.uint8), epsilon=0.1
            ),
            "floating-point",
        ),
        (
            lambda x: module.adversarial_view(
                lambda v: v, lambda a, b: (a - b).sum((1, 2)), x, epsilon=0.1
            ),
            "a scalar",
        ),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call(setup()[1])
