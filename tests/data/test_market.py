"""The layout of Market-1501: people, cameras, distractors and junk."""

import numpy as np
import pytest
from PIL import Image

from cl_jax.data import market
from cl_jax.data.source import labels_of

FILES = {
    "bounding_box_train": ["0007_c1s1_0_0.jpg", "0002_c3s1_0_0.jpg", "0007_c2s1_0_0.jpg"],
    "query": ["0001_c1s1_0_0.jpg", "0009_c2s1_0_0.jpg"],
    "bounding_box_test": [
        "0001_c2s1_0_0.jpg",
        "0009_c6s1_0_0.jpg",
        "0000_c1s1_0_0.jpg",
        "-1_c1s1_0_0.jpg",
    ],
}


@pytest.fixture
def folder(tmp_path):
    for part, names in FILES.items():
        (tmp_path / part).mkdir()
        for name in names:
            Image.new("RGB", (20, 50), (200, 10, 10)).save(tmp_path / part / name)
        (tmp_path / part / "Thumbs.db").write_bytes(b"x")
    return tmp_path


def test_people_cameras_and_distractors(folder):
    train, query, more = market.make(path=str(folder), height=16, width=8)
    gallery = more["gallery"]
    assert train.read(0)["image"].shape == (16, 8, 3)
    np.testing.assert_allclose(gallery.arrays["image"].mean((0, 1, 2)), [200, 10, 10], atol=3)
    # sorted by name: persons 2, 7, 7 of the training part; 1 and 9 of the others
    np.testing.assert_array_equal(labels_of(train), [0, 1, 1])
    np.testing.assert_array_equal(labels_of(train, "camera"), [2, 0, 1])
    np.testing.assert_array_equal(labels_of(query), [0, 1])
    np.testing.assert_array_equal(labels_of(gallery), [-1, 0, 1])
    assert train.sizes == {"label": 2, "camera": 6} and gallery.sizes == query.sizes


def test_files_of_other_formats_are_told(folder, caplog):
    market.make(path=str(folder), height=16, width=8)
    assert caplog.text.count("skipped files: 1 .db.") == 3


def test_damaged_pictures(folder):
    (folder / "query" / "0003_c1s1_0_0.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1 pictures in .*query cannot be used"):
        market.make(path=str(folder))
    assert market.make(path=str(folder), on_error="skip").test.skipped == 1


def test_other_layouts(folder):
    with pytest.raises(ValueError, match=r"is not a folder; set --config\.data\.path"):
        market.make(path=str(folder / "nothing"))
    Image.new("RGB", (2, 2)).save(folder / "query" / "anna.png")
    with pytest.raises(ValueError, match=r"names say no person and camera, such as anna\.png"):
        market.make(path=str(folder))
    (folder / "query" / "anna.png").unlink()
    for file in (folder / "query").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="holds no picture"):
        market.make(path=str(folder))
    (folder / "query").rmdir()
    with pytest.raises(ValueError, match="query is missing; expected the layout"):
        market.make(path=str(folder))
