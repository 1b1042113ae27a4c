"""What a layer is called in other libraries, both ways: a leaf of our ResNet or ViT to the names of
its tensors there, and its numbers to theirs and back.

| dialect | who writes it |
|---|---|
| resnet/torchvision | torchvision, timm, MoCo, SwAV, DINO, SimSiam, PCL, most others |
| resnet/sequential | `nn.Sequential(*resnet.children())`: Lightly and others |
| resnet/huggingface | `ResNetModel` |
| resnet/haiku | BYOL's published checkpoints |
| vit/timm | timm, DINO, DINOv2, MoCo v3, MAE |
| vit/torchvision | torchvision |
| vit/huggingface | `ViTModel` |
| vit/dinov2 | `Dinov2Model` |
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Path = tuple[str, ...]
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


class Dialect(NamedTuple):
    """family: "resnet" or "vit". anchor: matches one name of such a network, its first group is
    what stands before all names. companion: another name that must be there. names: a leaf's path
    to the names of the tensors there, none where it has no place there."""

    family: str
    anchor: re.Pattern[str]
    companion: str
    names: Callable[[Path], tuple[str, ...]]


def to_theirs(path: Path, ours: np.ndarray, parts: int = 1) -> list[np.ndarray]:
    """The tensors of a leaf as PyTorch stores them, outputs first; several are equal pieces of the
    outputs."""
    whole = ours
    if path[-1] == "kernel":
        whole = ours.transpose(3, 2, 0, 1) if ours.ndim == 4 else ours.T
    return [np.ascontiguousarray(part) for part in np.split(whole, parts, axis=0)]


def to_ours(path: Path, theirs: Sequence[np.ndarray]) -> np.ndarray:
    """The opposite, float32."""
    whole = np.concatenate([part.astype(np.float32) for part in theirs], axis=0)
    if path[-1] == "kernel":
        return whole.transpose(2, 3, 1, 0) if whole.ndim == 4 else whole.T
    return whole


def _resnet(
    stem: tuple[str, str], layer: str, shortcut: tuple[str, str]
) -> Callable[[Path], tuple[str, ...]]:
    """Names by templates: the stem's convolution and norm; `layer` of {stage}, {stage0}, {block0},
    then {conv}: "conv1" or the like of convolution `number` and its norm; the shortcut's two."""

    def names(path: Path) -> tuple[str, ...]:
        layers, leaf = path[:-1], _LEAVES.get(path[-1])
        if leaf is None:
            return ()
        if layers in (("stem_conv1",), ("stem_norm1",)):
            return (f"{stem[layers[0] == 'stem_norm1']}.{leaf}",)
        at = re.fullmatch(r"stage(\d+)_block(\d+)", layers[0])
        if at is None or len(layers) != 2:
            return ()
        stage, block = int(at[1]), int(at[2])
        place = layer.format(stage=stage, stage0=stage - 1, stage3=stage + 3, block0=block - 1)
        if layers[1] in ("shortcut_conv", "shortcut_norm"):
            return (f"{place}.{shortcut[layers[1] == 'shortcut_norm']}.{leaf}",)
        inside = re.fullmatch(r"(conv|norm)(\d)", layers[1])
        if inside is None:
            return ()
        number, norm = int(inside[2]), inside[1] == "norm"
        if "stages" in layer:
            return (
                f"{place}.layer.{number - 1}.{'normalization' if norm else 'convolution'}.{leaf}",
            )
        return (f"{place}.{'bn' if norm else 'conv'}{number}.{leaf}",)

    return names


_HAIKU = {"kernel": "w", "scale": "scale", "bias": "offset", "mean": "mean_ema", "var": "var_ema"}
_HAIKU_TREE = re.compile(r"(?:(.*)[._])?(?:params|state)\.([^./]+/~/.*)")


def _haiku(path: Path) -> tuple[str, ...]:
    """`hk.nets.ResNet`'s: a module's path, then the array; means and variances are modules."""
    layers, leaf = path[:-1], _HAIKU.get(path[-1])
    if leaf is None:
        return ()
    at = re.fullmatch(r"stage(\d+)_block(\d+)", layers[0])
    if layers in (("stem_conv1",), ("stem_norm1",)):
        place = "initial_conv" if layers[0] == "stem_conv1" else "initial_batchnorm"
    elif at is not None and len(layers) == 2:
        inside = re.fullmatch(r"(conv|norm)(\d)", layers[1])
        last = layers[1].replace("norm", "batchnorm")
        if inside is not None:
            last = f"{'batchnorm' if inside[1] == 'norm' else 'conv'}_{int(inside[2]) - 1}"
        place = f"block_group_{int(at[1]) - 1}/~/block_{int(at[2]) - 1}/~/{last}"
    else:
        return ()
    return (f"{place}/~/{leaf}.average",) if leaf.endswith("_ema") else (f"{place}.{leaf}",)


def of_haiku(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of a file, where those of Haiku are named and shaped as others are: one tree of a
    network's parameters and statistics, outputs first in kernels, a vector for each norm."""
    found = {}
    for name, value in tensors.items():
        match = _HAIKU_TREE.fullmatch(name)
        if match is not None:
            name = f"{match[1]}.{match[2]}" if match[1] else match[2]
            if name.endswith(".w") and value.ndim == 4:
                value = value.transpose(3, 2, 0, 1)
            elif name.endswith((".scale", ".offset", ".average")):
                value = value.reshape(-1)
        found[name] = value
    return found


class _Vit(NamedTuple):
    """Names of a dialect's tensors, blocks numbered from 0 as {i}."""

    token: str
    positions: str
    patches: str
    block: str
    norm1: str
    qkv: tuple[str, ...]  # without .weight; three where they are apart
    projection: str
    norm2: str
    mlp1: str
    mlp2: str
    norm: str
    mask: str = ""
    joined: str = "."  # between the name of qkv and its leaf


def _vit(words: _Vit) -> Callable[[Path], tuple[str, ...]]:
    def names(path: Path) -> tuple[str, ...]:
        single = {
            "class_token": words.token,
            "positions": words.positions,
            "mask_token": words.mask,
        }
        if len(path) == 1:
            return (single[path[0]],) if single.get(path[0]) else ()
        leaf = _LEAVES[path[-1]]
        if path[0] in ("patches", "norm"):
            return (f"{getattr(words, path[0])}.{leaf}",)
        at = re.fullmatch(r"block(\d+)", path[0])
        if at is None or len(path) != 3 or path[1] not in words._fields:
            return ()
        place = words.block.format(i=int(at[1]) - 1)
        if path[1] == "qkv":
            return tuple(f"{place}.{part}{words.joined}{leaf}" for part in words.qkv)
        return (f"{place}.{getattr(words, path[1])}.{leaf}",)

    return names


_TIMM = _Vit(
    token="cls_token",
    positions="pos_embed",
    patches="patch_embed.proj",
    block="blocks.{i}",
    norm1="norm1",
    qkv=("attn.qkv",),
    projection="attn.proj",
    norm2="norm2",
    mlp1="mlp.fc1",
    mlp2="mlp.fc2",
    norm="norm",
    mask="mask_token",
)
_TORCHVISION = _Vit(
    token="class_token",
    positions="encoder.pos_embedding",
    patches="conv_proj",
    block="encoder.layers.encoder_layer_{i}",
    norm1="ln_1",
    qkv=("self_attention.in_proj",),
    projection="self_attention.out_proj",
    norm2="ln_2",
    mlp1="mlp.0",
    mlp2="mlp.3",
    norm="encoder.ln",
    joined="_",
)
_HUGGINGFACE = _Vit(
    token="embeddings.cls_token",
    positions="embeddings.position_embeddings",
    patches="embeddings.patch_embeddings.projection",
    block="encoder.layer.{i}",
    norm1="layernorm_before",
    qkv=tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    projection="attention.output.dense",
    norm2="layernorm_after",
    mlp1="intermediate.dense",
    mlp2="output.dense",
    norm="layernorm",
)
_DINOV2 = _HUGGINGFACE._replace(
    norm1="norm1",
    norm2="norm2",
    mlp1="mlp.fc1",
    mlp2="mlp.fc2",
    mask="embeddings.mask_token",
)

DIALECTS: dict[str, Dialect] = {
    "resnet/torchvision": Dialect(
        "resnet",
        re.compile(r"(.*?)layer1\.0\.conv1\.weight"),
        "conv1.weight",
        _resnet(("conv1", "bn1"), "layer{stage}.{block0}", ("downsample.0", "downsample.1")),
    ),
    "resnet/sequential": Dialect(
        "resnet",
        re.compile(r"(.*?)4\.0\.conv1\.weight"),
        "0.weight",
        _resnet(("0", "1"), "{stage3}.{block0}", ("downsample.0", "downsample.1")),
    ),
    "resnet/huggingface": Dialect(
        "resnet",
        re.compile(r"(.*?)encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight"),
        "embedder.embedder.convolution.weight",
        _resnet(
            ("embedder.embedder.convolution", "embedder.embedder.normalization"),
            "encoder.stages.{stage0}.layers.{block0}",
            ("shortcut.convolution", "shortcut.normalization"),
        ),
    ),
    "resnet/haiku": Dialect(
        "resnet",
        re.compile(r"(.*?)block_group_0/~/block_0/~/conv_0\.w"),
        "initial_batchnorm/~/mean_ema.average",
        _haiku,
    ),
    "vit/timm": Dialect(
        "vit",
        re.compile(r"(.*?)blocks\.0\.attn\.qkv\.weight"),
        "patch_embed.proj.weight",
        _vit(_TIMM),
    ),
    "vit/torchvision": Dialect(
        "vit",
        re.compile(r"(.*?)encoder\.layers\.encoder_layer_0\.self_attention\.in_proj_weight"),
        "conv_proj.weight",
        _vit(_TORCHVISION),
    ),
    "vit/huggingface": Dialect(
        "vit",
        re.compile(r"(.*?)encoder\.layer\.0\.layernorm_before\.weight"),
        "embeddings.patch_embeddings.projection.weight",
        _vit(_HUGGINGFACE),
    ),
    "vit/dinov2": Dialect(
        "vit",
        re.compile(r"(.*?)encoder\.layer\.0\.norm1\.weight"),
        "embeddings.patch_embeddings.projection.weight",
        _vit(_DINOV2),
    ),
}
