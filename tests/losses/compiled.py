"""A module whose functions are programs: called one operation after the other, a loss is a hundred
small ones to compile."""

import functools
import inspect
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import numpy as np


def as_given(module: Any) -> Any:
    """A module, or one of its functions, whose losses take rows as they are unless told otherwise:
    for oracles, and programs of authors, that leave the normalising to their callers."""
    if isinstance(module, ModuleType):
        found = {n: x for n, x in vars(module).items() if not n.startswith("__")}
        ours = {n: as_given(x) for n, x in found.items() if inspect.isfunction(x) and n[0] != "_"}
        return SimpleNamespace(**found | ours)
    if "normalise" not in inspect.signature(module).parameters:
        return module

    @functools.wraps(module)
    def call(*args, normalise=False, **knobs):
        return module(*args, normalise=normalise, **knobs)

    return call


def compiled(module: Any) -> SimpleNamespace:
    """The names of `module`, its public functions compiled. Arrays are arguments of the program,
    all else is part of it.

    What is given no array, or is called over devices, is called as it is.
    """
    return SimpleNamespace(
        **{
            name: program(x) if inspect.isfunction(x) and name[0] != "_" else x
            for name, x in vars(module).items()
            if not name.startswith("__")
        }
    )


def program(f):
    @functools.wraps(f)
    def call(*args: Any, **knobs: Any):
        leaves, tree = jax.tree.flatten((args, knobs))
        arrays = [
            isinstance(x, jax.Array) or (isinstance(x, np.ndarray) and x.ndim > 0) for x in leaves
        ]
        if not any(arrays) or knobs.get("axis_name") is not None:
            return f(*args, **knobs)
        rest = tuple(None if array else x for x, array in zip(leaves, arrays))
        return _jitted(f, tree, tuple(arrays), rest)(
            [x for x, array in zip(leaves, arrays) if array]
        )

    return call


@functools.cache
def _jitted(f, tree, arrays, rest):
    def run(given):
        given = iter(given)
        args, knobs = jax.tree.unflatten(
            tree, [next(given) if array else x for x, array in zip(rest, arrays)]
        )
        return f(*args, **knobs)

    return jax.jit(run)
