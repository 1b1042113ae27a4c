"""A folder of images: layouts, sizes, formats, and everything that is wrong with real folders."""

import io
import os
import pwd
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from cl_jax.data import folder, images, listing, tokenizer
from cl_jax.data.batches import host_batches, ids_at
from cl_jax.data.source import labels_of
from tests.data.photos import BLUE, GREEN, RED, noise, put, tree


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
    monkeypatch.setattr(images, "_SHOWN", 20)
    with pytest.raises(
        ValueError, match=f"{len(wrong)} of the images in .* cannot be used"
    ) as caught:
        folder.make(**options)
    lines = {line.split(":")[0].strip(): line for line in str(caught.value).splitlines()}
    for name, words in wrong.items():
        assert words in lines[name], name
    assert "on_error=skip" in str(caught.value)

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
    "knob, words",
    [
        (dict(image_size=0), "image_size=0"),
        (dict(channels=0), "channels=0"),
        (dict(value_range=(3, 3)), r"value_range=\(3, 3\)"),
        (dict(test_share=0.0), "test_share=0.0"),
        (dict(on_error="ignore"), "on_error='ignore'"),
        (dict(path="/no/such"), "not a folder"),
        (dict(path=""), r"path is empty; set --config.data.path"),
        (dict(workers=-1), "workers=-1"),
    ],
)
def test_wrong_settings(tmp_path, knob, words):
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    with pytest.raises(ValueError, match=words):
        folder.make(**{"path": str(tmp_path), "image_size": 8, **knob})


# Formats ----------------------------------------


Image.init()


# Of the formats that Pillow reads, those that it writes too.
@pytest.mark.parametrize(
    "suffix",
    [
        suffix
        for suffix in sorted(images.readable() - {".npy"})
        if images.SUFFIXES[suffix] in Image.SAVE and suffix != ".psd"
    ],
)
def test_every_format_that_is_listed_is_read(tmp_path, suffix):
    mode = "RGB" if suffix not in (".pgm", ".pbm", ".pfm") else "L" if suffix == ".pgm" else "1"
    if suffix == ".pfm":
        Image.fromarray(np.full((30, 40), 0.5, np.float32)).save(tmp_path / "x.pfm")
    else:
        white = (255, 255, 255)
        put(tmp_path / f"x{suffix}", (40, 30), white if mode == "1" else (200, 200, 200), mode)
    decoded = images.decode(tmp_path / f"x{suffix}", f"x{suffix}", image_size=8, channels=3)
    expected = {"1": 255, "L": 200, "RGB": 200}[mode] if suffix != ".pfm" else 128
    assert np.abs(decoded.astype(int) - expected).max() <= 4
    for cut in (0.2, 0.6):
        data = (tmp_path / f"x{suffix}").read_bytes()
        (tmp_path / f"cut{suffix}").write_bytes(data[: int(len(data) * cut)])
        with pytest.raises(ValueError, match=f"^cut{suffix}: "):
            images.inspect(tmp_path / f"cut{suffix}", f"cut{suffix}")


def test_files_left_aside_are_a_warning_and_a_lost_class_an_error(tmp_path, caplog):
    tree(tmp_path)
    for name in ("a.cr2", "b.cr2", "c.dcm", "notes.txt", "x.\x1bz"):
        (tmp_path / "cat").mkdir(exist_ok=True)
        (tmp_path / "cat" / name).write_bytes(b"x")
    put(tmp_path / "cat" / "0.png")
    put(tmp_path / "dog" / "0.png")
    put(tmp_path / "dog" / "1.png", colour=BLUE)
    with caplog.at_level("WARNING"):
        folder.make(path=str(tmp_path), image_size=8)
    assert "skipped files: 2 .cr2, 1 " in caplog.text and r"1 .\x1bz" in caplog.text
    (tmp_path / "eel").mkdir()
    (tmp_path / "eel" / "0.cr2").write_bytes(b"x")
    with pytest.raises(ValueError, match="of the class folders of its train part, eel hold no"):
        folder.make(path=str(tmp_path), image_size=8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_transparency_shows_white(tmp_path, mode):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:] = 10, 10, 10, 255
    picture = Image.fromarray(pixels)
    if mode in ("P", "PA"):
        picture = picture.quantize(4).convert(mode) if mode == "PA" else picture.quantize(4)
        file, options = tmp_path / "x.png", {}
        if mode == "PA":
            picture = picture.convert("RGBA")
    else:
        picture, file, options = picture.convert(mode), tmp_path / "x.png", {}
    picture.save(file, **options)
    for channels in (1, 3):
        decoded = images.decode(file, "x.png", image_size=None, channels=channels)
        assert (decoded[:, :4] == 255).all() and (np.abs(decoded[:, 4:].astype(int) - 10) < 4).all()


# Depth ----------------------------------------


# Channels ----------------------------------------


def many(root, channels, form, count=4):
    """Files of any number of channels, channel c of the constant 20 c + 5."""
    for name in ("a", "b"):
        for i in range(count):
            pixels = np.broadcast_to(
                np.arange(channels, dtype=np.uint8) * 20 + 5, (12, 10, channels)
            ).copy()
            pixels[0, 0] = i
            (root / name).mkdir(parents=True, exist_ok=True)
            stem = root / name / str(i)
            if form == "pages":
                first, *others = (Image.fromarray(plane) for plane in np.moveaxis(pixels, -1, 0))
                first.save(f"{stem}.tif", save_all=True, append_images=others)
            elif form == "bands":
                pytest.importorskip("tifffile").imwrite(
                    f"{stem}.tif", pixels, photometric="minisblack", planarconfig="contig"
                )
            elif form == "first":
                np.save(f"{stem}.npy", np.moveaxis(pixels, -1, 0))
            elif form == "alpha":
                Image.fromarray(pixels).save(f"{stem}.png")
            else:
                np.save(f"{stem}.npy", pixels)
    return str(root)


@pytest.mark.parametrize(
    "channels, form",
    [(2, "pages"), (5, "pages"), (5, "bands"), (13, "bands"), (4, "last"), (7, "first")]
    + [(4, "alpha"), (2, "last")],
)
def test_images_of_any_number_of_channels(tmp_path, channels, form):
    path = many(tmp_path, channels, form)
    for cache_bytes in (10**9, 0):
        splits = folder.make(path=path, image_size=8, channels=channels, cache_bytes=cache_bytes)
        for source in splits[:2]:
            image = source.read(0)["image"]
            assert image.shape == (8, 8, channels)
            np.testing.assert_array_equal(image[5, 5], np.arange(channels) * 20 + 5)
    other = 3 if form != "alpha" else 5
    if form == "first":  # [7, 12, 10] is of 10 channels for whoever asks for 3
        channels = 10
    with pytest.raises(ValueError, match=rf"{channels} channels, and channels={other} was asked"):
        folder.make(path=path, image_size=8, channels=other, cache_bytes=0, cache_dir=None)


def test_objects_in_an_array_file_are_not_read(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[{}]], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"^x.npy: "):
        images.decode(tmp_path / "x.npy", "x.npy", image_size=8, channels=3)


# Damage and time ----------------------------------------


@pytest.mark.parametrize("last", [False, True])
def test_a_damaged_image_is_replaced_by_one_of_its_class(tmp_path, last, caplog):
    """What `labels_of` says stays true of the images that are read."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            for i in range(5):
                noise(tmp_path / part / name / f"{i}.png")
    for name in ("cat", "dog"):
        file = tmp_path / "train" / name / f"{4 if last else 0}.png"
        data = bytearray(file.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
        file.write_bytes(data)
    found = folder.make(path=str(tmp_path), image_size=16, on_error="skip", cache_bytes=0).train
    with caplog.at_level("WARNING"):
        of_images = [int(found.read(i)["label"]) for i in range(found.size)]
    assert labels_of(found).tolist() == of_images == [0] * 5 + [1] * 5
    assert caplog.text.count("replaced by the next image of its class") == 2


def test_the_listing_stats_each_file_once(tmp_path, monkeypatch):
    tree(tmp_path, "train")
    calls = []
    for name in ("stat", "lstat", "open", "readlink"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, real=real, name=name, **k: calls.append(name) or real(*a, **k)
        )
    found = listing.of(tmp_path)
    assert len(found.files) == 6 and not calls  # os.scandir's entries alone


def test_turbo_gives_the_same_pixels(tmp_path, monkeypatch):
    pytest.importorskip("simplejpeg")
    rng = np.random.default_rng(0)
    for number, (size, mode) in enumerate(
        [((64, 48), "RGB"), ((301, 203), "RGB"), ((90, 300), "L"), ((700, 500), "CMYK")]
    ):
        turned = Image.Exif()
        turned[0x0112] = 1 if number == 1 else 6
        pixels = rng.integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), np.uint8)
        picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)
        picture.save(tmp_path / f"{number}.jpg", quality=90, exif=turned if number else b"")
    for number in range(4):
        for image_size, channels in ((16, 3), (40, 3), (16, 1), (None, 3), (None, 1)):
            how = dict(image_size=image_size, channels=channels)
            file = tmp_path / f"{number}.jpg"
            with monkeypatch.context() as patch:
                patch.setattr(images, "_has_turbo", lambda: False)
                plain = images.decode(file, "x.jpg", **how)
            turbo = images.decode(file, "x.jpg", **how)
            assert plain.shape == turbo.shape, (number, how)
            assert np.abs(plain.astype(int) - turbo).max() <= 2, (number, how)


def test_all_images_in_one_source(tmp_path):
    for number, name in enumerate(("cat", "cat", "dog")):
        put(tmp_path / name / f"{number}.png")
    noise(tmp_path / "dog" / "3.png")
    data = (tmp_path / "dog" / "3.png").read_bytes()
    (tmp_path / "dog" / "3.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "dog" / "4.png").write_bytes(b"")
    found, bad = folder.everything(str(tmp_path), image_size=8)
    assert found.names == ["cat/0.png", "cat/1.png", "dog/2.png", "dog/3.png"]
    assert [int(found.read(i)["label"]) for i in range(4)] == [0, 0, 1, 1]
    assert not found.read(3)["image"].any() and found.read(0)["image"].any()
    assert bad.keys() == {"dog/3.png", "dog/4.png"} and bad["dog/4.png"] == "an empty file"


def test_a_survey_says_what_is_a_class_and_why(tmp_path, caplog):
    for name, count in (("cat", 12), ("dog", 20)):
        for number in range(count):
            put(tmp_path / "some" / name / f"{number}.png", size=(8 + number, 9))
    (tmp_path / "some/notes.txt").write_text("")
    found = folder.survey(path=str(tmp_path / "some"))
    assert found.train + found.test == 32 and set(found.classes) == {"cat", "dog"}
    text = "\n".join(found.lines)
    for words in ("2 classes, one for each sub-folder", "by a hash", "to 27 x 9 pixels"):
        assert words in text, text
    # skipped files are told once, by what opens the data
    (tmp_path / "some/cat/empty.png").write_bytes(b"")
    folder.make(path=str(tmp_path / "some"), image_size=8, on_error="skip", cache_dir=None)
    text = "\n".join((*folder.survey(path=str(tmp_path / "some")).lines, caplog.text))
    assert text.count(".txt") == text.count("empty.png") == 1
    none = folder.survey(path=str(tmp_path / "some/cat"))
    assert not none.classes and "no classes: the images are in no sub-folders" in none.lines[1]
    assert "labels=False" in folder.survey(path=str(tmp_path / "some"), labels=False).lines[1]


def test_a_cache_that_may_not_be_entered_costs_nothing_but_time(tmp_path, monkeypatch):
    def refused(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    tree(tmp_path / "photos", "train")
    real = Path.stat
    cache = str(tmp_path / "home")
    monkeypatch.setattr(
        Path, "stat", lambda p, **k: (refused if str(p).startswith(cache) else real)(p, **k)
    )
    splits = folder.make(
        path=str(tmp_path / "photos"), image_size=4, cache_bytes=0, cache_dir=cache
    )
    assert splits.train.size + splits.test.size == 6
    words = [f"some words {i}" for i in range(9)]
    assert tokenizer.train(words, vocab_size=60, cache=cache).size > 9


def test_a_user_without_a_home_directory_reads_from_disk_all_the_same(tmp_path, monkeypatch):
    def unknown(_):
        raise KeyError("uid not found")

    tree(tmp_path / "photos", "train")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    splits = folder.make(path="photos", image_size=4, cache_bytes=0)
    assert splits.train.size + splits.test.size == 6
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    words = [f"some words {i}" for i in range(9)]
    assert tokenizer.train(words, vocab_size=60).size > 9 and not (tmp_path / "~").exists()
