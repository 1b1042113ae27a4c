"""CALM (Zhou et al. 2021, arXiv 2011.07956): a text-to-text network learns from concepts.

Three tasks are made of a sentence: write it from its nouns and verbs, restore the order of these,
and say which of two sentences is the true one. A second stage trains the network jointly as a
generator, which restores sentences, and as a discriminator, which tells them from what the
generator writes.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cl_jax.core.axis import mean
from cl_jax.core.keys import example_keys, view_keys
from cl_jax.core.method import Aux, Batch, Method, Run, State, Variables, from_loss
from cl_jax.core.tokens import END, MASK, PAD, START
from cl_jax.encoders.encoder_decoder import SENTINELS
from cl_jax.losses import calm as losses
from cl_jax.views import View, draw, fields

TASKS = ("concepts", "order", "question")
DISTRACTORS = ("order", "concepts", "both")


class Task(NamedTuple):
    """source: [B, S] what the encoder reads. labels: [B, T] what the decoder is to write, -100
    where nothing. keys: [B] for dropout, or None."""

    source: jax.Array
    labels: jax.Array
    keys: jax.Array | None


def joined(*pieces: int | jax.Array) -> jax.Array:
    """[B, S] the pieces in a row, padding at the end. A piece is a token number, or rows of tokens
    [B, T] without their start, end and padding; one END follows the last."""
    rows = next(len(piece) for piece in pieces if not isinstance(piece, int))
    parts = []
    for piece in (*pieces, END):
        if isinstance(piece, int):
            parts.append(jnp.full((rows, 1), piece, jnp.int32))
        else:
            token = piece.astype(jnp.int32)
            parts.append(jnp.where((token == START) | (token == END), PAD, token))
    together = jnp.concatenate(parts, axis=1)
    order = jnp.argsort(together == PAD, axis=1, stable=True)
    return jnp.take_along_axis(together, order, axis=1)


def labels_of(tokens: jax.Array) -> jax.Array:
    """[B, T] what a decoder is to write of sentences [B, T]: pieces and their end, then -100."""
    row = jnp.pad(tokens[:, 1:].astype(jnp.int32), ((0, 0), (0, 1)))
    return jnp.where(row == PAD, losses.IGNORE, row)


class Prompts(NamedTuple):
    """The sentinels that say what a task is, and before which option of a question it stands."""

    concepts: int
    order: int
    question: int
    first: int
    second: int

    def asked(
        self, true: jax.Array, false: jax.Array, first: jax.Array, keys: jax.Array | None
    ) -> Task:
        """Which of two sentences is true? first: [B], whether the true one is."""
        true, false = true.astype(jnp.int32), false.astype(jnp.int32)
        a = jnp.where(first[:, None], true, false)
        b = jnp.where(first[:, None], false, true)
        source = joined(self.question, self.first, a, self.second, b)
        return Task(source, labels_of(true), keys)

    def tasks(self, sentence: Any, concepts: Any, moved: Any, first: jax.Array) -> dict[str, Task]:
        """Each of TASKS, of the three views of a batch; `first` is of the question."""
        labels = labels_of(sentence["tokens"])
        return {
            "concepts": Task(
                joined(self.concepts, concepts["tokens"]), labels, concepts.get("keys")
            ),
            "order": Task(joined(self.order, moved["tokens"]), labels, moved.get("keys")),
            "question": self.asked(
                sentence["tokens"], moved["tokens"], first, sentence.get("keys")
            ),
        }


def coin(keys: jax.Array, number: int) -> jax.Array:
    """[B] booleans, one for each key; those of another number are other ones."""
    return jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, number)))(keys)


def written(
    encoder: nn.Module,
    params: Any,
    source: jax.Array,
    length: int,
    keys: jax.Array | None = None,
    temperature: float = 1.0,
) -> jax.Array:
    """[B, length] START and the tokens that the network writes of a source [B, S]: the likeliest
    ones, or drawn at `temperature` by keys [B]."""
    vocab: int = encoder.vocab_size
    memory = encoder.apply({"params": params}, source, train=False, method="encode")
    known = source != PAD

    def step(t: jax.Array, row: jax.Array) -> jax.Array:
        inputs = jnp.where(row == START, PAD, row)
        scores = encoder.apply(
            {"params": params}, inputs, memory, known, train=False, at=t - 1, method="decode"
        )
        # Nothing but pieces of text and the end can be written.
        token = jnp.arange(vocab)
        possible = (token == END) | ((token > MASK) & (token < vocab - SENTINELS))
        scores = jnp.where(possible[None], jnp.asarray(scores)[:, 0], -jnp.inf)
        if keys is None:
            new = jnp.argmax(scores, axis=-1)
        else:
            each = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
            new = jax.vmap(jax.random.categorical)(each, scores / temperature)
        before = row[:, t - 1]
        ended = (before == END) | (before == PAD)
        return row.at[:, t].set(jnp.where(ended, PAD, new.astype(jnp.int32)))

    empty = jnp.zeros((source.shape[0], length), jnp.int32).at[:, 0].set(START)
    row = lax.fori_loop(1, length, step, empty)
    # A sentence without an end is cut as those of the data are.
    whole = (row[:, -1] == PAD) | (row[:, -1] == END)
    return row.at[:, -1].set(jnp.where(whole, row[:, -1], END))


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    tasks: Sequence[str] = TASKS,
    joint: bool = False,
    weight_gen: float = 1.0,
    weight_dis: float = 1.0,
    distractors: str = "order",
    temperature: float = 1.0,
) -> Method:
    """CALM.

    encoder: an `encoders.encoder_decoder`.
    views: three of tokens: the sentence, its concepts, the sentence with concepts shuffled.
    tasks: what the first stage trains, any of "concepts" (the sentence from its concepts), "order"
      and "question"; "concepts" alone is fine-tuning on concept-to-sentence data.
    joint: the second stage, in which `tasks` says nothing.
    weight_gen, weight_dis: of the second stage's two parts; 1 and 1 in the authors' code.
    distractors: what the second stage's generator writes them from: "order", the shuffled sentence,
      as the authors' code; "concepts"; or "both", one of them for each example, as the paper.
    temperature: of the tokens that the generator draws.

    A stage after another (`run.previous`) starts from its parameters; the joint stage must be one.
    No gradient passes through what is generated. Functions besides "encode" ("h", the mean state of
    the encoder): "generate", tokens [B, T] that are written from the concepts, and "reorder" from
    the shuffled sentence, each the likeliest next token at a time; "score" [B], nats a token of the
    sentence given its concepts; "answer" {"true", "false"}: [B] log-likelihoods of the sentence and
    of its shuffled form as the answer to which of them is true, the true one first where the
    example's number is even.

    Raises:
      ValueError: another number of views than three, no or unknown tasks, unknown distractors, a
        temperature or weight out of range, joint training without a stage before.
    """
    if len(views) != 3:
        raise ValueError(
            "CALM reads three views, the sentence, its concepts and the shuffled sentence; the "
            f"config has {len(views)}."
        )
    if distractors not in DISTRACTORS:
        raise ValueError(f"distractors={distractors!r}; expected {', '.join(DISTRACTORS)}.")
    if not temperature > 0 or min(weight_gen, weight_dis) < 0:
        raise ValueError(
            f"temperature={temperature}, weight_gen={weight_gen}, weight_dis={weight_dis}; "
            "expected a temperature above 0 and weights of at least 0."
        )
    if joint and run.previous is None:
        raise ValueError(
            "joint training starts from the mixed stage: set config.previous to its workdir, or "
            "run --stage=all."
        )
    if not tasks or not set(tasks) <= set(TASKS):
        raise ValueError(f"tasks={list(tasks)}; expected one or more of {', '.join(TASKS)}.")
    names = ("order", "question") if joint else tuple(tasks)
    vocab: int = encoder.vocab_size
    prompts = Prompts(*range(vocab - SENTINELS, vocab - SENTINELS + len(Prompts._fields)))

    def variables(key: jax.Array, batch: Batch) -> Variables:
        if run.previous is not None:
            return Variables(run.previous.state.params, {})
        task = prompts.tasks(*clean(batch), batch["id"] % 2 == 0)["order"]
        inputs = losses.shift_right(task.labels, pad_id=PAD)
        return Variables(encoder.init(key, task.source, inputs, train=True)["params"], {})

    def logits(params: Any, task: Task, train: bool) -> jax.Array:
        inputs = losses.shift_right(task.labels, pad_id=PAD)
        found = encoder.apply({"params": params}, task.source, inputs, train=train, keys=task.keys)
        return jnp.asarray(found)

    def clean(batch: Batch) -> tuple[Any, Any, Any]:
        sentence, concepts, moved = (view.clean(batch) for view in views)
        return sentence, concepts, moved

    def drawn(batch: Batch, key: jax.Array) -> list[Task]:
        sentence, concepts, moved = draw(views, batch, key)
        first = coin(sentence["keys"], 3)
        found = prompts.tasks(sentence, concepts, moved, first)
        if not joint:
            return [found[name] for name in names]
        # Where views are drawn outside a step there is nothing generated.
        distractor = batch.get("distractor", moved["tokens"])
        asked = prompts.asked(sentence["tokens"], distractor, first, sentence["keys"])
        same = (labels_of(distractor) == asked.labels).all(axis=1)
        dropped = jnp.where(same[:, None], losses.IGNORE, asked.labels)
        return [found["order"], asked._replace(labels=dropped)]

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        outputs = {
            name: {"logits": logits(params, task, True), "labels": task.labels}
            for name, task in zip(names, inputs, strict=True)
        }
        return outputs, stats, None

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        axis = run.axis_name
        metrics = {
            name: losses.token_cross_entropy(one["logits"], one["labels"], axis_name=axis)
            for name, one in outputs.items()
        }
        if joint:
            value = losses.calm(
                outputs["order"]["logits"],
                outputs["order"]["labels"],
                outputs["question"]["logits"],
                outputs["question"]["labels"],
                weight_gen=weight_gen,
                weight_dis=weight_dis,
                axis_name=axis,
            )
            known = jnp.float32(losses.token_counts(outputs["question"]["labels"]) > 0)
            metrics["distractors_that_differ"] = mean(known.mean(), axis)
            metrics["chance"] = jnp.float32((weight_gen + weight_dis) * math.log(vocab))
            return value, Aux(metrics)
        every, labels = (
            jnp.concatenate([one[name] for one in outputs.values()], axis=1)
            for name in ("logits", "labels")
        )
        metrics["chance"] = jnp.float32(math.log(vocab))
        return losses.token_cross_entropy(every, labels, axis_name=axis), Aux(metrics)

    def generated(state: State, batch: Batch, key: jax.Array) -> Batch:
        sentence, concepts, moved = clean(batch)
        keys = view_keys(example_keys(key, batch["id"]), len(views))
        sources = {
            "order": joined(prompts.order, moved["tokens"]),
            "concepts": joined(prompts.concepts, concepts["tokens"]),
        }
        if distractors == "both":
            longest = max(source.shape[1] for source in sources.values())
            order, from_concepts = (
                jnp.pad(source, ((0, 0), (0, longest - source.shape[1])))
                for source in sources.values()
            )
            source = jnp.where(coin(keys, 4)[:, None], order, from_concepts)
        else:
            source = sources[distractors]
        length = sentence["tokens"].shape[1]
        return batch | {
            "distractor": written(encoder, state.params, source, length, keys, temperature)
        }

    # What evaluators ask --------------------------------------

    def features(
        params: Any, stats: Any, inputs: Any, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        tokens = inputs["tokens"].astype(jnp.int32)
        states = encoder.apply(
            {"params": params}, tokens, train=train, keys=inputs.get("keys"), method="encode"
        )
        real = (tokens != PAD)[:, :, None]
        states = jnp.where(real, jnp.float32(jnp.asarray(states)), 0)
        return {"h": states.sum(1) / jnp.maximum(real.sum(1), 1)}, stats

    def known_tasks(batch: Batch) -> dict[str, Task]:
        return prompts.tasks(*clean(batch), batch["id"] % 2 == 0)

    def writes(task: str) -> Any:
        def function(state: State, batch: Batch) -> jax.Array:
            one = known_tasks(batch)[task]
            return written(encoder, state.params, one.source, one.labels.shape[1])

        return function

    def score(state: State, batch: Batch) -> jax.Array:
        task = known_tasks(batch)["concepts"]
        rows = losses.token_log_likelihood(logits(state.params, task, False), task.labels)
        return rows / jnp.maximum(losses.token_counts(task.labels), 1)

    def answer(state: State, batch: Batch) -> dict[str, jax.Array]:
        task = known_tasks(batch)["question"]
        moved = labels_of(views[2].clean(batch)["tokens"])
        return {
            name: losses.token_log_likelihood(logits(state.params, one, False), one.labels)
            for name, one in (("true", task), ("false", task._replace(labels=moved)))
        }

    return from_loss(
        variables=variables,
        views=drawn,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features,
        clean=views[0].clean,
        functions={
            "generate": writes("concepts"),
            "reorder": writes("order"),
            "score": score,
            "answer": answer,
        },
        axis_name=run.axis_name,
        prepare=generated if joint else None,
        **fields(views),
    )
