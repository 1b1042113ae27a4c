"""i-Mix against loops, mixing of inputs, and draws that do not know how many devices there are."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cl_jax.losses import mixing
from tests.losses.compiled import compiled
from tests.losses.parity import assert_parity

module = compiled(mixing)


def batch(seed=0, rows=8, width=5, queue=6):
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, rows, width))
    memory = rng.normal(size=(queue, width))
    weight, partner = rng.uniform(0.5, 1, rows), rng.permutation(rows)
    return q, k, memory / np.linalg.norm(memory, axis=1, keepdims=True), weight, partner


def normalise(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def oracle(q, k, memory, weight, partner, temperature):
    q, k = normalise(q), normalise(k)
    total = 0.0
    for i in range(len(q)):
        logits = [q[i] @ key / temperature for key in (*k, *memory)]
        total += np.log(sum(np.exp(logits)))
        total -= weight[i] * logits[i] + (1 - weight[i]) * logits[partner[i]]
    return total / len(q)


def oracle_byol(p, k, weight, partner):
    p, k = normalise(p), normalise(k)
    return np.mean(
        [
            2 - 2 * (w * p[i] @ k[i] + (1 - w) * p[i] @ k[j])
            for i, (w, j) in enumerate(zip(weight, partner))
        ]
    )


def test_equals_loops():
    q, k, memory, weight, partner = batch()
    mix, ones = module.Mix(weight, partner), np.ones(8)
    expected = [
        oracle(q, k, [], weight, partner, 0.2),
        oracle(q, k, [], ones, partner, 0.2),
        oracle(q, k, memory, weight, partner, 0.5),
        oracle(q, k, memory, ones, partner, 0.5),
        oracle_byol(q, k, weight, partner),
        oracle_byol(q, k, ones, partner),
    ]
    with jax.enable_x64(True):
        q, k = jnp.asarray(q), jnp.asarray(k)
        ours = [
            module.imix_n_pair(q, k, mix, temperature=0.2),
            module.imix_n_pair(q, k, temperature=0.2),
            module.imix_moco(q, k, memory, mix, temperature=0.5),
            module.imix_moco(q, k, memory, temperature=0.5),
            module.imix_byol(q, k, mix),
            module.imix_byol(q, k),
        ]
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_a_full_share_is_no_mix_and_a_partner_of_itself_too():
    q, k, memory, weight, partner = batch()
    plain = module.imix_moco(q, k, memory, temperature=0.2)
    for mix in (module.Mix(np.ones(8), partner), module.Mix(weight, np.arange(8))):
        np.testing.assert_allclose(
            module.imix_moco(q, k, memory, mix, temperature=0.2), plain, rtol=1e-6
        )


def test_tiles_and_the_ring_give_the_same():
    q, k, memory, weight, partner = (jnp.asarray(x) for x in batch())

    def loss(q, k, weight, partner, axis_name=None, **plan):
        mix = module.Mix(weight, partner)
        return module.imix_n_pair(
            q, k, mix, temperature=0.2, axis_name=axis_name, **plan
        ) + module.imix_moco(q, k, memory, mix, temperature=0.2, axis_name=axis_name, **plan)

    def run(**plan):
        return jax.jit(jax.value_and_grad(partial(loss, **plan), argnums=(0, 1)))(
            q, k, weight, partner
        )

    value, grads = run(block_size=0)
    for a, b in zip(jax.tree.leaves(run(block_size=3)), jax.tree.leaves((value, grads))):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    shards = [x.reshape(4, 2, *x.shape[1:]) for x in (q, k, weight, partner)]
    ring = jax.pmap(
        jax.value_and_grad(partial(loss, axis_name="i", plan="ring"), argnums=(0, 1)),
        axis_name="i",
        devices=jax.devices()[:4],
    )(*shards)
    np.testing.assert_allclose(ring[0], np.full(4, value), rtol=1e-6)
    for a, b in zip(
        ring[1], grads
    ):  # each device holds the gradient of the sum over devices of the same mean
        np.testing.assert_allclose(np.asarray(a).reshape(b.shape) / 4, b, rtol=1e-5, atol=1e-6)


def test_what_knows_nothing():
    _, k, memory, weight, partner = batch()
    mix, zero = module.Mix(weight, partner), np.zeros((8, 5))
    np.testing.assert_allclose(
        module.imix_n_pair(zero, k, mix, temperature=0.1), np.log(8), rtol=1e-6
    )
    np.testing.assert_allclose(
        module.imix_moco(zero, k, memory, mix, temperature=0.1), np.log(8 + 6), rtol=1e-6
    )
    np.testing.assert_allclose(module.imix_byol(zero, k, mix), 2, rtol=1e-6)


def test_where_gradient_flows():
    q, k, memory, weight, partner = batch()
    mix = module.Mix(weight, partner)
    for loss, key_moves in (
        (partial(module.imix_n_pair, mix=mix, temperature=0.2), True),
        (lambda q, k: module.imix_moco(q, k, memory, mix, temperature=0.2), False),
        (partial(module.imix_byol, mix=mix), False),
    ):
        grad_q, grad_k = jax.jit(jax.grad(loss, argnums=(0, 1)))(jnp.asarray(q), jnp.asarray(k))
        assert np.all(np.any(grad_q, axis=1))
        assert np.any(grad_k) == key_moves
    assert not np.any(
        jax.grad(lambda m: module.imix_moco(q, k, m, mix, temperature=0.2))(jnp.asarray(memory))
    )


def test_zero_rows_low_temperature_and_bfloat16_are_finite():
    q, k, memory, weight, partner = batch()
    mix = module.Mix(weight, partner)
    for loss in (
        partial(module.imix_n_pair, mix=mix, temperature=0.01),
        lambda q, k: module.imix_moco(q, k, memory, mix, temperature=0.01),
        partial(module.imix_byol, mix=mix),
    ):
        for dtype in (jnp.float32, jnp.bfloat16):
            args = [jnp.asarray(x, dtype).at[0].set(0) for x in (q, k)]
            value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*args)
            assert value.dtype == jnp.float32 and np.isfinite(value)
            assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in grads)
        wide = loss(*(x.astype(jnp.float32) for x in args))
        # Rows of unit length are rounded to the type of the input.
        np.testing.assert_allclose(value, wide, rtol=1e-3)


def test_mixup_of_inputs_equals_loops():
    rng = np.random.default_rng(0)
    x, (_, _, _, weight, partner) = rng.normal(size=(8, 3, 4)).astype(np.float32), batch()
    mixed = module.mix_inputs(x, module.Mix(weight, partner))
    assert mixed.dtype == x.dtype
    for i in range(8):
        np.testing.assert_allclose(
            mixed[i], weight[i] * x[i] + (1 - weight[i]) * x[partner[i]], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("centre", [(0, 0), (3, 4), (5, 6), (0, 6)])
@pytest.mark.parametrize("weight", [0.5, 0.75, 0.99, 1.0])
def test_cutmix_equals_loops(centre, weight):
    height, width = 6, 7
    box, left = module.cutmix_box(weight, np.array(centre), height, width)
    inside = np.zeros((height, width), bool)
    for axis, size in enumerate((height, width)):
        half = int(size * np.sqrt(1 - weight)) // 2
        assert box[axis] == max(centre[axis] - half, 0) and box[axis + 2] == min(
            centre[axis] + half, size
        )
    inside[box[0] : box[2], box[1] : box[3]] = True
    np.testing.assert_allclose(left, 1 - inside.mean(), rtol=1e-6)
    x, partner = (
        np.random.default_rng(0).normal(size=(4, height, width, 2)).astype(np.float32),
        np.array([2, 3, 1, 0]),
    )
    mixed = module.mix_inputs(x, module.Mix(np.full(4, left), partner, box))
    np.testing.assert_array_equal(mixed, np.where(inside[None, :, :, None], x[partner], x))


@pytest.mark.parametrize("n", [1, 3])
def test_input_mix_keeps_half_and_the_mean(n):
    rng = np.random.default_rng(0)
    x, partners = rng.normal(size=(6, 4)), np.stack([rng.permutation(6) for _ in range(n)])
    raw = rng.uniform(size=6) if n == 1 else rng.dirichlet(np.ones(n + 1), 6)
    mixed = module.input_mix(x, raw, partners)
    for i in range(6):
        own = max(raw[i], 1 - raw[i]) if n == 1 else 0.5 + raw[i, 0] / 2
        others = [1 - own] if n == 1 else raw[i, 1:] / 2
        expected = own * x[i] + sum(w * x[partners[j, i]] for j, w in enumerate(others))
        np.testing.assert_allclose(mixed[i], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(module.input_mix(np.ones((6, 4)), raw, partners), 1, rtol=1e-6)


def test_draws_keep_the_larger_share_and_permute():
    mix = jax.jit(lambda key: module.draw_mixup(key, 64, alpha=1.0))(jax.random.key(0))
    assert np.all((mix.weight >= 0.5) & (mix.weight <= 1)) and len(np.unique(mix.weight)) > 32
    assert sorted(np.asarray(mix.partner)) == list(range(64))
    cut = jax.jit(lambda key: module.draw_cutmix(key, 64, 9, 7, alpha=1.0))(jax.random.key(1))
    assert (
        cut.box.shape == (4,)
        and np.all(np.asarray(cut.box[2:]) <= (9, 7))
        and len(np.unique(cut.weight)) == 1
    )


@pytest.mark.slow
def test_draws_and_mixes_do_not_depend_on_devices():
    x = np.random.default_rng(0).normal(size=(8, 6, 6, 1)).astype(np.float32)

    def views(x, axis_name=None):
        up = module.draw_mixup(jax.random.key(3), x.shape[0], alpha=1.0, axis_name=axis_name)
        cut = module.draw_cutmix(
            jax.random.key(4), x.shape[0], 6, 6, alpha=1.0, axis_name=axis_name
        )
        return *up[:2], *(module.mix_inputs(x, mix, axis_name=axis_name) for mix in (up, cut))

    expected = jax.jit(views)(x)
    actual = jax.pmap(partial(views, axis_name="i"), axis_name="i", devices=jax.devices()[:4])(
        x.reshape(4, 2, 6, 6, 1)
    )
    for a, b in zip(actual, expected):
        np.testing.assert_allclose(np.asarray(a).reshape(b.shape), b, rtol=1e-6)


def test_devices_agree():
    q, k, memory, weight, partner = batch()

    def loss(q, k, memory, weight, partner, axis_name):
        mix = module.Mix(weight, partner)
        return (
            module.imix_n_pair(q, k, mix, temperature=0.2, axis_name=axis_name)
            + 2 * module.imix_moco(q, k, memory, mix, temperature=0.3, axis_name=axis_name)
            + 3 * module.imix_byol(q, k, mix, axis_name=axis_name)
        )

    assert_parity(loss, (q, k, memory, weight, partner), (True, True, False, True, True))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda q, k, m, mix: module.imix_n_pair(q, k[:4], mix, temperature=0.2), "k has shape"),
        (
            lambda q, k, m, mix: module.imix_n_pair(q, k, mix, temperature=-1.0),
            "temperature is -1.0",
        ),
        (
            lambda q, k, m, mix: module.imix_n_pair(q[:4], k[:4], mix, temperature=0.2),
            "weight has shape",
        ),
        (lambda q, k, m, mix: module.imix_moco(q, k, m.T, mix, temperature=0.2), "queue has shape"),
        (lambda q, k, m, mix: module.imix_byol(q.astype(int), k, mix), "floating-point"),
        (lambda q, k, m, mix: module.imix_byol(q, k, mix._replace(partner=mix.weight)), "integers"),
        (lambda q, k, m, mix: module.imix_byol(q, k, mix, axis_name="nowhere"), "not mapped"),
        (
            lambda q, k, m, mix: module.mix_inputs(q, mix._replace(box=np.zeros(4, int))),
            "Use MixUp",
        ),
        (lambda q, k, m, mix: module.mix_inputs(q.astype(np.uint8), mix), "floating-point"),
        (
            lambda q, k, m, mix: module.input_mix(q, mix.weight, np.zeros((2, 8), int)),
            "raw has shape",
        ),
        (
            lambda q, k, m, mix: module.draw_mixup(
                jax.random.key(0), 4, alpha=1.0, axis_name="nowhere"
            ),
            "not mapped",
        ),
    ],
)
def test_errors(call, words):
    q, k, memory, weight, partner = batch()
    with pytest.raises(ValueError, match=words):
        call(q, k, memory, module.Mix(weight, partner))


def test_mixing_within_each_device():
    """The authors' form: permute within a device, offset the partners for the loss."""
    q, k, _, weight, _ = batch()
    local = np.array([1, 0, 3, 2] * 2)
    expected = module.imix_n_pair(
        q, k, module.Mix(weight, local + np.repeat([0, 4], 4)), temperature=0.2
    )

    def step(q, k, weight, local):
        mix = module.Mix(weight, local + lax.axis_index("i") * 4)
        return module.imix_n_pair(q, k, mix, temperature=0.2, axis_name="i")

    actual = jax.pmap(step, axis_name="i", devices=jax.devices()[:2])(
        *(x.reshape(2, 4, *x.shape[1:]) for x in (q, k, weight, local))
    )
    np.testing.assert_allclose(actual, np.full(2, expected), rtol=1e-6)
