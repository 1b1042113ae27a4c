"""Checks at trace time: what passes, and the sentence for what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.cluster import kmeans
from cl_jax.core import shapes
from cl_jax.losses import (
    clusters,
    decorrelation,
    hardness,
    mixing,
    nce,
    positives,
    predictive,
    spread,
)
from cl_jax.memory import bank, prototypes, queue


def test_letters_have_one_size_over_arrays_and_calls():
    sizes = shapes.check("b d", z_a=jnp.zeros((4, 3)), z_b=jnp.zeros((4, 3)))
    assert sizes == {"b": 4, "d": 3}
    assert shapes.check("k d", sizes, queue=jnp.zeros((9, 3))) == {"b": 4, "d": 3, "k": 9}
    assert shapes.check("... 2", boxes=jnp.zeros((5, 6, 2))) == {}


@pytest.mark.parametrize(
    ("spec", "arrays", "words"),
    [
        ("b d", {"a": (4, 3), "b": (5, 3)}, r"b has shape \(5, 3\).*b = 4 as in a, got 5"),
        ("b d", {"a": (4,)}, r"a has shape \(4,\), 1 axes; expected \[b, d\]"),
        ("b 3", {"a": (4, 2)}, "that axis = 3, got 2"),
    ],
)
def test_a_wrong_shape_names_the_array_and_who_set_the_size(spec, arrays, words):
    with pytest.raises(ValueError, match=words):
        shapes.check(spec, **{name: jnp.zeros(shape) for name, shape in arrays.items()})


def test_types():
    with pytest.raises(ValueError, match="x has dtype int32; expected floating-point features"):
        shapes.check_real(x=jnp.zeros(2, jnp.int32))
    with pytest.raises(ValueError, match="labels has dtype float32; expected integers"):
        shapes.check_integer("b", labels=jnp.zeros(2))
    assert shapes.check_integer("b", labels=jnp.zeros(2, jnp.uint8)) == {"b": 2}


def test_integers_beyond_32_bits_are_refused_where_jax_would_cut_them():
    for large in (np.array([0, 2**32]), np.array([-(2**31) - 1, 0]), np.array([2**32], np.uint64)):
        with pytest.raises(ValueError, match=r"labels goes from .* beyond u?int32.*np.unique"):
            shapes.check_integer("b", labels=large)
        with jax.enable_x64(True):
            shapes.check_integer("b", labels=large)
    shapes.check_integer("b", labels=np.array([-(2**31), 2**31 - 1]))


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "0.5", np.ones(1)])
def test_a_share_is_a_number_from_0_to_1(value):
    with pytest.raises(ValueError, match=r"momentum (is|has shape) .*; expected a (number|scalar)"):
        shapes.check_share(momentum=value)
    for share in (0, 1, 0.5, np.float32(1), jnp.float32(0)):
        shapes.check_share(momentum=share)


@pytest.mark.parametrize("value", [0, -0.1, float("nan"), 0.0])
def test_a_number_that_is_not_positive_is_refused_with_typical_temperatures(value):
    with pytest.raises(ValueError, match=r"temperature is .*Typical temperatures are"):
        shapes.check_positive(temperature=value)


def test_traced_scalars_pass_and_vectors_do_not():
    jax.jit(lambda t: shapes.check_positive(temperature=t))(jnp.float32(-1))
    with pytest.raises(ValueError, match=r"temperature has shape \(1,\); expected a scalar"):
        shapes.check_positive(temperature=jnp.ones(1))
    shapes.check_positive(base_temperature=None)


@pytest.mark.parametrize("value", [np.asarray(0.0), jnp.asarray(-1.0), jnp.asarray(jnp.nan)])
def test_an_array_whose_value_is_known_is_judged_as_a_number(value):
    with pytest.raises(ValueError, match=r"temperature is .*expected a number above 0"):
        shapes.check_positive(temperature=value)
    shapes.check_positive(temperature=abs(value) + 1 if value == value else 1)


@pytest.mark.parametrize("value", ["0.1", None, 0.1j])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match=r"temperature is .*expected a number"):
        shapes.check_positive(temperature=value)


def test_a_memory_is_not_its_rows():
    memory = queue.init(jax.random.key(0), 4, 3)
    with pytest.raises(ValueError, match=r"keys is a Queue; expected an array.*keys\.rows"):
        shapes.check("k d", keys=memory)


@pytest.mark.parametrize("given", [[[1.0]], (), None, "abc"])
def test_what_is_no_array_is_refused(given):
    for check in (shapes.check, shapes.check_integer):
        with pytest.raises(ValueError, match=r"x is a \w+; expected an array.*jnp\.asarray\(x\)"):
            check("b d", x=given)


def test_a_tensor_of_another_library_is_named_with_its_conversion():
    class Tensor:
        shape, dtype = (4, 3), "torch.float32"

    for check in (shapes.check, shapes.check_integer):
        with pytest.raises(ValueError, match=r"Tensor; expected .* jnp.asarray\(z_a.numpy\(\)\)"):
            check("b d", z_a=Tensor())


@pytest.mark.parametrize("labels", [np.array(["a", "b"]), np.array([0, 1], object)])
def test_classes_that_are_no_numbers_are_refused(labels):
    with pytest.raises(ValueError, match=r"labels has dtype .*expected numbers.*np\.unique"):
        shapes.check_integer("b", labels=labels)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_an_empty_batch_is_refused(shape):
    with pytest.raises(ValueError, match=r"no entry along [bd]; expected at least one"):
        shapes.check("b d", x=jnp.zeros(shape))


@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_a_count_is_an_integer_of_at_least_1(value):
    with pytest.raises(ValueError, match=r"block_size is .*expected an integer of at least 1"):
        shapes.check_count(block_size=value)
    shapes.check_count(block_size=None, k=3, m=2.0)


def test_an_axis_that_is_not_mapped_is_refused_with_both_ways_to_map_it():
    with pytest.raises(ValueError, match=r"axis_name='batch' is not mapped here.*jax\.shard_map"):
        shapes.check_axis("batch")
    shapes.check_axis(None)
    jax.vmap(lambda x: (shapes.check_axis("batch"), x)[1], axis_name="batch")(jnp.zeros(2))


IDS = jnp.arange(4)
DRAWS = {
    "bank.init": lambda key: bank.init(key, 8, 3),
    "kmeans": lambda key: kmeans.kmeans(key, jnp.eye(6), 2),
    "prototypes.init": lambda key: prototypes.init(key, 8, 3),
    "queue.init": lambda key: queue.init(key, 8, 3),
    "queue.init_like": lambda key: queue.init_like(key, 8, {"z": jnp.zeros((4, 3)), "id": IDS}),
    "draw_cutmix": lambda key: mixing.draw_cutmix(key, 4, 8, 8, alpha=1.0),
    "draw_directions": lambda key: spread.draw_directions(key, 3, 5),
    "draw_indices": lambda key: nce.draw_indices(key, IDS, 9, 3),
    "draw_mixtures": lambda key: hardness.draw_mixtures(
        key, IDS, num_hard=3, num_pairs=2, num_query=1
    ),
    "draw_mixup": lambda key: mixing.draw_mixup(key, 4, alpha=1.0),
    "draw_permutations": lambda key: decorrelation.draw_permutations(key, 4, 2),
    "draw_prototypes": lambda key: clusters.draw_prototypes(key, IDS, 9, 3),
    "positive_draws": lambda key: positives.positive_draws(key, IDS, num_positives=2),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_number_where_a_key_belongs_is_refused_by_all_that_draw(name):
    for wrong in (0, None, jnp.arange(2)):
        with pytest.raises(ValueError, match=r"key is .*; expected one random key.*jax\.random"):
            DRAWS[name](wrong)
    jax.eval_shape(DRAWS[name], jax.random.key(0))
    jax.eval_shape(DRAWS[name], jax.random.PRNGKey(0))


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_a_key_is_typed_or_raw_and_may_be_traced(make):
    def checked(key):
        shapes.check_key(key=key)
        return key

    keys = jax.random.split(make(0), 3)
    checked(make(0))
    checked(np.asarray(jax.random.PRNGKey(0)))
    jax.jit(checked)(make(0))
    jax.vmap(checked)(keys)
    jax.jit(jax.vmap(checked))(keys)
    shapes.check_key(1, keys=keys)
    with pytest.raises(ValueError, match=r"key is .*\[3.*; expected one random key"):
        checked(keys)
    with pytest.raises(
        ValueError, match=r"keys is .*expected a vector of random keys.*split\(key, B"
    ):
        shapes.check_key(1, keys=make(0))


class AnyName:
    """Answers to any name, as flax.nnx.Rngs does."""

    def __getattr__(self, name):
        return AnyName()


class Wrapped:
    """A variable that holds a key, as flax.nnx has them."""

    def __init__(self, key):
        self.key, self.dtype, self.shape = key, key.dtype, key.shape


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (0, "key is 0;"),
        (np.int64(3), r"key is int64\[\];"),
        (jnp.zeros(3, jnp.uint32), r"key is uint32\[3\];"),
        ([0, 1], r"key is \[0, 1\];"),
        ([jax.random.key(0)] * 3, "key is a list;"),
        (AnyName(), r"key is .*AnyName.*; expected one random key"),
        (Wrapped(jax.random.key(0)), r"key is .*Wrapped.*; expected one random key"),
    ],
)
def test_what_is_no_key_is_shown(wrong, words):
    with pytest.raises(ValueError, match=words):
        shapes.check_key(key=wrong)


def test_sequences_without_a_key_each_are_refused():
    sizes = dict(batch_size=4, length=6, window=3, num_negatives=2)
    with pytest.raises(ValueError, match=r"keys is .*expected a vector of random keys"):
        predictive.sample_negatives(jax.random.key(0), **sizes)
    for make in (jax.random.key, jax.random.PRNGKey):
        found = predictive.sample_negatives(jax.random.split(make(0), 4), **sizes)
        assert found.shape == (4, 2, 3)
