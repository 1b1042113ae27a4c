"""Every public function of losses and memories under every transformation of JAX: lowered, not
run, so that one takes milliseconds; under `debug_nans`, value and gradient are run.

python -m tests.losses.transformations   writes docs/guides/losses/transformations.md
"""

import inspect
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from tests.losses import test_table as table

try:
    from jax.extend.core import InconclusiveDimensionOperation
except ImportError:
    from jax.core import InconclusiveDimensionOperation  # its place in jax 0.8

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "losses" / "transformations.md"


class NotApplicable(Exception):
    """The function has nothing that the transformation is about."""


def split(arrays):
    inputs = {n: x for n, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    return inputs, {n: x for n, x in arrays.items() if n not in inputs}


def summed(given: table.Row, **knobs) -> Callable:
    """The sum of all floating outputs, of the floating arguments and of the others."""

    def f(inputs, rest):
        out = table.floats(table.run(given, inputs | rest, **knobs))
        return sum((jnp.sum(x.astype(jnp.float32)) for x in out), jnp.zeros(()))

    return f


def lower(f, *args) -> None:
    jax.jit(f).lower(*args)


def twice(arrays):
    return {name: np.stack([x, x]) for name, x in arrays.items()}


def jit(given, arrays):
    lower(lambda a: table.run(given, a), arrays)


def vmap(given, arrays):
    lower(jax.vmap(lambda a: table.run(given, a)), twice(arrays))


def vmap_of_temperature(given, arrays):
    if "temperature" not in given.knobs:
        raise NotApplicable
    several = jax.vmap(lambda t, a: table.run(given, a, temperature=t), in_axes=(0, None))
    lower(lambda a: several(jnp.array([0.1, 0.2]), a), arrays)


def scan(given, arrays):
    def step(carry, a):
        return carry, table.run(given, a)

    lower(lambda many: jax.lax.scan(step, 0.0, many), twice(arrays))


def checkpoint(given, arrays):
    lower(jax.grad(jax.checkpoint(summed(given))), *split(arrays))


def grad(given, arrays, **knobs):
    lower(jax.grad(summed(given, **knobs)), *split(arrays))


def jvp(given, arrays, **knobs):
    def forward(inputs, rest):
        return jax.jvp(lambda x: summed(given, **knobs)(x, rest), (inputs,), (inputs,))

    lower(forward, *split(arrays))


def forward_over_reverse(given, arrays, **knobs):
    def hvp(inputs, rest):
        gradient = jax.grad(lambda x: summed(given, **knobs)(x, rest))
        return jax.jvp(gradient, (inputs,), (inputs,))

    lower(hvp, *split(arrays))


def reverse_over_reverse(given, arrays, **knobs):
    def slope(inputs, rest):
        grads = jax.grad(summed(given, **knobs))(inputs, rest)
        return sum((jnp.sum(g.astype(jnp.float32) ** 2) for g in grads.values()), jnp.zeros(()))

    lower(jax.grad(slope), *split(arrays))


def in_tiles(f):
    def tiled(given, arrays):
        if "block_size" not in inspect.signature(given.f).parameters:
            raise NotApplicable
        f(given, arrays, block_size=2)

    return tiled


def exported(given, arrays):
    export.export(jax.jit(lambda a: table.run(given, a)))(
        {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}
    )


def exported_for_any_batch(given, arrays):
    if not any("b" in axes.strip("*").split() for axes in given.arrays.values()):
        raise NotApplicable
    (batch,) = export.symbolic_shape("b")

    def shape(axes):
        return [batch if x == "b" else table.size(x) for x in axes.strip("*").split()]

    inputs, rest = split(
        {
            name: jax.ShapeDtypeStruct(shape(axes), arrays[name].dtype)
            for name, axes in given.arrays.items()
        }
    )
    export.export(jax.jit(jax.grad(summed(given))))(inputs, rest)


def of_type(dtype):
    def typed(given, arrays):
        inputs, rest = split(arrays)
        inputs = {name: x.astype(dtype) for name, x in inputs.items()}
        lower(jax.grad(summed(given)), inputs, rest)
        jvp(given, inputs | rest)

    return typed


def float64(given, arrays):
    with jax.enable_x64(True):
        of_type(np.float64)(given, arrays)


def strict_promotion(given, arrays):
    with jax.numpy_dtype_promotion("strict"):
        grad(given, arrays)
        of_type(jnp.bfloat16)(given, arrays)


def no_rank_promotion(given, arrays):
    with jax.numpy_rank_promotion("raise"):
        grad(given, arrays)


def leak_checks(given, arrays):
    with jax.checking_leaks():
        grad(given, arrays)


def debug_nans(given, arrays):
    """Run, since only numbers can be NaN."""
    with jax.debug_nans(True):
        jax.block_until_ready(jax.jit(jax.value_and_grad(summed(given)))(*split(arrays)))


def donation(given, arrays):
    inputs, rest = split(arrays)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        jax.jit(jax.grad(summed(given)), donate_argnums=0).lower(inputs, rest)


TRANSFORMATIONS = {
    "jit": jit,
    "vmap": vmap,
    "vmap over temperature": vmap_of_temperature,
    "scan": scan,
    "checkpoint": checkpoint,
    "grad": grad,
    "jvp": jvp,
    "forward over reverse": forward_over_reverse,
    "reverse over reverse": reverse_over_reverse,
    "tiles: jvp": in_tiles(jvp),
    "tiles: forward over reverse": in_tiles(forward_over_reverse),
    "tiles: reverse over reverse": in_tiles(reverse_over_reverse),
    "export": exported,
    "export, symbolic batch": exported_for_any_batch,
    "float64": float64,
    "bfloat16": of_type(jnp.bfloat16),
    "float16": of_type(jnp.float16),
    "strict promotion": strict_promotion,
    "rank promotion raise": no_rank_promotion,
    "debug_nans": debug_nans,
    "leak checks": leak_checks,
    "donation": donation,
}


def outcome(transformation: str, given: table.Row) -> str:
    """ "yes", "-" where there is nothing to transform, or the sentence of the ValueError."""
    arrays = table.arrays_of(given)
    if not split(arrays)[0] and transformation not in ("jit", "vmap", "scan", "export"):
        return "-"
    try:
        TRANSFORMATIONS[transformation](given, arrays)
    except NotApplicable:
        return "-"
    except InconclusiveDimensionOperation:
        return "The number of rows decides which program is made: export it with a fixed batch."
    except ValueError as error:
        if "expected" not in str(error):
            raise
        return str(error).strip().splitlines()[0]
    return "yes"


def page() -> str:
    """The table, one line for each function, and what the exceptions say."""
    outcomes: dict[str, dict[str, str]] = {}
    for given in table.ROWS:
        line = outcomes.setdefault(table.name_of(given.f), {})
        for name in TRANSFORMATIONS:
            found = outcome(name, given)
            if line.get(name, "-") in ("-", "yes"):
                line[name] = found if found != "-" else line.get(name, "-")
    notes: list[str] = []
    lines = [
        "# Losses under JAX's transformations",
        "",
        *textwrap.wrap(
            "Made by `python -m tests.losses.transformations`, which lowers every public function "
            "of `cl_jax.losses` and `cl_jax.memory` under each transformation, and runs value and "
            "gradient under `debug_nans`; `tests/losses` holds the page to it. A dash: there is "
            "nothing to transform. Types: gradient and forward mode of inputs in that type. Tiles: "
            "with `block_size=2`. Second derivatives of tiles hold the matrix of similarities.",
            100,
        ),
        "",
        "| function | " + " | ".join(TRANSFORMATIONS) + " |",
        "|---" * (len(TRANSFORMATIONS) + 1) + "|",
    ]
    for function, line in sorted(outcomes.items()):
        cells = []
        for name in TRANSFORMATIONS:
            found = line[name]
            if found not in ("yes", "-"):
                if found not in notes:
                    notes.append(found)
                found = f"no ({notes.index(found) + 1})"
            cells.append(found)
        lines.append(f"| `{function}` | " + " | ".join(cells) + " |")
    lines.append("")
    for i, note in enumerate(notes, 1):
        lines += textwrap.wrap(f"{i}. {note}", 100, subsequent_indent="   ")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
