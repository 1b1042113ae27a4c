"""The page's pieces: what is escaped, rounded and left out."""

import json
import re

import numpy as np

from cl_jax.reports import page
from cl_jax.reports.page import Map, Section


def test_words_of_users_are_escaped():
    assert page.table([("<b>", "a & b")]) == (
        "<table><tr><th>&lt;b&gt;</th><td>a &amp; b</td></tr></table>"
    )
    assert "<script>" not in page.pair([1], "<script>")


def test_charts_hold_what_was_given():
    chart = page.lines("loss", {"train": ([1, 2], [3.0, 4.0])}, "step")
    assert chart["data"][0]["x"] == [1, 2] and chart["data"][0]["mode"] == "lines+markers"
    chart = page.histograms("similarity", {"a": np.array([0.0, 1.0]), "b": np.ones(3)}, "cosine")
    width = 1 / 60
    for bars in chart["data"]:
        assert abs(sum(bars["y"]) * width - 1) < 1e-3  # densities
    chart = page.heat("confusion", np.array([[3, 1], [0, 0]]), ["x", "y"], "found", "true")
    assert chart["data"][0]["z"] == [[0.75, 0.25], [0.0, 0.0]]


def test_a_page_is_whole_and_its_data_are_json():
    rows = Map(
        {"PCA": np.array([[0.123456, np.nan]])},
        {"label": (np.array([-1]), ["a"])},
        np.zeros((1, 1), int),
        np.ones((1, 1)),
    )
    text = page.write(
        "<run>",
        "of </script>",
        [Section("Map", "", "map"), Section("Text", "a note", "<p>body</p>")],
        figures={},
        of_rows=rows,
        names=["</script><b><!--<script>"],
        labels={},
        atlas=None,
    )
    assert "<title>&lt;run&gt;" in text and "{plotly}" not in text and "<p>body</p>" in text
    given = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    data = json.loads(given[1])
    assert data["names"] == ["</script><b><!--<script>"] and "<" not in given[1]
    assert data["layouts"]["PCA"] == [[0.1235, None]]
    assert not re.search(r'<(script|img)[^>]* src="(?!data:)|<link[^>]* href=', text)  # no network
