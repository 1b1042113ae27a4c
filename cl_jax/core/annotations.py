"""What a factory says of a setting beyond its type, beside the setting:

def make(*, weights: Movable[str] = ""): ...
"""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

_Setting = TypeVar("_Setting")
_MOVABLE = "may lie elsewhere"
# A file or folder that a new State is made of, and that nothing reads later: a resume may be given
# another place of it. It may neither come nor go.
Movable = Annotated[_Setting, _MOVABLE]


def movable(make: Callable[..., Any]) -> list[str]:
    """The keywords of a factory that it annotates as `Movable`."""
    return marked(make, _MOVABLE)


def marked(make: Callable[..., Any], mark: str) -> list[str]:
    """The keywords of a factory whose annotation, or a part of it, is `Annotated[..., mark]`."""

    def has(annotation: Any) -> bool:
        given = getattr(annotation, "__metadata__", ())
        return mark in given or any(map(has, get_args(annotation)))

    try:
        hints = get_type_hints(make, include_extras=True)
    except (NameError, TypeError):  # an annotation that only a type checker can resolve
        hints = {k: one.annotation for k, one in inspect.signature(make).parameters.items()}
    return [key for key, annotation in hints.items() if has(annotation)]
