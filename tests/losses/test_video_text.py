"""Support sets and ranking losses against loops, with several captions per video, over devices and
at the edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.losses import video_text
from tests.losses.compiled import as_given, compiled
from tests.losses.parity import assert_parity

module = compiled(as_given(video_text))

IDS = np.array([4, 4, 2, 7, 5, 2, 9, 1])


def batch(seed=0, rows=8, width=5):
    rng = np.random.default_rng(seed)
    t, v = rng.normal(size=(2, rows, width))
    return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (t, v)]


def oracle_support(t, v, ids, temperature, support):
    attention, entropy = np.zeros((len(t), len(v))), np.zeros(len(t))
    for i in range(len(t)):
        allowed = [
            j
            for j in range(len(v))
            if support == "hybrid"
            or (support == "cross" and ids[j] != ids[i])
            or (support == "identity" and i == j)
        ]
        for j in allowed:
            total = sum(np.exp(t[i] @ v[k] / temperature) for k in allowed)
            attention[i, j] = np.exp(t[i] @ v[j] / temperature) / total
            entropy[i] -= attention[i, j] * np.log(attention[i, j])
    return attention @ v, attention, entropy


def oracle_ranking(t, v, ids, margin, reduction):
    reduce = max if reduction == "hardest" else sum
    total = 0.0
    for i in range(len(t)):
        others = [j for j in range(len(t)) if ids[j] != ids[i]]
        total += reduce([max(margin + t[i] @ v[j] - t[i] @ v[i], 0) for j in others] or [0])
        total += reduce([max(margin + t[j] @ v[i] - t[i] @ v[i], 0) for j in others] or [0])
    return total / len(t)


@pytest.mark.parametrize("support", ["cross", "hybrid", "identity"])
def test_support_set_equals_loops(support):
    t, v = batch()
    vectors, attention, entropy = oracle_support(t, v, IDS, 0.2, support)
    with jax.enable_x64(True):
        ours = module.support_set(
            jnp.asarray(t), jnp.asarray(v), IDS, temperature=0.2, support=support
        )
    np.testing.assert_allclose(ours.vectors, vectors, atol=1e-12)
    np.testing.assert_allclose(ours.attention, attention, atol=1e-12)
    np.testing.assert_allclose(ours.entropy, entropy, atol=1e-12)
    np.testing.assert_array_equal(np.asarray(ours.allowed), attention > 0)


@pytest.mark.parametrize("support", ["cross", "hybrid"])
def test_a_memory_joins_the_support_set(support):
    """As a batch whose further rows are the memory, without gradient to it."""
    (t, v), (_, memory) = batch(), batch(1, rows=6)
    allowed = np.random.default_rng(2).random((8, 6)) < 0.6
    other = np.ones((8, 8), bool) if support == "hybrid" else IDS[:, None] != IDS[None, :]
    free, videos = np.concatenate([other, allowed], 1), np.concatenate([v, memory])
    weights = np.where(free, np.exp(t @ videos.T / 0.2), 0)
    weights /= weights.sum(1, keepdims=True)

    def of(memory):
        return module.support_set(
            jnp.asarray(t), v, IDS, memory, allowed, temperature=0.2, support=support
        )

    with jax.enable_x64(True):
        ours = of(jnp.asarray(memory))
        assert not np.any(jax.jit(jax.grad(lambda m: of(m).vectors.sum()))(memory))
    np.testing.assert_allclose(ours.vectors, weights @ videos, atol=1e-12)
    np.testing.assert_allclose(ours.attention, weights, atol=1e-12)
    np.testing.assert_array_equal(ours.allowed, free)


def test_cross_captioning_cannot_see_its_own_video():
    t, v = batch()

    def vectors(v):
        return module.support_set(jnp.asarray(t), v, IDS, temperature=0.2).vectors

    sees = np.abs(jax.jit(jax.jacobian(vectors))(v)).sum((1, 3)) > 0
    np.testing.assert_array_equal(sees, IDS[:, None] != IDS[None, :])


def test_identity_returns_the_own_video():
    t, v = batch()
    np.testing.assert_allclose(
        module.support_set(t, v, temperature=0.2, support="identity").vectors, v, rtol=1e-6
    )


def test_an_empty_support_set_is_zero_in_value_and_gradient():
    t, v = (jnp.asarray(x[:1]) for x in batch())

    def probe(t, v):
        support = module.support_set(t, v, temperature=0.1)
        return support.vectors.sum() + support.entropy.sum()

    for loss in (probe, partial(module.ranking_loss, margin=0.2)):
        value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(t, v)
        assert value == 0 and not np.any(grads)


@pytest.mark.parametrize("ids", [IDS, None])
@pytest.mark.parametrize("reduction", ["hardest", "sum"])
def test_ranking_equals_loops(reduction, ids):
    t, v = batch()
    expected = oracle_ranking(t, v, np.arange(8) if ids is None else ids, 0.3, reduction)
    with jax.enable_x64(True):
        loss = module.ranking_loss(
            jnp.asarray(t), jnp.asarray(v), ids, margin=0.3, reduction=reduction
        )
    np.testing.assert_allclose(loss, expected, atol=1e-12)


@pytest.mark.parametrize("reduction", ["hardest", "sum"])
def test_blocks_of_rows_give_the_same(reduction):
    t, v = (jnp.asarray(x) for x in batch())

    def run(block_size):
        loss = partial(
            module.ranking_loss,
            video_id=IDS,
            margin=0.3,
            reduction=reduction,
            block_size=block_size,
        )
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(t, v)

    for a, b in zip(jax.tree.leaves(run(3)), jax.tree.leaves(run(None))):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_ranking_closed_forms():
    same = np.ones((4, 3)) / np.sqrt(3)
    np.testing.assert_allclose(module.ranking_loss(same, same, margin=0.2), 0.4, rtol=1e-6)
    np.testing.assert_allclose(
        module.ranking_loss(same, same, margin=0.2, reduction="sum"), 2 * 3 * 0.2, rtol=1e-6
    )
    apart = np.eye(4)
    value, grad = jax.jit(jax.value_and_grad(partial(module.ranking_loss, margin=0.2)))(
        apart, apart
    )
    assert value == 0 and not np.any(grad)


@pytest.mark.parametrize("count_diagonal", [False, True])
def test_similarity_losses_equal_loops(count_diagonal):
    s = np.random.default_rng(0).normal(size=(6, 6))
    hinges = [
        max(0.2 + s[i, j] - s[k, k], 0)
        for i in range(6)
        for j in range(6)
        for k in (i, j)
        if count_diagonal or i != j
    ]
    nll = (
        sum(
            np.log(np.exp(s[i]).sum()) + np.log(np.exp(s[:, i]).sum()) - 2 * s[i, i]
            for i in range(6)
        )
        / 6
    )
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            module.max_margin(jnp.asarray(s), margin=0.2, count_diagonal=count_diagonal),
            np.mean(hinges),
            atol=1e-12,
        )
        np.testing.assert_allclose(module.similarity_info_nce(jnp.asarray(s)), nll, atol=1e-12)


def test_similarity_losses_know_nothing_of_a_flat_matrix():
    flat = jnp.ones((5, 5))
    np.testing.assert_allclose(module.max_margin(flat, margin=0.2), 0.2, rtol=1e-6)
    np.testing.assert_allclose(module.similarity_info_nce(flat), 2 * np.log(5), rtol=1e-6)
    assert module.max_margin(flat[:1, :1], margin=0.2) == 0


def test_caption_loss_weighs_captions_alike():
    rng = np.random.default_rng(0)
    logits, labels = (
        rng.normal(size=(3, 4, 6)),
        np.array([[1, -100, -100, -100], [2, 3, 4, 5], [-100] * 4]),
    )
    nll = -np.log(np.exp(logits) / np.exp(logits).sum(2, keepdims=True))
    expected = (nll[0, 0, 1] + np.mean([nll[1, s, labels[1, s]] for s in range(4)])) / 3
    with jax.enable_x64(True):
        value, grad = jax.jit(jax.value_and_grad(module.caption_loss))(logits, labels)
    np.testing.assert_allclose(value, expected, atol=1e-12)
    assert not np.any(grad[2]) and not np.any(grad[0, 1:])


def test_zero_rows_and_bfloat16_are_finite():
    t, v = (jnp.asarray(x, jnp.bfloat16).at[0].set(0) for x in batch())
    for loss in (
        partial(module.ranking_loss, margin=0.2),
        lambda t, v: module.support_set(t, v, temperature=0.01).vectors.sum(),
    ):
        value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(t, v)
        assert value.dtype == jnp.float32 and np.isfinite(value)
        assert all(
            g.dtype == jnp.bfloat16 and np.isfinite(np.asarray(g, np.float32)).all() for g in grads
        )
    wide = module.ranking_loss(t.astype(jnp.float32), v.astype(jnp.float32), margin=0.2)
    np.testing.assert_allclose(module.ranking_loss(t, v, margin=0.2), wide, rtol=1e-5)


def test_ranking_devices_agree():
    def loss(t, v, ids, axis_name):
        return module.ranking_loss(
            t, v, ids, margin=0.3, axis_name=axis_name
        ) + 2 * module.ranking_loss(t, v, margin=0.3, reduction="sum", axis_name=axis_name)

    assert_parity(loss, (*batch(), IDS), (True,) * 3)


def test_support_set_devices_agree():
    cotangent = np.random.default_rng(1).normal(size=(8, 5))

    def loss(t, v, cotangent, ids, memory, axis_name):
        support = module.support_set(t, v, ids, memory, temperature=0.2, axis_name=axis_name)
        rows = (support.vectors * cotangent).sum(1) + support.entropy
        return rows.mean() if axis_name is None else jax.lax.pmean(rows.mean(), axis_name)

    assert_parity(loss, (*batch(), cotangent, IDS, batch(1)[1]), (True,) * 4 + (False,))


def test_similarity_and_caption_devices_agree():
    rng = np.random.default_rng(0)

    def loss(s, logits, labels, axis_name):
        return (
            module.max_margin(s, margin=0.2, axis_name=axis_name)
            + 3 * module.max_margin(s, margin=0.2, count_diagonal=True, axis_name=axis_name)
            + module.similarity_info_nce(s, axis_name=axis_name)
            + module.caption_loss(logits, labels, axis_name=axis_name)
        )

    labels = np.where(rng.random((8, 4)) < 0.3, -100, rng.integers(0, 6, (8, 4)))
    assert_parity(loss, (rng.normal(size=(8, 8)), rng.normal(size=(8, 4, 6)), labels), (True,) * 3)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda t, v: module.support_set(t, v[:4], temperature=0.1), "v has shape"),
        (lambda t, v: module.support_set(t, v, temperature=0.0), "temperature is 0.0"),
        (lambda t, v: module.support_set(t, v, temperature=0.1, support="all"), "expected 'cross'"),
        (
            lambda t, v: module.support_set(t, v, memory=v, support="identity", temperature=0.1),
            "leave out the memory",
        ),
        (
            lambda t, v: module.support_set(t, v, memory_allowed=t > 0, temperature=0.1),
            "without a memory",
        ),
        (
            lambda t, v: module.support_set(t, v, None, v, np.ones((8, 8)), temperature=0.1),
            r"expected booleans \[8, 8\]",
        ),
        (lambda t, v: module.ranking_loss(t, v, margin=0.2, reduction="max"), "expected 'hardest'"),
        (lambda t, v: module.ranking_loss(t, v, IDS[:3], margin=0.2), "video_id"),
        (lambda t, v: module.ranking_loss(t, v, IDS / 2, margin=0.2), "integers"),
        (lambda t, v: module.ranking_loss(t.astype(complex), v, margin=0.2), "floating-point"),
        (lambda t, v: module.ranking_loss(t, v, margin=0.2, axis_name="nowhere"), "not mapped"),
        (lambda t, v: module.max_margin(t, margin=0.2), r"expected \[8, 8\]"),
        (lambda t, v: module.similarity_info_nce(t[:, :3]), r"expected \[8, 8\]"),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call(*batch())
