"""Fixtures of the losses' tests."""

import jax
import pytest


@pytest.fixture
def x64():
    """float64, in which a formula can be compared to the last digits."""
    with jax.enable_x64(True):
        yield
