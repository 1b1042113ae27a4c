"""What a trained network is asked about, as a source: arrays, folders, files, or data of its own
kind at another path."""

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cl_jax.core.errors import ConfigError
from cl_jax.data import folder
from cl_jax.data.source import Source, for_evaluation, from_arrays, joined, with_channels
from cl_jax.training import configs, experiment, fingerprint, rebuilding

Inputs = np.ndarray | Mapping[str, np.ndarray] | str | Path | Sequence[str | Path] | Source


class Known(NamedTuple):
    """What a run knows of its data. needs: fields that its method reads. example: the fields of
    one. sizes: of integer fields, as in `Source`."""

    workdir: str
    config: ConfigDict
    needs: tuple[str, ...]
    example: Mapping[str, np.ndarray]
    sizes: Mapping[str, int]

    @property
    def shown(self) -> list[str]:
        """The folders whose pictures are one example together, of a run of such data."""
        return list(self.config.data.get("shown", ()))

    @property
    def inputs(self) -> list[str]:
        """The fields that the network reads, without the labels that its training needs."""
        return [name for name in self.needs if np.ndim(self.example.get(name, 0))]


def source_of(inputs: Inputs, known: Known) -> tuple[Source, dict[str, str]]:
    """(inputs of any form of `Trained.embed` as a source, {name: reason} of what cannot be read;
    damage inside a file is added when the file is read)."""
    if isinstance(inputs, Source):
        return inputs, {}
    if isinstance(inputs, str | os.PathLike):
        alone = "image" in known.inputs and all(n.split("_")[0] == "image" for n in known.inputs)
        if alone and not known.shown:
            return folder.everything(str(inputs), **_reading(known))
        return _other_data(str(inputs), known), {}
    if isinstance(inputs, Mapping):
        return _of_arrays({name: np.asarray(x) for name, x in inputs.items()}, known), {}
    if isinstance(inputs, Sequence) and all(isinstance(x, str | os.PathLike) for x in inputs):
        return folder.listed([str(path) for path in inputs], **_reading(known))
    array = np.asarray(inputs)
    if len(known.inputs) != 1:
        raise ConfigError(
            f"one array is given and the network reads {', '.join(known.inputs)}; give "
            f"{{field: array}} of each."
        )
    return _of_arrays({known.inputs[0]: array}, known), {}


def check_fields(source: Source, known: Known) -> None:
    """Raises ConfigError where a source has none of the fields that the network reads, or integers
    that mean something else."""
    there = source.arrays if source.arrays is not None else source.read(0)
    missing = [name for name in known.needs if name in known.example and name not in there]
    encoded = [name for name in known.needs if name in there]
    if not encoded:
        raise ConfigError(
            f"{source.name} has the fields {', '.join(there)}; the network of {known.workdir} "
            f"reads {', '.join(missing)}."
        )
    for name in set(encoded) & set(known.inputs):  # labels are not read
        size = known.sizes.get(name)
        if size is not None and source.sizes.get(name, size) != size:
            raise ConfigError(
                f"{name} has {source.sizes[name]} values in {source.name} and {size} in the data "
                f"of {known.workdir}: the numbers do not mean the same."
            )


def _reading(known: Known) -> dict[str, Any]:
    """How the run's images were read, for `data.folder`."""
    if known.shown:
        raise ConfigError(
            f"an example of the data of {known.workdir} is several pictures, and files alone do "
            f"not say which belong together; give the folder that has {', '.join(known.shown)}, or "
            "{field: array}."
        )
    if "image" not in known.example:
        raise ConfigError(
            f"the network of {known.workdir} reads {', '.join(known.needs)}, not images; give "
            "{field: array}, or a source."
        )
    size, _, channels = known.example["image"].shape
    section = known.config.data
    more = {key: section[key] for key in ("value_range", "max_pixels") if key in section}
    learnt = fingerprint.learnt(Path(known.workdir))
    return {"image_size": size, "channels": channels, "learnt": learnt} | more


def _of_arrays(arrays: dict[str, np.ndarray], known: Known) -> Source:
    for name, values in arrays.items():
        one = known.example.get(name)
        if one is None or name not in known.needs:
            continue
        if values.ndim != one.ndim + 1 or len(values) == 0:
            raise ConfigError(
                f"{name} is {values.dtype}{list(values.shape)}; expected {one.dtype} "
                f"[N, {', '.join(map(str, one.shape))}], one or more rows of what the "
                "network was trained on."
            )
        if name.split("_")[0] == "image":
            if values.dtype != np.uint8:
                raise ConfigError(
                    f"{name} is {values.dtype}; expected uint8, 0 to 255. Of floats from 0 to "
                    "1, give numpy.rint(255 * images).astype('uint8')."
                )
            arrays[name] = with_channels(values, one.shape[-1], name)
        elif values.dtype != one.dtype:
            if values.dtype.kind not in "iub" or one.dtype.kind not in "iu":
                raise ConfigError(f"{name} is {values.dtype}; expected {one.dtype}.")
            arrays[name] = values.astype(one.dtype)
    sizes = {name: known.sizes[name] for name in arrays if name in known.sizes}
    return from_arrays("given", arrays, sizes)


def _other_data(path: str, known: Known) -> Source:
    """Data of the run's own kind at another path, all of them, their parts in a row."""
    section = configs.plain(rebuilding.as_begun(known.config, Path(known.workdir)).data)
    make = experiment.module_of("cl_jax.data", section["name"], "make").make
    keywords = inspect.signature(make).parameters
    if "path" not in keywords and "path" not in section:  # `make` may take any keyword
        raise ConfigError(
            f"the data of {known.workdir} ({section['name']}) have no path that another could "
            "replace; give {field: array}, or a source."
        )
    # What chose the run's training part, or is read beside it, says nothing of other data.
    beside = for_evaluation(make)
    for key in (*experiment.OF_TRAINING, "limit", "test_path", *beside):
        section.pop(key, None)
    stops = keywords.get("on_error")
    if stops is not None and section.get("on_error", stops.default) == "raise":
        section["on_error"] = "skip"  # as for images: a warning names what has no row
    learnt = fingerprint.learnt(Path(known.workdir))
    # A run that kept nothing: a source that may have a test part of its own learns from the
    # training part once more; one outside the package that takes nothing back reads the other file
    # as the test part.
    again = learnt is None and "test_path" in keywords and bool(section.get("path"))
    if again and "learnt" in keywords:
        trained_on = configs.plain(rebuilding.as_begun(known.config, Path(known.workdir)).data)
        for key in beside:
            trained_on.pop(key, None)
        splits = experiment.load_data(ConfigDict({"data": trained_on, "seed": known.config.seed}))
        fingerprint.check_learnt(Path(known.workdir), splits)
        learnt, again = dict(splits.learnt or {}), False
    section["test_path" if again else "path"] = path
    splits = experiment.load_data(
        ConfigDict({"data": section, "seed": known.config.seed}), None if again else learnt or {}
    )
    if learnt is not None and "learnt" not in keywords:
        fingerprint.check_learnt(Path(known.workdir), splits)
    if again or splits.test is splits.train:
        return splits.test
    return joined(path, {"train": splits.train, "test": splits.test})
