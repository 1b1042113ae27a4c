"""A folder of images: layouts, sizes, formats, and everything that is wrong with real folders."""

import io
import os

import numpy as np
import pytest
from PIL import Image, ImageOps

from cl_jax.data import folder, images
from cl_jax.data.batches import host_batches, ids_at
from cl_jax.data.source import labels_of

RED, GREEN, BLUE = (220, 20, 20), (20, 220, 20), (20, 20, 220)


def put(path, size=(12, 10), colour=RED, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode).save(path, **options)
    return path


def noise(path, size=(64, 48)):
    """An image that compresses badly, so that half of its file is half of its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def classes(tmp_path):
    for i in range(6):
        put(tmp_path / "cat" / f"{i}.jpg", (20 + i, 15), RED, quality=95)
        put(tmp_path / "dog" / "deep" / f"{i}.png", (9, 30 - i), GREEN)
        put(tmp_path / "eel" / f"{i}.WEBP", (16, 16), BLUE, lossless=True)
    return tmp_path


@pytest.mark.parametrize("cache_bytes", [10**9, 0])
def test_class_folders_of_mixed_sizes_and_formats(classes, cache_bytes):
    splits = folder.make(path=str(classes), image_size=8, test_share=0.3, cache_bytes=cache_bytes)
    assert splits.train.size + splits.test.size == 18 and splits.test.size > 0 and not splits.more
    for source in (splits.train, splits.test):
        assert source.sizes == {"label": 3} and source.skipped == 0
        assert (source.arrays is None) == (cache_bytes == 0)
        for i in range(source.size):
            example = source.read(i)
            assert example["image"].shape == (8, 8, 3) and example["image"].dtype == np.uint8
            assert example["label"].dtype == np.int32
            np.testing.assert_allclose(
                example["image"].mean((0, 1)), (RED, GREEN, BLUE)[example["label"]], atol=4
            )
        np.testing.assert_array_equal(
            labels_of(source), [source.read(i)["label"] for i in range(source.size)]
        )


def test_memory_and_disk_give_the_same_batches(classes):
    kept, read = (
        folder.make(path=str(classes), image_size=8, cache_bytes=limit).train
        for limit in (10**9, 0)
    )
    options = dict(batch_size=4, seed=0, start_step=1, steps=6)
    for step, (a, b) in enumerate(
        zip(host_batches(kept, **options), host_batches(read, **options), strict=True), 1
    ):
        np.testing.assert_array_equal(a["id"], ids_at(step, seed=0, size=kept.size, batch_size=4))
        for field in ("image", "label", "id"):
            np.testing.assert_array_equal(a[field], b[field])


def test_images_without_class_folders_have_no_label(tmp_path):
    for i in range(4):
        put(tmp_path / f"{i}.png")
    splits = folder.make(path=str(tmp_path), image_size=8)
    assert splits.train.sizes == {} and set(splits.train.read(0)) == {"image"}
    assert (splits.train.size, splits.test.size) == (3, 1)


def test_one_class_folder_tells_nothing_apart(tmp_path):
    for i in range(4):
        put(tmp_path / "all" / f"{i}.png")
    assert folder.make(path=str(tmp_path), image_size=8).train.sizes == {}


def test_given_parts(tmp_path):
    for part, colours in (("train", (RED, GREEN)), ("val", (RED, GREEN)), ("unlabeled", (BLUE,))):
        for name, colour in zip("ab", colours):
            put(tmp_path / part / name / "0.png", colour=colour)
    splits = folder.make(path=str(tmp_path), image_size=8)
    assert (splits.train.size, splits.test.size, splits.more["unlabeled"].size) == (2, 2, 1)
    np.testing.assert_array_equal(labels_of(splits.test), [0, 1])
    assert (
        splits.more["unlabeled"].sizes == {}
        and splits.more["unlabeled"].read(0)["image"][0, 0, 2] == BLUE[2]
    )


def test_train_may_be_a_class(tmp_path):
    for name in ("car", "plane", "train"):
        for i in range(2):
            put(tmp_path / name / f"{i}.png")
    assert folder.make(path=str(tmp_path), image_size=8).train.sizes == {"label": 3}


def test_split_by_hash_keeps_its_members_when_images_are_added(tmp_path):
    def members():
        test = folder.make(path=str(tmp_path), image_size=2, test_share=0.3).test
        return {int(image[0, 0, 0]) for image in test.arrays["image"]}

    for i in range(60):
        put(tmp_path / f"{i}.png", (2, 2), (i, 0, 0))
    first = members()
    for i in range(60, 120):
        put(tmp_path / f"{i}.png", (2, 2), (i, 0, 0))
    later = members()
    assert {i for i in later if i < 60} == first
    assert 20 < len(later) < 55


def test_centre_is_kept_and_stands_upright(tmp_path):
    """Of a wide picture, red | green | blue, the green square in the middle; and turned as EXIF
    says."""
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, :40], pixels[:, 40:80], pixels[:, 80:] = RED, GREEN, BLUE
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    decoded = images.decode(tmp_path / "wide.png", "wide", image_size=10, channels=3)
    assert (np.abs(decoded.astype(int) - GREEN) < 8).all()

    ramp = np.add.outer(np.arange(40) * 2, np.arange(40) * 4).astype(np.uint8)
    half = Image.fromarray(np.stack([ramp] * 3, -1))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        half.save(tmp_path / "turned.jpg", exif=exif, quality=95)
        ours = images.decode(tmp_path / "turned.jpg", "turned", image_size=40, channels=3)
        theirs = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "turned.jpg")))
        assert np.abs(ours.astype(int) - theirs).max() <= 2, orientation


def test_shrinking_is_antialiased(tmp_path):
    """A chequered pattern of single pixels becomes grey, not black and white."""
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    for suffix in ("png", "jpg"):
        Image.fromarray(board).save(tmp_path / f"board.{suffix}", quality=95)
        decoded = images.decode(tmp_path / f"board.{suffix}", "board", image_size=16, channels=1)
        assert decoded.shape == (16, 16, 1) and np.abs(decoded.astype(int) - 128).max() < 12


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_colour_modes(tmp_path, mode):
    file = put(tmp_path / ("x.jpg" if mode == "CMYK" else "x.png"), (8, 8), (255, 255, 255), mode)
    for channels in (1, 3):
        decoded = images.decode(file, "x", image_size=None, channels=channels)
        assert decoded.shape == (8, 8, channels) and decoded.min() > 250


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 32768], [65535, 257]], np.uint16)).save(tmp_path / "deep.png")
    decoded = images.decode(tmp_path / "deep.png", "deep", image_size=None, channels=1)
    np.testing.assert_array_equal(decoded[..., 0], [[0, 128], [255, 1]])


def damage(path):
    """One of each kind; returns what an error must say of it, by name."""
    outside = noise(path.parent / "elsewhere" / "secret.png")
    whole = noise(path / "a" / "cut.jpg").read_bytes()
    (path / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    whole = noise(path / "a" / "cut.png").read_bytes()
    (path / "a" / "cut.png").write_bytes(whole[: len(whole) // 2])
    whole = noise(path / "a" / "cut.webp").read_bytes()
    (path / "a" / "cut.webp").write_bytes(whole[: len(whole) // 2])
    (path / "a" / "empty.png").touch()
    (path / "a" / "text.jpg").write_text("not an image")
    put(path / "a" / "huge.png", (101, 100))
    (path / "a" / "link.png").symlink_to(outside)
    (path / "a" / "nowhere.png").symlink_to(path / "a" / "gone.png")
    (path / "linked").symlink_to(outside.parent)
    os.mkfifo(path / "a" / "pipe.png")
    return {
        "a/cut.jpg": "truncated",
        "a/cut.png": "",
        "a/cut.webp": "",
        "a/empty.png": "empty file",
        "a/text.jpg": "cannot identify",
        "a/huge.png": "101x100 pixels, more than max_pixels=10000",
        "a/link.png": "leads out of the folder",
        "a/nowhere.png": "cannot be read",
        "a/pipe.png": "not a regular file",
        "linked": "leads out of the folder",
    }


@pytest.mark.parametrize("cache_bytes", [10**9, 0])
def test_damaged_images_are_named_skipped_and_counted(tmp_path, cache_bytes, caplog, monkeypatch):
    root = tmp_path / "photos"
    for i in range(5):
        put(root / "a" / f"{i}.png")
        put(root / "b" / f"{i}.png")
    (root / "a" / "within.png").symlink_to(root / "b" / "0.png")
    wrong = damage(root)
    options = dict(
        path=str(root), image_size=8, max_pixels=10_000, cache_bytes=cache_bytes, labels=True
    )
    monkeypatch.setattr(folder, "_SHOWN", 20)
    with pytest.raises(
        ValueError, match=f"{len(wrong)} of the images in .* cannot be used"
    ) as caught:
        folder.make(**options)
    lines = {line.split(":")[0].strip(): line for line in str(caught.value).splitlines()}
    for name, words in wrong.items():
        assert words in lines[name], name
    assert "on_error='skip'" in str(caught.value)

    with caplog.at_level("WARNING"):
        splits = folder.make(**options, on_error="skip")
    assert splits.train.size + splits.test.size == 11
    assert (
        splits.train.skipped + splits.test.skipped == len(wrong) - 1
    )  # the linked folder is not one image
    assert all(name in caplog.text for name in wrong)
    assert all(splits.train.read(i)["image"].shape == (8, 8, 3) for i in range(splits.train.size))


def test_an_error_names_the_first_few(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.png").touch()
    with pytest.raises(
        ValueError, match=r"8 of the images(.|\n)*4.png: an empty file\n  and 3 more"
    ):
        folder.make(path=str(tmp_path), image_size=8)
    with pytest.raises(ValueError, match="no image of its train part can be used"):
        folder.make(path=str(tmp_path), image_size=8, on_error="skip")


def test_damage_found_while_reading(tmp_path, caplog):
    """Whole at its end, broken in the middle: seen when it is decoded."""
    for i in range(4):
        put(tmp_path / f"{i}.png", colour=(i, 0, 0))
    raising = folder.make(path=str(tmp_path), image_size=8, cache_bytes=0).train
    skipping = folder.make(path=str(tmp_path), image_size=8, cache_bytes=0, on_error="skip").train
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(
        buffer, "PNG"
    )
    data = bytearray(buffer.getvalue())
    data[len(data) // 2 : len(data) // 2 + 100] = bytes(100)
    broken = next(
        i for i in range(4) if raising.size and i == int(raising.read(1)["image"][0, 0, 0])
    )
    (tmp_path / f"{broken}.png").write_bytes(data)
    with pytest.raises(ValueError, match=f"^{broken}.png: "):
        raising.read(1)
    with caplog.at_level("WARNING"):
        np.testing.assert_array_equal(skipping.read(1)["image"], skipping.read(2)["image"])
    assert f"{broken}.png" in caplog.text


def test_other_and_hidden_files_are_left_aside(tmp_path):
    for i in range(3):
        put(tmp_path / f"{i}.png")
    (tmp_path / "._0.png").write_bytes(b"resource fork")
    (tmp_path / "notes.txt").write_text("hello")
    put(tmp_path / ".cache" / "thumb.png")
    splits = folder.make(path=str(tmp_path), image_size=8)
    assert splits.train.size + splits.test.size == 3


def test_channels(tmp_path):
    for i in range(3):
        put(tmp_path / f"{i}.png", mode="L")
    for channels in (1, 3):
        image = folder.make(path=str(tmp_path), image_size=8, channels=channels).train.read(0)[
            "image"
        ]
        assert image.shape == (8, 8, channels) and np.ptp(image) == 0


@pytest.mark.parametrize(
    "files, words",
    [
        ([], "holds no image. Images end in .jpg"),
        (["a.heic", "b.heic", "c.txt"], r"holds no image. It has other files: 2 .heic, 1 .txt."),
        (["a.png"], "1 image, too few for a train and a test part"),
        (
            ["x/a.png", "y/b.png", "c.png"],
            "beside its class folders .x, y., such as c.png.*labels=False",
        ),
        (["train/a.png", "test/b.png", "c.png"], "beside its train folder, such as c.png"),
        (
            ["train/x/a.png", "train/y/a.png", "test/x/b.png", "test/z/b.png"],
            "train has x, y, test has x, z",
        ),
    ],
)
def test_layouts_that_cannot_be_read(tmp_path, files, words):
    for file in files:
        if file.endswith(".png"):
            put(tmp_path / file)
        else:
            (tmp_path / file).write_text("x")
    with pytest.raises(ValueError, match=words):
        folder.make(path=str(tmp_path), image_size=8)


def test_labels_false_takes_everything(tmp_path):
    for file in ("x/a.png", "y/b.png", "c.png"):
        put(tmp_path / file)
    splits = folder.make(path=str(tmp_path), image_size=8, labels=False)
    assert splits.train.size + splits.test.size == 3 and splits.train.sizes == {}


@pytest.mark.parametrize(
    "knob, words",
    [
        (dict(image_size=0), "image_size=0"),
        (dict(channels=2), "channels=2"),
        (dict(test_share=0.0), "test_share=0.0"),
        (dict(on_error="ignore"), "on_error='ignore'"),
        (dict(path="/no/such"), "not a folder"),
        (dict(workers=0), "workers=0"),
    ],
)
def test_wrong_settings(tmp_path, knob, words):
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    with pytest.raises(ValueError, match=words):
        folder.make(**{"path": str(tmp_path), "image_size": 8, **knob})
