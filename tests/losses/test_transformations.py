"""The page of transformations says what is so; headline losses pass all of them."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cl_jax.losses
from tests.losses import test_table as table
from tests.losses import transformations
from tests.losses.transformations import PAGE, TRANSFORMATIONS, outcome, page

TOP = {name for name in cl_jax.losses.__all__ if inspect.isfunction(getattr(cl_jax.losses, name))}
FIRST = {table.name_of(row.f): row for row in reversed(table.ROWS) if table.name_of(row.f) in TOP}


# One of each kind; the others, seconds each, with `-m slow`. All are under `jit`, and all tests
# under rank promotion "raise". "forward over reverse" takes the gradient; that of bfloat16 is taken
# by test_table.py.
FEW = {"vmap", "vmap over temperature", "scan", "tiles: jvp", "export"}
FEW |= {"forward over reverse"}


@pytest.mark.parametrize(
    "transformation",
    [
        name if name in FEW else pytest.param(name, marks=pytest.mark.slow)
        for name in TRANSFORMATIONS
    ],
)
def test_headline_losses_under(transformation, monkeypatch):
    """Traced; the page's test, which is slow, lowers them too."""
    monkeypatch.setattr(transformations, "lower", jax.eval_shape)
    assert len(FIRST) >= 20
    found = {name: outcome(transformation, row) for name, row in FIRST.items()}
    assert {name: text for name, text in found.items() if text not in ("yes", "-")} == {}


@pytest.mark.slow
def test_the_page_is_what_is_found():
    assert PAGE.read_text() == page()


@pytest.mark.parametrize("name", ["nt_xent", "info_nce", "supcon", "clip", "dino", "hcl"])
def test_debug_nans_finds_nothing(name):
    """Masked similarities are -inf, never NaN, on the way to value and gradient."""
    step, inputs = table.with_gradient(FIRST[name], table.arrays_of(FIRST[name]))
    with jax.debug_nans(True):
        value, grads = jax.jit(step)(inputs)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads.values())


def test_tiles_with_a_symbolic_batch_say_what_to_do():
    (batch,) = jax.export.symbolic_shape("b")
    z = jax.ShapeDtypeStruct((batch, 4), jnp.float32)
    with pytest.raises(ValueError, match=r"block_size is 4 with .* Pass block_size=0"):
        jax.export.export(
            jax.jit(lambda a, b: cl_jax.losses.nt_xent(a, b, temperature=0.1, block_size=4))
        )(z, z)
