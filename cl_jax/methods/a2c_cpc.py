"""A2C with contrastive predictive coding as an auxiliary loss (van den Oord et al. 2018, arXiv
1807.03748, section 3.4; Mnih et al. 2016, arXiv 1602.01783)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cl_jax.core.clocks import Count
from cl_jax.core.keys import example_keys
from cl_jax.core.method import Aux, Batch, Method, Run, State, Tree, Variables, from_loss
from cl_jax.core.parallel import gather, mean
from cl_jax.core.shapes import check_positive
from cl_jax.data import environments
from cl_jax.data.environments import Environment
from cl_jax.heads.actor_critic import ActorCritic
from cl_jax.losses.agents import (
    actor_critic,
    bootstrapped_returns,
    cpc_unroll_steps,
    mean_of_steps,
)
from cl_jax.losses.predictive import predictions


class Player(nn.Module):
    """An agent with the heads of an actor-critic."""

    agent: nn.Module
    actions: int

    def setup(self) -> None:
        self.heads = ActorCritic(self.actions)

    def __call__(self, memory: Tree, seen: jax.Array, first: jax.Array) -> tuple[Any, ...]:
        """(memory, logits [B, A], value [B], z, h) at one time."""
        memory, z, h = self.agent(memory, seen, first)
        return memory, *self.heads(h), z, h

    def encode(self, seen: jax.Array) -> jax.Array:
        return self.agent.encode(seen, 2)

    def remember(self, memory: Tree, z: jax.Array, first: jax.Array) -> tuple[Tree, jax.Array]:
        return self.agent.remember(memory, z, first)

    def judge(self, h: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.heads(h)


class Weights(NamedTuple):
    """Of the terms of the loss; numbers or traced scalars."""

    discount: float
    value: float
    entropy: float
    cpc: float


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[Any],
    run: Run,
    environment: str | Mapping[str, Any] = "catch",
    unroll: int = 20,
    discount: float = 0.95,
    value_weight: float = 0.5,
    entropy_weight: float = 0.01,
    cpc_steps: Count = 5,
    cpc_weight: float = 1.0,
    cpc_epochs: float | None = None,
    equal_negatives: bool = False,
) -> Method:
    """A2C with CPC: `unroll` steps in every world by the policy, then one update on them.

    The worlds are the examples (`data.worlds`). Where each stands, what its agent remembers and the
    return of its running episode are rows of the State's memory, so that a run resumes in the midst
    of episodes.

    Args:
      encoder: `encoders.agent`, or a module with its `encode`, `remember` and `start`.
      environment: a name in `data.environments`, the path of one's own module, or a section with
        settings: dict(name="catch", columns=7).
      discount, value_weight, entropy_weight: of `losses.agents`; means over worlds and times.
      cpc_steps, cpc_weight: steps ahead that are predicted, and the weight of that loss. Its
        gradient flows into encoder and memory, not into policy and value. With weight 0 the agent
        is plain A2C, and only its predictions are left untrained.
      cpc_epochs: over so many epochs the weight falls linearly to 0; None keeps it. The paper keeps
        it.
      equal_negatives: True keeps worlds that see exactly the same among the negatives.

    `functions["play"]`: {"return", "length"} of one episode of the most likely actions in each
    world.

    Raises:
      ValueError: an unknown environment or one that breaks its contract, an unroll that is not
        longer than `cpc_steps`, no positive `cpc_epochs`, views, an encoder that does not remember.
    """
    section = {"name": environment} if isinstance(environment, str) else environment
    world = environments.make(section)
    _check(encoder, views, unroll, cpc_steps)
    check_positive(cpc_epochs=cpc_epochs)
    axis_name = run.axis_name
    player = Player(encoder, world.actions)
    weights = Weights(discount, value_weight, entropy_weight, cpc_weight)

    def variables(key: jax.Array, batch: Batch) -> Variables:
        keys = jax.random.split(key, 3)
        rows = batch["id"].shape[0]
        seen = jnp.zeros((rows, *_seen(world)), jnp.float32)
        first = jnp.ones(rows, bool)
        found = player.init(keys[0], encoder.start(rows), seen, first)["params"]
        *_, z, h = jax.eval_shape(
            lambda p: _act(player, p, encoder.start(rows), seen, first), found
        )
        shape = (cpc_steps, z.shape[1], h.shape[1])
        normal = nn.initializers.lecun_normal(in_axis=2, out_axis=1, batch_axis=0)
        params = {"player": found, "predict": normal(keys[1], shape, jnp.float32)}
        return Variables(params, {}, memory=_bank(world, encoder, run.size, keys[2]))

    def prepare(state: State, batch: Batch, key: jax.Array) -> Batch:
        rows = jax.tree.map(lambda x: x[batch["id"]], state.memory)
        keys = example_keys(key, batch["id"])
        found = play(player, world, unroll, state.params["player"], rows, keys)
        if cpc_epochs is not None:
            left = 1 - state.step / (cpc_epochs * run.steps_per_epoch)
            found["cpc_weight"] = cpc_weight * jnp.maximum(left, 0.0)
        return batch | found

    def forward(
        params: Tree, stats: Tree, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Tree, Tree, Tree]:
        def call(method: str, *args: Any) -> Any:
            return player.apply({"params": params["player"]}, *args, method=method)

        z = call("encode", batch["played"]["observation"])
        times = (jnp.moveaxis(z, 1, 0), batch["played"]["first"].T)
        _, h = lax.scan(lambda memory, x: call("remember", memory, *x), batch["before"], times)
        h = jnp.moveaxis(h, 0, 1)
        logits, values = call("judge", h)
        return {"z": z, "h": h, "logits": logits, "values": values}, stats, None

    def loss(
        outputs: Any, params: Tree, memory: Tree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        played: Any = batch["played"]
        after: Any = batch["after"]
        weight: Any = batch.get("cpc_weight", cpc_weight)
        now = weights._replace(cpc=weight)
        value, metrics = _losses(
            outputs, params["predict"], played, now, equal_negatives, axis_name
        )
        if cpc_epochs is not None:
            metrics["cpc_weight"] = weight
        ids = gather(batch["id"], axis_name)
        memory = jax.tree.map(lambda bank, x: bank.at[ids].set(gather(x, axis_name)), memory, after)
        finished = mean(after["finished"].mean(dtype=jnp.float32), axis_name)
        returns = mean((after["last"] * after["finished"]).mean(), axis_name)
        metrics["return"] = returns / jnp.maximum(finished, 1e-9)
        return value, Aux(metrics, memory)

    def features(
        params: Tree, stats: Tree, inputs: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Tree]:
        rows = inputs.shape[0]
        given = encoder.start(rows), inputs, jnp.ones(rows, bool)
        *_, z, h = _act(player, params["player"], *given)
        return {"h": h, "z": z}, stats

    def clean(batch: Batch) -> jax.Array:
        """What is seen first in each world."""
        starts = jax.vmap(lambda key: world.reset(jax.random.split(key)[0]))
        return jax.vmap(world.observe)(starts(_test_keys(batch)))

    def greedy(state: State, batch: Batch) -> dict[str, jax.Array]:
        def act(seen: jax.Array, held: Any, key: jax.Array) -> tuple[jax.Array, Any]:
            memory, first = held
            memory, logits, *_ = _act(player, state.params["player"], memory, seen[None], first)
            return logits[0].argmax().astype(jnp.int32), (memory, jnp.zeros(1, bool))

        def one(key: jax.Array) -> Any:
            return environments.episode(world, act, (encoder.start(1), jnp.ones(1, bool)), key)

        total, length, _ = jax.vmap(one)(_test_keys(batch))
        return {"return": total, "length": length}

    method = from_loss(
        variables=variables,
        views=lambda batch, key: (),
        forward=forward,
        loss=loss,
        tx=tx,
        features=features,
        clean=clean,
        axis_name=axis_name,
        needs=("world",),
        prepare=prepare,
        functions={"play": greedy},
        negatives=run.batch_size - 1,
    )
    return dataclasses.replace(method, views=None)  # `prepare` makes what a step reads


def play(
    player: Player,
    world: Environment,
    unroll: int,
    params: Tree,
    rows: Tree,
    keys: jax.Array,
) -> dict[str, Tree]:
    """`unroll` steps in each world, as fields of a batch.

    Args:
      rows: the worlds' rows of the bank, [B, ...] each.
      keys: [B], one for each world and step of training.

    Returns:
      "played": {"observation" [B, T+1, ...], "first" [B, T+1]; "action", "reward", "done" [B, T]},
      with what is seen after the last step; "before": what the agents remembered at the start;
      "after": the rows after it.
    """

    def one(rows: Tree, at: jax.Array) -> tuple[Tree, Tree]:
        seen = jax.vmap(world.observe)(rows["world"])
        memory, logits, *_ = _act(player, params, rows["memory"], seen, rows["first"])
        now = jax.vmap(jax.random.fold_in, (0, None))(keys, at)
        draws = jax.vmap(jax.random.split)(now)
        action = jax.vmap(jax.random.categorical)(draws[:, 0], logits)
        moved, reward, done = jax.vmap(lambda w, a, k: environments.advance(world, w, a, k))(
            rows["world"], action, draws[:, 1]
        )
        score = rows["score"] + reward
        after = {
            "world": moved,
            "memory": memory,
            "first": done,
            "score": jnp.where(done, 0.0, score),
            "last": jnp.where(done, score, rows["last"]),
            "finished": rows["finished"] | done,
        }
        return after, {
            "observation": seen,
            "first": rows["first"],
            "action": action,
            "reward": reward,
            "done": done,
        }

    after, steps = lax.scan(one, rows, jnp.arange(unroll))
    played = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), steps)
    last = {"observation": jax.vmap(world.observe)(after["world"]), "first": after["first"]}
    played |= {name: jnp.concatenate([played[name], last[name][:, None]], 1) for name in last}
    return {"played": played, "before": rows["memory"], "after": after}


def _act(
    player: Player, params: Tree, memory: Tree, seen: jax.Array, first: jax.Array
) -> tuple[Any, ...]:
    """(memory, logits, value, z, h) at one time."""
    found: Any = player.apply({"params": params}, memory, seen, first)
    return tuple(found)


def _losses(
    outputs: Mapping[str, jax.Array],
    predict: jax.Array,
    played: Mapping[str, jax.Array],
    weights: Weights,
    equal_negatives: bool,
    axis_name: str | None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    values = outputs["values"]
    returns = bootstrapped_returns(
        played["reward"],
        played["done"],
        lax.stop_gradient(values[:, -1]),
        discount=weights.discount,
    )
    a2c = actor_critic(
        outputs["logits"][:, :-1],
        values[:, :-1],
        played["action"],
        returns,
        value_weight=weights.value,
        entropy_weight=weights.entropy,
        axis_name=axis_name,
    )
    steps = cpc_unroll_steps(
        predictions(outputs["h"], predict),
        outputs["z"],
        jnp.cumsum(played["first"], axis=1, dtype=jnp.int32),
        observation=None if equal_negatives else played["observation"],
        axis_name=axis_name,
    )
    cpc, accuracy = mean_of_steps(steps)
    metrics = {
        "cpc": cpc,
        "cpc_accuracy": accuracy,
        "policy_loss": a2c.policy,
        "value_loss": a2c.value,
        "entropy": a2c.entropy,
    }
    return a2c.loss + weights.cpc * cpc, metrics


def _bank(world: Environment, encoder: nn.Module, size: int, key: jax.Array) -> Tree:
    """The rows of all worlds, each some random steps into an episode: started together, they would
    all stand at the same place of an episode of fixed length."""
    keys = example_keys(key, jnp.arange(size))

    def begin(key: jax.Array) -> Tree:
        start, count, walk = jax.random.split(key, 3)
        ahead = jax.random.randint(count, (), 0, world.limit)

        def one(now: Tree, at: jax.Array) -> tuple[Tree, None]:
            chosen, moved = jax.random.split(jax.random.fold_in(walk, at))
            action = jax.random.randint(chosen, (), 0, world.actions)
            after, _, _ = environments.advance(world, now, action, moved)
            return jax.tree.map(lambda a, b: jnp.where(at < ahead, a, b), after, now), None

        return lax.scan(one, world.reset(start), jnp.arange(world.limit))[0]

    zeros = jnp.zeros(size, jnp.float32)
    return {
        "world": jax.vmap(begin)(keys),
        "memory": encoder.start(size),
        "first": jnp.ones(size, bool),
        "score": zeros,
        "last": zeros,
        "finished": jnp.zeros(size, bool),
    }


def _seen(world: Environment) -> tuple[int, ...]:
    return jax.eval_shape(lambda key: world.observe(world.reset(key)), jax.random.key(0)).shape


def _test_keys(batch: Batch) -> jax.Array:
    return example_keys(jax.random.key(0), batch["world"])


def _check(encoder: Any, views: Sequence[Any], unroll: int, cpc_steps: int) -> None:
    if not all(hasattr(encoder, name) for name in ("encode", "remember", "start")):
        raise ValueError(
            f"the encoder is {type(encoder).__name__}, which remembers nothing; expected "
            "encoder=dict(name='agent', ...)."
        )
    if views:
        raise ValueError(
            f"an agent sees its world and no views of it; the config has {len(views)}. Set "
            "config.views to an empty section."
        )
    if not 1 <= cpc_steps < unroll:
        raise ValueError(
            f"cpc_steps={cpc_steps} of an unroll of {unroll}; expected at least 1 and fewer than "
            "the unroll."
        )
