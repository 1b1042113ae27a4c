"""CMC on film (Tian et al. 2020, arXiv 1906.05849, section 4.2): a frame, a frame near it and the
optical flow around it are views of one moment.

The frame's network agrees with itself on frames near each other and with the flow's network on what
moves: the ventral and the dorsal stream."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax.core.clocks import PerVisit
from cl_jax.core.keys import batch_key
from cl_jax.core.method import Aux, Batch, Method, Run, State, Variables, from_loss
from cl_jax.core.network import Network, applier
from cl_jax.core.numerics import unit
from cl_jax.core.parallel import gather
from cl_jax.core.sharded import whole
from cl_jax.heads import mlp
from cl_jax.losses import image_text, nce
from cl_jax.memory import bank
from cl_jax.views import draw, fields
from cl_jax.views.streams import StreamsView

ROLES = ("frame", "flow")
EDGES = ("neighbour", "flow")  # what a frame is contrasted with


def make(
    *,
    encoder: Mapping[str, nn.Module],
    tx: optax.GradientTransformation,
    views: Sequence[StreamsView],
    run: Run,
    negatives: str = "batch",
    edges: Sequence[str] = EDGES,
    temperature: float = 0.07,
    num_negatives: int = 4096,
    momentum: PerVisit = 0.5,
    head: str = "linear",
    out_dim: int = 128,
    block_size: int | None = None,
) -> Method:
    """CMC's two streams.

    encoder: {"frame": of frames, "flow": of stacks of flows}.
    views: one of kind "streams".
    negatives: "batch", the other clips of the global batch, or "bank", rows drawn with replacement
      from a bank for each network, as the authors' code for images has it.
    edges: what the frame is contrasted with: "neighbour", "flow" or both, whose losses are added,
      each of both directions.
    temperature: of the softmax. num_negatives, momentum: of the banks. head: "linear", or "moco_v2"
      for the multi-layer one. block_size: see `losses.image_text.clip` and `nce.bank_logits`.

    "h" is both networks' features of the middle of a clip side by side, "frame" and "flow" are
    those of each. Without the edge "flow" its network is not trained: there is no feature "flow",
    and "h" is "frame". The function "frames" gives the frame's features [B, T, D] of every frame.

    Raises:
      ValueError: other encoders than `frame` and `flow`, another view than one of kind `streams`,
        unknown negatives or edges.
    """
    if not isinstance(encoder, Mapping) or set(encoder) != set(ROLES):
        raise ValueError(
            "config.encoder must have the sections frame and flow, an encoder of frames and one of "
            "flows, for instance frame=dict(name='resnet'), flow=dict(name='resnet')."
        )
    if len(views) != 1 or not isinstance(views[0], StreamsView):
        raise ValueError(
            f"CMC on film needs one view of kind='streams'; the config has {len(views)} views of "
            f"{', '.join(type(view).__name__ for view in views) or 'no kind'}."
        )
    if negatives not in ("batch", "bank"):
        raise ValueError(f"negatives={negatives!r}; expected 'batch' or 'bank'.")
    if not edges or not set(edges) <= set(EDGES):
        raise ValueError(f"edges={list(edges)}; expected one or both of {', '.join(EDGES)}.")
    view = views[0]
    networks = {
        role: Network(
            encoder[role],
            mlp.make(
                variant=head, out_dim=out_dim, dtype=encoder[role].dtype, axis_name=run.axis_name
            ),
        )
        for role in ROLES
    }
    applies = {role: applier(network) for role, network in networks.items()}
    # The network of each view; neighbours are frames.
    of = {"frame": "frame", "neighbour": "frame", "flow": "flow"}
    used = ("frame", *edges)
    trained = [role for role in ROLES if role in {of[name] for name in used}]

    def variables(key: jax.Array, batch: Batch) -> Variables:
        inputs, params, stats, banks = view.clean(batch), {}, {}, {}
        for number, role in enumerate(ROLES):
            network_key, bank_key = jax.random.split(jax.random.fold_in(key, number))
            start = networks[role].init(network_key, inputs[role], True)
            params[role], stats[role] = start["params"], start.get("batch_stats", {})
            banks[role] = whole(bank.init(bank_key, run.size, out_dim))
        return Variables(params, stats, memory=banks if negatives == "bank" else None)

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        (streams,), z, stats = inputs, {}, dict(stats)
        for name in used:
            role = of[name]
            (out, _), stats[role] = applies[role](params[role], stats[role], streams[name], True)
            z[name] = unit(out)
        return z, stats, None

    def edge(z: Any, name: str, memory: Any, indices: Any) -> jax.Array:
        if negatives == "batch":
            # The mean of both directions there, their sum here.
            return 2 * image_text.clip(
                z["frame"],
                z[name],
                logit_scale=jnp.float32(1 / temperature),
                max_scale=None,
                normalise=False,
                axis_name=run.axis_name,
                block_size=block_size,
            )
        return nce.cross_bank_softmax(
            z["frame"],
            z[name],
            memory["frame"],
            memory[of[name]],
            indices,
            temperature=temperature,
            normalise=False,
            axis_name=run.axis_name,
            block_size=block_size,
        )

    def objective(
        z: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        ids = batch["id"]
        indices = (
            nce.draw_indices(batch_key(key), ids, run.size, num_negatives)
            if negatives == "bank"
            else None
        )
        terms = {name: edge(z, name, memory, indices) for name in edges}
        metrics = {f"loss_{name}": value for name, value in terms.items()}
        metrics |= {
            f"similarity_{name}": jnp.mean(jnp.sum(z["frame"] * z[name], axis=-1)) for name in edges
        }
        candidates = run.batch_size if negatives == "batch" else 1 + num_negatives
        metrics["chance"] = jnp.float32(2 * len(edges) * math.log(candidates))
        if negatives == "bank":
            everyone = gather(ids, run.axis_name)
            fresh = {of[name]: z[name] for name in reversed(used)}  # the frame, not its neighbour
            memory = memory | {
                role: bank.update(
                    memory[role],
                    gather(rows, run.axis_name),
                    everyone,
                    momentum=momentum,
                    axis_name=run.axis_name,
                )
                for role, rows in fresh.items()
            }
        return sum(list(terms.values())[1:], next(iter(terms.values()))), Aux(metrics, memory)

    def features(
        params: Any, stats: Any, inputs: Any, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        named, rows, stats = {}, [], dict(stats)
        for role in trained:
            (z, found), stats[role] = applies[role](params[role], stats[role], inputs[role], train)
            named[role] = found["h"]
            rows.append(unit(z))
        h = jnp.concatenate(list(named.values()), axis=-1)
        return {"h": h, **named, "z": jnp.concatenate(rows, axis=-1)}, stats

    def of_frames(state: State, batch: Batch) -> jax.Array:
        frames = view.frames(batch)
        flat = frames.reshape(-1, *frames.shape[2:])
        (_, named), _ = applies["frame"](state.params["frame"], state.stats["frame"], flat, False)
        return named["h"].reshape(*frames.shape[:2], -1)

    return from_loss(
        variables=variables,
        views=lambda batch, key: draw(views, batch, key),
        forward=forward,
        loss=objective,
        tx=tx,
        features=features,
        clean=view.clean,
        axis_name=run.axis_name,
        **fields(views),
        functions={"frames": of_frames},
        negatives=run.batch_size - 1 if negatives == "batch" else num_negatives,
    )
