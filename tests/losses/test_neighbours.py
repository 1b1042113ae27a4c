"""NNCLR against loops, its search, stop-gradients, the three forms, and devices against one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cl_jax.losses import neighbours
from cl_jax.memory import queue
from tests.losses.compiled import compiled
from tests.losses.parity import assert_parity, unit

module = compiled(neighbours)
T = {"temperature": 0.3}


def given(rows=8, width=5, seed=0):
    return np.random.default_rng(seed).normal(size=(4, rows, width))


def cross(x, y, temperature):
    """-log softmax of the pair among the columns, mean over the rows."""
    total = 0.0
    for i in range(len(x)):
        powers = [np.exp(x[i] @ y[k] / temperature) for k in range(len(y))]
        total -= np.log(powers[i] / sum(powers))
    return total / len(x)


def oracle(p_a, p_b, n_a, n_b, temperature, form):
    total = 0.0
    for n, p in ((n_a, p_b), (n_b, p_a)):
        n, p = unit(n), unit(p)
        if form == "rows":
            total += cross(n, p, temperature)
        elif form == "both":
            total += (cross(n, p, temperature) + cross(p, n, temperature)) / 2
        else:
            both, rows = np.concatenate([n, p]), len(n)
            for i in range(2 * rows):
                others = [
                    np.exp(both[i] @ both[k] / temperature) for k in range(2 * rows) if k != i
                ]
                positive = both[i] @ both[(i + rows) % (2 * rows)] / temperature
                total += (np.log(sum(others)) - positive) / (2 * rows)
    return total / 2


@pytest.mark.parametrize("form", ["rows", "both", "nt_xent"])
def test_equals_loops(form):
    arrays = given()
    with jax.enable_x64(True):
        ours = module.nnclr(*arrays, **T, form=form)
        np.testing.assert_allclose(ours, oracle(*arrays, 0.3, form), rtol=1e-12)
        rows = module.nnclr_rows(*arrays, **T, form=form)
        assert rows.shape == (2, 8)
        np.testing.assert_allclose(rows.mean(), ours, rtol=1e-12)


@pytest.mark.parametrize("form, chance", [("rows", 6), ("both", 6), ("nt_xent", 11)])
def test_equal_rows_give_chance(form, chance):
    same = np.ones((6, 3), np.float32)
    for decoupled in (False, True):  # one below the line less
        loss = module.nnclr(same, same, same, same, **T, form=form, decoupled=decoupled)
        np.testing.assert_allclose(loss, np.log(chance - decoupled), rtol=1e-6)


def test_finds_the_row_of_the_largest_cosine():
    z, rows = given(rows=9)[0], given(rows=30, seed=1)[0] * np.arange(1, 31)[:, None]
    cosines = unit(z) @ unit(rows).T
    found = module.nearest_neighbours(z, rows)
    assert (found.position == cosines.argmax(axis=1)).all()
    np.testing.assert_allclose(found.rows, rows[cosines.argmax(axis=1)], rtol=1e-6)
    tiles = module.nearest_neighbours(z, rows, block_size=4)
    assert (tiles.position == found.position).all()


def test_the_first_of_equal_rows_and_only_valid_ones():
    z = np.eye(3, dtype=np.float32)
    rows = np.concatenate([z, 2 * z])
    assert (module.nearest_neighbours(z, rows).position == np.arange(3)).all()
    late = module.nearest_neighbours(z, rows, valid=np.arange(6) > 2)
    assert (late.position == np.arange(3, 6)).all()


def test_the_random_start_of_a_queue_can_be_left_out():
    held = queue.init(jax.random.key(0), 16, 4)
    held = queue.enqueue(held, unit(given(rows=5, width=4)[0]))
    found = module.nearest_neighbours(given(width=4)[1], held.rows, valid=queue.valid(held))
    assert (found.position < 5).all()


def test_gradient_reaches_the_predictions_alone():
    grads = jax.grad(lambda *x: neighbours.nnclr(*x, **T), argnums=(0, 1, 2, 3))(
        *map(jnp.asarray, given())
    )
    assert np.any(grads[0]) and np.any(grads[1])
    assert not np.any(grads[2]) and not np.any(grads[3])
    z = jnp.asarray(given()[0])
    searched = jax.grad(lambda z, q: neighbours.nearest_neighbours(z, q).rows.sum(), argnums=(0, 1))
    assert not any(np.any(grad) for grad in searched(z, z))


def test_gradients():
    p_a, p_b, n_a, n_b = given(rows=3, width=4)
    with jax.enable_x64(True):
        check_grads(
            lambda p, q: module.nnclr(p, q, n_a, n_b, **T), (p_a, p_b), order=1, modes="rev"
        )


@pytest.mark.slow
@pytest.mark.parametrize("form", ["rows", "both", "nt_xent"])
def test_parity_over_devices(form):
    def loss(*arrays, axis_name):
        return neighbours.nnclr(*arrays, **T, form=form, axis_name=axis_name)

    assert_parity(loss, tuple(given()), (True,) * 4, f32=5e-6)


def test_errors():
    p_a, p_b, n_a, n_b = given()
    with pytest.raises(ValueError, match=r'form is \'columns\'; expected "rows", "both" or'):
        neighbours.nnclr(p_a, p_b, n_a, n_b, **T, form="columns")
    with pytest.raises(ValueError, match=r"queue has shape \(8, 3\).*d = 5 as in"):
        neighbours.nearest_neighbours(p_a, p_b[:, :3])
    with pytest.raises(ValueError, match=r"valid has shape \(4,\)"):
        neighbours.nearest_neighbours(p_a, p_b, valid=np.ones(4, bool))
