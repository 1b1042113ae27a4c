"""Folders of small images."""

import numpy as np
from PIL import Image

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


def tree(root, *parts, classes=("cat", "dog"), count=3):
    """`count` images of each class in each part; colours differ between parts and classes."""
    for p, part in enumerate(parts):
        for c, name in enumerate(classes):
            for i in range(count):
                put(root / part / name / f"{i}.png", colour=(40 * c, 20 * p, i))
    return root
