"""`tfds`: any image data set of TensorFlow Datasets, by random access and without TensorFlow."""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from cl_jax.data import images
from cl_jax.data.batches import cores
from cl_jax.data.parts import warn_of_duplicates
from cl_jax.data.source import Source, Splits, allocate, from_arrays

_CHUNK = 256  # records read at once: one by one takes eight times as long


class Records(NamedTuple):
    """A split of a data set, and how its records become examples."""

    name: str
    reader: Any
    image_key: str
    label_key: str
    num_classes: int
    image_size: int | None
    channels: int
    scale: images.Scale | None

    def example(self, i: int, record: Any) -> dict[str, Any]:
        """Record i as an example: "image", and "label" where there is one."""
        image = images.decode_bytes(
            record[self.image_key],
            f"example {i} of {self.name}",
            image_size=self.image_size,
            channels=self.channels,
            scale=self.scale,
        )
        return {"image": image, **({"label": self.label(i, record)} if self.label_key else {})}

    def label(self, i: int, record: Any) -> np.int32:
        """-1, what TFDS gives to an example without a class, is not a label here too."""
        value = int(record[self.label_key])
        if not -1 <= value < self.num_classes:
            raise ValueError(
                f"example {i} of {self.name}: {self.label_key} is {value}; expected 0 to "
                f"{self.num_classes - 1}, or -1 for an example without a label."
            )
        return np.int32(value)

    def sizes(self) -> dict[str, int]:
        """`Source.sizes`."""
        return {"label": self.num_classes} if self.label_key else {}


def make(
    *,
    dataset: str,
    data_dir: str | None = None,
    train_split: str = "train",
    test_split: str = "test",
    unlabeled_split: str = "",
    image_key: str = "image",
    label_key: str = "label",
    image_size: int | None = None,
    channels: int | None = None,
    download: bool = True,
    cache_bytes: int = 2**32,
    value_range: tuple[float, float] | None = None,
    workers: int = 0,
) -> Splits:
    """The splits of a data set, downloaded and prepared at first where that needs no TensorFlow.

    Args:
      dataset: its name there, with config and version where wanted: "name", "name/config:1.0.0".
      data_dir: where prepared data sets are kept; by default TFDS's own folder.
      train_split: any split that TFDS understands, such as "train[:90%]".
      test_split: likewise.
      unlabeled_split: a third, whose labels mean nothing; "" for none.
      image_key: the feature that is the image.
      label_key: the feature that is the class; "" for none.
      image_size: side of the stored square (short side resized, centre cropped); needed where sizes
        are mixed.
      channels: 3 repeats grey images, 1 takes the luma of colour images; None keeps what the set
        has, four with transparency too.
      download: prepare a data set that is missing.
      cache_bytes: splits of together at most this size are decoded once and kept in memory.
      value_range: (low, high), the numbers that become 0 and 255 in images of 16 bits; None for 0
        and 65535.
      workers: threads that decode them; 0 for one a core.

    Raises:
      ValueError: a data set that is not prepared and cannot be, unknown splits or features, mixed
        sizes without `image_size`, images of other channels than asked for.
    """
    import tensorflow_datasets as tfds

    builder = _prepared(tfds, dataset, data_dir, download)
    features = builder.info.features
    shape, num_classes = _features(dataset, features, image_key, label_key, image_size)
    channels = shape[-1] if channels is None else channels
    splits = {"train": train_split, "test": test_split} | (
        {"unlabeled": unlabeled_split} if unlabeled_split else {}
    )
    readers = {}
    for part, split in splits.items():
        # the image stays encoded: it is decoded here, with the size, channels and errors of every
        # other source
        try:
            readers[part] = builder.as_data_source(
                split, decoders={image_key: tfds.decode.SkipDecoding()}
            )
        except NotImplementedError as error:
            again = _command(dataset, "<another folder>")
            raise ValueError(
                f"{dataset} is prepared in {builder.data_dir}, but in a format without random "
                f"access. "
                f"Prepare it once more, elsewhere: {again}"
            ) from error
        except (ValueError, KeyError) as error:
            known = ", ".join(builder.info.splits)
            raise ValueError(
                f"{dataset} has no split {split!r} ({error}); it has {known}. Set {part}_split."
            ) from error
        if not len(readers[part]):
            raise ValueError(f"split {split!r} of {dataset} is empty. Set {part}_split.")

    height, width = (image_size, image_size) if image_size is not None else shape[:2]
    keep = sum(map(len, readers.values())) * height * width * channels <= cache_bytes
    scale = None if value_range is None else images.Scale(value_range[0], value_range[1], True)
    sources = {}
    for part, split in splits.items():
        records = Records(
            f"{dataset}/{split}",
            readers[part],
            image_key,
            label_key if part != "unlabeled" else "",
            num_classes,
            image_size,
            channels,
            scale,
        )
        if keep:
            sources[part] = _in_memory(records, (height, width, channels), workers or cores())
        else:
            sources[part] = _lazy(records)
        if records.label_key:
            classes = {"label": tuple(features[label_key].names)}
            sources[part] = dataclasses.replace(sources[part], classes=classes)
    warn_of_duplicates(sources["train"], sources["test"])
    return Splits(sources.pop("train"), sources.pop("test"), sources)


def _command(dataset: str, data_dir: str | None) -> str:
    where = f" --data_dir={data_dir}" if data_dir else ""
    return (
        "pip install tensorflow tensorflow-datasets array_record && "
        f"tfds build {dataset} --file_format=array_record{where}"
    )


def _prepared(tfds: Any, dataset: str, data_dir: str | None, download: bool) -> Any:
    try:
        # An older prepared copy may exist in one format only, which the builder finds by itself.
        builder = tfds.builder(dataset, data_dir=data_dir)
        if not builder.is_prepared():
            builder = tfds.builder(dataset, data_dir=data_dir, file_format="array_record")
    except Exception as error:
        if isinstance(error, tfds.core.registered.DatasetNotFoundError):
            raise ValueError(
                f"dataset={dataset!r} is unknown to TensorFlow Datasets: "
                f"{str(error).splitlines()[0]} The names are at "
                "https://www.tensorflow.org/datasets/catalog."
            ) from error
        raise ValueError(
            f"dataset={dataset!r} cannot be opened ({type(error).__name__}: {error}). "
            f"{_advice(dataset, data_dir)}"
        ) from error
    if builder.is_prepared():
        return builder
    if not download:
        raise ValueError(
            f"{dataset} is not prepared in {builder.data_dir}. Set download=True. "
            f"{_advice(dataset, data_dir)}"
        )
    logging.info(
        "%s is not prepared in %s: downloading and preparing it.", dataset, builder.data_dir
    )
    try:
        builder.download_and_prepare()
    # no network, TensorFlow needed, Apache Beam needed, files to be downloaded by hand, ...
    except Exception as error:
        raise ValueError(
            f"{dataset} is not prepared in {builder.data_dir}, and preparing it failed here "
            f"({type(error).__name__}: {error}). {_advice(dataset, data_dir)}"
        ) from error
    return builder


def _advice(dataset: str, data_dir: str | None) -> str:
    return (
        "Prepare it once where TensorFlow and a network are, and copy the folder or set data_dir "
        "to it; training "
        f"needs neither: {_command(dataset, data_dir)}"
    )


def _features(
    dataset: str, features: Any, image_key: str, label_key: str, image_size: int | None
) -> tuple[tuple[int, ...], int]:
    """(shape of the images, number of classes), having refused what is not an image or not a
    class."""
    known = ", ".join(
        f"{key} ({type(feature).__name__})" for key, feature in sorted(features.items())
    )
    if image_key not in features or type(features[image_key]).__name__ != "Image":
        raise ValueError(
            f"{dataset} has no image feature {image_key!r}; it has {known}. Set image_key."
        )
    image = features[image_key]
    if np.dtype(image.np_dtype) not in (np.uint8, np.uint16):
        raise ValueError(f"{dataset} has {image.np_dtype} images; expected uint8 or uint16.")
    if image_size is None and None in image.shape[:2]:
        raise ValueError(
            f"{dataset} has images of mixed sizes; set image_size, the side of the stored square "
            f"in "
            "pixels."
        )
    if not label_key:
        return image.shape, 0
    if label_key not in features or not getattr(features[label_key], "num_classes", None):
        raise ValueError(
            f'{dataset} has no class feature {label_key!r}; it has {known}. Set label_key, "" for '
            f"none."
        )
    return image.shape, features[label_key].num_classes


def _lazy(records: Records) -> Source:
    reader = records.reader

    @functools.cache  # of a large set it is a pass over all records
    def labels(field: str) -> np.ndarray:
        found = [
            records.label(i, record)
            for first in range(0, len(reader), _CHUNK)
            for i, record in enumerate(_records(reader, first), first)
        ]
        return {"label": np.array(found, np.int32)}[field]

    return Source(
        records.name,
        len(reader),
        lambda i: records.example(i, reader[i]),
        records.sizes(),
        labels=labels if records.label_key else None,
    )


def _in_memory(records: Records, shape: tuple[int, int, int], workers: int) -> Source:
    reader = records.reader
    arrays: dict[str, np.ndarray] = {"image": allocate((len(reader), *shape), np.uint8)}
    if records.label_key:
        arrays["label"] = np.empty(len(reader), np.int32)

    def fill(first: int) -> None:
        for i, record in enumerate(_records(reader, first), first):
            for field, value in records.example(i, record).items():
                arrays[field][i] = value

    images.map_threads(fill, range(0, len(reader), _CHUNK), workers)
    return from_arrays(records.name, arrays, records.sizes())


def _records(reader: Any, first: int) -> Any:
    return reader.__getitems__(list(range(first, min(first + _CHUNK, len(reader)))))
