"""Support-set bottlenecks (Patrick et al. 2021, OpenReview EqoXe2zmhrh): a clip and its sentence
agree, and the sentence must be written from other clips that fit it.

The ranking loss pushes all other clips away, those of the same meaning too. The captioning loss
holds against it: what a sentence is written from is a mixture of the other clips of the batch,
weighted by how well they agree with it. `queue_size` adds clips of earlier batches to those. The
queue is of the global batch, the same on every device.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax.core.method import Aux, Batch, Method, Run, State, Variables, from_loss
from cl_jax.core.network import applier, initial
from cl_jax.core.numerics import unit
from cl_jax.core.parallel import gather
from cl_jax.core.tokens import PAD
from cl_jax.encoders.transformer import Transformer, fold
from cl_jax.losses import image_text, video_text
from cl_jax.memory import queue as queues
from cl_jax.methods.clip import with_text
from cl_jax.views import View, fields

ROLES = ("frame", "time", "text", "decoder")
SUPPORTS = ("none", "identity", "hybrid", "cross")
IGNORE = -100


class Network(nn.Module):
    """Clips and sentences into one space, and a decoder of sentences from a vector of it.

    `__call__(inputs, train)` of inputs with "clip" [B, T, H, W, C], "tokens" [B, U], or both ->
    {"video_h", "video_z"} and {"text_h", "text_z"}; z [B, out_dim], unit.
    """

    frame: nn.Module
    time: nn.Module
    text: nn.Module
    decoder: Transformer
    out_dim: int

    def setup(self) -> None:
        self.video_projection = nn.Dense(self.out_dim, use_bias=False)
        self.text_projection = nn.Dense(self.out_dim, use_bias=False)
        self.memory_projection = nn.Dense(self.decoder.width)

    def __call__(self, inputs: Mapping[str, Any], train: bool) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}
        if "clip" in inputs:
            clip = inputs["clip"]
            flat = self.frame(clip.reshape(-1, *clip.shape[2:]), train=train)["h"]
            h = self.time(flat.reshape(*clip.shape[:2], -1), train=train)["h"]
            found |= {"video_h": h, "video_z": unit(self.video_projection(h))}
        if "tokens" in inputs:
            h = self.text(inputs["tokens"], train=train, keys=inputs.get("keys"))["h"]
            found |= {"text_h": h, "text_z": unit(self.text_projection(h))}
        if self.is_initializing():
            self.write(inputs["tokens"], found["video_z"], False, None)
        return found

    def write(
        self, tokens: jax.Array, vectors: jax.Array, train: bool, keys: jax.Array | None
    ) -> jax.Array:
        """[B, U - 1, vocabulary] logits of each token after the first, from those before it and a
        vector [B, out_dim]."""
        memory = self.memory_projection(vectors)[:, None]
        states = self.decoder(tokens[:, :-1], train=train, keys=keys, memory=memory)["tokens"]
        return self.decoder.attend(states)


def make(
    *,
    encoder: Mapping[str, nn.Module],
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    support: str = "cross",
    ranking: str = "hardest",
    margin: float = 0.2,
    caption_weight: float = 10.0,
    temperature: float = 0.1,
    ranking_temperature: float = 0.05,
    sum_epochs: float = 0.0,
    queue_size: int = 0,
    out_dim: int = 256,
    block_size: int | None = None,
) -> Method:
    """Retrieval of clips by sentences with a support set.

    encoder: {"frame": of pictures, "time": of sequences of their features, "text": of tokens,
      "decoder": a transformer with causal=True and cross=True}.
    views: one of clips and one of tokens, in this order.
    support: what a sentence is written from: "cross", the other clips of the global batch (the
      paper's); "hybrid", all of them; "identity", its own clip alone; "none", no captioning. Clips
      of one film (the field "video", where there is one) count as its own.
    ranking: "hardest" or "sum" over the negatives of the margin loss, or "info_nce", the softmax in
      both directions at `ranking_temperature`.
    sum_epochs: over so many epochs at the start "hardest" is "sum": from random weights the hardest
      negative alone leaves all similarities equal.
    queue_size: how many of the latest clips before this batch a sentence may be written from too
      ("cross", "hybrid"); 0 for the batch alone. An older embedding of the own clip, or of one of
      the same film, is left out with "cross". The ranking loss is of the batch alone.
    margin: of the ranking loss. caption_weight: of captioning. temperature: of the attention.
    out_dim: width of the common space. block_size: see `losses.video_text.ranking_loss`.

    Gradient flows through the attention to both encoders, not into the queue. The function "score"
    gives the mean log likelihood [B] of each clip's sentence, written from the clip itself.

    Raises:
      ValueError: other encoders than the four, a decoder that does not write, other views than one
        of clips and one of tokens, an unknown support or ranking, a batch of one with the support
        "cross", `sum_epochs` below 0 or of another ranking than "hardest", a queue longer than the
        data set or with a support that doesn't read it.
    """
    if not isinstance(encoder, Mapping) or set(encoder) != set(ROLES):
        raise ValueError(
            f"config.encoder must have the sections {', '.join(ROLES)}; it has "
            f"{', '.join(encoder) if isinstance(encoder, Mapping) else 'a single network'}."
        )
    decoder = encoder["decoder"]
    if not (isinstance(decoder, Transformer) and decoder.causal and decoder.cross):
        raise ValueError(
            "the decoder must be a transformer that writes: name='transformer', causal=True, "
            "cross=True."
        )
    if len(views) != 2:
        raise ValueError(
            f"a view of clips and one of tokens are needed; the config has {len(views)} views."
        )
    if support not in SUPPORTS:
        raise ValueError(f"support={support!r}; expected one of {', '.join(SUPPORTS)}.")
    if ranking not in ("hardest", "sum", "info_nce"):
        raise ValueError(f"ranking={ranking!r}; expected hardest, sum or info_nce.")
    if support == "cross" and run.batch_size < 2:
        raise ValueError("support='cross' needs other clips: set batch_size to 2 or more.")
    if sum_epochs < 0 or (sum_epochs and ranking != "hardest"):
        raise ValueError(
            f"sum_epochs={sum_epochs} with ranking={ranking!r}; expected 0 or more epochs, and "
            "ranking='hardest', which takes over after them."
        )
    _check_queue(queue_size, support, run)
    network = Network(encoder["frame"], encoder["time"], encoder["text"], decoder, out_dim=out_dim)
    apply = applier(network)
    levels = {
        "hardest": 2 * margin,
        "sum": 2 * margin * (run.batch_size - 1),
        "info_nce": math.log(run.batch_size),
    }
    hinge = functools.partial(
        video_text.ranking_loss,
        margin=margin,
        normalise=False,
        axis_name=run.axis_name,
        block_size=block_size,
    )
    clean, drawn = with_text("clip", views)
    start = initial(network, clean)

    def variables(key: jax.Array, batch: Batch) -> Variables:
        found = start(key, batch)
        if not queue_size:
            return found
        rows = {
            "video_z": jax.ShapeDtypeStruct((1, out_dim), jnp.float32),
            "id": jax.ShapeDtypeStruct((1,), jnp.int32),
            "video": jax.ShapeDtypeStruct((1,), jnp.int32),
        }
        queue_key = jax.random.fold_in(key, 1)
        return found._replace(memory=queues.init_like(queue_key, queue_size, rows))

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        outputs, stats = apply(params, stats, inputs[0], True)
        z = {name: outputs[name] for name in ("video_z", "text_z")}
        # The support set looks across examples, so that the decoder runs in the loss.
        return z | {"inputs": inputs[0]}, stats, None

    def write(params: Any, tokens: jax.Array, vectors: jax.Array, keys: Any) -> jax.Array:
        logits = network.apply(
            {"params": params}, tokens, vectors, keys is not None, keys, method=Network.write
        )
        return jnp.asarray(logits)

    def prepare(state: State, batch: Batch, key: jax.Array) -> Batch:
        return batch | {"summed": state.step < sum_epochs * run.steps_per_epoch}

    def ranked(t: jax.Array, v: jax.Array, batch: Batch) -> jax.Array:
        if ranking == "info_nce":
            return image_text.clip(
                v,
                t,
                logit_scale=jnp.float32(1 / ranking_temperature),
                max_scale=None,
                normalise=False,
                axis_name=run.axis_name,
                block_size=block_size,
            )
        value = hinge(t, v, batch.get("video"), reduction=ranking)
        if not sum_epochs:
            return value
        summed = hinge(t, v, batch.get("video"), reduction="sum")
        return jnp.where(batch["summed"], summed, value)

    def objective(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        t, v, video = outputs["text_z"], outputs["video_z"], batch.get("video")
        value = ranked(t, v, batch)
        chance = jnp.float32(levels[ranking])
        if sum_epochs:
            chance = jnp.where(batch["summed"], jnp.float32(levels["sum"]), chance)
        metrics = {"ranking": value, "similarity": jnp.mean(jnp.sum(t * v, axis=-1))}
        if queue_size:
            metrics["queue_filled"] = memory.filled / queue_size
        if support != "none":
            found = video_text.support_set(
                t,
                v,
                video,
                *_earlier(memory, batch, support),
                temperature=temperature,
                support=support,
                normalise=False,
                axis_name=run.axis_name,
            )
            tokens = outputs["inputs"]["tokens"]
            logits = write(params, tokens, found.vectors, fold(outputs["inputs"]["keys"], 7))
            caption = video_text.caption_loss(logits, _labels(tokens), axis_name=run.axis_name)
            metrics |= {"caption": caption, "attention_entropy": found.entropy.mean()}
            value = value + caption_weight * caption
            chance = chance + caption_weight * math.log(logits.shape[-1])
        if queue_size:
            rows = {"video_z": v.astype(jnp.float32)} | _numbers(batch)
            every = jax.tree.map(lambda x: gather(x, run.axis_name), rows)
            memory = queues.enqueue(memory, every)
        return value, Aux(metrics | {"chance": chance}, memory)

    def features(
        params: Any, stats: Any, inputs: Any, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        named, stats = apply(params, stats, inputs, train)
        return named | ({"h": named["video_h"]} if "video_h" in named else {}), stats

    def score(state: State, batch: Batch) -> jax.Array:
        inputs = clean(batch)
        named, _ = features(state.params, state.stats, inputs, False)
        logits = write(state.params, inputs["tokens"], named["video_z"], None)
        return -video_text.caption_rows(logits, _labels(inputs["tokens"]))

    needed = fields(views)
    return from_loss(
        variables=variables,
        views=drawn,
        forward=forward,
        loss=objective,
        tx=tx,
        features=features,
        clean=clean,
        axis_name=run.axis_name,
        needs=needed["needs"],
        wants=(*needed["wants"], "video"),
        prepare=prepare if sum_epochs else None,
        functions={"score": score},
        negatives=run.batch_size - 1,
    )


def _check_queue(queue_size: int, support: str, run: Run) -> None:
    if queue_size and support not in ("cross", "hybrid"):
        raise ValueError(
            f"queue_size={queue_size} with support={support!r}, which reads no other clips; "
            "expected support='cross' or 'hybrid', or queue_size=0."
        )
    if queue_size > run.size:
        raise ValueError(
            f"queue_size={queue_size} is more than the {run.size} training examples: it would hold "
            f"several embeddings of one clip. Use at most {run.size}."
        )


def _numbers(batch: Batch) -> dict[str, jax.Array]:
    """[B] of each clip: the number of its example, and that of its film, -1 where there is none."""
    ids = batch["id"].astype(jnp.int32)
    film = batch["video"].astype(jnp.int32) if "video" in batch else jnp.full_like(ids, -1)
    return {"id": ids, "video": film}


def _earlier(
    memory: queues.Queue | None, batch: Batch, support: str
) -> tuple[jax.Array | None, jax.Array | None]:
    """([K, D] clips of earlier batches, [B, K] which of them each sentence may be written from)."""
    if memory is None:
        return None, None
    kept, own = memory.rows, {name: x[:, None] for name, x in _numbers(batch).items()}
    film = (own["video"] == kept["video"][None, :]) & (own["video"] >= 0)
    same = (own["id"] == kept["id"][None, :]) | film
    allowed = jnp.ones_like(same) if support == "hybrid" else ~same
    return kept["video_z"], allowed & queues.valid(memory)[None, :]


def _labels(tokens: jax.Array) -> jax.Array:
    """[B, U - 1] what a decoder is to write after each token; -100 at padding."""
    after = tokens[:, 1:].astype(jnp.int32)
    return jnp.where(after == PAD, IGNORE, after)
