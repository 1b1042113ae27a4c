"""A network as a folder of another library: `model.safetensors` under its names, and for Hugging
Face `config.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np

from cl_jax.core.errors import ConfigError, SaveError
from cl_jax.core.paths import user_path
from cl_jax.data import wordpiece
from cl_jax.encoders import vit
from cl_jax.training import fingerprint
from cl_jax.training.trained import Trained
from cl_jax.weights import huggingface, importing, libraries, limits, names, padding
from cl_jax.weights.names import DIALECTS
from cl_jax.weights.network import (
    Difference,
    Network,
    difference,
    positions_of,
    without_padding,
)

_DIALECTS = {
    ("resnet", "torchvision"): "resnet/torchvision",
    ("resnet", "timm"): "resnet/torchvision",
    ("resnet", "huggingface"): "resnet/huggingface",
    ("vit", "torchvision"): "vit/torchvision",
    ("vit", "timm"): "vit/timm",
    ("vit", "huggingface"): "vit/huggingface",
}


def images(net: Network, to: str, folder: Path) -> tuple[Difference, str]:
    """A ResNet or ViT under the names of torchvision, timm or Hugging Face: (the difference from
    the run's answers, how it was measured). One that is too narrow for the target is written as a
    part of a network of full width; its answers are then compared with zeros after them."""
    section, run, narrow = net.section, net, limits.narrow(net, to)
    if narrow:
        net = padding.padded(net)
    net = net._replace(side=net.named_side)
    dialect = DIALECTS[_DIALECTS[net.kind, to]]
    flat = flax.traverse_util.flatten_dict(net.params) | flax.traverse_util.flatten_dict(net.stats)
    flat.pop(("mask_token",), None)  # of training alone
    if net.kind == "vit" and ("positions",) not in flat:
        flat["positions",] = positions_of(net)
    tensors: dict[str, np.ndarray] = {}
    for at, value in flat.items():
        called = dialect.names(at)
        if not called:
            raise ConfigError(f"{'/'.join(at)} has no place in a {to} network.")
        tensors |= dict(zip(called, names.to_theirs(at, value, len(called))))
    if to == "huggingface":
        _write_json(folder / "config.json", _huggingface(net, flat))
    for name in [name for name in tensors if name.endswith("running_var")]:
        tensors[name.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    _write_tensors(folder / "model.safetensors", tensors)
    inputs = net.inputs
    ours = run.answers(inputs)
    if narrow:
        ours = padding.with_zeros(ours, net)
    real = libraries.of(to, net.kind, net.encoder, folder, inputs)
    if real is not None:
        return difference(real[0], ours), real[1]
    heads = net.encoder.heads if net.kind == "vit" else 0
    again = importing.read(folder / "model.safetensors", heads=heads)
    pooled = {"pool": section["pool"]} if "pool" in section else {}
    read = net._replace(
        encoder=importing.encoder_of(again.section | pooled), params=again.params, stats=again.stats
    )
    return difference(read.answers(inputs), ours), "read back by cl_jax, without PyTorch"


def _huggingface(net: Network, flat: Mapping[Any, Any]) -> dict[str, Any]:
    """config.json of a ResNetModel or ViTModel."""
    if net.kind == "vit":
        encoder: vit.ViT = net.encoder
        return dict(
            architectures=["ViTModel"],
            model_type="vit",
            hidden_size=encoder.width,
            num_hidden_layers=encoder.depth,
            num_attention_heads=encoder.heads,
            intermediate_size=int(encoder.width * encoder.mlp_ratio),
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            image_size=net.side,
            patch_size=encoder.patch,
            num_channels=net.channels,
            qkv_bias=True,
        )
    depths, bottleneck = net.encoder.stages()
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
        num_channels=net.channels,
    )


def tokens(run: Trained, net: Network, folder: Path) -> tuple[Difference, str]:
    """A BertModel, or a CLIPModel, with the vocabulary where the run has BERT's: as `images`."""
    if net.kind == "clip":
        settings, tensors = huggingface.clip(net.encoder, net.params)
    else:
        head = net.head if net.encoder.pool == "cls" else None
        settings, tensors = huggingface.bert(net.encoder, net.params, head)
    _write_json(folder / "config.json", settings)
    tensors = {
        name: np.ascontiguousarray(value, np.float32).reshape(np.shape(value))
        for name, value in tensors.items()
    }
    _write_tensors(folder / "model.safetensors", tensors)
    pieces = _vocabulary(run) if net.kind == "transformer" else ()
    if pieces:
        (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
        _write_json(
            folder / "tokenizer_config.json",
            dict(
                tokenizer_class="BertTokenizer",
                do_lower_case=True,
                model_max_length=net.encoder.length,
            ),
        )
    inputs = net.inputs
    ours = net.answers(inputs)
    real = libraries.of("huggingface", net.kind, net.encoder, folder, inputs)
    if real is not None:
        return difference(without_padding(real[0], inputs), ours), real[1]
    if net.kind == "clip":
        found = huggingface.clip_answers(folder, inputs["images"], inputs["tokens"])
        theirs: Mapping[str, Any] = dict(zip(("image_z", "text_z"), found))
    else:
        states = {"tokens": huggingface.bert_states(folder, inputs["tokens"])}
        theirs = without_padding(states, inputs)
    return difference(theirs, ours), "by NumPy from the files, without PyTorch"


def _vocabulary(run: Trained) -> Sequence[str]:
    """The pieces of BERT's vocabulary that a run reads its text by, also where the file is gone;
    none of a run with another tokenizer."""
    path = str(run.config.data.get("tokenizer_path", "") or "")
    if Path(path).name == "vocab.txt" and user_path(path).is_file():
        return wordpiece.load(path).pieces
    held = (fingerprint.learnt(run.workdir) or {}).get("tokenizer", {})
    found: Sequence[str] = held.get("pieces", ())
    return found


def _write_json(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2) + "\n")


def _write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(tensors, path, {"format": "pt"})
    except SafetensorError as error:  # of a full disk too, which is no OSError there
        raise SaveError(f"{path.name} cannot be written: {error}.") from error
