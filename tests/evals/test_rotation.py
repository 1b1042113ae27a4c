"""The rotation probe."""

import numpy as np
import pytest

from cl_jax.data.source import from_arrays
from cl_jax.evals import rotation

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)


def test_turns_images_and_refuses_oblong_ones():
    source = from_arrays("some", {"image": IMAGES}, {})
    seen = rotation.turned(source, np.arange(8) % 4)
    np.testing.assert_array_equal(seen.read(5)["image"], np.rot90(IMAGES[5], 1))
    with pytest.raises(ValueError, match="8x6; the rotation probe needs square"):
        rotation.turned(from_arrays("some", {"image": IMAGES[:, :, :6]}, {}), np.zeros(8, int))
