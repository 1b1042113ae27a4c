"""Parts of a method: `make` of a module that has `parts`, and what a cross may change."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.method import Method, Variables
from cl_jax.core.parts import Pairs, Parts, from_parts, method_of

BATCH = {"x": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "id": jnp.arange(2)}


def parts(*, scale=1.0):
    """Two views of an example, a linear map, and a loss that pulls the pair together."""
    return Parts(
        variables=lambda key, batch: Variables(
            {"w": jnp.full((2,), scale)}, {}, memory={"seen": jnp.int32(0)}
        ),
        views=lambda batch, key: [batch["x"], batch["x"] + 1],
        embed=lambda params, stats, target, inputs, key: (
            [params["w"][None] * x for x in inputs],
            stats,
            None,
        ),
        pairs=lambda outputs, memory: (Pairs(outputs[0], outputs[1]),),
        remember=lambda outputs, memory, batch: {"seen": memory["seen"] + len(batch["id"])},
        contrast=lambda pairs, params, batch, key: (
            jnp.mean((pairs[0].q - pairs[0].k) ** 2),
            {"pairs": jnp.float32(len(pairs))},
        ),
        temperature=None,
        rest=dict(
            tx=optax.sgd(0.5),
            axis_name=None,
            needs=("x",),
            features=lambda params, stats, x, train: ({"h": params["w"][None] * x}, stats),
            clean=lambda batch: batch["x"],
        ),
        watch=lambda memory: {"seen": memory["seen"]},
    )


def step(method):
    state = method.init(jax.random.key(0), BATCH)
    return method.update(state, BATCH, jax.random.key(1))


def test_one_step_contrasts_the_pairs_remembers_and_watches_what_was_before():
    state, metrics = step(from_parts(parts()))
    assert metrics["loss"] == 1.0  # (w x - w (x + 1))^2 with w = 1
    np.testing.assert_allclose(state.params["w"], 0.5)  # gradient of the mean: w, at rate .5
    assert state.memory["seen"] == 2 and metrics["seen"] == 0 and metrics["pairs"] == 1


def test_method_of_makes_the_factory_of_a_module():
    make = method_of(parts)
    assert make.__name__ == "make" and isinstance(make(scale=2.0), Method)
    _, metrics = step(make(scale=2.0))
    assert metrics["loss"] == 4.0


def test_a_cross_changes_one_part_and_keeps_the_rest():
    base = parts()
    crossed = base._replace(
        contrast=lambda pairs, params, batch, key: (jnp.mean(pairs[0].q), {}),
    )
    assert crossed.axis_name is None
    state, metrics = step(from_parts(crossed))
    assert metrics["loss"] == 2.5 and state.memory["seen"] == 2


def test_a_contrast_without_metrics_is_one_sentence():
    alone = parts()._replace(contrast=lambda pairs, *_: jnp.mean(pairs[0].q))
    with pytest.raises(ValueError, match=r"contrast returned a \w+; expected \(value, {name: met"):
        jax.eval_shape(lambda: step(from_parts(alone)))
