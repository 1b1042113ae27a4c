"""Validation parts, labelled and unlabelled examples together, and those that evaluators read."""

import numpy as np
import pytest

from cl_jax.data import scenes
from cl_jax.data.labels import labelled
from cl_jax.data.parts import held_out, joined
from cl_jax.data.source import Source, from_arrays, labels_of


def images_of(size):
    """Images whose pixels are the example's number."""
    numbers = np.arange(size, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(numbers, (size, 2, 2, 3)).copy()


def in_memory(labels, **fields):
    labels = np.asarray(labels, np.int32)
    arrays = {"image": images_of(len(labels)), "label": labels, **fields}
    return from_arrays("numbers", arrays, {"label": int(labels.max()) + 1})


def on_disk(labels, **fields):
    source = in_memory(labels, **fields)
    return Source(source.name, source.size, source.read, source.sizes)


def numbers(source):
    return [int(source.read(i)["image"][0, 0, 0]) for i in range(source.size)]


@pytest.mark.parametrize("make", [in_memory, on_disk])
def test_held_out_is_a_share_of_each_class(make):
    labels = np.repeat([0, 1, 2, 3, -1], [100, 20, 2, 1, 7])
    train, held = held_out(make(labels), 0.1)
    np.testing.assert_array_equal(np.bincount(labels_of(held)), [10, 2, 1])
    assert sorted(numbers(train) + numbers(held)) == list(range(130))
    np.testing.assert_array_equal(
        np.bincount(labels_of(train)[labels_of(train) >= 0]), [90, 18, 1, 1]
    )
    assert (labels_of(train) == -1).sum() == 7
    again = held_out(make(labels), 0.1)[1]
    assert numbers(again) == numbers(held)
    assert train.name == "numbers" and held.name == "numbers/validation"


def test_examples_of_one_instance_stay_on_one_side():
    splits = scenes.make(train_size=3000, test_size=10, share=None)
    train, held = held_out(splits.train, 0.1)
    sides = [set(source.arrays["instance"].tolist()) for source in (train, held)]
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 1438
    assert 0.09 < len(sides[1]) / 1438 < 0.11
    assert train.size + held.size == 3000


def test_held_out_without_labels():
    source = from_arrays("plain", {"image": images_of(50)}, {})
    train, held = held_out(source, 0.2)
    assert (train.size, held.size) == (40, 10)


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5])
def test_held_out_refuses(share):
    with pytest.raises(ValueError, match=f"validation={share}; expected a share"):
        held_out(in_memory([0, 1, 0, 1]), share)
    with pytest.raises(ValueError, match="too few labelled examples"):
        held_out(in_memory([0, 1, 2]), 0.1)


@pytest.mark.parametrize("make", [in_memory, on_disk])
def test_joined_examples_without_a_label_have_minus_one(make):
    first = make([0, 1, 2])
    second = from_arrays("set/unlabeled", {"image": images_of(9)[3:]}, {})
    both = joined(first, second)
    assert both.size == 9 and both.sizes == {"label": 3} and numbers(both) == list(range(9))
    np.testing.assert_array_equal(labels_of(both), [0, 1, 2] + [-1] * 6)
    assert [int(both.read(i)["label"]) for i in (2, 3)] == [2, -1]
    assert (both.arrays is None) == (first.arrays is None)
    assert both.name == "numbers and unlabeled"
    part = labelled(both)
    assert numbers(part) == [0, 1, 2] and part.sizes == {"label": 3}


def test_joined_refuses_other_fields():
    second = from_arrays("set/unlabeled", {"image": np.zeros((2, 4, 4, 3), np.uint8)}, {})
    with pytest.raises(ValueError, match=r"numbers has image \[2, 2, 3\] and set/unlabeled"):
        joined(in_memory([0, 1]), second)


def test_labelled_is_the_source_itself_where_all_are():
    source = in_memory([0, 1, 1])
    assert labelled(source) is source
    plain = from_arrays("plain", {"image": images_of(3)}, {})
    assert labelled(plain) is plain
    some = labelled(in_memory([-1, 1, -1, 0, 2, -1]))
    assert numbers(some) == [1, 3, 4] and labels_of(some).tolist() == [1, 0, 2]
    nobody = from_arrays(
        "nobody", {"image": images_of(2), "label": np.full(2, -1, np.int32)}, {"label": 3}
    )
    with pytest.raises(ValueError, match="no example of nobody has a 'label'"):
        labelled(nobody)
