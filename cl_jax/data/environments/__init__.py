"""Environments as pure JAX functions of one world; callers map them over worlds.

A module of this folder has `make(**section) -> Environment`; `make(dict(name="catch"))` finds it.
"""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cl_jax.core import settings
from cl_jax.core.names import nearest

World = Any
PROBED = 32  # worlds that `check` plays


class Environment(NamedTuple):
    """What can happen in a world.

    Args:
      reset: key -> world, any pytree of arrays: the start of an episode.
      step: (world, action, key) -> (world, reward, done): float32 and bool scalars. It does not
        start a new episode.
      observe: world -> float32 [...], what the agent sees of it.
      actions: how many there are.
      limit: no episode has more steps. Every episode ends by itself within it, whatever is done.
    """

    reset: Callable[[jax.Array], World]
    step: Callable[[World, jax.Array, jax.Array], tuple[World, jax.Array, jax.Array]]
    observe: Callable[[World], jax.Array]
    actions: int
    limit: int


def make(section: Mapping[str, Any]) -> Environment:
    """The environment that a config section names, with the section's other entries as keywords.

    `name` is a module of this folder, or the path of one's own with a `make`: "my_lab.maze".

    Raises:
      ValueError: an unknown name or keyword, one left out that has no default, a value of another
        kind than its annotation, or an environment that `check` refuses.
    """
    if not isinstance(section, Mapping):
        raise ValueError(f"environment={section!r}; expected a section with a name.")
    given = dict(section)
    name = str(given.pop("name", ""))
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    own = "." in name and all(word.isidentifier() for word in name.split("."))
    if not own and name not in known:
        raise ValueError(
            f"environment {name!r} is unknown; have {', '.join(known)}{nearest(name, known)}, or "
            "the path of a module with a `make`."
        )
    path = name if own else f"{__name__}.{name}"
    try:
        factory = importlib.import_module(path).make
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(
            f"environment {name!r}: {error}. Expected a module with a `make`."
        ) from None
    where = f"environment {name!r}"
    settings.check_keys(where, given, inspect.signature(factory).parameters)
    settings.check_required(where, factory, given)
    settings.check(where, factory, given)
    return _checked(factory, name, tuple(given.items()))


@functools.lru_cache(maxsize=16)  # a method may be built often, each time with the same environment
def _checked(
    factory: Callable[..., Environment], name: str, given: tuple[tuple[str, Any], ...]
) -> Environment:
    environment = factory(**dict(given))
    with jax.ensure_compile_time_eval():
        check(environment, name)
    return environment


def check(environment: Environment, name: str) -> None:
    """Plays random episodes to see that an environment keeps to its contract.

    Raises:
      ValueError: no action, a limit below 1, results of other types or shapes, rewards that are not
        finite, an episode that does not end within the limit.
    """
    if environment.actions < 1 or environment.limit < 1:
        raise ValueError(
            f"environment {name!r} has {environment.actions} actions and a limit of "
            f"{environment.limit} steps; expected at least 1 of each. An episode must end."
        )
    key = jax.random.key(0)
    world = jax.eval_shape(environment.reset, key)
    after, reward, done = jax.eval_shape(environment.step, world, jnp.int32(0), key)
    seen = jax.eval_shape(environment.observe, world)
    _check_types(name, world, after, reward, done, seen)

    def random_action(observation: jax.Array, at: jax.Array, key: jax.Array) -> jax.Array:
        return jax.random.randint(key, (), 0, environment.actions)

    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(PROBED))
    rewards, _, ended = jax.jit(
        jax.vmap(lambda key: episode(environment, random_action, jnp.zeros(()), key))
    )(keys)
    if not np.isfinite(rewards).all():
        raise ValueError(f"environment {name!r} gave a reward that is NaN or inf.")
    if not np.all(ended):
        raise ValueError(
            f"environment {name!r}: {int(np.sum(~np.asarray(ended)))} of {PROBED} random episodes "
            f"did not end within its limit of {environment.limit} steps. A world must end: end the "
            "episode in `step`, or raise `limit`."
        )


def episode(
    environment: Environment,
    act: Callable[..., Any],
    memory: Any,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One episode of one world from its start.

    Args:
      act: (observation, memory, key) -> action, or (action, memory) where it remembers.
      memory: what `act` is given at the first step.
      key: of the world and of the actions.

    Returns:
      (return, length, ended): the undiscounted sum of rewards, the number of steps, and whether the
      episode ended within `environment.limit` steps.
    """
    start, acting = jax.random.split(key)

    def one(carry, at):
        world, memory, total, length, over = carry
        key = jax.random.fold_in(acting, at)
        chosen = act(environment.observe(world), memory, jax.random.fold_in(key, 0))
        action, memory = chosen if isinstance(chosen, tuple) else (chosen, memory)
        world, reward, done = environment.step(world, action, jax.random.fold_in(key, 1))
        total = total + jnp.where(over, 0.0, reward)
        return (world, memory, total, length + ~over, over | done), None

    carry = (environment.reset(start), memory, jnp.float32(0), jnp.int32(0), jnp.bool_(False))
    (_, _, total, length, over), _ = lax.scan(one, carry, jnp.arange(environment.limit))
    return total, length, over


def advance(
    environment: Environment, world: World, action: jax.Array, key: jax.Array
) -> tuple[World, jax.Array, jax.Array]:
    """`environment.step`, and a new episode for a world that ended: (world, reward, done)."""
    world, reward, done = environment.step(world, action, jax.random.fold_in(key, 0))
    fresh = environment.reset(jax.random.fold_in(key, 1))
    return jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, world), reward, done


def _check_types(name: str, world: World, after: World, reward: Any, done: Any, seen: Any) -> None:
    def kinds(tree: Any) -> Any:
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    if kinds(world) != kinds(after):
        raise ValueError(
            f"environment {name!r}: `step` returns a world of {kinds(after)}, `reset` one of "
            f"{kinds(world)}; expected the same shapes and types."
        )
    found = [(x.shape, x.dtype) for x in (reward, done)]
    if found != [((), jnp.float32), ((), jnp.bool_)] or seen.dtype != jnp.float32:
        raise ValueError(
            f"environment {name!r}: reward is {reward}, done {done}, the observation {seen}; "
            "expected a float32 scalar, a bool scalar and a float32 array."
        )
