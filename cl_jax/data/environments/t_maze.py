"""The T-maze: a sign at the start of a corridor says which way to turn at its end (Bakker,
Reinforcement learning with long short-term memory, NeurIPS 2001)."""

import jax
import jax.numpy as jnp

from cl_jax.data.environments import Environment, World


def make(*, length: int = 6, patience: int = 3) -> Environment:
    """A corridor of `length` steps to a junction, and `patience` times as many steps until the
    episode is over.

    Actions: forward (0), left (1), right (2). Forward moves along the corridor; left and right turn
    at the junction and do nothing before it. Turning as the sign said ends the episode with 1, the
    other way with -1; so does running out of time, with -1. The observation [4] is: sign for left,
    sign for right (both only at the start), in the corridor, at the junction. The agent must
    remember the sign: between start and junction all places look alike.

    Raises:
      ValueError: a length or patience below 1.
    """
    if length < 1 or patience < 1:
        raise ValueError(f"length={length}, patience={patience}; expected at least 1 of each.")
    limit = patience * (length + 1)

    def reset(key: jax.Array) -> World:
        left = jax.random.bernoulli(key)
        return {"left": left, "place": jnp.int32(0), "time": jnp.int32(0)}

    def step(world: World, action: jax.Array, key: jax.Array) -> tuple[World, jax.Array, jax.Array]:
        time = world["time"] + 1
        turned = (world["place"] == length) & (action > 0)
        right_way = turned & ((action == 1) == world["left"])
        done = turned | (time >= limit)
        reward = jnp.where(done, jnp.where(right_way, 1.0, -1.0), 0.0)
        place = jnp.minimum(world["place"] + (action == 0), length)
        return world | {"place": place, "time": time}, reward, done

    def observe(world: World) -> jax.Array:
        start, end = world["place"] == 0, world["place"] == length
        left = world["left"]
        return jnp.stack([start & left, start & ~left, ~end, end]).astype(jnp.float32)

    return Environment(reset, step, observe, actions=3, limit=limit)
