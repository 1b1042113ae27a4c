"""Actor-critic and CPC over an unroll: against loops with explicit episodes, gradients to the right
places, devices against one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.losses import agents
from tests.losses.compiled import compiled
from tests.losses.parity import assert_parity

module = compiled(agents)
K, B, T, D, A = 3, 4, 6, 5, 3


def unroll(seed=0):
    rng = np.random.default_rng(seed)
    return dict(
        p=rng.normal(size=(K, B, T, D)),
        z=rng.normal(size=(B, T, D)),
        episode=np.cumsum(rng.random((B, T)) < 0.3, 1),
        observation=rng.integers(0, 2, (B, T, 2)),
    )


def played(seed=0):
    rng = np.random.default_rng(seed)
    return dict(
        logits=rng.normal(size=(B, T, A)),
        values=rng.normal(size=(B, T)),
        actions=rng.integers(0, A, (B, T)),
        returns=rng.normal(size=(B, T)),
    )


def loop_over_pairs(p, z, episode, observation):
    """(loss, accuracy) of each step; episodes and equal observations by hand."""
    out = []
    for k in range(1, K + 1):
        terms = []
        for b in range(B):
            for t in range(T - k):
                if episode[b, t] != episode[b, t + k]:
                    continue
                others = [
                    m
                    for m in range(B)
                    if m == b
                    or observation is None
                    or (observation[m, t + k] != observation[b, t + k]).any()
                ]
                logits = np.array([p[k - 1, b, t] @ z[m, t + k] for m in others])
                own = others.index(b)
                terms.append((np.log(np.exp(logits).sum()) - logits[own], logits.argmax() == own))
        out.append(np.mean(terms, axis=0))
    return np.transpose(out)


@pytest.mark.parametrize("seen", [False, True])
def test_cpc_against_a_loop(seen):
    given = unroll()
    observation = given["observation"] if seen else None
    expected = loop_over_pairs(given["p"], given["z"], given["episode"], observation)
    assert (given["episode"][:, 1:] != given["episode"][:, :-1]).any()
    arrays = {name: jnp.asarray(x) for name, x in given.items() if name != "observation"}
    other = {} if observation is None else dict(observation=jnp.asarray(observation))
    steps = module.cpc_unroll_steps(**arrays, **other)
    np.testing.assert_allclose(steps.loss, expected[0], rtol=1e-5)
    np.testing.assert_allclose(steps.accuracy, expected[1], rtol=1e-6)
    np.testing.assert_allclose(module.cpc_unroll(**arrays, **other), expected[0].mean(), rtol=1e-5)


def test_steps_without_a_pair_are_left_out():
    given = {name: jnp.asarray(x) for name, x in unroll().items() if name != "observation"}
    pairs = given | dict(episode=jnp.tile(jnp.arange(T)[None] // 2, (B, 1)))  # of two times each
    steps = module.cpc_unroll_steps(**pairs)
    assert np.isfinite(steps.loss[0]) and np.isinf(steps.loss[1:]).all()
    np.testing.assert_allclose(module.cpc_unroll(**pairs), steps.loss[0], rtol=1e-6)
    alone = given | dict(episode=jnp.tile(jnp.arange(T)[None], (B, 1)))
    value, gradient = jax.jit(
        jax.value_and_grad(lambda z: agents.cpc_unroll(alone["p"], z, alone["episode"]))
    )(alone["z"])
    assert value == 0 and not np.any(gradient)


@pytest.mark.parametrize("bad", [np.nan, 1e30])  # 1e30: scores of a whole step overflow
def test_a_latent_that_is_nan_or_overflows_is_not_a_step_without_a_pair(bad):
    given = {name: jnp.asarray(x) for name, x in unroll().items() if name != "observation"}
    value = module.cpc_unroll(given["p"] * 1e10, given["z"].at[0, -1, 0].set(bad), given["episode"])
    assert np.isnan(value)


def test_chance_is_the_log_of_the_worlds():
    given = unroll()
    value = module.cpc_unroll(
        jnp.zeros((K, B, T, D)), jnp.asarray(given["z"]), jnp.zeros((B, T), int)
    )
    np.testing.assert_allclose(value, np.log(B), rtol=1e-6)


def test_actor_critic_against_a_loop():
    given = played()
    pi = np.exp(given["logits"])
    pi /= pi.sum(2, keepdims=True)
    policy = value = entropy = 0.0
    for b in range(B):
        for t in range(T):
            advantage = given["returns"][b, t] - given["values"][b, t]
            policy -= np.log(pi[b, t, given["actions"][b, t]]) * advantage / (B * T)
            value += advantage**2 / (B * T)
            entropy -= (pi[b, t] * np.log(pi[b, t])).sum() / (B * T)
    arrays = {name: jnp.asarray(x) for name, x in given.items()}
    out = module.actor_critic(**arrays, value_weight=0.3, entropy_weight=0.2)
    expected = (policy + 0.3 * value - 0.2 * entropy, policy, value, entropy)
    np.testing.assert_allclose(out, expected, rtol=1e-5)


def test_the_advantage_passes_no_gradient_to_the_policy_term():
    given = {name: jnp.asarray(x, jnp.result_type(x)) for name, x in played().items()}

    def loss(values, returns):
        return agents.actor_critic(
            **(given | dict(values=values, returns=returns)), value_weight=0.5
        ).loss

    values, returns = jax.jit(jax.grad(loss, argnums=(0, 1)))(given["values"], given["returns"])
    np.testing.assert_allclose(values, (given["values"] - given["returns"]) / (B * T), rtol=1e-5)
    assert not np.any(returns)


def test_returns_stop_at_the_end_of_an_episode():
    rewards = jnp.array([[1.0, 2.0, 3.0], [1.0, 0.0, 0.0]])
    done = jnp.array([[False, True, False], [False, False, False]])
    out = module.bootstrapped_returns(rewards, done, jnp.array([10.0, 8.0]), discount=0.5)
    np.testing.assert_allclose(out, [[2.0, 2.0, 8.0], [2.0, 2.0, 4.0]])


@pytest.mark.slow
def test_parity():
    given = unroll()
    cpc = partial(agents.cpc_unroll)
    args = [given[name] for name in ("p", "z", "episode", "observation")]

    def of_rows(p, z, episode, observation, axis_name):  # worlds first, which is what is sharded
        return cpc(jnp.moveaxis(p, 1, 0), z, episode, observation=observation, axis_name=axis_name)

    assert_parity(of_rows, [np.moveaxis(args[0], 1, 0), *args[1:]], [True] * 4, f32=2e-6)

    def of_play(*rows, axis_name):
        return agents.actor_critic(*rows, axis_name=axis_name).loss

    assert_parity(of_play, list(played().values()), [True] * 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: agents.cpc_unroll(
                jnp.ones((3, 2, 3, 4)), jnp.ones((2, 3, 4)), jnp.ones((2, 3), int)
            ),
            "expected fewer steps than times",
        ),
        (
            lambda: agents.cpc_unroll(
                jnp.ones((1, 2, 3, 4)),
                jnp.ones((2, 3, 4)),
                jnp.ones((2, 3), int),
                observation=jnp.ones((3, 3)),
            ),
            "observation has shape",
        ),
        (
            lambda: agents.bootstrapped_returns(
                jnp.ones((2, 3)), jnp.ones((2, 3)), jnp.ones(2), discount=0.9
            ),
            "done is float32.*expected bool",
        ),
        (
            lambda: agents.bootstrapped_returns(
                jnp.ones((2, 3)), jnp.ones((2, 3), bool), jnp.ones(2), discount=1.1
            ),
            "discount is 1.1",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
