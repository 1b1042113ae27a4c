"""Views of rows: how often a column is dropped, how much noise is added, and by whose key."""

import jax
import numpy as np
import pytest

from cl_jax.core.keys import example_keys
from cl_jax.views import row

BATCH = {"row": np.ones((400, 20), np.float32) + np.arange(20, dtype=np.float32)}
KEYS = example_keys(jax.random.key(0), np.arange(400))


def test_without_changes_a_view_is_the_row():
    np.testing.assert_array_equal(row.make().draw(KEYS, BATCH), BATCH["row"])
    np.testing.assert_array_equal(row.make(drop=0.5, noise=1.0).clean(BATCH), BATCH["row"])


def test_dropped_columns_are_zero_and_the_others_unchanged():
    drawn = np.asarray(row.make(drop=0.3).draw(KEYS, BATCH))
    dropped = drawn == 0
    np.testing.assert_allclose(dropped.mean(), 0.3, atol=0.02)
    np.testing.assert_array_equal(drawn[~dropped], BATCH["row"][~dropped])
    assert dropped.std(0).min() > 0.4  # of each row by itself


def test_noise_has_its_deviation_and_a_row_depends_on_its_key_alone():
    view = row.make(noise=0.5)
    drawn = np.asarray(view.draw(KEYS, BATCH))
    np.testing.assert_allclose((drawn - BATCH["row"]).std(), 0.5, atol=0.02)
    part = {"row": BATCH["row"][7:9]}
    np.testing.assert_allclose(view.draw(KEYS[7:9], part), drawn[7:9], rtol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match=r"drop=1.0; expected a probability"):
        row.make(drop=1.0)
    with pytest.raises(ValueError, match="noise=-1"):
        row.make(noise=-1)
