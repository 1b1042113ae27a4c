"""TSC: loops over the equation, its limits, devices, edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cl_jax.losses.clusters import simplex
from cl_jax.losses.positives import kcl, same_class
from cl_jax.losses.targeted import tsc, tsc_centroids
from tests.losses.compiled import as_given, program
from tests.losses.parity import assert_parity, unit

pytestmark = pytest.mark.usefixtures("x64")

kcl, tsc = as_given(kcl), program(as_given(tsc))

LABELS, QUEUE_LABELS, ASSIGNMENT = (
    np.array(x, np.int32) for x in ([0, 1, 0, 2], [0, 2, 1, 0, -1, 0], [2, 0, 1])
)


def data(seed=0):
    rng = np.random.default_rng(seed)
    return [unit(rng.normal(size=(n, 4))) for n in (4, 4, 6, 3)]


def oracle(q, k, queue, targets, selected, t, weight):
    total = 0
    for i, label in enumerate(LABELS):
        logits = np.array([q[i] @ x / t for x in [k[i], *queue, *targets]])
        log_p = logits - np.log(np.exp(logits).sum())
        picked = [log_p[0]] + [
            log_p[1 + j] for j in range(6) if selected[i, j] and QUEUE_LABELS[j] == label
        ]
        total += (sum(picked) + weight * log_p[7 + ASSIGNMENT[label]]) / (len(picked) + 1)
    return -total / 4


@pytest.mark.parametrize("block_size", [None, 3])
def test_value_is_the_formula_and_only_queries_have_gradient(block_size):
    q, k, queue, targets = data()
    selected = np.random.default_rng(1).integers(0, 2, (4, 6))
    knobs = {
        "temperature": 0.3,
        "target_weight": 0.4,
        "selected": selected,
        "block_size": block_size,
    }

    def loss(q, k, queue, targets):
        return tsc(q, k, queue, LABELS, QUEUE_LABELS, targets, ASSIGNMENT, **knobs)

    np.testing.assert_allclose(
        loss(q, k, queue, targets), oracle(q, k, queue, targets, selected, 0.3, 0.4), rtol=1e-12
    )
    check_grads(
        jax.jit(lambda q: loss(q, k, queue, targets)), (jnp.asarray(q),), order=1, modes="rev"
    )
    assert not any(
        g.any()
        for g in jax.grad(loss, argnums=(1, 2, 3))(*map(jnp.asarray, (q, k, queue, targets)))
    )


def test_limits():
    q, k, queue, targets = data()
    args = (LABELS, QUEUE_LABELS, targets, ASSIGNMENT)
    count = 1 + np.asarray(same_class(LABELS, QUEUE_LABELS)).sum(axis=1)
    nothing = np.mean((count + 0.2) / (count + 1)) * np.log(1 + 6 + 3)
    np.testing.assert_allclose(tsc(0 * q, k, queue, *args, temperature=0.1), nothing, rtol=1e-12)
    # Without weight, and far from every query, targets only count among the positives.
    q, one = np.abs(q), np.zeros((4, 6))
    far = tsc(
        q,
        k,
        queue,
        LABELS,
        QUEUE_LABELS,
        -100 * np.eye(4)[:3],
        ASSIGNMENT,
        temperature=0.1,
        target_weight=0.0,
        selected=one,
    )
    np.testing.assert_allclose(
        far, kcl(q, k, queue, LABELS, QUEUE_LABELS, temperature=0.1, selected=one) / 2, rtol=1e-12
    )


def test_centroids():
    centroids, features = data()[3], data(1)[0]
    moved = tsc_centroids(centroids, features[:3], LABELS[:3])
    for c, rows in ((0, features[[0, 2]]), (1, features[[1]])):
        np.testing.assert_allclose(
            moved[c], unit(0.9 * centroids[c] + 0.1 * unit(rows.mean(axis=0))), rtol=1e-12
        )
    np.testing.assert_array_equal(moved[2], centroids[2])


def test_devices():
    rng = np.random.default_rng(3)
    q, k, queue = (unit(rng.normal(size=(n, 4))) for n in (8, 8, 6))
    labels = rng.integers(0, 3, 8)

    def loss(q, k, queue, labels, *, axis_name):
        centroids = tsc_centroids(simplex(3, 4), q, labels, axis_name=axis_name)
        return tsc(
            q,
            k,
            queue,
            labels,
            QUEUE_LABELS,
            centroids,
            ASSIGNMENT,
            temperature=0.2,
            axis_name=axis_name,
        )

    assert_parity(loss, [q, k, queue, labels], [True, True, False, True])


def test_errors():
    q, k, queue, targets = data()
    loss = partial(tsc, q, k, queue, LABELS, QUEUE_LABELS, targets, temperature=0.1)
    with pytest.raises(ValueError, match=r"assignment has shape \(2,\).*c = 3"):
        loss(ASSIGNMENT[:2])
    with pytest.raises(
        ValueError, match=r"selected has shape \(4, 5\); expected \[B, K\] = \(4, 6\)"
    ):
        loss(ASSIGNMENT, selected=np.ones((4, 5)))
