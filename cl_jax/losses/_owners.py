"""Which view each target was computed from."""

from collections.abc import Sequence


def check_owners(views: int, targets: int, owners: Sequence[int]) -> tuple[int, ...]:
    """The views that targets were computed from, as a tuple.

    Raises:
      ValueError: fewer than two views, an owner that is not a view, another number of owners than
        of targets.
    """
    owners = tuple(owners)
    if views < 2:
        raise ValueError(
            f"There are {views} views; expected at least 2, since no view predicts its own target."
        )
    if len(owners) != targets or not all(0 <= owner < views for owner in owners):
        raise ValueError(
            f"The targets belong to views {list(owners)}; expected {targets} numbers from 0 to "
            f"{views - 1}, one for each of the targets. Views with targets come first by default."
        )
    return owners
