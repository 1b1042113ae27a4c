"""Labelled and unlabelled examples together, and those that evaluators read."""

import numpy as np
import pytest

from cl_jax.data.labels import labelled
from cl_jax.data.parts import few, joined
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


def test_few_of_the_test_part_are_of_classes_that_the_training_part_kept():
    train = [f"{letter}{i}" for letter in "abcdefgh" for i in range(3)]
    test = ["g7", "h7", "h8", "no class"]
    groups = {name: name[0] for name in [*train, *test]} | {"no class": ""}
    found = few({"train": train, "test": test}, 2, groups)
    assert {groups[name] for name in found["train"]} == {"g", "h"} and len(found["train"]) == 2
    assert len(found["test"]) == 2 and set(found["test"]) <= set(test)
    found = few({"train": train, "test": test}, 4, groups)
    assert {groups[name] for name in found["train"]} == {"g", "h", "a", "b"}
    assert few({"train": train, "test": test}, 99) == {"train": train, "test": test}
    strangers = {"x1": "x", "y1": "y"}  # of the test part alone
    assert few({"train": train, "test": list(strangers)}, 2, groups | strangers)["test"]


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
