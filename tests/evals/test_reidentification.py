"""Mean average precision and the match curve, by hand and against scikit-learn."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from cl_jax.data.source import Splits, from_arrays
from cl_jax.evals import reidentification
from cl_jax.evals.reidentification import ranking

RNG = np.random.default_rng(0)


def _at(*degrees):
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def test_by_hand():
    """Order for the query at 0: wrong, right, wrong, right."""
    gallery, labels = _at(1, 2, 3, 4), np.array([5, 7, 5, 7])
    found = ranking(_at(0), np.array([7]), gallery, labels, length=3)
    np.testing.assert_allclose(found.map, (1 / 2 + 2 / 4) / 2)
    np.testing.assert_array_equal(found.cmc, [0, 1, 1])


def test_average_precision_is_scikit_learns():
    q, g = RNG.normal(size=(9, 4)), RNG.normal(size=(50, 4))
    ql, gl = RNG.integers(0, 3, 9), RNG.integers(0, 3, 50)
    cosine = (q / np.linalg.norm(q, axis=1)[:, None]) @ (g / np.linalg.norm(g, axis=1)[:, None]).T
    expected = [average_precision_score(gl == ql[i], cosine[i]) for i in range(9)]
    np.testing.assert_allclose(ranking(q, ql, g, gl).map, np.mean(expected), rtol=1e-5)


def test_a_query_is_not_in_its_own_gallery_and_neither_is_its_camera():
    x, labels = _at(0, 1, 90, 91), np.array([0, 1, 0, 1])
    found = ranking(x, labels, x, labels, same=True, length=3)
    np.testing.assert_array_equal(found.cmc, [0, 0.5, 1])
    cameras = np.array([0, 0, 0, 1])
    only = ranking(x, labels, x, labels, cameras=(cameras, cameras), length=3)
    assert only.queries == 2  # those of label 1, whose other picture is of another camera


def test_nobody_is_wrong_for_all_and_asks_nothing():
    found = ranking(_at(0, 1), np.array([7, -1]), _at(0, 2), np.array([-1, 7]), length=2)
    assert found.queries == 1 and found.map == 0.5


def test_equal_rows_count_as_before_the_right_one():
    found = ranking(_at(0), np.array([1]), _at(5, 5, 5), np.array([1, 0, 0]), length=3)
    np.testing.assert_array_equal(found.cmc, [0, 0, 1])


def test_the_evaluator_reads_query_and_gallery():
    def source(labels, cameras):
        arrays = {"label": np.array(labels, np.int32), "camera": np.array(cameras, np.int32)}
        return from_arrays("people", arrays, {"label": 3, "camera": 2})

    asked, kept = source([0, 1], [0, 0]), source([0, 1, 0, 1, -1], [0, 0, 1, 1, 1])
    data = Splits(kept, asked, {"gallery": kept})
    rows = {id(asked): _at(0, 90), id(kept): _at(0, 90, 3, 93, 1)}
    given = SimpleNamespace(data=data, features=lambda part, name: rows[id(part)])
    evaluator = reidentification.make(gallery="gallery", camera="camera", ks=(1, 2))
    found = evaluator.measure(given)
    assert list(found) == ["reidentification/map", "reidentification/cmc1", "reidentification/cmc2"]
    np.testing.assert_allclose(list(found.values()), [(1 / 2 + 1) / 2, 0.5, 1])
    assert evaluator.needs.sources == ("gallery",) and evaluator.better == dict.fromkeys(found, 1)
    given.features = lambda part, name: np.full((part.size, 2), np.nan)
    assert np.isnan(list(evaluator.measure(given).values())).all()


def test_errors():
    with pytest.raises(ValueError, match="ks is empty"):
        reidentification.make(ks=())
    with pytest.raises(ValueError, match="with Q = G"):
        ranking(_at(0), np.array([0]), _at(0, 1), np.array([0, 0]), same=True)
