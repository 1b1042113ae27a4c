"""Weights on disk: {name: array} of a file or a folder of another library."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cl_jax.core.errors import ConfigError, NotFoundError
from cl_jax.core.paths import user_path
from cl_jax.weights import pickles

_OF_FOLDER = ("model.safetensors", "pytorch_model.bin")


class Weights(NamedTuple):
    """tensors: {name: array}. settings: of a Hugging Face folder, its config.json;
    preprocessing: its preprocessor_config.json; both empty elsewhere."""

    tensors: dict[str, np.ndarray]
    settings: dict[str, Any]
    preprocessing: dict[str, Any]


def read(given: str | Path) -> Weights:
    """The weights in a .safetensors file, a PyTorch checkpoint (.pth, .pt, .bin, .ckpt, .tar), a
    pickle of arrays such as BYOL's checkpoints (.pkl) or a Hugging Face folder.

    Raises:
      NotFoundError: nothing is there.
      ConfigError: it is damaged, of no known format, or holds no tensor.
    """
    path = user_path(given)
    if path.is_dir():
        files = [path / name for name in _OF_FOLDER if (path / name).is_file()]
        if not files:
            raise NotFoundError(
                f"{path} holds neither {' nor '.join(_OF_FOLDER)}; give the file of the weights."
            )
        found = read(files[0])
        return found._replace(
            settings=_json(path / "config.json"),
            preprocessing=_json(path / "preprocessor_config.json"),
        )
    if not path.is_file():
        raise NotFoundError(f"{path} does not exist; give a file of weights or a folder of one.")
    with path.open("rb") as file:
        start = file.read(16)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        tensors = _safetensors(path)
    elif start[:2] == b"PK" or start[:1] == b"\x80":
        tensors = pickles.read(path)
    else:
        raise ConfigError(
            f"{path} is neither safetensors nor a PyTorch checkpoint nor a pickle; its first bytes "
            f"are {start[:8]!r}."
        )
    if not tensors:
        raise ConfigError(f"{path} holds no tensor.")
    return Weights(tensors, {}, {})


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except Exception as error:  # of a damaged header: nearly anything
        raise ConfigError(
            f"{path} cannot be read as safetensors: {str(error)[:200]}. Is it whole?"
        ) from None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}.") from None
    return found if isinstance(found, dict) else {}
