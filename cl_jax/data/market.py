"""`market`: a folder of pictures of people in the layout of Market-1501, for re-identification.

bounding_box_train/0002_c1s1_000451_03.jpg     person 2, camera 1
query/0001_c1s1_001051_00.jpg
bounding_box_test/0001_c2s1_000301_00.jpg      the gallery; person 0 is a distractor, -1 is junk
"""

import re
from pathlib import Path

import numpy as np
from absl import logging
from PIL import Image

from cl_jax.core.paths import user_path
from cl_jax.data import images, listing
from cl_jax.data.batches import cores
from cl_jax.data.source import Source, Splits, from_arrays

PARTS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
_NAME = re.compile(r"(-1|\d+)_c(\d+)")
_SHOWN = 3


def make(
    *,
    path: str,
    height: int = 128,
    width: int = 64,
    on_error: str = "raise",
    max_pixels: int = images.MAX_PIXELS,
) -> Splits:
    """Reads the folder into memory: the training part; the queries as the test part; the gallery as
    `more["gallery"]`.

    Fields: "image" [height, width, 3] uint8; "label" int32, the person, renumbered in the
      training part and, together, in queries and gallery, which show other people; "camera" int32,
      from 0. A gallery picture of person 0 (nobody, a distractor) has the label -1; pictures of
      person -1 (junk) are left out.

    Args:
      path: the folder.
      height, width: pixels that pictures are resized to, their proportions not kept.
      on_error: "raise" stops at pictures that cannot be read; "skip" leaves them out and counts
        them in `Source.skipped`.
      max_pixels: a larger picture cannot be read.

    Raises:
      ValueError: a part that is missing or empty, names that say no person and camera, pictures
        that cannot be read, a setting out of range.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f'on_error={on_error!r}; expected "raise" or "skip".')
    if min(height, width) < 1:
        raise ValueError(f"height={height}, width={width}; expected at least 1 pixel each.")
    root = user_path(path)
    if not root.is_dir():
        raise ValueError(
            f"path={path!r} is not a folder; set --config.data.path to one with "
            f"{', '.join(PARTS.values())}."
        )
    read = {
        part: _part(root / folder, height, width, on_error, max_pixels)
        for part, folder in PARTS.items()
    }
    trained = np.unique(read["train"][1])
    tested = np.unique(np.concatenate([read[part][1] for part in ("query", "gallery")]))
    num_cameras = 1 + max(int(found[2].max()) for found in read.values())
    sources: dict[str, Source] = {}
    for part, (pixels, person, camera, skipped) in read.items():
        known = trained if part == "train" else tested[tested > 0]
        label = np.searchsorted(known, person).astype(np.int32)
        label[~np.isin(person, known)] = -1
        arrays = {"image": pixels, "label": label, "camera": camera}
        made = from_arrays(
            f"{images.printable(root.name)}/{part}",
            arrays,
            {"label": max(len(known), 1), "camera": num_cameras},
        )
        sources[part] = Source(**{**vars(made), "skipped": skipped})
    return Splits(sources["train"], sources["query"], {"gallery": sources["gallery"]})


def _part(
    folder: Path, height: int, width: int, on_error: str, max_pixels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(pictures, person, camera, how many were skipped)."""
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is missing; expected the layout of Market-1501, with the folders "
            f"{', '.join(PARTS.values())}."
        )
    folder = folder.resolve()
    found = listing.of(folder)
    if found.others:
        logging.warning("%s: skipped files: %s.", folder, found.told())
    files = [name for name in found.files if "/" not in name]
    matches = [_NAME.match(name) for name in files]
    unnamed = [name for name, match in zip(files, matches) if match is None]
    if unnamed:
        raise ValueError(
            f"{folder}: {len(unnamed)} names say no person and camera, such as "
            f"{images.printable(unnamed[0])}; expected 0002_c1s1_000451_03.jpg."
        )
    people = [(name, int(m[1]), int(m[2]) - 1) for name, m in zip(files, matches) if m is not None]
    people = [(name, person, camera) for name, person, camera in people if person >= 0]
    if any(camera < 0 for *_, camera in people):
        raise ValueError(f"{folder}: a name says camera 0; expected cameras from c1 on.")

    def load(one: tuple[str, int, int]) -> np.ndarray | str:
        if reason := found.bad.get(name := one[0]):
            return f"{images.printable(name)}: {reason}"
        try:
            whole = images.decode(
                folder / name, name, image_size=None, channels=3, max_pixels=max_pixels
            )
        except ValueError as error:
            return str(error)
        resized = Image.fromarray(whole).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(resized)

    loaded = images.map_threads(load, people, cores())
    bad = [one for one in loaded if isinstance(one, str)]
    if bad and on_error == "raise":
        raise ValueError(
            f"{len(bad)} pictures in {folder} cannot be used:\n  "
            + "\n  ".join(bad[:_SHOWN])
            + "\nMend or remove them, or leave them out: --config.data.on_error=skip."
        )
    kept = [i for i, one in enumerate(loaded) if not isinstance(one, str)]
    if not kept:
        raise ValueError(f"{folder} holds no picture of a person that can be read.")
    return (
        np.stack([loaded[i] for i in kept]),
        np.array([people[i][1] for i in kept], np.int32),
        np.array([people[i][2] for i in kept], np.int32),
        len(bad),
    )
