"""NCE and softmax against a memory: loops over the equations, closed forms, devices, edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from jax.test_util import check_grads

from cl_jax.core.sharded import Sharded
from cl_jax.losses import nce
from tests.losses.compiled import as_given, compiled
from tests.losses.parity import assert_parity, unit

pytestmark = pytest.mark.usefixtures("x64")

nce = compiled(as_given(nce))

B, N, D, K = 8, 11, 4, 5


def data(seed=0, b=B, n=N, d=D, k=K):
    rng = np.random.default_rng(seed)
    indices = rng.integers(0, n, (b, 1 + k))
    return unit(rng.normal(size=(b, d))), rng.uniform(-1, 1, (n, d)), indices


def oracle(query, bank, indices, temperature, n, z=None, eps=1e-7):
    """The loss entry by entry."""
    exps = np.exp(
        [[query[i] @ bank[j] / temperature for j in row] for i, row in enumerate(indices)]
    )
    z = n * exps.mean() if z is None else z
    noise = (indices.shape[1] - 1) / n
    total = 0.0
    for row in exps / z:
        total += np.log(row[0] / (row[0] + noise + eps))
        for p in row[1:]:
            total += np.log(noise / (p + noise + eps))
    return -total / len(query), z


def test_nce_fixes_z_at_the_first_batch():
    query, bank, indices = data()
    expected, z = oracle(query, bank, indices, 0.2, N)
    loss, normalizer = nce.nce(
        query, bank, indices, nce.init_normalizer(dtype=float), temperature=0.2
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(np.exp(normalizer.log_z), z, rtol=1e-12)
    query, bank, indices = data(1)
    loss, again = nce.nce(query, bank, indices, normalizer, temperature=0.2)
    np.testing.assert_allclose(loss, oracle(query, bank, indices, 0.2, N, z)[0], rtol=1e-12)
    assert again.log_z == normalizer.log_z and again.batches == 2


def test_nce_of_equal_logits_is_the_chance_level():
    query, _, indices = data()
    loss, _ = nce.nce(
        query, np.zeros((N, D)), indices, nce.init_normalizer(dtype=float), temperature=0.2, eps=0.0
    )
    np.testing.assert_allclose(loss, nce.nce_chance(K), rtol=1e-12)


def test_nce_averages_z():
    query, bank, indices = data()
    z = oracle(query, bank, indices, 0.2, N)[1]
    _, normalizer = nce.nce(
        query, bank, indices, nce.init_normalizer(dtype=float), temperature=0.2, momentum=0.9
    )
    query, bank, indices = data(1)
    z = 0.9 * z + 0.1 * oracle(query, bank, indices, 0.2, N)[1]
    loss, normalizer = nce.nce(query, bank, indices, normalizer, temperature=0.2, momentum=0.9)
    np.testing.assert_allclose(np.exp(normalizer.log_z), z, rtol=1e-12)
    np.testing.assert_allclose(loss, oracle(query, bank, indices, 0.2, N, z)[0], rtol=1e-12)


def test_given_z_is_used_from_the_start():
    query, bank, indices = data()
    loss, _ = nce.nce(query, bank, indices, nce.init_normalizer(1.0, dtype=float), temperature=0.5)
    np.testing.assert_allclose(loss, oracle(query, bank, indices, 0.5, N, 1.0)[0], rtol=1e-12)


def test_integer_z():
    logits = jnp.log(jnp.array([[1.5, 2.0, 2.7], [3.1, 0.2, 0.9]]))
    _, normalizer = nce.nce_of_logits(
        logits, nce.init_normalizer(dtype=float), num_data=7, integer_z=True
    )
    np.testing.assert_allclose(np.exp(normalizer.log_z), np.floor(7 * 10.4 / 6), rtol=1e-12)


def test_knows_nothing():
    # Every P equals the noise c = K / N where Z = exp(logit) N / K.
    logits = jnp.full((3, 1 + K), 0.7)
    normalizer = nce.init_normalizer(np.exp(0.7) * N / K, dtype=float)
    loss, _ = nce.nce_of_logits(logits, normalizer, num_data=N, eps=0.0)
    np.testing.assert_allclose(loss, (1 + K) * np.log(2), rtol=1e-12)
    query, bank, indices = data()
    np.testing.assert_allclose(
        nce.bank_softmax(query * 0, bank, indices, temperature=0.1), np.log(1 + K), rtol=1e-12
    )
    np.testing.assert_allclose(
        nce.full_bank_softmax(query * 0, bank, indices[:, 0], temperature=0.1),
        np.log(N),
        rtol=1e-12,
    )


def test_cross_nce_meets_the_other_bank():
    (a, bank_a, indices), (b, bank_b, _) = data(0), data(1)
    start = nce.init_normalizer(dtype=float)
    loss, (of_a, of_b) = nce.cross_nce(
        a, b, bank_a, bank_b, indices, (start, start), temperature=0.3
    )
    (loss_a, z_a), (loss_b, z_b) = (
        oracle(a, bank_b, indices, 0.3, N),
        oracle(b, bank_a, indices, 0.3, N),
    )
    np.testing.assert_allclose(loss, loss_a + loss_b, rtol=1e-12)
    np.testing.assert_allclose(np.exp([of_a.log_z, of_b.log_z]), [z_a, z_b], rtol=1e-12)


def test_queue_nce_has_the_fresh_key_as_positive():
    q, queue, _ = data()
    k = data(2)[0]
    rows = np.concatenate([k, queue])
    indices = np.array([[i, *range(B, B + N)] for i in range(B)])
    loss, _ = nce.queue_nce(
        q, k, queue, nce.init_normalizer(dtype=float), temperature=0.3, num_data=40
    )
    np.testing.assert_allclose(loss, oracle(q, rows, indices, 0.3, 40)[0], rtol=1e-12)


def cross_entropy(query, keys, labels, temperature):
    total = 0.0
    for i, label in enumerate(labels):
        logits = np.array([query[i] @ k / temperature for k in keys[i]])
        total -= logits[label] - np.log(np.exp(logits).sum())
    return total / len(labels)


def test_softmax_forms():
    query, bank, indices = data()
    other, other_bank, _ = data(1)
    jigsaw, jigsaw_other = data(2)[0], data(3)[0]
    zeros = np.zeros(B, int)

    def sampled(q, rows):
        return cross_entropy(q, [rows[row] for row in indices], zeros, 0.2)

    def queued(q, k, rows):
        return cross_entropy(
            q, [np.concatenate([k[i : i + 1], rows]) for i in range(B)], zeros, 0.2
        )

    t = {"temperature": 0.2}
    close = partial(np.testing.assert_allclose, rtol=1e-12)
    close(nce.bank_softmax(query, bank, indices, **t), sampled(query, bank))
    close(
        nce.bank_softmax(query, bank, indices, jigsaw, beta=0.3, **t),
        0.7 * sampled(query, bank) + 0.3 * sampled(jigsaw, bank),
    )
    close(
        nce.cross_bank_softmax(
            query, other, bank, other_bank, indices, jigsaw, jigsaw_other, beta=0.3, **t
        ),
        0.7 * (sampled(query, other_bank) + sampled(other, bank))
        + 0.3 * (sampled(jigsaw, other_bank) + sampled(jigsaw_other, bank)),
    )
    close(
        nce.full_bank_softmax(query, bank, indices[:, 0], **t),
        cross_entropy(query, [bank] * B, indices[:, 0], 0.2),
    )
    close(
        nce.queue_softmax(query, other, bank, jigsaw, beta=0.3, **t),
        0.7 * queued(query, other, bank) + 0.3 * queued(jigsaw, other, bank),
    )
    close(
        nce.cross_queue_softmax(query, other, jigsaw, jigsaw_other, bank, other_bank, **t),
        queued(query, jigsaw_other, other_bank) + queued(other, jigsaw, bank),
    )


@pytest.mark.parametrize("block_size", [1, 4, 6, 100])
def test_blocks_change_nothing(block_size):
    query, bank, indices = data()

    def loss(q, block_size):
        return nce.nce(
            q,
            bank,
            indices,
            nce.init_normalizer(dtype=float),
            temperature=0.2,
            block_size=block_size,
        )[0]

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    for a, b in zip(jax.tree.leaves(run(query, block_size)), jax.tree.leaves(run(query, None))):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_blocks_of_queries_change_nothing():
    query, bank, indices = data()
    other = data(1)[0]

    def loss(q, block_size):
        return nce.full_bank_softmax(
            q, bank, indices[:, 0], temperature=0.2, block_size=block_size
        ) + nce.queue_softmax(q, other, bank, temperature=0.2, block_size=block_size)

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    for block_size in (1, 3, 20):
        for a, b in zip(jax.tree.leaves(run(query, block_size)), jax.tree.leaves(run(query, None))):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_blocks_bound_the_memory():
    query, bank, indices = (
        jax.ShapeDtypeStruct(s, d)
        for s, d in (((32, 128), jnp.float32), ((512, 128), jnp.float32), ((32, 4097), jnp.int32))
    )

    def temporaries(block_size):
        def loss(q, bank, indices):
            start = nce.init_normalizer()
            return nce.nce(q, bank, indices, start, temperature=0.1, block_size=block_size)[0]

        compiled = jax.jit(jax.grad(loss)).lower(query, bank, indices).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    gathered = 32 * 4097 * 128 * 4
    assert temporaries(None) > 0.9 * gathered
    assert temporaries(128) < 0.15 * gathered


def test_gradient():
    query, bank, indices = data()
    # Z is a constant of the gradient, so differences are taken at a fixed one.
    fixed = nce.init_normalizer(3.0, dtype=float)
    check_grads(
        lambda q: nce.nce(q, bank, indices, fixed, temperature=0.3)[0], (query,), 1, modes="rev"
    )
    grad = jax.grad(lambda q, b: nce.nce(q, b, indices, fixed, temperature=0.3)[0], (0, 1))(
        query, bank
    )
    np.testing.assert_array_equal(grad[1], 0)
    first = nce.init_normalizer(dtype=float)
    z = oracle(query, bank, indices, 0.3, N)[1]
    given = nce.init_normalizer(z, dtype=float)
    set_now = jax.grad(lambda q: nce.nce(q, bank, indices, first, temperature=0.3)[0])(query)
    given = jax.grad(lambda q: nce.nce(q, bank, indices, given, temperature=0.3)[0])(query)
    np.testing.assert_allclose(set_now, given, rtol=1e-9)
    other = data(1)[0]
    grads = jax.grad(lambda q, k, rows: nce.queue_softmax(q, k, rows, temperature=0.3), (0, 1, 2))(
        query, other, bank
    )
    assert np.abs(grads[0]).max() > 0.01
    np.testing.assert_array_equal(grads[1], 0)
    np.testing.assert_array_equal(grads[2], 0)


def test_low_temperature_in_float32():
    query, bank, indices = data()
    expected = oracle(query, bank, indices, 0.005, N)[0]
    with jax.enable_x64(False):

        def loss(q):
            return nce.nce(
                q,
                jnp.asarray(bank, jnp.float32),
                jnp.asarray(indices),
                nce.init_normalizer(),
                temperature=0.005,
            )[0]

        value, grad = jax.value_and_grad(loss)(jnp.asarray(query, jnp.float32))
        # The largest similarity over temperature is above 88, where exp overflows float32.
        assert (query @ bank.T / 0.005).max() > 88
        np.testing.assert_allclose(value, expected, rtol=1e-4)
        assert np.isfinite(grad).all()
        zero = jax.value_and_grad(loss)(jnp.zeros((B, D), jnp.float32))
        assert all(np.isfinite(x).all() for x in zero)


def test_bfloat16_is_summed_in_float32():
    query, bank, indices = (jnp.asarray(x) for x in data())
    with jax.enable_x64(False):
        low = [x.astype(jnp.bfloat16) for x in (query, bank)]
        loss, normalizer = nce.nce(
            *low, indices.astype(jnp.int32), nce.init_normalizer(), temperature=0.2
        )
        high = nce.nce(
            *(x.astype(jnp.float32) for x in low),
            indices.astype(jnp.int32),
            nce.init_normalizer(),
            temperature=0.2,
        )[0]
        assert loss.dtype == jnp.float32 and normalizer.log_z.dtype == jnp.float32
        # Products are rounded to bfloat16 on some backends, sums never.
        np.testing.assert_allclose(loss, high, rtol=1e-2)


def test_draws_follow_the_example():
    ids = jnp.array([3, 9, 3, 0])
    drawn = nce.draw_indices(jax.random.key(0), ids, 10, 400)
    np.testing.assert_array_equal(drawn[:, 0], ids)
    np.testing.assert_array_equal(drawn[0], drawn[2])
    np.testing.assert_array_equal(
        drawn[1:2], nce.draw_indices(jax.random.key(0), ids[1:2], 10, 400)
    )
    assert (drawn[0, 1:] != drawn[1, 1:]).any()
    counts = np.bincount(np.asarray(drawn[:2, 1:]).ravel(), minlength=10)
    assert counts.min() > 50 and len(counts) == 10


def state(dtype):
    return nce.init_normalizer(dtype=dtype)


def test_devices():
    (query, bank, indices), (other, other_bank, _) = data(), data(1)

    def loss(query, other, bank, other_bank, indices, axis_name):
        start, knobs = state(query.dtype), {"temperature": 0.2, "axis_name": axis_name}
        return (
            nce.nce(query, bank, indices, start, **knobs)[0]
            + 2 * nce.nce(query, bank, indices, start, **knobs, block_size=4)[0]
            + 3 * nce.cross_nce(query, other, bank, other_bank, indices, (start, start), **knobs)[0]
            + 5 * nce.queue_nce(query, other, bank, start, **knobs, num_data=40)[0]
        )

    assert_parity(loss, (query, other, bank, other_bank, indices), (True, True, False, False, True))


@pytest.mark.slow
def test_devices_softmax():
    (query, bank, indices), (other, other_bank, _) = data(), data(1)

    def loss(a, b, bank_a, bank_b, indices, axis_name):
        knobs = {"temperature": 0.2, "axis_name": axis_name}
        return (
            nce.cross_bank_softmax(a, b, bank_a, bank_b, indices, b, a, **knobs, beta=0.3)
            + 2 * nce.full_bank_softmax(a, bank_a, indices[:, 0], **knobs, block_size=4)
            + 3 * nce.cross_queue_softmax(a, b, a, b, bank_a, bank_b, **knobs)
        )

    assert_parity(loss, (query, other, bank, other_bank, indices), (True, True, False, False, True))


def test_an_image_outside_of_the_bank_counts_as_zero_on_any_number_of_devices():
    query, bank, indices = data()
    given = indices.copy()
    given[1, 0], given[5, 0], given[2, 3] = -1, N, N + 3
    ids = given[:, 0]

    def losses(query, bank, given, ids, axis_name=None):
        knobs = {"temperature": 0.3, "axis_name": axis_name}
        start = nce.init_normalizer(dtype=float)
        value, after = nce.nce(query, bank, given, start, **knobs)
        outside = jnp.full_like(given, -1)
        nothing, unmoved = nce.nce(query, bank, outside, start, **knobs)
        return (
            nce.bank_logits(query, bank, given, **knobs),
            jnp.stack(
                [
                    value,
                    after.log_z,
                    nce.bank_softmax(query, bank, given, **knobs),
                    nce.full_bank_softmax(query, bank, ids, **knobs),
                    nothing,
                    1.0 * unmoved.batches,
                ]
            ),
        )

    logits, one = jax.jit(losses)(query, bank, given, ids)
    held = np.delete(np.arange(B), [1, 5])
    assert logits[1, 0] == logits[5, 0] == logits[2, 3] == 0
    some = np.array(logits)[held]
    z = N * np.exp(some).mean()
    p, noise = np.exp(some) / z, K / N + 1e-7
    rows = np.log(p[:, 0] / (p[:, 0] + noise)) + np.log(K / N / (p[:, 1:] + noise)).sum(1)
    every = query[held] @ bank.T / 0.3
    own = every[np.arange(6), ids[held]]
    expected = [
        -rows.sum() / B,
        np.log(z),
        (np.log(np.exp(some).sum(1)) - some[:, 0]).sum() / B,
        (np.log(np.exp(every).sum(1)) - own).sum() / B,
        0,
        0,
    ]
    np.testing.assert_allclose(one, expected, rtol=1e-9)

    split, whole = PartitionSpec("i"), PartitionSpec()
    mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    two = jax.shard_map(
        lambda *args: losses(*args, axis_name="i"),
        mesh=mesh,
        in_specs=split,
        out_specs=(split, whole),
        check_vma=False,
    )
    rows = Sharded(jnp.pad(bank, ((0, 1), (0, 0))), N, 2)
    for a, b in zip(jax.jit(two)(query, rows, given, ids), (logits, one)):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_errors():
    query, bank, indices = data()
    start = nce.init_normalizer(dtype=float)
    with pytest.raises(ValueError, match="temperature is 0; expected a number above 0"):
        nce.nce(query, bank, indices, start, temperature=0)
    with pytest.raises(ValueError, match="indices has dtype float64"):
        nce.nce(query, bank, indices * 1.0, start, temperature=0.1)
    with pytest.raises(ValueError, match="d = 4 as in an earlier argument, got 3"):
        nce.nce(query, bank[:, :3], indices, start, temperature=0.1)
    with pytest.raises(ValueError, match="at least one negative"):
        nce.nce(query, bank, indices[:, :1], start, temperature=0.1)
    with pytest.raises(ValueError, match="momentum is 1"):
        nce.nce(query, bank, indices, start, temperature=0.1, momentum=1)
    with pytest.raises(ValueError, match="'i' is not mapped"):
        nce.nce(query, bank, indices, start, temperature=0.1, axis_name="i")
    with pytest.raises(ValueError, match="'i' is not mapped"):
        nce.bank_softmax(query, bank, indices, temperature=0.1, axis_name="i")
    with pytest.raises(ValueError, match="jigsaw has shape"):
        nce.bank_softmax(query, bank, indices, query[:2], temperature=0.1)
    with pytest.raises(ValueError, match="block_size is 0; expected an integer"):
        nce.nce(query, bank, indices, start, temperature=0.1, block_size=0)
    with pytest.raises(ValueError, match="key has shape"):
        nce.queue_nce(query, query[:2], bank, start, temperature=0.1, num_data=4)
