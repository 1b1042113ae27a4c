"""Folders that may be parts or classes, labelled and unlabelled examples together, and those that
evaluators read."""

import dataclasses
import time
import wave

import numpy as np
import pytest

from cl_jax.data import aligned, audio, folder, image_text, parts, source, video
from cl_jax.data.labels import labelled
from cl_jax.data.parts import few, joined
from cl_jax.data.source import Source, from_arrays, labels_of
from tests.data.photos import put


def pictures(root, names, **settings):
    for name in names:
        put(root / f"{name}.png", size=(8, 8))
    return folder.make(path=str(root), image_size=8, cache_dir=None, **settings)


def recordings(root, names, **settings):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(root / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(np.full(80, 9000, np.int16).tobytes())
    return audio.make(path=str(root), **settings)


def films(root, names, **settings):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(root / f"{name}.npy", np.zeros((2, 4, 4), np.uint8))
    return video.make(path=str(root), frames=2, image_size=4, **settings)


def shown_twice(root, names, **settings):
    for name in names:
        for way in ("rgb", "depth"):
            put(root / way / f"{name}.png", size=(8, 8))
    return aligned.make(path=str(root), shown=("rgb", "depth"), image_size=8, **settings)


SOURCES = (pictures, recordings, films, shown_twice)


def files_in(folders):
    return [f"{name}/{i}" for name in folders.split() for i in range(3)]


@pytest.mark.parametrize("make", SOURCES)
@pytest.mark.parametrize(
    "folders",
    [
        "DIV2K_train_HR DIV2K_valid_HR",
        "my_train my_test",
        "val test",
        "imagesTr imagesTs",
        "train/cat train/dog extra",
        "train_audio/anna train_audio/ben test_audio/anna test_audio/ben",
        "seg_train/b seg_train/c seg_test/b seg_test/c",
        "labeled/cat labeled/dog unlabeled",
        "cat dog unlabeled",
        "cats/train cats/val dogs/train dogs/val",
        "train/cat train/dog unlabeled noise",
    ],
)
def test_folders_named_like_parts_are_no_classes(make, folders, tmp_path, caplog):
    with pytest.raises(ValueError, match='set on_parts="warn"'):
        make(tmp_path, files_in(folders))
    splits = make(tmp_path, [], on_parts="warn")  # as earlier versions read them
    assert len(splits.train.classes["label"]) == len(
        {name if make is shown_twice else name.split("/")[0] for name in folders.split()}
    )
    assert "By on_parts='warn' none of them is a part" in caplog.text


@pytest.mark.parametrize("folders", ["part1 part2 part3", "fold1/a fold1/b fold2/a fold2/b"])
def test_folders_that_are_no_classes_may_be_named_like_anything_but_train_and_test(
    folders, tmp_path
):
    assert recordings(tmp_path / "sound", files_in(folders), labels=False).train.size
    assert pictures(tmp_path / "photos", files_in(folders), labels=False).train.size
    with pytest.raises(ValueError, match="which are parts"):
        pictures(tmp_path / "other", files_in("my_train my_test"), labels=False)
    source, _ = folder.everything(str(tmp_path / "photos"), image_size=8)
    assert len(source.classes["label"]) == len({name.split("/")[0] for name in folders.split()})


def test_folders_by_the_thousand_are_not_compared_with_one_another():
    files = [f"speaker{i}/{film}/x.wav" for i in range(6000) for film in "ab"]
    began = time.process_time()
    parts.check_folders("data", files, parts.ADVICE)
    assert time.process_time() - began < 5  # 18 million pairs take a minute


@pytest.mark.parametrize("folders", ["train val", "train/cat train/dog test/cat test/dog"])
def test_parts_are_read_as_such_or_refused(folders, tmp_path):
    for make in SOURCES[:3]:
        splits = make(tmp_path / make.__name__, files_in(folders))
        assert splits.train.size == splits.test.size == 3 * len(folders.split()) / 2
        assert "train" not in splits.train.classes.get("label", ())
    with pytest.raises(ValueError, match="which are parts and which are classes"):
        shown_twice(tmp_path / "shown", files_in(folders))


@pytest.mark.parametrize("make", SOURCES)
@pytest.mark.parametrize(
    "folders",
    [
        "control test",
        "car plane train",
        "cat dev test",
        "positive_test negative_test",
        "invalid valid",
        "left/a left/b right/a right/b",
    ],
)
def test_classes_may_be_called_like_a_part(make, folders, tmp_path):
    splits = make(tmp_path, files_in(folders))
    assert splits.train.sizes["label"] == len(splits.train.classes["label"]) > 1


def test_without_labels_a_folder_of_unlabelled_examples_is_like_any_other(tmp_path):
    for make in SOURCES[:3]:
        splits = make(tmp_path / make.__name__, files_in("cat dog unlabeled"), labels=False)
        assert splits.train.size + splits.test.size == 9 and "label" not in splits.train.sizes
        with pytest.raises(ValueError, match="named like parts"):
            make(tmp_path / f"{make.__name__}2", files_in("my_train my_test"), labels=False)


def test_other_data_of_a_run_in_such_folders_have_no_labels(tmp_path, caplog):
    for make in (recordings, films, shown_twice):
        root = tmp_path / make.__name__
        splits = make(root, files_in("my_train my_test"), learnt={})
        assert splits.train.size == 6 and "label" not in splits.train.sizes
    assert caplog.text.count("no labels: ") == 3


def test_captioned_pictures_of_parts_are_not_divided_by_a_hash(tmp_path):
    names = files_in("train2017 val2017")
    for name in names:
        put(tmp_path / f"{name}.png", size=(8, 8))
    table, settings = tmp_path / "captions.csv", dict(path=str(tmp_path), image_size=8, length=4)
    table.write_text("file,caption\n" + "".join(f"{name}.png,a cat\n" for name in names))
    with pytest.raises(ValueError, match=r"named like parts.*add the column"):
        image_text.make(**settings)
    both = image_text.make(**settings, on_parts="warn")
    assert both.train.size + both.test.size == 6
    rows = "".join(f"{name}.png,a cat,{name[:3].replace('tra', 'train')}\n" for name in names)
    table.write_text("file,caption,split\n" + rows)
    assert image_text.make(**settings).train.size == 3


def test_another_value_of_on_parts_is_refused(tmp_path):
    for make in SOURCES:
        with pytest.raises(ValueError, match=r"on_parts='skip'.* expected"):
            make(tmp_path / make.__name__, files_in("a b"), on_parts="skip")


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


@pytest.mark.parametrize("make", [in_memory, on_disk])
def test_a_label_that_a_part_lacks_is_minus_one_there(make):
    bare = from_arrays("bare", {"image": images_of(2)}, {})
    named = dataclasses.replace(make([0, 1, 2]), classes={"label": ("a", "b", "c")})
    both = source.joined("all", {"train": named, "unlabeled": bare, "test": make([2, 1])})
    assert both.sizes == {"label": 3, "split": 3} and both.classes["label"] == ("a", "b", "c")
    expected = [0, 1, 2, -1, -1, 2, 1]
    np.testing.assert_array_equal(labels_of(both), expected)
    assert [int(both.read(i)["label"]) for i in range(7)] == expected
    assert labels_of(both).dtype == both.read(3)["label"].dtype == np.int32
    assert numbers(both) == [0, 1, 2, 0, 1, 0, 1]
    # Where the first part lacks it, or others have other classes, it may mean something else.
    assert source.joined("all", {"train": bare, "test": named}).sizes == {"split": 2}
    other = dataclasses.replace(make([0, 1]), classes={"label": ("no", "yes")})
    parts = {"train": named, "unlabeled": bare, "task": other}
    assert source.joined("all", parts).sizes == {"split": 3}


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
