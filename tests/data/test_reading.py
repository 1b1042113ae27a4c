"""How deep images become bytes, and which files are looked into."""

import numpy as np
import pytest
from PIL import Image

from cl_jax.data import folder, image_text, images, reading, video
from tests.data.photos import put, tree


def deep(root, bits, dtype=np.uint16, suffix="tif", count=6):
    """Grey images of which the largest number is 2^bits - 1, right of a black half."""
    for name in ("a", "b"):
        for i in range(count):
            pixels = np.zeros((16, 16), dtype)
            pixels[:, 8:] = 2**bits - 1
            pixels[0, 0] = i
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / name / f"{i}.{suffix}")
    return str(root)


@pytest.mark.parametrize("suffix", ["tif", "png"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_bits_that_are_used_fill_the_range(tmp_path, bits, suffix, caplog):
    """A microscope's 12 bits in 16 came out as 0 to 15, black."""
    with caplog.at_level("WARNING"):
        splits = folder.make(path=deep(tmp_path, bits, suffix=suffix), image_size=16)
    image = splits.train.arrays["image"]
    assert image.max() == 255 and image[:, 8:, 4:5].max() == 0
    assert f", {bits} are used; 0 to {2**bits - 1} becomes 0 to 255" in caplog.text


def test_a_given_range_cuts_and_a_found_one_refuses(tmp_path, monkeypatch):
    path = deep(tmp_path, 10)
    splits = folder.make(path=path, image_size=16, value_range=(0, 511))
    assert splits.train.arrays["image"].max() == 255
    half = folder.make(path=path, image_size=16, value_range=(0, 2046)).train.arrays["image"]
    assert half.max() in (127, 128)
    monkeypatch.setattr(reading, "SAMPLED", 1)  # a/0.tif
    Image.fromarray(np.full((16, 16), 5000, np.uint16)).save(tmp_path / "b" / "3.tif")
    with pytest.raises(ValueError, match=r"b/3.tif: numbers from 5000 .*outside 0 to 1023; set va"):
        folder.make(path=path, image_size=16)


def test_every_reader_of_pictures_finds_the_range(tmp_path):
    """Of 12 bits in 16 all but `folder.make` made almost black, and a given range was lost on the
    way to a single file."""
    path = deep(tmp_path / "clips", 12, suffix="png", count=2)
    files = sorted((tmp_path / "clips").glob("*/*.png"))
    lines = [f"clips/{file.relative_to(path)},a picture" for file in files]
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption", *lines]))
    how = dict(image_size=16, channels=1)
    words = dict(vocab_size=64, tokenizer_cache=str(tmp_path / "kept"), test_share=0.5)

    def means(**told):
        readers = [
            folder.make(path=path, **how, **told).train,
            folder.everything(path, **how, **told)[0],
            folder.everything(str(files[0]), **how, **told)[0],
            folder.listed(files, **how, **told)[0],
            image_text.make(path=str(tmp_path), **how, **words, **told).train,
            video.make(path=path, frames=2, **how, **told).train,
        ]
        return [float(next(iter(one.read(0).values())).mean()) for one in readers]

    np.testing.assert_allclose(means(), 127.5, atol=0.1)
    np.testing.assert_allclose(means(value_range=(0, 8190)), 64, atol=0.1)
    assert image_text.make(path=str(tmp_path), **how, **words).learnt.keys() == {
        "value_range",
        "tokenizer",
    }
    with pytest.raises(ValueError, match=r"value_range=\(3, 3\); expected"):
        means(value_range=(3, 3))


def test_the_range_that_a_run_found_is_that_of_other_images(tmp_path):
    """Images up to 1023 are as dark beside those of 12 bits as they were in the run."""
    path = deep(tmp_path / "mine", 12, suffix="png", count=2)
    how = dict(image_size=16, channels=1)
    found = folder.make(path=path, **how).learnt
    assert found == {"value_range": [0, 4095]}
    assert folder.make(path=path, **how, value_range=(0, 4095)).learnt is None
    other = deep(tmp_path / "other", 10, suffix="png", count=2)
    files = sorted((tmp_path / "other").glob("*/*.png"))
    how["learnt"] = found
    kept = video.make(path=other, frames=2, **how)
    assert kept.learnt == found
    for source in (
        folder.make(path=other, **how).train,
        folder.everything(other, **how)[0],
        folder.everything(str(files[0]), **how)[0],
        folder.listed(files, **how)[0],
        kept.train,
    ):
        np.testing.assert_allclose(next(iter(source.read(0).values())).max(), 64)
    Image.fromarray(np.full((16, 16), 5000, np.uint16)).save(files[1])
    source, bad = folder.everything(other, **how)
    assert [source.read(i)["image"].max() for i in range(4)] == [64, 0, 64, 64]
    assert next(iter(bad.values())).startswith("numbers from 5000 to 5000, outside 0 to 4095")


def test_float_images(tmp_path):
    pixels = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    for name, times in (("x", 1), ("large", 1000), ("nan", np.nan)):
        Image.fromarray(pixels * np.float32(times)).save(tmp_path / f"{name}.tif")
    how = dict(image_size=None, channels=1)
    ours = images.decode(tmp_path / "x.tif", "x.tif", **how)
    np.testing.assert_array_equal(ours[..., 0], np.arange(256).reshape(16, 16))
    with pytest.raises(ValueError, match="numbers from 0 to 1000, outside 0 to 1; set value_range"):
        images.decode(tmp_path / "large.tif", "large.tif", **how)
    scaled = images.decode(
        tmp_path / "large.tif", "large.tif", **how, scale=images.Scale(0, 1000, True)
    )
    np.testing.assert_array_equal(scaled, ours)
    with pytest.raises(ValueError, match="NaN or inf"):
        images.decode(tmp_path / "nan.tif", "nan.tif", **how)


def test_checked_images_are_remembered_where_the_package_keeps_what_it_makes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fast"))
    path = str(tree(tmp_path / "photos", "train", "test"))
    folder.make(path=path, image_size=8, cache_bytes=0, cache_dir=None)
    assert not (tmp_path / "fast").exists()
    folder.make(path=path, image_size=8, cache_bytes=0)
    assert len(list((tmp_path / "fast" / "cl_jax" / "checked").iterdir())) == 1


def test_checked_images_are_remembered_until_they_change(tmp_path, monkeypatch):
    path, cache = tree(tmp_path / "photos", "train", "test"), str(tmp_path / "cache")
    seen = []
    inspect = images.inspect
    monkeypatch.setattr(
        images, "inspect", lambda file, name, **how: seen.append(name) or inspect(file, name, **how)
    )

    def checked(**how):
        seen.clear()
        folder.make(path=str(path), image_size=8, cache_bytes=0, cache_dir=cache, **how)
        return sorted(seen)

    assert len(checked()) == 12
    assert checked() == []
    put(path / "train" / "cat" / "1.png", (20, 20))
    put(path / "train" / "cat" / "new.png")
    assert checked() == ["train/cat/1.png", "train/cat/new.png"]
    assert len(checked(max_pixels=10_000)) == 13  # another question
    (path / "train" / "cat" / "1.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"train/cat/1.png: cannot identify"):
        checked()
    put(path / "train" / "cat" / "1.png", (20, 20))
    for file in (tmp_path / "cache").rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:100])
    assert len(checked()) == 13 and checked() == []
