"""Seeds: the range in which different seeds are different runs."""

import numpy as np
import pytest

from cl_jax.core.seeds import check_seed


@pytest.mark.parametrize("seed", [0, 2**32 - 1, np.int64(7)])
def test_seeds_in_the_range_are_given_back_as_int(seed):
    found = check_seed(seed)
    assert found == seed and type(found) is int


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "1", True, None])
def test_other_seeds_are_refused(seed):
    with pytest.raises(ValueError, match=r"expected an integer from 0 to 2\*\*32 - 1"):
        check_seed(seed)
