"""Masks of patches: how many, of which shape, and by the example's key alone."""

import jax
import numpy as np
import pytest

from cl_jax.views import masks


def keys(count=64, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_scattered_hides_exactly_what_is_asked():
    wanted = np.arange(64) % 17
    drawn = np.asarray(masks.scattered(keys(), 16, wanted))
    assert (drawn.sum(axis=1) == wanted).all()
    assert 0.3 < drawn.mean(axis=0).min() and drawn.mean(axis=0).max() < 0.7


def test_cells_are_rounded_up():
    assert (np.asarray(masks.cells(keys(), 3, 3, ratio=0.6)).sum(axis=(1, 2)) == 6).all()


def test_counts_are_zero_for_the_others_and_within_the_ratio():
    drawn = np.asarray(masks.counts(keys(2000), 100, probability=0.5, ratio=(0.1, 0.5)))
    some = drawn[drawn > 0]
    assert abs(len(some) / 2000 - 0.5) < 0.05
    assert some.min() >= 10 and some.max() < 50 and abs(some.mean() - 29.5) < 1.5


@pytest.mark.parametrize("side, smallest", [(8, 4), (14, 16), (4, 1)])
def test_blocks_never_hide_too_much_and_nearly_enough(side, smallest):
    wanted = np.asarray(masks.counts(keys(), side**2, probability=1.0, ratio=(0.2, 0.5)))
    drawn = np.asarray(masks.blocks(keys(seed=1), side, side, wanted, smallest=smallest))
    found = drawn.sum(axis=(1, 2))
    assert (found <= wanted).all() and (found > 0).all()
    assert found.sum() > 0.8 * wanted.sum()


def test_the_smallest_block_is_by_default_a_third_of_the_grid_on_each_side():
    """iBOT's rule: 16 of 14x14 patches."""
    wanted = np.full(64, 80)

    def drawn(**settings):
        return np.asarray(masks.blocks(keys(), 14, 14, wanted, **settings))

    np.testing.assert_array_equal(drawn(), drawn(smallest=16))
    assert (drawn(smallest=4) != drawn()).any()


def test_nothing_wanted_hides_nothing():
    assert not np.asarray(masks.blocks(keys(4), 6, 6, np.zeros(4, int))).any()


def test_blocks_hold_together_more_than_scattered_patches():
    wanted = np.full(64, 20)

    def together(mask):  # neighbours along a row that are both hidden
        return (mask[:, :, 1:] & mask[:, :, :-1]).mean()

    blocks = np.asarray(masks.blocks(keys(), 8, 8, wanted))
    scattered = np.asarray(masks.scattered(keys(), 64, wanted)).reshape(-1, 8, 8)
    assert together(blocks) > 1.3 * together(scattered)


def test_a_mask_depends_on_its_key_alone():
    all_of_them = masks.blocks(keys(8), 8, 8, np.full(8, 20))
    one = masks.blocks(keys(8)[3:4], 8, 8, np.full(1, 20))
    np.testing.assert_array_equal(all_of_them[3], one[0])
