"""Clips of moving digits: that they move as their labels and sentences say."""

import numpy as np
import pytest

from cl_jax.data import moving_scenes, scenes


@pytest.fixture(scope="module")
def splits():
    return moving_scenes.make(train_size=96, test_size=32, frames=6)


def test_fields_and_sizes(splits):
    arrays = splits.train.arrays
    assert arrays["clip"].shape == (96, 6, 32, 32, 3) and arrays["clip"].dtype == np.uint8
    for name in ("label", "colour", "direction", "motion", "meaning"):
        assert arrays[name].max() < splits.train.sizes[name]
    np.testing.assert_array_equal(arrays["motion"] // 2, arrays["direction"])
    assert not set(arrays["instance"]) & set(splits.test.arrays["instance"])


def test_digits_move_as_their_labels_say(splits):
    """The centre of what changes against the ground, which is the median over time."""
    arrays = splits.train.arrays
    fast = arrays["motion"] % 2 == 1
    for clip, direction in zip(arrays["clip"][fast], arrays["direction"][fast]):
        clip = clip.astype(float)
        change = np.abs(clip - np.median(clip, axis=0)).sum(-1)
        mass = change / change.sum((1, 2), keepdims=True)
        centre = np.stack(
            [(mass * np.arange(32)[:, None]).sum((1, 2)), (mass * np.arange(32)).sum((1, 2))], -1
        )
        moved = centre[-1] - centre[0]
        expected = {0: (1, 1), 1: (1, -1), 2: (0, 1), 3: (0, -1)}[int(direction)]
        assert np.sign(moved[expected[0]]) == expected[1] and abs(moved[expected[0]]) > 3


def test_sentences_name_the_factors(splits):
    rows = moving_scenes.factors(splits.train.arrays)
    texts = moving_scenes.sentences(np.random.default_rng(0), rows)
    for text, (_, _, direction, speed) in zip(texts, rows):
        assert any(word in text for word in moving_scenes.DIRECTIONS[direction])
        assert any(word in text for word in moving_scenes.SPEEDS[speed])
    assert len(set(texts)) > 80
    plain = moving_scenes.sentences(np.random.default_rng(0), rows, plain=True)
    assert len(set(plain)) == len({tuple(row) for row in rows})
    assert all(text.startswith("a ") and " moves " in text for text in plain)


def test_what_is_unsaid_leaves_fewer_meanings(splits):
    rows = moving_scenes.factors(splits.train.arrays)
    for unsaid, count in (((), 640), (("digit",), 64), (("colour",), 80), (("colour", "digit"), 8)):
        made = moving_scenes.make(train_size=96, test_size=2, frames=6, unsaid=unsaid).train
        meaning = made.arrays["meaning"]
        assert made.sizes["meaning"] == count and meaning.max() < count
        said = rows[:, [i for i, name in enumerate(("digit", "colour")) if name not in unsaid]]
        said = np.concatenate([said, rows[:, 2:]], axis=1)
        same = (said[:, None] == said[None]).all(-1)
        np.testing.assert_array_equal(meaning[:, None] == meaning[None], same)
        texts = moving_scenes.sentences(np.random.default_rng(0), rows, True, unsaid)
        np.testing.assert_array_equal([[a == b for b in texts] for a in texts], same)
        for free in moving_scenes.sentences(np.random.default_rng(0), rows, False, unsaid):
            assert "{" not in free and "  " not in free
    assert "digit moves" in texts[0] and "someone pulls a digit " in " ".join(
        moving_scenes.sentences(np.random.default_rng(0), rows, False, unsaid)
    )


def test_same_seed_same_clips_and_errors():
    a, b = (moving_scenes.make(train_size=4, test_size=4).train.arrays for _ in range(2))
    np.testing.assert_array_equal(a["clip"], b["clip"])
    for settings, text in (
        (dict(level="none"), "level='none'"),
        (dict(frames=20), "frames=20; expected 1 to 9"),
        (dict(train_size=0), "train_size=0"),
        (dict(unsaid="digit"), "unsaid='digit'; expected a sequence of digit, colour"),
        (dict(unsaid=("speed",)), "unsaid=.*expected a sequence"),
    ):
        with pytest.raises(ValueError, match=text):
            moving_scenes.make(**settings)
    assert scenes.IMAGE_SIZE == 32
