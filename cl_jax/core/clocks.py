"""What an integer or a momentum among the settings of a method counts, where its name does not say:
annotations beside the setting, which a shorter run reads (`cl-jax benchmark --epochs`).

Names that say it: `*_epochs` is a duration in epochs, in whole ones if it is an `int`; `momentum`,
`*_momentum` and `ema` are running means that move at each step.

    def make(*, warmup_epochs: int = 2, momentum: PerVisit = 0.5, ema_start: Steps = 1000,
             steps: Count = 12): ...
"""

import inspect
from typing import Annotated, Any, get_args

# A duration in steps of the trainer.
Steps = Annotated[int, "steps"]
# A running mean of a row of a bank, which moves when its example is seen: once an epoch.
PerVisit = Annotated[float, "visits"]
# A number of things inside one step, no duration.
Count = Annotated[int, "count"]


def clock_of(annotation: Any) -> str:
    """What a setting counts by its annotation: "steps", "visits" or "count"; "" if that does not
    say it. `Steps | None` is `Steps`."""
    if hasattr(annotation, "__metadata__"):
        return str(annotation.__metadata__[0])
    return next(filter(None, map(clock_of, get_args(annotation))), "")


def is_whole(annotation: Any, value: Any) -> bool:
    """True if a setting is an integer by its annotation, or by its value where it has none."""
    if annotation is inspect.Parameter.empty:
        return isinstance(value, int) and not isinstance(value, bool)
    kinds = get_args(annotation) or (annotation,)
    return int in kinds and float not in kinds
