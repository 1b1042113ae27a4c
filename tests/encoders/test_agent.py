"""The agent: one time as a whole unroll, forgetting at an episode's start, both torsos."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.encoders import agent
from cl_jax.heads.actor_critic import ActorCritic
from tests.losses.compiled import program

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("settings", [dict(), dict(torso="conv", cell="lstm")])
def test_an_unroll_encoded_at_once_is_step_by_step(settings):
    module = agent.make(widths=(4, 6), memory=5, **settings)
    seen = jnp.asarray(RNG.normal(size=(2, 3, 7, 5)), jnp.float32)
    first = jnp.zeros(2, bool)
    variables = jax.jit(module.init)(jax.random.key(0), module.start(2), seen[:, 0], first)
    z = program(module.apply)(variables, seen, 2, method="encode")
    assert z.shape == (2, 3, 6)
    memory, outputs = module.start(2), []
    for t in range(3):
        memory, one, h = program(module.apply)(variables, memory, seen[:, t], first)
        np.testing.assert_allclose(one, z[:, t], rtol=1e-5, atol=1e-6)
        outputs.append(h)
    assert outputs[0].shape == (2, 5)
    # What was remembered matters, unless an episode starts.
    h = [
        program(module.apply)(variables, m, seen[:, 2], first)[2] for m in (memory, module.start(2))
    ]
    assert np.abs(h[0] - h[1]).max() > 1e-3
    mixed = program(module.apply)(variables, memory, seen[:, 2], jnp.array([True, False]))[2]
    np.testing.assert_allclose(mixed[0], h[1][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixed[1], h[0][1], rtol=1e-5, atol=1e-6)


def test_the_policy_starts_indifferent():
    module, h = ActorCritic(3), jnp.ones((2, 4, 5))
    (logits, value), _ = module.init_with_output(jax.random.key(0), h)
    assert logits.shape == (2, 4, 3) and not np.any(logits)
    assert value.shape == (2, 4) and np.any(value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(torso="cnn"), "torso='cnn' is unknown; have mlp, conv"),
        (dict(cell="rnn"), "have gru, lstm"),
        (dict(widths=()), "expected one positive width or more"),
        (dict(memory=0), "memory=0"),
    ],
)
def test_settings_that_do_not_exist(settings, message):
    with pytest.raises(ValueError, match=message):
        agent.make(**settings)


def test_a_convolution_needs_a_map():
    module = agent.make(torso="conv")
    with pytest.raises(ValueError, match=r"shape \(4,\) for torso='conv'.*Use torso='mlp'"):
        jax.eval_shape(
            module.init, jax.random.key(0), module.start(2), jnp.ones((2, 4)), jnp.ones(2, bool)
        )
