"""`glyphs`: printed characters, turned and slanted."""

import numpy as np

from cl_jax.data import glyphs


def test_every_character_occurs_equally_often():
    train, test, _ = glyphs.make(train_size=20, test_size=11)
    counts = np.bincount(train.arrays["label"], minlength=10)
    assert train.arrays["image"].shape == (20, 16, 16, 1) and (counts == 2).all()
    assert test.arrays["image"].max() > 128, "nothing is printed"


def test_without_turn_and_slant_digits_stand_upright():
    upright = glyphs.make(train_size=10, test_size=10, rotation=0.0, slant=0.0)
    turned = glyphs.make(train_size=10, test_size=10)
    ones = [
        part.train.arrays["image"][part.train.arrays["label"] == 1] for part in (upright, turned)
    ]
    wide = [(one.max(axis=(0, 1, 3)) > 0).sum() for one in ones]
    assert 0 < wide[0] < wide[1]
