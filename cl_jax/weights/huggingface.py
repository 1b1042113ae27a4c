"""Configs and tensors of Hugging Face's BertModel and CLIPModel from our transformers, and what
such a folder answers, computed in NumPy from its files alone."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cl_jax.core.tokens import END, PAD, START
from cl_jax.encoders.bert_weights import NORMS, PARTS

Tree = Mapping[str, Any]
Tensors = dict[str, np.ndarray]
_TOWER = {
    "self_attn.q_proj": ("attention", "query"),
    "self_attn.k_proj": ("attention", "key"),
    "self_attn.v_proj": ("attention", "value"),
    "self_attn.out_proj": ("attention", "out"),
    "mlp.fc1": ("mlp1",),
    "mlp.fc2": ("mlp2",),
}


def bert(encoder: Any, params: Tree, head: Tree | None) -> tuple[dict[str, Any], Tensors]:
    """(config.json, tensors) of a BertModel.

    Args:
      encoder: a `Transformer` of style "bert".
      params: its parameters.
      head: those of a `SentenceHead` on the first token, the pooler there; None without one.
    """
    tensors: Tensors = {
        "embeddings.word_embeddings.weight": params["embedding"]["embedding"],
        "embeddings.position_embeddings.weight": params["positions"],
        "embeddings.token_type_embeddings.weight": params["segments"],
    } | _norm("embeddings.LayerNorm", params["norm"])
    for i in range(encoder.depth):
        place = f"encoder.layer.{i}"
        tensors |= _dense(place, PARTS, params[f"blocks_{i}"])
        for theirs, number in NORMS.items():
            tensors |= _norm(f"{place}.{theirs}", params[f"norms_{i}_{number}"])
    if head is not None:
        tensors |= _dense("pooler", {"dense": ("dense",)}, head)
    settings = dict(
        architectures=["BertModel"],
        model_type="bert",
        vocab_size=encoder.vocab_size,
        hidden_size=encoder.width,
        num_hidden_layers=encoder.depth,
        num_attention_heads=encoder.heads,
        intermediate_size=encoder.hidden or 4 * encoder.width,
        hidden_act="gelu",
        max_position_embeddings=encoder.length,
        type_vocab_size=len(params["segments"]),
        layer_norm_eps=1e-12,
        pad_token_id=PAD,
    )
    return settings, tensors


def clip(encoder: Any, params: Tree) -> tuple[dict[str, Any], Tensors]:
    """(config.json, tensors) of a CLIPModel.

    Args:
      encoder: an `ImageText` of share "none" and stem "patch", without a branch.
      params: of CLIP's network: "towers", the two projections and "log_scale".
    """
    towers = params["towers"]
    vision, text = "vision_model", "text_model"
    tensors: Tensors = {
        f"{vision}.embeddings.class_embedding": towers["class_token"],
        f"{vision}.embeddings.patch_embedding.weight": towers["patches"]["kernel"].transpose(
            3, 2, 0, 1
        ),
        f"{vision}.embeddings.position_embedding.weight": towers["image_positions"],
        f"{text}.embeddings.token_embedding.weight": towers["token_table"]["embedding"],
        f"{text}.embeddings.position_embedding.weight": towers["text_positions"],
        "visual_projection.weight": params["image_projection"]["kernel"].T,
        "text_projection.weight": params["text_projection"]["kernel"].T,
        "logit_scale": np.asarray(params["log_scale"]),
    }
    # "pre_layrnorm" is Hugging Face's own spelling.
    tensors |= _norm(f"{vision}.pre_layrnorm", towers["image_first"])
    tensors |= _norm(f"{vision}.post_layernorm", towers["image_last"])
    tensors |= _norm(f"{text}.final_layer_norm", towers["text_last"])
    for name, word in ((vision, "image"), (text, "text")):
        for i in range(encoder.depth):
            place = f"{name}.encoder.layers.{i}"
            tensors |= _dense(place, _TOWER, towers[f"{word}_blocks_{i}"])
            for number in (0, 1):
                norm = towers[f"{word}_norms_{i}_{number}"]
                tensors |= _norm(f"{place}.layer_norm{number + 1}", norm)
    both = dict(
        hidden_size=encoder.width,
        intermediate_size=4 * encoder.width,
        num_hidden_layers=encoder.depth,
        num_attention_heads=encoder.heads,
        hidden_act="quick_gelu",
        layer_norm_eps=encoder.epsilon,
        projection_dim=int(params["image_projection"]["kernel"].shape[1]),
    )
    settings = dict(
        architectures=["CLIPModel"],
        model_type="clip",
        projection_dim=both["projection_dim"],
        logit_scale_init_value=float(params["log_scale"]),
        text_config=both
        | dict(
            model_type="clip_text_model",
            vocab_size=encoder.vocab_size,
            max_position_embeddings=encoder.length,
            pad_token_id=PAD,
            bos_token_id=START,
            eos_token_id=END,
        ),
        vision_config=both
        | dict(
            model_type="clip_vision_model",
            image_size=encoder.image_size,
            patch_size=encoder.patch,
            num_channels=int(towers["patches"]["kernel"].shape[2]),
        ),
    )
    return settings, tensors


def _norm(name: str, layer: Tree) -> Tensors:
    return {f"{name}.weight": layer["scale"], f"{name}.bias": layer["bias"]}


def _dense(place: str, parts: Mapping[str, tuple[str, ...]], block: Tree) -> Tensors:
    found: Tensors = {}
    for theirs, ours in parts.items():
        layer = block
        for name in ours:
            layer = layer[name]
        found[f"{place}.{theirs}.weight"] = layer["kernel"].T
        found[f"{place}.{theirs}.bias"] = layer["bias"]
    return found


# What a folder answers --------------------------------------


class _Read:
    """The layers of a folder's tensors, by name."""

    def __init__(self, tensors: Tensors, settings: Mapping[str, Any]):
        self.tensors, self.settings = tensors, settings

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + self.settings["layer_norm_eps"])
        return centred / deviation * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def dense(self, name: str, x: np.ndarray) -> np.ndarray:
        y = x @ self.tensors[f"{name}.weight"].T
        return y + self.tensors[f"{name}.bias"] if f"{name}.bias" in self.tensors else y

    def act(self, x: np.ndarray) -> np.ndarray:
        if self.settings["hidden_act"] == "quick_gelu":
            return x / (1 + np.exp(-1.702 * x))
        return x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2

    def attention(
        self, names: tuple[str, str, str], x: np.ndarray, allowed: np.ndarray
    ) -> np.ndarray:
        count = self.settings["num_attention_heads"]
        q, k, v = (
            self.dense(name, x).reshape(*x.shape[:2], count, -1).swapaxes(1, 2) for name in names
        )
        scores = q @ k.swapaxes(2, 3) / q.shape[-1] ** 0.5
        scores = np.where(allowed, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ v
        return mixed.swapaxes(1, 2).reshape(x.shape)


def _files(folder: Path) -> tuple[Tensors, dict[str, Any]]:
    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    return {name: value.astype(np.float64) for name, value in tensors.items()}, settings


def bert_states(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """[N, T, D] of the last layer of the BertModel in a folder, for tokens [N, T] padded with
    0."""
    net = _Read(*_files(folder))
    table = net.tensors
    x = table["embeddings.word_embeddings.weight"][tokens]
    x = x + table["embeddings.position_embeddings.weight"][: tokens.shape[1]]
    x = net.norm("embeddings.LayerNorm", x + table["embeddings.token_type_embeddings.weight"][0])
    allowed = (tokens != net.settings["pad_token_id"])[:, None, None, :]
    for i in range(net.settings["num_hidden_layers"]):
        at = f"encoder.layer.{i}"
        of = f"{at}.attention.self"
        y = net.attention((f"{of}.query", f"{of}.key", f"{of}.value"), x, allowed)
        x = net.norm(
            f"{at}.attention.output.LayerNorm", x + net.dense(f"{at}.attention.output.dense", y)
        )
        y = net.act(net.dense(f"{at}.intermediate.dense", x))
        x = net.norm(f"{at}.output.LayerNorm", x + net.dense(f"{at}.output.dense", y))
    return x


def clip_answers(
    folder: Path, images: np.ndarray, tokens: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows (of images [N, S, S, C], of tokens [N, T]) by the CLIPModel in a folder."""
    tensors, settings = _files(folder)
    found = []
    for word, projection in (("vision", "visual"), ("text", "text")):
        net = _Read(tensors, settings[f"{word}_config"])
        place = f"{word}_model.embeddings"
        positions = tensors[f"{place}.position_embedding.weight"]
        if word == "vision":
            kernel = tensors[f"{place}.patch_embedding.weight"]
            patch, rows = kernel.shape[-1], images.shape[1] // kernel.shape[-1]
            cut = images.reshape(len(images), rows, patch, rows, patch, -1)
            cut = cut.transpose(0, 1, 3, 5, 2, 4).reshape(len(images), rows * rows, -1)
            patches = cut @ kernel.reshape(len(kernel), -1).T
            token = np.broadcast_to(
                tensors[f"{place}.class_embedding"], (len(images), 1, len(kernel))
            )
            x = np.concatenate([token, patches], axis=1) + positions
            x, allowed = net.norm("vision_model.pre_layrnorm", x), np.ones((1, 1), bool)
        else:
            x = tensors[f"{place}.token_embedding.weight"][tokens] + positions[: tokens.shape[1]]
            allowed = np.tril(np.ones((tokens.shape[1],) * 2, bool))
        for i in range(net.settings["num_hidden_layers"]):
            at = f"{word}_model.encoder.layers.{i}"
            names = tuple(f"{at}.self_attn.{one}_proj" for one in "qkv")
            y = net.attention(names, net.norm(f"{at}.layer_norm1", x), allowed)  # type: ignore[arg-type]
            x = x + net.dense(f"{at}.self_attn.out_proj", y)
            y = net.act(net.dense(f"{at}.mlp.fc1", net.norm(f"{at}.layer_norm2", x)))
            x = x + net.dense(f"{at}.mlp.fc2", y)
        if word == "vision":
            h = net.norm("vision_model.post_layernorm", x[:, 0])
        else:
            ends = (tokens == net.settings["eos_token_id"]).argmax(1)
            h = net.norm("text_model.final_layer_norm", x)[np.arange(len(tokens)), ends]
        z = net.dense(f"{projection}_projection", h)
        found.append(z / np.linalg.norm(z, axis=1, keepdims=True))
    return found[0], found[1]
