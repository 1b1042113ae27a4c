"""`digits`: scikit-learn's images and labels, each once, in two parts."""

import numpy as np
from sklearn.datasets import load_digits

from cl_jax.data import digits


def test_every_digit_is_in_one_part():
    splits, theirs = digits.make(), load_digits()
    image, label = (
        np.concatenate([part.arrays[field] for part in splits[:2]]) for field in ("image", "label")
    )
    assert image.dtype == np.uint8 and image.shape == (1797, 8, 8, 1)
    assert splits.train.sizes == {"label": 10} and splits.test.size == 359

    def rows(images, labels):
        return sorted(map(tuple, np.c_[images.reshape(1797, -1), labels].astype(int).tolist()))

    expected = np.rint(theirs.images * 255 / 16)
    assert rows(image, label) == rows(expected, theirs.target)
    assert set(splits.test.arrays["label"]) == set(range(10))
