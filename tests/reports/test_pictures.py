import base64
import io

import numpy as np
from PIL import Image

from cl_jax.reports import pictures


def test_each_kind_of_example_has_a_picture_but_a_sentence():
    image = np.zeros((8, 4, 3), np.uint8)
    sides = np.asarray(pictures.picture({"image": image}, 48))
    assert (sides[:, :12] == 255).all() and (sides[:, 12:36] == 0).all()
    for channels in (1, 2, 5):
        assert pictures.shown(np.full((4, 4, channels), 7, np.uint8)).shape == (4, 4, 3)
    clip = {"clip": np.stack([image, image + 200])}
    assert np.asarray(pictures.picture(clip, 48))[24, 24].tolist() == [0, 0, 0]
    time = np.arange(8000) / 8000
    sound = {"audio": (9000 * np.sin(2 * np.pi * 2000 * time)).astype(np.int16), "length": 8000}
    spectrum = np.asarray(pictures.picture(sound, 48))[..., 0]
    dark = spectrum.min(1).argmin()  # 2 kHz of 4 kHz: the middle
    assert abs(int(dark) - 24) <= 2
    assert pictures.picture({"audio": np.zeros(10, np.int16), "length": 0}).size == (48, 48)
    graph = {
        "node": np.array([1, 1, 2, 0], np.uint8),
        "edge": np.array([[0, 1], [1, 2], [-1, -1]], np.int16),
    }
    drawn = np.asarray(pictures.picture(graph, 48))
    assert 0.02 < (drawn != 255).any(-1).mean() < 0.5
    assert pictures.picture({"tokens": np.arange(4)}) is None


def test_an_atlas_has_picture_i_at_its_place():
    several = [Image.new("RGB", (8, 8), (i % 256, 0, 0)) for i in range(pictures.COLUMNS**2 + 3)]
    first, second = pictures.atlases(several, 8)
    sheets = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))
        for url in (first, second)
    ]
    assert sheets[0].shape == (320, 320, 3) and sheets[1].shape == (8, 320, 3)
    row, column = divmod(130, pictures.COLUMNS)
    assert abs(int(sheets[0][row * 8 + 4, column * 8 + 4, 0]) - 130) < 6
