"""ProtoNCE, MiCE and SpCL: loops over the equations, closed forms, devices, edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cl_jax.losses import clusters
from cl_jax.losses.clusters import Clustering
from tests.losses.compiled import as_given, compiled
from tests.losses.parity import assert_parity, unit

pytestmark = pytest.mark.usefixtures("x64")

clusters = compiled(as_given(clusters))

# Of 5 rows: a last block that is not full; and, to which the code is the same, one row, more than
# all.
BLOCKS = pytest.mark.parametrize("blocks", [(2,), pytest.param((1, 9), marks=pytest.mark.slow)])


def pcl_data(b=8, seed=0):
    rng = np.random.default_rng(seed)
    q, k, queue = (unit(rng.normal(size=(n, 4))) for n in (b, b, 7))
    prototypes, concentration = unit(rng.normal(size=(20, 4))), rng.uniform(0.1, 0.4, 20)
    assignment = rng.integers(0, 9, b)
    assignment[1] = assignment[0]
    return (
        q,
        k,
        queue,
        Clustering(prototypes, concentration, assignment, np.array([11, 15, 10, 19, 12])),
    )


def proto_oracle(q, clustering, mask=False):
    c, phi, own, negatives = clustering
    columns = [*own, *negatives]
    total = 0.0
    for i in range(len(q)):
        logits = [q[i] @ c[j] / phi[j] for j in columns]
        kept = [s for j, s in enumerate(logits) if not (mask and j != i and columns[j] == own[i])]
        total -= logits[i] - np.log(np.sum(np.exp(kept)))
    return total / len(q)


@pytest.mark.parametrize("mask", [False, True])
def test_proto_nce(mask):
    q, _, _, clustering = pcl_data()
    loss = clusters.proto_nce(q, clustering, mask_duplicates=mask)
    np.testing.assert_allclose(loss, proto_oracle(q, clustering, mask), rtol=1e-12)


def test_shared_prototype_is_its_own_negative():
    q, _, _, clustering = pcl_data()
    alone = clustering._replace(assignment=np.zeros(8, int), concentration=np.full(20, 1e-3))
    q = np.tile(clustering.prototypes[:1], (8, 1))
    np.testing.assert_allclose(clusters.proto_nce(q, alone), np.log(8), atol=1e-9)
    np.testing.assert_allclose(clusters.proto_nce(q, alone, mask_duplicates=True), 0, atol=1e-9)


def test_pcl():
    q, k, queue, clustering = pcl_data()
    instance = -np.mean(
        [
            s[0] - np.log(np.exp(s).sum())
            for s in (np.array([q[i] @ k[i], *(queue @ q[i])]) / 0.2 for i in range(8))
        ]
    )
    np.testing.assert_allclose(clusters.pcl(q, k, queue, (), temperature=0.2), instance, rtol=1e-12)
    other = clustering._replace(
        prototypes=clustering.prototypes[::-1], negatives=np.array([13, 14])
    )
    loss = clusters.pcl(q, k, queue, (clustering, other), temperature=0.2)
    expected = instance + (proto_oracle(q, clustering) + proto_oracle(q, other)) / 2
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_pcl_knows_nothing_and_gradient():
    q, k, queue, clustering = pcl_data()
    np.testing.assert_allclose(clusters.proto_nce(0 * q, clustering), np.log(8 + 5), rtol=1e-12)
    loss_of = jax.jit(lambda q: clusters.pcl(q, k, queue, (clustering,), temperature=0.3))
    check_grads(loss_of, (q,), 1, modes="rev")

    def loss(prototypes, concentration):
        moved = clustering._replace(prototypes=prototypes, concentration=concentration)
        return clusters.proto_nce(q, moved)

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    for grad in gradient(clustering.prototypes, clustering.concentration):
        np.testing.assert_array_equal(grad, 0)


def test_drawn_prototypes_are_no_ones():
    assignment = np.array([3, 3, 0, 7])
    draw = jax.jit(lambda key: clusters.draw_prototypes(key, assignment, 9, 5))
    seen = np.concatenate([draw(jax.random.key(i)) for i in range(60)]).reshape(60, 5)
    assert not set(seen.ravel().tolist()) & {3, 0, 7}
    assert all(len(set(row)) == 5 for row in seen.tolist())
    counts = np.bincount(seen.ravel(), minlength=9)[[1, 2, 4, 5, 6, 8]]
    assert counts.min() > 35
    with pytest.raises(ValueError, match="num_negatives is 6; expected 1 to 5"):
        clusters.draw_prototypes(jax.random.key(0), assignment, 9, 6)


def mice_data(b=8, seed=0):
    rng = np.random.default_rng(seed)
    f, v = unit(rng.normal(size=(2, b, 3, 5)))
    g, queue = unit(rng.normal(size=(b, 5))), unit(rng.normal(size=(6, 3, 5)))
    return f, v, g, queue, np.asarray(clusters.simplex(3, 5)), rng.normal(size=(3, 5))


def mice_oracle(f, v, g, queue, gates, experts, t, kappa):
    """The authors' bound with their posterior."""
    mu, bound, posteriors = unit(experts), 0.0, []
    for i in range(len(f)):
        gate = np.exp(gates @ g[i] / kappa)
        gate /= gate.sum()
        phi = []
        for e in range(len(gates)):
            keys = [v[i, e], *queue[:, e]]
            s = np.exp([(f[i, e] @ x + x @ mu[e]) / t for x in keys])
            phi.append(s[0] / s.sum())
        joint = gate * phi
        posterior = joint / joint.sum()
        posteriors.append(posterior)
        bound += np.sum(posterior * (np.log(gate) + np.log(phi) - np.log(posterior)))
    return -bound / len(f), posteriors


def test_mice():
    args = mice_data()
    expected, posterior = mice_oracle(*args, 0.7, 0.4)
    np.testing.assert_allclose(
        clusters.mice(*args, temperature=0.7, gate_temperature=0.4), expected, rtol=1e-12
    )
    terms = clusters.mice_terms(*args, temperature=0.7, gate_temperature=0.4)
    np.testing.assert_allclose(terms.posterior, posterior, rtol=1e-11)
    np.testing.assert_allclose(
        clusters.mice(*args, temperature=0.7), mice_oracle(*args, 0.7, 0.7)[0], rtol=1e-12
    )


def test_mice_takes_a_traced_gate_temperature():
    args = mice_data()
    found = jax.eval_shape(
        lambda kappa: clusters.mice(*args, temperature=0.7, gate_temperature=kappa), 0.4
    )
    assert found.shape == ()


@BLOCKS
def test_pcl_in_blocks(blocks):
    q, k, queue, clustering = pcl_data(5)

    def loss(q, block_size):
        return clusters.pcl(
            q, k, queue, (clustering,), temperature=0.3, mask_duplicates=True, block_size=block_size
        )

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    for block_size in blocks:
        for a, b in zip(jax.tree.leaves(run(q, block_size)), jax.tree.leaves(run(q, None))):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


@BLOCKS
def test_mice_in_blocks(blocks):
    f, *rest = mice_data(5)

    def loss(f, block_size):
        return clusters.mice(f, *rest, temperature=0.7, block_size=block_size)

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    for block_size in blocks:
        for a, b in zip(jax.tree.leaves(run(f, block_size)), jax.tree.leaves(run(f, None))):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_mice_gradient():
    f, v, g, queue, gates, experts = mice_data(3)

    @jax.jit
    def loss(f, g, experts):
        return clusters.mice(f, v, g, queue, gates, experts, temperature=0.7)

    check_grads(loss, (f, g, experts), 1, modes="rev")

    @jax.jit
    @partial(jax.grad, argnums=(0, 1, 2))
    def still(v, queue, gates):
        return clusters.mice(f, v, g, queue, gates, experts, temperature=1.0)

    grads = still(v, queue, gates)
    for grad in grads:
        np.testing.assert_array_equal(grad, 0)


def test_mice_without_knowledge_and_with_an_empty_expert():
    f, v, g, queue, gates, experts = mice_data()
    zero = np.zeros_like(experts)
    np.testing.assert_allclose(
        clusters.mice(0 * f, v, g, queue, gates, zero, temperature=1.0), np.log(7), rtol=1e-12
    )
    loss = jax.value_and_grad(lambda e: clusters.mice(f, v, g, queue, gates, e, temperature=1.0))
    value, grad = jax.jit(loss)(zero)
    assert np.isfinite(value) and np.isfinite(grad).all()


def test_mice_prototypes():
    posterior = np.array([[0.2, 0.8, 0.0], [0.5, 0.5, 0.0], [0.1, 0.9, 0.0]])
    v = np.random.default_rng(0).normal(size=(3, 3, 4))
    sums, winners = clusters.expert_sums(posterior, v)
    np.testing.assert_array_equal(winners, [1, 0, 1])
    expected = np.stack([v[1, 0], v[0, 1] + v[2, 1], np.zeros(4)])
    np.testing.assert_allclose(sums, expected)
    np.testing.assert_allclose(clusters.expert_prototypes(sums)[:2], unit(expected[:2]), rtol=1e-12)
    np.testing.assert_array_equal(clusters.expert_prototypes(sums)[2], 0)


@pytest.mark.parametrize(("num_classes", "width"), [(2, 1), (2, 4), (10, 9), (15, 128)])
def test_simplex(num_classes, width):
    gates = clusters.simplex(num_classes, width)
    assert gates.shape == (num_classes, width)
    expected = np.where(np.eye(num_classes), 1, -1 / (num_classes - 1))
    np.testing.assert_allclose(gates @ gates.T, expected, atol=1e-12)


def spcl_data(b=8, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.array([0, 4, 1, 1, 6, 4, 0, 1, 5, 2])  # 3 has no rows
    return (
        unit(rng.normal(size=(b, 4))),
        unit(rng.normal(size=(10, 4))),
        labels,
        rng.integers(0, 10, b),
    )


def spcl_oracle(f, memory, labels, ids, t, eps):
    total = 0.0
    for i, row in enumerate(ids):
        a = {
            c: np.mean([f[i] @ memory[v] / t for v in np.flatnonzero(labels == c)])
            for c in set(labels.tolist())
        }
        p = np.exp(a[labels[row]]) / (np.sum(np.exp(list(a.values()))) + eps)
        total -= np.log(p + eps)
    return total / len(ids)


@pytest.mark.parametrize("eps", [1e-6, 0.0])
@pytest.mark.parametrize("num_labels", [7, 10])
def test_spcl(eps, num_labels):
    args = spcl_data()
    loss = clusters.spcl(*args, temperature=0.1, num_labels=num_labels, eps=eps)
    np.testing.assert_allclose(loss, spcl_oracle(*args, 0.1, eps), rtol=1e-11)


def test_spcl_edges():
    f, memory, labels, ids = spcl_data()
    knobs = {"temperature": 0.1, "num_labels": 7, "eps": 0.0}
    np.testing.assert_allclose(
        clusters.spcl(0 * f, memory, labels, ids, **knobs), np.log(6), rtol=1e-12
    )
    none = clusters.spcl(f, memory, labels, -np.ones_like(ids), temperature=0.1, num_labels=7)
    assert none == 0  # an id below 0 is no row
    # Nothing like any row: the epsilons hold the loss at -log 1e-6.
    far = clusters.spcl(
        -100 * np.ones((1, 4)),
        np.ones((3, 4)),
        np.arange(3),
        np.array([1]),
        temperature=0.05,
        num_labels=3,
    )
    np.testing.assert_allclose(far, -np.log(1e-6), rtol=1e-9)
    with jax.enable_x64(False):
        hot = clusters.spcl(
            jnp.asarray(f, jnp.float32),
            jnp.asarray(memory, jnp.float32),
            labels,
            ids,
            temperature=0.002,
            num_labels=7,
        )
        assert np.isfinite(hot)

    @jax.jit
    def loss(f, memory):
        return clusters.spcl(f, memory, labels, ids, temperature=0.1, num_labels=7)

    check_grads(lambda f: loss(f, memory), (f,), 1, modes="rev")
    grad = jax.jit(jax.grad(loss, 1))(f, memory)
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.slow
def test_devices_pcl():
    def loss(q, k, queue, *clustering, axis_name):
        knobs = {"temperature": 0.2, "axis_name": axis_name}
        return clusters.pcl(q, k, queue, (Clustering(*clustering),), **knobs) + 2 * clusters.pcl(
            q, k, queue, (Clustering(*clustering),), **knobs, mask_duplicates=True, block_size=1
        )

    q, k, queue, clustering = pcl_data()
    assert_parity(loss, (q, k, queue, *clustering), (True, True, False, False, False, True, False))


def test_devices_mice():
    assert_parity(
        lambda *a, axis_name: clusters.mice(*a, temperature=0.7, axis_name=axis_name),
        mice_data(),
        (True, True, True, False, False, False),
    )


def test_devices_spcl():
    assert_parity(
        lambda *a, axis_name: clusters.spcl(*a, temperature=0.2, num_labels=7, axis_name=axis_name),
        spcl_data(),
        (True, False, False, True),
    )


def test_errors():
    q, _, queue, clustering = pcl_data()
    with pytest.raises(ValueError, match="concentration has shape"):
        clusters.proto_nce(q, clustering._replace(concentration=np.ones(3)))
    with pytest.raises(ValueError, match="assignment has shape"):
        clusters.proto_nce(q, clustering._replace(assignment=np.ones(3, int)))
    with pytest.raises(ValueError, match="'i' is not mapped"):
        clusters.proto_nce(q, clustering, axis_name="i")
    f, v, g, queue, gates, experts = mice_data()
    with pytest.raises(ValueError, match="gate_temperature is -1"):
        clusters.mice(f, v, g, queue, gates, experts, temperature=1.0, gate_temperature=-1)
    with pytest.raises(ValueError, match="queue has shape"):
        clusters.mice(f, v, g, queue[:, :2], gates, experts, temperature=1.0)
    with pytest.raises(ValueError, match="num_classes is 5 and width 3"):
        clusters.simplex(5, 3)
    f, memory, labels, ids = spcl_data()
    with pytest.raises(ValueError, match="labels has shape"):
        clusters.spcl(f, memory, labels[:4], ids, temperature=0.1, num_labels=7)
    with pytest.raises(ValueError, match="num_labels is 0"):
        clusters.spcl(f, memory, labels, ids, temperature=0.1, num_labels=0)
