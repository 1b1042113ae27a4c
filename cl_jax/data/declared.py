"""A data set of which only sizes are known: what a plan is made from where the data are not."""

import numpy as np

from cl_jax.data.source import Example, Source, Splits, from_arrays

# What TensorFlow Datasets holds: training examples, test examples, side of the images (None:
# mixed), classes.
KNOWN = {
    "cifar10": (50_000, 10_000, 32, 10),
    "cifar100": (50_000, 10_000, 32, 100),
    "mnist": (60_000, 10_000, 28, 10),
    "svhn_cropped": (73_257, 26_032, 32, 10),
    "stl10": (5_000, 8_000, 96, 10),
    "imagenette": (9_469, 3_925, None, 10),
    "imagenet2012": (1_281_167, 50_000, None, 1000),
}


def make(
    *,
    train_size: int,
    image_size: int,
    test_size: int = 1,
    channels: int = 3,
    num_classes: int = 10,
    cache_bytes: int = 2**32,
) -> Splits:
    """Black images of class 0 that take no memory.

    Args:
      train_size, test_size: examples.
      image_size: side of the stored squares.
      cache_bytes: as in the other sources: sets up to this size count as in memory, so that they
        would lie on the device.
    """
    shape = (image_size, image_size, channels)

    def part(name: str, size: int) -> Source:
        arrays: dict[str, np.ndarray] = {
            "image": np.broadcast_to(np.uint8(0), (size, *shape)),
            "label": np.broadcast_to(np.int32(0), (size,)),
        }
        source = from_arrays(f"declared/{name}", arrays, {"label": num_classes})
        if arrays["image"].nbytes <= cache_bytes:
            return source

        def read(i: int) -> Example:
            return source.read(i)

        return Source(
            source.name,
            size,
            read,
            source.sizes,
            labels=lambda field: np.broadcast_to(np.int32(0), (size,)),
        )

    return Splits(part("train", train_size), part("test", test_size))
