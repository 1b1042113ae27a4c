"""HCL and its debiased and easy forms, MoCHi, the temperature study: loops, closed forms, devices,
edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cl_jax.losses import hardness
from tests.losses.compiled import as_given, compiled
from tests.losses.parity import assert_parity

pytestmark = pytest.mark.usefixtures("x64")

hardness = compiled(as_given(hardness))


def data(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def hcl_oracle(z_a, z_b, t, beta, tau, easy=False):
    x, n, losses = np.concatenate([z_a, z_b]), len(z_a), []
    for i in range(2 * n):
        positive = np.exp(x[i] @ x[(i + n) % (2 * n)] / t)
        negative = np.array([np.exp(x[i] @ x[j] / t) for j in range(2 * n) if j % n != i % n])
        weight, count = negative**beta, 2 * n - 2
        total = np.sum(weight * negative) / np.mean(weight)
        total = max((total - tau * count * positive) / (1 - tau), count * np.exp(-1 / t))
        if easy:
            total = negative.sum()
        losses.append(-np.log(positive / (positive + total)))
    return np.mean(losses)


@pytest.mark.parametrize(
    "beta, tau",
    [
        (2.5, 0.1),
        (1.0, 0.6),
        pytest.param(1.0, 0.1, marks=pytest.mark.slow),
        pytest.param(0.0, 0.1, marks=pytest.mark.slow),
        pytest.param(2.5, 0.0, marks=pytest.mark.slow),
    ],
)
def test_hcl_of_loops(beta, tau):
    z_a, z_b, t = data(5, 4), data(5, 4, seed=1), 0.5
    loss = partial(hardness.hcl, temperature=t, beta=beta, tau_plus=tau)
    np.testing.assert_allclose(
        jax.jit(loss)(z_a, z_b), hcl_oracle(z_a, z_b, t, beta, tau), rtol=1e-12
    )
    np.testing.assert_allclose(
        jax.jit(partial(loss, block_size=3))(z_a, z_b), hcl_oracle(z_a, z_b, t, beta, tau)
    )
    terms = hardness.hcl_terms(z_a, z_b, temperature=t, beta=beta, tau_plus=tau)
    assert np.any(terms.clamped) == (tau == 0.6)
    floor = np.log(8) - 1 / t
    np.testing.assert_allclose(
        np.asarray(terms.log_negatives)[np.asarray(terms.clamped)], floor, rtol=1e-12
    )


def test_hcl_estimators():
    z_a, z_b = data(5, 4), data(5, 4, seed=1)
    loss = partial(hardness.hcl, z_a, z_b, temperature=0.3)
    np.testing.assert_allclose(
        loss(estimator="easy"), hcl_oracle(z_a, z_b, 0.3, 1, 0, easy=True), rtol=1e-12
    )
    np.testing.assert_allclose(
        loss(estimator="debiased", tau_plus=0.2), loss(beta=0.0, tau_plus=0.2), rtol=1e-12
    )
    np.testing.assert_allclose(
        loss(estimator="debiased", tau_plus=0.0), loss(estimator="easy"), rtol=1e-12
    )
    same = np.repeat(z_a[:1], 5, 0)
    for estimator in ("easy", "debiased", "hard"):
        value = hardness.hcl(same, same, temperature=0.3, estimator=estimator)
        np.testing.assert_allclose(value, np.log(9), rtol=1e-12)
        assert hardness.hcl(z_a[:1], z_b[:1], temperature=0.3, estimator=estimator) == 0


def test_hcl_gradient_is_that_of_its_value():
    z_a, z_b = data(4, 3), data(4, 3, seed=1)
    check_grads(
        jax.jit(partial(hardness.hcl, temperature=0.5, beta=1.5)),
        (z_a, z_b),
        order=1,
        modes=["rev"],
    )

    # At the floor, where the positives are the most similar of all, nothing flows through the
    # negatives.
    def negatives(x):
        return hardness.hcl_terms(x, z_a, temperature=0.5, tau_plus=0.99).log_negatives.sum()

    assert not np.any(jax.jit(jax.grad(negatives))(z_a))


def mochi_arguments(b=4, k=9, d=3, s=5, u=2, hard=4):
    draws = hardness.draw_mixtures(
        jax.random.key(0), np.arange(b), num_hard=hard, num_pairs=s, num_query=u
    )
    return data(b, d), data(b, d, seed=1), data(k, d, seed=2), draws, hard


def test_distinct_pairs_are_of_two_negatives_and_all_alike():
    draw = partial(hardness.draw_mixtures, jax.random.key(0), np.arange(2), num_query=1)
    pairs = draw(num_hard=3, num_pairs=1200, distinct=True).pairs
    for row in np.asarray(pairs):
        counts = np.bincount(3 * row[:, 0] + row[:, 1], minlength=9).reshape(3, 3)
        assert (np.diag(counts) == 0).all()
        assert (np.abs(counts[~np.eye(3, dtype=bool)] - 200) < 60).all()  # 4.6 deviations
    with pytest.raises(ValueError, match="num_hard is 1 and distinct is True"):
        draw(num_hard=1, num_pairs=1, distinct=True)


@pytest.mark.parametrize("block_size", [None, 4])
def test_mochi_of_loops(block_size):
    q, k, queue, draws, hard = mochi_arguments()
    t, losses = 0.2, []
    for i in range(4):
        order = sorted(range(9), key=lambda j: -(q[i] @ queue[j]))[:hard]
        first = [
            a * queue[order[m]] + (1 - a) * queue[order[n]]
            for (m, n), a in zip(draws.pairs[i], draws.alpha[i])
        ]
        second = [
            b * q[i] + (1 - b) * queue[order[m]] for m, b in zip(draws.picks[i], draws.beta[i])
        ]
        keys = [k[i], *queue] + [h / np.linalg.norm(h) for h in first + second]
        logits = np.array([q[i] @ key for key in keys]) / t
        losses.append(np.log(np.exp(logits).sum()) - logits[0])
    hardest = hardness.hardest_negatives(q, queue, num_hard=hard, block_size=block_size)

    def loss(q, k, queue):
        mixed = [
            hardness.mix_negatives(queue, hardest, draws.pairs, draws.alpha),
            hardness.mix_with_query(q, queue, hardest, draws.picks, draws.beta),
        ]
        return hardness.mochi(
            q, k, queue, jnp.concatenate(mixed, 1), temperature=t, block_size=block_size
        )

    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(q, k, queue)
    np.testing.assert_allclose(value, np.mean(losses), rtol=1e-12)
    assert np.abs(grads[0]).max() > 0.01 and not np.any(grads[1]) and not np.any(grads[2])


def test_mochi_without_synthesis_is_moco():
    q, k, queue, _, _ = mochi_arguments()
    synthetic = data(4, 5, 3, seed=5)
    logits = np.concatenate([np.sum(q * k, 1)[:, None], q @ queue.T], 1) / 0.2
    moco = np.mean(np.log(np.exp(logits).sum(1)) - logits[:, 0])
    for given in ((synthetic[:, :0], True), (synthetic, False), (synthetic, jnp.array(False))):
        loss = hardness.mochi(q, k, queue, given[0], temperature=0.2, active=given[1])
        np.testing.assert_allclose(loss, moco, rtol=1e-12)
    assert hardness.mochi(q, k, queue, synthetic, temperature=0.2) > moco
    same = np.repeat(q[:1], 9, 0)
    ones = hardness.mochi(
        same[:4], same[:4], same, np.repeat(same[None, :5], 4, 0), temperature=0.2
    )
    np.testing.assert_allclose(ones, np.log(1 + 9 + 5))


def test_mixtures():
    q, _, queue, draws, hard = mochi_arguments(s=50, u=60)
    assert (
        draws.pairs.shape == (4, 50, 2) and draws.pairs.min() == 0 and draws.pairs.max() == hard - 1
    )
    assert 0.4 < draws.beta.max() < 0.5 and 0.9 < draws.alpha.max() < 1
    moved = hardness.draw_mixtures(
        jax.random.key(0), np.array([2]), num_hard=hard, num_pairs=50, num_query=60
    )
    np.testing.assert_array_equal(moved.pairs[0], draws.pairs[2])
    hardest = hardness.hardest_negatives(q, queue, num_hard=9)
    np.testing.assert_array_equal(np.sort(hardest, 1), np.arange(9)[None].repeat(4, 0))
    mixed = hardness.mix_with_query(q, queue, hardest, draws.picks, draws.beta)
    np.testing.assert_allclose(np.linalg.norm(mixed, axis=-1), 1)
    negative = queue[np.take_along_axis(np.asarray(hardest), np.asarray(draws.picks), 1)]
    assert np.all(np.einsum("bd,bud->bu", q, mixed) >= np.einsum("bd,bud->bu", q, negative) - 1e-12)
    opposite = hardness.mix_negatives(
        np.stack([q[0], -q[0]]), np.array([[0, 1]]), np.array([[[0, 1]]]), np.array([[0.5]])
    )
    assert not np.any(opposite)


@pytest.mark.parametrize("block_size", [pytest.param(1, marks=pytest.mark.slow), 4, 9])
def test_hardest_negatives_in_blocks(block_size):
    """Of 18 rows, each twice, so that the order among equals shows."""
    q, _, queue, *_ = mochi_arguments()
    hardest = partial(hardness.hardest_negatives, q, np.repeat(queue, 2, 0), num_hard=5)
    np.testing.assert_array_equal(hardest(block_size=block_size), hardest())


def study(b=5, m=7, d=4):
    f, g = data(b, d), data(m, d, seed=1)
    return f, g, np.array([3, 0, 6, 3, 1]), f @ g.T


@pytest.mark.parametrize(
    ("num_hard", "block_size"),
    [
        (None, None),
        (1, 2),
        (3, None),
        (20, 2),
        *(pytest.param(*given, marks=pytest.mark.slow) for given in ((None, 2), (1, None))),
        *(pytest.param(*given, marks=pytest.mark.slow) for given in ((3, 2), (20, None))),
    ],
)
def test_study_of_loops(num_hard, block_size):
    f, g, positive, s = study()
    rows = []
    for i in range(5):
        negatives = sorted((s[i, j] for j in range(7) if j != positive[i]), reverse=True)[:num_hard]
        own = s[i, positive[i]]
        rows.append(
            (
                -own + 0.3 * sum(negatives),
                np.log(np.exp(own / 0.2) + np.sum(np.exp(np.array(negatives) / 0.2))) - own / 0.2,
            )
        )
    expected = np.mean(rows, 0)
    contrastive = jax.jit(
        partial(
            hardness.hard_contrastive, temperature=0.2, num_hard=num_hard, block_size=block_size
        )
    )
    np.testing.assert_allclose(contrastive(f, g, positive), expected[1], rtol=1e-12)
    if num_hard is None:
        np.testing.assert_allclose(
            hardness.simple(f, g, positive, negative_weight=0.3), expected[0], rtol=1e-12
        )
    else:
        simple = partial(
            hardness.hard_simple, negative_weight=0.3, num_hard=num_hard, block_size=block_size
        )
        np.testing.assert_allclose(jax.jit(simple)(f, g, positive), expected[0], rtol=1e-12)


def test_facts_of_the_study():
    """The negatives' gradients sum to the positive's; low temperatures see the hardest negative,
    high ones all."""
    f, g, positive, s = study()
    axes, own = np.eye(7), np.arange(7)[None] == positive[:, None]
    gradient = jax.jit(
        jax.grad(
            lambda s, t: (
                5 * hardness.hard_contrastive(s, axes, positive, temperature=t, num_hard=None)
            )
        )
    )
    grad = np.asarray(gradient(s, 0.3))
    np.testing.assert_allclose(np.sum(np.where(own, 0, grad), 1), -grad[own], rtol=1e-10)
    loss = jax.jit(
        lambda t: hardness.hard_contrastive(f, g, positive, temperature=t, num_hard=None)
    )
    hardest = np.max(np.where(own, -np.inf, s), 1)
    np.testing.assert_allclose(
        1e-4 * loss(1e-4), np.mean(np.maximum(hardest - s[own], 0)), atol=1e-3
    )
    simple = hardness.simple(f, g, positive, negative_weight=1 / 6) * 6 / 7
    np.testing.assert_allclose(1e4 * (loss(1e4) - np.log(7)), simple, atol=1e-3)
    chosen = hardness.select_hard(s, positive, num_hard=2)
    np.testing.assert_array_equal(chosen.selected.sum(1), 2)
    np.testing.assert_array_equal(chosen.threshold, np.sort(np.where(own, -np.inf, s), 1)[:, -2])
    grad = 5 * jax.grad(
        lambda s: hardness.hard_simple(s, axes, positive, negative_weight=0.3, num_hard=2)
    )(s)
    np.testing.assert_allclose(
        grad, np.where(own, -1, np.where(chosen.selected, 0.3, 0)), atol=1e-12
    )


def test_paired_keys_are_their_own_positives():
    f, g, _, _ = study(m=5)
    for loss in (
        partial(hardness.simple, negative_weight=0.1),
        partial(hardness.hard_simple, negative_weight=0.1, num_hard=2),
        partial(hardness.hard_contrastive, temperature=0.1, num_hard=2),
    ):
        np.testing.assert_allclose(loss(f, g), loss(f, g, np.arange(5)), rtol=1e-12)


@pytest.mark.slow
def test_devices():
    z_a, z_b, queue, synthetic = (
        data(8, 3),
        data(8, 3, seed=1),
        data(6, 3, seed=2),
        data(8, 2, 3, seed=3),
    )

    def loss(z_a, z_b, queue, synthetic, axis_name):
        knobs = {"temperature": 0.5, "axis_name": axis_name}
        return (
            hardness.hcl(z_a, z_b, **knobs)
            + 2 * hardness.hcl(z_a, z_b, estimator="easy", plan="ring", **knobs)
            + 3 * hardness.hard_contrastive(z_a, z_b, num_hard=3, **knobs)
            + 5
            * hardness.hard_simple(z_a, z_b, negative_weight=0.1, num_hard=2, axis_name=axis_name)
            + 7 * hardness.simple(z_a, z_b, negative_weight=0.1, axis_name=axis_name)
            + 9 * hardness.mochi(z_a, z_b, queue, synthetic, **knobs)
        )

    assert_parity(loss, (z_a, z_b, queue, synthetic), (True, True, False, True))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_hard_inputs_are_finite(dtype):
    """A zero row, equal rows, temperature 0.01."""
    z_a, z_b = (jnp.asarray(data(5, 4, seed=seed), dtype).at[0].set(0) for seed in (0, 1))
    z_a = z_a.at[2].set(z_a[1])
    losses = [
        partial(hardness.hcl, temperature=0.01, beta=2.0),
        partial(hardness.hcl, temperature=0.01, tau_plus=0.9),
        partial(hardness.hard_contrastive, temperature=0.01, num_hard=2),
        partial(hardness.hard_contrastive, temperature=0.01, num_hard=None),
        partial(hardness.hard_simple, negative_weight=1.0, num_hard=2),
        partial(hardness.simple, negative_weight=1.0),
        lambda a, b: hardness.mochi(a, b, a, a[:, None], temperature=0.01),
    ]
    values, grads = jax.jit(
        lambda a, b: list(zip(*[jax.value_and_grad(loss, (0, 1))(a, b) for loss in losses]))
    )(z_a, z_b)
    assert all(np.isfinite(value) and value.dtype == jnp.float32 for value in values)
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in jax.tree.leaves(grads))
    exact = hardness.hcl(*(z.astype(jnp.float64) for z in (z_a, z_b)), temperature=0.01, beta=2.0)
    np.testing.assert_allclose(values[0], exact, rtol=1e-4)


def test_memory_of_the_gradient_is_far_below_the_matrix():
    """At 16,384 rows one matrix of similarities is 1 GiB."""
    with jax.enable_x64(False):
        half, x = (jax.ShapeDtypeStruct((n, 32), jnp.float32) for n in (8192, 16384))
        for loss, given in (
            (partial(hardness.hcl, temperature=0.5), half),
            (partial(hardness.hard_contrastive, temperature=0.1, num_hard=512), x),
        ):
            gradient = jax.jit(jax.grad(loss, (0, 1)))
            assert (
                gradient.lower(given, given).compile().memory_analysis().temp_size_in_bytes < 2**27
            )


def test_errors():
    x = data(5, 4)
    with pytest.raises(ValueError, match=r"z_b has shape \(4, 4\)"):
        hardness.hcl(x, x[:4], temperature=0.5)
    with pytest.raises(ValueError, match="estimator is 'harder'"):
        hardness.hcl(x, x, temperature=0.5, estimator="harder")
    with pytest.raises(ValueError, match="beta is -1"):
        hardness.hcl(x, x, temperature=0.5, beta=-1)
    with pytest.raises(ValueError, match=r"tau_plus is 1.*probability"):
        hardness.hcl(x, x, temperature=0.5, tau_plus=1)
    with pytest.raises(ValueError, match="temperature is 0"):
        hardness.hcl(x, x, temperature=0)
    with pytest.raises(ValueError, match="axis_name='i' is not mapped"):
        hardness.hcl(x, x, temperature=0.5, axis_name="i")
    with pytest.raises(ValueError, match="num_hard is 6; expected at most the 5 rows"):
        hardness.hardest_negatives(x, x, num_hard=6)
    with pytest.raises(ValueError, match=r"alpha has shape \(5, 3\)"):
        hardness.mix_negatives(x, np.zeros((5, 2), int), np.zeros((5, 4, 2), int), np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"synthetic has shape \(4, 1, 4\)"):
        hardness.mochi(x, x, x, x[:4, None], temperature=0.5)
    with pytest.raises(ValueError, match="positive has dtype float64"):
        hardness.simple(x, x, x[:, 0], negative_weight=1.0)
    with pytest.raises(ValueError, match="num_hard is 0"):
        hardness.hard_contrastive(x, x, temperature=0.1, num_hard=0)
