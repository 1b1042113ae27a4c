"""SupCon, StableRep, KCL: loops over the equations, samplers, closed forms, devices, edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.losses import positives
from tests.losses.compiled import as_given, compiled
from tests.losses.parity import AXIS, assert_parity, unit

pytestmark = pytest.mark.usefixtures("x64")

stablerep = compiled(positives).stablerep
released_losses = as_given(positives)
positives = compiled(released_losses)


def data(*shape, seed=0):
    return unit(np.random.default_rng(seed).normal(size=shape))


LABELS = np.array([0, 1, 0, 2, 1])


def oracle(features, weight, t, mode="all", inside=False):
    """weight(example_i, view_i, example_j, view_j); the mean over anchors."""
    batch, views = features.shape[:2]
    rows = [(i, v) for v in range(views) for i in range(batch)]
    losses = []
    for i, v in rows[:batch] if mode == "one" else rows:
        others = [row for row in rows if row != (i, v)]
        e = {row: np.exp(features[i, v] @ features[row] / t) for row in others}
        p = {row: weight(i, v, *row) for row in others}
        count, d = sum(p.values()), sum(e.values())
        if count == 0:
            losses.append(0)
        elif inside:
            losses.append(-np.log(sum(p[row] * e[row] for row in others) / d / count))
        else:
            losses.append(-sum(p[row] * np.log(e[row] / d) for row in others) / count)
    return np.mean(losses)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("mode", ["all", "one"])
@pytest.mark.parametrize("what", ["labels", "mask", "views"])
def test_supcon_of_loops(what, mode, inside):
    features = data(5, 2, 4)
    mask = np.random.default_rng(1).uniform(size=(5, 5)) * np.random.default_rng(2).integers(
        0, 2, (5, 5)
    )
    given, weight = {
        "labels": ({"labels": LABELS}, lambda i, v, j, w: float(LABELS[i] == LABELS[j])),
        "mask": ({"mask": mask}, lambda i, v, j, w: mask[i, j]),
        "views": ({}, lambda i, v, j, w: float(i == j)),
    }[what]
    expected = oracle(features, weight, 0.3, mode, inside)
    loss = partial(
        positives.supcon,
        **given,
        temperature=0.3,
        contrast_mode=mode,
        summation="inside" if inside else "outside",
    )
    for block_size in (None, 3):
        actual = jax.jit(partial(loss, block_size=block_size))(features)
        np.testing.assert_allclose(actual, expected, rtol=1e-12)
    if what == "views":
        scaled = loss(features, base_temperature=0.1)
        np.testing.assert_allclose(scaled, 3 * expected, rtol=1e-12)


def released(features, labels, t, denominator="all", cap=None, inside=False, mode="all"):
    """[B] loss of each sample as the authors' TensorFlow code has it, by loops, not scaled."""
    batch, views = features.shape[:2]
    rows = [(i, v) for v in range(views) for i in range(batch)]
    every = np.zeros((views, batch))
    for i, v in rows:
        same = [j for j in range(batch) if labels[j] == labels[i] and j != i]
        kept = {i, *(same if cap is None else same[: cap // views])}
        e = {row: np.exp(features[i, v] @ features[row] / t) for row in rows}
        positives = [row for row in rows if row[0] in kept and row != (i, v)]
        negatives = sum(e[row] for row in rows if labels[row[0]] != labels[i])
        below = {
            "all": lambda p: negatives + sum(e[row] for row in positives),
            "one_positive": lambda p: negatives + e[p],
            "only_negatives": lambda p: negatives,
        }[denominator]
        if not positives:
            continue
        shares = [e[p] / below(p) for p in positives]
        every[v, i] = -(np.log(np.mean(shares)) if inside else np.mean(np.log(shares)))
    return every[0] if mode == "one" else every.mean(axis=0)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("denominator", ["all", "one_positive", "only_negatives"])
def test_supcon_with_the_released_denominators_and_cap(denominator, inside):
    features, labels = data(7, 2, 4), np.array([0, 1, 0, 2, 1, 0, 0])
    settings = dict(denominator=denominator, summation="inside" if inside else "outside")
    for cap in (None, 4):
        how = settings | dict(positives_cap=cap)
        expected = released(features, labels, 0.3, denominator, cap, inside)
        rows = positives.supcon_rows(features, labels, temperature=0.3, **how).loss
        np.testing.assert_allclose(rows.reshape(2, 7).mean(0), expected, rtol=1e-12)
    how = settings | dict(positives_cap=0, contrast_mode="one", block_size=3)
    one = positives.supcon(features, labels, temperature=0.3, **how)
    first = released(features, labels, 0.3, denominator, 0, inside, "one")
    np.testing.assert_allclose(one, first.mean(), rtol=1e-12)


def test_a_cap_beyond_any_batch_is_no_error():
    features, labels = data(4, 2, 3), np.array([0, 1, 0, 1])
    jax.eval_shape(
        lambda x: positives.supcon(x, labels, temperature=0.3, positives_cap=2**62), features
    )


def test_denominators_by_a_mask_and_by_views():
    """A mask that says what the labels do, and no labels at all."""
    features, loss = data(5, 2, 4), partial(positives.supcon, temperature=0.3)
    same = (LABELS[:, None] == LABELS).astype(float)
    masked = loss(features, mask=same, denominator="only_negatives", summation="inside")
    expected = released(features, LABELS, 0.3, "only_negatives", None, True).mean()
    np.testing.assert_allclose(masked, expected, rtol=1e-12)
    alone = released(features, np.arange(5), 0.3, "one_positive").mean()
    np.testing.assert_allclose(loss(features, denominator="one_positive"), alone, rtol=1e-12)


@pytest.mark.parametrize("inside", [False, True])
def test_gradient_of_the_denominators_is_that_of_differences(inside):
    features, step = data(5, 2, 3), 1e-6
    along = np.random.default_rng(5).normal(size=features.shape)
    for denominator in ("one_positive", "only_negatives"):
        summation = "inside" if inside else "outside"
        loss = partial(
            positives.supcon,
            labels=LABELS,
            temperature=0.3,
            denominator=denominator,
            summation=summation,
            positives_cap=2,
            normalise=False,
        )
        ends = [
            released(features + sign * step * along, LABELS, 0.3, denominator, 2, inside).mean()
            for sign in (1, -1)
        ]
        slope = np.sum(np.asarray(jax.grad(loss)(features)) * along)
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-6)


def test_denominators_of_rows_without_negatives_or_at_low_temperatures_are_finite():
    one_class = np.zeros(5, int)
    features = data(5, 2, 4)
    similarity = np.einsum("ivd,jwd->ivjw", features, features).sum() - 10
    mean_positive = similarity / 0.3 / (10 * 9)
    x = features.astype(np.float32)
    x[0] = 0
    x[2, 0] = -x[2, 1]  # a positive whose share underflows
    for denominator, summation, expected in (
        ("one_positive", "outside", 0),
        ("one_positive", "inside", 0),
        ("only_negatives", "outside", -mean_positive),
        ("only_negatives", "inside", None),
    ):
        # Labels and temperatures are arguments of one program.
        loss = jax.jit(
            partial(released_losses.supcon, denominator=denominator, summation=summation)
        )
        value = loss(features, one_class, temperature=0.3)
        assert np.isfinite(value)
        if expected is not None:
            np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12)
        value, grad = jax.value_and_grad(loss)(x, LABELS, temperature=np.float32(0.005))
        assert np.isfinite(value) and np.isfinite(grad).all()
        exact = loss(x.astype(np.float64), LABELS, temperature=np.float64(np.float32(0.005)))
        np.testing.assert_allclose(value, exact, rtol=1e-4)


def test_supcon_closed_forms():
    same = np.repeat(data(1, 1, 4), 6, 0).repeat(2, 1)
    for given in ({}, {"labels": np.zeros(6, int)}):
        np.testing.assert_allclose(positives.supcon(same, **given, temperature=0.1), np.log(11))
    corners = np.eye(3)[[0, 1, 2]][:, None].repeat(2, 1)
    np.testing.assert_allclose(
        positives.supcon(corners, temperature=0.5), np.log(1 + 4 * np.exp(-2))
    )
    features, rotation = data(5, 2, 4), np.linalg.qr(data(4, 4, seed=3))[0]
    loss = partial(positives.supcon, temperature=0.2)
    np.testing.assert_allclose(
        loss(features @ rotation, LABELS), loss(features, LABELS), rtol=1e-12
    )
    np.testing.assert_allclose(
        loss(features[::-1], LABELS[::-1]), loss(features, LABELS + 7), rtol=1e-12
    )
    np.testing.assert_allclose(
        loss(features.reshape(5, 2, 2, 2), LABELS), loss(features, LABELS), rtol=1e-12
    )


def test_stablerep_is_supcon_of_one_view_and_ignores_length():
    features = data(5, 4)
    expected = oracle(features[:, None], lambda i, v, j, w: float(LABELS[i] == LABELS[j]), 0.2)
    lengths = np.arange(1, 6)[:, None]
    np.testing.assert_allclose(
        stablerep(features * lengths, LABELS, temperature=0.2), expected, rtol=1e-12
    )


def kcl_oracle(q, k, queue, labels, queue_labels, selected, t, zero, inside=False):
    losses = []
    for i in range(len(q)):
        s = np.array([q[i] @ k[i], *(queue @ q[i])]) / t
        same = queue_labels == labels[i]
        if zero:
            s[1:][same & (selected[i] == 0)] = 0
        p = np.array([1, *(same & (selected[i] != 0))])
        e = np.exp(s) / np.exp(s).sum()
        losses.append(-np.log(e[p > 0].sum()) if inside else -np.sum(p * np.log(e)) / p.sum())
    return np.mean(losses)


@pytest.mark.parametrize(
    "unselected, summation",
    [("negative", "outside"), ("zero", "outside"), ("negative", "inside"), ("zero", "inside")],
)
def test_kcl_of_loops_and_constant_keys(unselected, summation):
    q, k, queue = data(4, 3), data(4, 3, seed=1), data(7, 3, seed=2)
    labels, queue_labels = np.array([0, 1, 2, 5]), np.array([0, 0, 1, -1, 0, 2, 1])
    selected = np.array([[0, 1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 1], [0] * 7, [1] * 7])
    f = jax.value_and_grad(
        partial(
            positives.kcl,
            labels=labels,
            queue_labels=queue_labels,
            temperature=0.3,
            selected=selected,
            unselected=unselected,
            summation=summation,
        ),
        (0, 1, 2),
    )
    value, grads = jax.jit(f)(q, k, queue)
    given = queue, labels, queue_labels, selected, 0.3, unselected == "zero", summation == "inside"
    expected = kcl_oracle(q, k, *given)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert np.abs(grads[0]).max() > 0.01 and not np.any(grads[1]) and not np.any(grads[2])
    move = 1e-6 * data(4, 3, seed=3)
    above, below = (kcl_oracle(q + side * move, k, *given) for side in (1, -1))
    np.testing.assert_allclose(np.sum(grads[0] * move), (above - below) / 2, rtol=1e-4)
    blocked = positives.kcl(
        q,
        k,
        queue,
        labels,
        queue_labels,
        temperature=0.3,
        selected=selected,
        unselected=unselected,
        summation=summation,
        block_size=3,
    )
    np.testing.assert_allclose(blocked, expected, rtol=1e-12)


def test_kcl_of_all_positives_and_of_none():
    q, k, queue, labels = data(4, 3), data(4, 3, seed=1), data(7, 3, seed=2), np.zeros(4, int)
    queue_labels = np.array([0, 0, 1, 3, 0, 2, 1])
    loss = partial(positives.kcl, q, k, queue, labels, temperature=0.3)
    np.testing.assert_allclose(
        loss(queue_labels),
        kcl_oracle(q, k, queue, labels, queue_labels, np.ones((4, 7)), 0.3, False),
        rtol=1e-12,
    )
    unlabelled = np.full(7, -1)  # the start of training: MoCo's loss, even for a row labelled -1
    moco = kcl_oracle(q, k, queue, labels, unlabelled, np.ones((4, 7)), 0.3, False)
    np.testing.assert_allclose(loss(unlabelled), moco, rtol=1e-12)
    np.testing.assert_allclose(
        positives.kcl(q, k, queue, unlabelled[:4], unlabelled, temperature=0.3), moco
    )


def test_kcl_in_batch_of_loops():
    features, draws = data(5, 2, 4), np.random.default_rng(0).uniform(size=(1, 10))
    selected = positives.in_batch_positives(LABELS, draws, num_views=2)
    np.testing.assert_array_equal(
        selected.sum(1), 1 + (np.bincount(LABELS)[LABELS] > 1)[[*range(5), *range(5)]]
    )
    assert (
        not np.any(np.diag(selected))
        and np.all(np.diag(selected, 5))
        and np.all(np.diag(selected, -5))
    )
    expected = oracle(features, lambda i, v, j, w: float(selected[v * 5 + i, w * 5 + j]), 0.2)
    loss = positives.kcl_in_batch(
        features, LABELS, selected, temperature=0.2, base_temperature=0.1, block_size=4
    )
    np.testing.assert_allclose(loss, 2 * expected, rtol=1e-12)
    everything = positives.kcl_in_batch(features, LABELS, np.ones((10, 10)), temperature=0.2)
    np.testing.assert_allclose(
        everything, positives.supcon(features, LABELS, temperature=0.2), rtol=1e-12
    )


def test_draws_are_uniform_without_replacement():
    candidates = np.array([[1, 0, 1, 1, 0, 1]]).repeat(4000, 0)
    draws = positives.positive_draws(jax.random.key(0), np.arange(4000), num_positives=3)
    picked = np.asarray(jax.jit(positives.draw_positives)(draws, candidates))
    assert np.all(picked.sum(1) == 3) and not np.any(picked & (candidates == 0))
    np.testing.assert_allclose(picked.mean(0)[[0, 2, 3, 5]], 0.75, atol=0.03)
    few = positives.draw_positives(draws[:, :2], np.array([[0, 1, 0], [0, 0, 0]]))
    np.testing.assert_array_equal(few, [[0, 1, 0], [0, 0, 0]])
    # A row's draw is its example's, wherever the row is.
    moved = positives.positive_draws(jax.random.key(0), np.array([7, 3]), num_positives=3)
    np.testing.assert_array_equal(moved, np.asarray(draws)[:, [7, 3]])
    np.testing.assert_array_equal(
        positives.first_positives(candidates[:1], num_positives=2), [[1, 0, 1, 0, 0, 0]]
    )
    np.testing.assert_allclose(
        positives.kcl_targets(np.array([[1, 0, 1], [0, 0, 0]])),
        [[1 / 3, 1 / 3, 0, 1 / 3], [1, 0, 0, 0]],
    )


@pytest.mark.slow
def test_devices():
    features, labels = data(8, 2, 3), np.array([0, 1, 0, 2, 1, 0, 3, 1])
    mask = np.random.default_rng(1).uniform(size=(8, 8))
    draws = np.random.default_rng(2).uniform(size=(8, 2, 2))
    queue, queue_labels = data(6, 3, seed=2), np.array([0, 1, 2, 0, 1, 0])

    def loss(features, mask, draws, queue, labels, queue_labels, axis_name):
        knobs = {"temperature": 0.3, "axis_name": axis_name}
        rounds = draws.transpose(2, 1, 0).reshape(2, -1)
        selected = positives.in_batch_positives(
            labels, jax.lax.stop_gradient(rounds), num_views=2, axis_name=axis_name
        )
        return (
            positives.supcon(features, labels, **knobs, summation="inside")
            + 2 * positives.supcon(features, mask=mask, **knobs, contrast_mode="one", plan="ring")
            + 3 * positives.supcon(features, **knobs)
            + 5 * positives.kcl_in_batch(features, labels, selected, **knobs)
            + 7
            * positives.kcl(features[:, 0], features[:, 1], queue, labels, queue_labels, **knobs)
            + 9 * stablerep(features[:, 0], labels, **knobs)
            + 11
            * positives.supcon(
                features,
                labels,
                **knobs,
                summation="inside",
                denominator="one_positive",
                positives_cap=2,
                plan="ring",
            )
        )

    assert_parity(
        loss,
        (features, mask, draws, queue, labels, queue_labels),
        (True, True, True, False, True, False),
    )


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.bfloat16])
def test_hard_inputs_are_finite(dtype):
    """A zero row, equal rows, rows without a positive, temperature 0.01, a batch of one."""
    x = (
        jnp.asarray(data(5, 2, 4), dtype)
        .at[0]
        .set(0)
        .at[1]
        .set(data(1, 1, 4)[0, 0])
        .at[2, 0]
        .set(data(1, 1, 4)[0, 0])
    )

    def loss(x):
        queue = x.reshape(10, 4)
        return (
            positives.supcon(x, LABELS, temperature=0.01, summation="inside")
            + positives.supcon(x, temperature=0.01)
            + stablerep(x[:, 0], LABELS, temperature=0.01)
            + stablerep(x[:1, 0], LABELS[:1], temperature=0.01)
            + positives.kcl(
                x[:, 0],
                x[:, 1],
                queue,
                LABELS,
                jnp.tile(LABELS, 2),
                temperature=0.01,
                selected=jnp.zeros((5, 10)),
                unselected="zero",
            )
        )

    value, grad = jax.jit(jax.value_and_grad(loss))(x)
    assert (
        np.isfinite(value)
        and value.dtype == jnp.float32
        and np.isfinite(np.asarray(grad, np.float32)).all()
    )


def test_rows_without_a_positive_count_as_zero():
    features = data(4, 1, 3)
    value, grad = jax.jit(jax.value_and_grad(partial(positives.supcon, temperature=0.1)))(
        features, np.arange(4)
    )
    assert value == 0 and not np.any(grad)
    pair = positives.supcon(features, np.array([0, 0, 1, 2]), temperature=0.1)
    rows = positives.supcon_rows(features, np.array([0, 0, 1, 2]), temperature=0.1)
    np.testing.assert_allclose(pair, rows.loss[:2].sum() / 4)
    np.testing.assert_array_equal(rows.num_positives, [1, 1, 0, 0])
    assert not np.any(rows.loss[2:])


def test_bfloat16_is_near_float32():
    x = jnp.asarray(data(16, 2, 8), jnp.bfloat16)
    loss = jax.jit(jax.grad(lambda x: positives.supcon(x, np.arange(16) % 3, temperature=0.2)))
    exact, rough = loss(x.astype(jnp.float32)), loss(x).astype(jnp.float32)
    assert jnp.linalg.norm(rough - exact) < 0.01 * jnp.linalg.norm(exact)


def test_memory_of_the_gradient_is_far_below_the_matrix():
    """At 16,384 rows one matrix of similarities is 1 GiB."""
    with jax.enable_x64(False):
        x, labels = (
            jax.ShapeDtypeStruct((8192, 2, 32), jnp.float32),
            jax.ShapeDtypeStruct((8192,), jnp.int32),
        )
        gradient = jax.jit(jax.grad(partial(positives.supcon, temperature=0.1)))
        assert gradient.lower(x, labels).compile().memory_analysis().temp_size_in_bytes < 2**26


def test_errors():
    x, loss = data(5, 2, 4), partial(positives.supcon, temperature=0.1)
    with pytest.raises(ValueError, match=r"expected \[B, V, D\].*features\[:, None\]"):
        loss(x[:, 0])
    with pytest.raises(ValueError, match=r"labels has shape \(4,\).*b = 5"):
        loss(x, LABELS[:4])
    with pytest.raises(ValueError, match=r"labels has dtype float64.*class numbers"):
        loss(x, LABELS + 0.5)
    with pytest.raises(ValueError, match="labels and mask are both given"):
        loss(x, LABELS, np.eye(5))
    with pytest.raises(ValueError, match=r"mask has shape \(4, 5\)"):
        loss(x, mask=np.ones((4, 5)))
    with pytest.raises(ValueError, match="contrast_mode is 'two'"):
        loss(x, contrast_mode="two")
    with pytest.raises(ValueError, match="summation is 'middle'"):
        loss(x, summation="middle")
    with pytest.raises(ValueError, match="denominator is 'none'"):
        loss(x, denominator="none")
    with pytest.raises(ValueError, match="positives_cap is 3 with 2 views"):
        loss(x, LABELS, positives_cap=3)
    with pytest.raises(ValueError, match="positives_cap is given with a mask"):
        loss(x, mask=np.eye(5), positives_cap=2)
    with pytest.raises(ValueError, match="temperature is 0"):
        positives.supcon(x, temperature=0)
    with pytest.raises(ValueError, match=f"axis_name='{AXIS}' is not mapped"):
        loss(x, axis_name=AXIS)
    q = x[:, 0]
    kcl = partial(positives.kcl, q, q, q, LABELS, temperature=0.1)
    with pytest.raises(ValueError, match="unselected is 'drop'"):
        kcl(LABELS, unselected="drop")
    with pytest.raises(ValueError, match="summation"):
        kcl(LABELS, summation="sum")
    with pytest.raises(ValueError, match=r"selected has shape \(5, 4\)"):
        kcl(LABELS, selected=np.ones((5, 4)))
    with pytest.raises(ValueError, match=r"queue_labels has shape \(4,\)"):
        kcl(LABELS[:4])
    with pytest.raises(ValueError, match=r"expected \[V \* B, V \* N\] = \(10, 10\)"):
        positives.kcl_in_batch(x, LABELS, np.ones((5, 5)), temperature=0.1)
    with pytest.raises(ValueError, match=r"candidates have shape \(3, 5\)"):
        positives.draw_positives(np.ones((1, 4)) / 2, np.ones((3, 5)))
