"""CLAE (Ho and Vasconcelos 2020, arXiv 2010.12050): the first view moved against the contrastive
loss of the batch is one more positive, harder than any augmentation, over a method of in-batch
negatives.

Adversarial views have batch norms of their own (scales, biases and moments), since they are not
distributed as clean ones are; all other parameters are shared."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cl_jax import losses
from cl_jax.core.method import Batch, Run, State, Variables
from cl_jax.core.parts import Pairs, Parts

VIEW = "adversarial_view"  # the batch field of the moved views


def make(
    *,
    base: Parts,
    run: Run,
    epsilon: float = 0.03,
    weight: float = 1.0,
    own_norm: bool = True,
) -> Parts:
    """CLAE over a base without a queue (SimCLR, InvaSpread, or the temperature study's contrastive
    loss, which is the authors' "plain" one).

    loss = contrast(z(x_1), z(x_2)) + weight contrast(z(x_1), z_adv(x_adv)),
    x_adv = x_1 + epsilon sign(d/dx' contrast(z_adv(x_1), z_adv(x')) at x' = x_1)

    epsilon: size of the step, in units of the inputs: the authors' 0.03 is of inputs divided by
      their standard deviation, 0.5. weight: alpha, of the adversarial term. own_norm: False passes
      adversarial views through the clean batch norms.

    Parameters are {"clean": the base's, "adversarial": scales and biases of the second batch
    norms}. Adversarial passes always have the moments of their batch: the authors' running averages
    of them are never read, and are not kept. Nothing is clipped to the range of the inputs.
    """

    def variables(key: jax.Array, batch: Batch) -> Variables:
        start = base.variables(key, batch)
        if start.memory is not None or start.target is not None:
            raise ValueError(
                "CLAE moves a view against the other examples of the batch, and this base has a "
                "queue or a slow network; use simclr_v1 or invaspread."
            )
        if own_norm and not start.stats:
            raise ValueError(
                "own_norm=True gives adversarial views batch norms of their own, and this network "
                "has none; set own_norm=False."
            )
        second = normalisers(start.params, start.stats) if own_norm else {}
        return start._replace(params={"clean": start.params, "adversarial": second})

    def moved(params: Any, stats: Any, inputs: Any, key: jax.Array) -> Any:
        """Outputs of adversarial views; the statistics stay."""
        own = replaced(params["clean"], params["adversarial"])
        return base.embed(own, stats, None, inputs, key)[0]

    def between(first: Any, second: Any) -> tuple[Pairs, ...]:
        return base.pairs(jnp.concatenate([first[:, :1], second[:, :1]], axis=1), None)

    def prepare(state: State, batch: Batch, key: jax.Array) -> Batch:
        first = base.views(batch, key)[0]
        found = losses.adversarial.adversarial_view(
            lambda x: moved(state.params, state.stats, [x], key),
            lambda z, copy: base.contrast(between(z, copy), state.params["clean"], batch, key)[0],
            first,
            epsilon=epsilon,
        )
        return batch | {VIEW: found.x}

    def views(batch: Batch, key: jax.Array) -> Sequence[Any]:
        drawn = list(base.views(batch, key))
        # Evaluators draw views too, outside a step: there are none to be moved.
        return [*drawn, batch[VIEW]] if VIEW in batch else drawn

    def embed(
        params: Any, stats: Any, target: Any, inputs: Any, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        clean, after, target = base.embed(params["clean"], stats, target, inputs[:2], key)
        return {"clean": clean, "moved": moved(params, stats, inputs[2:], key)}, after, target

    def pairs(outputs: Any, memory: Any) -> tuple[Pairs, ...]:
        return (
            *base.pairs(outputs["clean"], memory),
            *between(outputs["clean"], outputs["moved"]),
        )

    def contrast(
        found: tuple[Pairs, ...], params: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        clean, metrics = base.contrast(found[:-1], params["clean"], batch, key)
        adversarial, _ = base.contrast(found[-1:], params["clean"], batch, key)
        metrics = metrics | {"clean": clean, "adversarial": adversarial}
        if "chance" in metrics:
            metrics["chance"] = (1 + weight) * metrics["chance"]
        return clean + weight * adversarial, metrics

    def features(
        params: Any, stats: Any, inputs: Any, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        found: tuple[dict[str, jax.Array], Any] = base.rest["features"](
            params["clean"], stats, inputs, train
        )
        return found

    return base._replace(
        variables=variables,
        views=views,
        embed=embed,
        pairs=pairs,
        contrast=contrast,
        rest={**base.rest, "features": features, "prepare": prepare},
    )


def normalisers(params: Mapping[str, Any], stats: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the parameters of every module that has batch statistics, as a tree of the same
    paths."""
    found = {}
    for name, inside in stats.items():
        if not isinstance(inside, Mapping):
            return jax.tree.map(jnp.array, dict(params))  # a batch norm: its scale and bias
        if name in params:
            found[name] = normalisers(params[name], inside)
    return {name: inside for name, inside in found.items() if inside}


def replaced(params: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with the leaves of `changes` in the place of those of the same path."""
    return {
        name: replaced(inside, changes[name])
        if name in changes and isinstance(inside, Mapping)
        else changes.get(name, inside)
        for name, inside in params.items()
    }
