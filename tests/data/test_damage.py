"""Files of a user damaged at random: every reader reads them or names them in one ValueError."""

import collections
import gzip
import json
import random
import wave

import numpy as np
import pytest
from PIL import Image

from cl_jax.data import audio, embeddings, graphs, images, lines, packed, text, video

PICTURES = {
    ".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF", ".gif": "GIF", ".webp": "WEBP", ".bmp": "BMP",
    ".avif": "AVIF", ".jp2": "JPEG2000", ".ppm": "PPM", ".tga": "TGA", ".pcx": "PCX",
    ".sgi": "SGI", ".dds": "DDS", ".qoi": "QOI",
}  # fmt: skip
DAMAGED = 30
RNG = np.random.default_rng(0)


def picture(file):
    pixels = RNG.integers(0, 256, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(file, PICTURES[file.suffix])


def deep(file):
    Image.fromarray(RNG.integers(0, 4096, (24, 32)).astype(np.uint16)).save(file)


def planes(file):
    np.save(file, RNG.integers(0, 256, (24, 32, 5), np.uint8))


def frames(file):
    np.save(file, RNG.integers(0, 256, (4, 8, 8, 3), np.uint8))


def archive(file, save=np.savez):
    save(file, image=RNG.integers(0, 256, (6, 4, 4, 3), np.uint8), label=np.arange(6))


def small_archive(file):
    archive(file, np.savez_compressed)


def recording(file):
    with wave.open(str(file), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(RNG.integers(-3000, 3000, 200).astype("<i2").tobytes())


def tokens(file):
    np.savez(file, tokens=RNG.integers(1, 90, (40, 8), np.uint16))


def sentences(file):
    rows = "\n".join(f"a sentence of number {i}" for i in range(40))
    file.write_bytes(gzip.compress(rows.encode()))


def objects(file):
    file.write_text("\n".join(json.dumps(dict(file="a", caption="b", n=i)) for i in range(9)))


def table(file):
    file.write_text("file,caption\n" + "\n".join(f'"x{i}",y' for i in range(9)))


def vectors(file):
    rows = RNG.normal(size=(20, 4)).astype(np.float32)
    names = np.array([f"{i}.png" for i in range(20)])
    classes = {"label": ("a", "b", "c")}
    found = embeddings.Embeddings({"h": rows}, names, {"label": np.arange(20) % 3}, classes, {})
    embeddings.write(file, [found], {"classes": classes})


def edges(file):
    file.write_text("\n".join(f"g{i // 4} n{i} n{i + 1}" for i in range(40)))


def image(channels):
    return lambda file: images.decode(file, file.name, image_size=8, channels=channels)


def both(file):
    return packed.load_field(file, "image"), packed.load_field(file, "label")


READERS = {
    **{f"a{suffix}": (picture, image(3)) for suffix in PICTURES},
    "deep.tif": (deep, image(1)),
    "planes.npy": (planes, image(5)),
    "archive.npz": (archive, both),
    "small.npz": (small_archive, both),
    "a.wav": (recording, lambda file: audio._stored(file, 8000, 0.0)),
    "film.npy": (frames, lambda file: video._clips(file, file.name, 2, 1, "pieces", 4, 3)),
    "tokens.npz": (tokens, lambda file: text.make(path=str(file), vocab_size=100)),
    "a.txt.gz": (sentences, lines.read),
    "a.jsonl": (objects, lines.table),
    "a.csv": (table, lines.table),
    "h.npz": (vectors, embeddings.load),
    "h.parquet": (vectors, embeddings.load),
    "h.csv": (vectors, embeddings.load),
    "edges.txt": (edges, lambda file: graphs.make(path=str(file))),
}


def damaged(content: bytes, chance: random.Random) -> bytes:
    data, at = bytearray(content), chance.randrange(len(content))
    how = chance.choice(("flip", "flip many", "cut", "zeros", "ones", "insert"))
    if how.startswith("flip"):
        near = min(len(data), 200)  # headers have more to break
        for _ in range(1 if how == "flip" else 20):
            size = near if chance.random() < 0.5 else len(data)
            data[chance.randrange(size)] ^= 1 << chance.randrange(8)
    elif how == "cut":
        del data[at:]
    elif how == "insert":
        data[at:at] = chance.randbytes(5)
    else:
        data[at : at + 8] = (b"\0" if how == "zeros" else b"\xff") * len(data[at : at + 8])
    return bytes(data)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the decoders
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_is_one_value_error(name, tmp_path):
    write, read = READERS[name]
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    file, chance, counts = tmp_path / name, random.Random(name), collections.Counter()
    try:
        write(file)
    except (KeyError, OSError) as error:  # Pillow without that format
        pytest.skip(f"{name} cannot be written here: {error}")
    read(file)
    content = file.read_bytes()
    for _ in range(DAMAGED):
        file.write_bytes(damaged(content, chance))
        try:
            read(file)
            counts["read"] += 1
        except ValueError:
            counts["refused"] += 1
    print(f"{name}: {dict(counts)}")
    assert counts["refused"] or name.endswith((".wav", ".bmp", ".sgi"))
