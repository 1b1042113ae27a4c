"""InfoNCE and its kin against float64 loops, across devices and block sizes, and at the edges."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from cl_jax.losses import infonce
from cl_jax.memory import queue as queues
from tests.losses.compiled import compiled
from tests.losses.parity import assert_parity, unit

module = compiled(infonce)

RNG = np.random.default_rng(0)
A, B, C = RNG.normal(size=(3, 7, 5))
QUEUE = RNG.normal(size=(9, 5))
OWN = RNG.normal(size=(7, 4, 5))
VALID = np.arange(9) % 3 > 0
BLOCKS = [None, 0, 3]


def cross_entropy(positive, others):
    return np.log(np.exp(positive) + sum(np.exp(s) for s in others)) - positive


def oracle_views(views, temperature, normalise=True):
    rows = [(i, unit(x) if normalise else x) for view in views for i, x in enumerate(view)]
    losses = []
    for n, (i, x) in enumerate(rows):
        s = {m: x @ y / temperature for m, (_, y) in enumerate(rows) if m != n}
        total = np.log(sum(np.exp(v) for v in s.values()))
        losses.append(np.mean([total - s[m] for m in s if rows[m][0] == i]))
    return np.mean(losses)


def oracle_info_nce(q, k, temperature, in_batch, negatives=None, valid=None, own=None):
    q, k = unit(q), unit(k)
    losses = []
    for i in range(len(q)):
        others = [k[j] for j in range(len(k)) if in_batch and j != i]
        mine = [] if negatives is None else unit(negatives[i]) if negatives.ndim == 3 else negatives
        for j, n in enumerate(mine):
            allowed = valid is None or (valid[j] if valid.ndim == 1 else valid[i, j])
            if allowed and (own is None or own[i] != j):
                others.append(n)
        losses.append(
            cross_entropy(q[i] @ k[i] / temperature, [q[i] @ n / temperature for n in others])
        )
    return np.mean(losses)


@pytest.mark.parametrize("block_size", BLOCKS)
def test_nt_xent_is_the_formula(block_size):
    @jax.jit
    def ours(a, b, c):
        loss = partial(infonce.nt_xent, temperature=0.5, block_size=block_size)
        return (
            loss(a, b),
            loss(a, b, normalise=False),
            loss(a, b, sum_directions=True),
            infonce.nt_xent_views(jnp.stack([a, b, c]), temperature=0.2, block_size=block_size),
        )

    expected = (
        oracle_views([A, B], 0.5),
        oracle_views([A, B], 0.5, False),
        2 * oracle_views([A, B], 0.5),
        oracle_views([A, B, C], 0.2),
    )
    with jax.enable_x64(True):
        np.testing.assert_allclose(ours(A, B, C), expected, rtol=1e-12)


@pytest.mark.parametrize("block_size", [pytest.param(None, marks=pytest.mark.slow), 0, 3])
def test_info_nce_is_the_formula(block_size):
    own, valid_rows = np.arange(7) - 1, RNG.integers(0, 2, (7, 9)).astype(bool)
    calls = [
        ({}, True),
        ({"negatives": QUEUE}, False),
        ({"negatives": QUEUE, "in_batch": True}, True),
        ({"negatives": OWN}, False),
        ({"negatives": OWN, "in_batch": True}, True),
        ({"negatives": OWN, "valid": valid_rows[:, :4]}, False),
        ({"negatives": QUEUE, "valid": VALID}, False),
        ({"negatives": QUEUE, "own": own}, False),
        ({"negatives": QUEUE, "own": own, "valid": VALID}, False),
        ({"negatives": QUEUE, "own": own, "valid": valid_rows}, False),
    ]

    @jax.jit
    def ours(a, b):
        loss = partial(infonce.info_nce, a, b, temperature=0.3, block_size=block_size)
        return [loss(**given) for given, _ in calls], loss(symmetric=True)

    with jax.enable_x64(True):
        values, both = ours(A, B)
    for value, (given, in_batch) in zip(values, calls):
        expected = oracle_info_nce(
            A, B, 0.3, in_batch, **{n: x for n, x in given.items() if n != "in_batch"}
        )
        np.testing.assert_allclose(value, expected, rtol=1e-12, err_msg=str(list(given)))
    np.testing.assert_allclose(
        both,
        (oracle_info_nce(A, B, 0.3, True) + oracle_info_nce(B, A, 0.3, True)) / 2,
        rtol=1e-12,
    )


def test_decoupled_is_the_loss_without_its_positive_below():
    """log(e^p + sum) - p is the softplus of log(sum) - p."""

    @jax.jit
    def both(q, k, queue):
        rows = partial(infonce.info_nce_rows, q, k, temperature=0.5)
        given = (
            {"block_size": 3},
            {"symmetric": True},
            {"negatives": queue, "valid": VALID},
            {"negatives": queue, "in_batch": True},
            {"negatives": OWN},
        )
        return [(rows(**one), rows(**one, decoupled=True)) for one in given], rows(
            negatives=queue, valid=VALID & False, decoupled=True
        )

    with jax.enable_x64(True):
        pairs, without = both(A, B, QUEUE)
        for coupled, decoupled in pairs:
            np.testing.assert_allclose(jax.nn.softplus(decoupled), coupled, rtol=1e-12)
        np.testing.assert_array_equal(without, 0)


def test_moco_v3_and_n_pair_are_their_formulas():
    with jax.enable_x64(True):
        ours = module.moco_v3(A, B, C, QUEUE[:7], temperature=0.2)
        expected = 0.4 * (
            oracle_info_nce(A, QUEUE[:7], 0.2, True) + oracle_info_nce(B, C, 0.2, True)
        )
        np.testing.assert_allclose(ours, expected, rtol=1e-12)
        grads = jax.grad(partial(module.moco_v3, temperature=0.2), argnums=(2, 3))(A, B, C, A)
        assert not any(g.any() for g in grads)
        s = A @ B.T
        loss = np.mean(
            [
                np.log(1 + sum(np.exp(s[i, j] - s[i, i]) for j in range(7) if j != i))
                for i in range(7)
            ]
        )
        np.testing.assert_allclose(module.n_pair(A, B), loss, rtol=1e-12)
        np.testing.assert_allclose(
            module.n_pair(A, B, l2_weight=0.02),
            loss + 0.01 * np.mean((A**2).sum(1) + (B**2).sum(1)),
            rtol=1e-12,
        )


@pytest.mark.parametrize(
    "loss",
    [
        partial(module.nt_xent, temperature=0.5),
        partial(module.nt_xent, temperature=0.5, block_size=3),
        partial(module.info_nce, temperature=0.3, symmetric=True, block_size=3),
        partial(module.n_pair, l2_weight=0.1),
    ],
    ids=["nt_xent", "nt_xent in blocks", "info_nce", "n_pair"],
)
def test_gradients(loss):
    with jax.enable_x64(True):
        jax.test_util.check_grads(
            jax.jit(loss), (jnp.asarray(A), jnp.asarray(B)), order=1, modes=["rev"], rtol=1e-6
        )


@pytest.mark.parametrize("block_size", [0, 4])
def test_gradients_of_negatives(block_size):
    def loss(q, k, queue, own):
        shared = {"temperature": 0.3, "block_size": block_size}
        return module.info_nce(q, k, queue, in_batch=True, valid=VALID, **shared) + module.info_nce(
            q, k, own, **shared
        )

    with jax.enable_x64(True):
        args = [jnp.asarray(x) for x in (A, B, QUEUE, OWN)]
        jax.test_util.check_grads(jax.jit(loss), args, order=1, modes=["rev"], rtol=1e-6)
        assert not np.any(jax.jit(jax.grad(loss, argnums=2))(*args)[~VALID])


def test_knowing_nothing():
    same = jnp.ones((6, 4))
    queue = jnp.full((9, 4), 0.5)
    for ours, count in (
        (module.nt_xent(same, same, temperature=0.1), 11),
        (module.nt_xent_views(jnp.ones((3, 6, 4)), temperature=0.1), 17),
        (module.info_nce(same, same, temperature=0.1), 6),
        (module.info_nce(same, same, queue, temperature=0.1), 10),
        (module.info_nce(same, same, queue, in_batch=True, temperature=0.1), 15),
        (module.info_nce(same, same, queue, valid=jnp.arange(9) < 4, temperature=0.1), 5),
    ):
        np.testing.assert_allclose(ours, np.log(count), rtol=1e-6)
    np.testing.assert_allclose(
        module.moco_v3(same, same, same, same, temperature=0.2), 0.8 * np.log(6), rtol=1e-6
    )


def test_kin():
    """The losses that are one another's special cases."""
    with jax.enable_x64(True):
        two = module.nt_xent(A, B, temperature=0.4)
        np.testing.assert_allclose(
            two, module.nt_xent_views(np.stack([A, B]), temperature=0.4), rtol=1e-13
        )
        np.testing.assert_allclose(two, module.nt_xent(3 * B, A / 2, temperature=0.4), rtol=1e-12)
        given = np.stack([np.delete(B, i, axis=0) for i in range(7)])
        np.testing.assert_allclose(
            module.info_nce(A, B, temperature=0.4),
            module.info_nce(A, B, given, temperature=0.4),
            rtol=1e-12,
        )
        np.testing.assert_allclose(
            module.info_nce(A, B, temperature=0.4),
            module.info_nce(A, B, unit(B), own=np.arange(7), temperature=0.4),
            rtol=1e-12,
        )


def test_views_of_a_pair_loss():
    loss = partial(module.nt_xent, temperature=0.5)
    views = jnp.asarray([A, B, C])
    ab, ac, bc = loss(A, B), loss(A, C), loss(B, C)
    np.testing.assert_allclose(module.core_view(loss, views), ab + ac, rtol=1e-6)
    np.testing.assert_allclose(module.full_graph(loss, [A, B, C]), ab + ac + bc, rtol=1e-6)
    with pytest.raises(ValueError, match="1 view given"):
        module.core_view(loss, [A])


def test_logits():
    ab = module.nt_xent_logits(jnp.asarray(A), jnp.asarray(B), temperature=0.5)
    np.testing.assert_allclose(ab.logits, unit(A) @ unit(B).T / 0.5, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(ab.labels, np.arange(7))


@pytest.mark.parametrize("plan", ["gather", "ring"])
def test_nt_xent_on_devices(plan):
    z = np.random.default_rng(1).normal(size=(2, 16, 4))
    assert_parity(
        partial(
            module.nt_xent, temperature=0.3, plan=plan, block_size=None if plan == "gather" else 2
        ),
        z,
        [True, True],
        every_way=plan == "gather",
    )


def test_many_views_on_devices():
    z = np.random.default_rng(2).normal(size=(8, 3, 4))

    def loss(z, *, axis_name):
        return module.nt_xent_views(z.swapaxes(0, 1), temperature=0.3, axis_name=axis_name)

    assert_parity(loss, [z], [True])


@pytest.mark.slow
def test_info_nce_on_devices():
    rng = np.random.default_rng(3)

    def loss(q, k, own, queue, *, axis_name):
        shared = {"temperature": 0.3, "axis_name": axis_name}
        return (
            module.info_nce(q, k, queue, in_batch=True, block_size=3, **shared)
            + module.info_nce(q, k, queue, valid=np.arange(5) < 3, **shared)
            + module.info_nce(q, k, own, **shared)
            + module.info_nce(q, k, symmetric=True, **shared)
        )

    assert_parity(
        loss,
        [*rng.normal(size=(2, 8, 4)), rng.normal(size=(8, 3, 4)), rng.normal(size=(5, 4))],
        [True, True, True, False],
    )


@pytest.mark.slow
def test_moco_v3_and_n_pair_on_devices():
    def loss(a, b, c, d, *, axis_name):
        return module.moco_v3(
            a, b, c, d, temperature=0.3, axis_name=axis_name, plan="ring"
        ) + module.n_pair(a, b, l2_weight=0.1, axis_name=axis_name)

    assert_parity(loss, np.random.default_rng(4).normal(size=(4, 8, 4)), [True] * 4)


@pytest.mark.parametrize("block_size", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_edges(block_size):
    """Zero rows, a batch of one, a low temperature, a queue without a valid row: finite value and
    gradient."""
    a, b = jnp.asarray(A, jnp.float32).at[2].set(0), jnp.asarray(B, jnp.float32).at[2:4].set(0)
    shared = {"block_size": block_size}
    losses = [
        partial(module.nt_xent, temperature=0.01, **shared),
        partial(module.info_nce, temperature=0.01, **shared),
        partial(
            module.info_nce, negatives=jnp.asarray(QUEUE, jnp.float32), temperature=0.07, **shared
        ),
        partial(module.n_pair, **shared),
    ]

    def values(losses, a, b):
        gradients = [jax.value_and_grad(loss, argnums=(0, 1)) for loss in losses]
        return jax.jit(lambda a, b: [gradient(a, b) for gradient in gradients])(a, b)

    for value, grads in values(losses, a, b):
        assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)
    start = queues.init(jax.random.key(0), 9, 5)
    empty = [
        partial(module.info_nce, **({"negatives": start.rows} | given), temperature=0.07, **shared)
        for given in ({"valid": queues.valid(start)}, {"negatives": start.rows[:0]})
    ]
    for value, grads in values(empty, a, b):
        assert value == 0 and not any(g.any() for g in grads)
    for value, grads in values(losses[:2], a[:1], b[:1]):
        np.testing.assert_allclose(value, 0, atol=1e-5)
        np.testing.assert_allclose(grads, 0, atol=1e-3)


@pytest.mark.parametrize("block_size", [0, 4])
def test_bfloat16_is_summed_in_float32(block_size):
    a, b = jnp.asarray(A, jnp.bfloat16), jnp.asarray(B, jnp.bfloat16)
    value, grad = jax.value_and_grad(module.nt_xent)(a, b, temperature=0.5, block_size=block_size)
    assert value.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, oracle_views([np.float64(a), np.float64(b)], 0.5), rtol=5e-3)


def test_memory_is_linear():
    def temporaries(rows):
        step = jax.jit(jax.value_and_grad(partial(module.nt_xent, temperature=0.1), argnums=(0, 1)))
        shape = jax.ShapeDtypeStruct((rows // 2, 128), jnp.float32)
        return step.lower(shape, shape).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(65536) < 2**28  # the matrix is 16 GiB


def test_errors():
    a = jnp.ones((4, 3))
    nt, nce = partial(module.nt_xent, temperature=0.5), partial(module.info_nce, temperature=0.5)
    for call, text in (
        (lambda: nt(a, a[:3]), r"z_b has shape \(3, 3\).*b = 4 as in z_a, got 3"),
        (lambda: nt(a[0], a[0]), r"z_a has shape \(3,\), 1 axes; expected \[b, d\]"),
        (lambda: nt(a, a[:, :2]), r"z_b has shape \(4, 2\).*d = 3"),
        (lambda: nt(a.astype(int), a), "z_a has dtype int32; expected floating-point"),
        (lambda: nt(a, a.astype(complex)), "z_b has dtype complex64"),
        (
            lambda: module.nt_xent(a, a, temperature=0),
            "temperature is 0; expected a number above 0",
        ),
        (lambda: nt(a, a, axis_name="batch"), "axis_name='batch' is not mapped here"),
        (lambda: nt(a, a, plan="star"), "plan is 'star'"),
        (lambda: nt(a, a, block_size=-2), "block_size is -2"),
        (lambda: module.nt_xent_views(a[None], temperature=0.5), "one view; expected"),
        (lambda: nce(a, a, jnp.ones((5, 2))), r"negatives has shape \(5, 2\).*d = 3"),
        (lambda: nce(a, a, jnp.ones((3, 5, 3))), r"negatives has shape \(3, 5, 3\).*b = 4"),
        (lambda: nce(a, a, in_batch=False), "in_batch is False and negatives are None"),
        (lambda: nce(a, a, a, symmetric=True), "symmetric is True and negatives are given"),
        (lambda: nce(a[:1], a[:1], decoupled=True), "1 example and decoupled is True"),
        (lambda: nce(a, a, own=jnp.arange(4)), "without negatives"),
        (lambda: nce(a, a, a, own=jnp.arange(3)), r"own has shape \(3,\)"),
        (lambda: nce(a, a, a, own=jnp.ones(4)), "own has dtype float32; expected integers"),
        (lambda: nce(a, a, a, valid=jnp.ones(3)), r"valid has shape \(3,\)"),
        (lambda: nce(a, a, jnp.ones((4, 2, 3)), own=jnp.arange(4)), "expected a shared bank"),
        (lambda: module.moco_v3(a, a, a, a[:2], temperature=1.0), r"k_b has shape \(2, 3\)"),
    ):
        with pytest.raises(ValueError, match=text):
            call()
