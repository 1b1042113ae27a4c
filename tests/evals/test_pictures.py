"""The pictures are PNG files of the promised size that show what they were given."""

import numpy as np
import pytest
from PIL import Image

from cl_jax.evals.pictures import (
    DPI,
    FRAME,
    GAP,
    LINE_HEIGHT,
    MARGIN,
    TEXT,
    TILE,
    _apart,
    curve,
    neighbour_grid,
)

CELL = TILE + 2 * FRAME
TOP, SECOND = MARGIN + TEXT, MARGIN + CELL + 3 * GAP  # of the first row; left of the second column


def read(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def images(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def test_curve(tmp_path):
    path = tmp_path / "new" / "curve.png"
    curve(path, [0, 1, 2], [0.1, 0.3, 0.5], {"knn/raw_pixels": 0.26, "untrained/knn/top1": 0.25})
    shown = read(path)
    assert shown.shape == (4.5 * DPI, 7 * DPI, 3) and shown.std() > 5
    curve(tmp_path / "higher.png", [0, 1, 2], [0.1, 0.3, 0.9], {})
    assert (read(tmp_path / "higher.png") != shown).any()
    curve(tmp_path / "one.png", [3], [np.nan], {})
    curve(tmp_path / "level.png", [1, 4], [-1.0, -1.0], {"untrained": -1.0}, percent=False)
    with pytest.raises(ValueError, match="one value per step"):
        curve(path, [0, 1], [0.5], {})


def test_neighbours_with_frames(tmp_path):
    queries, near = images(2, 32, 32), images(2, 6, 32, 32)
    correct = np.zeros((2, 6), bool)
    correct[0, 0] = True
    neighbour_grid(tmp_path / "n.png", queries, near, correct)
    shown = read(tmp_path / "n.png")
    assert shown.shape == (
        TOP + 2 * CELL + GAP + TEXT + MARGIN,
        SECOND + 6 * CELL + 5 * GAP + MARGIN,
        3,
    )
    inner = slice(TOP + FRAME, TOP + FRAME + TILE)
    for left, picture in ((MARGIN, queries[0]), (SECOND, near[0, 0])):
        tile = shown[inner, left + FRAME : left + FRAME + TILE]
        np.testing.assert_array_equal(tile, picture.repeat(3, axis=0).repeat(3, axis=1))
    assert tuple(shown[TOP, SECOND]) == (0, 158, 115)  # green round the right one
    assert tuple(shown[TOP, SECOND + CELL + GAP]) == (213, 94, 0)
    assert tuple(shown[TOP, MARGIN]) == (255, 255, 255)


def test_neighbours_of_other_sizes_and_channels(tmp_path):
    neighbour_grid(tmp_path / "grey.png", images(1, 28, 28)[..., :1], images(1, 1, 28, 28)[..., :1])
    neighbour_grid(tmp_path / "large.png", images(1, 160, 100), images(1, 2, 160, 100))
    assert read(tmp_path / "large.png").shape[0] == TOP + 160 + 2 * FRAME + MARGIN
    with pytest.raises(ValueError, match=r"expected \[Q, H, W, C\]"):
        neighbour_grid(tmp_path / "x.png", images(2, 8, 8), images(1, 3, 8, 8))
    with pytest.raises(ValueError, match="correct has shape"):
        neighbour_grid(tmp_path / "x.png", images(2, 8, 8), images(2, 3, 8, 8), np.ones((2, 2)))


def test_captions_are_below_their_pictures_whatever_they_hold(tmp_path):
    captions = [["cat\na.png", "$x_{\nvery/long/" + 30 * "n" + "me.png", "鳥\n\x1b.png"]] * 2
    neighbour_grid(tmp_path / "n.png", images(2, 32, 32), images(2, 2, 32, 32), captions=captions)
    shown = read(tmp_path / "n.png")
    assert shown.shape[0] == TOP + 2 * (CELL + 2 * LINE_HEIGHT) + GAP + MARGIN
    for top in (TOP + CELL, TOP + 2 * CELL + GAP + 2 * LINE_HEIGHT):
        band = shown[top : top + 2 * LINE_HEIGHT]
        for left in (MARGIN, SECOND, SECOND + CELL + GAP):
            assert (band[:, left : left + CELL] < 200).any()
        assert (band[:, SECOND + CELL : SECOND + CELL + GAP] == 255).all()  # it ends in its column


def test_names_of_lines_keep_apart():
    moved = _apart([10.0, 10.5, 40.0], 4.0, 50.0)
    np.testing.assert_allclose(moved, [8.25, 12.25, 40.0])
    assert np.diff(np.sort(_apart([49.0, 50.0, 50.0], 4.0, 50.0))).min() >= 4 - 1e-9
    assert (
        _apart([49.0, 50.0, 50.0], 4.0, 50.0).max() <= 50
        and _apart([0.0, 0.0], 4.0, 50.0).min() >= 0
    )
    assert len(_apart([], 4.0, 50.0)) == 0
