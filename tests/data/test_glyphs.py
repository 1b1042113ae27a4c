"""`glyphs`: printed characters, turned and slanted."""

import numpy as np
import pytest

from cl_jax.data import glyphs


def test_every_character_occurs_equally_often():
    train, test, _ = glyphs.make(train_size=20, test_size=11)
    counts = np.bincount(train.arrays["label"], minlength=10)
    assert train.arrays["image"].shape == (20, 16, 16, 1) and (counts == 2).all()
    assert test.arrays["image"].max() > 128, "nothing is printed"


@pytest.mark.parametrize("name", ["rotation", "slant"])
def test_an_amount_either_way_is_not_negative(name):
    still = glyphs.make(train_size=10, test_size=10, **{name: 0.0})
    assert still.train.arrays["image"].any()
    with pytest.raises(ValueError, match=f"{name} is -1.0; expected the largest either way"):
        glyphs.make(train_size=10, test_size=10, **{name: -1.0})
