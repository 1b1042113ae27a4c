import numpy as np
import pytest

from cl_jax.cluster.agreement import normalised_mutual_information


def test_against_sklearn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    a = rng.integers(0, 7, 200)
    b = np.where(rng.random(200) < 0.6, a + 40, rng.integers(0, 12, 200))
    expected = metrics.normalized_mutual_info_score(a, b, average_method="geometric")
    np.testing.assert_allclose(normalised_mutual_information(a, b), expected, rtol=1e-9)


def test_ends():
    a = np.random.default_rng(1).integers(0, 5, 100).astype(np.int32)
    np.testing.assert_allclose(normalised_mutual_information(a, 10 - a), 1)
    assert normalised_mutual_information(a, np.zeros(100, np.int32)) == 0
    with pytest.raises(ValueError, match=r"float64\[100\]; expected integers"):
        normalised_mutual_information(a, a / 2)
