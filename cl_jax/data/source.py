"""A data set as random access to examples. Everything that reads examples reads them through
`Source`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Example = dict[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """Random access to `size` examples.

    `read(i)` gives example `i` as arrays: "image" uint8 [H, W, C], every label an int32 scalar
    ("label" is the main one). `classes` says how many classes each label field has. `arrays` is the
    whole set where it is in memory, one array of `size` rows per field; then `read(i)` is row `i`
    of each. `labels(field)` gives one label of all examples without decoding their images, where
    the format allows that. `skipped` counts the examples that could not be read and were left out.
    """

    name: str
    size: int
    read: Callable[[int], Example]
    classes: Mapping[str, int]
    arrays: Mapping[str, np.ndarray] | None = None
    labels: Callable[[str], np.ndarray] | None = None
    skipped: int = 0


class Splits(NamedTuple):
    """The parts of a data set. `unlabeled` is there where a set has one (STL-10, a folder of that
    name)."""

    train: Source
    test: Source
    unlabeled: Source | None = None


def from_arrays(name: str, arrays: Mapping[str, np.ndarray], classes: Mapping[str, int]) -> Source:
    """A source over arrays in memory: "image" uint8 [N, H, W, C], the other fields [N, ...].

    Raises:
      ValueError: fields of different length, images of another type or rank, labels outside their
        classes.
    """
    if "image" not in arrays:
        raise ValueError(
            f'{name} has the fields {", ".join(arrays) or "none"}; expected "image" among them.'
        )
    image = arrays["image"]
    if image.ndim != 4 or image.dtype != np.uint8:
        raise ValueError(
            f"{name}: image is {image.dtype}{list(image.shape)}; expected uint8 [N, H, W, C]. "
            "Grey images need a channel axis: image[..., None]."
        )
    for field, values in arrays.items():
        if len(values) != len(image):
            raise ValueError(f"{name}: {field} has {len(values)} rows, image has {len(image)}.")
    for field, count in classes.items():
        _check_labels(name, field, arrays[field], count)

    def read(i: int) -> Example:
        return {field: values[i] for field, values in arrays.items()}

    return Source(name, len(image), read, dict(classes), dict(arrays))


def _check_labels(name: str, field: str, labels: np.ndarray, count: int) -> None:
    if labels.dtype != np.int32 or labels.ndim != 1:
        raise ValueError(
            f"{name}: {field} is {labels.dtype}{list(labels.shape)}; expected int32 [N]."
        )
    if len(labels) and not (0 <= labels.min() and labels.max() < count):
        raise ValueError(
            f"{name}: {field} goes from {labels.min()} to {labels.max()}; expected 0 to "
            f"{count - 1}."
        )


def with_channels(image: np.ndarray, channels: int | None, name: str) -> np.ndarray:
    """Images [..., H, W, C] with `channels` channels: grey is repeated to 3, None leaves them as
    they are.

    Raises:
      ValueError: any other change of channels.
    """
    given = image.shape[-1]
    if channels is None or channels == given:
        return image
    if given == 1:
        return np.repeat(image, channels, axis=-1)
    raise ValueError(
        f"{name} has images of {given} channels and channels={channels} was asked for. Only one "
        f"channel "
        f"can be repeated; leave channels unset to keep the {given}."
    )


def labels_of(source: Source, label: str = "label") -> np.ndarray:
    """One label of every example [N], in the cheapest way the source has.

    Raises:
      ValueError: no label of that name.
    """
    if label not in source.classes:
        known = ", ".join(sorted(source.classes)) or "none"
        raise ValueError(f"{source.name} has no label {label!r}; its labels: {known}.")
    if source.arrays is not None:
        return np.asarray(source.arrays[label])
    if source.labels is not None:
        return np.asarray(source.labels(label))
    return np.array([source.read(i)[label] for i in range(source.size)], np.int32)


def subset(source: Source, ids: Sequence[int] | np.ndarray) -> Source:
    """The examples `ids` of a source, in that order. They are numbered anew from 0."""
    chosen = np.asarray(ids, np.int64)
    if chosen.ndim != 1 or (chosen.size and not (0 <= chosen.min() and chosen.max() < source.size)):
        raise ValueError(
            f"ids has shape {chosen.shape} and values {chosen.ravel()[:3]}...; expected one axis "
            f"of "
            f"example numbers from 0 to {source.size - 1}, what {source.name} has."
        )
    name = f"{source.name}[{len(chosen)}]"
    if source.arrays is not None:
        arrays = {field: array[chosen] for field, array in source.arrays.items()}
        return dataclasses.replace(
            from_arrays(name, arrays, source.classes), skipped=source.skipped
        )
    labels = source.labels
    return Source(
        name,
        len(chosen),
        lambda i: source.read(int(chosen[i])),
        source.classes,
        labels=None if labels is None else lambda field: labels(field)[chosen],
        skipped=source.skipped,
    )


def fraction(source: Source, share: float, *, seed: int, label: str = "label") -> Source:
    """`share` of the examples of each class, at least one of each; the source itself for a share of
    1.

    The choice depends on the seed and the labels alone, and a smaller share is contained in a
    larger one. Examples without a label (a negative one) are left out.
    """
    if not 0 < share <= 1:
        raise ValueError(
            f"share is {share}; expected above 0 and at most 1, for instance 0.1 for 10 % of the "
            f"labels."
        )
    if share == 1:
        return source
    labels = labels_of(source, label)
    shuffled = np.argsort(
        np.random.Philox(key=[seed, 2**63]).random_raw(len(labels)), kind="stable"
    )
    chosen: list[np.ndarray] = []
    for value in np.unique(labels[labels >= 0]):
        of_class = shuffled[labels[shuffled] == value]
        chosen.append(of_class[: max(1, round(share * len(of_class)))])
    if not chosen:
        raise ValueError(
            f"{source.name} has no example with a {label!r}; expected some to take {share:.0%} of."
        )
    return dataclasses.replace(
        subset(source, np.sort(np.concatenate(chosen))), name=f"{source.name}@{share:g}"
    )
