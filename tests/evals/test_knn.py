"""The weighted vote against loops in NumPy, blocks against the whole, ties and edges."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cl_jax.core.neighbours import nearest_rows
from cl_jax.data.source import Splits, from_arrays
from cl_jax.evals import knn as module
from cl_jax.evals.knn import knn, raw_pixels

RNG = np.random.default_rng(0)


def data(n=37, m=11, d=5, classes=4):
    return (
        RNG.normal(size=(n, d)),
        RNG.integers(0, classes, n),
        RNG.normal(size=(m, d)),
        RNG.integers(0, classes, m),
    )


def by_loops(bank, bank_labels, features, k, temperature, num_classes):
    votes = np.zeros((len(features), num_classes))
    for i, x in enumerate(features):
        s = [x @ row / np.linalg.norm(x) / np.linalg.norm(row) for row in bank]
        for j in sorted(range(len(bank)), key=lambda j: (-s[j], j))[:k]:
            votes[i, bank_labels[j]] += np.exp(s[j] / temperature)
    return votes


@pytest.mark.parametrize(
    "k, block_size, query_size", [(1, 8, 4), (7, 5, 3), (7, 37, 11), (37, 8, 100), (20, 1, 11)]
)
def test_equals_the_loops_whatever_the_blocks(k, block_size, query_size):
    bank, bank_labels, features, labels = data()
    votes = by_loops(bank, bank_labels, features, k, 0.1, 4)
    with jax.enable_x64():
        out = knn(
            bank,
            bank_labels,
            features,
            labels,
            k=k,
            temperature=0.1,
            num_classes=4,
            block_size=block_size,
            query_size=query_size,
        )
        np.testing.assert_allclose(out.votes, votes, rtol=1e-9)
        np.testing.assert_array_equal(out.prediction, votes.argmax(axis=1))
        assert float(out.top1) == pytest.approx(np.mean(votes.argmax(axis=1) == labels), abs=1e-12)
        voted = votes[np.arange(len(labels)), labels] > 0
        assert float(out.top5) == pytest.approx(voted.mean(), abs=1e-12)


def test_top5_counts_the_five_first_classes():
    bank, bank_labels, features, labels = data(n=60, m=40, classes=9)
    votes = by_loops(bank, bank_labels, features, 30, 0.5, 9)
    first = np.argsort(-votes, axis=1, kind="stable")[:, :5]
    out = knn(bank, bank_labels, features, labels, k=30, temperature=0.5, num_classes=9)
    assert float(out.top5) == pytest.approx(
        np.mean((first == labels[:, None]).any(axis=1)), abs=1e-6
    )
    assert 0 < float(out.top1) < float(out.top5) < 1


def test_neighbours_are_the_sorted_cosines():
    bank, _, features, _ = data()
    cosine = (features / np.linalg.norm(features, axis=1, keepdims=True)) @ (
        bank / np.linalg.norm(bank, axis=1, keepdims=True)
    ).T
    scores, found = nearest_rows(bank, features, 6, block_size=7, query_size=4)
    np.testing.assert_array_equal(found, np.argsort(-cosine, axis=1)[:, :6])
    np.testing.assert_allclose(scores, -np.sort(-cosine, axis=1)[:, :6], atol=1e-6)
    plain = nearest_rows(bank, features, 6, normalise=False, block_size=7)[1]
    np.testing.assert_array_equal(plain, np.argsort(-(features @ bank.T), axis=1)[:, :6])


@pytest.mark.parametrize("block_size", [2, 3, 8])
def test_of_equal_neighbours_the_first_counts(block_size):
    bank = np.tile(np.eye(2), (4, 1))  # rows 0, 2, 4, 6 are alike, and 1, 3, 5, 7
    found = nearest_rows(bank, np.eye(2), 5, block_size=block_size)[1]
    np.testing.assert_array_equal(found, [[0, 2, 4, 6, 1], [1, 3, 5, 7, 0]])


def test_of_equal_votes_the_lower_class_wins():
    out = knn(
        np.eye(2),
        np.array([2, 1]),
        np.ones((1, 2)),
        np.array([1]),
        k=2,
        temperature=0.1,
        num_classes=3,
    )
    assert float(out.votes[0, 1]) == float(out.votes[0, 2])
    assert int(out.prediction[0]) == 1 and float(out.top1) == 1


def test_a_low_temperature_cannot_overflow_the_prediction():
    bank = np.array([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0]])
    out = knn(
        bank, np.array([1, 1, 0]), bank[:1], np.array([1]), k=3, temperature=0.005, num_classes=2
    )
    assert np.isinf(out.votes[0, 1]) and np.isfinite(out.votes[0, 0])
    assert int(out.prediction[0]) == 1


def test_zero_rows_are_similar_to_nothing():
    bank = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    out = knn(
        bank,
        np.array([0, 1, 2]),
        np.array([[0.0, 0.0], [2.0, 0.0]]),
        k=3,
        temperature=1.0,
        num_classes=3,
    )
    np.testing.assert_allclose(out.votes, [[1, 1, 1], np.exp([0, 1, -1])], rtol=1e-6)
    assert np.isnan(out.top1)


def test_bfloat16_features_vote_in_float32():
    bank, bank_labels, features, labels = data()
    half = jax.numpy.asarray(bank, "bfloat16"), jax.numpy.asarray(features, "bfloat16")
    out = knn(half[0], bank_labels, half[1], labels, k=5, temperature=0.1, num_classes=4)
    wide = knn(
        np.float32(half[0]),
        bank_labels,
        np.float32(half[1]),
        labels,
        k=5,
        temperature=0.1,
        num_classes=4,
    )
    assert out.votes.dtype == np.float32
    np.testing.assert_allclose(out.votes, wide.votes, rtol=1e-5)


def test_memory_is_of_blocks_not_of_the_whole():
    n, m = 4096, 2048
    args = (
        np.zeros((n, 4), np.float32),
        np.zeros(n, np.int32),
        np.zeros((m, 4), np.float32),
        None,
        0.1,
    )
    sizes = [
        module._knn.lower(*args, 10, 3, True, True, block, query)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for block, query in ((128, 64), (n, m))
    ]
    assert sizes[0] < 1e6 < 4 * n * m <= sizes[1]


def test_errors_say_what_to_do():
    bank, bank_labels, features, labels = data()
    knobs = {"k": 5, "temperature": 0.1, "num_classes": 4}
    with pytest.raises(ValueError, match="k is 200 but the bank has 37 rows"):
        knn(bank, bank_labels, features, labels, **knobs | {"k": 200})
    with pytest.raises(ValueError, match="bank_labels go from 0 to 3; expected 0 to 2"):
        knn(bank, bank_labels, features, labels, **knobs | {"num_classes": 3})
    with pytest.raises(ValueError, match="labels go from -1"):
        knn(bank, bank_labels, features, np.full(11, -1), **knobs)
    with pytest.raises(ValueError, match="temperature"):
        knn(bank, bank_labels, features, labels, **knobs | {"temperature": 0.0})
    with pytest.raises(ValueError, match="features has shape"):
        knn(bank, bank_labels, features[:, :3], labels, **knobs)
    with pytest.raises(ValueError, match="no queries"):
        nearest_rows(bank, features[:0], 3)


def test_raw_pixels():
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    np.testing.assert_allclose(raw_pixels(images), images.reshape(2, 12) / 255, rtol=1e-6)
    with pytest.raises(ValueError, match="uint8"):
        raw_pixels(images / 255)


def test_a_class_without_a_vote_is_not_among_the_first_five():
    bank, bank_labels, features, labels = data(n=60, m=40, classes=9)
    out = knn(bank, bank_labels, features, labels, k=1, temperature=0.5, num_classes=9)
    assert float(out.top5) == float(out.top1)


def test_a_row_with_nan_is_nobodys_neighbour_and_a_query_with_nan_is_wrong():
    bank, bank_labels, features, labels = data(n=60, m=40, classes=9)
    settings = dict(k=5, temperature=0.1, num_classes=9)
    without = knn(bank[1:], bank_labels[1:], features, labels, **settings)
    bank = bank.copy()
    bank[0, 1] = np.nan
    spoilt = knn(bank, bank_labels, features, labels, **settings)
    np.testing.assert_array_equal(spoilt.prediction, without.prediction)
    features = features.copy()
    features[:, 0] = np.nan
    assert float(knn(bank, bank_labels, features, labels, **settings).top5) == 0


def test_votes_are_left_out_on_request():
    bank, bank_labels, features, labels = data(n=60, m=40, classes=9)
    settings = dict(k=5, temperature=0.1, num_classes=9)
    kept = knn(bank, bank_labels, features, labels, **settings)
    out = knn(bank, bank_labels, features, labels, keep_votes=False, **settings)
    assert out.votes is None and float(out.top1) == float(kept.top1)


def test_raw_pixels_of_other_sizes_are_no_baseline():
    square, wide = (
        from_arrays("one", {"image": np.zeros((2, 4, width, 3), np.uint8)}, {}) for width in (4, 6)
    )
    assert module.make().baseline(SimpleNamespace(data=Splits(square, wide))) == {}
