"""Two domains side by side, and printed digits."""

import numpy as np
import pytest

from cl_jax.data import domains, glyphs
from cl_jax.training import configs, experiment
from tests.data.photos import put, tree

PARTS = {"source": "drawn", "target": "seen"}


def test_each_target_image_has_a_source_image_beside_it():
    source = dict(name="glyphs", train_size=20, test_size=10)
    made = domains.make(source=source, target=dict(name="digits"), image_size=12)
    arrays = made.train.arrays
    assert arrays["image"].shape == arrays["image_source"].shape == (1438, 12, 12, 1)
    assert made.train.sizes == {"label": 10, "label_source": 10}
    assert set(made.test.arrays) == {"image", "label"}
    given = glyphs.make(train_size=20, test_size=10, image_size=16).train
    counts = np.bincount(arrays["label_source"])
    np.testing.assert_allclose(counts, 1438 * np.bincount(given.arrays["label"]) / 20, atol=2)
    colour = domains.make(source=source, target=source, image_size=12, channels=3)
    assert colour.train.arrays["image"].shape[-1] == 3


@pytest.mark.parametrize("labelled", [False, True])
def test_two_folders_of_ones_own(labelled, tmp_path):
    tree(tmp_path / "drawn", "train", classes=("cat", "dog", "hen"), count=6)
    if labelled:
        tree(tmp_path / "seen", "train", count=12)
    else:
        for i in range(24):
            put(tmp_path / "seen" / f"{i}.png", colour=(10 * i, 0, i))
    config = configs.load("spcl:folders,debug")
    configs.change(
        config, [(f"data.{part}.path", f"{tmp_path}/{name}") for part, name in PARTS.items()]
    )
    built = experiment.build(config)
    data = built.data
    assert data.train.sizes["label_source"] == 3 and ("label" in data.train.sizes) == labelled
    assert data.train.arrays["image"].shape[1:] == (24, 24, 3)
    assert data.train.size + data.test.size == 24
    np.testing.assert_array_equal(  # the first colour of `tree` is the class's
        data.train.arrays["image_source"][:, 12, 12, 0], 40 * data.train.arrays["label_source"]
    )
    alone = configs.load("spcl:folders,target,debug")
    configs.change(alone, [("data.path", f"{tmp_path}/seen")])
    assert set(experiment.build(alone).data.train.arrays) >= {"image"}


def test_the_source_teaches_by_its_labelled_images_alone(tmp_path):
    image = np.arange(6, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    for part, label in (("train", [0, -1, 1, -1, 1, 0]), ("test", [0, 1, 0, 1, 0, 1])):
        np.savez(tmp_path / f"{part}.npz", image=image, label=np.array(label))
    packed = dict(name="packed", path=str(tmp_path))
    train = domains.make(source=packed, target=packed, image_size=4).train
    of = dict(zip(train.arrays["image_source"][:, 0, 0, 0], train.arrays["label_source"]))
    assert of == {0: 0, 2: 1, 4: 1, 5: 0} and train.arrays["label"].tolist().count(-1) == 2


def test_domains_that_are_none():
    digits = dict(name="digits")
    with pytest.raises(ValueError, match=r"the source section is \{\}; expected the name"):
        domains.make(source={}, target=digits)
    with pytest.raises(ValueError, match="the target name='nothing' is not a data source"):
        domains.make(source=digits, target=dict(name="nothing"))
    with pytest.raises(ValueError, match=r"set --config\.data\.target\.path to the target's"):
        domains.make(source=digits, target=dict(name="packed", path=""))
    with pytest.raises(ValueError, match="channels=2"):
        domains.make(source=digits, target=digits, channels=2)


def test_glyphs_are_upright_digits_inside_their_square():
    train, test = glyphs.make(train_size=200, test_size=30, rotation=0.0, slant=0.0)[:2]
    np.testing.assert_array_equal(np.bincount(train.arrays["label"]), [20] * 10)
    assert test.size == 30 and train.sizes == {"label": 10, "font": len(glyphs.FONTS)}
    ink = train.arrays["image"][..., 0] > 60
    rows = ink.any(2).sum(1)
    assert (rows >= 10).all() and (rows <= 16).all()
    # a 7 has its bar above, an 8 is as heavy above as below
    heavy = ink[:, :8].sum((1, 2)) / ink.sum((1, 2))
    label = train.arrays["label"]
    assert heavy[label == 7].mean() > heavy[label == 8].mean()
    again = glyphs.make(train_size=200, test_size=30, rotation=0.0, slant=0.0).train
    np.testing.assert_array_equal(train.arrays["image"], again.arrays["image"])


def test_glyphs_print_what_is_asked_for():
    found = glyphs.make(train_size=34, test_size=2, characters="AH").train
    assert found.sizes["label"] == 2
    np.testing.assert_array_equal(np.bincount(found.arrays["label"]), [17, 17])
    for wrong in ("A", "AA", "A B"):
        with pytest.raises(ValueError, match="two or more to print"):
            glyphs.make(train_size=4, test_size=2, characters=wrong)
