"""SimCSE (Gao et al. 2021, arXiv 2104.08821): a sentence agrees with its own second pass through
dropout, or with an entailment, and with no other sentence of the batch.

Two views make the unsupervised form where both are of "tokens", and the supervised one where the
second is of "tokens_b"; a third view is the hard negatives.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cl_jax.core.annotations import Movable
from cl_jax.core.axis import total
from cl_jax.core.errors import ConfigError, NotFoundError
from cl_jax.core.gelu import gelu
from cl_jax.core.keys import example_keys, view_keys
from cl_jax.core.method import Aux, Batch, Method, Run, State, Variables, from_loss
from cl_jax.encoders import bert_weights
from cl_jax.heads.pooling import SentenceHead
from cl_jax.losses import sentence
from cl_jax.losses.calm import token_counts, token_log_likelihood
from cl_jax.views import View, draw, fields
from cl_jax.views.tokens import mask_tokens


class SentenceNetwork(nn.Module):
    """A transformer with SimCSE's head and, for the auxiliary loss, BERT's head over tokens.

    `__call__(inputs, train)`: inputs have "tokens" [B, T] and perhaps "keys" [B] for dropout.
    Returns {"h": [B, D] pooled, "z": [B, D] after the head}.
    """

    encoder: nn.Module
    head: bool = True
    language: bool = False

    def setup(self) -> None:
        if self.head:
            self.sentence_head = SentenceHead(dtype=self.encoder.dtype)
        if self.language:
            width = self.encoder.width
            self.dense = nn.Dense(width, kernel_init=nn.initializers.normal(0.02))
            self.norm = nn.LayerNorm(epsilon=1e-12)
            self.bias = self.param("bias", nn.initializers.zeros, (self.encoder.vocab_size,))

    def __call__(self, inputs: Batch, train: bool) -> dict[str, jax.Array]:
        h = self.encoder(inputs["tokens"], train=train, keys=inputs.get("keys"))["h"]
        if self.language and self.is_initializing():
            self.token_logits(inputs["tokens"], None, train)
        return {"h": h, "z": self.sentence_head(h) if self.head else h}

    def token_logits(self, tokens: jax.Array, keys: jax.Array | None, train: bool) -> jax.Array:
        """[B, T, vocab] scores of the token at each place."""
        states = self.encoder(tokens, train=train, keys=keys)["tokens"]
        states = self.norm(gelu(self.dense(states)))
        logits = self.encoder.attend(states)
        return logits + jnp.broadcast_to(self.bias, logits.shape)


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    temperature: float = 0.05,
    hard_negative_weight: float = 0.0,
    head: bool = True,
    mlm_weight: float = 0.0,
    mlm_rate: float = 0.15,
    weights: Movable[str] = "",
    block_size: int | None = None,
    micro_batches: int = 1,
) -> Method:
    """SimCSE.

    views: two, or three with hard negatives; each is of tokens.
    temperature, hard_negative_weight, block_size: of `losses.sentence.simcse`; the weight is the
      logarithm of the paper's alpha.
    head: the loss reads "z", after a linear layer and tanh, else "h". Which of the two evaluation
      reads is `config.evals.feature`: the authors' "h" (cls_before_pooler) for the unsupervised
      form, whose head is for training only, and "z" for the supervised.
    mlm_weight: above 0, the cross-entropy of a masked language model over the first view's
      sentences is added with it (0.1 in the paper), by a further pass. mlm_rate: of masked tokens.
    weights: the folder of a BERT of Hugging Face (model.safetensors, vocab.txt) that the encoder
      starts from; "" for random weights. The heads are new, as in the authors' code.

    Raises:
      ValueError: another number of views than two or three, a negative weight.
    """
    if len(views) not in (2, 3):
        raise ValueError(
            f"SimCSE contrasts two views, or three with hard negatives; there are {len(views)}."
        )
    if mlm_weight < 0:
        raise ValueError(f"mlm_weight={mlm_weight}; expected 0 or more.")
    network = SentenceNetwork(encoder, head, mlm_weight > 0)
    apply: Any = network.apply
    count = len(views)
    negatives = run.batch_size * (count - 1) - 1

    def variables(key: jax.Array, batch: Batch) -> Variables:
        return Variables(network.init(key, views[0].clean(batch), True)["params"], {})

    def begin(state: State) -> State:
        try:
            loaded = bert_weights.load(weights, state.params["encoder"])
        except FileNotFoundError as error:
            raise NotFoundError(f"method.weights={weights!r}: {error}") from None
        except (ValueError, OSError) as error:
            raise ConfigError(f"method.weights={weights!r}: {error}") from None
        return dataclasses.replace(state, params=state.params | {"encoder": loaded})

    def drawn(batch: Batch, key: jax.Array) -> Any:
        inputs = draw(views, batch, key)
        if not mlm_weight:
            return inputs
        keys = view_keys(example_keys(key, batch["id"]), count)
        seen = inputs[0]["tokens"]
        return [
            *inputs,
            mask_tokens(keys, seen, vocab_size=encoder.vocab_size, rate=mlm_rate)._asdict(),
        ]

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        together = jax.tree.map(lambda *x: jnp.concatenate(x), *inputs[:count])
        z = apply({"params": params}, together, True)["z"]
        outputs = {"z": jnp.stack(jnp.split(z, count), axis=1)}
        if mlm_weight:
            masked = inputs[count]
            logits = apply(
                {"params": params}, masked["tokens"], masked["keys"], True, method="token_logits"
            )
            outputs["mlm"] = token_log_likelihood(logits, masked["labels"])
            outputs["mlm_count"] = token_counts(masked["labels"]).astype(jnp.float32)
        return outputs, stats, None

    def loss(
        outputs: Any, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        z = outputs["z"]
        value = sentence.simcse(
            z[:, 0],
            z[:, 1],
            z[:, 2] if count == 3 else None,
            temperature=temperature,
            hard_negative_weight=hard_negative_weight,
            axis_name=run.axis_name,
            block_size=block_size,
        )
        metrics = {"chance": jnp.float32(math.log(negatives + 1))}
        if mlm_weight:
            tokens = total(jnp.sum(outputs["mlm_count"]), run.axis_name)
            mlm = -total(jnp.sum(outputs["mlm"]), run.axis_name) / jnp.maximum(tokens, 1)
            metrics |= {"contrast": value, "mlm": mlm}
            metrics["chance"] += mlm_weight * math.log(encoder.vocab_size)
            value = value + mlm_weight * mlm
        return value, Aux(metrics)

    def features(
        params: Any, stats: Any, inputs: Any, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        return apply({"params": params}, inputs, train), stats

    return from_loss(
        variables=variables,
        views=drawn,
        forward=forward,
        loss=loss,
        tx=tx,
        features=features,
        clean=views[0].clean,
        axis_name=run.axis_name,
        **fields(views),
        micro_batches=micro_batches,
        negatives=negatives,
        begin=begin if weights else None,
    )
