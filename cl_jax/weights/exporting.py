"""The network of a run for other libraries: their names as safetensors, a Hugging Face folder, ONNX
or StableHLO. What is written is compared with the run at once, on random inputs."""

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from cl_jax.core.errors import ConfigError
from cl_jax.core.paths import user_path
from cl_jax.core.tokens import END, PAD, SPECIAL, START
from cl_jax.data import wordpiece
from cl_jax.encoders import ms_clip, positions, resnet, transformer, vit
from cl_jax.training import configs, metrics
from cl_jax.training.trained import Trained
from cl_jax.weights import huggingface, importing, libraries, names, onnx_graph
from cl_jax.weights.names import DIALECTS

TARGETS = ("torchvision", "timm", "huggingface", "onnx", "stablehlo")
TOLERANCE = 1e-4
_KINDS = {"resnet": resnet, "vit": vit, "transformer": transformer, "ms_clip": ms_clip}
_DIALECTS = {
    ("resnet", "torchvision"): "resnet/torchvision",
    ("resnet", "timm"): "resnet/torchvision",
    ("resnet", "huggingface"): "resnet/huggingface",
    ("vit", "torchvision"): "vit/torchvision",
    ("vit", "timm"): "vit/timm",
    ("vit", "huggingface"): "vit/huggingface",
}
Tree = dict[str, Any]
Answers = dict[str, np.ndarray]


class Network(NamedTuple):
    """What is exported. kind: "resnet", "vit", "transformer" or "clip". encoder: its module, in
    float32, of config.encoder's section. params, stats: of the encoder; of "clip", params are those
    of the whole network. head: of a sentence head, else None. side: of images in pixels."""

    kind: str
    section: dict[str, Any]
    encoder: Any
    params: Tree
    stats: Tree
    head: Tree | None
    side: int

    @property
    def inputs(self) -> Answers:
        """Random inputs of two examples: "images" [2, S, S, C], "tokens" [2, T]."""
        rng = np.random.default_rng(0)
        found: Answers = {}
        if self.kind != "transformer":
            shape = (2, self.side, self.side, self.channels)
            found["images"] = rng.standard_normal(shape, dtype=np.float32)
        if self.kind in ("transformer", "clip"):
            length = self.encoder.length
            low = min(SPECIAL, self.encoder.vocab_size - 1)
            tokens = rng.integers(low, self.encoder.vocab_size, (2, length), dtype=np.int32)
            tokens[:, 0], tokens[0, -1] = START, END
            tokens[1, length // 2], tokens[1, length // 2 + 1 :] = END, PAD
            found["tokens"] = tokens
        return found

    @property
    def channels(self) -> int:
        """Of the images."""
        if self.kind == "clip":
            return int(self.params["towers"]["patches"]["kernel"].shape[2])
        first = {"resnet": "stem_conv1", "vit": "patches"}[self.kind]
        return int(self.params[first]["kernel"].shape[2])

    def answers(self, inputs: Answers) -> Answers:
        """{"h"} of images; of tokens "tokens" too, 0 at padding; of CLIP "image_z" and "text_z"."""

        def called(params: Any, stats: Any, inputs: Any) -> Any:
            if self.kind == "clip":
                of = {"image": inputs["images"], "tokens": inputs["tokens"]}
                found = self.encoder.apply({"params": params["towers"]}, of, train=False)
                z = {}
                for name, h in found.items():
                    z[f"{name}_z"] = h @ params[f"{name}_projection"]["kernel"]
                return {
                    name: x / jnp.linalg.norm(x, axis=1, keepdims=True) for name, x in z.items()
                }
            variables = {"params": params, "batch_stats": stats}
            found = self.encoder.apply(variables, next(iter(inputs.values())), train=False)
            kept = ("h", "tokens") if self.kind == "transformer" else ("h",)
            return {name: found[name] for name in kept}

        found = jax.jit(called)(self.params, self.stats, inputs)
        return _without_padding({name: np.asarray(x) for name, x in found.items()}, inputs)


def write(run: Trained, to: str, out: str | Path) -> list[str]:
    """Writes the network of a run into a new folder; returns lines about it.

    Args:
      run: see `cl_jax.load`.
      to: one of `TARGETS`.
      out: the folder; it appears when all is written and checked.

    Raises:
      ConfigError: a network that the target cannot express, with the layer; answers that differ by
        more than 1e-4; a library that the target needs; a folder that is there, or cannot be
        written.
    """
    place = user_path(out)
    if place.exists():
        raise ConfigError(f"{place} is there already; give a new folder as --out.")
    if to not in TARGETS:
        raise ConfigError(f"to={to!r}; expected one of {', '.join(TARGETS)}.")
    net = network(run)
    refuse(net, to)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        held = tempfile.TemporaryDirectory(dir=place.parent)
    except OSError as error:
        raise ConfigError(f"--out={out} cannot be written: {error}.") from None
    with held as found:
        folder = Path(found) / "whole"
        folder.mkdir()
        writer = {"onnx": _onnx, "stablehlo": _stablehlo}.get(to)
        if writer is not None:
            difference, how = writer(net, folder)
        elif net.kind in ("transformer", "clip"):
            difference, how = _tokens_to_huggingface(run, net, folder)
        else:
            difference, how = _named(net, to, folder)
        if not difference <= TOLERANCE:
            raise ConfigError(
                f"the exported network's answers differ by {difference:.2g} from the run's; "
                f"expected at most {TOLERANCE:g}. Nothing was written."
            )
        line = f"largest difference on random inputs {difference:.2g}, {how}"
        (folder / "README.md").write_text(_card(run, net, to, line))
        for path in folder.iterdir():
            path.chmod(0o644)  # safetensors are written for their owner alone
        shutil.move(str(folder), place)
    return [f"in {place}: {', '.join(sorted(path.name for path in place.iterdir()))}", line]


def network(run: Trained) -> Network:
    """The network of a run that can be exported.

    Raises:
      ConfigError: it has several encoders, or one of another kind.
    """
    section = configs.plain(run.config)["encoder"]
    params, stats = (
        jax.tree.map(np.asarray, dict(run.variables[name])) for name in ("params", "batch_stats")
    )
    params = params.get("pretrained", params)  # of a fine-tuned run, without its classifier
    name = section.get("name")
    if name not in _KINDS or ("towers" if name == "ms_clip" else "encoder") not in params:
        what = f"an encoder {name}" if name else f"several encoders, {', '.join(section)}"
        raise ConfigError(
            f"{run.workdir} has {what} (its parts: {', '.join(params)}); a run of one encoder of "
            f"{', '.join(_KINDS)} is exported."
        )
    section |= {"dtype": "float32"}
    head = None
    if name == "ms_clip":
        table = params["towers"]["token_table"]["embedding"]
    else:
        head = params.get("sentence_head")
        params, stats = params["encoder"], stats.get("encoder", {})
        table = params["embedding"]["embedding"] if name == "transformer" else None
    if table is not None:
        section["vocab_size"] = len(table)
    make: Any = _KINDS[name].make  # type: ignore[attr-defined]
    plain = {key: value for key, value in section.items() if key != "name"}
    if name == "resnet":
        plain["for_cpu"] = False
    encoder = make(**plain)
    sizes = [int(run.config.views[view].get("size", 0)) for view in sorted(run.config.views)]
    side = next(filter(None, sizes), int(run.config.data.get("image_size", 0)) or 224)
    if name == "ms_clip":
        side = encoder.image_size
    kind = "clip" if name == "ms_clip" else name
    return Network(kind, section, encoder, params, stats, head, side)


def refuse(net: Network, to: str) -> None:
    """Raises ConfigError, with the layer, for a network that the target cannot express."""
    by_kind = {
        "resnet": _odd_resnet,
        "vit": lambda net, to: _odd_channels(net, to, "patches"),
        "transformer": _odd_transformer,
        "clip": _odd_clip,
    }
    why = by_kind[net.kind](net, to)
    if why:
        mend = (
            " Train with --config.encoder.width=1.0 --config.encoder.stem=imagenet "
            "--config.encoder.variant=torchvision for a ResNet that it has, or export to onnx."
            if net.kind == "resnet"
            else ""
        )
        raise ConfigError(f"{to} cannot express this {net.section['name']}: {why}.{mend}")


def _odd_resnet(net: Network, to: str) -> str:
    """What no name says: how a layer pads, pools or how wide it may be."""
    section = net.section
    if to in ("onnx", "stablehlo"):
        return ""
    if section.get("sk_ratio", 0):
        return "stage1_block1/sk: selective kernels"
    if section.get("variant", "torchvision") != "torchvision":
        return f"stem: the max-pool and shortcuts of variant {section['variant']}"
    if section.get("stem", "imagenet") == "cifar":
        return "stem_conv1: 3x3 without a max-pool"
    stages = len(net.encoder._blocks()[0])
    if to != "huggingface" and stages != 4:
        return f"stage{min(stages, 4)}_block1: {stages} stages; huggingface has it"
    stem = int(net.params["stem_conv1"]["kernel"].shape[-1])
    if to != "huggingface" and stem != 64:
        return f"stem_conv1: {stem} channels in place of 64; huggingface has it"
    if to == "torchvision" and section.get("width", 1.0) != 1:
        return f"stage1_block1: width {section['width']}; timm and huggingface have it"
    return _odd_channels(net, to, "stem_conv1")


def _odd_channels(net: Network, to: str, layer: str) -> str:
    if to == "torchvision" and net.channels != 3:
        return f"{layer}: {net.channels} channels of images; timm and huggingface have it"
    return ""


def _odd_transformer(net: Network, to: str) -> str:
    section = net.section
    style = section.get("style", "bert")
    if to in ("torchvision", "timm"):
        return "embedding: it reads tokens; huggingface, onnx and stablehlo do"
    if section.get("cross") and to != "stablehlo":
        return "blocks_0/cross: attention to a memory"
    if to == "onnx" and style == "t5":
        return "relative: positions by distance"
    if to == "huggingface" and style != "bert":
        return f"norms_0_0: the norms of style {style}; BertModel has those of style bert"
    if to == "huggingface" and section.get("causal"):
        return "blocks_0/attention: causal; BertModel sees tokens before and behind"
    return ""


def _odd_clip(net: Network, to: str) -> str:
    section = net.section
    if to != "huggingface":
        return "towers: two encoders in one; huggingface has CLIPModel"
    if section.get("share", "blocks") != "none":
        return "shared_blocks_0: one block for images and words; CLIPModel has share='none'"
    if section.get("stem", "patch") != "patch":
        return "early: a stem of convolutions"
    if section.get("branch"):
        return "side: a branch of convolutions"
    return ""


def _difference(theirs: Mapping[str, Any], ours: Answers) -> float:
    """The largest, NaN where one is NaN."""
    return float(max(np.abs(theirs[name] - ours[name]).max() for name in theirs))


def _without_padding(found: Answers, inputs: Answers) -> Answers:
    """States of padding are what a library makes of them."""
    if "tokens" not in found:
        return found
    real = (inputs["tokens"] != PAD)[:, :, None]
    return found | {"tokens": np.where(real, found["tokens"], 0)}


# Names of other libraries --------------------------------------


def _named(net: Network, to: str, folder: Path) -> tuple[float, str]:
    """A ResNet or ViT under the names of torchvision, timm or Hugging Face."""
    from safetensors.numpy import save_file

    section = net.section
    if section["name"] == "vit" and net.encoder.variant == "dino":
        net = net._replace(side=net.encoder.image_size)
    dialect = DIALECTS[_DIALECTS[net.kind, to]]
    flat = flax.traverse_util.flatten_dict(net.params) | flax.traverse_util.flatten_dict(net.stats)
    flat.pop(("mask_token",), None)  # of training alone
    if net.kind == "vit" and ("positions",) not in flat:
        flat["positions",] = _positions(net)
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
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    inputs = net.inputs
    ours = net.answers(inputs)
    real = libraries.of(to, net.kind, net.encoder, folder, inputs)
    if real is not None:
        return _difference(real[0], ours), real[1]
    heads = net.encoder.heads if net.kind == "vit" else 0
    again = importing.read(folder / "model.safetensors", heads=heads)
    pooled = {"pool": section["pool"]} if "pool" in section else {}
    read = net._replace(
        encoder=importing.encoder_of(again.section | pooled), params=again.params, stats=again.stats
    )
    return _difference(read.answers(inputs), ours), "read back by cl_jax, without PyTorch"


def _positions(net: Network) -> np.ndarray:
    """[1, 1 + P, D] of a ViT at its side."""
    encoder: vit.ViT = net.encoder
    grid = net.side // encoder.patch
    if "positions" in net.params:
        table = jnp.asarray(net.params["positions"])
        return np.asarray(positions.interpolate(table, net.side, net.side, patch=encoder.patch))
    table = positions.sincos_2d(grid, grid, encoder.width, order=encoder.variant)
    return np.asarray(table).reshape(1, grid * grid + 1, -1)


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
    depths, bottleneck = net.encoder._blocks()
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


def _tokens_to_huggingface(run: Trained, net: Network, folder: Path) -> tuple[float, str]:
    """A BertModel, or a CLIPModel; with the vocabulary, where the run has BERT's."""
    from safetensors.numpy import save_file

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
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    words = Path(str(run.config.data.get("tokenizer_path", "") or "")).expanduser()
    if net.kind == "transformer" and words.name == "vocab.txt" and words.is_file():
        pieces = wordpiece.load(words).pieces
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
        return _difference(_without_padding(real[0], inputs), ours), real[1]
    if net.kind == "clip":
        found = huggingface.clip_answers(folder, inputs["images"], inputs["tokens"])
        theirs: Mapping[str, Any] = dict(zip(("image_z", "text_z"), found))
    else:
        states = {"tokens": huggingface.bert_states(folder, inputs["tokens"])}
        theirs = _without_padding(states, inputs)
    return _difference(theirs, ours), "by NumPy from the files, without PyTorch"


def _write_json(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2) + "\n")


# Graphs --------------------------------------


def _onnx(net: Network, folder: Path) -> tuple[float, str]:
    """model.onnx, weights inside: "images" float32 [N, C, S, S] or "tokens" int64 [N, T] to "h"."""
    if importlib.util.find_spec("onnx") is None:
        raise ConfigError("an ONNX file is written with onnx: pip install 'cl_jax[export]'.")
    import onnx

    if net.kind == "resnet":
        model = onnx_graph.resnet(net.encoder, net.params, net.stats, net.side)
    elif net.kind == "vit":
        model = onnx_graph.vit(net.encoder, net.params, _positions(net), net.side)
    else:
        model = onnx_graph.transformer(net.encoder, net.params)
    path = folder / "model.onnx"
    onnx.save(model, path)
    inputs = net.inputs
    given = (
        {"tokens": inputs["tokens"].astype(np.int64)}
        if net.kind == "transformer"
        else {"images": inputs["images"].transpose(0, 3, 1, 2)}
    )
    found, how = onnx_graph.run(path, given)
    return _difference({"h": found}, net.answers(inputs)), how


def _stablehlo(net: Network, folder: Path) -> tuple[float, str]:
    """Weights inside, float32 images [N, S, S, C] or int32 tokens [N, T] to "h" [N, D], for CPU,
    GPU and TPU."""
    from jax import export

    if importlib.util.find_spec("flatbuffers") is None:
        raise ConfigError("StableHLO is written with flatbuffers: pip install 'cl_jax[export]'.")
    variables = jax.tree.map(jnp.asarray, {"params": net.params, "batch_stats": net.stats})
    (rows,) = export.symbolic_shape("n")
    inputs = net.inputs
    (value,) = inputs.values()
    found = export.export(
        jax.jit(lambda x: net.encoder.apply(variables, x, train=False)["h"]),
        platforms=("cpu", "cuda", "tpu"),
    )(jax.ShapeDtypeStruct((rows, *value.shape[1:]), value.dtype))
    path = folder / "model.stablehlo"
    path.write_bytes(found.serialize())
    again = export.deserialize(bytearray(path.read_bytes()))
    theirs = np.asarray(again.call(value))
    return _difference({"h": theirs}, net.answers(inputs)), "read back by jax.export"


def _card(run: Trained, net: Network, to: str, check: str) -> str:
    """The model card."""
    config = configs.plain(run.config)
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
        if isinstance(value, int | float) and name not in ("time", "step", "eval_seconds")
    )
    return f"""---
library_name: {"transformers" if to == "huggingface" else to}
---
# {net.section["name"]} of {config["method"]["name"]}

Written by cl_jax for {to}. {check[0].upper()}{check[1:]}.

{_inputs_told(net, config, to)}
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


def _inputs_told(net: Network, config: dict[str, Any], to: str) -> str:
    """What goes in and comes out, in lines of the card."""
    lines = []
    if net.kind != "transformer":
        view = config["views"][sorted(config["views"])[0]]
        recipe = "of the view's recipe in cl_jax"
        side = net.encoder.image_size if net.kind == "vit" and to in _OF_VIT else net.side
        shape = f"[N, {net.channels}, {side}, {side}]"
        if to == "stablehlo":
            shape = f"[N, {side}, {side}, {net.channels}]"
        lines.append(
            f"- Images: {shape}, from 0 to 1, then mean {view.get('mean') or recipe}, std "
            f"{view.get('std') or recipe}."
        )
    if net.kind in ("transformer", "clip"):
        lines.append(
            f"- Tokens: [N, {net.encoder.length}], {PAD} padding, 1 unknown, {START} start, {END} "
            f"end, 4 mask, pieces of the run's tokenizer "
            f"({config['data'].get('tokenizer_path') or 'trained on its text'}) from {SPECIAL}."
        )
    if net.kind == "clip":
        lines.append("- Features: unit image_embeds and text_embeds.")
    else:
        pool = net.section.get("pool", "cls" if net.kind == "vit" else "avg")
        told = {
            "cls": "the first token of the last layer",
            "eos": "the end token of the last layer",
            "avg_top2": "the mean over tokens of the last two layers",
            "avg_first_last": "the mean over tokens of the first and last layer",
        }.get(pool, "the mean over tokens of the last layer")
        lines.append(
            "- Features: "
            + ("the mean over places of the last map" if net.kind == "resnet" else told)
            + "."
        )
    return "\n".join(lines)


_OF_VIT = ("torchvision", "timm", "huggingface")
