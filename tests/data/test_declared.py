"""A data set of which only sizes are known takes no memory, whatever it says that it holds."""

import numpy as np

from cl_jax.data import declared
from cl_jax.data.source import labels_of


def test_sizes_are_those_of_imagenet_without_its_memory():
    size, test_size, _, classes = declared.KNOWN["imagenet2012"]
    splits = declared.make(
        train_size=size, test_size=test_size, image_size=256, num_classes=classes
    )
    assert (splits.train.size, splits.test.size) == (1_281_167, 50_000)
    assert splits.train.sizes == {"label": 1000}
    one = splits.train.read(1_281_166)
    assert one["image"].shape == (256, 256, 3) and one["image"].dtype == np.uint8
    assert labels_of(splits.train, "label").strides == (0,)
    assert splits.train.arrays is None  # above cache_bytes: read image by image


def test_a_small_set_counts_as_in_memory():
    splits = declared.make(train_size=10, image_size=8, channels=1)
    assert splits.train.arrays["image"].shape == (10, 8, 8, 1)
    assert splits.train.arrays["image"].strides == (0, 0, 0, 0)
