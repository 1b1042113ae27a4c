"""MiCE (Tsai et al. 2021, arXiv 2105.01899): a gate divides the images among experts, and each
expert tells instances apart in an embedding of its own, around a prototype of its own. An image's
cluster is the expert that is most probable given the image and its positive.

E-step: the exact posterior of each batch. M-step: one step of the optimiser on the bound, which is
tight, and once an epoch the prototypes in closed form, from the teacher's embeddings of the images
that each expert won. The gate's prototypes are a fixed simplex, the only thing that tells experts
apart at the start."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cl_jax.core.ema import ema_of_params
from cl_jax.core.keys import batch_key
from cl_jax.core.method import Aux, Batch, Method, Run, State, Variables, from_loss
from cl_jax.core.network import applier, check_no_drop_path
from cl_jax.core.numerics import dots, unit
from cl_jax.core.parallel import gather, mean
from cl_jax.encoders.shuffle import shuffle_batch, unshuffle_batch
from cl_jax.losses import clusters
from cl_jax.memory import queue as queues
from cl_jax.views import View, keywords


class Memory(NamedTuple):
    """queue: [K, E, D] the teacher's past embeddings. sums: [E, D] of its embeddings of this epoch,
    each added to the expert that won the image."""

    queue: queues.Queue
    sums: jax.Array


class Experts(nn.Module):
    """An encoder with a linear head for each expert and one for the gate: ({"experts": [B, E, D],
    "gate": [B, D]}, {"h": ...})."""

    encoder: nn.Module
    num_experts: int
    out_dim: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[dict[str, jax.Array], Any]:
        check_no_drop_path(self.encoder)
        named = self.encoder(images, train=train)
        h = jnp.float32(named["h"])
        heads = nn.Dense(self.num_experts * self.out_dim, name="experts")(h)
        found = {
            "experts": heads.reshape(h.shape[0], self.num_experts, self.out_dim),
            "gate": nn.Dense(self.out_dim, name="gate")(h),
        }
        return found, named


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    num_experts: int = 0,
    label: str = "label",
    temperature: float = 1.0,
    gate_temperature: float | None = None,
    momentum: float = 0.999,
    queue_size: int = 16384,
    out_dim: int = 128,
    shuffle: bool = True,
    closed_form: bool = True,
    block_size: int | None = None,
) -> Method:
    """MiCE, of three views: the student's, the teacher's and the gate's.

    num_experts: clusters; 0 for as many as `label` has classes. Labels are not read.
    temperature, gate_temperature: see `losses.clusters.mice`.
    momentum: of the teacher, which moves after the optimiser. queue_size: its past embeddings, all
      experts' of an image in one slot.
    shuffle: the teacher's images pass it in another order, so that batch norm does not give the
      pair away.
    closed_form: before each epoch but the first the experts' prototypes become the mean of the
      teacher's embeddings of the images that they won in the epoch before; an expert that won none
      gets the zero row, which adds nothing. False leaves them to the optimiser.

    Features are "h", "gate" [B, E], the gate's probabilities, and "posterior" [B, E], those given
    the image as its own positive against the queue as it is; their largest columns are clusters.
    The metric "largest_expert" is the share of the batch that the busiest expert wins: 1 / E where
    clusters are even, 1 where all images are in one.

    Raises:
      ValueError: another number of views than three, a queue longer than the data set, a number of
        experts that does not fit labels or width.
    """
    if len(views) != 3:
        raise ValueError(
            "MiCE has a view for the student, one for the teacher and one for the gate; the config "
            f"has {len(views)}. Use copies=3."
        )
    if queue_size > run.size:
        raise ValueError(
            f"queue_size={queue_size} is more than the {run.size} training examples: an image "
            f"would have older embeddings of itself as negatives. Use at most {run.size}."
        )
    count = num_experts or run.sizes.get(label, 0)
    if count < 2 or out_dim < count - 1:
        raise ValueError(
            f"there are {count} experts (num_experts={num_experts}, label={label!r}) of "
            f"out_dim={out_dim}; expected at least 2, and out_dim of at least their number less 1."
        )
    apply = applier(Experts(encoder, count, out_dim))
    gates = clusters.simplex(count, out_dim)
    kappa = temperature if gate_temperature is None else gate_temperature

    def variables(key: jax.Array, batch: Batch) -> Variables:
        network_key, queue_key, expert_key = jax.random.split(key, 3)
        found = Experts(encoder, count, out_dim).init(network_key, views[0].clean(batch), True)
        network, stats = found["params"], found.get("batch_stats", {})
        return Variables(
            {
                "network": network,
                "prototypes": unit(jax.random.normal(expert_key, (count, out_dim))),
            },
            stats,
            (network, stats),
            Memory(
                queues.init(queue_key, queue_size, (count, out_dim), start="uniform"),
                jnp.zeros((count, out_dim)),
            ),
        )

    def taught(target: Any, images: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        order = None
        if shuffle:
            images, order = shuffle_batch(key, images, run.axis_name)
        (found, _), stats = lax.stop_gradient(apply(target.params, target.stats, images, True))
        v = unit(found["experts"])
        return (v if order is None else unshuffle_batch(v, order, run.axis_name)), stats

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        student, teacher, gate = inputs
        (of_student, _), stats = apply(params["network"], stats, student, True)
        v, target_stats = taught(target, teacher, batch_key(key, 0))
        (of_gate, _), stats = apply(params["network"], stats, gate, True)
        outputs = {"f": unit(of_student["experts"]), "v": v, "g": unit(of_gate["gate"])}
        return outputs, stats, target_stats

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        terms = clusters.mice_terms(
            outputs["f"],
            outputs["v"],
            outputs["g"],
            memory.queue.rows,
            gates,
            params["prototypes"],
            temperature=temperature,
            gate_temperature=gate_temperature,
            block_size=block_size,
        )
        value = clusters.mice_of_terms(terms, axis_name=run.axis_name)
        posterior, v = (
            gather(x, run.axis_name) for x in lax.stop_gradient((terms.posterior, outputs["v"]))
        )
        sums, winner = clusters.expert_sums(posterior, v)
        won = jnp.bincount(winner, length=count) / winner.shape[0]
        entropy = -jnp.sum(terms.posterior * jnp.log(terms.posterior + 1e-12), axis=1)
        metrics = {
            "largest_expert": jnp.max(won),
            "posterior_entropy": mean(jnp.mean(entropy), run.axis_name),
            "chance": jnp.float32(math.log(1 + queue_size)),
            "queue_filled": memory.queue.filled / queue_size,
        }
        return value, Aux(metrics, Memory(queues.enqueue(memory.queue, v), memory.sums + sums))

    def refresh(state: State, encode_all: Callable[..., Any], epoch: int) -> State:
        if not closed_form or epoch == 0:
            return state
        params = {**state.params, "prototypes": clusters.expert_prototypes(state.memory.sums)}
        memory = state.memory._replace(sums=jnp.zeros_like(state.memory.sums))
        return dataclasses.replace(state, params=params, memory=memory)

    def features(
        params: Any, stats: Any, images: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        (found, named), stats = apply(params["network"], stats, images, train)
        logits = dots("bd,ed->be", unit(found["gate"]), gates) / kappa
        return named | {"gate": jax.nn.softmax(logits, axis=1), "z": unit(found["gate"])}, stats

    def encode(state: State, batch: Batch) -> dict[str, jax.Array]:
        images = views[0].clean(batch)
        (found, named), _ = apply(state.params["network"], state.stats, images, False)
        (teacher, _), _ = apply(state.target.params, state.target.stats, images, False)
        terms = clusters.mice_terms(
            found["experts"],
            teacher["experts"],
            found["gate"],
            state.memory.queue.rows,
            gates,
            state.params["prototypes"],
            temperature=temperature,
            gate_temperature=gate_temperature,
            block_size=block_size,
        )
        clustered = {"gate": jnp.exp(terms.log_gate), "posterior": terms.posterior}
        return named | clustered | {"z": unit(found["gate"])}

    return from_loss(
        variables=variables,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features,
        axis_name=run.axis_name,
        **keywords(views),
        functions={"encode": encode},
        ema=ema_of_params(momentum),
        tracked=lambda params: params["network"],
        refresh=refresh,
        negatives=queue_size,
    )
