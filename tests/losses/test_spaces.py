"""Leave-one-out spaces against loops; local units: exact zeros outside a unit, one forward pass,
the plain network."""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.losses import spaces
from cl_jax.losses.infonce import nt_xent
from tests.losses.compiled import as_given, compiled
from tests.losses.parity import assert_parity

module = compiled(as_given(spaces))

TEMPERATURE = 0.3


def normalise(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def batch(heads=3, rows=8, width=5, queue=6, seed=0):
    rng = np.random.default_rng(seed)
    return [
        normalise(rng.normal(size=shape))
        for shape in ((heads, rows, width), (heads, heads, rows, width), (heads, queue, width))
    ]


def oracle(q, k, queues, temperature):
    heads, rows, _ = q.shape
    terms = np.zeros((heads, rows))
    for h in range(heads):
        for b in range(rows):
            views = [0] if h == 0 else range(heads)
            below = sum(np.exp(q[h, b] @ k[h, j, b] / temperature) for j in views)
            below += sum(np.exp(q[h, b] @ n / temperature) for n in queues[h])
            terms[h, b] = -np.log(np.exp(q[h, b] @ k[h, h, b] / temperature) / below)
    return terms


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_leave_one_out_equals_loops(heads):
    q, k, queues = batch(heads)
    expected = oracle(q, k, queues, TEMPERATURE)
    with jax.enable_x64(True):
        rows = module.leave_one_out_rows(jnp.asarray(q), k, queues, temperature=TEMPERATURE)
        loss = module.leave_one_out(
            jnp.asarray(q), k, queues, temperature=TEMPERATURE, block_size=3
        )
    np.testing.assert_allclose(rows, expected, atol=1e-12)
    np.testing.assert_allclose(loss, expected.mean(), atol=1e-12)


def test_leave_one_out_knows_nothing_of_equal_keys_and_moves_queries_only():
    q, k, queues = batch()
    rows = module.leave_one_out_rows(jnp.zeros_like(q), k, queues, temperature=0.1)
    np.testing.assert_allclose(rows, np.log([[7.0]] + [[9.0]] * 2) * np.ones((3, 8)), rtol=1e-6)
    loss = partial(module.leave_one_out, temperature=0.1)
    grads = jax.grad(loss, argnums=(0, 1, 2))(jnp.asarray(q), jnp.asarray(k), jnp.asarray(queues))
    assert np.all(np.any(grads[0], axis=2)) and not np.any(grads[1]) and not np.any(grads[2])


def test_an_augmentation_switched_off_costs_log_2():
    """Views 0 and 1 coincide, so space 1 cannot tell them apart: the loss cannot fall below log
    2."""
    q = np.broadcast_to(np.eye(4)[0], (2, 3, 4))
    k, queues = np.broadcast_to(q[:, None], (2, 2, 3, 4)), np.broadcast_to(-np.eye(4)[0], (2, 5, 4))
    rows = module.leave_one_out_rows(q, k, queues, temperature=0.05)
    np.testing.assert_allclose(rows, [[0] * 3, [np.log(2)] * 3], atol=1e-6)


def test_leave_one_out_bfloat16_zero_rows_and_low_temperature():
    q, k, queues = (jnp.asarray(x, jnp.bfloat16) for x in batch())
    value, grad = jax.value_and_grad(module.leave_one_out)(
        q.at[:, 0].set(0), k, queues, temperature=0.01
    )
    assert (
        value.dtype == jnp.float32
        and np.isfinite(value)
        and np.isfinite(np.asarray(grad, np.float32)).all()
    )
    wide = [x.astype(jnp.float32) for x in (q, k, queues)]
    np.testing.assert_allclose(
        module.leave_one_out(q, k, queues, temperature=0.1),
        module.leave_one_out(*wide, temperature=0.1),
        rtol=1e-5,
    )


@pytest.mark.slow
def test_leave_one_out_devices_agree():
    q, k, queues = batch()

    def loss(q, k, queues, axis_name):  # rows first, so that they can be split
        return module.leave_one_out(
            jnp.moveaxis(q, 0, 1),
            jnp.moveaxis(k, 0, 2),
            queues,
            temperature=TEMPERATURE,
            axis_name=axis_name,
        )

    assert_parity(loss, (np.moveaxis(q, 1, 0), np.moveaxis(k, 2, 0), queues), (True, True, False))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda q, k, n: module.leave_one_out(q, k[:2], n, temperature=0.1), "k has shape"),
        (lambda q, k, n: module.leave_one_out(q, k, n[:2], temperature=0.1), "queues has shape"),
        (lambda q, k, n: module.leave_one_out(q[0], k, n, temperature=0.1), "q has shape"),
        (lambda q, k, n: module.leave_one_out(q, k, n, temperature=-2.0), "temperature is -2.0"),
        (
            lambda q, k, n: module.leave_one_out(q, k, n, temperature=0.1, axis_name="nowhere"),
            "not mapped",
        ),
        (lambda q, k, n: module.local_units(4, 5), "span is 5 with 4 stages"),
        (
            lambda q, k, n: module.local_features([jnp.tanh], q, units=[(0, 1)]),
            r"unit \(0, 1\) with 1 stages",
        ),
        (lambda q, k, n: module.local_features([jnp.tanh], q, units=[]), "units is empty"),
        (
            lambda q, k, n: module.local_losses([jnp.tanh], [], None, q, q, units=[(0, 0)]),
            "one head per unit",
        ),
        (
            lambda q, k, n: module.local_losses(
                [jnp.tanh], [jnp.tanh], None, q, q[1:], units=[(0, 0)]
            ),
            "two views",
        ),
    ],
)
def test_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call(*batch())


WIDTHS = (6, 7, 8, 7, 6)


def network(span, seed=0):
    """Four tanh stages, a linear head per unit, two views: as the golden vectors' network."""
    rng = np.random.default_rng(seed)
    layers = [jnp.asarray(rng.normal(size=pair) / 2) for pair in itertools.pairwise(WIDTHS)]
    units = module.local_units(4, span)
    heads = [jnp.asarray(rng.normal(size=(WIDTHS[last + 1], 5))) for _, last in units]
    return layers, heads, units, *jnp.asarray(rng.normal(size=(2, 4, WIDTHS[0])))


def losses(layers, heads, x_a, x_b, units):
    stages = [lambda h, a=a: jnp.tanh(h @ a) for a in layers]
    return jnp.stack(
        module.local_losses(
            stages,
            [lambda h, w=w: h @ w for w in heads],
            partial(nt_xent, temperature=TEMPERATURE),
            x_a,
            x_b,
            units=units,
        )
    )


def test_units():
    assert module.local_units(4, 2) == ((0, 1), (1, 2), (2, 3))
    assert module.local_units(4, 1) == ((0, 0), (1, 1), (2, 2), (3, 3))
    assert module.local_units(4, 4) == ((0, 3),)


@pytest.mark.slow
@pytest.mark.parametrize("span", [1, 2, 3, 4])
def test_gradient_stays_in_its_unit(span):
    layers, heads, units, x_a, x_b = network(span)
    by_layer, by_head = jax.jit(jax.jacobian(losses, argnums=(0, 1)), static_argnums=4)(
        layers, heads, x_a, x_b, units
    )
    reaches = np.array([[np.any(g[u]) for g in by_layer] for u in range(len(units))])
    np.testing.assert_array_equal(
        reaches, [[first <= j <= last for j in range(4)] for first, last in units]
    )
    np.testing.assert_array_equal(
        [[np.any(g[u]) for g in by_head] for u in range(len(units))], np.eye(len(units)) > 0
    )


def test_a_unit_has_the_gradient_of_its_own_network():
    """What stages 1 and 2 get from their unit is what they would get as a network fed with stage
    0's output."""
    layers, heads, units, x_a, x_b = network(2)

    def alone(pair):
        h_a, h_b = (
            jnp.tanh(jnp.tanh(jnp.tanh(x @ layers[0]) @ pair[0]) @ pair[1]) for x in (x_a, x_b)
        )
        return nt_xent(h_a @ heads[1], h_b @ heads[1], temperature=TEMPERATURE)

    ours = jax.jit(jax.jacobian(losses), static_argnums=4)(layers, heads, x_a, x_b, units)
    for expected, layer in zip(jax.jit(jax.grad(alone))(layers[1:3]), ours[1:3]):
        np.testing.assert_allclose(layer[1], expected, rtol=1e-4, atol=1e-6)


def test_one_unit_over_everything_is_end_to_end():
    layers, heads, units, x_a, x_b = network(4)

    def plain(layers):
        h = jnp.concatenate([x_a, x_b])
        for a in layers:
            h = jnp.tanh(h @ a)
        return nt_xent(*jnp.split(h @ heads[0], 2), temperature=TEMPERATURE)

    value, grads = jax.jit(jax.value_and_grad(plain))(layers)
    ours, our_grads = jax.jit(
        jax.value_and_grad(lambda p: losses(p, heads, x_a, x_b, units).sum())
    )(layers)
    np.testing.assert_allclose(ours, value, rtol=1e-6)
    for a, b in zip(our_grads, grads):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_shared_stages_run_forward_once_and_their_statistics_move_once():
    layers, *_, x_a, _ = network(2)
    calls = []

    def stage(h, layer, number):
        calls.append(number)
        return jnp.tanh(h @ layer), h.mean(axis=0)

    def units(layers, x):
        return module.local_features(
            [partial(stage, layer=a, number=j) for j, a in enumerate(layers)],
            x,
            units=module.local_units(4, 2),
            has_aux=True,
        )

    features = units(layers, x_a)
    assert len(features.aux) == 4 and len(features.stages) == 4 and len(features.units) == 3
    for (_, last), end in zip(module.local_units(4, 2), features.units):
        np.testing.assert_array_equal(end, features.stages[last])
    np.testing.assert_allclose(features.aux[1], features.stages[0].mean(axis=0), rtol=1e-6)
    # As written there are ten stages; the compiled forward pass has four.
    assert len(calls) == 10
    compiled = jax.jit(lambda layers, x: units(layers, x)[0]).lower(layers, x_a).compile().as_text()
    assert len(re.findall(r" tanh\(", compiled)) == 4
