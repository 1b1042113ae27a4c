"""CPC over time and over patch grids against loops, closed forms, edges, draws, and devices against
one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cl_jax.losses import predictive
from tests.losses.compiled import compiled
from tests.losses.parity import assert_parity

module = compiled(predictive)


def sequences(seed=0, steps=2, batch=3, times=5, width=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(steps, batch, times, width)), rng.normal(size=(batch, times, width))


def grid(seed=0, steps=2, batch=2, height=4, across=3, width=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(steps, batch, height, across, width)), rng.normal(
        size=(batch, height, across, width)
    )


def draws(seed=0, batch=3, times=5, window=3, negatives=4):
    return np.random.default_rng(seed).integers(0, batch * times, (batch, negatives, window))


def loss_of(logits, label):
    return np.log(np.exp(logits).sum()) - logits[label], float(np.argmax(logits) == label)


def oracle_among_all(p, z, scale, common_window, exclude_own):
    steps, batch, times = p.shape[:3]
    out = []
    for k in range(1, steps + 1):
        terms = []
        for b in range(batch):
            for t in range(times - (steps if common_window else k)):
                keep = [
                    (i, j)
                    for i in range(batch)
                    for j in range(times)
                    if not exclude_own or i != b or (i, j) == (b, t + k)
                ]
                logits = np.array([scale * p[k - 1, b, t] @ z[at] for at in keep])
                terms.append(loss_of(logits, keep.index((b, t + k))))
        out.append(np.mean(terms, axis=0))
    return np.transpose(out)


def oracle_given(p, z, negatives, scale):
    flat, out = z.reshape(-1, z.shape[-1]), []
    for k, positions in enumerate(negatives, start=1):
        terms = []
        for b in range(p.shape[1]):
            for t in range(positions.shape[2]):
                logits = [scale * p[k - 1, b, t] @ z[b, t + k]]
                logits += [scale * p[k - 1, b, t] @ flat[j] for j in positions[b, :, t]]
                terms.append(loss_of(np.array(logits), 0))
        out.append(np.mean(terms, axis=0))
    return np.transpose(out)


def oracle_grid(p, z, offsets, scale, exclude_own):
    batch, height, across = z.shape[:3]
    out = []
    for k, offset in enumerate(offsets):
        terms = []
        for b in range(batch):
            for r in range(height - offset):
                for w in range(across):
                    label = (b, r + offset, w)
                    keep = [
                        at
                        for at in np.ndindex(batch, height, across)
                        if not exclude_own or at[0] != b or at == label
                    ]
                    logits = np.array([scale * p[k, b, r, w] @ z[at] for at in keep])
                    terms.append(loss_of(logits, keep.index(label)))
        out.append(np.mean(terms, axis=0))
    return np.transpose(out)


@pytest.mark.parametrize("common_window", [True, False])
@pytest.mark.parametrize("exclude_own", [True, False])
def test_all_latents_equal_loops(common_window, exclude_own):
    p, z = sequences()
    knobs = {"scale": 0.7, "common_window": common_window, "exclude_own": exclude_own}
    with jax.enable_x64(True):
        steps = jax.jit(partial(module.cpc_steps, **knobs))(p, z)
        np.testing.assert_allclose(module.cpc(p, z, **knobs), steps.loss.mean(), atol=1e-12)
    np.testing.assert_allclose(steps, oracle_among_all(p, z, **knobs), atol=1e-12)


def test_given_negatives_equal_loops():
    p, z = sequences()
    shared, own = draws(), [draws(window=4), draws(seed=1, window=3)]
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            module.cpc_steps(p, z, shared, scale=0.25),
            oracle_given(p, z, [shared] * 2, 0.25),
            atol=1e-12,
        )
        np.testing.assert_allclose(
            module.cpc_steps(p, z, own, common_window=False), oracle_given(p, z, own, 1), atol=1e-12
        )
        np.testing.assert_allclose(
            module.cpc_steps(p, z, [shared, shared], scale=0.25),
            module.cpc_steps(p, z, shared, scale=0.25),
            atol=1e-12,
        )


@pytest.mark.parametrize(
    "loss, args",
    [(module.cpc, sequences()), (partial(module.cpc_grid, offsets=(1, 2), scale=0.5), grid())],
)
def test_blocks_change_nothing(loss, args):
    both = [
        jax.jit(jax.value_and_grad(partial(loss, block_size=size), argnums=(0, 1)))(*args)
        for size in (None, 4)
    ]
    for plain, blocked in zip(*map(jax.tree.leaves, both)):
        np.testing.assert_allclose(blocked, plain, atol=1e-6)


def test_blocks_bound_memory():
    p, z = sequences(steps=1, batch=32, times=32, width=8)
    plain, blocked = (
        jax.jit(jax.grad(partial(module.cpc, block_size=size), argnums=(0, 1)))
        .lower(p, z)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for size in (None, 64)
    )
    assert plain > 4 * 992 * 1024 > 5 * blocked


@pytest.mark.parametrize("exclude_own", [True, False])
def test_grid_equals_loops(exclude_own):
    p, z = grid()
    knobs = {"offsets": (1, 3), "scale": 0.5, "exclude_own": exclude_own}
    with jax.enable_x64(True):
        steps = jax.jit(partial(module.cpc_grid_steps, **knobs))(p, z)
        np.testing.assert_allclose(module.cpc_grid(p, z, **knobs), steps.loss.mean(), atol=1e-12)
    np.testing.assert_allclose(steps, oracle_grid(p, z, **knobs), atol=1e-12)


def test_predictions_are_one_matrix_per_step():
    rng = np.random.default_rng(0)
    c, w = rng.normal(size=(2, 3, 4)), rng.normal(size=(5, 6, 4))
    with jax.enable_x64(True):
        p = module.predictions(c, w)
    expected = [[[w[k] @ c[b, t] for t in range(3)] for b in range(2)] for k in range(5)]
    np.testing.assert_allclose(p, expected, atol=1e-12)


def test_what_says_nothing():
    p, z = sequences()
    np.testing.assert_allclose(module.cpc(0 * p, z), np.log(15), rtol=1e-6)
    np.testing.assert_allclose(module.cpc(0 * p, z, exclude_own=True), np.log(11), rtol=1e-6)
    np.testing.assert_allclose(module.cpc(0 * p, z, draws()), np.log(5), rtol=1e-6)
    p, z = grid()
    np.testing.assert_allclose(
        module.cpc_grid(0 * p, z, offsets=(1, 2), scale=1.0), np.log(24), rtol=1e-6
    )


def test_true_latents_are_picked():
    _, z = sequences(width=16)
    p = np.stack([np.roll(z, -k, axis=1) for k in (1, 2)])
    assert module.cpc(p, z, scale=20.0) < 1e-3
    np.testing.assert_array_equal(module.cpc_steps(p, z, scale=20.0).accuracy, 1)
    with_copies = np.concatenate([draws(), np.arange(15).reshape(3, 1, 5)[..., 1:4]], axis=1)
    assert module.cpc_steps(p, z, with_copies).accuracy[0] == 1, (
        "a copy of the positive does not beat it"
    )
    assert module.cpc(p, z, with_copies, scale=20.0) > np.log(2) / 2, "but it is a class of its own"


def test_a_copy_that_rounds_higher_does_not_beat_the_positive():
    logits, positive_at = jnp.array([[[1.0, 1.0], [1.0000001, 1.0000001]]]), jnp.array([[[7, 8]]])
    assert module._first_of(logits, jnp.array([[[7, 9]]]), positive_at)[1] == 0.5


def test_gradients_flow_to_positives_and_negatives():
    p, z = sequences(times=4)
    negatives = draws(times=4, window=2)
    with jax.enable_x64(True):
        for loss in (module.cpc, lambda p, z: module.cpc(p, z, negatives)):
            check_grads(jax.jit(loss), (0.5 * p, 0.5 * z), order=1, modes="rev")
        check_grads(
            jax.jit(partial(module.cpc_grid, offsets=(1, 2), scale=0.5)),
            grid(),
            order=1,
            modes="rev",
        )
    p, z = sequences()
    grad_p, grad_z = jax.grad(module.cpc, argnums=(0, 1))(*map(jnp.asarray, (p, z)))
    assert not np.any(grad_p[:, :, 3:]) and np.all(np.any(grad_z, axis=-1))


def test_a_sequence_alone_without_its_own_negatives():
    p, z = sequences(batch=1)
    value, grads = jax.value_and_grad(partial(module.cpc, exclude_own=True), argnums=(0, 1))(
        *map(jnp.asarray, (p, z))
    )
    assert value == 0 and not np.any(grads[0]) and not np.any(grads[1])


def test_zero_latents_and_large_scores_are_finite():
    p, z = (jnp.asarray(x, jnp.float32) for x in sequences())
    for given in ((0 * p, 0 * z), (100 * p, 100 * z)):
        for negatives in (None, draws()):
            value, grads = jax.value_and_grad(module.cpc, argnums=(0, 1))(*given, negatives)
            assert np.isfinite(value) and all(np.isfinite(grad).all() for grad in grads)


def test_bfloat16_is_summed_in_float32():
    half = [jnp.asarray(x, jnp.bfloat16) for x in sequences()]
    full = [x.astype(jnp.float32) for x in half]
    for negatives in (None, draws()):
        assert module.cpc(*half, negatives).dtype == jnp.float32
        np.testing.assert_allclose(
            module.cpc(*half, negatives), module.cpc(*full, negatives), rtol=1e-6
        )


def test_offset_and_permuted_negatives():
    sequence, offset = np.array([[[1, 0]]]), np.array([[[4, 2]]])
    np.testing.assert_array_equal(module.offset_negatives(sequence, offset, length=5), [[[9, 3]]])
    order = np.random.default_rng(0).permutation(6)[None]
    for step in (1, 2):
        dealt = module.permuted_negatives(order, batch_size=2, length=3, step=step)
        np.testing.assert_array_equal(dealt.reshape(-1), order[0, 2 * step :])
        assert dealt.shape == (2, 1, 3 - step)


def test_sampled_negatives_depend_on_the_example_alone():
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(6))
    draw = partial(module.sample_negatives, batch_size=6, length=7, window=4, num_negatives=50)
    negatives = draw(keys)
    assert negatives.shape == (6, 50, 4)
    np.testing.assert_array_equal(negatives[2:4], draw(keys[2:4]))
    assert set(np.unique(negatives // 7)) == set(range(6))
    assert not np.any(np.asarray(negatives) % 7 == np.arange(4)), (
        "the time predicted from is not a negative"
    )


@pytest.mark.slow
def test_parity_over_devices():
    p, z = sequences(batch=8, times=3, width=3, steps=1)

    def loss(p, z, negatives, axis_name):
        p = jnp.moveaxis(p, 0, 1)  # the batch first: that axis is split
        return (
            module.cpc(p, z, axis_name=axis_name, exclude_own=True)
            + 2 * module.cpc(p, z, axis_name=axis_name, plan="ring", block_size=4)
            + module.cpc(p, z, negatives, axis_name=axis_name)
        )

    assert_parity(
        loss, (np.moveaxis(p, 0, 1), z, draws(batch=8, times=3, window=2)), [True, True, True]
    )


def test_grid_parity_over_devices():
    p, z = grid(steps=1, batch=8, height=3, across=2, width=3)

    def loss(p, z, axis_name):
        return module.cpc_grid(
            jnp.moveaxis(p, 0, 1), z, offsets=(1,), scale=0.5, axis_name=axis_name
        )

    assert_parity(loss, (np.moveaxis(p, 0, 1), z), [True, True])


def test_errors():
    p, z = sequences()
    with pytest.raises(ValueError, match="5 steps of 5 times; expected fewer steps than times"):
        module.cpc(np.concatenate([p, p, p[:1]]), z)
    with pytest.raises(ValueError, match=r"p has shape \(2, 3, 5, 3\).*d = 4 as in"):
        module.cpc(p[..., :3], z)
    with pytest.raises(ValueError, match="scale is 0"):
        module.cpc(p, z, scale=0)
    with pytest.raises(ValueError, match=r"negatives of step 1 has shape \(3, 4, 2\).*w = 3"):
        module.cpc(p, z, draws(window=2))
    with pytest.raises(
        ValueError, match="One array of negatives serves all steps only over the common window"
    ):
        module.cpc(p, z, draws(), common_window=False)
    with pytest.raises(ValueError, match="negatives for 1 steps and predictions for 2"):
        module.cpc(p, z, [draws()])
    with pytest.raises(ValueError, match="exclude_own has no meaning"):
        module.cpc(p, z, draws(), exclude_own=True)
    with pytest.raises(
        ValueError, match=r"offsets are \[1, 4\]; expected 2 row offsets from 1 to 3"
    ):
        module.cpc_grid(*grid(), offsets=(1, 4), scale=1.0)
    with pytest.raises(ValueError, match="axis_name='i' is not mapped"):
        module.cpc_grid(*grid(), offsets=(1, 2), scale=1.0, axis_name="i")
    with pytest.raises(ValueError, match="length is 1"):
        keys = jax.random.split(jax.random.key(0), 2)
        module.sample_negatives(keys, batch_size=2, length=1, window=1, num_negatives=1)
