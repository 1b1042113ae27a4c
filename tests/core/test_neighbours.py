"""The streamed top k equals a full sort, ties and NaN included."""

import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.core.neighbours import check_search, nearest_rows


def sorted_rows(bank, queries, k):
    scores = queries @ bank.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize(("block_size", "query_size"), [(4, 3), (64, 64)])
def test_blocks_of_any_size_give_the_full_sort(block_size, query_size):
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(11, 4)), rng.normal(size=(7, 4))
    bank[5] = bank[2]  # equal rows: the first comes first
    scores, rows = nearest_rows(
        jnp.float32(bank),
        jnp.float32(queries),
        5,
        normalise=False,
        block_size=block_size,
        query_size=query_size,
    )
    expected_scores, expected = sorted_rows(np.float32(bank), np.float32(queries), 5)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block_size", [1000, 300])
def test_few_of_many_are_those_of_the_full_sort(block_size):
    rng = np.random.default_rng(0)
    bank = rng.integers(-2, 3, (1000, 2)).astype(np.float32)  # most have equals
    queries = rng.integers(-2, 3, (9, 2)).astype(np.float32)
    bank[17] = np.nan
    scores, rows = nearest_rows(bank, queries, 3, normalise=False, block_size=block_size)
    bank[17] = -1e6 * queries[0]
    expected_scores, expected = sorted_rows(bank, queries, 3)
    few = [i for i in range(9) if 17 not in expected[i]]
    assert len(few) > 4
    np.testing.assert_array_equal(np.asarray(rows)[few], expected[few])
    np.testing.assert_array_equal(np.asarray(scores)[few], expected_scores[few])


def test_similarity_is_the_cosine_unless_told_otherwise():
    bank, queries = jnp.array([[10.0, 0.0], [0.0, 0.1]]), jnp.array([[0.0, 3.0]])
    scores, rows = nearest_rows(bank, queries, 2)
    assert rows.tolist() == [[1, 0]]
    np.testing.assert_allclose(scores, [[1.0, 0.0]], rtol=1e-6)


def test_a_row_with_nan_is_nobodys_neighbour():
    bank = jnp.array([[jnp.nan, 1.0], [0.0, 1.0], [1.0, 0.0]])
    scores, rows = nearest_rows(bank, jnp.array([[0.0, 1.0]]), 3)
    assert rows[0, :2].tolist() == [1, 2] and scores[0, 2] == -jnp.inf


def test_searches_that_have_no_answer_are_refused():
    with pytest.raises(ValueError, match="k is 200 but the bank has 10 rows"):
        check_search(10, 5, 200, 4096, 1024)
    with pytest.raises(ValueError, match="there are no queries"):
        check_search(10, 0, 2, 4096, 1024)
    with pytest.raises(ValueError, match="block_size is 0"):
        check_search(10, 5, 2, 0, 1024)
