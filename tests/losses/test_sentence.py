"""SimCSE: loops, closed forms, the authors' exchange over ranks, devices, edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.losses.sentence import simcse, simcse_logits
from tests.losses.compiled import program
from tests.losses.parity import assert_parity

pytestmark = pytest.mark.usefixtures("x64")

simcse = program(simcse)


def data(b=5, d=4, views=3):
    return list(np.random.default_rng(0).normal(size=(views, b, d)))


def oracle(a, b, h, t, w):
    def s(x, y):
        return x @ y / np.linalg.norm(x) / np.linalg.norm(y) / t

    losses = []
    for i in range(len(a)):
        d = sum(np.exp(s(a[i], y)) for y in b)
        if h is not None:
            d += sum(np.exp(s(a[i], y) + (w if i == j else 0)) for j, y in enumerate(h))
        losses.append(np.log(d) - s(a[i], b[i]))
    return np.mean(losses)


@pytest.mark.parametrize(
    ("w", "block_size"),
    [
        (None, None),
        (0.0, 2),
        (0.7, None),
        (-1.5, 2),
        *(pytest.param(*given, marks=pytest.mark.slow) for given in ((None, 2), (0.0, None))),
        *(pytest.param(*given, marks=pytest.mark.slow) for given in ((0.7, 2), (-1.5, None))),
    ],
)
def test_value_of_loops(w, block_size):
    a, b, h = data()
    given = (a, b) if w is None else (a, b, h)
    knobs = {"temperature": 0.3, "hard_negative_weight": w or 0.0}
    loss = jax.jit(partial(simcse, **knobs, block_size=block_size))(*given)
    np.testing.assert_allclose(
        loss, oracle(a, b, None if w is None else h, 0.3, w or 0.0), rtol=1e-12
    )
    logits = simcse_logits(*given, **knobs)
    np.testing.assert_allclose(loss, -np.mean(np.diag(jax.nn.log_softmax(logits))), rtol=1e-12)


def test_closed_forms():
    same = np.ones((6, 3))
    np.testing.assert_allclose(simcse(same, same, temperature=0.05), np.log(6))
    np.testing.assert_allclose(simcse(same, same, same, temperature=0.05), np.log(12))
    weighted = simcse(same, same, same, temperature=0.05, hard_negative_weight=np.log(3.0))
    np.testing.assert_allclose(weighted, np.log(11 + 3))
    a, b, h = data()
    loss = partial(simcse, temperature=0.2)
    np.testing.assert_allclose(loss(2 * a, b / 3, 5 * h), loss(a, b, h), rtol=1e-12)
    np.testing.assert_allclose(loss(a[::-1], b[::-1], h[::-1]), loss(a, b, h), rtol=1e-12)
    assert simcse(a[:1], b[:1], temperature=0.2) == 0
    # A low loss keeps its digits in float32, where logits of 100 and 90 step by 8e-6.
    pair = jnp.array([[1.0, 0.0], [0.9, 0.19**0.5]], jnp.float32)
    np.testing.assert_allclose(
        simcse(pair, pair, temperature=0.01), np.log1p(np.exp(-10)), rtol=0.05
    )


def test_the_authors_exchange_loses_the_gradient_of_other_ranks():
    a, b, h = (x.reshape(2, 4, 4) for x in data(8))

    def ranks(with_grad):
        loss = partial(simcse, temperature=0.3, axis_name="rank", gather_with_grad=with_grad)
        return jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1, 2)), axis_name="rank"))(a, b, h)

    (ours, right), (theirs, scaled) = ranks(True), ranks(False)
    np.testing.assert_allclose(theirs, ours, rtol=1e-12)
    for x, y in zip(right, scaled):
        np.testing.assert_allclose(2 * y, x, rtol=1e-10, atol=1e-12)


def test_devices():
    def loss(a, b, h, axis_name):
        knobs = {"temperature": 0.3, "axis_name": axis_name}
        return simcse(a, b, **knobs) + 2 * simcse(
            a, b, h, hard_negative_weight=0.7, **knobs, plan="ring"
        )

    assert_parity(loss, data(8, 3), (True, True, True))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_hard_inputs_are_finite(dtype):
    a, b, h = (jnp.asarray(x, dtype).at[0].set(0).at[2].set(x[1]) for x in data())
    value, grads = jax.jit(jax.value_and_grad(partial(simcse, temperature=0.01), (0, 1, 2)))(
        a, b, h
    )
    assert np.isfinite(value) and value.dtype == jnp.float32
    assert all(np.isfinite(np.asarray(g, np.float32)).all() and g.dtype == dtype for g in grads)


def test_memory_of_the_gradient_is_far_below_the_matrix():
    """At 16,384 rows one matrix of similarities is 1 GiB."""
    with jax.enable_x64(False):
        x = jax.ShapeDtypeStruct((16384, 32), jnp.float32)
        gradient = jax.jit(jax.grad(partial(simcse, temperature=0.1), (0, 1)))
        assert gradient.lower(x, x).compile().memory_analysis().temp_size_in_bytes < 2**27


def test_errors():
    a, b, h = data()
    with pytest.raises(ValueError, match=r"z_b has shape \(4, 4\).*b = 5 as in z_a"):
        simcse(a, b[:4], temperature=0.1)
    with pytest.raises(ValueError, match=r"hard_negatives has shape \(5, 3\)"):
        simcse(a, b, h[:, :3], temperature=0.1)
    with pytest.raises(ValueError, match="temperature is 0"):
        simcse(a, b, temperature=0)
    with pytest.raises(ValueError, match="axis_name='i' is not mapped"):
        simcse(a, b, temperature=0.1, axis_name="i")
    with pytest.raises(ValueError, match="z_a has dtype int64"):
        simcse(a.astype(int), b, temperature=0.1)
