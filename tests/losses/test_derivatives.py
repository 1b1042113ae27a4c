"""Forward mode and second derivatives of every form of the sums: the plain matrix, tiles, the ring
over devices; and of half precision."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from cl_jax.core.linear import linear
from cl_jax.losses.contrast import Pairs, allow, contrast, same_id
from cl_jax.losses.hardness import hcl
from cl_jax.losses.image_text import clip, siglip
from cl_jax.losses.infonce import nt_xent
from cl_jax.losses.positives import supcon
from tests.losses.parity import AXIS, _mesh

RNG = np.random.default_rng(0)
A, B, DA, DB = RNG.normal(size=(4, 8, 5)) / 2
LABELS = RNG.integers(-1, 2, 8)


def weighted(a, b, **how):
    """Every output of the primitive: uneven tiles, weights that receive gradient, an empty row."""
    ids = {"id": jnp.arange(8)}

    def weight(rows: Pairs, cols: Pairs):
        return rows["bias"][:, None] * cols["bias"][None] + allow(rows["id"][:, None] != 3)

    out = contrast(
        a,
        b,
        scale=jnp.asarray(1.5 + a[0, 0], a.dtype),
        rows=ids | {"bias": a[:, 1]},
        cols=ids | {"bias": b[:, 2]},
        log_weight=weight,
        positive=same_id,
        columns=True,
        **how,
    )
    rows = jnp.arange(8) != 3
    return sum(jnp.sum(jnp.where(rows, jnp.sin(x), 0)) for x in (out.lse, out.pos, out.gap)) + sum(
        jnp.sum(jnp.cos(x)) for x in (out.col_lse, out.col_pos, out.col_gap)
    )


LOSSES = {
    "contrast": weighted,
    "nt_xent": partial(nt_xent, temperature=0.3),
    "clip": partial(clip, logit_scale=5.0),
    "siglip": partial(siglip, logit_scale=5.0, logit_bias=-1.0),
    "hcl": partial(hcl, temperature=0.7),
    "supcon": lambda a, b, **how: supcon(jnp.stack([a, b], axis=1), LABELS, temperature=0.4, **how),
}


def derivatives(f, a, b):
    """Forward mode; forward over reverse; reverse over reverse."""
    moved = jnp.asarray(DA), jnp.asarray(DB)
    forward = jax.jvp(f, (a, b), moved)[1]
    gradient = jax.grad(f, argnums=(0, 1))
    hvp = jax.jvp(gradient, (a, b), moved)[1]

    def slope(a, b):
        return sum(jnp.vdot(g, d) for g, d in zip(gradient(a, b), moved))

    return forward, slope(a, b), hvp, jax.grad(slope, argnums=(0, 1))(a, b)


@functools.cache
def exact():
    """`derivatives` of nt_xent by the plain matrix, float64."""
    with jax.enable_x64(True):
        return jax.device_get(jax.jit(partial(derivatives, LOSSES["nt_xent"]))(A, B))


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_tiles_have_the_derivatives_of_the_plain_matrix(name):
    f = LOSSES[name]
    with jax.enable_x64(True):
        plain = jax.jit(partial(derivatives, partial(f, block_size=0)))(A, B)
        tiles = jax.jit(partial(derivatives, partial(f, block_size=3)))(A, B)
    for found in (plain, tiles):
        np.testing.assert_allclose(found[0], found[1], rtol=1e-10)
    for ours, theirs in zip(jax.tree.leaves(tiles), jax.tree.leaves(plain)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)
    for forward, reverse in zip(*tiles[2:]):
        np.testing.assert_allclose(forward, reverse, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_the_plain_matrix_against_differences():
    f = partial(weighted, block_size=0)
    with jax.enable_x64(True):
        forward, _, (hvp, _), _ = derivatives(f, A, B)
        h = 1e-5
        ahead, behind = f(A + h * DA, B + h * DB), f(A - h * DA, B - h * DB)
        np.testing.assert_allclose(forward, (ahead - behind) / (2 * h), rtol=1e-7)
        gradient = jax.grad(f)
        ahead, behind = gradient(A + h * DA, B + h * DB), gradient(A - h * DA, B - h * DB)
        np.testing.assert_allclose(hvp, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("block_size", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_the_ring_has_the_derivatives_of_one_device(block_size):
    with jax.enable_x64(True):
        mapped = jax.shard_map(
            partial(LOSSES["nt_xent"], axis_name=AXIS, plan="ring", block_size=block_size),
            mesh=_mesh(4),
            in_specs=PartitionSpec(AXIS),
            out_specs=PartitionSpec(),
        )
        found = jax.jit(partial(derivatives, mapped))(A, B)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(exact())):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("block_size", [0, 3])
def test_half_precision_has_them_too(dtype, block_size):
    f = partial(LOSSES["nt_xent"], block_size=block_size)
    a, b, da, db = (jnp.asarray(x, dtype) for x in (A, B, DA, DB))

    def all_of(a, b):
        gradient = jax.grad(f, argnums=(0, 1))
        return jax.jvp(f, (a, b), (da, db))[1], jax.jvp(gradient, (a, b), (da, db))[1]

    forward, hvp = jax.jit(all_of)(a, b)
    np.testing.assert_allclose(forward, exact()[0], rtol=0.1, atol=0.02)
    assert {x.dtype for x in hvp} == {jnp.dtype(dtype)}
    for ours, theirs in zip(hvp, exact()[2]):
        ours = np.asarray(ours.astype(jnp.float32))
        np.testing.assert_allclose(ours, theirs, atol=0.1 * abs(theirs).max())


def test_derivatives_of_vectorised_tiles():
    f = partial(nt_xent, block_size=3)
    many = RNG.normal(size=(3, 8, 5)).astype(np.float32)

    def step(a, t):
        return jax.jvp(jax.grad(lambda a: f(a, many[0], temperature=t)), (a,), (many[1],))[1]

    temperatures = jnp.array([0.2, 0.5, 1.0])
    found = jax.jit(jax.vmap(step))(many, temperatures)
    alone = jax.jit(step)
    one_by_one = np.stack([alone(a, t) for a, t in zip(many, np.asarray(temperatures))])
    np.testing.assert_allclose(found, one_by_one, rtol=1e-3, atol=1e-5)


class TestLinear:
    """The primitive itself: x -> a x, with 2 a y as its transpose, to see which one runs."""

    @staticmethod
    def f(a, x):
        @jax.custom_jvp
        def product(a, x):
            return a * x

        @product.defjvp
        def _(primals, tangents):
            out = linear(
                lambda a, moved: a * moved[1] + primals[1] * moved[0],
                lambda a, y: (2 * primals[1] * y, 2 * a * y),
                primals[0],
                tangents,
            )
            return product(*primals), out

        return product(a, x)

    def test_forward_runs_the_function_and_reverse_the_transpose(self):
        assert jax.jvp(self.f, (3.0, 5.0), (0.0, 1.0))[1] == 3
        assert jax.grad(self.f, argnums=1)(3.0, 5.0) == 6

    def test_vectorised_and_over_an_axis_that_is_only_in_the_residuals(self):
        grads = jax.vmap(jax.grad(self.f, argnums=1), in_axes=(0, None))(jnp.arange(3.0), 5.0)
        np.testing.assert_array_equal(grads, [0, 2, 4])

    def test_arrays_of_the_enclosing_trace_may_be_closed_over(self):
        assert jax.jit(jax.grad(self.f, argnums=1))(3.0, 5.0) == 6
