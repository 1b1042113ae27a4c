"""Runs of imported networks: a workdir on which every command works."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cl_jax.core.errors import ConfigError
from cl_jax.data import declared
from cl_jax.training import checkpoint, configs, defaults, experiment, stages
from cl_jax.training.workdir import path_of
from cl_jax.weights import importing
from cl_jax.weights.importing import Imported


def config_of(
    found: Imported,
    source: str,
    *,
    data: str = "",
    image_size: int = 0,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> ConfigDict:
    """The config of a run of an imported network.

    Args:
      found: the network.
      source: where it is from, kept in the config.
      data: a folder of images for evaluations; it may be given then.
      image_size: side in pixels of what the network sees; 0 for that of a ViT's positions, of the
        folder's preprocessor_config.json, or 224.
      mean, std: that images are normalised by; () for those of preprocessor_config.json, else of
        ImageNet.
    """
    if image_size < 0:
        raise ConfigError(f"image_size={image_size}; expected pixels, or 0 for that of the file.")
    kept: dict[str, Any] = found.preprocessing
    size = image_size or found.section.get("image_size", 0) or _side(kept) or 224
    config = defaults.get_config()
    config.method = ConfigDict(dict(name="imported"))
    config.encoder = ConfigDict(found.section)
    config.data = ConfigDict(
        dict(
            name="folder", path=data, image_size=round(size / 0.875), labels=True, on_error="raise"
        )
    )
    config.views = ConfigDict(
        dict(
            one=dict(
                name="crop_flip",
                size=size,
                interpolation="bicubic" if _bicubic(found) else "bilinear",
                mean=tuple(mean or kept.get("image_mean") or defaults.NORMALISED["mean"]),
                std=tuple(std or kept.get("image_std") or defaults.NORMALISED["std"]),
            )
        )
    )
    # One device divides any number of images; other commands use all devices for a run's network.
    config.update(dict(batch_size=1, devices=1, total_epochs=1.0, init_from=source))
    config.evals.update(dict(batch_size=64))
    return config


def make(found: Imported, config: ConfigDict, out: str | Path) -> None:
    """Writes the run into a new folder.

    Raises:
      ConfigError: the folder has a run of something else, or cannot be written; the network is of
        images with other than 3 channels.
      SaveError: the checkpoint could not be written.
    """
    workdir = path_of(out)
    if checkpoint.are_in(workdir) or _of_a_training(workdir):
        raise ConfigError(f"{workdir} holds a run already; give a new folder as --out.")
    kernel = found.params["stem_conv1" if "stem_conv1" in found.params else "patches"]["kernel"]
    if (channels := np.shape(kernel)[-2]) != 3:
        raise ConfigError(
            f"{config.init_from} is a network of images with {channels} channels; expected 3. A "
            f"method may start from it: --config.init_from={config.init_from} "
            f"--config.data.channels={channels}."
        )
    data = declared.make(train_size=1, image_size=config.data.image_size, num_classes=1)
    plain = data._replace(**{part: _unlabelled(getattr(data, part)) for part in ("train", "test")})
    built = experiment.build(config, None, plain)
    state = importing.put(experiment.initial_state(built, config), found, config.init_from)
    stages.keep(workdir, config, plain, jax.block_until_ready(state))


def _of_a_training(workdir: Path) -> bool:
    """Whether a training began in the workdir. An import whose checkpoint could not be saved leaves
    a config there too, and the same command makes the run later."""
    if not (workdir / "config.json").exists():
        return False
    return bool(configs.of_run(workdir).get("method", {}).get("name") != "imported")


def _unlabelled(source: Any) -> Any:
    from cl_jax.data.source import from_arrays

    return from_arrays(source.name, {"image": source.arrays["image"]}, {})


def _bicubic(found: Imported) -> bool:
    """Whether its authors evaluate on images that were resized so: of ViTs, and BYOL."""
    return found.section["name"] == "vit" or found.dialect == "resnet/haiku"


def _side(preprocessing: dict[str, Any]) -> int:
    """What a Hugging Face preprocessor crops to."""
    size = preprocessing.get("crop_size") or preprocessing.get("size") or 0
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or 0
    return size if isinstance(size, int) else 0
