"""InvaSpread: loops, the detached side, closed forms, devices, edges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.losses.inva_spread import inva_spread
from tests.losses.compiled import as_given, program
from tests.losses.parity import assert_parity, unit

pytestmark = pytest.mark.usefixtures("x64")

inva_spread = program(as_given(inva_spread))


def data(b=5, d=4, seed=0):
    rng = np.random.default_rng(seed)
    return unit(rng.normal(size=(b, d))), unit(rng.normal(size=(b, d)))


def oracle(x, keys, temperature, m):
    """Entry by entry; `keys` stands for the detached copy."""
    rows, loss = len(x), 0.0
    for i in range(rows):
        partner = (i + rows // 2) % rows
        e = {j: np.exp(x[i] @ keys[j] / temperature) for j in range(rows) if j != i}
        d = e[partner] + m * sum(value for j, value in e.items() if j != partner)
        loss -= np.log(e[partner] / d)
        for j in e.keys() - {
            partner
        }:  # d - e_j from the other terms: their difference has no digits where e_j leads
            rest = (
                e[partner]
                + m * sum(value for k, value in e.items() if k not in (j, partner))
                + (m - 1) * e[j]
            )
            loss -= m * np.log(rest / d)
    return loss / rows


@pytest.mark.parametrize("m", [1.0, 2.5, 0.8])
def test_value_and_detached_gradient_of_loops(m):
    z_a, z_b = data()
    x, t, step = np.concatenate([z_a, z_b]), 0.3, 1e-6
    value, grads = jax.jit(
        jax.value_and_grad(partial(inva_spread, temperature=t, negative_weight=m), (0, 1))
    )(z_a, z_b)
    np.testing.assert_allclose(value, oracle(x, x, t, m), rtol=1e-12)
    for index in ((0, 1), (7, 2)):
        moved = [x.copy(), x.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        numeric = (oracle(moved[0], x, t, m) - oracle(moved[1], x, t, m)) / (2 * step)
        np.testing.assert_allclose(np.concatenate(grads)[index], numeric, rtol=1e-6)


def test_closed_forms():
    same = np.repeat(data(1)[0], 6, 0)
    n = 11
    expected = np.log(n) - (n - 1) * np.log(1 - 1 / n)
    np.testing.assert_allclose(inva_spread(same, same, temperature=0.1), expected, rtol=1e-12)
    assert inva_spread(*data(1), temperature=0.1) == 0
    z_a, z_b = data()
    loss = partial(inva_spread, temperature=0.2)
    np.testing.assert_allclose(loss(z_a, z_b), loss(z_b, z_a), rtol=1e-12)
    np.testing.assert_allclose(loss(z_a, z_b, block_size=3), loss(z_a, z_b), rtol=1e-12)


@pytest.mark.slow
def test_devices():
    def loss(z_a, z_b, axis_name):
        return inva_spread(z_a, z_b, temperature=0.3, axis_name=axis_name) + inva_spread(
            z_a, z_b, temperature=0.3, negative_weight=2.0, axis_name=axis_name, block_size=1
        )

    assert_parity(loss, data(8, 3), (True, True))


@pytest.mark.parametrize(
    ("dtype", "m"),
    [
        (jnp.float32, 1.0),
        (jnp.float32, 0.5),
        (jnp.bfloat16, 3.0),
        pytest.param(jnp.float32, 3.0, marks=pytest.mark.slow),
        pytest.param(jnp.bfloat16, 1.0, marks=pytest.mark.slow),
        pytest.param(jnp.bfloat16, 0.5, marks=pytest.mark.slow),
    ],
)
def test_hard_inputs_are_finite(dtype, m):
    """A negative that takes all the mass, a zero row, temperature 0.01."""
    z_a, z_b = (jnp.asarray(z, dtype) for z in data())
    z_a = z_a.at[1].set(z_a[0]).at[2].set(0)
    z_b = z_b.at[0].set(-z_a[0])
    value, grads = jax.jit(
        jax.value_and_grad(partial(inva_spread, temperature=0.01, negative_weight=m), (0, 1))
    )(z_a, z_b)
    assert np.isfinite(value) and value.dtype == jnp.float32
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in grads)
    if m >= 1:
        exact = oracle(*[np.concatenate([z_a, z_b]).astype(np.longdouble)] * 2, 0.01, m)
        np.testing.assert_allclose(
            value, float(exact), rtol=1e-2 if dtype == jnp.bfloat16 else 1e-4
        )


def test_memory_of_the_gradient_is_far_below_the_matrix():
    """At 16,384 rows one matrix of similarities is 1 GiB."""
    with jax.enable_x64(False):
        x = jax.ShapeDtypeStruct((8192, 32), jnp.float32)
        gradient = jax.jit(jax.grad(partial(inva_spread, temperature=0.1), (0, 1)))
        assert gradient.lower(x, x).compile().memory_analysis().temp_size_in_bytes < 2**28


def test_errors():
    z_a, z_b = data()
    with pytest.raises(ValueError, match=r"z_b has shape \(4, 4\)"):
        inva_spread(z_a, z_b[:4], temperature=0.1)
    with pytest.raises(ValueError, match="temperature is -1"):
        inva_spread(z_a, z_b, temperature=-1)
    with pytest.raises(ValueError, match="axis_name='i' is not mapped"):
        inva_spread(z_a, z_b, temperature=0.1, axis_name="i")
    with pytest.raises(TypeError, match="temperature"):
        inva_spread(z_a, z_b)
