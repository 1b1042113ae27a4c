"""What the data of a run were, and what their source learnt from them, so that a resume on other
data is noticed, and so that a trained network can be used where they are not."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from cl_jax.core import parallel
from cl_jax.core.errors import ConfigError
from cl_jax.core.names import some
from cl_jax.core.paths import user_path
from cl_jax.data import listing
from cl_jax.data.source import Example, Source, Splits
from cl_jax.training import checkpoint
from cl_jax.training import workdir as folder

FILE = "data.json"
LEARNT = "learnt.json"  # `Source.learnt`
# Left in a folder by the file managers of Windows. Those of other systems hide what they leave by a
# dot, as editors and git do, and network drives have folders of their own (`listing.passes_over`).
# No data are read from any of them.
_LEFT_BEHIND = ("Thumbs.db", "desktop.ini")
# Of pictures of more than 8 bits in the folders of `data.aligned`, before it was found and kept.
_FULL_RANGE = (0.0, 65535.0)


class NotKept(ConfigError):
    """Something of a run's data is asked for that its `data.json` does not hold."""


def of_data(config: ConfigDict, data: Splits) -> dict[str, Any]:
    """Sizes of the parts, the fields of an example ("fields": type and shape, "sizes", "classes"),
    and the names of what their source learnt; of data with a path, or several, also the number of
    their files, their bytes, and hashes of their names with sizes, and of these with times; and in
    "beside" the same of other files that examples are in, see `_beside`."""
    found: dict[str, Any] = {
        "train": data.train.size,
        "test": data.test.size,
        "name": data.train.name,
        "fields": {
            field: [str(np.asarray(value).dtype), *np.shape(value)]
            for field, value in data.train.read(0).items()
        },
        "sizes": {field: int(count) for field, count in data.train.sizes.items()},
        "classes": {field: list(names) for field, names in data.train.classes.items()},
    }
    if data.learnt is not None:
        found["learnt"] = sorted(data.learnt)
    if paths := paths_of(config):
        found |= of_files(*paths)
    if beside := _beside(config, data):
        found["beside"] = beside
    return found


def paths_of(config: ConfigDict, setting: str = "path") -> list[Path]:
    """What is there of a setting of the data, or of each source in their section (`domains`)."""
    given = [str(one.get(setting, "") or "") for one in sections(config)]
    return [user_path(path) for path in given if path and user_path(path).exists()]


def sections(config: ConfigDict) -> list[ConfigDict]:
    """The section of the data, and those of the sources in it."""
    inner = [config.data[key] for key in sorted(config.data)]
    return [config.data, *(one for one in inner if isinstance(one, ConfigDict))]


def _beside(config: ConfigDict, data: Splits) -> dict[str, dict[str, Any]]:
    """{what: "files", "bytes", "names", "times"} of the test part where it has a path of its own
    ("test_path"), and of the files that a table at `path` names by their place beside it
    ("examples")."""
    found = {}
    if paths := paths_of(config, "test_path"):
        found["test_path"] = of_files(*paths)
        found["test_path"].pop("with_hidden", None)  # no earlier version kept them
    if files := _of_table(config, data):
        found["examples"] = _counted(files)
    return found


def _of_table(config: ConfigDict, data: Splits) -> list[tuple[str, os.stat_result]]:
    """The files of the examples, where the data are a table that names them."""
    path = str(config.data.get("path", "") or "")
    if not path or not user_path(path).is_file():
        return []
    root, found = user_path(path).parent, {}
    for name in (name for part in data[:2] for name in part.names or ()):
        try:
            found[name] = (root / name).stat()
        except (OSError, ValueError):  # a sentence
            return []
    return sorted(found.items())


def stand_in(workdir: Path) -> Splits | None:
    """Data of the same sizes and fields as those of the run in a workdir, all zeros, from its
    `data.json`: enough to build the run and restore its State. None where the file is missing or of
    a version that did not write the fields.

    Their labels are not known; asking for them raises NotKept.
    """
    try:
        known = json.loads((workdir / FILE).read_text())
        fields = {
            name: np.zeros(tuple(shape), np.dtype(kind))
            for name, (kind, *shape) in known["fields"].items()
        }
        name, sizes, counts = known["name"], known["sizes"], [known["train"], known["test"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None

    def read(i: int) -> Example:
        return fields

    def labels(field: str) -> np.ndarray:
        raise NotKept(
            f"the labels {field!r} of {name} are not kept in {workdir}: this needs the data "
            "themselves."
        )

    classes = known.get("classes", {})
    train, test = (
        Source(name, count, read, sizes, labels=labels, classes=classes) for count in counts
    )
    return Splits(train, test)


def of_files(*paths: Path) -> dict[str, Any]:
    """{"files", "bytes", "names", "times"} of a file, or of all files below a folder but those that
    no source reads; of several paths, of all together. Where there are such files, "with_hidden" is
    a list of the same with them: earlier versions counted them all, or those of a system's own
    folders."""
    every = [(i, *one) for i, path in enumerate(paths) for one in sorted(_files(path))]
    is_folder = [path.is_dir() for path in paths]

    def without(left_out: Callable[[str], bool]) -> dict[str, Any]:
        return _counted(
            [
                (f"{i}/{name}" if len(paths) > 1 else name, status)
                for i, name, status in every
                if not (is_folder[i] and left_out(name))
            ]
        )

    found = without(_is_hidden)
    if found["files"] == len(every):
        return found
    return found | {"with_hidden": [without(_is_left_behind), without(lambda _: False)]}


def _is_hidden(name: str) -> bool:
    return _is_left_behind(name) or any(map(listing.passes_over, name.split("/")[:-1]))


def _is_left_behind(name: str) -> bool:
    return any(part[0] == "." or part in _LEFT_BEHIND for part in name.split("/"))


def _counted(files: list[tuple[str, os.stat_result]]) -> dict[str, Any]:
    names, times, count, total = hashlib.sha256(), hashlib.sha256(), 0, 0
    for name, status in files:
        line = f"{name}\0{status.st_size}\0".encode("utf-8", "surrogateescape")
        names.update(line)
        times.update(line + str(status.st_mtime_ns).encode())
        count, total = count + 1, total + status.st_size
    return {
        "files": count,
        "bytes": total,
        "names": names.hexdigest()[:16],
        "times": times.hexdigest()[:16],
    }


def times_of(path: Path, names: Sequence[str]) -> str:
    """Sixteen digits that differ where a file was written again: of the files `names` below a
    folder, or of all of the path where its examples are not files, but what is being written."""
    times, count = hashlib.sha256(), 0
    for name in names if path.is_dir() else ():
        try:
            status = (path / name).stat()
        except (OSError, ValueError):
            continue
        line = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0"
        times.update(line.encode("utf-8", "surrogateescape"))
        count += 1
    if count:
        return times.hexdigest()[:16]
    every = sorted(_files(path))
    if path.is_dir():
        every = [one for one in every if not _is_hidden(one[0]) and ".partial" not in one[0]]
    return str(_counted(every)["times"])


def learnt(workdir: Path) -> dict[str, Any] | None:
    """`Source.learnt` of the run in a workdir; None where it is not kept: of a source that learns
    nothing, or in a workdir of a version that did not keep it.

    Raises:
      ConfigError: the file is damaged.
    """
    path = workdir / LEARNT
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}), and what the run learnt from its data is in it. Put "
            "it back; or remove it and give the command that trained the run once more, where its "
            "training data are as they were."
        ) from None
    return found


def check_learnt(workdir: Path, data: Splits) -> None:
    """Refuses data of a run from which their source learnt something else than the run did; where
    the run did not keep that, data of other sizes, or that an earlier version read otherwise.

    Raises:
      ConfigError: as it says, or what the run learnt cannot be read.
    """
    then = learnt(workdir)
    if not data.learnt:
        return
    if then is None:
        known = _record(workdir)
        if "value_ranges" not in known.get("learnt", ()):
            _refuse_other_ranges(workdir, data)
        try:
            sizes = {part: int(known[part]) for part in ("train", "test")}
        except (ValueError, TypeError, KeyError):
            return
        if sizes != {"train": data.train.size, "test": data.test.size}:
            raise ConfigError(
                f"{data.train.name} has {data.train.size} examples and {data.test.size} for "
                f"tests; the run in {workdir} had {sizes['train']} and {sizes['test']}. It did not "
                "keep what it learnt from them, and these would teach something else. Put the data "
                "back as they were; where nothing was changed, this version divides them "
                "otherwise: use the one that trained the run, or train again."
            )
        return
    now = json.loads(json.dumps(data.learnt))
    if changed := _changed(then, now):
        raise ConfigError(
            f"{data.train.name} gives another {', '.join(changed)} than the run in {workdir} "
            "learnt from its training data: its numbers would mean something else. Put the data "
            "back as they were, and the version of the library that learns it; or start a new run "
            "in another --workdir."
        )


def _record(workdir: Path) -> dict[str, Any]:
    """The `data.json` of a workdir; empty where it is missing or damaged."""
    try:
        found = json.loads((workdir / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_other_ranges(workdir: Path, data: Splits) -> None:
    """Refuses deep pictures for a run that may be of a version that read them in another range."""
    ranges = (data.learnt or {}).get("value_ranges", {})
    others = [name for name, ends in ranges.items() if tuple(ends) != _FULL_RANGE]
    if others:
        raise ConfigError(
            f"pictures of more than 8 bits in {some(others)} of {data.train.name} have a range "
            f"that is found in them, and {workdir} has no {LEARNT}, where a run keeps it. If that "
            f"file was lost, write {json.dumps(data.learnt)} into it, which is what these data "
            "give. A run of an earlier version had none and read them from 0 to 65535: use the "
            "version that trained it, or begin a new run in another --workdir."
        )


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys whose plain values are not `_alike`."""
    return [key for key in {**then, **now} if not _alike(then.get(key), now.get(key))]


def _alike(a: Any, b: Any) -> bool:
    """Whether two plain values are equal but for the last digits of their floats, in which
    machines differ."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
    return bool(a == b)


def _files(path: Path) -> list[tuple[str, os.stat_result]]:
    if path.is_file():
        return [(path.name, path.stat())]
    found, folders = [], [(path, "")]
    while folders:
        place, prefix = folders.pop()
        try:
            entries = list(os.scandir(place))
        except OSError:  # such as lost+found of a disk, which only its owner may list
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append((Path(entry.path), f"{prefix}{entry.name}/"))
            else:
                found.append((f"{prefix}{entry.name}", entry.stat(follow_symlinks=False)))
    return found


def check(workdir: Path, config: ConfigDict, data: Splits) -> list[str]:
    """Writes `data.json`, and `learnt.json` where the source learns something, into a new workdir;
    in one with a checkpoint, compares them with the data of now. Returns lines on what differs
    without changing the examples.

    Raises:
      ConfigError: the number of examples, or the names or sizes of the files are others: the order
        of the examples, and with it the rest of the run, would be another. The source learns
        something else from them: the numbers of the fields would have another meaning. The
        processes of a job have different data.
    """
    now = of_data(config, data)
    _refuse_others_than(now, data.learnt)
    failure, noted = None, list[str]()
    if jax.process_index() == 0:
        try:
            noted = _check(workdir, now, data)
        except ConfigError as error:
            failure = error
    if not parallel.everywhere(failure is None):
        raise failure or ConfigError("the data have changed; process 1 says how.")
    return noted


def refuse_others(config: ConfigDict, data: Splits) -> None:
    """Refuses data of which the processes of a job have different copies: the order of the examples
    depends on their number, so that each process would read its rows of another batch.

    Raises:
      ConfigError: as it says, on every process.
    """
    if jax.process_count() > 1:
        _refuse_others_than(of_data(config, data), data.learnt)


def _refuse_others_than(now: dict[str, Any], learnt: Mapping[str, Any] | None) -> None:
    left_out = ("name", "times", "with_hidden", "learnt", "beside")  # what was learnt: below
    same = {key: value for key, value in now.items() if key not in left_out}
    for name, one in now.get("beside", {}).items():
        same[name] = {key: value for key, value in one.items() if key != "times"}
    if others := _others(json.dumps(same, sort_keys=True)):
        here = ", ".join(
            f"{key}={now[key]}" for key in ("train", "test", "files", "bytes") if key in now
        )
        raise ConfigError(
            f"the data of {some(others)} are not those of process 1, and all processes must read "
            f"the same examples. This one has {here}. Copy the data again to the machines that "
            "differ, or give a path to one copy that all of them see."
        )
    # Files of the same names and sizes may hold something else, and libraries learn otherwise.
    text = json.dumps(learnt)
    if not _others(text):
        return
    changed = _changed(json.loads(_of_the_first(text)) or {}, json.loads(text) or {})
    differs = np.flatnonzero(parallel.from_each(bool(changed)))
    if differs.size:
        raise ConfigError(
            f"the source of the data learnt something else in "
            f"{some([f'process {i + 1}' for i in differs])} than in process 1"
            + (f": another {', '.join(changed)}" if changed else "")
            + ". Files of the same names and sizes may differ, or the versions of the library that "
            "learns it. Copy the data again to the machines that differ, or give a path to one "
            "copy that all of them see, and install the same versions."
        )


def _others(text: str) -> list[str]:
    """The processes that passed another text than process 1."""
    digests = parallel.from_each(np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8))
    return [f"process {i + 1}" for i, row in enumerate(digests) if (row != digests[0]).any()]


def _of_the_first(text: str) -> str:
    """The text that process 1 passed."""
    here = np.frombuffer(text.encode(), np.uint8)
    lengths = parallel.from_each(np.int32(here.size))
    row = np.zeros(lengths.max(), np.uint8)
    row[: here.size] = here
    return parallel.from_each(row)[0, : lengths[0]].tobytes().decode()


def _without_hidden(then: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The record of a run that an earlier version began, as if it had not counted hidden files: or
    the run could not be resumed. Any other record as it is."""
    for counted in now.get("with_hidden", ()):
        if then.get("names") == counted["names"]:
            return then | {key: now[key] for key, one in counted.items() if then.get(key) == one}
    return then


def _pairs(
    then: Mapping[str, Any], now: Mapping[str, Any]
) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """(what, record, record) of the data and of each of the files beside them; empty then of what
    an earlier version did not record."""
    before = then.get("beside", {})
    beside = [
        (f"{name}: ", before.get(name, {}), one) for name, one in now.get("beside", {}).items()
    ]
    return [("", then, now), *beside]


def _differing(what: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines on what makes two records those of other data."""
    return [
        f"  {what}{key}: {then[key]} then, {now[key]} now"
        for key in ("train", "test", "files", "bytes", "names")
        if key in then and key in now and then[key] != now[key]
    ]


def _check(workdir: Path, now: dict[str, Any], data: Splits) -> list[str]:
    path = workdir / FILE
    saved = checkpoint.are_in(workdir)
    recorded, then, changed = None, now, list[str]()
    if saved and path.exists():
        try:
            recorded = json.loads(path.read_text())
            then = _without_hidden(recorded, now)
            changed = [line for pair in _pairs(then, now) for line in _differing(*pair)]
        except (OSError, ValueError, TypeError, AttributeError) as error:
            logging.warning("%s cannot be read (%s): it is written again.", path, error)
            recorded, then = None, now
        if changed:
            raise ConfigError(
                f"the data have changed since the run in {workdir} began:\n"
                + "\n".join(changed)
                + "\nPut them back as they were, or start a new run in another --workdir."
            )
    place = workdir / LEARNT
    if saved:
        check_learnt(workdir, data)
    else:
        place.unlink(missing_ok=True)  # of a run that saved nothing
    if data.learnt is not None and not place.exists():
        folder.replace_text(place, json.dumps(data.learnt) + "\n")
    if recorded != now:
        folder.replace_text(path, json.dumps(now, indent=2) + "\n")
    pairs = _pairs(then, now)
    if any("times" in old and old["times"] != new.get("times") for _, old, new in pairs):
        return ["  data: files of the same names and sizes, of other times (copied, or rewritten?)"]
    return []
