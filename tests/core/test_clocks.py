"""What a setting counts, by its annotation."""

import inspect

import pytest

from cl_jax.core.clocks import Count, PerVisit, Steps, clock_of, is_whole

EMPTY = inspect.Parameter.empty


@pytest.mark.parametrize(
    "annotation, clock",
    [
        (Steps, "steps"),
        (Steps | None, "steps"),
        (PerVisit, "visits"),
        (Count, "count"),
        (float, ""),
        (float | None, ""),
        (EMPTY, ""),
    ],
)
def test_the_clock_of_an_annotation(annotation, clock):
    assert clock_of(annotation) == clock


@pytest.mark.parametrize(
    "annotation, value, whole",
    [
        (int, 2, True),
        (int | None, 2, True),
        (float, 2, False),
        (int | float, 2, False),
        (tuple[int, ...], (2,), True),
        (EMPTY, 2, True),
        (EMPTY, 2.0, False),
        (EMPTY, True, False),
    ],
)
def test_whole_numbers_by_annotation_or_value(annotation, value, whole):
    assert is_whole(annotation, value) == whole
