"""`scenes`: its parts never share a handwriting, and its labels are the factors one sees in the
pixels."""

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images

from cl_jax.core.errors import NotFoundError
from cl_jax.data import scenes

PLAIN = scenes.Level((8.0, 8.0), (0.0, 0.0), (1, 2), 60.0)
PHOTOGRAPH = scenes.Level((8.0, 8.0), (1.0, 1.0), (1,), 0.0)
LARGE = scenes.Level((32.0, 32.0), (0.0, 0.0), (2,), 60.0)


def render(level, share=("digit",), size=60, seed=0):
    return scenes.render(level, share=share, train_size=size, test_size=5, seed=seed).train.arrays


@pytest.fixture
def solid(monkeypatch):
    """Every digit a filled square, so that what surrounds it and what it covers can be told
    exactly."""
    targets = load_digits().target.astype(np.int32)
    monkeypatch.setattr(
        scenes, "handwritings", lambda: (np.ones((len(targets), 8, 8), np.float32), targets)
    )


def boxes(image, ground):
    """First row and column of what differs from the ground [N, 32, 32, 3]."""
    differs = np.abs(image.astype(int) - ground).max(-1) > 3
    return np.stack([differs.any(2).argmax(1), differs.any(1).argmax(1)], 1)


def own_ground(image):
    """The most frequent colour of each image, [N, 1, 1, 3]."""
    modes = []
    for pixels in image.reshape(len(image), -1, 3):
        colours, counts = np.unique(pixels, axis=0, return_counts=True)
        modes.append(colours[counts.argmax()])
    return np.stack(modes)[:, None, None].astype(int)


def test_the_parts_are_what_scikit_learn_loads():
    theirs, (images, targets) = load_digits(), scenes.handwritings()
    np.testing.assert_array_equal(images * 16, theirs.images)
    np.testing.assert_array_equal(targets, theirs.target)
    for ours, photograph in zip(scenes._photographs(), load_sample_images().images, strict=True):
        np.testing.assert_array_equal(ours, photograph)


def test_parts_that_are_missing(monkeypatch):
    monkeypatch.setattr(scenes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        NotFoundError, match=r"scikit-learn itself is missing\. pip install scikit-learn"
    ):
        scenes.handwritings()


def test_how_many_are_painted_at_a_time_changes_nothing(monkeypatch):
    together = render(PHOTOGRAPH)
    monkeypatch.setattr(scenes, "_FEW", 7)
    for name, values in render(PHOTOGRAPH).items():
        np.testing.assert_array_equal(values, together[name], name)


def test_a_large_set_is_painted_once_and_is_the_same_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    given = dict(train_size=50, test_size=20, seed=3)
    painted = scenes.make(**given)
    assert not list(tmp_path.iterdir())  # so few are not kept
    monkeypatch.setattr(scenes, "KEPT_FROM", 70)
    scenes.make(**given)
    monkeypatch.setattr(scenes, "paint", None)
    for before, read in zip(painted[:2], scenes.make(**given)[:2], strict=True):
        assert (read.name, read.size, read.sizes) == (before.name, before.size, before.sizes)
        assert list(read.arrays) == list(before.arrays)
        for field, values in before.arrays.items():
            assert read.arrays[field].dtype == values.dtype
            np.testing.assert_array_equal(read.arrays[field], values, field)
    other = [dict(seed=4), dict(level="hard"), dict(share=None), dict(train_size=51)]
    for change in (*other, dict(share=("place",))):
        with pytest.raises(TypeError):  # all of these would be painted
            scenes.make(**given | change)


def test_fields():
    splits = scenes.make(train_size=70, test_size=30)
    assert (splits.train.size, splits.test.size, splits.more) == (70, 30, {})
    assert splits.train.sizes == {"label": 10, "place": 9, "background": 8, "colour": 8}
    for source in splits[:2]:
        example = source.read(3)
        assert set(example) == {
            "image",
            "image_b",
            "label",
            "place",
            "background",
            "colour",
            "instance",
        }
        for field, value in example.items():
            shape, dtype = ((32, 32, 3), np.uint8) if field.startswith("image") else ((), np.int32)
            assert (value.shape, value.dtype) == (shape, dtype), field
            np.testing.assert_array_equal(value, source.arrays[field][3])


@pytest.mark.parametrize("level", scenes.LEVELS)
def test_same_seed_same_scenes(level):
    a, b, other = (
        scenes.make(level=level, train_size=40, test_size=9, seed=seed) for seed in (3, 3, 4)
    )
    for part in range(2):
        for field in a[part].arrays:
            np.testing.assert_array_equal(a[part].arrays[field], b[part].arrays[field])
        assert (a[part].arrays["image"] != other[part].arrays["image"]).any(axis=(1, 2, 3)).all()


def test_no_handwriting_is_in_both_parts():
    train, test = scenes.division(1797)
    assert (len(train), len(test)) == (1438, 359)
    assert len(np.union1d(train, test)) == 1797
    for seed in range(3):
        splits = scenes.make(train_size=2000, test_size=500, seed=seed, share=None)
        np.testing.assert_array_equal(np.unique(splits.train.arrays["instance"]), np.sort(train))
        np.testing.assert_array_equal(np.unique(splits.test.arrays["instance"]), np.sort(test))
        counts = np.bincount(splits.train.arrays["instance"], minlength=1797)[train]
        assert set(counts.tolist()) == {1, 2}


def test_label_is_the_digit_of_the_instance():
    arrays = render(PLAIN, size=300)
    np.testing.assert_array_equal(arrays["label"], load_digits().target[arrays["instance"]])


def test_the_digit_is_drawn_as_it_was_written():
    """Undone, the enlargement gives the handwriting back."""
    arrays = render(LARGE)
    ground = own_ground(arrays["image"])
    ink = scenes.PALETTE[arrays["colour"]][:, None, None] - ground
    opacity = ((arrays["image"] - ground) * ink).sum(-1) / (ink**2).sum(-1)
    small = opacity.reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4)).reshape(len(opacity), -1)
    written = load_digits().images[arrays["instance"]].reshape(len(opacity), -1)
    alike = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(small, written)])
    assert alike.min() > 0.95


def test_place_and_colour_are_what_one_sees(solid):
    arrays = render(PLAIN, size=300)
    corner = boxes(arrays["image"], own_ground(arrays["image"]))
    # A square of 8 begins anywhere in 24 pixels: 8 for each of the three cells. Its edge is blurred
    # over a pixel.
    cell = np.stack([arrays["place"] // 3, arrays["place"] % 3], 1)
    assert (cell * 8 - 1 <= corner).all() and (corner <= cell * 8 + 8).all()
    assert set(arrays["place"].tolist()) == set(range(9))
    middle = arrays["image"][np.arange(300), corner[:, 0] + 4, corner[:, 1] + 4]
    assert np.abs(middle - scenes.PALETTE[arrays["colour"]]).max() <= 21
    luma = np.array([0.299, 0.587, 0.114])
    assert np.abs((middle - own_ground(arrays["image"])[:, 0, 0]) @ luma).min() > 60 - 21


def test_background_is_the_quarter_of_the_photograph(solid):
    arrays = render(PHOTOGRAPH, size=40)
    photographs = load_sample_images().images
    found = 0
    for image, place, background in zip(arrays["image"], arrays["place"], arrays["background"]):
        bare = 31 if place // 3 == 0 else 0  # a row that the square of 8 does not touch
        for number, photograph in enumerate(photographs):
            height, width = photograph.shape[:2]
            starts = np.argwhere((photograph[:, : width - 31] == image[bare, 0]).all(-1))
            for y, x in starts:
                if not (photograph[y, x : x + 32] == image[bare]).all():
                    continue
                quarter = np.array([(y - bare) / (height - 32), x / (width - 32)]) * 2
                if np.abs(quarter - 1).min() > 0.02:  # not on the border between two
                    assert background == number * 4 + int(quarter[0]) * 2 + int(quarter[1])
                    found += 1
    assert found > 20


@pytest.mark.parametrize("share", [("place",), ("background",), ("place", "background"), ()])
def test_renderings_share_what_is_asked(solid, share):
    arrays = render(PLAIN, share, size=200)
    ground, ground_b = (own_ground(arrays[field]) for field in ("image", "image_b"))
    same_ground = (ground == ground_b).all(axis=(1, 2, 3)).mean()
    corner, corner_b = boxes(arrays["image"], ground), boxes(arrays["image_b"], ground_b)
    same_place = (np.abs(corner - corner_b) <= 1).all(1).mean()
    assert same_ground > 0.95 if "background" in share else same_ground < 0.2
    assert same_place > 0.95 if "place" in share else same_place < 0.2


def test_renderings_share_the_handwriting():
    def alike(share):
        arrays = render(LARGE, share, size=200)
        shapes = [
            np.abs(arrays[f].astype(int) - own_ground(arrays[f])).sum(-1).reshape(200, -1)
            for f in ("image", "image_b")
        ]
        return np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(*shapes)])

    assert alike(("digit",)).min() > 0.9
    assert np.median(alike(())) < 0.6


def test_the_first_rendering_does_not_depend_on_the_second():
    alone = render(scenes.LEVELS["easy"], None)
    assert "image_b" not in alone
    for share in ((), ("digit",), scenes.FACTORS):
        arrays = render(scenes.LEVELS["easy"], share)
        for field, values in alone.items():
            np.testing.assert_array_equal(values, arrays[field])


def test_levels_differ_in_their_grounds():
    spread = [
        np.std(
            scenes.make(level=level, train_size=100, test_size=1, share=None).train.arrays["image"][
                :, 0
            ],
            axis=1,
        ).mean()
        for level in scenes.LEVELS
    ]
    assert spread == sorted(spread) and spread[-1] > 3 * spread[0]


@pytest.mark.parametrize(
    "knobs, words",
    [
        (dict(level="esay"), "level='esay' is unknown; expected one of easy, medium, hard, full"),
        (
            dict(share=("shape",)),
            "expected None, or a sequence of names among digit, place, background",
        ),
        (dict(share="digit"), "share='digit'"),
        (dict(train_size=0), "train_size=0; expected 1 or more"),
    ],
)
def test_wrong_settings(knobs, words):
    with pytest.raises(ValueError, match=words):
        scenes.make(**knobs)
