"""GraphCL and InfoGraph: loops, closed forms, devices, padding, edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cl_jax.losses import graph
from tests.losses.compiled import compiled
from tests.losses.parity import assert_parity, unit

pytestmark = pytest.mark.usefixtures("x64")

graph = compiled(graph)


def data(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("include_positive", [False, True])
def test_graphcl_of_loops(include_positive, symmetric):
    a, b, t = data(5, 4), data(5, 4, seed=1), 0.3
    s = unit(a) @ unit(b).T / t

    def direction(s):
        return np.mean(
            [
                -s[i, i]
                + np.log(sum(np.exp(s[i, j]) for j in range(5) if j != i or include_positive))
                for i in range(5)
            ]
        )

    expected = (direction(s) + direction(s.T)) / 2 if symmetric else direction(s)
    loss = partial(
        graph.graphcl, temperature=t, include_positive=include_positive, symmetric=symmetric
    )
    np.testing.assert_allclose(jax.jit(loss)(a, b), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(partial(loss, block_size=2))(3 * a, b), expected, rtol=1e-12)
    np.testing.assert_allclose(graph.cosine_logits(a, b, temperature=t), s, rtol=1e-12)


def test_graphcl_closed_forms():
    same, axes = np.ones((6, 3)), np.eye(4)
    np.testing.assert_allclose(graph.graphcl(same, same, temperature=0.1), np.log(5))
    np.testing.assert_allclose(graph.graphcl(axes, axes, temperature=0.2), np.log(3) - 5)
    assert graph.graphcl(same[:1], same[:1], temperature=0.1) == 0


def softplus(x):
    return np.log1p(np.exp(x))


def infograph_oracle(local, summary, graph_id, hard, beta, tau, sign):
    """Node by node, graph by graph."""
    n, graphs = len(local), len(summary)
    x = local @ summary.T
    own = graph_id[:, None] == np.arange(graphs)
    pos, neg = np.where(own, x, 0), np.where(own, 0, x)
    top = max(neg.max(), abs(neg.min()))
    e_pos = e_neg = 0.0
    for i in range(n):
        w = np.exp(beta * sign * 2 * neg[i] / top)
        w = w / np.mean(w)
        for g in range(graphs):
            e_pos += np.log(2) - softplus(-pos[i, g])
            penalty = softplus(-neg[i, g]) + neg[i, g]
            if hard:
                e_pos -= tau / (1 - tau) * (softplus(-pos[i, g]) + pos[i, g])
                e_neg += (
                    w[g] * penalty / (1 - tau) - np.log(2)
                    if beta
                    else (penalty - np.log(2)) / (1 - tau)
                )
            else:
                e_neg += penalty - np.log(2)
    return e_neg / (n * (graphs - 1)) - e_pos / n


@pytest.mark.parametrize(
    "hard, beta, tau, up",
    [
        (False, 1.0, 0.5, False),
        (True, 1.0, 0.5, False),
        (True, 0.0, 0.3, False),
        (True, 2.0, 0.2, True),
    ],
)
def test_infograph_of_loops(hard, beta, tau, up):
    local, summary, graph_id = data(7, 3), data(4, 3, seed=1), np.array([0, 0, 1, 3, 3, 3, 2])
    loss = jax.jit(partial(graph.infograph, hard=hard, beta=beta, tau_plus=tau, upweight_hard=up))
    expected = infograph_oracle(local, summary, graph_id, hard, beta, tau, 1 if up else -1)
    np.testing.assert_allclose(loss(local, summary, graph_id), expected, rtol=1e-12)
    padded = (
        np.concatenate([local, 9 * np.ones((2, 3))]),
        summary,
        np.concatenate([graph_id, [4, -1]]),
    )
    np.testing.assert_allclose(loss(*padded), expected, rtol=1e-12)
    assert not np.any(jax.jit(jax.grad(loss))(*padded)[7:])


@pytest.mark.parametrize("beta", [10.0, 100.0])
def test_float32_gradients_where_one_weight_is_near_one(beta):
    """What the largest weight and the extreme entry take from each other must not be left over."""
    local, summary, graph_id = data(11, 6), data(4, 6, seed=1), np.sort(np.arange(11) % 4)

    def gradient(dtype):
        with jax.enable_x64(dtype == np.float64):
            loss = partial(graph.infograph, hard=True, beta=beta)
            return jax.jit(jax.grad(loss, (0, 1)))(
                local.astype(dtype), summary.astype(dtype), graph_id
            )

    for ours, exact in zip(gradient(np.float32), gradient(np.float64)):
        np.testing.assert_allclose(ours, exact, atol=1e-5 * np.abs(exact).max())


def test_infograph_that_knows_nothing():
    zero, one = np.zeros((7, 3)), np.ones((4, 3))
    graph_id = np.array([0, 0, 1, 3, 3, 3, 2])
    assert abs(graph.infograph(zero, one, graph_id)) < 1e-12
    value, grad = jax.jit(jax.value_and_grad(partial(graph.infograph, hard=True)))(
        zero, one, graph_id
    )
    assert np.isfinite(value) and np.isfinite(grad).all()
    alone = graph.infograph_expectations(data(2, 3), one[:1], np.zeros(2, int))
    assert alone.negative == 0 and np.isfinite(alone.positive)


@pytest.mark.slow
def test_devices():
    local, summary, graph_id = data(16, 3), data(8, 3, seed=1), np.arange(16) // 2
    other = data(8, 3, seed=2)

    def loss(local, summary, other, graph_id, axis_name):
        if axis_name is not None:  # counted on the device
            graph_id -= lax.axis_index(axis_name) * summary.shape[0]
        knobs = {"temperature": 0.3, "axis_name": axis_name}
        return (
            graph.graphcl(summary, other, **knobs, plan="ring")
            + 2 * graph.graphcl(summary, other, **knobs, symmetric=True, include_positive=True)
            + 3 * graph.infograph(local, summary, graph_id, axis_name=axis_name)
            + 5 * graph.infograph(local, summary, graph_id, hard=True, axis_name=axis_name)
        )

    assert_parity(loss, (local, summary, other, graph_id), (True, True, True, True))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_hard_inputs_are_finite(dtype):
    a, b = (jnp.asarray(data(5, 4, seed=seed), dtype).at[0].set(0) for seed in (0, 1))

    def loss(a, b):
        return graph.graphcl(a, b.at[1].set(a[2]), temperature=0.01) + graph.infograph(
            100 * a, 100 * b, jnp.arange(5), hard=True, beta=10.0
        )

    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(a, b)
    assert np.isfinite(value) and value.dtype == jnp.float32
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in grads)


def test_memory_of_the_gradient_is_far_below_the_matrix():
    """At 16,384 rows one matrix of similarities is 1 GiB."""
    with jax.enable_x64(False):
        x = jax.ShapeDtypeStruct((16384, 32), jnp.float32)
        gradient = jax.jit(jax.grad(partial(graph.graphcl, temperature=0.1), (0, 1)))
        assert gradient.lower(x, x).compile().memory_analysis().temp_size_in_bytes < 2**26


def test_errors():
    a = data(5, 4)
    with pytest.raises(ValueError, match=r"z_b has shape \(4, 4\)"):
        graph.graphcl(a, a[:4], temperature=0.1)
    with pytest.raises(ValueError, match="temperature is 0"):
        graph.graphcl(a, a, temperature=0)
    with pytest.raises(ValueError, match="axis_name='i' is not mapped"):
        graph.graphcl(a, a, temperature=0.1, axis_name="i")
    with pytest.raises(ValueError, match=r"graph_id has shape \(4,\)"):
        graph.infograph(a, a, np.arange(4))
    with pytest.raises(ValueError, match=r"summary has shape \(5, 3\).*d = 4 as in"):
        graph.infograph(a, a[:, :3], np.arange(5))
    with pytest.raises(ValueError, match=r"beta is -1.*upweight_hard"):
        graph.infograph(a, a, np.arange(5), hard=True, beta=-1)
    with pytest.raises(ValueError, match="tau_plus is 1"):
        graph.infograph(a, a, np.arange(5), hard=True, tau_plus=1)
