"""The sections of the page, as HTML and charts of plain arrays."""

import numpy as np

from cl_jax.reports import findings, sections


def test_the_summary_escapes_and_folds_the_settings():
    text = sections.summary([("data", "<b>")], "healthy & well", '{"a": "<i>"}').body
    assert "&lt;b&gt;" in text and "healthy &amp; well" in text and "<details>" in text


def test_curves_leave_out_what_is_not_finite_and_tell_single_values():
    log = [{"step": s, "loss": v} for s, v in ((1, 3.0), (2, np.nan), (3, 1.0))]
    found = {}
    last = {"step": 3, "linear/top1": 0.9, "knn/k": 50.0, "hardness@a/k": 50.0}
    section = sections.curves([*log, last], found)
    assert [(line["name"], line["y"]) for line in found["curve0"]["data"]] == [("loss", [3.0, 1.0])]
    assert "linear/top1" in section.body and "0.9" in section.body and "/k" not in section.body


def test_pairs_and_views():
    rng, charts = np.random.default_rng(0), {}
    z = rng.standard_normal((40, 8)).astype(np.float32)
    section = sections.pairs(z, z + 0.1, 0.2, charts)
    assert {*charts} == {"pairs", "hardest"} and "of 40 examples" in section.note
    drawn = [rng.standard_normal((2, 8, 8, 3)).astype(np.float32)] * 2
    images = [np.zeros((8, 8, 3), np.uint8)] * 2
    assert sections.views(images, drawn).body.count("<img") == 6


def test_labels_clusters_and_pairs_that_are_alike():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], 20), ("cat", "dog")
    x = np.eye(2)[label[0]] + 0.05 * rng.standard_normal((40, 2))
    label[0][0] = 1  # a cat that is called a dog
    similarity, near = findings.neighbours_of(x, 5)
    charts = {}
    confusion, wrong = sections.labelled(label, "label", similarity, near, charts)
    assert charts["confusion"]["data"][0]["x"] == ["cat", "dog"] and "votes are" in confusion.note
    assert "labelled dog, neighbours say cat" in wrong.body
    none = np.full(40, -1), ("cat",)
    assert sections.labelled(none, "label", similarity, near, charts) == []
    assert "<td>20</td>" in sections.clusters([np.arange(20), np.arange(20, 40)]).body
    titles = [section.title for section in sections.alike(x, label, similarity, near)]
    assert titles == ["Duplicates", "Likely false negatives"]
