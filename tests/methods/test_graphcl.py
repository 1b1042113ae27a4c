"""GraphCL: what the step is made of, graphs that lose all, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import losses
from cl_jax.core.keys import example_keys, view_keys
from cl_jax.core.method import Run
from cl_jax.core.numerics import unit
from cl_jax.core.parts import from_parts
from cl_jax.data import motifs
from cl_jax.data.source import labels_of
from cl_jax.encoders import gin
from cl_jax.methods import graphcl, hcl
from cl_jax.views import graph
from tests import small

DATA = motifs.make(train_size=16, test_size=4).train
RUN = Run(None, 6, 16, 2, 4, dict(DATA.sizes))
IDS = np.array([3, 1, 4, 15, 9, 2], np.int32)
BATCH = {name: DATA.arrays[name][IDS] for name in ("node", "edge")} | {"id": IDS}
# Of two operators: to compile a step with the others takes longer, and test_graph.py has them.
VIEW = graph.make(
    operators=("drop", "edges"), sizes=DATA.sizes, labels=lambda field: labels_of(DATA, field)
)
NETWORK = gin.make(width=4, depth=2)


def build(**settings):
    settings = {"encoder": NETWORK, "views": (VIEW, VIEW), "run": RUN} | settings
    return graphcl.make(tx=optax.sgd(0.1), **settings)


@pytest.fixture(scope="module")
def started():
    method = build()
    return method, small.started(method, BATCH)


def test_the_loss_is_that_of_the_paper(started):
    """The views one after the other, a two-layer head of the embedding's width, the positive left
    out of the sum: from the parts."""
    method, state = started
    key = jax.random.key(7)
    after, metrics = jax.jit(method.update)(state, BATCH, key)
    keys = example_keys(key, jnp.asarray(IDS))
    stats, found = state.stats, []

    @jax.jit
    def encoded(variables, drawn):
        return NETWORK.apply(variables, drawn, train=True, mutable=["batch_stats"])

    for number in (0, 1):
        drawn = jax.jit(VIEW.draw)(view_keys(keys, number), BATCH)
        variables = {"params": state.params["encoder"], "batch_stats": stats["encoder"]}
        out, stats = encoded(variables, drawn)
        stats = {"encoder": stats["batch_stats"]}
        head = jax.device_get(state.params["head"])
        assert head["dense1"]["kernel"].shape == head["dense2"]["kernel"].shape == (8, 8)
        z = np.maximum(np.asarray(out["h"]) @ head["dense1"]["kernel"] + head["dense1"]["bias"], 0)
        z = z @ head["dense2"]["kernel"] + head["dense2"]["bias"]
        found.append(z / np.linalg.norm(z, axis=1, keepdims=True))
    s = found[0] @ found[1].T / 0.2
    others = np.exp(s) * (1 - np.eye(6))
    np.testing.assert_allclose(
        metrics["loss"], np.mean(np.log(others.sum(1)) - np.diag(s)), rtol=1e-4
    )
    np.testing.assert_allclose(metrics["chance"], np.log(5), rtol=1e-6)
    for ours, theirs in zip(jax.tree.leaves(after.stats), jax.tree.leaves(stats)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_embedding_is_the_encoder_s_and_does_not_depend_on_company(started):
    method, state = started
    encode = jax.jit(method.encode)
    found = encode(state, BATCH)
    assert found["h"].shape == (6, 8) and found["z"].shape == (6, 8)
    alone = {name: np.repeat(value[2:3], 6, axis=0) for name, value in BATCH.items()}
    np.testing.assert_allclose(encode(state, alone)["h"][4], found["h"][2], rtol=1e-4, atol=1e-4)


def test_graphs_without_edges_are_trained_on(started):
    batch = {"node": BATCH["node"].copy(), "edge": np.full_like(BATCH["edge"], -1), "id": IDS}
    batch["node"][0, 1:] = 0
    method, state = started
    after, metrics = jax.jit(method.update)(state, batch, jax.random.key(1))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((after.params, metrics)))


def test_a_graph_twice_in_a_batch_beyond_the_budget_is_no_number(started):
    """The budget holds different graphs. Should a batch be larger, the loss says so."""
    method, state = started
    largest = int(DATA.arrays["nodes"].argmax())
    same = {name: np.repeat(DATA.arrays[name][[largest]], 6, axis=0) for name in ("node", "edge")}
    _, metrics = jax.jit(method.update)(state, same | {"id": IDS}, jax.random.key(1))
    assert np.isnan(metrics["loss"])


@pytest.mark.slow
def test_hcl_goes_over_it(started):
    """The cross has GraphCL's views and network, and a loss of its own on their outputs."""
    _, state = started
    base = graphcl.parts(encoder=NETWORK, views=(VIEW, VIEW), run=RUN, tx=optax.sgd(0.1))
    crossed = from_parts(hcl.make(base=base, run=RUN, beta=2.0, temperature=0.4))
    key = jax.random.key(7)
    _, metrics = jax.jit(crossed.update)(state, BATCH, key)

    @jax.jit
    def outputs(state):
        inputs = base.views(BATCH, key)
        return base.embed(state.params, state.stats, None, inputs, key)[0]

    z = unit(outputs(state))
    expected = losses.hcl(z[:, 0], z[:, 1], temperature=0.4, beta=2.0, tau_plus=0.1)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="two views of a graph; the config has 1"):
        build(views=(VIEW,))
    with pytest.raises(ValueError, match="batch_size=1"):
        build(run=RUN._replace(batch_size=1))
