"""Weights of a BERT, as Hugging Face keeps them, for an `encoders.transformer` of style "bert"."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cl_jax.core.paths import user_path
from cl_jax.core.tokens import MARKS, SPECIAL, pieces_of

_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
PARTS = {
    "attention.self.query": ("attention", "query"),
    "attention.self.key": ("attention", "key"),
    "attention.self.value": ("attention", "value"),
    "attention.output.dense": ("attention", "out"),
    "intermediate.dense": ("mlp1",),
    "output.dense": ("mlp2",),
}
NORMS = {"attention.output.LayerNorm": 0, "output.LayerNorm": 1}


def order(vocabulary: list[str]) -> np.ndarray:
    """[V] the number in BERT's vocabulary of each token of ours: padding, unknown, start, end and
    mask come first, all others follow in their order.

    Raises:
      ValueError: a vocabulary without one of the five.
    """
    missing = [mark for mark in MARKS if mark not in vocabulary]
    if missing:
        raise ValueError(
            f"the vocabulary has no {', '.join(missing)}; expected BERT's vocab.txt, a piece a "
            "line."
        )
    first = [vocabulary.index(mark) for mark in MARKS]
    others = [i for i in range(len(vocabulary)) if i not in set(first)]
    return np.array(first + others, np.int64)


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged one, or a type that NumPy does not have.
    """
    file = user_path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} is not a file; expected weights in the safetensors format."
        )
    data = file.read_bytes()
    try:
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        body = memoryview(data)[8 + size :]
        found = {}
        for name, one in header.items():
            if name == "__metadata__":
                continue
            begin, end = one["data_offsets"]
            if one["dtype"] == "BF16":
                wide = np.frombuffer(body[begin:end], np.uint16).astype(np.uint32) << 16
                values = wide.view(np.float32)
            elif one["dtype"] in _TYPES:
                values = np.frombuffer(body[begin:end], _TYPES[one["dtype"]])
            else:
                continue  # position numbers of old files
            found[name] = values.reshape(one["shape"])
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    return found


def load(folder: str | Path, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a `Transformer`, with BERT's values.

    Args:
      folder: of a BERT of Hugging Face, with `model.safetensors` and `vocab.txt`. Token rows are
        put in the order of `data.wordpiece`; its heads are not read.
      params: of the network as it is initialised: shapes and types. A network with fewer positions
        takes the first ones.

    Returns:
      The same tree of arrays.

    Raises:
      FileNotFoundError: one of the two is missing.
      ValueError: a damaged file, a tensor that is missing, or of another shape than the network's.
    """
    root = user_path(folder)
    vocab = root / "vocab.txt"
    if not vocab.is_file():
        raise FileNotFoundError(
            f"{folder} has no vocab.txt; expected the folder of a BERT, with vocab.txt and "
            "model.safetensors."
        )
    pieces = pieces_of(vocab)
    tensors = {
        name.removeprefix("bert.").replace(".gamma", ".weight").replace(".beta", ".bias"): value
        for name, value in read(root / "model.safetensors").items()
    }

    def take(name: str) -> np.ndarray:
        if name not in tensors:
            raise ValueError(
                f"{root / 'model.safetensors'} has no {name}; expected a BERT with as many layers "
                f"as the network. Its tensors begin {', '.join(sorted(tensors)[:3])}."
            )
        return tensors[name]

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": take(f"{name}.weight"), "bias": take(f"{name}.bias")}

    table = take("embeddings.word_embeddings.weight")
    if len(table) != len(pieces):
        raise ValueError(
            f"{vocab} has {len(pieces)} pieces and the weights {len(table)} tokens; expected as "
            "many. Are they of one model?"
        )
    positions = take("embeddings.position_embeddings.weight")
    if "positions" in params:
        positions = positions[: params["positions"].shape[0]]
    found: dict[str, Any] = {
        "embedding": {"embedding": table[order(pieces)]},
        "positions": positions,
        "segments": take("embeddings.token_type_embeddings.weight"),
        "norm": norm("embeddings.LayerNorm"),
    }
    depth = sum(name.startswith("blocks_") for name in params)
    for i in range(depth):
        block: dict[str, Any] = {"attention": {}}
        for theirs, mine in PARTS.items():
            dense = f"encoder.layer.{i}.{theirs}"
            values = {"kernel": take(f"{dense}.weight").T, "bias": take(f"{dense}.bias")}
            (block["attention"] if len(mine) == 2 else block)[mine[-1]] = values
        found[f"blocks_{i}"] = block
        for theirs, number in NORMS.items():
            found[f"norms_{i}_{number}"] = norm(f"encoder.layer.{i}.{theirs}")
    return _fitted(found, params)


def _fitted(found: dict[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """`found` in the types of `params`, whose structure and shapes it must have."""
    theirs = dict(jax.tree_util.tree_leaves_with_path(found))
    mine = dict(jax.tree_util.tree_leaves_with_path(dict(params)))
    for path in {**mine, **theirs}:
        own, given = (tree[path].shape if path in tree else None for tree in (mine, theirs))
        if given != own:
            raise ValueError(
                f"the network's {jax.tree_util.keystr(path)} has shape {own} and BERT's "
                f"{given}; set width, depth, heads, hidden and length of config.encoder as in its "
                f"config.json, style='bert', and data.tokenizer_path to its vocab.txt (the table "
                f"has {SPECIAL} reserved tokens first)."
            )
    return jax.tree_util.tree_map_with_path(
        lambda path, value: np.asarray(theirs[path], value.dtype), dict(params)
    )
