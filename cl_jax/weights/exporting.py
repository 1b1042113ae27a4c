"""The encoder of a run for other libraries: their names as safetensors, a Hugging Face folder, or
StableHLO. What is written is read back at once and compared with the run on random images."""

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from cl_jax.core.errors import ConfigError
from cl_jax.core.paths import user_path
from cl_jax.encoders import positions, resnet, vit
from cl_jax.training import configs, metrics
from cl_jax.training.trained import Trained
from cl_jax.weights import importing, names
from cl_jax.weights.names import DIALECTS

TARGETS = ("torchvision", "timm", "huggingface", "stablehlo")
TOLERANCE = 1e-4
_DIALECTS = {
    ("resnet", "torchvision"): "resnet/torchvision",
    ("resnet", "timm"): "resnet/torchvision",
    ("resnet", "huggingface"): "resnet/huggingface",
    ("vit", "torchvision"): "vit/torchvision",
    ("vit", "timm"): "vit/timm",
    ("vit", "huggingface"): "vit/huggingface",
}
Tree = dict[str, Any]


def write(run: Trained, to: str, out: str | Path) -> list[str]:
    """Writes the encoder of a run into a new folder; returns lines about it.

    Args:
      run: see `cl_jax.load`.
      to: one of `TARGETS`.
      out: the folder; it appears when all is written and checked.

    Raises:
      ConfigError: a network that the target cannot express, with the layer; answers that differ by
        more than 1e-4; a folder that is there.
    """
    place = user_path(out)
    if place.exists():
        raise ConfigError(f"{place} is there already; give a new folder as --out.")
    if to not in TARGETS:
        raise ConfigError(f"to={to!r}; expected one of {', '.join(TARGETS)}.")
    section, params, stats = _encoder(run)
    side = int(run.config.views[sorted(run.config.views)[0]].get("size", 224))
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as found:
        folder = Path(found) / "whole"
        folder.mkdir()
        if to == "stablehlo":
            difference, how = _stablehlo(section, params, stats, side, folder)
        else:
            difference, how = _named(section, params, stats, side, to, folder)
        if not difference <= TOLERANCE:
            raise ConfigError(
                f"the exported network's answers differ by {difference:.2g} from the run's; "
                f"expected at most {TOLERANCE:g}. Nothing was written."
            )
        line = f"largest difference on random images {difference:.2g}, {how}"
        (folder / "README.md").write_text(_card(run, section, to, side, line))
        shutil.move(str(folder), place)
    return [f"in {place}: {', '.join(sorted(path.name for path in place.iterdir()))}", line]


def _encoder(run: Trained) -> tuple[dict[str, Any], Tree, Tree]:
    """(section, params, stats) of the run's one encoder."""
    section = configs.plain(run.config)["encoder"]
    variables = run.variables
    if "name" not in section or "encoder" not in variables["params"]:
        raise ConfigError(
            f"{run.workdir} has no single encoder: its parts are "
            f"{', '.join(variables['params'])}; only one ResNet or ViT is exported."
        )
    if section["name"] not in ("resnet", "vit"):
        raise ConfigError(
            f"{run.workdir}: the encoder is {section['name']}; only resnet and vit are exported."
        )
    params, stats = (
        jax.tree.map(np.asarray, dict(variables[name].get("encoder", {})))
        for name in ("params", "batch_stats")
    )
    return section | {"dtype": "float32"}, params, stats


def _answers(section: Mapping[str, Any], params: Tree, stats: Tree, images: Any) -> np.ndarray:
    encoder = importing.encoder_of(section)
    variables = {"params": params, "batch_stats": stats}
    found = jax.jit(lambda v, x: encoder.apply(v, x, train=False)["h"])(variables, images)
    return np.asarray(found)


def _images(side: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, side, side, 3), dtype=np.float32)


# Names of other libraries --------------------------------------


def _named(
    section: dict[str, Any], params: Tree, stats: Tree, side: int, to: str, folder: Path
) -> tuple[float, str]:
    from safetensors.numpy import save_file

    _refuse(section, to)
    dialect = DIALECTS[_DIALECTS[section["name"], to]]
    flat = flax.traverse_util.flatten_dict(params) | flax.traverse_util.flatten_dict(stats)
    flat.pop(("mask_token",), None)  # of training alone
    if section["name"] == "vit" and ("positions",) not in flat:
        grid = side // section.get("patch", 16)
        table = positions.sincos_2d(
            grid, grid, flat["class_token",].shape[-1], order=section["variant"]
        )
        flat["positions",] = np.asarray(table).reshape(1, grid * grid + 1, -1)
    tensors: dict[str, np.ndarray] = {}
    for at, value in flat.items():
        called = dialect.names(at)
        if not called:
            raise ConfigError(f"{'/'.join(at)} has no place in a {to} network.")
        tensors |= dict(zip(called, names.to_theirs(at, value, len(called))))
    if to == "huggingface":
        settings = _huggingface(section, flat, side)
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    heads = importing.encoder_of(section).heads if section["name"] == "vit" else 0
    again = importing.read(folder / "model.safetensors", heads=heads)
    pooled = {"pool": section["pool"]} if "pool" in section else {}
    images = _images(side)
    theirs = _answers(again.section | pooled, again.params, again.stats, images)
    ours = _answers(section, params, stats, images)
    return float(np.abs(theirs - ours).max()), "read back by cl_jax, without PyTorch"


def _refuse(section: Mapping[str, Any], to: str) -> None:
    """Refuses what no name says: how a layer pads, pools or how wide it may be."""
    if section["name"] == "vit":
        return
    why = ""
    if section.get("sk_ratio", 0):
        why = "stage1_block1/sk: selective kernels"
    elif section.get("variant", "torchvision") != "torchvision":
        why = f"stem: the max-pool and shortcuts of variant {section['variant']}"
    elif section.get("stem", "imagenet") == "cifar":
        why = "stem_conv1: 3x3 without a max-pool"
    elif to == "torchvision" and section.get("width", 1.0) != 1:
        why = f"stem_conv1: width {section['width']}; timm and huggingface have it"
    elif to == "torchvision" and section.get("stem_width") not in (None, 64):
        why = f"stem_conv1: {section['stem_width']} channels"
    if why:
        raise ConfigError(f"{to} cannot express this ResNet: {why}.")


def _huggingface(section: dict[str, Any], flat: Mapping[Any, Any], side: int) -> dict[str, Any]:
    """config.json of a ResNetModel or ViTModel."""
    if section["name"] == "vit":
        encoder = importing.encoder_of(section)
        assert isinstance(encoder, vit.ViT)
        return dict(
            architectures=["ViTModel"],
            model_type="vit",
            hidden_size=encoder.width,
            num_hidden_layers=encoder.depth,
            num_attention_heads=encoder.heads,
            intermediate_size=int(encoder.width * encoder.mlp_ratio),
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            image_size=encoder.image_size if encoder.variant == "dino" else side,
            patch_size=encoder.patch,
            num_channels=3,
            qkv_bias=True,
        )
    depths, bottleneck = resnet.BLOCKS.get(section.get("depth", 50), ((), False))
    depths = section.get("blocks") or depths
    bottleneck = bool(section.get("bottleneck", bottleneck))
    last = "conv3" if bottleneck else "conv2"
    widths = [
        int(flat[f"stage{stage}_block1", last, "kernel"].shape[-1])
        for stage in range(1, len(depths) + 1)
    ]
    return dict(
        architectures=["ResNetModel"],
        model_type="resnet",
        depths=list(depths),
        hidden_sizes=widths,
        embedding_size=int(flat["stem_conv1", "kernel"].shape[-1]),
        layer_type="bottleneck" if bottleneck else "basic",
        hidden_act="relu",
        downsample_in_first_stage=False,
        downsample_in_bottleneck=False,
        num_channels=3,
    )


# StableHLO --------------------------------------


def _stablehlo(
    section: dict[str, Any], params: Tree, stats: Tree, side: int, folder: Path
) -> tuple[float, str]:
    """Weights inside, float32 images [N, S, S, 3] to "h" [N, D], for CPU, GPU and TPU."""
    from jax import export

    plain = section | ({"for_cpu": False} if section["name"] == "resnet" else {})
    encoder = importing.encoder_of(plain)
    variables = jax.tree.map(jnp.asarray, {"params": params, "batch_stats": stats})
    (rows,) = export.symbolic_shape("n")
    like = jax.ShapeDtypeStruct((rows, side, side, 3), jnp.float32)
    found = export.export(
        jax.jit(lambda x: encoder.apply(variables, x, train=False)["h"]),
        platforms=("cpu", "cuda", "tpu"),
    )(like)
    if importlib.util.find_spec("flatbuffers") is None:
        raise ConfigError("StableHLO is written with flatbuffers: pip install 'cl_jax[export]'.")
    path = folder / "model.stablehlo"
    path.write_bytes(found.serialize())
    again = export.deserialize(bytearray(path.read_bytes()))
    images = _images(side)
    theirs = np.asarray(again.call(images))
    ours = _answers(section, params, stats, images)
    return float(np.abs(theirs - ours).max()), "read back by jax.export"


def _card(run: Trained, section: Mapping[str, Any], to: str, side: int, check: str) -> str:
    """The model card."""
    config = configs.plain(run.config)
    view = config["views"][sorted(config["views"])[0]]
    figures: dict[str, Any] = {}
    if (path := run.workdir / "eval.json").exists():
        try:
            figures = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            logging.warning("%s cannot be read (%s); the card has no figures.", path, error)
    else:
        rows = metrics.read(run.workdir)
        rows = [row for row in rows if "learning_rate" not in row and row["step"]]
        figures = rows[-1] if rows else {}
    told = "\n".join(
        f"| {name} | {value:.4g} |"
        for name, value in sorted(figures.items())
        if isinstance(value, int | float) and name != "time"
    )
    mean, std, recipe = view.get("mean"), view.get("std"), "of the view's recipe in cl_jax"
    token = section["name"] == "vit" and section.get("pool", "cls") == "cls"
    pooled = "the class token" if token else "the mean over places of the last map"
    return f"""---
library_name: {"transformers" if to == "huggingface" else to}
---
# {section["name"]} of {config["method"]["name"]}

Written by cl_jax for {to}. {check[0].upper()}{check[1:]}.

- Images: {side} x {side}, RGB from 0 to 1, mean {mean or recipe}, std {std or recipe}.
- Features: {pooled}.
- Data: {config["data"]["name"]} {config["data"].get("path", "")}, step {run.step}.
- Started from: {config.get("init_from") or "random weights"}.
- Licence: none is given here. That of the data, and of weights that this started from, holds.

| evaluation | |
|---|---|
{told or "| none | |"}

## Config

```json
{json.dumps(config, indent=1, default=str)}
```
"""
