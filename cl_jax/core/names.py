"""Names that a user wrote, and those that they may have meant."""

import difflib
from typing import Any


def nearest(name: str, known: Any) -> str:
    """The words "; did you mean 'x'" for a name close to a known one, else nothing."""
    close = difflib.get_close_matches(name, [str(k) for k in known], 1)
    return f"; did you mean {close[0]!r}" if close else ""
