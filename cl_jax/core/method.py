"""The contract between a method and the trainer: a frozen record of pure functions over one
explicit state tree."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import lax

from cl_jax.core.axis import averaged

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
    memory: Tree = None  # queues, banks, centres, cluster assignments, worlds, ...


@struct.dataclass
class Target:
    """A slow or frozen copy of parameters, with batch statistics of its own."""

    ema: optax.EmaState
    stats: Tree

    @property
    def params(self) -> Tree:
        """The parameters of the copy."""
        return self.ema.ema


class Variables(NamedTuple):
    """What a method starts from. `target` is (params, stats) of the slow copy, or None."""

    params: Tree
    stats: Tree
    target: tuple[Tree, Tree] | None = None
    memory: Tree = None


class Aux(NamedTuple):
    """What a loss returns besides its value: scalars to log, and the memory after the step. A
    method with a memory must return it, changed or not: without it the State would lose it.

    Two names mean the same in every method: "chance" is the loss at chance level (nats; the log of
    the number of candidates), "queue_filled" the share of a queue's rows that are keys of examples.
    """

    metrics: dict[str, jax.Array]
    memory: Tree = None


class Run(NamedTuple):
    """Facts of a run that a method's factory may need; sizes are global, over all devices."""

    axis_name: str | None
    batch_size: int
    size: int  # examples in the training split
    steps_per_epoch: int  # config.steps_per_epoch where it is set, else size // batch_size
    total_steps: int
    sizes: dict[str, int]  # `Source.sizes`: integer field -> how many values it has
    labels: Callable[[str], np.ndarray] | None = None  # a label [N] of all training examples
    previous: Any = None  # the stage before this one: a `Stage`, or None


class Stage(NamedTuple):
    """A finished stage that the next one starts from."""

    method: "Method"
    state: State


class EncodeAll(Protocol):
    """f(State, batch) over the training split in order: its rows as NumPy arrays, [N, ...]."""

    def __call__(self, f: Callable[[State, Batch], Tree]) -> Tree: ...


def trained(state: State) -> tuple[Tree, Tree]:
    """The parameters and batch statistics of the trained network."""
    return state.params, state.stats


@dataclasses.dataclass(frozen=True)
class Method:
    """A method as the trainer sees it.

    init:      (key, batch) -> State. `batch` is a real example, repeated: for shapes, with masks
               that are not empty.
    update:    (State, batch, key) -> (State, metrics). Runs on each device with its rows; may use
               the axis. Metrics are scalars equal on every device, "loss" and "grad_norm" among
               them; of several players, the sum and the norm over all. None has a name that the
               trainer logs itself (`core.logs.RESERVED`). The trainer counts `State.step`.
    functions: name -> (State, batch) -> arrays with the batch's rows first: all that others ask of
               a trained State. "encode" is always there: {name: [B, D]} of clean inputs, "h" the
               representation; of a batch that lacks a modality, what can be said without it.
               "generate": tokens [B, T], or images [B, H, W, C] for the batch's ids and labels.
               "score": [B] log likelihoods. "play": {"return", "length": [B]} of one greedy episode
               in each world. Random numbers are folded from batch["id"], so that results do not
               depend on the number of devices.
    needs:     batch fields that must be there, checked before the first step.
    wants:     batch fields that are passed on where they are there: "image_b".
    features:  (params, stats, inputs, train) -> ({name: [B, D]}, stats), differentiable: for
               fine-tuning, distillation, probes on views. None where params and stats alone do not
               determine it.
    clean:     batch -> inputs, without augmentation: what evaluators and `init` show the network.
    views:     (batch, key) -> [inputs], as training draws them, of the data's fields alone, since
               evaluators draw them too; None where training draws none.
    begin:     State -> State. On the host, once, of a new State: the weights of a file that it
               starts from. The file is read by nothing else, so that a State is restored without
               it. The trainer places the arrays.
    refresh:   (State, encode_all, epoch) -> State. On the host before each epoch: k-means, EM.
               `encode_all` is an `EncodeAll`. The arrays that it returns may lie on the host or on
               any device, and `Sharded` rows may be whole: the trainer places them.
    order:     (State, epoch, seed) -> int32 [steps_per_epoch * batch_size], the examples of an
               epoch, repeats allowed. On the host before each epoch, after `refresh`, and again at
               a resume: it must read only what does not change during an epoch. None: each example
               once, in a random order.
    evaluated: State -> (params, stats) that evaluators and later stages read; those trained, or
               DINO's teacher.
    negatives: how many negatives each anchor has, for the log; None where that means nothing.
    """

    init: Callable[[jax.Array, Batch], State]
    update: Callable[[State, Batch, jax.Array], tuple[State, dict[str, jax.Array]]]
    functions: Mapping[str, Callable[[State, Batch], Tree]]
    needs: tuple[str, ...]
    wants: tuple[str, ...] = ()
    features: Callable[[Tree, Tree, Tree, bool], tuple[dict[str, jax.Array], Tree]] | None = None
    clean: Callable[[Batch], Tree] | None = None
    views: Callable[[Batch, jax.Array], Sequence[Tree]] | None = None
    begin: Callable[[State], State] | None = None
    refresh: Callable[[State, EncodeAll, int], State] | None = None
    order: Callable[[State, int, int], np.ndarray] | None = None
    evaluated: Callable[[State], tuple[Tree, Tree]] = trained
    negatives: int | None = None

    @property
    def encode(self) -> Callable[[State, Batch], dict[str, jax.Array]]:
        """`functions["encode"]`: clean features of a batch, {name: [B, D]}."""
        return self.functions["encode"]


def check_metrics(metrics: Any, who: str, needed: Sequence[str] = ("loss",)) -> None:
    """Refuses what an update returned beside the State if it is not metrics with these names."""
    if not isinstance(metrics, Mapping):
        raise ValueError(
            f"{who} returned (State, {type(metrics).__name__}) from its update; expected (State, "
            '{"loss": ..., "grad_norm": ..., ...}).'
        )
    for name in needed:
        if name not in metrics:
            raise ValueError(
                f"{who} returned the metrics {', '.join(map(str, metrics)) or 'none'} from its "
                f'update; expected "{name}" among them, by which a step that failed is known: '
                '"loss" is the mean over the global batch, "grad_norm" the norm of the gradient.'
            )


def views_of(method: Method, batch: Batch, key: jax.Array) -> list[Tree]:
    """The training views of a batch.

    Raises:
      ValueError: the method has none, or its `views` returns something else than a list of them.
    """
    if method.views is None:
        raise ValueError("the method draws no views; expected Method.views.")
    drawn = method.views(batch, key)
    if not isinstance(drawn, list | tuple) or not drawn:
        what = "no view" if isinstance(drawn, list | tuple) else f"a {type(drawn).__name__}"
        raise ValueError(
            f"the method's views returned {what}; expected a list of one view or more, each an "
            "input of the network. Return [inputs], or set Method.views to None where training "
            "draws none."
        )
    return list(drawn)


class Forward(Protocol):
    """Inputs to embeddings. Every array in the outputs has the device's examples on its first axis.
    `inputs` is what `views` returned; `target` is the State's Target, or None. Returns (outputs,
    stats, target_stats)."""

    def __call__(
        self, params: Tree, stats: Tree, target: Any, inputs: Any, batch: Batch, key: jax.Array, /
    ) -> tuple[Tree, Tree, Tree]: ...


class Loss(Protocol):
    """Everything after the networks: (mean over the global batch, Aux). The memory that it returns
    is the same on every device. `params` is there for prototypes and temperatures."""

    def __call__(
        self, outputs: Any, params: Tree, memory: Any, batch: Batch, key: jax.Array, /
    ) -> tuple[jax.Array, Aux]: ...


def gradient(
    objective: Callable[[Tree], tuple[jax.Array, Any]], params: Tree, axis_name: str | None
) -> tuple[tuple[jax.Array, Any], Tree]:
    """((value, aux), gradients averaged over devices) of objective(params) -> (value, aux)."""
    found, grads = jax.value_and_grad(objective, has_aux=True)(params)
    return found, averaged(grads, axis_name)


def advance(
    tx: optax.GradientTransformation, gradients: Tree, opt: Tree, params: Tree
) -> tuple[Tree, Tree]:
    """(params, opt) after one update of an optimiser. With `gradient`, what a method of several
    players writes its `update` of."""
    with jax.named_scope("optimizer"):
        updates, opt = tx.update(gradients, opt, params)
        return optax.apply_updates(params, updates), opt


def start(
    variables: Variables,
    tx: optax.GradientTransformation,
    ema: optax.GradientTransformation | None = None,
) -> State:
    """The State of step 0: the optimiser's state of the parameters, and a target seeded with its
    copy."""
    target = None
    if variables.target is not None:
        held, target_stats = variables.target
        seeded = optax.EmaState(jnp.zeros((), jnp.int32), held) if ema is None else ema.init(held)
        target = Target(seeded, target_stats)
    return State(
        jnp.zeros((), jnp.int32),
        variables.params,
        tx.init(variables.params),
        variables.stats,
        target,
        variables.memory,
    )


def from_loss(
    *,
    variables: Callable[[jax.Array, Batch], Variables],
    views: Callable[[Batch, jax.Array], Any],
    forward: Forward,
    loss: Loss,
    tx: optax.GradientTransformation,
    features: Callable[[Tree, Tree, Tree, bool], tuple[dict[str, jax.Array], Tree]] | None,
    clean: Callable[[Batch], Tree] | None,
    axis_name: str | None,
    needs: tuple[str, ...],
    wants: tuple[str, ...] = (),
    prepare: Callable[[State, Batch, jax.Array], Batch] | None = None,
    functions: Mapping[str, Callable[[State, Batch], Tree]] = MappingProxyType({}),
    ema: optax.GradientTransformation | None = None,
    tracked: Callable[[Tree], Tree] = lambda params: params,
    project: Callable[[Tree], Tree] = lambda params: params,
    begin: Callable[[State], State] | None = None,
    refresh: Callable[[State, EncodeAll, int], State] | None = None,
    order: Callable[[State, int, int], np.ndarray] | None = None,
    evaluated: Callable[[State], tuple[Tree, Tree]] = trained,
    negatives: int | None = None,
    micro_batches: int = 1,
) -> Method:
    """The ordinary method: one loss, one optimiser, perhaps a momentum target and a memory.

    One step: prepare; project the parameters; views; forward; loss against the memory as it was;
    gradient, averaged over devices; optimiser; the target moves towards the new parameters; memory
    and statistics are what the step returned.

    Args:
      variables: (key, batch) -> Variables.
      views: (batch, key) -> inputs, outside the gradient: a list of views, or any other tree, which
        evaluators take for one view. Evaluators call it with the data's fields alone; where it
        cannot do without what `prepare` adds, their figures of views are left out.
      forward: a `Forward`, inputs to embeddings.
      loss: a `Loss`, everything that looks across examples.
      tx, ema: the optimiser; the transform that moves the target (`core.ema.ema_of_params`), None
        for a frozen target.
      features, clean, needs, wants, begin, refresh, order, evaluated, negatives: see `Method`.
      axis_name: the mapped axis, or None on one device without a map.
      prepare: (State, batch, key) -> batch, without gradient: what a step makes of its own State
        before the loss: a policy's unroll, an adversarial view, generated sentences. What is to be
        remembered of it (the worlds after the unroll) is a field of the batch, and `loss` writes
        it into the memory, gathered, at batch["id"].
      functions: see `Method`. "encode" is made of `features`, `clean` and `evaluated` where it is
        not given.
      tracked: the part of `params` that the target mirrors.
      project: brings parameters back onto their constraint (unit prototypes) before the forward
        pass.
      micro_batches: above 1, the step runs in that many pieces and still contrasts the whole batch:
        embeddings first, the gradient of the loss with respect to them, then each piece again with
        its share (Gao et al. 2021, arXiv 2101.06983). Piece p is rows p, p + m, p + 2m, ... of each
        device, so that pieces are the same examples on any number of devices. Batch norm sees
        pieces.

    Raises:
      ValueError: fewer than one micro-batch, or neither `features` nor functions["encode"].
    """
    if micro_batches < 1:
        raise ValueError(f"micro_batches is {micro_batches}; expected 1 or more.")
    step = _whole if micro_batches == 1 else _in_pieces
    parts = _Step(views, forward, loss, micro_batches)
    functions = dict(functions)
    if "encode" not in functions:
        if features is None or clean is None:
            raise ValueError(
                'this method has no features; give functions={"encode": ...}, what evaluators read.'
            )

        def encode(state: State, batch: Batch) -> dict[str, jax.Array]:
            found = features(*evaluated(state), clean(batch), False)
            named, _ = checked_tuple("features", found, ("{name: [B, D]}", "stats"))
            _check_rows("features", named, batch)
            return named

        functions["encode"] = encode

    def listed(batch: Batch, key: jax.Array) -> Sequence[Tree]:
        drawn = views(batch, key)
        return drawn if isinstance(drawn, list | tuple) else [drawn]

    def init(key: jax.Array, batch: Batch) -> State:
        found = variables(key, batch)
        return start(found._replace(params=project(found.params)), tx, ema)

    def update(state: State, batch: Batch, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        if prepare is not None:
            with jax.named_scope("prepare"):
                batch = lax.stop_gradient(prepare(state, batch, key))
        params = project(state.params)
        (value, (aux, stats, target_stats)), grads = step(parts, params, state, batch, key)
        if state.memory is not None and aux.memory is None:
            raise ValueError(
                "the loss returned no memory, and the State has one; return Aux(metrics, memory), "
                "with the memory as it was where the step does not change it."
            )
        grads = averaged(grads, axis_name)
        params, opt = advance(tx, grads, state.opt, params)
        params = project(params)
        target = state.target
        if target is not None:
            with jax.named_scope("target"):
                moved = target.ema if ema is None else ema.update(tracked(params), target.ema)[1]
            target = Target(moved, target_stats)
        metrics = {"loss": value, "grad_norm": optax.global_norm(grads), **aux.metrics}
        if axis_name is not None:
            metrics = lax.pmean(metrics, axis_name)
        return State(state.step + 1, params, opt, stats, target, aux.memory), metrics

    return Method(
        init=init,
        update=update,
        functions=functions,
        needs=needs,
        wants=wants,
        features=features,
        clean=clean,
        views=listed,
        begin=begin,
        refresh=refresh,
        order=order,
        evaluated=evaluated,
        negatives=negatives,
    )


class _Step(NamedTuple):
    """The functions of one gradient."""

    views: Callable[[Batch, jax.Array], Any]
    forward: Forward
    loss: Loss
    micro_batches: int

    def drawn(self, batch: Batch, key: jax.Array) -> Any:
        with jax.named_scope("views"):
            return self.views(batch, key)

    def run_forward(
        self, params: Tree, stats: Tree, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Tree, Tree, Tree]:
        found = self.forward(params, stats, target, inputs, batch, key)
        found = checked_tuple("forward", found, ("outputs", "stats", "target_stats"))
        _check_rows("forward", found[0], batch)
        return found

    def run_loss(self, *given: Any) -> tuple[jax.Array, Aux]:
        with jax.named_scope("loss"):
            found = self.loss(*given)
        value, aux = checked_tuple("the loss", found, ("value", "Aux(metrics, memory)"))
        if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            raise ValueError(
                f"the loss is {jnp.result_type(value)}{list(jnp.shape(value))}; expected one "
                "floating-point number, the mean over the global batch."
            )
        if not isinstance(aux, Aux):
            raise ValueError(
                f"the loss returned (value, {type(aux).__name__}); expected (value, Aux(metrics, "
                "memory))."
            )
        return value, aux


def checked_tuple(name: str, found: Any, parts: tuple[str, ...]) -> Any:
    """What a method's function returned, a tuple of these parts."""
    if not isinstance(found, tuple) or len(found) != len(parts):
        what = f"{len(found)} values" if isinstance(found, tuple) else f"a {type(found).__name__}"
        raise ValueError(f"{name} returned {what}; expected ({', '.join(parts)}).")
    return found


def _check_rows(name: str, outputs: Tree, batch: Batch) -> None:
    """Refuses arrays whose first axis is not the batch's examples: a loss would pair rows of
    different examples without an error. A batch without ids, as a caller of "encode" may give,
    passes."""
    if "id" not in batch:
        return
    rows = len(batch["id"])
    for path, x in jax.tree_util.tree_leaves_with_path(outputs):
        shape = jnp.shape(x)
        if shape[:1] != (rows,):
            where = jax.tree_util.keystr(path)
            mend = (
                "Put views, crops, steps or tokens on later axes, for instance jnp.stack(views, "
                "axis=1); pad what examples have different numbers of, such as the nodes of "
                "graphs, with a mask; mask examples in the loss rather than dropping them."
                if shape
                else f"Compute what is of the whole batch in the loss, or give every example its "
                f"copy: jnp.broadcast_to(x, ({rows},))."
            )
            raise ValueError(
                f"{name} returned an array{' at ' + where if where else ''} of shape "
                f"{list(shape)} for {rows} examples; expected [{rows}, ...], one row per example "
                f"in the batch's order. {mend}"
            )


def _whole(
    parts: _Step, params: Tree, state: State, batch: Batch, key: jax.Array
) -> tuple[Any, Tree]:
    inputs = parts.drawn(batch, key)

    def objective(params: Tree) -> tuple[jax.Array, Any]:
        outputs, stats, target_stats = parts.run_forward(
            params, state.stats, state.target, inputs, batch, key
        )
        value, aux = parts.run_loss(outputs, params, state.memory, batch, key)
        return value, (aux, stats, target_stats)

    return jax.value_and_grad(objective, has_aux=True)(params)


def _in_pieces(
    parts: _Step, params: Tree, state: State, batch: Batch, key: jax.Array
) -> tuple[Any, Tree]:
    count, rows = parts.micro_batches, batch["id"].shape[0]
    if rows % count:
        raise ValueError(
            f"a device's batch of {rows} is not divisible by micro_batches={count}; use a divisor "
            "of it, or another batch_size."
        )

    def cut(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(rows // count, count, *x.shape[1:]), 1, 0)

    def join(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(rows, *x.shape[2:])

    pieces = jax.tree.map(cut, batch)

    def embed(carry, piece):
        stats, target_stats = carry
        target = state.target and dataclasses.replace(state.target, stats=target_stats)
        outputs, stats, target_stats = parts.run_forward(
            params, stats, target, parts.drawn(piece, key), piece, key
        )
        return (stats, target_stats), outputs

    carry = (state.stats, state.target.stats if state.target else None)
    (stats, target_stats), stacked = lax.scan(embed, carry, pieces)
    outputs = jax.tree.map(join, stacked)
    integers = [
        x.dtype for x in jax.tree.leaves(outputs) if not jnp.issubdtype(x.dtype, jnp.inexact)
    ]
    if integers:
        raise ValueError(
            f"micro_batches={count}: forward returned {integers[0]}; expected floating-point "
            "outputs, which have a gradient. Read integers from the batch instead."
        )
    (value, aux), (pull, grads) = jax.value_and_grad(
        lambda outputs, params: parts.run_loss(outputs, params, state.memory, batch, key),
        argnums=(0, 1),
        has_aux=True,
    )(outputs, params)

    def backward(grads, piece_and_pull):
        piece, pull = piece_and_pull
        inputs = parts.drawn(piece, key)
        _, vjp = jax.vjp(
            lambda params: parts.forward(params, state.stats, state.target, inputs, piece, key)[0],
            params,
        )
        return jax.tree.map(jnp.add, grads, vjp(pull)[0]), None

    grads, _ = lax.scan(backward, grads, (pieces, jax.tree.map(cut, pull)))
    return (value, (aux, stats, target_stats)), grads
