"""Losses of an agent over an unroll of several worlds: advantage actor-critic, and contrastive
prediction of its own latents."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.axis import any_mesh, first_row, gather, mean
from cl_jax.core.numerics import dots, wide
from cl_jax.core.shapes import check, check_axis, check_integer
from cl_jax.losses.predictive import Steps


class ActorCritic(NamedTuple):
    """loss: the weighted sum. policy, value, entropy: its terms, means over the global batch."""

    loss: jax.Array
    policy: jax.Array
    value: jax.Array
    entropy: jax.Array


@any_mesh
def bootstrapped_returns(
    rewards: jax.Array, done: jax.Array, bootstrap: jax.Array, *, discount: float
) -> jax.Array:
    """Discounted sums of the rewards that follow, to the end of the episode or of the unroll.

    R_t = r_t + discount * (1 - done_t) * R_(t+1),  R_T = bootstrap

    Args:
      rewards: [B, T], of the step taken at time t.
      done: [B, T] bool, True where that step ended the episode.
      bootstrap: [B], the value of what is observed after the last step.
      discount: between 0 and 1.

    Returns:
      [B, T]; gradient flows to `rewards` and `bootstrap`.

    Raises:
      ValueError: shapes that disagree, `done` that is not bool, a discount outside 0 to 1.

    Reference: Mnih et al., Asynchronous methods for deep reinforcement learning, ICML 2016.
    """
    sizes = check("b t", rewards=rewards)
    check("b", sizes, bootstrap=bootstrap)
    _check_done(done, sizes)
    if not 0 <= discount <= 1:
        raise ValueError(f"discount is {discount}; expected a number from 0 to 1.")

    def back(later, step):
        reward, ended = step
        now = reward + discount * jnp.where(ended, 0.0, later)
        return now, now

    steps = (wide(rewards).T, jnp.asarray(done).T)
    return lax.scan(back, wide(bootstrap), steps, reverse=True)[1].T


@any_mesh
def actor_critic(
    logits: jax.Array,
    values: jax.Array,
    actions: jax.Array,
    returns: jax.Array,
    *,
    value_weight: float = 0.5,
    entropy_weight: float = 0.01,
    axis_name: str | None = None,
) -> ActorCritic:
    """Makes actions with returns above their value more likely, and values closer to returns.

    loss = mean[ -log pi(a) (R - V) + value_weight (R - V)^2 - entropy_weight H(pi) ]

    Args:
      logits: [B, T, A] of the policy; gradient flows.
      values: [B, T]; gradient flows through the second term only.
      actions: [B, T] integers below A, those taken.
      returns: [B, T] (`bootstrapped_returns`); no gradient.
      value_weight: 0.5, the half of A2C's squared error.
      entropy_weight: beta.
      axis_name: mapped axis over which worlds are split.

    Returns:
      `ActorCritic`. IMPALA sums over worlds and times instead: multiply by B T.

    Raises:
      ValueError: shapes or types that disagree, `axis_name` not mapped.

    Reference: Mnih et al. 2016, section 4.3; the auxiliary loss of van den Oord et al. 2018 is
      `cpc_unroll`.
    """
    sizes = check("b t", check("b t a", logits=logits), values=values, returns=returns)
    check_integer("b t", sizes, actions=actions)
    check_axis(axis_name)
    log_pi = jax.nn.log_softmax(wide(logits))
    chosen = jnp.take_along_axis(log_pi, jnp.asarray(actions)[..., None], axis=2)[..., 0]
    advantage = lax.stop_gradient(wide(returns)) - wide(values)
    policy = mean(-(chosen * lax.stop_gradient(advantage)).mean(), axis_name)
    value = mean((advantage**2).mean(), axis_name)
    entropy = mean(-(jnp.exp(log_pi) * log_pi).sum(axis=2).mean(), axis_name)
    loss = policy + value_weight * value - entropy_weight * entropy
    return ActorCritic(loss, policy, value, entropy)


@any_mesh
def cpc_unroll(
    p: jax.Array,
    z: jax.Array,
    episode: jax.Array,
    *,
    observation: jax.Array | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Pulls the prediction for time t + k to the world's own latent there, from those of the other
    worlds at the same time.

    loss = mean_k mean_(b t) -log( e(z_b(t+k)) / sum_m e(z_m(t+k)) ),  e(z) = exp(<p_(k b t), z>)

    over the (b, t) whose episode has not ended by t + k.

    Args:
      p: [K, B, T, D] predictions, `p[k-1, b, t]` of `z[b, t+k]` from what the agent remembers at t
        (`predictive.predictions`); gradient flows.
      z: [B, T, D] latents of the encoder, before the agent's memory; gradient flows to positives
        and negatives. Neither side is normalised.
      episode: [B, T] integers that change where a new episode starts.
      observation: None, or [B, T, ...] what was seen: a world that sees at t + k exactly what this
        one sees is left out of its negatives. Small worlds are often in the same state.
      axis_name: mapped axis over which worlds are split; negatives come from all devices.

    Returns:
      Scalar in nats; log B at chance level without equal observations. A step k without any pair in
      one episode is left out of the mean, and 0 is returned if there is none at all.

    Raises:
      ValueError: shapes that disagree, as many steps as times or more, `axis_name` not mapped.

    Reference: van den Oord et al., Representation learning with contrastive predictive coding,
      2018, section 3.4. The paper does not say which negatives it takes.
    """
    steps = cpc_unroll_steps(p, z, episode, observation=observation, axis_name=axis_name)
    return mean_of_steps(steps).loss


@any_mesh
def mean_of_steps(steps: Steps) -> Steps:
    """Loss and accuracy of `cpc_unroll_steps`, each the mean over the steps that have a pair; 0 if
    none has."""
    found = steps.loss != jnp.inf  # NaN is passed on
    loss, accuracy = (jnp.where(found, x, 0.0).sum() / jnp.maximum(found.sum(), 1) for x in steps)
    return Steps(loss, accuracy)


@any_mesh
def cpc_unroll_steps(
    p: jax.Array,
    z: jax.Array,
    episode: jax.Array,
    *,
    observation: jax.Array | None = None,
    axis_name: str | None = None,
) -> Steps:
    """Loss and accuracy of each step of `cpc_unroll`; inf where no pair lies in one episode.

    Raises:
      ValueError: as `cpc_unroll`.
    """
    sizes = check("k b t d", check("b t d", z=z), p=p)
    check_integer("b t", sizes, episode=episode)
    check_axis(axis_name)
    if sizes["k"] >= sizes["t"]:
        raise ValueError(
            f"p has shape {p.shape}: {sizes['k']} steps of an unroll of {sizes['t']}; expected "
            "fewer steps than times. Unroll longer, or predict fewer steps."
        )
    everyone = gather(z, axis_name)
    own = first_row(sizes["b"], axis_name) + jnp.arange(sizes["b"])
    is_own = own[:, None, None] == jnp.arange(len(everyone))[None, None]  # [B, 1, N]
    if observation is None:
        left_out = jnp.zeros((1, sizes["t"], 1), bool)
    else:
        left_out = _equal(observation, sizes, axis_name) & ~is_own
    episode = jnp.asarray(episode)

    def step(k: int) -> tuple[jax.Array, jax.Array]:
        logits = dots("btd,ntd->btn", p[k - 1, :, :-k], everyone[:, k:])
        logits = jnp.where(left_out[:, k:], -jnp.inf, logits)
        positive = jnp.where(is_own, logits, 0.0).sum(axis=2)
        together = episode[:, k:] == episode[:, :-k]
        count = mean(together.sum(dtype=logits.dtype), axis_name)

        def over_pairs(values: jax.Array) -> jax.Array:
            total = mean(jnp.where(together, values, 0.0).sum(), axis_name)
            total += lax.stop_gradient(0 * total)  # scores that overflow are NaN, not "no pair"
            return jnp.where(count > 0, total / jnp.maximum(count, 1e-9), jnp.inf)

        loss = over_pairs(jax.nn.logsumexp(logits, axis=2) - positive)
        right = positive >= logits.max(axis=2)
        return loss, over_pairs(right.astype(logits.dtype))

    losses, accuracies = zip(*(step(k) for k in range(1, sizes["k"] + 1)))
    return Steps(jnp.stack(losses), lax.stop_gradient(jnp.stack(accuracies)))


def _equal(observation: jax.Array, sizes: dict[str, int], axis_name: str | None) -> jax.Array:
    """[B, T, N]: whether world n of all devices sees at t what world b sees."""
    if observation.shape[:2] != (sizes["b"], sizes["t"]):
        raise ValueError(
            f"observation has shape {observation.shape}; expected [B, T, ...] with B = "
            f"{sizes['b']}, T = {sizes['t']}."
        )
    seen = lax.stop_gradient(observation.reshape(sizes["b"], sizes["t"], -1))
    theirs = gather(seen, axis_name)
    return (seen[:, :, None] == jnp.swapaxes(theirs, 0, 1)[None]).all(axis=3)


def _check_done(done: jax.Array, sizes: dict[str, int]) -> None:
    if jnp.result_type(done) != jnp.bool_ or jnp.shape(done) != (sizes["b"], sizes["t"]):
        raise ValueError(
            f"done is {jnp.result_type(done)}{list(jnp.shape(done))}; expected bool "
            f"[{sizes['b']}, {sizes['t']}], as the rewards."
        )
