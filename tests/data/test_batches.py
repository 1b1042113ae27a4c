"""Order, batches and their sharding; sources, subsets and fractions."""

import cProfile
import itertools
import pstats

import numpy as np
import pytest

from cl_jax.data.batches import (
    balanced_order,
    host_batches,
    ids_at,
    order,
    resident,
    sequential,
    steps_per_epoch,
)
from cl_jax.data.source import (
    Source,
    fraction,
    from_arrays,
    held_out,
    labels_of,
    long_tailed,
    subset,
    with_channels,
)


def arrays_of(size):
    """Images whose pixels are the example's number."""
    image = np.broadcast_to(
        np.arange(size, dtype=np.uint8)[:, None, None, None], (size, 2, 2, 3)
    ).copy()
    return {"image": image, "label": (np.arange(size) % 3).astype(np.int32)}


def in_memory(size):
    return from_arrays("numbers", arrays_of(size), {"label": 3})


def on_disk(size):
    """The same examples, read one by one."""
    arrays = arrays_of(size)
    return Source("numbers", size, lambda i: {k: v[i] for k, v in arrays.items()}, {"label": 3})


def test_order_is_a_permutation_that_depends_on_seed_and_epoch():
    orders = [order(seed, epoch, 50) for seed in (0, 1) for epoch in (0, 1)]
    for a in orders:
        np.testing.assert_array_equal(np.sort(a), np.arange(50))
        assert a.dtype == np.int32
    for a, b in itertools.combinations(orders, 2):
        assert (a != b).any()
    np.testing.assert_array_equal(order(0, 0, 50), orders[0])


def test_order_is_the_same_on_every_machine():
    """Written down: a change of these numbers breaks the resuming of every run."""
    np.testing.assert_array_equal(order(3, 2, 8), [2, 4, 1, 3, 6, 5, 0, 7])


def test_balanced_order_draws_every_group_equally_often():
    groups = np.repeat([0, 2, 5, -1], [1, 20, 60, 19])
    drawn = balanced_order(0, 0, groups)
    assert drawn.shape == (100,) and drawn.dtype == np.int32
    counts = np.bincount(
        groups[drawn], minlength=6
    )  # 34 of each of three groups, the last two of 102 cut off
    assert counts[[1, 3, 4]].sum() == 0 and counts.sum() == 100 and counts[[0, 2, 5]].min() >= 32
    times = np.bincount(drawn, minlength=100)
    assert times[0] == counts[0]  # the only one of its group, again and again
    assert times[1:21].max() > 1  # fewer than 34: with replacement
    assert times[21:81].max() == 1  # without
    assert times[81:].max() == 0  # in no group
    assert len(np.unique(groups[drawn[:20]])) == 3  # shuffled


def test_balanced_order_takes_a_group_of_the_wanted_size_whole():
    groups = np.repeat([0, 1], [3, 2])  # int(5 / 2) + 1 of each
    drawn = [balanced_order(0, epoch, groups) for epoch in range(30)]
    for ids in drawn:
        times = np.bincount(ids, minlength=5)
        assert times[:3].max() == 1 and times.sum() == 5
    assert max(np.bincount(ids, minlength=5)[3:].max() for ids in drawn) > 1


def test_balanced_order_depends_on_seed_epoch_and_groups_alone():
    groups = np.arange(50) % 4
    orders = [balanced_order(seed, epoch, groups) for seed in (0, 1) for epoch in (0, 1)]
    for a, b in itertools.combinations(orders, 2):
        assert (a != b).any()
    np.testing.assert_array_equal(balanced_order(0, 0, groups), orders[0])
    np.testing.assert_array_equal(
        balanced_order(0, 0, groups * 7 + 2), orders[0]
    )  # names of groups mean nothing


def test_balanced_order_is_the_same_on_every_machine():
    """Written down: a change of these numbers breaks the resuming of every run that has a plan."""
    np.testing.assert_array_equal(
        balanced_order(3, 2, np.array([0, 0, 0, 0, 0, 1, 1, -1])), [6, 4, 0, 6, 6, 5, 1, 2]
    )


@pytest.mark.parametrize("seed", range(8))
def test_balanced_order_is_its_definition_group_by_group(seed):
    """One sort over all examples gives what the groups give one by one from the same stream."""
    groups = np.random.default_rng(seed).geometric(0.2, 200) - 3
    stream = np.random.Philox(key=[seed, 1])
    names = np.unique(groups[groups >= 0])
    each, drawn = len(groups) // len(names) + 1, []
    for name in names:
        members = np.flatnonzero(groups == name)
        if len(members) < each:
            drawn.append(members[stream.random_raw(each) % np.uint64(len(members))])
        else:
            drawn.append(members[np.argsort(stream.random_raw(len(members)), kind="stable")[:each]])
    chosen = np.concatenate(drawn)
    expected = chosen[np.argsort(stream.random_raw(len(chosen)), kind="stable")][: len(groups)]
    np.testing.assert_array_equal(balanced_order(seed, 1, groups), expected)


def test_balanced_order_refuses_what_is_no_grouping():
    with pytest.raises(ValueError, match="none of the 3 examples is in a group"):
        balanced_order(0, 0, np.full(3, -1))
    with pytest.raises(ValueError, match=r"float64\[2\]; expected integers"):
        balanced_order(0, 0, np.zeros(2))


def test_ids_go_through_the_data_once_an_epoch_and_drop_the_rest():
    steps = [ids_at(step, seed=5, size=23, batch_size=4) for step in range(10)]
    assert steps_per_epoch(23, 4) == 5
    for epoch in range(2):
        seen = np.concatenate(steps[epoch * 5 : epoch * 5 + 5])
        assert seen.dtype == np.int32 and len(set(seen.tolist())) == 20
        np.testing.assert_array_equal(seen, order(5, epoch, 23)[:20])


@pytest.mark.parametrize("make", [in_memory, on_disk])
def test_host_batches_hold_the_rows_that_ids_at_names(make):
    """What the device path indexes and what the host path reads are the same examples in the same
    order."""
    source, arrays = make(23), arrays_of(23)
    batches = list(host_batches(source, batch_size=4, seed=5, start_step=0, steps=12, workers=3))
    assert len(batches) == 12
    for step, batch in enumerate(batches):
        ids = ids_at(step, seed=5, size=23, batch_size=4)
        assert set(batch) == {"image", "label", "id"}
        np.testing.assert_array_equal(batch["id"], ids)
        assert (
            batch["id"].dtype == np.int32
            and batch["image"].dtype == np.uint8
            and batch["label"].dtype == np.int32
        )
        for field in arrays:
            np.testing.assert_array_equal(batch[field], arrays[field][ids])


@pytest.mark.parametrize("make", [in_memory, on_disk])
def test_resuming_gives_the_batches_that_were_left(make):
    whole = list(host_batches(make(23), batch_size=4, seed=5, start_step=0, steps=12))
    rest = list(host_batches(make(23), batch_size=4, seed=5, start_step=7, steps=12))
    assert len(rest) == 5
    for a, b in zip(whole[7:], rest):
        for field in a:
            np.testing.assert_array_equal(a[field], b[field])
    assert not list(host_batches(make(23), batch_size=4, seed=5, start_step=12, steps=12))


@pytest.mark.parametrize("make", [in_memory, on_disk])
def test_processes_share_each_batch_without_overlap_or_loss(make):
    parts = [
        list(
            host_batches(
                make(23),
                batch_size=8,
                seed=1,
                start_step=1,
                steps=6,
                process_index=p,
                process_count=4,
            )
        )
        for p in range(4)
    ]
    for step in range(1, 6):
        joined = np.concatenate([part[step - 1]["id"] for part in parts])
        np.testing.assert_array_equal(joined, ids_at(step, seed=1, size=23, batch_size=8))
        assert all(len(part[step - 1]["image"]) == 2 for part in parts)


def test_an_iterator_may_be_left_half_way():
    batches = host_batches(on_disk(23), batch_size=4, seed=5, start_step=0, steps=10**6)
    assert len(next(batches)["id"]) == 4
    del batches


def test_an_error_of_the_reader_reaches_the_caller():
    def read(i):
        raise OSError(f"image {i} is gone")

    with pytest.raises(OSError, match="is gone"):
        list(
            host_batches(Source("broken", 9, read, {}), batch_size=3, seed=0, start_step=0, steps=2)
        )


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True])
def test_a_seed_that_repeats_another_run_is_refused(seed):
    """2**32 would be the weights and views of 0."""
    for draw in (
        lambda: order(seed, 0, 5),
        lambda: balanced_order(seed, 0, np.zeros(5, int)),
        lambda: fraction(in_memory(9), 0.5, seed=seed),
    ):
        with pytest.raises(ValueError, match="expected an integer from 0 to"):
            draw()


def test_a_batch_costs_the_same_number_of_calls_at_any_size():
    """Of the loop that trains; the reading is in other threads. A buffer of single examples, walked
    at every `next`, took 2 B^2 calls: 2 million at 1,024."""

    def calls(batch_size):
        source = Source("x", 2048, lambda i: {"image": np.zeros((2, 2, 1), np.uint8)}, {})
        batches = host_batches(
            source, batch_size=batch_size, seed=0, start_step=0, steps=10**6, workers=2
        )
        next(batches)
        with cProfile.Profile() as profile:
            for _ in range(4):
                next(batches)
        return pstats.Stats(profile).total_calls / 4

    small, large = calls(8), calls(1024)
    assert large < 500 and large < 2 * small


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("odd", [np.zeros((2, 2, 1), np.uint8), np.zeros((2, 2, 3))])
def test_examples_of_different_shapes_are_refused_not_broadcast(odd, workers):
    source = Source(
        "mixed", 9, lambda i: {"image": odd if i == 4 else np.zeros((2, 2, 3), np.uint8)}, {}
    )
    with pytest.raises(ValueError, match="mixed: image of one example is "):
        list(sequential(source, 3, workers=workers))


@pytest.mark.slow
def test_worker_processes_give_the_same_batches():
    plain = list(host_batches(on_disk(23), batch_size=4, seed=5, start_step=2, steps=9))
    others = list(
        host_batches(on_disk(23), batch_size=4, seed=5, start_step=2, steps=9, worker_processes=2)
    )
    assert len(others) == 7
    for a, b in zip(plain, others):
        for field in a:
            np.testing.assert_array_equal(a[field], b[field])


@pytest.mark.parametrize("make", [in_memory, on_disk])
@pytest.mark.parametrize("size", [8, 9])
def test_sequential_gives_all_examples_once_in_order(make, size):
    batches = list(sequential(make(size), 4))
    assert len(batches) == -(-size // 4)
    assert all(
        batch["image"].shape == (4, 2, 2, 3) and batch["valid"].dtype == bool for batch in batches
    )
    valid = np.concatenate([batch["valid"] for batch in batches])
    for field in ("id", "label"):
        seen = np.concatenate([batch[field] for batch in batches])[valid]
        np.testing.assert_array_equal(seen, (arrays_of(size) | {"id": np.arange(size)})[field])
    assert batches[-1]["id"][-1] == size - 1 and valid.sum() == size


def test_resident_needs_arrays_that_fit():
    source = in_memory(10)
    assert set(resident(source, 10 * 16)) == {"image", "label"}
    assert resident(source, 10 * 16 - 1) is None
    assert resident(on_disk(10), 10**9) is None


@pytest.mark.parametrize(
    "kwargs, words",
    [
        (dict(batch_size=24), r"23 examples, fewer than one batch of 24.*Lower batch_size"),
        (dict(batch_size=6, process_count=4), r"batch_size is 6, not divisible by the 4 processes"),
        (dict(batch_size=8, process_count=4, process_index=4), r"process_index is 4"),
        (dict(batch_size=0), "batch_size is 0"),
        (dict(batch_size=4, start_step=-1), "start_step is -1"),
        (dict(batch_size=4, workers=-1), "workers=-1"),
        (dict(batch_size=4, prefetch=0), "prefetch=0"),
    ],
)
def test_errors_come_before_the_first_batch(kwargs, words):
    with pytest.raises(ValueError, match=words):
        host_batches(in_memory(23), **{"seed": 0, "start_step": 0, "steps": 3, **kwargs})


def test_a_field_may_not_have_a_name_of_the_batches():
    source = from_arrays("x", arrays_of(4) | {"id": np.arange(4)}, {"label": 3})
    with pytest.raises(ValueError, match="'id'"):
        sequential(source, 2)


@pytest.mark.parametrize("make", [in_memory, on_disk])
def test_subset_keeps_the_order_asked_for(make):
    part = subset(make(10), [7, 2, 2])
    assert part.size == 3 and part.sizes == {"label": 3}
    assert [int(part.read(i)["image"][0, 0, 0]) for i in range(3)] == [7, 2, 2]
    np.testing.assert_array_equal(labels_of(part), [1, 2, 2])
    with pytest.raises(ValueError, match="from 0 to 9"):
        subset(make(10), [10])
    for wrong in (np.arange(10) < 5, [0.5, 1.0]):  # a mask would be examples 0 and 1, ten times
        with pytest.raises(ValueError, match=r"expected numbers of examples, such as numpy.flat"):
            subset(make(10), wrong)
    assert subset(make(10), []).size == 0


@pytest.mark.parametrize("make", [in_memory, on_disk])
def test_a_validation_part_has_its_share_of_every_class_and_nothing_of_the_rest(make):
    source = make(120)
    rest, held = held_out(source, 0.2, seed=4)
    assert np.bincount(labels_of(rest)).tolist() == [32, 32, 32]
    assert np.bincount(labels_of(held)).tolist() == [8, 8, 8]

    def pixels(s):
        return [int(s.read(i)["image"][0, 0, 0]) for i in range(s.size)]

    assert sorted(pixels(rest) + pixels(held)) == sorted(pixels(source))
    assert set(pixels(held_out(source, 0.1, seed=4)[1])) < set(pixels(held))
    assert pixels(held_out(source, 0.2, seed=5)[1]) != pixels(held)
    assert rest.sizes == held.sizes == source.sizes


def test_a_validation_part_has_whole_groups():
    """Of `scenes`, no handwriting is in both parts."""
    arrays = arrays_of(60) | {"instance": np.arange(60, dtype=np.int32) // 5}
    arrays["label"] = (arrays["instance"] % 3).astype(np.int32)
    rest, held = held_out(from_arrays("x", arrays, {"label": 3}), 0.25, seed=0)
    assert rest.size == 45 and held.size == 15
    assert not set(rest.arrays["instance"]) & set(held.arrays["instance"])
    assert set(held.arrays["label"]) == set(rest.arrays["label"]) == {0, 1, 2}


def test_validation_parts_of_sources_without_labels_and_of_rare_classes():
    bare = from_arrays("bare", {"image": arrays_of(10)["image"]}, {})
    assert [part.size for part in held_out(bare, 0.3, seed=0)] == [7, 3]
    arrays = arrays_of(10) | {"label": np.array([0] * 9 + [1], np.int32)}
    rest, held = held_out(from_arrays("rare", arrays, {"label": 2}), 0.5, seed=0)
    assert np.bincount(labels_of(rest)).tolist() == [5, 1] and 1 not in labels_of(held)
    with pytest.raises(ValueError, match=r"share is 1; expected between 0 and 1"):
        held_out(bare, 1, seed=0)
    single = from_arrays("single", arrays_of(3), {"label": 3})
    with pytest.raises(ValueError, match="expected a class of two or more groups"):
        held_out(single, 0.5, seed=0)


@pytest.mark.parametrize("make", [in_memory, on_disk])
def test_a_long_tail_falls_by_one_factor_from_class_to_class(make):
    source = make(120)
    found = {ratio: long_tailed(source, ratio, seed=4) for ratio in (4, 16, 1000)}
    counts = {ratio: np.bincount(labels_of(one)).tolist() for ratio, one in found.items()}
    assert counts == {4: [40, 20, 10], 16: [40, 10, 2], 1000: [40, 1, 1]}

    def pixels(s):
        return {int(s.read(i)["image"][0, 0, 0]) for i in range(s.size)}

    assert pixels(found[16]) < pixels(found[4])
    assert pixels(found[4]) != pixels(long_tailed(source, 4, seed=5))
    assert long_tailed(source, 1, seed=4) is source


def test_long_tails_that_cannot_be_made():
    for wrong in (0.5, np.inf, np.nan):
        with pytest.raises(ValueError, match=rf"imbalance is {wrong}; expected at least 1 and fin"):
            long_tailed(in_memory(9), wrong, seed=0)
    one = from_arrays("one", arrays_of(9) | {"label": np.zeros(9, np.int32)}, {"label": 1})
    with pytest.raises(ValueError, match="one has 1 classes"):
        long_tailed(one, 10, seed=0)


@pytest.mark.parametrize("make", [in_memory, on_disk])
def test_fraction_takes_the_same_share_of_every_class(make):
    source = make(90)
    tenth, third = (fraction(source, share, seed=4) for share in (0.1, 1 / 3))
    np.testing.assert_array_equal(np.bincount(labels_of(tenth)), [3, 3, 3])
    np.testing.assert_array_equal(np.bincount(labels_of(third)), [10, 10, 10])

    def pixels(s):
        return {int(s.read(i)["image"][0, 0, 0]) for i in range(s.size)}

    assert pixels(tenth) < pixels(third)
    assert (
        pixels(tenth)
        == pixels(fraction(source, 0.1, seed=4))
        != pixels(fraction(source, 0.1, seed=5))
    )
    np.testing.assert_array_equal(
        np.bincount(labels_of(fraction(source, 0.001, seed=4))), [1, 1, 1]
    )
    assert fraction(source, 1.0, seed=4) is source
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="share is"):
            fraction(source, share, seed=0)
    with pytest.raises(ValueError, match="has no label 'colour'; its labels: label"):
        fraction(source, 0.5, seed=0, label="colour")


def test_fraction_leaves_out_what_has_no_label():
    label = np.where(np.arange(30) % 2, np.arange(30) % 3, -1).astype(np.int32)
    source = Source("half", 30, lambda i: {"label": label[i]}, {"label": 3})
    part = fraction(source, 0.4, seed=0)
    assert part.size == 6 and (labels_of(part) >= 0).all()
    assert fraction(source, 0.4, seed=0, label=None).size == 12


def test_labels_are_read_the_cheap_way_where_there_is_one():
    def read(i):
        raise AssertionError("decoded an image for its label")

    source = Source(
        "cheap", 6, read, {"label": 2}, labels=lambda field: np.arange(6, dtype=np.int32) % 2
    )
    np.testing.assert_array_equal(labels_of(subset(source, [5, 0])), [1, 0])
    np.testing.assert_array_equal(labels_of(fraction(source, 1 / 3, seed=0)), [0, 1])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"label": np.zeros(3, np.int32)}, "label has 3 rows, image has 4"),
        ({"label": np.full(4, 3, np.int32)}, "label goes from 3 to 3; expected 0 to 2"),
        ({"label": np.zeros(4)}, "label is float64"),
        ({"image": np.zeros((4, 2, 2), np.uint8)}, "Grey images need a channel axis"),
        ({"image": np.zeros((4, 2, 2, 3), np.float32)}, "image is float32"),
    ],
)
def test_arrays_are_checked(change, words):
    with pytest.raises(ValueError, match=words):
        from_arrays("x", arrays_of(4) | change, {"label": 3})


def test_grey_is_repeated_only_where_asked():
    grey = np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1)
    assert with_channels(grey, None, "x") is grey
    np.testing.assert_array_equal(with_channels(grey, 3, "x"), np.concatenate([grey] * 3, -1))
    with pytest.raises(ValueError, match="3 channels and channels=1"):
        with_channels(with_channels(grey, 3, "x"), 1, "x")
