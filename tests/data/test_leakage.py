"""Copies in both parts, and formats that tell the class."""

import numpy as np
from PIL import Image

from cl_jax.data import folder
from tests.data.photos import put, tree


def test_copies_in_both_parts_are_told(tmp_path, caplog):
    tree(tmp_path, "train", "test")
    copy = (tmp_path / "train" / "cat" / "1.png").read_bytes()
    (tmp_path / "test" / "dog" / "\x1bcopy.png").write_bytes(copy)
    for cache_bytes in (0, 10**9):
        caplog.clear()
        with caplog.at_level("WARNING"):
            folder.make(path=str(tmp_path), image_size=8, cache_bytes=cache_bytes, cache_dir=None)
        assert "1 of the 7 test examples are in the training part too" in caplog.text
        assert r"test/dog/\x1bcopy.png is train/cat/1.png" in caplog.text


def test_all_formats_make_classes_and_one_of_its_own_is_told(tmp_path, caplog):
    for name in ("apple.png", "bird.jfif", "cell.tif", "dune.bmp", "eel.gif", "fig.avif"):
        stem, suffix = name.split(".")
        for i in range(3):
            put(tmp_path / stem / f"{i}.{suffix}")
    splits = folder.make(path=str(tmp_path), image_size=8)
    assert splits.train.sizes == {"label": 6} and splits.train.size + splits.test.size == 18
    assert "only apple has images in PNG, bird has images in JPEG" in caplog.text
    caplog.clear()
    for name in ("apple", "bird", "cell", "dune", "eel", "fig"):  # now all have PNG too
        for i in range(3):
            put(tmp_path / name / f"more{i}.png")
    folder.make(path=str(tmp_path), image_size=8)
    assert "tells these classes" not in caplog.text


def test_pictures_saved_again_are_likely_copies(tmp_path, caplog):
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 4)):
        (tmp_path / part).mkdir()
        for number in range(count):
            small = rng.integers(0, 256, (9, 9, 3), np.uint8)
            Image.fromarray(small).resize((72, 72)).save(tmp_path / part / f"{number}.png")
    smooth = Image.fromarray(rng.integers(60, 190, (3, 4, 3), np.uint8)).resize((120, 90))
    smooth.save(tmp_path / "train/sky.jpg", quality=95)
    smooth.resize((70, 52)).save(tmp_path / "test/small.jpg", quality=70)
    Image.new("RGB", (50, 50), "white").save(tmp_path / "train/white.png")
    Image.new("RGB", (40, 40), "white").save(tmp_path / "test/flat.png")
    with Image.open(tmp_path / "train/7.png") as image:
        image.resize((90, 90)).save(tmp_path / "test/again.jpg", quality=85)
    folder.make(path=str(tmp_path), image_size=36)
    assert "2 of the 7 test examples are likely copies" in caplog.text
    assert "test/again.jpg looks like train/7.png" in caplog.text
    assert "test/small.jpg looks like train/sky.jpg" in caplog.text
