"""Keys of examples depend on the example alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.core.keys import batch_key, example_keys, uniforms, view_keys


def data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_an_example_has_one_key_wherever_it_lies_in_the_batch():
    key = jax.random.key(3)
    a, b = data(example_keys(key, jnp.array([7, 5, 9]))), data(example_keys(key, jnp.array([9, 7])))
    np.testing.assert_array_equal(a[[2, 0]], b)
    assert len(np.unique(a, axis=0)) == 3


def test_views_and_whole_batches_have_keys_of_their_own():
    key = jax.random.key(3)
    keys = example_keys(key, jnp.arange(4))
    every = [data(keys), data(view_keys(keys, 0)), data(view_keys(keys, 1))]
    every += [data(batch_key(key))[None], data(batch_key(key, 1))[None]]
    rows = np.concatenate(every)
    assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.parametrize(
    ("key", "ids", "words"),
    [
        (jax.random.PRNGKey(0), jnp.arange(2), r"key is raw, uint32\[2\]; expected a typed one"),
        (jax.random.split(jax.random.key(0)), jnp.arange(2), "expected one random key"),
        (None, jnp.arange(2), "key is None; expected one random key"),
        (jax.random.key(0), jnp.arange(2.0), "expected integers"),
    ],
)
def test_other_keys_and_ids_are_refused(key, ids, words):
    with pytest.raises(ValueError, match=words):
        example_keys(key, ids)


def test_uniforms_are_those_of_jax_in_any_number():
    key = jax.random.key(3)
    for count in (1, 5, 8, 22):
        expected = jax.random.uniform(key, (count,))
        np.testing.assert_array_equal(uniforms(key, count), expected)
