"""The ring against a loop that writes row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.memory import queue as ring
from cl_jax.memory.queue import Queue


def oracle(rows, pointer, filled, new):
    rows = rows.copy()
    for row in new:
        rows[pointer] = row
        pointer, filled = (pointer + 1) % len(rows), min(filled + 1, len(rows))
    return rows, pointer, filled


@pytest.mark.parametrize("size", [1, 3, 5, 8])
@pytest.mark.parametrize("batch", [1, 2, 5, 8, 19])
def test_any_batch_against_any_length(size, batch):
    queue = ring.init(jax.random.key(0), size, 2)
    rows, pointer, filled = np.asarray(queue.rows), 0, 0
    step = jax.jit(ring.enqueue)
    for i in range(4):
        new = np.arange(batch * 2, dtype=np.float32).reshape(batch, 2) + 100 * i
        queue = step(queue, new)
        rows, pointer, filled = oracle(rows, pointer, filled, new)
        np.testing.assert_array_equal(queue.rows, rows)
        assert (queue.pointer, queue.filled) == (pointer, filled)
        assert ring.valid(queue).sum() == filled


def test_empty_batch_changes_nothing():
    queue = ring.init(jax.random.key(0), 4, 3)
    after = ring.enqueue(queue, jnp.zeros((0, 3)))
    for a, b in zip(queue, after):
        np.testing.assert_array_equal(a, b)


def test_types_of_the_state_stay():
    queue = ring.init(jax.random.key(0), 4, 3, dtype=jnp.bfloat16)
    after = ring.enqueue(queue, jnp.ones((3, 3), jnp.float32))
    assert [a.dtype for a in after] == [b.dtype for b in queue]


def test_start():
    unit = ring.init(jax.random.key(0), 512, 16)
    np.testing.assert_allclose(np.linalg.norm(unit.rows, axis=1), 1, atol=1e-6)
    assert np.abs(unit.rows.mean(0)).max() < 0.05
    uniform = ring.init(jax.random.key(0), 512, (3, 16), start="uniform")
    assert uniform.rows.shape == (512, 3, 16)
    assert np.abs(uniform.rows).max() <= (3 / 16) ** 0.5
    assert abs(np.linalg.norm(uniform.rows, axis=-1).mean() - 1) < 0.02


def test_no_gradient_enters():
    queue = ring.init(jax.random.key(0), 4, 3)
    grad = jax.grad(lambda rows: ring.enqueue(queue, rows).rows.sum())(jnp.ones((2, 3)))
    np.testing.assert_array_equal(grad, 0)


def test_errors():
    queue = ring.init(jax.random.key(0), 4, 3)
    with pytest.raises(
        ValueError, match=r"rows have shape \(2, 5\); expected \[B, 3\].*another projection width"
    ):
        ring.enqueue(queue, jnp.ones((2, 5)))
    with pytest.raises(ValueError, match="int32; expected floating-point"):
        ring.enqueue(queue, jnp.ones((2, 3), jnp.int32))
    with pytest.raises(ValueError, match="at least one row"):
        ring.init(jax.random.key(0), 0, 3)
    with pytest.raises(ValueError, match=r"size is 2\.5; expected an integer"):
        ring.init(jax.random.key(0), 2.5, 3)
    assert ring.init(jax.random.key(0), 2.0, 3).rows.shape == (2, 3)
    with pytest.raises(ValueError, match='"unit" or "uniform"'):
        ring.init(jax.random.key(0), 4, 3, start="ones")


def test_pointer_may_start_anywhere():
    rows = np.arange(10.0, dtype=np.float32).reshape(5, 2)
    after = ring.enqueue(Queue(jnp.asarray(rows), jnp.int32(3), jnp.int32(5)), -jnp.ones((4, 2)))
    np.testing.assert_array_equal(after.rows, oracle(rows, 3, 5, -np.ones((4, 2)))[0])
    assert after.pointer == 2


def test_a_tree_of_rows_is_kept_slot_by_slot():
    """Keys, labels and ids of one example share a slot, as three queues written alike."""
    rows = {"key": np.arange(10.0, dtype=np.float32).reshape(5, 2), "label": np.arange(5)}
    queue = ring.init_like(jax.random.key(0), 4, jax.tree.map(jnp.asarray, rows))
    np.testing.assert_array_equal(queue.rows["label"], -1)
    np.testing.assert_allclose(np.linalg.norm(queue.rows["key"], axis=1), 1, atol=1e-6)
    for _ in range(2):
        queue = jax.jit(ring.enqueue)(queue, jax.tree.map(jnp.asarray, rows))
    alone = ring.init(jax.random.key(0), 4, 2)
    for _ in range(2):
        alone = ring.enqueue(alone, rows["key"])
    np.testing.assert_array_equal(queue.rows["key"], alone.rows)
    np.testing.assert_array_equal(queue.rows["label"], alone.rows[:, 0] / 2)
    assert queue.pointer == alone.pointer and ring.valid(queue).all()


def test_errors_of_trees():
    given = {"key": jnp.ones((3, 2)), "label": jnp.ones((3,), jnp.int32)}
    queue = ring.init_like(jax.random.key(0), 4, given)
    with pytest.raises(ValueError, match="expected that of the queue"):
        ring.enqueue(queue, given["key"])
    with pytest.raises(ValueError, match="expected the same number of each"):
        ring.enqueue(queue, given | {"label": jnp.ones((2,), jnp.int32)})
    with pytest.raises(ValueError, match="expected integers"):
        ring.enqueue(queue, given | {"label": jnp.ones((3,))})
    with pytest.raises(ValueError, match="empty tree"):
        ring.init_like(jax.random.key(0), 4, {})
