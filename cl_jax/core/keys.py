"""One key per example, from the example's own number: its place in the batch and its device change
nothing."""

import jax

from cl_jax.core import shapes


def example_keys(key: jax.Array, ids: jax.Array) -> jax.Array:
    """The keys of a batch: `fold_in(key, id)` for each example.

    Args:
      key: the step's key, a typed key (`jax.random.key`), the same on every device.
      ids: [B] integers, the examples' numbers in the data set; never a position in the batch or a
        device's index.

    Returns:
      [B] typed keys.

    Raises:
      ValueError: `ids` are not a vector of integers, or `key` is not one typed key.
    """
    shapes.check_integer("b", ids=ids)
    shapes.check_key(key=key)
    if not jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"key is raw, {key.dtype}{list(key.shape)}; expected a typed one, as "
            "jax.random.key(seed) makes it. Turn it into one with jax.random.wrap_key_data(key)."
        )
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)


_WHOLE_BATCH = 2**32 - 1  # where an example folds in its id, which is below 2^31


def batch_key(key: jax.Array, number: int = 0) -> jax.Array:
    """The key of a draw that is for the whole batch of a step rather than for an example; the same
    on every device."""
    return jax.random.fold_in(jax.random.fold_in(key, _WHOLE_BATCH), number)


def view_keys(keys: jax.Array, number: int) -> jax.Array:
    """[B] keys of examples -> [B] keys of their view `number`."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def uniforms(key: jax.Array, count: int) -> jax.Array:
    """[count] float32 numbers of `jax.random.uniform(key, (count,))`, drawn eight by eight: a loop
    over another number of them for each example is unrolled by a CPU's compiler, which takes a
    second or two."""
    drawn = jax.random.uniform(key, (-(-count // 8) * 8,), jax.numpy.float32)
    return drawn[:count]
