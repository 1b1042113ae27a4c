"""Places in the plane for few rows and for equal ones."""

import numpy as np
import pytest

from cl_jax.reports import layouts


@pytest.mark.parametrize("rows", [3, 4])
def test_few_rows_have_places(rows, monkeypatch):
    monkeypatch.setattr(layouts, "UMAP", False)  # its own compiler takes half a minute
    x = np.random.default_rng(0).standard_normal((rows, 5)).astype(np.float32)
    for places in layouts.layouts(x).values():
        assert places.shape == (rows, 2) and np.isfinite(places).all()


def test_umap_is_not_asked_for_fewer_rows_than_its_start_needs():
    np.testing.assert_array_equal(layouts._umap(np.eye(3, dtype=np.float32), 0), np.zeros((3, 2)))


def test_equal_rows_have_one_place():
    assert {name: float(np.ptp(p)) for name, p in layouts.layouts(np.ones((5, 3))).items()} == {
        "PCA": 0.0
    }
