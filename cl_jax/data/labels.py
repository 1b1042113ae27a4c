"""Labels as files have them: checked, numbered, and left out where there are none."""

from collections.abc import Iterable, Mapping

import numpy as np
from absl import logging

from cl_jax.core.names import some
from cl_jax.data.images import printable
from cl_jax.data.source import Source, labels_of, subset

NONE = -1  # the label of an example without one
_DENSE = 100  # so many classes cost nothing, however few examples there are
_KINDS = {"U": "strings", "S": "bytes", "O": "Python objects", "f": "floats", "c": "complex"}


def numbered(
    name: str, field: str, parts: Mapping[str, np.ndarray], num_classes: int | None = None
) -> tuple[dict[str, np.ndarray], int]:
    """Labels of all parts as int32 from 0 to C - 1, or -1 for none, and C.

    Without `num_classes`, C is the largest training label plus one, where that is at most the
    number of training examples or 100. Sparser labels (hashes, identities) are renumbered in
    ascending order, with a warning: evaluators have a column for each class.

    Args:
      name: of the data set, for messages.
      field: the label's name in the files.
      parts: {"train": [N], "test": [M], ...}.
      num_classes: C, where it is known; 0 of them where no training example has a label.

    Raises:
      ValueError: names part and label: strings, floats, numbers below -1, numbers outside the
        classes, labels of another part that the training part lacks.
    """
    for part, values in parts.items():
        if values.ndim != 1 or values.dtype.kind not in "iub":
            what = _KINDS.get(values.dtype.kind, str(values.dtype))
            raise ValueError(
                f"{name}/{part}: {field} is {values.dtype}{list(values.shape)}"
                + (f", {what}" if values.ndim == 1 else "")
                + "; expected one integer for each example, -1 for none. Number the classes, for "
                "instance by numpy.unique(labels, return_inverse=True)[1]."
            )
        if values.size and values.min() < NONE:
            raise ValueError(
                f"{name}/{part}: {field} goes down to {values.min()}; expected 0 or more, or -1 "
                "for an example without a label."
            )
    train = parts["train"]
    given = np.unique(train[train >= 0])
    largest = int(given[-1]) if len(given) else NONE
    if num_classes is None and largest >= max(len(train), _DENSE):
        logging.warning(
            "%s: %s has %d classes with numbers up to %d; they are numbered 0 to %d, in ascending "
            "order. Set num_classes to keep the numbers.",
            name,
            field,
            len(given),
            largest,
            len(given) - 1,
        )
        found = {part: _renumbered(name, field, part, parts[part], given) for part in parts}
        return found, len(given)
    count = largest + 1 if num_classes is None else num_classes
    for part, values in parts.items():
        if values.size and int(values.max()) >= count:
            of = "the training part" if num_classes is None else "num_classes"
            raise ValueError(
                f"{name}/{part}: {field} goes up to {values.max()}; expected "
                + (f"0 to {count - 1}, the {count} classes of {of}, or " if count > 0 else "")
                + "-1 for an example without a label"
                + ("." if count > 0 else f", since {of} has no classes.")
            )
    return {part: values.astype(np.int32) for part, values in parts.items()}, count


def _renumbered(
    name: str, field: str, part: str, values: np.ndarray, given: np.ndarray
) -> np.ndarray:
    if len(strange := np.setdiff1d(values[values >= 0], given)):
        raise ValueError(
            f"{name}/{part}: {field} has {some(strange.tolist())}, which no "
            "training example has. Leave those examples out, or set num_classes."
        )
    found = np.searchsorted(given, np.maximum(values, 0)).astype(np.int32)
    return np.where(values < 0, np.int32(NONE), found)


def refuse_unknown(
    path: str, train: Iterable[str], test: Iterable[str], what: str, mend: str
) -> None:
    """Refuses a test part with classes that no training example has: nothing can be right about
    those, and most often one class is written in two ways.

    Args:
      path: of the data, for the message.
      train, test: names of the classes, in any order and number; "" for none.
      what: the classes are.
      mend: a sentence.

    Raises:
      ValueError: names the classes.
    """
    if differ := _differ(path, set(train) - {""}, set(test) - {""}, what):
        raise ValueError(f"{differ} {mend}")


def refuse_alike(
    path: str, train: Iterable[str], test: Iterable[str], what: str, mend: str
) -> None:
    """Refuses classes of a test part that are those of the training part but for capitals: one
    class is written in two ways. Logs others that no training example has: parts may have speakers
    of their own on purpose.

    Arguments and errors as of `refuse_unknown`.
    """
    known, tested = set(train) - {""}, set(test) - {""}
    if not (differ := _differ(path, known, tested, what)):
        return
    if {name.casefold() for name in known} & {name.casefold() for name in tested - known}:
        raise ValueError(f"{differ} {mend}")
    logging.warning("%s Nothing that is learnt from labels can be right about those.", differ)


def _differ(path: str, known: set[str], tested: set[str], what: str) -> str:
    """A sentence on classes of the test part that training lacks, "" without any."""
    if not (unknown := sorted(tested - known)):
        return ""
    return (
        f"{path}: the {what} of its parts differ: train has "
        f"{some(list(map(printable, sorted(known))))}, test has "
        f"{some(list(map(printable, unknown)))} besides."
    )


def labelled(source: Source, label: str = "label") -> Source:
    """The examples of a source that have the label; the source itself where all have, or where it
    has no such label at all.

    Raises:
      ValueError: none of its examples has one.
    """
    if label not in source.sizes:
        return source
    values = labels_of(source, label)
    if len(values) and values.min() >= 0:
        return source
    ids = np.flatnonzero(values >= 0)
    if not len(ids):
        raise ValueError(
            f"no example of {source.name} has a {label!r} (all are -1), and evaluation needs some."
        )
    return subset(source, ids)
