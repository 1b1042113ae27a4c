"""A data set as random access to examples. Everything that reads examples reads them through
`Source`."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np

from cl_jax.core.annotations import marked
from cl_jax.core.seeds import check_seed

Example = dict[str, np.ndarray]
_Setting = TypeVar("_Setting")
_EVALUATION = "read by evaluators alone"
_ALIGNMENT = 64  # bytes
# What to do where `Source.learnt` of a run lacks something: the run is of a version that did not
# keep it.
TO_KEEP = (
    "Give the command that trained the run once more, where its training data are as they were: it "
    "keeps them in the workdir."
)
# The annotation of a source's setting that changes nothing but what evaluators read of
# `Splits.more`: an evaluation of a trained network, and a resume, may be given another value.
#     def make(*, sts: ForEvaluation[str] = ""): ...
ForEvaluation = Annotated[_Setting, _EVALUATION]


class Text(NamedTuple):
    """What evaluators of generated sentences read of a source.

    decode: token numbers [N, T] -> N sentences. references: of each example, sentences that are
    right. concepts: of each example, words that its sentence should have.
    """

    decode: Callable[[np.ndarray], list[str]]
    references: Sequence[Sequence[str]]
    concepts: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Source:
    """Random access to `size` examples, all with the same fields of fixed shapes.

    `read(i)` gives example `i`. A field is what one example has: "image" uint8 [H, W, C], "tokens"
    uint16 [T], "audio" int16 [S], "clip" uint8 [T, H, W, C], "node" uint8 [N] with "edge" int16
    [E, 2], "world" int32 []. What varies in length is padded. The padding is a reserved value that
    the source documents (0 in "tokens" and "node", -1 in "edge"), or a field of its own says how
    much is real ("length" of "audio"). Types are the smallest that hold the values: a set that fits
    lies on the device as it is, and views convert. "<field>_b" is a second picture, sentence, ...
    of the same thing.

    `sizes`: of integer fields, how many values there are: classes of a label, vocabulary of
    "tokens", tags of "node". Values are checked against it on the host, because XLA clamps an index
    beyond a table in silence. A label, one number for each example, may also be -1: no label.
    `arrays`: the whole set where it is in memory, one array of `size` rows for each field; then
    `read(i)` is row `i` of each. `labels(field)`: one label of all examples without decoding their
    images, where the format allows that. `skipped`: examples that could not be read and were left
    out. `names`: what each example is called, for people: the path of its file inside the folder, a
    sentence itself; None where it has none. `classes`: of labels, the names of their values.
    `text`: see `Text`; None where nothing is to be generated.

    `learnt`: of a training part, what the numbers in the fields mean, where that was learnt from
    it: a tokenizer, means and deviations. Plain values, as JSON holds them. `make(learnt=...)` of
    the same source takes it back and learns nothing: what is at `path` is then read by it, as other
    data for a network of that run, and train and test are one source with all of it. None: nothing
    is learnt.
    """

    name: str
    size: int
    read: Callable[[int], Example]
    sizes: Mapping[str, int]
    arrays: Mapping[str, np.ndarray] | None = None
    labels: Callable[[str], np.ndarray] | None = None
    skipped: int = 0
    names: Sequence[str] | None = None
    classes: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    text: Text | None = None
    learnt: Mapping[str, Any] | None = None


class Splits(NamedTuple):
    """The parts of a data set. `more`: further sources that evaluators and methods read by name:
    "unlabeled" (STL-10, a folder of that name), "sts", "prompts", "gallery"."""

    train: Source
    test: Source
    more: Mapping[str, Source] = MappingProxyType({})

    @property
    def learnt(self) -> Mapping[str, Any] | None:
        """That of the training part, see `Source`."""
        return self.train.learnt


def with_learnt(splits: Splits, learnt: Mapping[str, Any] | None) -> Splits:
    """The splits with what was learnt from their training part."""
    train = dataclasses.replace(splits.train, learnt=learnt)
    test = train if splits.test is splits.train else splits.test
    return splits._replace(train=train, test=test)


def for_evaluation(make: Callable[..., Splits]) -> list[str]:
    """The keywords of a source's `make` that it annotates as `ForEvaluation`."""
    return marked(make, _EVALUATION)


def allocate(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array of any values that begins at a multiple of 64 bytes, where NumPy's own begin at 16:
    a CPU device takes such an array as it is, and copies others."""
    kind = np.dtype(dtype)
    count = math.prod(shape) * kind.itemsize
    room = np.empty(count + _ALIGNMENT, np.uint8)
    first = -room.ctypes.data % _ALIGNMENT
    return room[first : first + count].view(kind).reshape(shape)


def from_arrays(name: str, arrays: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> Source:
    """A source over arrays in memory: {field: [N, ...]}; "image..." uint8 [N, H, W, C].

    Raises:
      ValueError: no field, fields of different length, images of another type or rank, integers
        outside their `sizes`.
    """
    if not arrays:
        raise ValueError(f"{name} has no field; expected at least one array, for instance image.")
    first = next(iter(arrays))
    for field, values in arrays.items():
        if field.split("_")[0] == "image" and (values.ndim != 4 or values.dtype != np.uint8):
            raise ValueError(
                f"{name}: {field} is {values.dtype}{list(values.shape)}; expected uint8 "
                "[N, H, W, C]. Grey images need a channel axis: image[..., None]."
            )
        if len(values) != len(arrays[first]):
            raise ValueError(
                f"{name}: {field} has {len(values)} rows, {first} has {len(arrays[first])}."
            )
    for field, count in sizes.items():
        if field not in arrays:
            raise ValueError(
                f"{name} says how many values {field!r} has and has no such field; it has "
                f"{', '.join(arrays)}."
            )
        check_values(name, field, arrays[field], count)

    def read(i: int) -> Example:
        return {field: values[i] for field, values in arrays.items()}

    return Source(name, len(arrays[first]), read, dict(sizes), dict(arrays))


def check_values(name: str, field: str, values: np.ndarray, count: int) -> None:
    """Checks that an integer field holds 0 to `count` - 1; a label [N] may also be -1, no label.

    Raises:
      ValueError: another type, or values outside that range.
    """
    label = values.ndim == 1
    if values.dtype.kind not in "iu" or (label and values.dtype != np.int32):
        raise ValueError(
            f"{name}: {field} is {values.dtype}{list(values.shape)}; expected "
            f"{'int32 [N]' if label else 'integers'}."
        )
    least = -1 if label else 0
    if values.size and not (least <= values.min() and values.max() < count):
        raise ValueError(
            f"{name}: {field} goes from {values.min()} to {values.max()}; expected 0 to "
            f"{count - 1}" + (", or -1 for an example without a label." if label else ".")
        )


def renamed(source: Source, names: Mapping[str, str]) -> Source:
    """The source with fields under other names, {old: new}; other fields keep theirs. So an encoder
    of "tokens" reads "tokens_b".

    Raises:
      ValueError: two fields would have one name.
    """

    def new(tree: Mapping[str, Any]) -> dict[str, Any]:
        changed = {names.get(field, field): values for field, values in tree.items()}
        if len(changed) != len(tree):
            raise ValueError(
                f"{source.name}: renaming {dict(names)} gives two fields of {sorted(tree)} one "
                "name. Rename the other field too."
            )
        return changed

    old = {value: key for key, value in names.items()}
    labels = source.labels
    return dataclasses.replace(
        source,
        read=lambda i: new(source.read(i)),
        sizes=new(source.sizes),
        arrays=None if source.arrays is None else new(source.arrays),
        labels=None if labels is None else lambda field: labels(old.get(field, field)),
        classes=new(source.classes),
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
    if label not in source.sizes:
        known = ", ".join(sorted(source.sizes)) or "none"
        raise ValueError(f"{source.name} has no label {label!r}; its labels: {known}.")
    if source.arrays is not None:
        return np.asarray(source.arrays[label])
    if source.labels is not None:
        return np.asarray(source.labels(label))
    return np.array([source.read(i)[label] for i in range(source.size)], np.int32)


def subset(source: Source, ids: Sequence[int] | np.ndarray) -> Source:
    """The examples `ids` of a source, in that order. They are renumbered from 0.

    Raises:
      ValueError: ids of another rank or type, such as a mask, or out of range.
    """
    given = np.asarray(ids)
    if given.size and given.dtype.kind not in "iu":
        raise ValueError(
            f"ids is {given.dtype}{list(given.shape)}; expected numbers of examples, such as "
            "numpy.flatnonzero(mask)."
        )
    chosen = given.astype(np.int64)
    if chosen.ndim != 1 or (chosen.size and not (0 <= chosen.min() and chosen.max() < source.size)):
        raise ValueError(
            f"ids has shape {chosen.shape} and values {chosen.ravel()[:3]}...; expected one axis "
            f"of "
            f"example numbers from 0 to {source.size - 1}, what {source.name} has."
        )
    name = f"{source.name}[{len(chosen)}]"
    called = None if source.names is None else [source.names[i] for i in chosen]
    text = source.text
    if text is not None:
        references, concepts = ([of[i] for i in chosen] for of in text[1:])
        text = text._replace(references=references, concepts=concepts)
    if source.arrays is not None:
        in_a_row = len(chosen) and (np.diff(chosen) == 1).all()
        rows = slice(int(chosen[0]), int(chosen[-1]) + 1) if in_a_row else chosen  # no copy
        arrays = {field: array[rows] for field, array in source.arrays.items()}
        return dataclasses.replace(
            from_arrays(name, arrays, source.sizes),
            skipped=source.skipped,
            names=called,
            classes=source.classes,
            text=text,
        )
    labels = source.labels
    return Source(
        name,
        len(chosen),
        lambda i: source.read(int(chosen[i])),
        source.sizes,
        labels=None if labels is None else lambda field: labels(field)[chosen],
        skipped=source.skipped,
        names=called,
        classes=source.classes,
        text=text,
    )


def fraction(source: Source, share: float, *, seed: int, label: str | None = "label") -> Source:
    """`share` of the examples of each class, at least one of each, or of all examples where `label`
    is None; the source itself for a share of 1.

    The choice depends on the seed and the labels alone, and a smaller share is contained in a
    larger one. Examples without a label (a negative one) are left out.

    Raises:
      ValueError: a share that is not above 0 and at most 1, no example with that label.
    """
    if not 0 < share <= 1:
        raise ValueError(
            f"share is {share}; expected above 0 and at most 1, for instance 0.1 for 10 % of the "
            f"labels."
        )
    if share == 1:
        return source
    labels = np.zeros(source.size, np.int32) if label is None else labels_of(source, label)
    shuffled = _shuffled(len(labels), seed)
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


def held_out(
    source: Source, share: float, *, seed: int, label: str = "label", group: str = "instance"
) -> tuple[Source, Source]:
    """(rest, held): a part of a source on which settings are chosen, so that the test part is read
    for the reported figures alone.

    Groups stay whole: examples of one `group` (the handwriting of `scenes`, of which there are
    several renderings) are all in one of the two parts. Without such a field each example is a
    group of its own. Of the groups of each class, `share` are held out, rounded, and a class of two
    or more has at least one in either part; a class of one group stays in the rest. Examples with a
    negative label, and all of a source without this label, are one class here. A group has the
    class of its first example.

    The choice depends on the seed, the labels and the groups alone, and a smaller share is
    contained in a larger one.

    Raises:
      ValueError: a share that is not between 0 and 1, or a source too small to be divided.
    """
    if not 0 < share < 1:
        raise ValueError(
            f"share is {share}; expected between 0 and 1, for instance 0.2 to hold a fifth out."
        )
    labels = np.maximum(
        labels_of(source, label) if label in source.sizes else np.zeros(source.size, np.int32), -1
    )
    groups = np.arange(source.size)
    if source.arrays is not None and group in source.arrays:
        groups = np.asarray(source.arrays[group])
    _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
    classes = labels[first]
    shuffled = _shuffled(len(first), seed)
    held = np.zeros(len(first), bool)
    for value in np.unique(classes):
        of_class = shuffled[classes[shuffled] == value]
        count = min(max(1, round(share * len(of_class))), len(of_class) - 1)
        held[of_class[:count]] = True
    chosen = held[group_of]
    if not chosen.any():
        raise ValueError(
            f"{source.name} has {source.size} examples in {len(first)} groups of as many classes; "
            "expected a class of two or more groups to hold one out."
        )
    parts = (subset(source, np.flatnonzero(part)) for part in (~chosen, chosen))
    rest, validation = (
        dataclasses.replace(part, name=f"{source.name}{word}")
        for part, word in zip(parts, (f" without {share:g}", f", {share:g} held out"))
    )
    return rest, validation


def long_tailed(source: Source, imbalance: float, *, seed: int, label: str = "label") -> Source:
    """The source with classes made rare one after the other; the source itself for an imbalance
    of 1.

    Class c of C keeps m * imbalance^(-c / (C - 1)) examples, rounded down, where m is the mean
    number of examples of a class: the first class keeps m of them, the last one m / imbalance, and
    each at least one and at most what it has. It is the profile of long-tailed CIFAR (Cui et al.
    2019, arXiv 1901.05555).

    The choice depends on the seed and the labels alone, and a larger imbalance is contained in a
    smaller one. Examples without a label (a negative one) are left out.

    Raises:
      ValueError: an imbalance below 1 or infinite, a source without that label or with one class.
    """
    if not 1 <= imbalance < math.inf:
        raise ValueError(
            f"imbalance is {imbalance}; expected at least 1 and finite, how many times the first "
            "class is as frequent as the last one."
        )
    if imbalance == 1:
        return source
    labels, classes = labels_of(source, label), source.sizes[label]
    known = labels[labels >= 0]
    if classes < 2 or not len(known):
        raise ValueError(
            f"{source.name} has {classes} classes and {len(known)} examples with a {label!r}; "
            "expected several classes with examples to make some of them rare."
        )
    counts = tail(len(known), classes, imbalance)
    shuffled = _shuffled(len(labels), seed)
    chosen = [shuffled[labels[shuffled] == c][: counts[c]] for c in range(classes)]
    return dataclasses.replace(
        subset(source, np.sort(np.concatenate(chosen))), name=f"{source.name}/{imbalance:g}"
    )


def tail(count: int, classes: int, imbalance: float) -> np.ndarray:
    """[C] how many examples of each class `long_tailed` keeps, where there are as many: `count` is
    of all classes together, of two or more."""
    share = imbalance ** (-np.arange(classes) / (classes - 1))
    return np.maximum(1, np.floor(count / classes * share + 1e-9)).astype(int)


def _shuffled(size: int, seed: int) -> np.ndarray:
    check_seed(seed)
    return np.argsort(np.random.Philox(key=[seed, 2**63]).random_raw(size), kind="stable")


def names_of(source: Source) -> list[str]:
    """What each example is called: its path, or "<source>/<number>"."""
    if source.names is not None:
        return list(source.names)
    return [f"{source.name}/{i}" for i in range(source.size)]


def checksum_of(source: Source) -> str:
    """Sixteen digits that tell sources apart by the names of their examples, in order."""
    names = "\0".join(names_of(source)).encode("utf-8", "surrogateescape")
    return hashlib.sha256(names).hexdigest()[:16]


def joined(name: str, parts: Mapping[str, Source]) -> Source:
    """Sources one after the other, with their labels, -1 in a part that lacks one, and the label
    "split" for the part. Other fields that only some have are left out, and so are labels that the
    first part lacks, or of which a part has other classes than the first."""
    sources, split = list(parts.values()), "split"
    starts = np.cumsum([0, *(source.size for source in sources)])
    firsts = [source.read(0) for source in sources]
    common = set.intersection(*(set(first) for first in firsts)) - {split}
    sizes: dict[str, int] = {}
    classes: dict[str, Sequence[str]] = {}
    for field in dict.fromkeys(field for source in sources for field in source.sizes):
        has = [i for i, source in enumerate(sources) if field in source.sizes]
        known = {tuple(sources[i].classes.get(field, ())) for i in has} - {()}
        is_label = all(np.ndim(firsts[i][field]) == 0 for i in has)
        if len(has) == len(sources) or (is_label and has[0] == 0 and len(known) < 2):
            sizes[field] = max(sources[i].sizes[field] for i in has)
            if field in sources[has[0]].classes:
                classes[field] = sources[has[0]].classes[field]
    sizes.pop(split, None)
    fields = common | sizes.keys()

    def read(i: int) -> dict[str, np.ndarray]:
        part = int(np.searchsorted(starts, i, side="right")) - 1
        example = sources[part].read(i - int(starts[part]))
        none = np.asarray(-1, np.int32)
        return {field: example.get(field, none) for field in fields} | {
            split: np.asarray(part, np.int32)
        }

    def labels(field: str) -> np.ndarray:
        if field == split:
            return np.repeat(np.arange(len(sources), dtype=np.int32), np.diff(starts))
        return np.concatenate(
            [
                labels_of(source, field)
                if field in source.sizes
                else np.full(source.size, -1, np.int32)
                for source in sources
            ]
        )

    return Source(
        name,
        int(starts[-1]),
        read,
        sizes | {split: len(sources)},
        labels=labels,
        names=[name for source in sources for name in names_of(source)],
        classes=classes | {split: tuple(parts)},
    )
