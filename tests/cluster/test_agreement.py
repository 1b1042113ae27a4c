import numpy as np

from cl_jax.cluster.agreement import normalised_mutual_information


def entropy(*names):
    _, counts = np.unique(np.stack(names), axis=1, return_counts=True)
    share = counts / counts.sum()
    return -np.sum(share * np.log(share))


def test_against_the_definition():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 7, 200)
    b = np.where(rng.random(200) < 0.6, a + 40, rng.integers(0, 12, 200))
    expected = (entropy(a) + entropy(b) - entropy(a, b)) / np.sqrt(entropy(a) * entropy(b))
    np.testing.assert_allclose(normalised_mutual_information(a, b), expected, rtol=1e-9)


def test_ends():
    a = np.random.default_rng(1).integers(0, 5, 100).astype(np.int32)
    np.testing.assert_allclose(normalised_mutual_information(a, 10 - a), 1)
    assert normalised_mutual_information(a, np.zeros(100, np.int32)) == 0
