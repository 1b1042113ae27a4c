"""Environments of gymnax (Lange 2022, https://github.com/RobertTLange/gymnax), where it is
installed."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp

from cl_jax.core.names import nearest
from cl_jax.data.environments import Environment, World


def make(*, id: str, steps: int = 0) -> Environment:
    """The environment of gymnax 1 that `id` names: "MemoryChain-bsuite", "Breakout-MinAtar".

    Discrete actions and observations of one array are supported. An episode that runs out of time
    is one that ended: nothing is bootstrapped beyond it.

    Args:
      id: as `gymnax.make` takes it.
      steps: the most of an episode; 0 keeps gymnax's number, which is 500 or 1,000 of many.

    Raises:
      ValueError: gymnax is not installed or older than 1.0, an unknown `id`, actions that are not
        discrete, an observation that is not one array, negative `steps`.
    """
    game, settings = _made(id, steps)

    def reset(key: jax.Array) -> World:
        seen, state = game.reset_env(key, settings)
        return jax.tree.map(jnp.asarray, {"seen": seen, "state": state})

    def step(world: World, action: jax.Array, key: jax.Array) -> tuple[World, jax.Array, jax.Array]:
        seen, state, reward, ended, _ = game.step_env(key, world["state"], action, settings)
        done = jnp.asarray(ended, bool) | game.is_truncated(state, settings)
        after = jax.tree.map(
            lambda new, old: jnp.asarray(new).astype(old.dtype).reshape(old.shape),
            {"seen": seen, "state": state},
            world,
        )
        return after, jnp.float32(reward).reshape(()), done.reshape(())

    def observe(world: World) -> jax.Array:
        return jnp.float32(world["seen"])

    return Environment(
        reset, step, observe, int(game.num_actions), int(settings.max_steps_in_episode)
    )


def _made(id: str, steps: int) -> tuple[Any, Any]:
    """(environment, its parameters) of gymnax."""
    if steps < 0:
        raise ValueError(f"steps={steps}; expected 0 for gymnax's own number, or more.")
    try:
        gymnax = importlib.import_module("gymnax")
    except ImportError as error:
        raise ValueError(
            f"environment 'gymnax' needs the package of that name ({error}): "
            "pip install cl_jax[gymnax]."
        ) from None
    if id not in gymnax.registered_envs:
        known = list(gymnax.registered_envs)
        raise ValueError(
            f"gymnax has no environment {id!r}{nearest(id, known)}; it has {', '.join(known)}."
        )
    game, settings = gymnax.make(id)
    if not hasattr(game, "is_truncated"):
        raise ValueError(
            f"gymnax {gymnax.__version__} is installed; expected 1.0 or newer: "
            "pip install -U gymnax."
        )
    if steps:
        settings = settings.replace(max_steps_in_episode=steps)
    if not hasattr(game.action_space(settings), "n"):
        raise ValueError(
            f"gymnax environment {id!r} has actions {game.action_space(settings)}; expected "
            "discrete ones."
        )
    seen = jax.eval_shape(lambda key: game.reset_env(key, settings)[0], jax.random.key(0))
    if not hasattr(seen, "shape"):
        raise ValueError(
            f"gymnax environment {id!r} shows {jax.tree.structure(seen)}; expected one array."
        )
    return game, settings
