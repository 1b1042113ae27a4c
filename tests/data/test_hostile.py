"""Bad and hostile inputs: each is refused (or converted) with its name, and nothing in it is run.

`python -m tests.data.test_hostile` writes what each got to docs/guides/bad_inputs.md; a test holds
the page to it."""

import functools
import io
import itertools
import json
import os
import pickle
import re
import struct
import tempfile
import textwrap
import wave
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from cl_jax.core import parallel
from cl_jax.core.method import State
from cl_jax.data import audio, folder, graphs, image_text, images, packed, text, video
from cl_jax.training import checkpoint, experiment, metrics, resuming, stages
from cl_jax.views import lab, planes
from configs import moco_v2, simclr_v1

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "bad_inputs.md"
SIZE, MAX_BYTES = 8, 10**7


class Case(NamedTuple):
    """`run(tmp_path)` ends in an error whose text `says` matches, or returns what was made of the
    input, in these words."""

    group: str
    given: str
    run: Callable[[Path], str]
    says: str


CASES: list[Case] = []


def case(group: str, given: str, says: str, *arguments):
    def add(run):
        CASES.append(Case(group, given, functools.partial(run, *arguments), says))
        return run

    return add


# Files in a folder of images
# --------------------------------------


def encoded(kind="PNG", size=(40, 30), mode="RGB", colour=(200, 40, 40), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def noise(kind: str) -> bytes:
    """An image that compresses badly, so that half of its file is half of its pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(
        buffer, kind
    )
    return buffer.getvalue()


def stack(pages: int) -> bytes:
    buffer = io.BytesIO()
    first, *others = (Image.new("L", (40, 30), 20 * page) for page in range(pages))
    first.save(buffer, "TIFF", save_all=True, append_images=others)
    return buffer.getvalue()


def floats(times: float) -> bytes:
    buffer = io.BytesIO()
    pixels = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8) * np.float32(times)
    Image.fromarray(pixels).save(buffer, "TIFF")
    return buffer.getvalue()


def objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([[Harmful()]], object), allow_pickle=True)
    return buffer.getvalue()


def declared(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()[len(b"\x93NUMPY\x01\0") :]


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of any declared size with the given chunks and one byte of pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), *chunks, (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def damaged_middle() -> bytes:
    data = bytearray(noise("PNG"))
    data[len(data) // 2 : len(data) // 2 + 100] = bytes(100)
    return bytes(data)


def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(4):
        (root / f"good{i}.png").write_bytes(encoded())
    return root


def in_folder(plant: Callable[[Path], str], tmp_path: Path) -> str:
    """Refused by name under "raise"; under "skip" left out and counted, and the good images are
    there."""
    root = photos(tmp_path)
    name = plant(root)
    splits = folder.make(path=str(root), image_size=SIZE, on_error="skip")
    assert splits.train.size + splits.test.size == 4
    assert splits.train.skipped + splits.test.skipped == (
        not (root / name).is_dir()
    )  # a folder is not one image
    with pytest.raises(ValueError) as caught:
        folder.make(path=str(root), image_size=SIZE)
    message = str(caught.value)
    assert (
        message.startswith("1 of the images in ") and f"\n  {images.printable(name)}: " in message
    )
    assert message.endswith("or leave them out: --config.data.on_error=skip.")
    raise caught.value


def a_file(name: str, data: Callable[[], bytes]) -> Callable[[Path], str]:
    def plant(root: Path) -> str:
        (root / name).write_bytes(data())
        return name

    return plant


def linked(name: str, target: str) -> Callable[[Path], str]:
    def plant(root: Path) -> str:
        outside = root.parent / "outside"
        outside.mkdir()
        (outside / "secret.png").write_bytes(encoded())
        (root / name).symlink_to(root.parent / target)
        return name

    return plant


def pipe(root: Path) -> str:
    os.mkfifo(root / "bad.png")
    return "bad.png"


for _given, _plant, _says in (
    ("a file of 0 bytes", a_file("bad.png", lambda: b""), "bad.png: an empty file"),
    (
        "a text named .png",
        a_file("bad.png", lambda: b"hello"),
        "bad.png: cannot identify image file",
    ),
    (
        "a PostScript program named .png, which would be run",
        a_file("bad.png", lambda: encoded("EPS")),
        "bad.png: cannot identify image file",
    ),
    ("a text named .tga", a_file("bad.tga", lambda: b"hello" * 9), "bad.tga: "),
    ("a TIFF cut in the middle", a_file("bad.tif", lambda: noise("TIFF")[:5000]), "bad.tif: "),
    ("a BMP cut in the middle", a_file("bad.bmp", lambda: noise("BMP")[:5000]), "bad.bmp: "),
    ("a GIF cut in the middle", a_file("bad.gif", lambda: noise("GIF")[:900]), "bad.gif: "),
    ("an AVIF cut in the middle", a_file("bad.avif", lambda: noise("AVIF")[:900]), "bad.avif: "),
    (
        "a stack of five pages where colours are wanted",
        a_file("bad.tif", lambda: stack(5)),
        "bad.tif: a stack of pages: 5 channels, and channels=3 was asked for; set channels=5",
    ),
    (
        "floats from 0 to 1,000",
        a_file("bad.tif", lambda: floats(1000)),
        r"bad.tif: numbers from 0 to 1000, outside 0 to 1; set value_range=\(low, high\)",
    ),
    (
        "floats among which is a NaN",
        a_file("bad.tif", lambda: floats(np.nan)),
        "bad.tif: NaN or inf",
    ),
    (
        "an array of objects, which would run code",
        a_file("bad.npy", lambda: objects()),
        "bad.npy: ",
    ),
    (
        "an array that declares 4 TB",
        a_file("bad.npy", lambda: b"\x93NUMPY\x01\0" + declared((2**20, 2**20, 4))),
        "bad.npy: ",
    ),
    (
        "a JPEG cut in the middle",
        a_file("bad.jpg", lambda: noise("JPEG")[:2000]),
        "bad.jpg: image file is truncated",
    ),
    ("a PNG cut in the middle", a_file("bad.png", lambda: noise("PNG")[:5000]), "bad.png: "),
    ("a WebP cut in the middle", a_file("bad.webp", lambda: noise("WEBP")[:1500]), "bad.webp: "),
    ("a PNG damaged in the middle", a_file("bad.png", damaged_middle), "bad.png: "),
    (
        "a decompression bomb: 100 bytes of PNG that declare 100,000 x 100,000 pixels",
        a_file("bad.png", lambda: png(100_000, 100_000)),
        r"bad.png: Image size \(10000000000 pixels\) exceeds limit",
    ),
    (
        "a PNG that declares 12,000 x 12,000 pixels",
        a_file("bad.png", lambda: png(12_000, 12_000)),
        "bad.png: (12000x12000 pixels, more than max_pixels|Image size .144000000 pixels. exceeds "
        "limit)",
    ),
    (
        "an image 50,000 pixels wide",
        a_file("bad.png", lambda: encoded(size=(50_000, 20))),
        "bad.png: 50000x20 pixels, a side of more than 32767; cut it into pieces",
    ),
    (
        "a PNG whose comment unpacks to 20 MB",
        a_file(
            "bad.png", lambda: png(8, 8, (b"zTXt", b"note\0\0" + zlib.compress(bytes(2 * 10**7))))
        ),
        "bad.png: .*MAX_TEXT_CHUNK",
    ),
    ("a PNG of 0 x 8 pixels", a_file("bad.png", lambda: png(0, 8)), "bad.png: "),
    (
        "a link to a file outside the folder",
        linked("bad.png", "outside/secret.png"),
        "bad.png: a link that leads out of the folder",
    ),
    (
        "a link to a folder outside",
        linked("bad", "outside"),
        "bad: a link that leads out of the folder",
    ),
    ("a link to nothing", linked("bad.png", "photos/gone.png"), "bad.png: cannot be read"),
    ("a link to itself", linked("bad.png", "photos/bad.png"), "bad.png: cannot be read"),
    ("a pipe named .png, which would be read for ever", pipe, "bad.png: not a regular file"),
    (
        "a file name that clears the terminal",
        a_file("\x1b[2J.png", lambda: b""),
        r"\\x1b\[2J.png: an empty file",
    ),
):
    case("A folder of images", _given, _says, _plant)(in_folder)


@case("A folder of images", "a zip with ../../ in its names", "skipped, not opened")
def archive(tmp_path: Path) -> str:
    root = photos(tmp_path)
    with zipfile.ZipFile(root / "bad.zip", "w") as file:
        file.writestr("../../escaped.png", encoded())
    splits = folder.make(path=str(root), image_size=SIZE)
    assert splits.train.size + splits.test.size == 4 and not list(tmp_path.rglob("escaped.png"))
    return "skipped, not opened"


def converted(
    data: Callable[[], bytes], suffix: str, colour: tuple[int, int, int], tmp_path: Path
) -> str:
    (tmp_path / f"x{suffix}").write_bytes(data())
    for channels, wanted in (
        (3, colour),
        (1, (round(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]),)),
    ):
        found = images.decode(tmp_path / f"x{suffix}", "x", image_size=SIZE, channels=channels)
        assert found.shape == (SIZE, SIZE, channels) and found.dtype == np.uint8
        assert np.abs(found.astype(int) - wanted).max() <= 4, found[0, 0]
    return "read as uint8 RGB, or as its luma for one channel"


def animated(kind: str) -> bytes:
    buffer = io.BytesIO()
    first, second = (Image.new("RGB", (40, 30), colour) for colour in ((200, 40, 40), (0, 0, 255)))
    lossless = {} if kind == "GIF" else {"lossless": True}
    first.save(buffer, kind, save_all=True, append_images=[second], **lossless)
    return buffer.getvalue()


def half_transparent() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (40, 30), (200, 40, 40, 127)).save(buffer, "PNG")
    return buffer.getvalue()


def sixteen_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((30, 40), 100 * 257, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


_RED, _GREY, _LUMA = (200, 40, 40), (100, 100, 100), (88, 88, 88)
_READ = "read as uint8 RGB, or as its luma for one channel"
for _given, _data, _suffix, _colour in (
    ("a CMYK JPEG", lambda: encoded("JPEG", mode="CMYK", quality=95), ".jpg", _RED),
    ("a grey PNG of 16 bits, scaled and not clipped", sixteen_bits, ".png", _GREY),
    ("a PNG with a palette", lambda: encoded(mode="P"), ".png", _RED),
    ("a PNG with transparency, over white", lambda: half_transparent(), ".png", (228, 148, 148)),
    ("a GIF named .png", lambda: encoded("GIF"), ".png", _RED),
    ("a TIFF named .jpg", lambda: encoded("TIFF"), ".jpg", _RED),
    ("a BMP", lambda: encoded("BMP"), ".bmp", _RED),
    ("an AVIF", lambda: encoded("AVIF", quality=95), ".avif", _RED),
    ("an animated GIF, its first picture", lambda: animated("GIF"), ".gif", _RED),
    ("a grey PNG", lambda: encoded(mode="L"), ".png", _LUMA),
    (
        "a black-and-white PNG of 1 bit",
        lambda: encoded(mode="1", colour=(255, 255, 255)),
        ".png",
        (255, 255, 255),
    ),
    ("an animated PNG, its first picture", lambda: animated("PNG"), ".png", _RED),
    ("an animated WebP, its first picture", lambda: animated("WEBP"), ".webp", _RED),
    ("a JPEG named .png", lambda: encoded("JPEG", quality=95), ".png", _RED),
    ("an image of 1 x 1 pixel", lambda: encoded(size=(1, 1)), ".png", _RED),
):
    case("A folder of images", _given, _READ, _data, _suffix, _colour)(converted)


# Packed files --------------------------------------


class Harmful:
    """Unpickling it would leave a file behind."""

    def __reduce__(self):
        return os.mkdir, (str(Path(tempfile.gettempdir()) / "unpickled-by-cl-jax"),)


def archive_of(**arrays) -> bytes:
    buffer = io.BytesIO()
    arrays = {"image": np.zeros((6, 4, 4, 3), np.uint8), "label": np.arange(6) % 2} | arrays
    np.savez(buffer, **{name: array for name, array in arrays.items() if array is not None})
    return buffer.getvalue()


def member(data: bytes, name: str = "image") -> bytes:
    """The archive with one member replaced by these bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive_of())) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, data if info.filename == f"{name}.npy" else old.read(info))
    return buffer.getvalue()


def header(shape: tuple[int, ...], descr: str = "|u1", data: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue() + data


def flipped() -> bytes:
    data = bytearray(archive_of(image=np.ones((6, 4, 4, 3), np.uint8)))
    at = data.find(bytes([1] * 40))
    data[at : at + 4] = bytes([2] * 4)
    return bytes(data)


def in_packed(data: Callable[[], bytes], tmp_path: Path) -> str:
    (tmp_path / "test.npz").write_bytes(archive_of())
    (tmp_path / "train.npz").write_bytes(data())
    trace = Path(tempfile.gettempdir()) / "unpickled-by-cl-jax"
    try:
        packed.make(path=str(tmp_path), max_bytes=MAX_BYTES)
    except ValueError as error:
        assert "train" in str(error), error
        raise
    finally:
        assert not trace.exists()
    return "read"


for _given, _data, _says in (
    (
        "a text named .npz",
        lambda: b"hello",
        "train.npz is not a whole .npz archive .*Make or copy it again",
    ),
    (
        "a pickle named .npz, which would run code",
        lambda: pickle.dumps(Harmful()),
        "train.npz is not a whole .npz archive",
    ),
    (
        "an object array, which would run code",
        lambda: archive_of(image=np.array([Harmful()] * 6, object)),
        "image has elements of type object; expected plain numbers. Objects are never read: they "
        "could run code",
    ),
    (
        "an array of strings",
        lambda: archive_of(label=np.array(["cat"] * 6)),
        "label has elements of type <U3",
    ),
    (
        "an archive cut in the middle",
        lambda: archive_of()[:300],
        "train.npz is not a whole .npz archive",
    ),
    ("flipped bytes", flipped, "train.npz is not a whole .npz archive .*CRC"),
    ("a member that is not an array", lambda: member(b"hello"), "image is not a NumPy array"),
    (
        "a header that runs code if evaluated",
        lambda: member(header((6,)).replace(b"(6,)", b"f() ")),
        "image is not a NumPy array",
    ),
    (
        "a header that declares 4 TB",
        lambda: member(header((2**40, 1, 1, 4))),
        "4,398,046,511,104 bytes unpacked, more than max_bytes",
    ),
    (
        "an array shorter than its header says",
        lambda: member(header((6, 4, 4, 3), data=bytes(100))),
        r"image is uint8\[6, 4, 4, 3\], 288 bytes, and has \d+. It was cut short",
    ),
    (
        "floating-point images",
        lambda: archive_of(image=np.zeros((6, 4, 4, 3))),
        r"image is float64\[6, 4, 4, 3\]; expected uint8 .*Scale",
    ),
    (
        "images without height",
        lambda: archive_of(image=np.zeros((6, 48), np.uint8)),
        r"image is uint8\[6, 48\]; expected",
    ),
    (
        "residuals of another rank",
        lambda: archive_of(image=None, **{"image.res": np.zeros((6, 4), np.uint8)}),
        r"image.res is uint8\[6, 4\]; expected residuals uint8 \[C, N, H, W\]",
    ),
    (
        "members of another kind",
        lambda: member(b"", "image").replace(b"image.npy", b"image.exe"),
        "has no field 'image'",
    ),
    (
        "fewer labels than images",
        lambda: archive_of(label=np.arange(5)),
        "label is int64.5. beside 6 images",
    ),
    (
        "labels that are no whole numbers",
        lambda: archive_of(label=np.full(6, np.nan)),
        "label is float64.6. beside 6 images",
    ),
    (
        "a label of -2 (-1 is not a label)",
        lambda: archive_of(label=np.arange(6) - 2),
        "label goes down to -2; expected 0 or more, or -1 for an example without a label",
    ),
    (
        "labels beyond 32 bits, renumbered",
        lambda: archive_of(label=np.array([0, 1, 0, 1, 0, 2**40])),
        "read",
    ),
    (
        "no images at all",
        lambda: archive_of(image=np.zeros((0, 4, 4, 3), np.uint8), label=np.zeros(0, int)),
        "image holds no image; expected at least one",
    ),
):
    case("A packed data set", _given, _says, _data)(in_packed)


@case(
    "A packed data set",
    "no train.npz",
    r"train.npz is missing; data.path must name a folder with train.npz and test.npz",
)
def no_part(tmp_path: Path) -> str:
    packed.make(path=str(tmp_path))
    return "read"


# Recordings, films, sentences, tables, graphs --------------------------------------


def recording() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes((9000 * np.sin(np.arange(400))).astype("<i2").tobytes())
    return buffer.getvalue()


def film(values=None) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 4, 4, 3), np.uint8) if values is None else values)
    return buffer.getvalue()


def put_all(root: Path, files: dict[str, bytes | None]) -> None:
    """Files by their paths; None is a pipe."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            os.mkfifo(root / name)
        else:
            (root / name).write_bytes(content)


def in_source(make: Callable[..., Any], files: dict[str, bytes | None], tmp_path: Path) -> str:
    put_all(tmp_path, files)
    make(path=str(tmp_path))
    return "read"


def films(path: str) -> None:
    video.make(path=path, frames=2, image_size=4)


def captions(path: str) -> None:
    image_text.make(path=path, image_size=8, vocab_size=30)


def of_file(make: Callable[..., Any], name: str) -> Callable[..., Any]:
    return lambda path: make(path=f"{path}/{name}")


_WAV, _FILM, _PNG = recording(), film(), encoded()
_TABLE = b"file,caption\na.png,one\nb.png,two\n"
for _given, _make, _files, _says in (
    (
        "a recording whose header is damaged",
        audio.make,
        {"a.wav": _WAV, "b.wav": _WAV, "bad.wav": _WAV[:16] + bytes(8) + _WAV[24:]},
        "bad.wav: ",
    ),
    (
        "a pipe named .wav, which would be read for ever",
        audio.make,
        {"a.wav": _WAV, "b.wav": _WAV, "bad.wav": None},
        "bad.wav: not a regular file",
    ),
    (
        "a film whose header is damaged",
        films,
        {"a.npy": _FILM, "b.npy": _FILM, "bad.npy": _FILM.replace(b"}", b" ", 1)},
        "bad.npy: is not an array that can be read",
    ),
    (
        "a film of objects, which would run code",
        films,
        {"a.npy": _FILM, "b.npy": _FILM, "bad.npy": objects()},
        "bad.npy: is not an array that can be read",
    ),
    (
        "a pipe among the pictures of a film",
        films,
        {"a.npy": _FILM, "b.npy": _FILM, "bad/1.png": None},
        "bad/1.png: not a regular file",
    ),
    (
        "tokens whose archive was cut",
        of_file(text.make, "t.npz"),
        {"t.npz": b"PK\3\4" + bytes(60)},
        "t.npz is not a whole .npz archive of numbers",
    ),
    (
        "a file that is not text",
        of_file(text.make, "t.txt"),
        {"t.txt": b"\0\1\2"},
        "t.txt has zero bytes: it is not a text file",
    ),
    (
        "a table with a quotation mark left open",
        captions,
        {"captions.csv": b'file,caption\na.png,"' + b"x" * 200_000},
        "captions.csv, line .: field larger than field limit .*Is a quotation mark left open",
    ),
    (
        "a caption that is null",
        captions,
        {"captions.jsonl": b'{"file": "a.png", "caption": null}', "a.png": _PNG},
        "empty file name or caption in line 1",
    ),
    (
        "a caption of a file outside the folder",
        captions,
        {"captions.csv": b"file,caption\n../a.png,one\n"},
        "../a.png leads out of the folder",
    ),
    (
        "a caption without its picture",
        captions,
        {"captions.csv": _TABLE, "a.png": _PNG},
        r"1 captions without their picture: b.png \(line 3\)",
    ),
    (
        "a graph number of 10^12, which would take 8 TB",
        graphs.make,
        {"T_A.txt": b"1, 2\n", "T_graph_indicator.txt": b"1\n1000000000000\n"},
        "line 2 has 1000000000000; expected 1 or more and at most 2",
    ),
    (
        "a home directory that is not known",
        lambda path: audio.make(path="~nobody-of-that-name/set"),
        {},
        "'~nobody-of-that-name/set' begins with a home directory that is not known here",
    ),
):
    case("Recordings, films, sentences, tables, graphs", _given, _says, _make, _files)(in_source)


# Settings --------------------------------------


def build(change: Callable[[ConfigDict], None], tmp_path: Path, module=simclr_v1) -> str:
    """The config's debug variant on one device and a set of 64 small images, with one change."""
    for part in ("train", "test"):
        np.savez(
            tmp_path / f"{part}.npz",
            image=np.zeros((64, 16, 16, 3), np.uint8),
            label=np.arange(64) % 3,
        )
    config = stages.stages(module.get_config("debug"), tmp_path)[0][1]
    config.devices, config.data = 1, ConfigDict(dict(name="packed", path=str(tmp_path)))
    change(config)
    experiment.build(config)
    return "built"


def setting(path: str, value) -> Callable[[ConfigDict], None]:
    *sections, name = path.split(".")

    def change(config: ConfigDict) -> None:
        for section in sections:
            config = config[section]
        config[name] = value

    return change


def no_path(config: ConfigDict) -> None:
    config.data = ConfigDict(dict(name="folder", path="", image_size=8))


for _given, _change, _says in (
    (
        "an unknown setting",
        setting("method.temprature", 0.1),
        "simclr_v1.make has no setting 'temprature'; did you mean 'temperature'",
    ),
    ("an unknown method", setting("method.name", "simclr_v3"), "did you mean 'simclr_v."),
    (
        "a method that is a path",
        setting("method.name", "../../home/me/evil"),
        "evil does not exist; have ",
    ),
    (
        "an unknown field of a view",
        setting("views.both.scales", 0.5),
        "has no field 'scales'; did you mean 'scale'",
    ),
    (
        "fewer examples than a batch",
        setting("batch_size", 128),
        "64 training examples, fewer than one batch of 128. Set --config.batch_size=32 or give "
        "more data",
    ),
    (
        "a batch that the devices do not divide",
        lambda config: config.update(dict(devices=3, batch_size=16)),
        "batch_size=16 is not divisible by 3 devices; try --config.batch_size=15",
    ),
    ("more devices than there are", setting("devices", 64), "devices=64 asked for, 8 found"),
    (
        "a folder that is not there",
        lambda config: config.update(
            dict(data=ConfigDict(dict(name="folder", path="/no/such", image_size=8)))
        ),
        "path='/no/such' is not a folder",
    ),
):
    case("Settings", _given, _says, _change)(build)


for _given, _change, _says in (
    (
        "a seed of 2**32, the run of 0 under another name",
        setting("seed", 2**32),
        "seed=4294967296; expected from 0 to 4294967295",
    ),
    ("a folder without a path", no_path, "path is empty; set --config.data.path"),
    (
        "a type that there is not",
        setting("encoder.dtype", "float23"),
        "encoder.dtype='float23'; expected one of float32, bfloat16, float16, float64",
    ),
    (
        "a range of one number",
        setting("views.both.scale", (0.2,)),
        r"views.both.scale=\(0.2,\); expected 2 values: a number, a number",
    ),
    (
        "more copies than memory holds",
        setting("views.both.copies", 10**10),
        "views.both.copies=10000000000; expected from 1 to 1000",
    ),
):
    case("Settings", _given, _says, _change)(build)


@case(
    "Settings",
    "a queue larger than the data set",
    "queue_size=65 is more than the 64 examples .*Use at most 64",
)
def queue(tmp_path: Path) -> str:
    return build(setting("method.queue_size", 65), tmp_path, moco_v2)


@case(
    "Settings",
    "an unknown variant",
    "variant 'cifar' of this config is unknown; have folder, table",
)
def variant(tmp_path: Path) -> str:
    simclr_v1.get_config("cifar")
    return "built"


@case(
    "Settings",
    "one channel where three are needed: a mean of three",
    "mean has 3 and std 3 values for images of 1 channels.*Set mean and std of the recipe to this "
    "data's",
)
def one_channel(tmp_path: Path) -> str:
    planes.normalise(np.zeros((1, 4, 4), np.float32), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    return "read"


@case(
    "Settings",
    "one channel where three are needed: a colour space",
    r"expected \[3, H, W\], RGB. Only colour images have these spaces",
)
def no_colours(tmp_path: Path) -> str:
    lab.convert(np.zeros((1, 4, 4), np.float32), "lab")
    return "read"


# What a run left --------------------------------------


@case("A run's folder", "a workdir of another config", "method.name: a in the workdir, b now")
def other_config(tmp_path: Path) -> str:
    resuming.check_config(tmp_path, {"method": {"name": "a"}})
    (tmp_path / "last" / "1").mkdir(parents=True)
    resuming.check_config(tmp_path, {"method": {"name": "b"}})
    return "accepted"


@case("A run's folder", "no run in it", "config.json is missing. Train first")
def no_run(tmp_path: Path) -> str:
    stages.load(tmp_path)
    return "loaded"


def saved(workdir: Path, width: int = 4) -> State:
    state = State(jnp.int32(7), {"w": jnp.arange(width, dtype=jnp.float32)}, {}, {})
    store = checkpoint.Checkpoints(workdir)
    store.save(state)
    store.close()
    return state


@case(
    "A run's folder",
    "a checkpoint of other sizes",
    "If the method or its sizes were changed, use a new --workdir",
)
def other_sizes(tmp_path: Path) -> str:
    saved(tmp_path)
    checkpoint.Checkpoints(tmp_path).restore(saved(tmp_path / "other", 5))
    return "restored"


@case(
    "A run's folder",
    "a checkpoint whose files are a pickle",
    "no checkpoint in WORKDIR fits this run",
)
def pickled_checkpoint(tmp_path: Path) -> str:
    state = saved(tmp_path)
    for path in (tmp_path / "last").rglob("*"):
        if path.is_file() and "METADATA" not in path.name:
            path.write_bytes(pickle.dumps(Harmful()))
    checkpoint.Checkpoints(tmp_path).restore(state)
    return "restored"


@case("A run's folder", "a log cut in its last line", "read without that line")
def cut_log(tmp_path: Path) -> str:
    metrics.Metrics(tmp_path, 10).close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo')
    metrics.Metrics(tmp_path, 10, start_step=4).close()
    assert metrics.read(tmp_path) == [{"step": 1, "loss": 2.0}]
    return "read without that line"


# The tests --------------------------------------


def outcome(of: Case, tmp_path: Path) -> tuple[str, str]:
    """(what the input got, in which words): the part of the real message that `says` matches."""
    try:
        text = of.run(tmp_path)
    except (ValueError, OSError) as error:
        found = re.search(of.says, str(error).replace(str(tmp_path), "WORKDIR"))
        assert found, f"{of.given}: {error!r} does not match {of.says!r}"
        words = " ".join(found.group().split())
        return "refused", words + " and the decoder's own words" * words.endswith(":")
    assert text == of.says, f"{of.given}: {text}, expected {of.says}"
    return "accepted", text


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # before our own error
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # of the checkpoint store's cancelled reads
@pytest.mark.parametrize("of", CASES, ids=[of.given for of in CASES])
def test_each_gets_what_the_page_says(of, tmp_path):
    gets, words = outcome(of, tmp_path)
    assert line(of, gets, words) in PAGE.read_text().splitlines(), (
        "python -m tests.data.test_hostile writes the page again"
    )


def test_the_page_has_these_lines_alone():
    rows = [
        line
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| input")
    ]
    assert len(rows) == len(CASES)
    for page in (PAGE, PAGE.with_name("reliability.md")):
        assert summary(rows) in " ".join(page.read_text().split()), page


def test_no_pickle_on_the_way(tmp_path, monkeypatch):
    """What is read of data, configs, logs and checkpoints works in a Python whose pickle only
    raises."""

    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    (tmp_path / "train.npz").write_bytes(archive_of())
    (tmp_path / "test.npz").write_bytes(archive_of())
    for _ in range(2):  # the second reads the images that the first kept
        packed.make(path=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text("{}")
    resuming.check_config(tmp_path, {})
    state = saved(tmp_path)
    restored = checkpoint.Checkpoints(tmp_path).restore(jax.tree.map(jnp.zeros_like, state))
    np.testing.assert_array_equal(restored.params["w"], state.params["w"])
    cut_log(tmp_path)
    with pytest.raises(pickle.UnpicklingError):  # the guard works
        np.load(io.BytesIO(pickle.dumps(3)), allow_pickle=True)


def line(of: Case, gets: str, words: str) -> str:
    return f"| {of.given} | {gets} | {words.replace('|', '/')} |"


def page() -> str:
    parts = [
        "# Input that is not as expected",
        "",
        SUMMARY,
        "",
        *textwrap.wrap(
            "Each with words of the message that names it. `python -m tests.data.test_hostile` "
            "writes this page, and `pytest tests/data/test_hostile.py` holds it to what happens.",
            100,
        ),
        "",
        *textwrap.wrap(
            'Images are refused under `on_error="raise"`; under `on_error="skip"` the same ones '
            "are left out, logged by name and counted, and the others are read. Both are tested.",
            100,
        ),
    ]
    for group, cases in itertools.groupby(CASES, lambda of: of.group):
        parts += ["", f"## {group}", "", "| input | gets | in its words |", "|---|---|---|"]
        for of in cases:
            with tempfile.TemporaryDirectory() as scratch:
                parts.append(line(of, *outcome(of, Path(scratch))))
    return "\n".join(parts).replace(SUMMARY, textwrap.fill(summary(parts), 100)) + "\n"


SUMMARY = "(how many)"


def summary(lines: list[str]) -> str:
    refused = sum("| refused |" in line for line in lines)
    return (
        f"{len(CASES)} inputs were tried: {refused} are refused with a message that names them, "
        f"{len(CASES) - refused} are read for what they are or skipped."
    )


if __name__ == "__main__":
    parallel.offer_devices(8)  # as in the tests
    PAGE.write_text(page())
