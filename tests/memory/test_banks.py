"""Bank, hybrid memory, centre and prototypes against loops over rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from cl_jax.memory import bank, centre, hybrid, prototypes


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("ids", [[3, 1, 4], [2, 2, 2], [0, 5, 0, 6, 5, 0], [6]])
def test_bank_last_occurrence_wins(ids):
    stored, rows = rng().normal(size=(7, 4)), rng(1).normal(size=(len(ids), 4))
    expected = stored.copy()
    for i, row in zip(ids, rows):
        moved = 0.3 * stored[i] + 0.7 * row
        expected[i] = moved / np.linalg.norm(moved)
    with jax.enable_x64(True):
        actual = jax.jit(lambda *a: bank.update(*a, momentum=0.3))(stored, rows, np.array(ids))
    np.testing.assert_allclose(actual, expected, atol=1e-14)
    untouched = [i for i in range(7) if i not in ids]
    np.testing.assert_array_equal(np.asarray(actual)[untouched], stored[untouched])


def test_bank_zero_row_is_finite():
    after = bank.update(jnp.zeros((3, 2)), jnp.zeros((1, 2)), jnp.array([1]), momentum=0.5)
    np.testing.assert_array_equal(after, 0)


def test_bank_keeps_its_type():
    stored = bank.init(jax.random.key(0), 6, 4, dtype=jnp.bfloat16)
    assert (
        bank.update(stored, jnp.ones((2, 4)), jnp.array([0, 3]), momentum=0.5).dtype == jnp.bfloat16
    )


def test_bank_start():
    stored = bank.init(jax.random.key(0), 2000, 12)
    assert np.abs(stored).max() <= 0.5
    assert abs(np.square(stored).sum(1).mean() - 1) < 0.02


def test_bank_errors():
    with pytest.raises(ValueError, match="ids has dtype float32"):
        bank.update(jnp.ones((3, 2)), jnp.ones((1, 2)), jnp.ones((1,)), momentum=0.5)
    with pytest.raises(ValueError, match="d = 2 as in an earlier argument, got 5"):
        bank.update(jnp.ones((3, 2)), jnp.ones((1, 5)), jnp.array([0]), momentum=0.5)
    with pytest.raises(ValueError, match="b = 2"):
        bank.update(jnp.ones((3, 2)), jnp.ones((2, 2)), jnp.array([0]), momentum=0.5)
    with pytest.raises(ValueError, match="momentum is 2; expected a number from 0 to 1"):
        bank.update(jnp.ones((3, 2)), jnp.ones((1, 2)), jnp.array([0]), momentum=2)
    with pytest.raises(ValueError, match="momentum is -1"):
        centre.update(jnp.zeros(2), jnp.ones((1, 2)), momentum=-1)


def test_ids_that_no_row_has_write_nothing():
    rows = jnp.ones((3, 2))
    after = bank.update(rows, -jnp.ones((4, 2)), jnp.array([-1, 3, -3, 1]), momentum=0.0)
    np.testing.assert_allclose(after, [[1, 1], [-(2**-0.5)] * 2, [1, 1]], rtol=1e-6)


def test_hybrid_repeats_chain_in_batch_order():
    stored, ids = rng().normal(size=(5, 3)), np.array([1, 4, 1, 0, 1])
    rows = rng(1).normal(size=(5, 3))
    expected = stored.copy()
    for i, row in zip(ids, rows):
        moved = 0.2 * expected[i] + 0.8 * row
        expected[i] = moved / np.linalg.norm(moved)
    memory = hybrid.HybridMemory(jnp.asarray(stored, jnp.float32), jnp.arange(5))
    np.testing.assert_allclose(
        hybrid.update(memory, rows, ids, momentum=0.2).rows, expected, atol=1e-6
    )


def test_hybrid_repeats_average():
    stored, ids = rng().normal(size=(5, 3)), np.array([1, 4, 1, 0, 1])
    rows = rng(1).normal(size=(5, 3))
    expected = stored.copy()
    for i in set(ids.tolist()):
        moved = 0.2 * stored[i] + 0.8 * rows[ids == i].mean(0)
        expected[i] = moved / np.linalg.norm(moved)
    memory = hybrid.HybridMemory(jnp.asarray(stored, jnp.float32), jnp.arange(5))
    np.testing.assert_allclose(
        hybrid.update(memory, rows, ids, momentum=0.2, chain=False).rows, expected, atol=1e-6
    )


@pytest.mark.parametrize("chain", [True, False])
def test_hybrid_writes_nothing_for_ids_that_no_row_has(chain):
    memory = hybrid.HybridMemory(jnp.ones((3, 2)), jnp.arange(3))
    after = hybrid.update(
        memory, -jnp.ones((4, 2)), jnp.array([-1, 3, -3, 1]), momentum=0.0, chain=chain
    )
    np.testing.assert_allclose(after.rows, [[1, 1], [-(2**-0.5)] * 2, [1, 1]], rtol=1e-6)


def test_hybrid_start():
    features = rng().normal(size=(6, 3)).astype(np.float32)
    memory = hybrid.init(hybrid.class_means(features, np.array([0, 2, 2, 0, 0, 2]), 4))
    expected = features[[0, 3, 4]].mean(0)
    np.testing.assert_allclose(memory.rows[0], expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_array_equal(memory.rows[1], 0)
    np.testing.assert_array_equal(memory.labels, [0, 1, 2, 3])


def test_centre_over_devices():
    logits, start = (
        rng().normal(size=(2, 8, 5)).astype(np.float32),
        rng(1).normal(size=5).astype(np.float32),
    )
    one = centre.update(start, logits, momentum=0.9)
    np.testing.assert_allclose(one, 0.9 * start + 0.1 * logits.mean((0, 1)), atol=1e-6)
    mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    many = jax.shard_map(
        lambda c, x: centre.update(c, x, momentum=0.9, axis_name="i"),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(None, "i")),
        out_specs=PartitionSpec(),
    )(start, logits)
    np.testing.assert_allclose(many, one, atol=1e-6)
    np.testing.assert_array_equal(centre.init(5), np.zeros(5))


def test_a_centre_of_some_rows():
    """Other numbers of them on each device; none at all leave the centre."""
    logits, start = rng().normal(size=(2, 4, 5)), rng(1).normal(size=5)
    where = np.array([[1, 0, 1, 0], [1, 0, 0, 0]])
    mesh = jax.make_mesh((2,), ("i",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    update = jax.jit(
        jax.shard_map(
            lambda *given: centre.update(*given[:2], momentum=0.9, where=given[2], axis_name="i"),
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec("i"), PartitionSpec("i")),
            out_specs=PartitionSpec(),
        )
    )
    expected = 0.9 * start + 0.1 * logits[where > 0].mean(0)
    np.testing.assert_allclose(update(start, logits, where), expected, atol=1e-6)
    np.testing.assert_allclose(update(start, logits, 0 * where), start, atol=1e-6)
    with pytest.raises(ValueError, match=r"where has shape \(4,\); expected .* \(2, 4\)"):
        centre.update(start, logits, momentum=0.9, where=where[0])


def test_prototypes():
    np.testing.assert_allclose(
        np.linalg.norm(prototypes.init(jax.random.key(0), 9, 4), axis=1), 1, atol=1e-6
    )
    kernel = rng().normal(size=(4, 9)).astype(np.float32)
    np.testing.assert_allclose(
        prototypes.normalise(kernel, axis=0), kernel / np.linalg.norm(kernel, axis=0), atol=1e-6
    )
    zero = jax.grad(lambda x: prototypes.normalise(x).sum())(jnp.zeros((1, 3)))
    np.testing.assert_array_equal(zero, 0)
