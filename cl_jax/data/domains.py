"""`domains`: two data sets of images side by side, a labelled source and a target whose labels are
for evaluation alone."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from cl_jax.core.seeds import check_seed
from cl_jax.core.settings import check, check_keys
from cl_jax.core.shapes import check_count
from cl_jax.data.labels import labelled
from cl_jax.data.source import Source, Splits, from_arrays, with_learnt

SOURCE = ("image_source", "label_source")


def make(
    *,
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    image_size: int = 16,
    channels: int = 1,
    seed: int = 0,
) -> Splits:
    """Each training example is one of the target and, beside it, one of the source.

    Fields of the training part: those of the target, "image" and its labels; "image_source" uint8
      and "label_source" int32, of an example of the source that stays with it. The test part is the
      target's alone.

    Args:
      source, target: sections of `config.data`, {"name": ..., ...}, of sources in memory.
      image_size: side of the square that images of both are resized to.
      channels: 1 takes the mean of colours; 3 repeats grey.
      seed: of which example of the source stands beside which of the target. A source with fewer
        examples is repeated, of one with more a part is taken.

    Raises:
      ValueError: a section without a name or with an empty path, a data set that is not in memory
        or has no images, a source without labels.
    """
    check_count(image_size=image_size)
    check_seed(seed)
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}; expected 1 or 3.")
    found = {"source": _load("source", source), "target": _load("target", target)}
    size, given = found["target"].train.size, found["source"].train
    if "label" not in given.sizes:
        raise ValueError(f"the source {given.name} has no label; expected one, to learn from.")
    given = labelled(given)
    beside = np.argsort(np.random.Philox(key=[seed, 0]).random_raw(given.size), kind="stable")
    beside = np.resize(beside, size)

    def fitted(part: Source, rows: np.ndarray | slice) -> np.ndarray:
        return _fitted(_arrays(part)["image"][rows], image_size, channels)

    def labels(part: Source) -> dict[str, np.ndarray]:
        return {name: np.asarray(part.arrays[name]) for name in part.sizes if _is_label(part, name)}

    train, test = found["target"][:2]
    sizes = {name: train.sizes[name] for name in labels(train)}
    arrays = {"image": fitted(train, slice(None)), **labels(train)}
    arrays |= {
        "image_source": fitted(given, beside),
        "label_source": np.asarray(_arrays(given)["label"])[beside],
    }
    name = f"{given.name} to {train.name}"
    splits = Splits(
        from_arrays(name, arrays, sizes | {"label_source": given.sizes["label"]}),
        from_arrays(test.name, {"image": fitted(test, slice(None)), **labels(test)}, sizes),
    )
    return with_learnt(splits, found["target"].learnt)


def _load(role: str, section: Mapping[str, Any]) -> Splits:
    settings = dict(section)
    name = settings.pop("name", "")
    words = name.split(".") if isinstance(name, str) else [""]
    if name == "domains" or not all(word.isidentifier() for word in words):
        raise ValueError(
            f"the {role} section is {dict(section)}; expected the name of a data source and its "
            "settings, as in config.data."
        )
    module = name if "." in name else f"cl_jax.data.{name}"
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"the {role} name={name!r} is not a data source: {error}.") from error
    check_keys(f"data.{role}", settings, inspect.signature(found.make).parameters)
    if settings.get("path") == "":
        raise ValueError(
            f"data.{role}.path is empty; set --config.data.{role}.path to the {role}'s images."
        )
    check(f"data.{role}", found.make, settings)
    return found.make(**settings)


def _arrays(part: Source) -> Mapping[str, np.ndarray]:
    if part.arrays is None or "image" not in part.arrays:
        raise ValueError(
            f"{part.name} is not a set of images in memory; expected one, such as packed, digits "
            "or glyphs, or a folder of at most cache_bytes."
        )
    return part.arrays


def _is_label(part: Source, name: str) -> bool:
    return np.ndim(_arrays(part)[name]) == 1


def _fitted(pixels: np.ndarray, side: int, channels: int) -> np.ndarray:
    """[N, H, W, C] uint8 -> [N, side, side, channels]."""
    if channels == 1 and pixels.shape[-1] == 3:
        pixels = np.rint(pixels.mean(axis=-1, keepdims=True)).astype(np.uint8)
    if channels == 3 and pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    if pixels.shape[1:3] == (side, side):
        return pixels
    resized = [
        np.asarray(Image.fromarray(np.squeeze(x)).resize((side, side), Image.Resampling.BICUBIC))
        for x in pixels
    ]
    return np.stack(resized).reshape(len(pixels), side, side, channels)
