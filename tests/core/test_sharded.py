"""Rows split over devices: exact look-ups and writes, losses as on one device, a guard that copies
nothing."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.core import parallel, sharded
from cl_jax.core.parallel import AXIS, EACH, FIRST, SAME
from cl_jax.losses import nce
from cl_jax.memory import bank

SIZE = 13  # no number of devices divides it
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(SIZE, 4)).astype(np.float32)
IDS = np.array([12, 0, 5, 5, 7, 3, 0, 11], np.int32)


def spread(devices, rows=ROWS):
    mesh = parallel.make_mesh(devices)
    return parallel.spread(sharded.whole(jnp.asarray(rows)), mesh), mesh


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_look_ups_and_writes_are_those_of_one_array(devices):
    rows, mesh = spread(devices)
    held = -(-SIZE // devices)
    assert {part.data.shape for part in rows.rows.addressable_shards} == {(held, 4)}

    def look(rows, ids):
        every = parallel.gather(ids, AXIS)
        moved = bank.update(rows, jnp.ones((8, 4)), every, momentum=0.5, axis_name=AXIS)
        refused = sharded.choose(every[0] < 0, moved, rows)
        common = sharded.lookup(rows, every, AXIS, same=True)
        return (
            sharded.lookup(rows, ids, AXIS),
            common[None],
            sharded.settle(moved, AXIS).rows,
            sharded.settle(refused, AXIS).rows,
        )

    own, common, moved, refused = parallel.lift(look, mesh, (SAME, EACH), EACH)(rows, IDS)
    np.testing.assert_array_equal(own, ROWS[IDS])
    for one in np.asarray(common):
        np.testing.assert_array_equal(one, ROWS[IDS])
    np.testing.assert_array_equal(np.asarray(refused)[:SIZE], ROWS)
    expected = bank.update(jnp.asarray(ROWS), jnp.ones((8, 4)), IDS, momentum=0.5)
    np.testing.assert_allclose(np.asarray(moved)[:SIZE], expected, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(moved)[SIZE:], 0)


@pytest.mark.parametrize("loss", ["nce", "bank_softmax", "full_bank_softmax"])
def test_losses_are_those_of_one_array(loss):
    query = jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32)
    indices = jnp.asarray(RNG.integers(0, SIZE, (8, 6)), jnp.int32)

    def value(query, rows, indices, axis_name):
        settings = dict(temperature=0.3, axis_name=axis_name)
        if loss == "nce":
            return nce.nce(query, rows, indices, nce.init_normalizer(), **settings)[0]
        if loss == "full_bank_softmax":
            return nce.full_bank_softmax(query, rows, indices[:, 0], **settings)
        return nce.bank_softmax(query, rows, indices, **settings)

    def one(query, rows, indices, axis_name=None):
        return jax.value_and_grad(value)(query, rows, indices, axis_name)

    expected = jax.jit(one)(query, jnp.asarray(ROWS), indices)
    for devices in (1, 4):
        rows, mesh = spread(devices)
        found = parallel.lift(
            lambda *args: one(*args, axis_name=AXIS), mesh, (EACH, SAME, EACH), (SAME, EACH)
        )(query, rows, indices)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
        # Gradients of a global mean are averaged over devices afterwards: each holds n of them.
        np.testing.assert_allclose(found[1] / devices, expected[1], atol=1e-5)


@pytest.mark.parametrize("devices", [1, 4])
def test_a_guarded_write_is_in_place(devices):
    """No copy of the rows, and no temporary of their size, in the compiled step."""
    size = 4096
    rows, mesh = spread(devices, np.zeros((size, 32), np.float32))

    def step(rows, x, ids):
        def loss(x):
            logits = nce.bank_logits(x, rows, ids[:, None], temperature=1.0, axis_name=AXIS)
            return parallel.mean(jnp.mean(jnp.square(logits)), AXIS)

        value, grad = jax.value_and_grad(loss)(x)
        every = parallel.gather(ids, AXIS)
        after = bank.update(rows, parallel.gather(x, AXIS), every, momentum=0.5, axis_name=AXIS)
        go = jnp.isfinite(parallel.total(jnp.sum(grad), AXIS)) & jnp.isfinite(value)
        return sharded.settle(sharded.choose(go, after, rows), AXIS), value

    lifted = parallel.lift(step, mesh, (SAME, EACH, EACH), (FIRST, SAME), donate=(0,))
    x, ids = np.ones((8, 32), np.float32), np.arange(0, 80, 10, dtype=np.int32)
    compiled = lifted.lower(rows, x, ids).compile()
    text = compiled.as_text()
    whole = rf"f32\[{size // devices},32\]\S* copy\("
    assert not re.findall(whole, text)
    assert compiled.memory_analysis().temp_size_in_bytes < rows.rows.nbytes // devices // 8
    after, _ = lifted(rows, x, ids)
    changed = np.flatnonzero(np.asarray(after.rows).any(axis=1))
    np.testing.assert_array_equal(changed, ids)


def test_a_state_moves_between_numbers_of_devices():
    rows, mesh = spread(8)
    host = parallel.fetch({"bank": rows})
    np.testing.assert_array_equal(host["bank"].rows, ROWS)
    for devices in (1, 2, 8):
        again = parallel.replicate(host, parallel.make_mesh(devices))["bank"]
        assert again.rows.shape == (-(-SIZE // devices) * devices, 4) and again.shape == (SIZE, 4)
        np.testing.assert_array_equal(parallel.fetch(again).rows, ROWS)
    placed = parallel.place_as({"bank": sharded.whole(jnp.asarray(ROWS + 1))}, {"bank": rows})
    assert placed["bank"].rows.sharding == rows.rows.sharding
    np.testing.assert_array_equal(parallel.fetch(placed)["bank"].rows, ROWS + 1)
    assert parallel.bytes_of_a_device(rows, mesh) == 2 * 4 * 4


def test_an_axis_of_members_in_front_is_not_split():
    members = jax.vmap(sharded.whole)(jnp.asarray(np.stack([ROWS, ROWS + 1])))
    mesh = parallel.make_mesh(2)
    placed = parallel.spread(members, mesh)
    assert placed.rows.shape == (2, 14, 4) and placed.shape == (SIZE, 4)
    assert {part.data.shape for part in placed.rows.addressable_shards} == {(2, 7, 4)}
    np.testing.assert_array_equal(parallel.fetch(placed).rows[1], ROWS + 1)
