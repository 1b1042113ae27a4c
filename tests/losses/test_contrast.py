"""The streamed contrast against float64 loops, between its plans and devices, and its memory."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from cl_jax.losses.contrast import (
    LOG_ZERO,
    allow,
    contrast,
    not_self,
    pair_sums,
    row_ids,
    same_id,
    same_label,
)
from tests.losses.parity import assert_parity, unit

RNG = np.random.default_rng(0)
Q, K = RNG.normal(size=(13, 5)), RNG.normal(size=(19, 5))
LABEL_Q, LABEL_K = RNG.integers(0, 4, 13), RNG.integers(0, 4, 19)
BIAS = RNG.normal(size=19)
COTANGENTS = [RNG.normal(size=n) for n in (13, 13, 13, 19, 19, 19)]
PLANS = ["gather", "ring"]


def other_label(rows, cols):
    return allow(~same_label(rows, cols)) + cols["bias"][None, :]


def weighted_label(rows, cols):
    return same_label(rows, cols) * cols["bias"][None, :] ** 2


def everything(q, k, bias, scale, label_q, label_k, *, block_size, axis_name=None, plan="gather"):
    return contrast(
        q,
        k,
        scale=scale,
        rows={"label": label_q},
        cols={"label": label_k, "bias": bias},
        log_weight=other_label,
        positive=weighted_label,
        columns=True,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )


def oracle(q, k, bias, scale, label_q, label_k):
    s = np.array([[scale * sum(a * b for a, b in zip(x, y)) for y in k] for x in q])
    powers = np.array(
        [
            [np.exp(s[i, j] + bias[j]) * (label_q[i] != label_k[j]) for j in range(len(k))]
            for i in range(len(q))
        ]
    )
    pulled = np.array(
        [
            [s[i, j] * bias[j] ** 2 * (label_q[i] == label_k[j]) for j in range(len(k))]
            for i in range(len(q))
        ]
    )
    rows, cols = (
        [np.log(powers.sum(axis)) for axis in (1, 0)],
        [pulled.sum(axis) for axis in (1, 0)],
    )
    highest = np.array(
        [
            max(s[i, j] + bias[j] for j in range(len(k)) if label_q[i] != label_k[j])
            for i in range(len(q))
        ]
    )
    return [rows[0], cols[0], rows[0] - cols[0], rows[1], cols[1], rows[1] - cols[1], highest]


EIGHT = pytest.param(8, marks=pytest.mark.slow)  # ragged tiles, as of 4


@pytest.mark.parametrize("block_size", [0, 4, EIGHT, 100, None])
def test_value_is_the_formula(block_size):
    with jax.enable_x64(True):
        ours = jax.jit(partial(everything, block_size=block_size))(
            Q, K, BIAS, 2.0, LABEL_Q, LABEL_K
        )
    for a, b in zip(ours, oracle(Q, K, BIAS, 2.0, LABEL_Q, LABEL_K), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block_size", [0, 4, EIGHT, pytest.param(100, marks=pytest.mark.slow)])
def test_gradient_is_the_numerical_one(block_size):
    def loss(q, k, bias, scale):
        out = everything(q, k, bias, scale, LABEL_Q, LABEL_K, block_size=block_size)
        return sum(jnp.vdot(c, x) for c, x in zip(COTANGENTS, out))

    with jax.enable_x64(True):
        args = [jnp.asarray(a) for a in (Q, K, BIAS, 2.0)]
        jax.test_util.check_grads(jax.jit(loss), args, order=1, modes=["rev"], rtol=1e-6)


@pytest.mark.parametrize("block_size", [0, 4])
def test_columns_at_a_scale_of_their_own(block_size):
    def total(q, k, scale, column_ratio, columns):
        out = contrast(
            q,
            k,
            scale=scale,
            rows={"label": LABEL_Q},
            cols={"label": LABEL_K, "bias": BIAS},
            log_weight=other_label,
            columns=columns,
            column_ratio=column_ratio,
            block_size=block_size,
        )
        return jnp.vdot(COTANGENTS[0], out.lse), (
            jnp.vdot(COTANGENTS[3], out.col_lse) if columns else 0.0
        )

    def both(q, k, scale):
        return sum(total(q, k, scale, 0.4, True))

    def apart(q, k, scale):
        return total(q, k, scale, 1.0, False)[0] + total(q, k, 0.4 * scale, 1.0, True)[1]

    with jax.enable_x64(True):
        ours, exact = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(Q, K, 2.0) for f in (both, apart))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("block_size", [0, 4])
def test_sums_of_any_function_of_a_pair(block_size):
    def sums(q, k, bias, scale):
        return pair_sums(
            q,
            k,
            lambda s, rows, cols: jnp.tanh(s + cols["bias"][None, :]) * same_label(rows, cols),
            scale=scale,
            rows={"label": LABEL_Q},
            cols={"label": LABEL_K, "bias": bias},
            block_size=block_size,
        )

    with jax.enable_x64(True):
        args = [jnp.asarray(a) for a in (Q, K, BIAS, 0.3)]
        expected = [
            sum(np.tanh(0.3 * Q[i] @ K[j] + BIAS[j]) for j in range(19) if LABEL_K[j] == LABEL_Q[i])
            for i in range(13)
        ]
        np.testing.assert_allclose(jax.jit(sums)(*args), expected, rtol=1e-12, atol=1e-12)
        jax.test_util.check_grads(
            jax.jit(lambda *args: jnp.vdot(sums(*args), COTANGENTS[0])),
            args,
            order=1,
            modes=["rev"],
            rtol=1e-6,
        )


def test_scale_may_be_a_number_or_an_array():
    @jax.jit
    def both(q):
        return [
            everything(q, K, BIAS, scale, LABEL_Q, LABEL_K, block_size=8)
            for scale in (2.0, jnp.asarray(2))
        ]

    with jax.enable_x64(True):
        found = both(Q)
    for x, y in zip(*found):
        np.testing.assert_allclose(x, y, rtol=1e-13)


def test_plain_matrix_differentiates_twice_and_forward():
    with jax.enable_x64(True):
        jax.test_util.check_grads(
            jax.jit(lambda q: contrast(q, K, scale=2.0, block_size=0).gap.sum()),
            (jnp.asarray(Q[:3]),),
            order=2,
            rtol=1e-5,
        )


def paired(q, k, label_q, label_k, bias, scale, *, axis_name, plan, block_size):
    """A scalar that uses every output, ids over devices, labels, and a bias that travels with the
    keys."""
    out = contrast(
        q,
        k,
        scale=scale,
        rows={"label": label_q, "id": row_ids(q.shape[0], axis_name)},
        cols={"label": label_k, "id": row_ids(k.shape[0], axis_name), "bias": bias},
        log_weight=lambda r, c: not_self(r, c) + other_label(r, c),
        positive=same_id,
        columns=True,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )
    loss = (out.gap + 0.3 * out.lse - 0.2 * out.pos**2 + 0.1 * out.highest).mean() + (
        0.5 * out.col_gap + out.col_lse**2 + out.col_pos
    ).mean()
    return loss if axis_name is None else lax.pmean(loss, axis_name)


@pytest.mark.parametrize(
    ("plan", "block_size"),
    [
        pytest.param("gather", 0, marks=pytest.mark.slow),
        ("gather", 3),
        pytest.param("ring", None, marks=pytest.mark.slow),
        ("ring", 3),
    ],
)
def test_devices_agree_with_one(plan, block_size):
    rng = np.random.default_rng(1)
    args = [
        rng.normal(size=(16, 4)),
        rng.normal(size=(16, 4)),
        rng.integers(0, 3, 16),
        rng.integers(3, 5, 16),
        rng.normal(size=16),
        np.array(1.7),
    ]
    assert_parity(
        partial(paired, plan=plan, block_size=block_size),
        args,
        [True, True, True, True, True, False],
    )


@pytest.mark.parametrize("plan", PLANS)
def test_more_keys_than_queries_on_devices(plan):
    rng = np.random.default_rng(2)

    def loss(q, k, *, axis_name):
        value = contrast(q, k, scale=3.0, axis_name=axis_name, plan=plan, block_size=2).lse.mean()
        return value if axis_name is None else lax.pmean(value, axis_name)

    assert_parity(
        loss, [unit(rng.normal(size=(8, 4))), unit(rng.normal(size=(24, 4)))], [True, True]
    )


def test_replicated_keys_inside_a_mapped_function():
    """A queue that all devices hold is contrasted without an axis; under the varying-axes check
    too."""
    rng = np.random.default_rng(3)

    def loss(q, queue, *, axis_name):
        value = contrast(q, queue, scale=3.0, block_size=5).lse.mean()
        return value if axis_name is None else lax.pmean(value, axis_name)

    assert_parity(
        loss, [unit(rng.normal(size=(8, 4))), unit(rng.normal(size=(7, 4)))], [True, False]
    )


@pytest.mark.parametrize("block_size", [0, 3])
def test_rows_and_columns_without_anything(block_size):
    rows, cols = {"label": jnp.array([0, 1, 2, 0])}, {"label": jnp.array([0, 0, 1, 3])}

    def outputs(q, k):
        return contrast(
            q,
            k,
            scale=5.0,
            rows=rows,
            cols=cols,
            positive=same_label,
            columns=True,
            log_weight=lambda r, c: allow(same_label(r, c)),
            block_size=block_size,
        )

    names = ("lse", "gap", "col_lse", "col_gap")

    @jax.jit
    def with_gradients(q, k):
        def totals(q, k):
            out = outputs(q, k)
            return jnp.stack([getattr(out, name).sum() for name in names]), out

        return jax.jacrev(totals, argnums=(0, 1), has_aux=True)(q, k)

    jacobians, out = with_gradients(jnp.ones((4, 3)), jnp.full((4, 3), 0.1))
    assert out.lse[2] == out.col_lse[3] == np.float32(LOG_ZERO)
    assert out.gap[2] == out.pos[2] == out.col_gap[3] == out.col_pos[3] == 0
    for grads in zip(*map(np.asarray, jacobians)):
        assert all(np.isfinite(g).all() for g in grads)
        assert not grads[0][2].any() and not grads[1][3].any()


@pytest.mark.parametrize("block_size", [0, 2])
def test_the_positive_wins_where_it_is_highest(block_size):
    """To the bit, ties included, and without a gradient."""
    q = jnp.asarray(np.random.default_rng(5).normal(size=(5, 3)), jnp.float32)
    q = q / jnp.linalg.norm(q, axis=1, keepdims=True)
    k = q.at[3].set(-q[3]).at[4].set(q[2])  # the key of 3 is its opposite, that of 4 a copy of 2's
    ids = {"id": jnp.arange(5)}

    def sums(q):
        return contrast(
            q, k, scale=3.0, rows=ids, cols=ids, positive=same_id, block_size=block_size
        )

    @jax.jit
    def with_gradient(q):
        return sums(q), jax.grad(lambda q: sums(q).highest.sum())(q)

    out, gradient = with_gradient(q)
    np.testing.assert_array_equal(out.pos >= out.highest, [True, True, True, False, False])
    assert not np.any(gradient)


@pytest.mark.parametrize("block_size", [0, 3])
def test_very_negative_log_weights_mask(block_size):
    ids = {"id": jnp.arange(13)}
    loss = partial(contrast, scale=1.0, rows=ids, cols=ids, block_size=block_size)

    def finite(r, c):
        return jnp.where(same_id(r, c), jnp.finfo(jnp.float32).min, 0)

    @jax.jit
    def both(q):
        return [loss(q, q, log_weight=weight).lse for weight in (finite, not_self)]

    np.testing.assert_array_equal(*both(Q.astype(np.float32)))


def pairs(n, noise, dtype):
    """Unit rows and noisy copies: the loss of copies is low, where softmax and indicator nearly
    cancel."""
    rng = np.random.default_rng(4)
    q = rng.normal(size=(n, 32))
    k = q + noise * rng.normal(size=(n, 32))
    q, k = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, k))
    return jnp.asarray(q, dtype), jnp.asarray(k, dtype)


@pytest.mark.parametrize("block_size", [0, 64])
@pytest.mark.parametrize(("dtype", "bound"), [(jnp.bfloat16, 5e-3), (jnp.float32, 5e-5)])
def test_gradient_at_low_loss(dtype, bound, block_size):
    """Subtracting the positive after the product instead makes the bfloat16 gradient wrong by a
    tenth here."""

    def loss(q, k, block_size):
        ids = {"id": jnp.arange(q.shape[0])}
        out = contrast(
            q,
            k,
            scale=14.0,
            rows=ids,
            cols=ids,
            positive=same_id,
            columns=True,
            block_size=block_size,
        )
        return (out.gap + out.col_gap).mean() / 2

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), static_argnums=2)
    q, k = pairs(512, 0.2, dtype)
    value, grads = step(q, k, block_size)
    with jax.enable_x64(True):
        exact, exact_grads = jax.device_get(
            step(*(np.asarray(x).astype(np.float64) for x in (q, k)), 0)
        )
    assert 1e-3 < exact < 0.05
    assert abs(float(value) - exact) < 1e-6
    for a, b in zip(grads, exact_grads):
        assert a.dtype == dtype
        assert np.linalg.norm(np.asarray(a).astype(np.float64) - b) / np.linalg.norm(b) < bound


def test_gap_keeps_the_digits_of_a_low_loss():
    q = jnp.eye(4, dtype=jnp.float32)
    ids = {"id": jnp.arange(4)}
    loss = partial(contrast, scale=100.0, rows=ids, cols=ids, positive=same_id)
    for block_size in (0, 2):
        out = jax.jit(
            lambda q, size: loss(
                q, q, block_size=size, log_weight=lambda r, c: 90.0 * ~same_id(r, c)
            ),
            static_argnums=1,
        )(q, block_size)
        np.testing.assert_allclose(out.gap, np.log1p(3 * np.exp(-10)), rtol=1e-3)
        assert out.lse.dtype == jnp.float32


def loss_of_rows(z, block_size, axis_name=None, plan="gather"):
    ids = {"id": row_ids(z.shape[0], axis_name)}
    out = contrast(
        z,
        z,
        scale=10.0,
        rows=ids,
        cols=ids,
        log_weight=not_self,
        positive=same_id,
        axis_name=axis_name,
        plan=plan,
        block_size=block_size,
    )
    return out.gap.mean() if axis_name is None else lax.pmean(out.gap.mean(), axis_name)


def temporaries(rows, block_size=None):
    step = jax.jit(jax.value_and_grad(partial(loss_of_rows, block_size=block_size)))
    shape = jax.ShapeDtypeStruct((rows, 128), jnp.float32)
    return step.lower(shape).compile().memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_rows_and_not_their_square():
    at_64k = temporaries(65536)
    assert at_64k < 2**28
    assert at_64k < 2.2 * temporaries(32768)
    assert temporaries(4096, 0) > 4096**2 * 4 > 2 * temporaries(4096, 512)


@pytest.mark.parametrize("plan", PLANS)
def test_memory_on_devices(plan):
    """The ring holds a device's share of the keys; gathering holds all."""
    rows, width, n = 65536, 128, 8
    mesh = jax.make_mesh((n,), ("i",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(
        partial(loss_of_rows, block_size=512, axis_name="i", plan=plan),
        mesh=mesh,
        in_specs=PartitionSpec("i"),
        out_specs=PartitionSpec(),
    )
    step = jax.jit(jax.value_and_grad(mapped))
    used = step.lower(jax.ShapeDtypeStruct((rows, width), jnp.float32)).compile().memory_analysis()
    keys = rows * width * 4
    if plan == "ring":
        assert used.temp_size_in_bytes < keys
    else:
        assert keys < used.temp_size_in_bytes < 8 * keys


def test_errors():
    q, k = jnp.ones((4, 3)), jnp.ones((6, 3))
    with pytest.raises(ValueError, match=r"keys has shape \(6, 2\).*d = 3"):
        contrast(q, k[:, :2], scale=1.0)
    with pytest.raises(ValueError, match=r"queries has shape \(4,\)"):
        contrast(q[:, 0], k, scale=1.0)
    with pytest.raises(ValueError, match="dtype int32"):
        contrast(q.astype(int), k, scale=1.0)
    with pytest.raises(ValueError, match="dtype complex64"):
        contrast(q, k.astype(complex), scale=1.0)
    with pytest.raises(ValueError, match=r"cols\['label'\] has shape \(4,\); expected \[6"):
        contrast(q, k, scale=1.0, cols={"label": jnp.ones(4)})
    with pytest.raises(ValueError, match="plan is 'rign'"):
        contrast(q, k, scale=1.0, plan="rign")
    with pytest.raises(ValueError, match="block_size is -1"):
        contrast(q, k, scale=1.0, block_size=-1)
    with pytest.raises(ValueError, match="scale has shape"):
        contrast(q, k, scale=jnp.ones(4))
    with pytest.raises(ValueError, match=r"log_weight returned shape \(6,\)"):
        contrast(q, k, scale=1.0, cols={"w": jnp.ones(6)}, log_weight=lambda r, c: c["w"])
    with pytest.raises(ValueError, match="axis_name='i' is not mapped"):
        contrast(q, k, scale=1.0, axis_name="i")
