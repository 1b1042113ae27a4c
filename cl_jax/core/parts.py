"""A contrastive method in parts, so that a cross (i-Mix, HCL, MoCHi, CLAE) can change one of them
over any base."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from cl_jax.core.method import Aux, Batch, Method, Tree, Variables, checked_tuple, from_loss


class Pairs(NamedTuple):
    """What a contrastive loss compares. `negatives` None: the other keys of the batch."""

    q: jax.Array  # [B, D]
    k: jax.Array  # [B, D]
    negatives: jax.Array | None = None  # [K, D], a queue or bank
    seen: jax.Array | None = None  # [B, H], what the query was projected from, without gradient


class Parts(NamedTuple):
    """A contrastive method in parts. A cross is a function Parts -> Parts.

    A base method's module has `parts(...) -> Parts` and `make = method_of(parts)`. A cross's
    `make(*, base: Parts, ...)` is given the parts of what its section's own section `base` names:
    method=dict(name="imix", base=dict(name="moco_v2", ...), alpha=1.0).

    variables: (key, batch) -> Variables.
    views:     (batch, key) -> [inputs], the query's first.
    embed:     (params, stats, target, inputs, key) -> (outputs, stats, target_stats). Views after
               the second are further queries.
    pairs:     (outputs, memory) -> tuple of Pairs; the first has the first view as its query.
    remember:  (outputs, memory, batch) -> memory.
    contrast:  (pairs, params, batch, key) -> (value, metrics). What `views` drew too (a mixture) is
               drawn again by the same key.
    temperature: of the base's softmax, which crosses keep; None where there is none (BYOL).
    rest:      the other arguments of `from_loss`.
    watch:     memory -> scalars to log of it, as it was before the step.
    """

    variables: Callable[[jax.Array, Batch], Variables]
    views: Callable[[Batch, jax.Array], Sequence[Tree]]
    embed: Callable[[Tree, Tree, Any, Sequence[Tree], jax.Array], tuple[Tree, Tree, Tree]]
    pairs: Callable[[Any, Any], tuple[Pairs, ...]]
    remember: Callable[[Any, Any, Batch], Tree]
    contrast: Callable[
        [tuple[Pairs, ...], Tree, Batch, jax.Array], tuple[jax.Array, dict[str, jax.Array]]
    ]
    temperature: float | None
    rest: Mapping[str, Any]
    watch: Callable[[Any], dict[str, jax.Array]] = lambda memory: {}

    @property
    def axis_name(self) -> str | None:
        """The mapped axis over which the batch is split."""
        return self.rest["axis_name"]


def from_parts(parts: Parts) -> Method:
    """The method that parts make together."""

    def forward(params, stats, target, inputs, batch, key):
        return parts.embed(params, stats, target, inputs, key)

    def loss(outputs, params, memory, batch, key):
        found = parts.contrast(parts.pairs(outputs, memory), params, batch, key)
        value, metrics = checked_tuple("contrast", found, ("value", "{name: metric}"))
        metrics = metrics | parts.watch(memory)
        return value, Aux(metrics, parts.remember(outputs, memory, batch))

    return from_loss(
        variables=parts.variables, views=parts.views, forward=forward, loss=loss, **parts.rest
    )


def method_of(parts: Callable[..., Parts]) -> Callable[..., Method]:
    """The `make` of a module that has `parts`: the same keywords, the method of the parts."""

    @functools.wraps(parts)
    def make(**settings: Any) -> Method:
        return from_parts(parts(**settings))

    make.__name__ = make.__qualname__ = "make"

    return make
