"""Which images are training and test images, and what is a class."""

import numpy as np
import pytest

from cl_jax.data import folder
from cl_jax.data.source import labels_of
from tests.data.photos import BLUE, GREEN, RED, put, tree


def test_images_without_class_folders_have_no_label(tmp_path):
    for i in range(4):
        put(tmp_path / f"{i}.png")
    splits = folder.make(path=str(tmp_path), image_size=8)
    assert splits.train.sizes == {} and set(splits.train.read(0)) == {"image"}
    assert (splits.train.size, splits.test.size) == (3, 1)


def test_one_class_folder_tells_nothing_apart(tmp_path):
    for i in range(4):
        put(tmp_path / "all" / f"{i}.png")
    assert folder.make(path=str(tmp_path), image_size=8).train.sizes == {}


def test_given_parts(tmp_path):
    for part, colours in (("train", (RED, GREEN)), ("val", (RED, GREEN)), ("unlabeled", (BLUE,))):
        for name, colour in zip("ab", colours):
            put(tmp_path / part / name / "0.png", colour=colour)
    splits = folder.make(path=str(tmp_path), image_size=8)
    assert (splits.train.size, splits.test.size, splits.more["unlabeled"].size) == (2, 2, 1)
    np.testing.assert_array_equal(labels_of(splits.test), [0, 1])
    assert (
        splits.more["unlabeled"].sizes == {}
        and splits.more["unlabeled"].read(0)["image"][0, 0, 2] == BLUE[2]
    )


def test_train_may_be_a_class(tmp_path):
    for name in ("car", "plane", "train"):
        for i in range(2):
            put(tmp_path / name / f"{i}.png")
    assert folder.make(path=str(tmp_path), image_size=8).train.sizes == {"label": 3}


def test_split_by_hash_keeps_its_members_when_images_are_added(tmp_path):
    def members():
        test = folder.make(path=str(tmp_path), image_size=2, test_share=0.3).test
        return {int(image[0, 0, 0]) for image in test.arrays["image"]}

    for i in range(60):
        put(tmp_path / f"{i}.png", (2, 2), (i, 0, 0))
    first = members()
    for i in range(60, 120):
        put(tmp_path / f"{i}.png", (2, 2), (i, 0, 0))
    later = members()
    assert {i for i in later if i < 60} == first
    assert 20 < len(later) < 55


@pytest.mark.parametrize(
    "files, words",
    [
        ([], "holds no image. Images end in .jpg"),
        (["a.cr2", "b.cr2", "c.txt"], r"holds no image. It has other files: 2 .cr2, 1 .txt."),
        (["a.png"], "1 image, too few for a train and a test part"),
        (
            ["x/a.png", "y/b.png", "c.png"],
            "beside its class folders .x, y., such as c.png.*labels=False",
        ),
        (["train/a.png", "test/b.png", "c.png"], "beside its train folder, such as c.png"),
        (
            ["train/x/a.png", "train/y/a.png", "test/x/b.png", "test/z/b.png"],
            "train has x, y, test has z besides",
        ),
    ],
)
def test_layouts_that_cannot_be_read(tmp_path, files, words):
    for file in files:
        if file.endswith(".png"):
            put(tmp_path / file)
        else:
            (tmp_path / file).write_text("x")
    with pytest.raises(ValueError, match=words):
        folder.make(path=str(tmp_path), image_size=8)


def test_labels_false_takes_everything(tmp_path):
    for file in ("x/a.png", "y/b.png", "c.png"):
        put(tmp_path / file)
    splits = folder.make(path=str(tmp_path), image_size=8, labels=False)
    assert splits.train.size + splits.test.size == 3 and splits.train.sizes == {}


@pytest.mark.parametrize(
    "parts",
    [
        ("train", "val"),
        ("train", "valid"),
        ("train", "validation"),
        ("Train", "Test"),
        ("TRAIN", "VALID"),
        ("train", "dev"),
        ("training", "testing"),
        ("training_set", "test_set"),
        ("train2017", "val2017"),
        ("train", "test", "sample"),
        ("train", "val", "test", "extra"),
    ],
)
def test_parts_by_their_many_names(tmp_path, parts, caplog):
    with caplog.at_level("WARNING"):
        splits = folder.make(path=str(tree(tmp_path, *parts)), image_size=8)
    assert splits.train.sizes == splits.test.sizes == {"label": 2}
    assert (splits.train.size, splits.test.size) == (6, 6)
    chosen = "test" if "test" in parts else parts[1]
    assert set(splits.train.arrays["image"][:, 0, 0, 1]) == {20 * parts.index(parts[0])}
    assert set(splits.test.arrays["image"][:, 0, 0, 1]) == {20 * parts.index(chosen)}
    aside = [part for part in parts[1:] if part != chosen]
    assert all(part in caplog.text for part in aside) and (" skipped." in caplog.text) == bool(
        aside
    )


@pytest.mark.parametrize(
    "parts, words",
    [
        (("train", "holdout"), "folders holdout, train have the same sub-folders, cat, dog"),
        (("my-train", "my-test"), 'Parts are named "train" and "test"'),
        (("train", "training", "test"), "two train parts, train, training"),
    ],
)
def test_folders_that_may_be_parts_or_classes(tmp_path, parts, words):
    with pytest.raises(ValueError, match=words):
        folder.make(path=str(tree(tmp_path, *parts)), image_size=8)


@pytest.mark.parametrize("classes", [("control", "test"), ("left", "right")])
def test_folders_that_are_classes(tmp_path, classes):
    """ "test" beside no "train" is a class; so are folders that repeat sub-folders and have no
    part's name."""
    if "test" in classes:
        for name in classes:
            for i in range(6):
                put(tmp_path / name / f"{i}.png")
    else:
        tree(tmp_path, *classes)
    splits = folder.make(path=str(tmp_path), image_size=8)
    assert splits.train.sizes == {"label": 2} and splits.train.size + splits.test.size == 12


def test_a_test_part_with_some_of_the_classes_has_their_numbers(tmp_path):
    tree(tmp_path, "train", classes=("a", "b", "c"))
    for test, numbers in ((("c",), [2]), (("a", "c"), [0, 2])):
        tree(tmp_path, "test", classes=test)
        splits = folder.make(path=str(tmp_path), image_size=8)
        np.testing.assert_array_equal(np.unique(labels_of(splits.test)), numbers)
    put(tmp_path / "test" / "d" / "0.png")
    with pytest.raises(ValueError, match="train has a, b, c, test has d besides"):
        folder.make(path=str(tmp_path), image_size=8)


def test_the_held_out_share_is_of_each_class_and_never_all_of_it(tmp_path):
    sizes = {"one": 1, "two": 2, "many": 60}
    for number, (name, size) in enumerate(sizes.items()):
        for i in range(size):
            put(tmp_path / name / f"{i}.png", (2, 2), (number, i, 0))
    splits = folder.make(path=str(tmp_path), image_size=2)
    train, test = (np.bincount(labels_of(part), minlength=3) for part in splits[:2])
    np.testing.assert_array_equal(train + test, [60, 1, 2])  # many, one, two
    assert 2 <= test[0] <= 15 and test[1] == 0 and test[2] == 1


def test_system_folders_are_no_classes(tmp_path):
    tree(tmp_path, "train")
    for name in ("@eaDir", ".thumbnails", "__MACOSX", "$RECYCLE.BIN", "#recycle"):
        put(tmp_path / "train" / name / "cat.png")
        put(tmp_path / name / "cat.png")
    splits = folder.make(path=str(tmp_path), image_size=8)
    assert splits.train.size + splits.test.size == 6 and splits.train.sizes == {"label": 2}


@pytest.mark.parametrize(
    "parts",
    [
        ("tr", "te"),
        ("fold1", "fold2"),
        ("seen", "unseen"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("cats/train", "cats/test", "dogs/train", "dogs/test"),
    ],
)
def test_folders_named_like_parts_are_refused(tmp_path, parts):
    with pytest.raises(ValueError, match="parts"):
        folder.make(path=str(tree(tmp_path, *parts)), image_size=8)


@pytest.mark.parametrize(
    "parts, sizes",
    [
        (("set/train", "set/valid"), (6, 6)),
        (("a/b/train", "a/b/test"), (6, 6)),
        (("train/train", "test/test"), (6, 6)),
        (("flowers",), (4, 2)),
        (("test",), (4, 2)),
    ],
)
def test_a_single_folder_around_the_others_is_none_of_them(tmp_path, parts, sizes):
    """As archives unpack; what is inside is read as if it were given."""
    splits = folder.make(path=str(tree(tmp_path, *parts)), image_size=8, test_share=0.2)
    assert splits.train.sizes == splits.test.sizes == {"label": 2}
    assert (splits.train.size, splits.test.size) == sizes


def test_repeated_sub_folders_of_classes_are_told(tmp_path, caplog):
    folder.make(path=str(tree(tmp_path, "left", "right")), image_size=8)
    assert "left and right have cat, dog" in caplog.text


def test_a_limit_takes_some_of_each_class(tmp_path):
    for name in ("cat", "dog"):
        for number in range(30):
            put(tmp_path / name / f"{number}.png", size=(8, 8))
    splits = folder.make(path=str(tmp_path), image_size=8, limit=10)
    assert np.bincount(splits.train.arrays["label"]).tolist() == [5, 5]
    assert splits.test.size <= 6
    with pytest.raises(ValueError, match="limit=-1"):
        folder.make(path=str(tmp_path), image_size=8, limit=-1)
