"""Names in messages: those that a user may have meant, and the first of many."""

import difflib
from collections.abc import Sequence
from typing import Any


def nearest(name: str, known: Any) -> str:
    """The words "; did you mean 'x'" for a name close to a known one, else nothing."""
    close = difflib.get_close_matches(name, [str(k) for k in known], 1)
    return f"; did you mean {close[0]!r}" if close else ""


def some(words: Sequence[Any], count: int = 5) -> str:
    """The first `count` words with commas, and ", ..." for the rest; "none" of none."""
    shown = ", ".join(str(word) for word in words[:count])
    return shown + ", ..." * (len(words) > count) if words else "none"
