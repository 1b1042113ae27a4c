"""The contract between a method and the trainer: a frozen record of pure functions over one
explicit state tree."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import lax

Tree = Any
Batch = dict[str, jax.Array]


@struct.dataclass
class State:
    """All that a run remembers; one State is one checkpoint."""

    step: jax.Array  # updates done
    params: Tree  # what the optimiser moves
    opt: Tree  # the optimiser's own state
    stats: Tree  # batch statistics of the networks in `params`
    target: Tree = None  # a Target, or None
    memory: Tree = None  # queues, banks, centres, cluster assignments, ...


@struct.dataclass
class Target:
    """A slow or frozen copy of parameters, with batch statistics of its own."""

    ema: optax.EmaState
    stats: Tree

    @property
    def params(self) -> Tree:
        return self.ema.ema


class Variables(NamedTuple):
    """What a method starts from. `target` is (params, stats) of the slow copy, or None."""

    params: Tree
    stats: Tree
    target: tuple[Tree, Tree] | None = None
    memory: Tree = None


class Aux(NamedTuple):
    """What a loss hands back besides its value: scalars to log, and the memory after the step.

    Two names mean the same in every method: "chance" is the loss of a network that knows nothing
    (nats; the log of the number of candidates), "queue_filled" the share of a queue's rows that are
    keys of examples.
    """

    metrics: dict[str, jax.Array]
    memory: Tree = None


_WHOLE_BATCH = 2**32 - 1  # where an example folds in its id, which is below 2^31


def batch_key(key: jax.Array, number: int = 0) -> jax.Array:
    """The key, the same on every device, of a draw that is for the whole batch of a step rather
    than for an example."""
    return jax.random.fold_in(jax.random.fold_in(key, _WHOLE_BATCH), number)


class Run(NamedTuple):
    """Facts of a run that a method's factory may need: sizes are global, over all devices."""

    axis_name: str | None
    batch_size: int
    size: int  # examples in the training split
    steps_per_epoch: int
    total_steps: int
    sizes: dict[str, int]  # integer field -> how many values it has: classes, vocabulary
    previous: Any = None  # the stage before this one: a `Stage`, or None


class Stage(NamedTuple):
    """A finished stage that the next one starts from."""

    method: "Method"
    state: State


def trained(state: State) -> tuple[Tree, Tree]:
    """The parameters and batch statistics of the trained network."""
    return state.params, state.stats


@dataclasses.dataclass(frozen=True)
class Method:
    """A method as the trainer sees it.

    init:     (key, batch) -> State. `batch` is a small example batch, for shapes.
    update:   (State, batch, key) -> (State, metrics). Runs per device on its rows; may use the
      axis.
    features: (params, stats, images, train) -> ({name: [B, D]}, stats). The trained network on
              images that are already transformed; "h" is the representation. Differentiable:
              fine-tuning starts from it.
    clean:    uint8 images [B, H, W, C] -> the network's input without augmentation.
    refresh:  (State, encode_all, epoch) -> State. On the host before each epoch: k-means, EM.
              `encode_all(f)` runs f(State, batch) over the training split in order and returns its
              rows.
    plan:     State -> int32 [N], a group per training example. On the host before each epoch, after
              `refresh`, and again at a resume: it must read only what stays as it is during an
              epoch. Every group that has examples is then drawn equally often
              (`data.batches.balanced_order`). None: each example once.
    evaluated: State -> (params, stats) that evaluators and later stages read; those trained, or
      DINO's teacher.
    negatives: how many negatives each anchor meets, for the log; None where that means nothing.
    needs:    batch fields, checked before the first step.
    """

    init: Callable[[jax.Array, Batch], State]
    update: Callable[[State, Batch, jax.Array], tuple[State, dict[str, jax.Array]]]
    features: Callable[[Tree, Tree, jax.Array, bool], tuple[dict[str, jax.Array], Tree]]
    clean: Callable[[jax.Array], jax.Array]
    refresh: Callable[[State, Callable[..., Any], int], State] | None = None
    plan: Callable[[State], np.ndarray] | None = None
    evaluated: Callable[[State], tuple[Tree, Tree]] = trained
    negatives: int | None = None
    needs: tuple[str, ...] = ("image",)

    def encode(self, state: State, batch: Batch) -> dict[str, jax.Array]:
        """Clean features of a batch, {name: [B, D]}: what every evaluator reads."""
        return self.features(*self.evaluated(state), self.clean(batch["image"]), False)[0]


def from_loss(
    *,
    variables: Callable[[jax.Array, Batch], Variables],
    forward: Callable[..., tuple[Tree, Tree, Tree]],
    loss: Callable[..., tuple[jax.Array, Aux]],
    tx: optax.GradientTransformation,
    features: Callable[..., Any],
    clean: Callable[[jax.Array], jax.Array],
    axis_name: str | None,
    ema: optax.GradientTransformation | None = None,
    tracked: Callable[[Tree], Tree] = lambda params: params,
    project: Callable[[Tree], Tree] = lambda params: params,
    refresh: Callable[[State, Callable[..., Any], int], State] | None = None,
    plan: Callable[[State], np.ndarray] | None = None,
    evaluated: Callable[[State], tuple[Tree, Tree]] = trained,
    negatives: int | None = None,
    micro_batches: int = 1,
    needs: tuple[str, ...] = ("image",),
) -> Method:
    """The ordinary method: one loss, one optimiser, perhaps a momentum target and a memory.

    One step: project the parameters; forward; loss against the memory as it was; gradient, averaged
    over devices; optimiser; the target moves towards the new parameters; memory and statistics are
    what the step returned.

    Args:
      variables: (key, batch) -> Variables.
      forward: (params, stats, target, batch, key) -> (outputs, stats, target_stats): examples to
        embeddings. Every array in `outputs` has the device's examples on its first axis. `target`
        is the State's Target, or None.
      loss: (outputs, params, memory, batch, key) -> (scalar, Aux), everything after the networks;
        it returns the mean over the global batch, and a memory that is the same on every device.
        `params` is there for prototypes and temperatures.
      tx, ema: the optimiser; the transform that moves the target (`core.ema.ema_of_params`), None
        for a frozen target.
      features, clean, refresh, plan, evaluated, negatives, needs: see `Method`.
      axis_name: the mapped axis, or None on one device without a map.
      tracked: the part of `params` that the target mirrors.
      project: brings parameters back onto their constraint (unit prototypes) before the forward
        pass.
      micro_batches: above 1, the step runs in that many pieces and still contrasts the whole batch:
        embeddings first, the gradient of the loss with respect to them, then each piece again with
        its share (Gao et al. 2021, arXiv 2101.06983). Batch norm then sees one piece at a time.
    """
    if micro_batches < 1:
        raise ValueError(f"micro_batches is {micro_batches}; expected 1 or more.")

    def init(key: jax.Array, batch: Batch) -> State:
        start = variables(key, batch)
        target = None
        if start.target is not None:
            held, target_stats = start.target
            seeded = (
                optax.EmaState(jnp.zeros((), jnp.int32), held) if ema is None else ema.init(held)
            )
            target = Target(seeded, target_stats)
        params = project(start.params)
        return State(
            jnp.zeros((), jnp.int32), params, tx.init(params), start.stats, target, start.memory
        )

    def whole(params: Tree, state: State, batch: Batch, key: jax.Array) -> tuple[Any, Tree]:
        def objective(params):
            outputs, stats, target_stats = forward(params, state.stats, state.target, batch, key)
            with jax.named_scope("loss"):
                value, aux = loss(outputs, params, state.memory, batch, key)
            return value, (aux, stats, target_stats)

        return jax.value_and_grad(objective, has_aux=True)(params)

    def in_pieces(params: Tree, state: State, batch: Batch, key: jax.Array) -> tuple[Any, Tree]:
        rows = batch["image"].shape[0]
        if rows % micro_batches:
            raise ValueError(
                f"a device's batch of {rows} is not divisible by micro_batches={micro_batches}."
            )
        pieces = jax.tree.map(
            lambda x: x.reshape(micro_batches, rows // micro_batches, *x.shape[1:]), batch
        )

        def embed(carry, piece):
            stats, target_stats = carry
            target = state.target and dataclasses.replace(state.target, stats=target_stats)
            outputs, stats, target_stats = forward(params, stats, target, piece, key)
            return (stats, target_stats), outputs

        start = (state.stats, state.target.stats if state.target else None)
        (stats, target_stats), stacked = lax.scan(embed, start, pieces)
        outputs = jax.tree.map(lambda x: x.reshape(rows, *x.shape[2:]), stacked)
        with jax.named_scope("loss"):
            (value, aux), (pull, grads) = jax.value_and_grad(
                lambda outputs, params: loss(outputs, params, state.memory, batch, key),
                argnums=(0, 1),
                has_aux=True,
            )(outputs, params)

        def backward(grads, piece_and_pull):
            piece, pull = piece_and_pull
            _, vjp = jax.vjp(
                lambda params: forward(params, state.stats, state.target, piece, key)[0], params
            )
            return jax.tree.map(jnp.add, grads, vjp(pull)[0]), None

        pulls = jax.tree.map(lambda x, like: x.reshape(like.shape), pull, stacked)
        grads, _ = lax.scan(backward, grads, (pieces, pulls))
        return (value, (aux, stats, target_stats)), grads

    def update(state: State, batch: Batch, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        step = whole if micro_batches == 1 else in_pieces
        params = project(state.params)
        (value, (aux, stats, target_stats)), grads = step(params, state, batch, key)
        if axis_name is not None:
            grads = lax.pmean(grads, axis_name)
        with jax.named_scope("optimizer"):
            updates, opt = tx.update(grads, state.opt, params)
            params = project(optax.apply_updates(params, updates))
        target = state.target
        if target is not None:
            with jax.named_scope("target"):
                moved = target.ema if ema is None else ema.update(tracked(params), target.ema)[1]
            target = Target(moved, target_stats)
        metrics = {"loss": value, "grad_norm": optax.global_norm(grads), **aux.metrics}
        if axis_name is not None:
            metrics = lax.pmean(metrics, axis_name)
        return State(state.step + 1, params, opt, stats, target, aux.memory), metrics

    return Method(init, update, features, clean, refresh, plan, evaluated, negatives, needs)
