"""A folder of things shown in several ways: examples are put together by name, and their pictures
lie on one channel axis."""

import numpy as np
import pytest
from PIL import Image

from cl_jax.data import aligned


def write(root, names=("a/1", "a/2", "b/3", "b/4", "b/5"), shown=("rgb", "depth")):
    rng = np.random.default_rng(0)
    pixels = {}
    for way in shown:
        for name in names:
            file = root / way / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            shape = (8, 8, 3) if way == "rgb" else (8, 8)
            pixels[way, name] = rng.integers(0, 256, shape, np.uint8)
            Image.fromarray(pixels[way, name]).save(file)
    return pixels


def test_pictures_of_one_name_lie_on_one_channel_axis(tmp_path):
    pixels = write(tmp_path)
    train, test = aligned.make(
        path=str(tmp_path), shown=("rgb", "depth"), channels=(3, 1), image_size=8
    )[:2]
    assert (train.size, test.size, train.sizes) == (3, 2, {"label": 2})
    assert train.classes == test.classes == {"label": ("a", "b")}
    found = {
        part.arrays["image"][i].tobytes(): part.arrays["label"][i]
        for part in (train, test)
        for i in range(part.size)
    }
    for name in ("a/1", "a/2", "b/3", "b/4", "b/5"):
        both = np.concatenate([pixels["rgb", name], pixels["depth", name][..., None]], axis=-1)
        assert found[both.tobytes()] == (0 if name[0] == "a" else 1)


def test_without_classes_there_is_no_label_and_16_bits_have_a_range(tmp_path):
    write(tmp_path, names=("1", "2"), shown=("rgb",))
    (tmp_path / "depth").mkdir()
    for name, value in (("1", 1000), ("2", 2000)):
        Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / "depth" / f"{name}.png")
    given = dict(path=str(tmp_path), shown=("rgb", "depth"), channels=(3, 1), image_size=8)
    train, test = aligned.make(**given, value_ranges={"depth": (1000, 2000)})[:2]
    depths = [part.arrays["image"][0, 0, 0, 3] for part in (train, test)]
    assert sorted(depths) == [0, 255] and not train.sizes and train.learnt is None


def test_a_range_of_deep_pictures_is_found_told_and_kept_with_the_run(tmp_path, caplog):
    """As of a folder: 12 bits of 16, divided by the largest number of 16, are nearly black."""
    write(tmp_path, names=("1", "2"), shown=("rgb",))
    (tmp_path / "depth").mkdir()
    for name, value in (("1", 0), ("2", 4095)):
        Image.fromarray(np.full((8, 8), value, np.uint16)).save(tmp_path / "depth" / f"{name}.png")
    train, test = aligned.make(
        path=str(tmp_path), shown=("rgb", "depth"), channels=(3, 1), image_size=8
    )[:2]
    assert sorted(part.arrays["image"][0, 0, 0, 3] for part in (train, test)) == [0, 255]
    assert train.learnt == {"value_ranges": {"depth": [0.0, 4095.0]}}
    assert "12 are used" in caplog.text
    assert "--config.data.value_ranges.depth=0,4095 sets" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(shown=("rgb",)), "at least two folders"),
        (dict(shown=("rgb", "deep")), "has no folder of that name; it has depth, rgb"),
        (dict(channels=(3, 2)), "expected 1 or 3 for each"),
        (dict(test_share=1.0), "below 1"),
        (dict(value_ranges={"normals": (0, 1)}), "expected names of data.shown"),
        (dict(value_ranges={"rgb": (1, 0)}), "value_ranges.rgb=.*low below high"),
    ],
)
def test_what_is_refused(tmp_path, given, message):
    write(tmp_path)
    with pytest.raises(ValueError, match=message):
        aligned.make(**(dict(path=str(tmp_path), shown=("rgb", "depth")) | given))


def test_an_example_that_a_folder_lacks_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "depth" / "b" / "4.png").unlink()
    with pytest.raises(ValueError, match="no picture of b/4, which another folder"):
        aligned.make(path=str(tmp_path), shown=("rgb", "depth"))


def test_files_of_other_formats_are_told(tmp_path, caplog):
    write(tmp_path)
    for way in ("rgb", "depth"):
        (tmp_path / way / "b" / "6.jxl").write_bytes(b"x")
    aligned.make(path=str(tmp_path), shown=("rgb", "depth"), channels=(3, 1), image_size=8)
    assert caplog.text.count("skipped files: 1 .jxl.") == 2
