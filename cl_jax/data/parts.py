"""Parts of a data set: by the names of folders, which may be parts or classes; by a share of the
names; labelled and unlabelled examples together; images that are in two parts."""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from cl_jax.core.names import some
from cl_jax.data.images import printable
from cl_jax.data.labels import NONE
from cl_jax.data.source import Example, Source, from_arrays, labels_of

_SHOWN = 3
ON_PARTS = ("raise", "warn")  # values of the setting, see `check_folders`
# In the order in which they are taken, where there are several.
TEST_NAMES = ("test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation")
NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(TEST_NAMES, "test"),
    **dict.fromkeys(("unlabeled", "unlabelled"), "unlabeled"),
}

# As words of a name, what parts are called elsewhere: not known for sure, and never classes where
# all folders are named so, or repeat the same sub-folders.
_LIKE_PARTS = frozenset(
    "tr te ts trn tst cv fold split part holdout hold heldout validate trainval gallery query "
    "extra seen unseen labeled labelled trains tests".split()
)
# Of a source that reads a train and a test part.
ADVICE = (
    'Expected two parts, "train" and "test" (or "valid", "val", "dev"); rename or move the others. '
    'Where all of them are labels, set on_parts="warn".'
)


def stem(name: str) -> str:
    """ "Train_set", "train2017", "train-images" -> "train"."""
    return re.sub(r"([-_ ]?(set|images?|imgs?|data|split|\d+))+$", "", name.strip().lower())


def role(name: str) -> str:
    """The part that a name means, "train", "test" or "unlabeled"; "" for any other name."""
    return NAMES.get(stem(name), "")


def of_folders(files: Sequence[str]) -> dict[str, str]:
    """{folder: "train" or "test"} of the folders that all files lie in; empty where these are not
    a train part with or without a test part."""
    if not all("/" in name for name in files):
        return {}
    found = {top: role(top) for top in sorted({name.split("/")[0] for name in files})}
    return found if sorted(found.values()) in (["test", "train"], ["train"]) else {}


def check_folders(
    path: str,
    files: Sequence[str],
    advice: str,
    *,
    on_parts: str = "raise",
    labels: bool = True,
    shared: int = 2,
) -> None:
    """Refuses folders that are not read as parts and are named like parts: as classes they would
    say which part an example is from, and test examples would be trained on.

    Args:
      path: of the data, for the message.
      files: by path inside it.
      advice: which parts are read, and how to go on.
      on_parts: "raise"; or "warn", which says the same in a warning.
      labels: whether the folders would be classes. If not, one for unlabelled examples is like any
        other, and "fold1" and "fold2" say nothing of test examples.
      shared: how many sub-folders a folder "train" has in common with another if it is a part.

    Raises:
      ValueError: such folders.
    """
    why = _like_parts(files, labels, shared)
    if why and on_parts == "raise":
        raise ValueError(f"{path}: {why} {advice}")
    if why:
        logging.warning("%s: %s By on_parts='warn' none of them is a part.", path, why)


def sub_folders(files: Sequence[str]) -> dict[str, set[str]]:
    """{top folder: the folders in it} of files by their paths; sorted."""
    inner: dict[str, set[str]] = collections.defaultdict(set)
    for name in files:
        top, *below = name.split("/")
        if below:
            inner[top].update(below[:-1][:1])
    return dict(sorted(inner.items()))


def _like_parts(files: Sequence[str], labels: bool, shared: int) -> str:
    """Why the top folders may be parts, a sentence; "" where they are classes."""
    while all("/" in name for name in files) and len({name.split("/")[0] for name in files}) == 1:
        files = [name.partition("/")[2] for name in files]  # as archives unpack
    inner = sub_folders(files)
    for top, folders in inner.items():
        if {role(name) for name in folders} >= {"train", "test"}:
            return (
                f"its folder {printable(top)} holds the parts {_some(folders)}. Give the path of a "
                "folder that holds the parts, and these the classes."
            )
    meant = {top: _meant(top) for top in inner}
    unlabelled = [top for top in inner if "unlabeled" in meant[top][0]]
    if not labels:
        inner = {top: folders for top, folders in inner.items() if top not in unlabelled}
    if len(inner) < 2:
        return ""
    parts, rest = ([meant[top][i] for top in inner] for i in (0, 1))
    # "steam_train" and "freight_train" differ in what they are, not in the part.
    all_named = all(parts) and (len(set(parts)) > 1 or len(set(rest)) == 1)
    exact, words = {role(top) for top in inner}, set().union(*parts)
    both = exact >= {"train", "test"} or (words >= {"train", "test"} and all(inner.values()))
    if not labels:
        all_named = all_named and words >= {"train", "test"}
    alike = _alike(inner, [top for top in inner if meant[top][0]], shared)
    repeats = alike and (labels or "train" in words)
    if not (all_named or both or repeats or (labels and unlabelled)):
        return ""
    how = "are named like parts"
    if labels and unlabelled:
        how = f"have {_some(unlabelled)} among them, named like the part without labels"
    elif alike:
        how = f"have the same sub-folders, {_some(alike)}"
    return f"its folders {_some(inner)} {how}: which are parts and which are classes?"


def _alike(inner: Mapping[str, set[str]], named: Sequence[str], shared: int) -> set[str]:
    """What a folder that is named like a part has in common with another; empty for too little."""
    for one in named:
        least = shared if role(one) == "train" else 2
        for other, folders in inner.items():
            if other != one and len(common := inner[one] & folders) >= least:
                return common
    return set()


def _meant(name: str) -> tuple[frozenset[str], frozenset[str]]:
    """(the parts that the words of a name mean, its other words)."""
    words = set(re.findall("[a-z]+", re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower()))
    named = words & (NAMES.keys() | _LIKE_PARTS)
    if not named and role(name):  # "trainset"
        return frozenset([role(name)]), frozenset()
    return frozenset(NAMES.get(word, word) for word in named), frozenset(words - named)


def _some(names: Iterable[str]) -> str:
    return some([printable(name) for name in sorted(names)])


def place(name: str) -> float:
    """A number from 0 to 1 by a hash of a name, the same on every machine."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def by_hash(names: Sequence[str]) -> list[str]:
    """The names in the order of their `place`."""
    return sorted(sorted(names), key=place)


def drawn(
    names: Sequence[str], share: float, groups: Mapping[str, object] | None = None
) -> set[str]:
    """The names of a test part, chosen by a hash of each: more names move none of the others.

    Args:
      share: of the names of each group; at least one of two or more, and never all.
      groups: {name: its class}; names without one are a group, and None is one group for all.
    """
    of_group: dict[object, list[str]] = collections.defaultdict(list)
    for name in names:
        of_group[None if groups is None else groups.get(name)].append(name)
    return {
        name
        for group in of_group.values()
        for name in by_hash(group)[
            : min(max(1, sum(place(one) < share for one in group)), len(group) - 1)
        ]
    }


def few(
    parts: Mapping[str, Sequence[str]], limit: int, groups: Mapping[str, str] | None = None
) -> dict[str, list[str]]:
    """At most `limit` names of the parts "train" and "test", for trying a command: by a hash, as
    many of one class as of another where there are enough. The test part has no class that the
    training part lost by that.

    groups: {name: its class, "" for none}; None is one class for all.
    """
    of = groups or {}
    tested = {of.get(name, "") for name in parts["test"]}

    def chosen(names: Sequence[str]) -> list[str]:
        of_class: dict[str, list[str]] = collections.defaultdict(list)
        for name in by_hash(names):
            of_class[of.get(name, "")].append(name)
        turns = sorted(
            (turn, group not in tested, group, name)
            for group, members in of_class.items()
            for turn, name in enumerate(members)
        )
        kept = {name for *_, name in turns[:limit]}
        return [name for name in names if name in kept]

    train = chosen(parts["train"])
    kept = {of.get(name, "") for name in train} | {""}
    lost = {of.get(name, "") for name in parts["train"]} - kept
    return {"train": train, "test": chosen([n for n in parts["test"] if of.get(n) not in lost])}


def spaced(rows: Any, limit: int) -> Any:
    """At most `limit` of the rows of a list or array, from its whole length."""
    return rows[:: -(-len(rows) // limit)]


def joined(labelled: Source, unlabelled: Source) -> Source:
    """The examples of both, those of the second with the label -1, no label.

    Raises:
      ValueError: a field that is not a label and that only one of the two has, or another shape.
    """
    first, second = labelled.read(0), unlabelled.read(0)
    labels = [field for field in labelled.sizes if np.ndim(first[field]) == 0]
    fields = [field for field in first if field not in labels]
    for field in fields:
        if field not in second or np.shape(first[field]) != np.shape(second[field]):
            raise ValueError(
                f"{labelled.name} has {field} {list(np.shape(first[field]))} and {unlabelled.name} "
                + (f"{list(np.shape(second[field]))}" if field in second else f"no {field}")
                + "; expected the same in both parts, to train on them together."
            )
    name = f"{labelled.name} and {unlabelled.name.rsplit('/', 1)[-1]}"
    none = np.full(unlabelled.size, NONE, np.int32)
    sizes, skipped = dict(labelled.sizes), labelled.skipped + unlabelled.skipped
    names = None
    if labelled.names is not None and unlabelled.names is not None:
        names = [*labelled.names, *unlabelled.names]
    if labelled.arrays is not None and unlabelled.arrays is not None:
        arrays = {
            field: np.concatenate(
                [labelled.arrays[field], none if field in labels else unlabelled.arrays[field]]
            )
            for field in first
        }
        made = from_arrays(name, arrays, sizes)
        return dataclasses.replace(made, skipped=skipped, names=names, classes=labelled.classes)

    def read(i: int) -> Example:
        if i < labelled.size:
            return labelled.read(i)
        example = unlabelled.read(i - labelled.size)
        return {field: none[0] if field in labels else example[field] for field in first}

    return Source(
        name,
        labelled.size + unlabelled.size,
        read,
        sizes,
        labels=lambda field: np.concatenate([labels_of(labelled, field), none]),
        skipped=skipped,
        names=names,
        classes=labelled.classes,
    )


def warn_of_duplicates(train: Source, test: Source, field: str = "image") -> None:
    """Logs how many test examples are in the training part too, bit for bit, where both are in
    memory: what evaluators say of those is memory, not generalisation."""
    if train.arrays is None or test.arrays is None:
        return
    images, others = train.arrays[field], test.arrays[field]
    of_train = {hash(image.tobytes()): row for row, image in reversed(list(enumerate(images)))}
    pairs = []
    for row, image in enumerate(others):
        at = of_train.get(hash(image.tobytes()))
        if at is not None and np.array_equal(images[at], image):
            pairs.append((row, at))
    tell_duplicates(
        f"{train.name} and {test.name}",
        len(others),
        [f"test example {row} is training example {at}" for row, at in pairs],
    )


def tell_duplicates(
    names: str, count: int, pairs: list[str], what: str = "are in the training part too"
) -> None:
    """The one warning about examples that are in both parts."""
    if pairs:
        logging.warning(
            "%s: %d of the %d test examples %s (%s%s).",
            names,
            len(pairs),
            count,
            what,
            "; ".join(pairs[:_SHOWN]),
            "; ..." if pairs[_SHOWN:] else "",
        )
