"""Charts of plotly for notebooks."""

import numpy as np
import pytest

from cl_jax.reports import figures, layouts


@pytest.fixture(autouse=True)
def without_umap(monkeypatch):
    monkeypatch.setattr(layouts, "UMAP", False)  # its own compiler takes half a minute


def test_a_map_has_a_colour_for_each_class_and_names():
    x = np.random.default_rng(0).standard_normal((30, 5)).astype(np.float32)
    labels = np.repeat([0, 1, -1], 10)
    names = [f"{i}.png" for i in range(30)]
    chart = figures.map_of(x, labels, classes=("cat", "dog"), names=names, places="PCA")
    assert [trace.name for trace in chart.data] == ["none", "cat", "dog"]
    assert list(chart.data[1].text) == names[:10] and chart.layout.showlegend
    places = layouts.layouts(x)["PCA"]
    np.testing.assert_allclose(chart.data[2].y, places[10:20, 1])
    assert len(figures.map_of(x, places="PCA").data) == 1
    with pytest.raises(ValueError, match="places='UMAP'; expected one of PCA, t-SNE"):
        figures.map_of(x, places="UMAP")


def test_curves_of_a_log():
    log = [
        {"step": 0, "untrained/knn/top1": 0.2},
        {"step": 1, "loss": 3.0, "knn/top1": 0.5},
        {"step": 2, "loss": 2.0, "knn/top1": 0.75, "linear/top1": 0.9},
    ]
    found = figures.curves(log)
    assert [*found] == ["loss", "knn/top1"]
    assert list(found["loss"].data[0].y) == [3.0, 2.0]
    assert [line.name for line in found["knn/top1"].data] == ["knn/top1", "untrained"]
