"""What readers of pickles share that run nothing of them."""

from collections.abc import Callable
from typing import Any


class Refused(ValueError):
    """A pickle asks for something else than data."""


class Call:
    """A function that a pickle may call and cannot change: it could set a function's defaults."""

    __slots__ = ("_f",)
    _f: Callable[..., Any]

    def __init__(self, f: Callable[..., Any]):
        object.__setattr__(self, "_f", f)

    def __call__(self, *args: Any) -> Any:
        return self._f(*args)

    def __setstate__(self, state: Any) -> None:
        raise Refused("a function in place of data")

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused("a function in place of data")
