"""Weights of other libraries as networks of this one: `init_from` of a config, and `cl-jax import`.

The kind and sizes of the network follow from the names and shapes of the tensors. Tensors that
our network does not have (heads, momentum copies, optimiser) are left over; a trunk that computes
something else (grouped convolutions, register tokens) is refused.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cl_jax.core.errors import ConfigError
from cl_jax.core.method import State
from cl_jax.core.names import some
from cl_jax.encoders import resnet, vit
from cl_jax.weights import files, names
from cl_jax.weights.names import DIALECTS, Dialect

# Of a checkpoint with several copies of the network, which one its method evaluates.
_EVALUATED = ("teacher", "encoder_q", "base_encoder", "online")
_HELPERS = ("student", "encoder_k", "momentum", "target")
_HARMLESS = re.compile(r"(num_batches_tracked|relative_position_index|_ema\.(hidden|counter))$")
_FOLDED = re.compile(r"(ls[12]\.gamma|gamma_[12]|layer_scale[12]\.lambda1)$")
Tree = dict[str, Any]


class Imported(NamedTuple):
    """section: of `config.encoder`. params, stats: variables of that encoder. matched, missing:
    our leaves. left_over: names of tensors that were not used. prefix: what stands before the names
    of the network in the file; others: prefixes of further copies in it."""

    section: dict[str, Any]
    params: Tree
    stats: Tree
    dialect: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    prefix: str
    others: tuple[str, ...]
    preprocessing: dict[str, Any]

    def report(self) -> list[str]:
        """What was found, in lines."""
        numbers = sum(np.size(leaf) for leaf in jax.tree.leaves(self.params))
        settings = ", ".join(f"{key}={value}" for key, value in self.section.items())
        lines = [f"{self.dialect}: {settings}; {numbers:,} parameters."]
        lines.append(f"matched: {len(self.matched)} arrays" + _under(self.prefix) + ".")
        lines.append(f"missing: {some(self.missing)}.")
        lines.append(f"left over: {some(self.left_over)}.")
        if self.others:
            copies = ", ".join(map(repr, self.others))
            lines.append(f"the file has further copies, under {copies}.")
        return lines


def read(path: str | Path, *, prefix: str | None = None, heads: int = 0) -> Imported:
    """The network in a file or a Hugging Face folder.

    Args:
      path: see `files.read`.
      prefix: what stands before its names, where a file holds several networks; None for the copy
        that its method evaluates.
      heads: of a ViT, which no tensor tells; 0 for those of the folder's config.json, else one for
        each 64 channels.

    Raises:
      ConfigError: the file cannot be read, holds no ResNet or ViT, or one that computes what our
        networks do not; heads of a ResNet, or that do not divide the width.
    """
    weights = files.read(path)
    weights = weights._replace(tensors=names.of_haiku(weights.tensors))
    name, chosen, others = _find(path, weights.tensors, prefix)
    dialect = DIALECTS[name]
    trunk = {
        key.removeprefix(chosen): value
        for key, value in weights.tensors.items()
        if key.startswith(chosen)
    }
    if dialect.family == "vit":
        trunk = _plain_vit(str(path), trunk)
        section = _vit_section(path, trunk, dialect, heads or _heads(weights.settings))
    elif heads:
        raise ConfigError(f"heads={heads} is given, and {path} holds a ResNet. Leave it out.")
    else:
        section = _resnet_section(trunk, dialect, "byol" if "haiku" in name else "torchvision")
    params, stats, matched, missing, used = _filled(path, section, trunk, dialect)
    _refuse_other_layers(path, trunk, used, dialect)
    if missing:
        raise ConfigError(
            f"{path}: {len(missing)} arrays of the network are not in the file, such as "
            f"{missing[0]} ({dialect.names(tuple(missing[0].split('/')))[0]} there)."
        )
    left = sorted(
        key
        for key in weights.tensors
        if not _HARMLESS.search(key)
        and not (key.startswith(chosen) and _FOLDED.search(key))
        and (not key.startswith(chosen) or key.removeprefix(chosen) not in used)
    )
    return Imported(
        section,
        params,
        stats,
        name,
        tuple(matched),
        tuple(missing),
        tuple(left),
        chosen,
        others,
        weights.preprocessing,
    )


def _find(
    path: str | Path, tensors: Mapping[str, np.ndarray], prefix: str | None
) -> tuple[str, str, tuple[str, ...]]:
    """(dialect, prefix, prefixes of other copies)."""
    found: dict[str, str] = {}
    for name, dialect in DIALECTS.items():
        for key in tensors:
            match = dialect.anchor.fullmatch(key)
            if match and f"{match[1]}{dialect.companion}" in tensors:
                found.setdefault(match[1], name)
        if dialect.family == "vit" and "timm" in name:  # DINOv2 keeps its blocks in chunks
            for key in tensors:
                match = re.fullmatch(r"(.*?)blocks\.0\.0\.attn\.qkv\.weight", key)
                if match and f"{match[1]}{dialect.companion}" in tensors:
                    found.setdefault(match[1], name)
    if not found:
        raise ConfigError(
            f"{path} holds no ResNet or ViT whose names are known (torchvision, timm, Hugging "
            f"Face, Haiku); it has {some(sorted(tensors))}."
        )
    if prefix is not None and prefix not in found:
        raise ConfigError(
            f"{path} has no network under {prefix!r}; it has one under "
            f"{', '.join(map(repr, found))}."
        )
    chosen = min(found, key=_rank) if prefix is None else prefix
    return found[chosen], chosen, tuple(one for one in found if one != chosen)


def _rank(prefix: str) -> tuple[int, int]:
    """The place of a copy of the network among several: first those that are evaluated, last those
    that are not."""
    for place, words in ((0, _EVALUATED), (2, _HELPERS)):
        if any(word in prefix for word in words):
            return place, len(prefix)
    return 1, len(prefix)


# The network's sizes --------------------------------------


def _resnet_section(
    trunk: Mapping[str, np.ndarray], dialect: Dialect, variant: str
) -> dict[str, Any]:
    def there(*path: str) -> np.ndarray | None:
        return trunk.get(dialect.names(path)[0])

    blocks: list[int] = []
    while there(f"stage{len(blocks) + 1}_block1", "conv1", "kernel") is not None:
        stage, count = len(blocks) + 1, 1
        while there(f"stage{stage}_block{count + 1}", "conv1", "kernel") is not None:
            count += 1
        blocks.append(count)
    bottleneck = there("stage1_block1", "conv3", "kernel") is not None
    stem = there("stem_conv1", "kernel")
    first = there("stage1_block1", "conv1", "kernel")
    assert stem is not None and first is not None  # the dialect's anchor and companion
    depth = next(
        (depth for depth, known in resnet.BLOCKS.items() if known == (tuple(blocks), bottleneck)),
        0,
    )
    section: dict[str, Any] = dict(
        name="resnet",
        width=first.shape[0] / 64,
        stem="imagenet" if stem.shape[-1] == 7 else "cifar",
        variant=variant,
        dtype="float32",
    )
    section |= dict(depth=depth) if depth else dict(blocks=tuple(blocks), bottleneck=bottleneck)
    if stem.shape[0] != first.shape[0]:
        section["stem_width"] = int(stem.shape[0])
    return section


def _plain_vit(path: str, trunk: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A ViT's tensors with blocks numbered through and the scales of LayerScale multiplied into the
    layers before them, which computes the same."""
    registers = [key for key in trunk if re.search(r"(register|reg)_tokens?$", key)]
    if registers:
        raise ConfigError(
            f"{path} has {registers[0]}: register tokens, which our ViT does not have. Take the "
            "checkpoint without registers."
        )
    numbered: dict[str, np.ndarray] = {}
    for key, value in trunk.items():
        chunk = re.fullmatch(r"blocks\.\d+\.(\d+)\.(.+)", key)
        numbered[f"blocks.{chunk[1]}.{chunk[2]}" if chunk else key] = value
    scales = {
        r"(blocks\.\d+)\.ls1\.gamma": "attn.proj",
        r"(blocks\.\d+)\.ls2\.gamma": "mlp.fc2",
        r"(blocks\.\d+)\.gamma_1": "attn.proj",
        r"(blocks\.\d+)\.gamma_2": "mlp.fc2",
        r"(encoder\.layer\.\d+)\.layer_scale1\.lambda1": "attention.output.dense",
        r"(encoder\.layer\.\d+)\.layer_scale2\.lambda1": "mlp.fc2",
    }
    for key in list(numbered):
        for pattern, layer in scales.items():
            match = re.fullmatch(pattern, key)
            if match and f"{match[1]}.{layer}.weight" in numbered:
                scale = numbered.pop(key).astype(np.float32)
                place = f"{match[1]}.{layer}"
                for leaf in ("weight", "bias"):
                    value = numbered[f"{place}.{leaf}"].astype(np.float32)
                    numbered[f"{place}.{leaf}"] = value * (
                        scale[:, None] if value.ndim == 2 else scale
                    )
    return numbered


def _vit_section(
    path: str | Path, trunk: Mapping[str, np.ndarray], dialect: Dialect, heads: int
) -> dict[str, Any]:
    positions = dialect.names(("positions",))[0]
    patches = trunk[dialect.names(("patches", "kernel"))[0]]
    depth = 0
    while dialect.names((f"block{depth + 1}", "norm1", "scale"))[0] in trunk:
        depth += 1
    if positions not in trunk:
        raise ConfigError(
            f"{path} has no {positions}: positions of another kind, which our ViT does not have."
        )
    side = round((trunk[positions].shape[1] - 1) ** 0.5)
    width, patch = patches.shape[0], patches.shape[-1]
    if side * side + 1 != trunk[positions].shape[1] or patches.ndim != 4:
        raise ConfigError(
            f"{path}: {positions} has shape {list(trunk[positions].shape)}; expected a square of "
            "patches and one class token."
        )
    if not heads and width % 64:
        raise ConfigError(
            f"{path}: a ViT of width {width}, of which no tensor tells the number of heads; give "
            "--heads, or to train a config --config.encoder.heads."
        )
    if heads < 0 or (heads and width % heads):
        raise ConfigError(
            f"heads={heads} of {path}, a ViT of width {width}; expected a divisor of the width."
        )
    mask = dialect.names(("mask_token",))
    return dict(
        name="vit",
        width=int(width),
        depth=depth,
        heads=heads or width // 64,
        patch=int(patch),
        image_size=int(side * patch),
        variant="dino",
        pool="cls",
        dtype="float32",
    ) | (dict(mask_token=True) if mask and mask[0] in trunk else {})


def _heads(settings: Mapping[str, Any]) -> int:
    found = settings.get("num_attention_heads", 0)
    return found if isinstance(found, int) else 0


# Filling it --------------------------------------


def _filled(
    path: str | Path,
    section: Mapping[str, Any],
    trunk: Mapping[str, np.ndarray],
    dialect: Dialect,
) -> tuple[Tree, Tree, list[str], list[str], set[str]]:
    """(params, stats, matched leaves, missing leaves, names that were used)."""
    shapes = shapes_of(section, _channels(trunk, dialect))
    found: dict[str, dict[names.Path, np.ndarray]] = {"params": {}, "batch_stats": {}}
    matched, missing, used = list[str](), list[str](), set[str]()
    for collection, tree in shapes.items():
        for at, like in flax.traverse_util.flatten_dict(tree).items():
            called = _spelling(dialect.names(at), trunk)
            word = "/".join(at)
            if not called or any(name not in trunk for name in called):
                missing.append(word)
                continue
            for name in called:
                if not jnp.issubdtype(trunk[name].dtype, jnp.floating):
                    raise ConfigError(
                        f"{path}: {name} is {trunk[name].dtype}; expected floating-point numbers. "
                        "Give the weights as they were before they were quantised."
                    )
            value = names.to_ours(at, [trunk[name] for name in called])
            if at == ("mask_token",):
                value = value.reshape(like.shape)
            if value.shape != like.shape:
                raise ConfigError(
                    f"{path}: {called[0]} makes {word} {list(value.shape)}; expected "
                    f"{list(like.shape)} of the network that the other tensors describe. Our "
                    f"{dialect.family} cannot compute what this one does."
                )
            if not np.isfinite(value).all():
                raise ConfigError(f"{path}: {called[0]} holds NaN or inf.")
            found[collection][at] = value
            matched.append(word)
            used |= set(called)
    params, stats = (
        flax.traverse_util.unflatten_dict(found[name]) for name in ("params", "batch_stats")
    )
    return params, stats, matched, missing, used


def _spelling(called: tuple[str, ...], trunk: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Names as the file spells them: older torchvision calls the layers of its MLP otherwise."""
    if all(name in trunk for name in called):
        return called
    other = tuple(
        re.sub(r"mlp\.([03])\.", lambda m: f"mlp.linear_{1 if m[1] == '0' else 2}.", name)
        for name in called
    )
    return other if all(name in trunk for name in other) else called


def _channels(trunk: Mapping[str, np.ndarray], dialect: Dialect) -> int:
    first = ("stem_conv1", "kernel") if dialect.family == "resnet" else ("patches", "kernel")
    return int(trunk[dialect.names(first)[0]].shape[1])


def encoder_of(section: Mapping[str, Any]) -> Any:
    """The module of a section that `read` made."""
    make: Any = {"resnet": resnet.make, "vit": vit.make}[section["name"]]
    return make(**{key: value for key, value in section.items() if key != "name"})


def shapes_of(section: Mapping[str, Any], channels: int = 3) -> dict[str, Tree]:
    """{"params", "batch_stats"} of shapes of an encoder's section."""
    side = section.get("image_size", 64)
    images = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    encoder = encoder_of(section)
    found = jax.eval_shape(
        lambda key, x: encoder.init(key, x, train=False), jax.random.key(0), images
    )
    return {name: dict(found.get(name, {})) for name in ("params", "batch_stats")}


def _refuse_other_layers(
    path: str | Path, trunk: Mapping[str, np.ndarray], used: set[str], dialect: Dialect
) -> None:
    """Refuses tensors inside the trunk that were not used: the network there does more."""
    inside = re.compile(
        r"(layer\d|blocks|encoder\.stages|encoder\.layers?|[4-7]\.\d+)\..*\d|block_group_\d.*\w$"
        if dialect.family == "resnet"
        else r"(blocks|encoder\.layers?)\.\w*\d"
    )
    odd = sorted(
        key for key in trunk if key not in used and inside.match(key) and not _HARMLESS.search(key)
    )
    if odd:
        raise ConfigError(
            f"{path} has layers that our {dialect.family} does not have: {some(odd)}."
        )


# Into a run --------------------------------------


def settle(config: ConfigDict, given: Sequence[str], begun: Mapping[str, Any] = {}) -> list[str]:
    """Makes the network of a config that of its `init_from`, in place; returns lines about it.

    Args:
      given: keys that the user set.
      begun: the config of a run that the State is restored from, `fit.begun`; where it started from
        a file, its network is taken, and the file need not be there.

    Raises:
      ConfigError: as `read`; several networks in the config; keys of the encoder that the user gave
        and that contradict the file.
    """
    path = config.get("init_from", "")
    if not path:
        return []
    if "name" not in config.encoder:
        raise ConfigError(
            f"init_from={path!r}: this config has several networks, {', '.join(config.encoder)}; "
            "only a config of one is started from a file."
        )
    if begun.get("init_from"):
        section = begun["encoder"] | {
            key: value for key, value in config.encoder.items() if f"encoder.{key}" in given
        }
        with config.unlocked():
            config.encoder = ConfigDict(section)
        return [f"started from {begun['init_from']}"]
    found = read(path, heads=config.encoder.get("heads", 0) if "encoder.heads" in given else 0)
    for key, value in found.section.items():
        own = f"encoder.{key}" in given
        if own and key != "dtype" and config.encoder.get(key) != value:
            raise ConfigError(
                f"encoder.{key}={config.encoder.get(key)} is given, and {path} holds a network of "
                f"{key}={value}. Leave it out."
            )
    free = {"resnet": ("splits", "for_cpu", "dtype"), "vit": ("drop_path", "flash", "dtype")}
    kept = {
        key: config.encoder[key] for key in free[found.section["name"]] if key in config.encoder
    }
    more = {"mask_token": True} if config.encoder.get("mask_token") else {}
    with config.unlocked():
        config.encoder = ConfigDict(found.section | kept | more)
    return [f"starts from {path}", *found.report()]


def start(state: State, path: str | Path, encoder: Mapping[str, Any] = {}) -> State:
    """A State whose networks of the encoder's shape, momentum copies too, are those of a file.

    encoder: the section of the config, which may tell what no tensor does, a ViT's `heads`.

    Raises:
      ConfigError: as `read`, or no network of the State has its shape.
    """
    return put(state, read(path, heads=encoder.get("heads", 0)), path)


def put(state: State, found: Imported, path: str | Path) -> State:
    """As `start`, of what was read from `path`."""
    count = 0

    def replaced(tree: Any, ours: Tree) -> Any:
        nonlocal count
        if not isinstance(tree, Mapping):
            return tree
        changed = {}
        for name, value in tree.items():
            if name == "encoder" and isinstance(value, Mapping) and _fits(value, ours):
                changed[name] = _onto(value, ours)
                count += 1
            else:
                changed[name] = replaced(value, ours)
        return changed

    params = replaced(state.params, found.params)
    if not count:
        raise ConfigError(
            f"init_from={str(path)!r}: no network of this method has the arrays of the file, such "
            f"as {found.matched[0]}. Use a method and encoder of one {found.section['name']}."
        )
    stats = replaced(state.stats, found.stats) if found.stats else state.stats
    target = state.target
    if target is not None:
        held = replaced(target.params, found.params)
        target = dataclasses.replace(
            target,
            ema=target.ema._replace(ema=held),
            stats=replaced(target.stats, found.stats) if found.stats else target.stats,
        )
    return dataclasses.replace(state, params=params, stats=stats, target=target)


def _fits(tree: Mapping[str, Any], ours: Tree) -> bool:
    there = flax.traverse_util.flatten_dict(dict(tree))
    return all(
        at in there and there[at].shape == value.shape
        for at, value in flax.traverse_util.flatten_dict(ours).items()
    )


def _onto(tree: Mapping[str, Any], ours: Tree) -> Tree:
    """The tree with our arrays in place of its own, placed as they were."""
    there = flax.traverse_util.flatten_dict(dict(tree))
    for at, value in flax.traverse_util.flatten_dict(ours).items():
        there[at] = jax.device_put(value.astype(there[at].dtype), there[at].sharding)
    return flax.traverse_util.unflatten_dict(there)


def _under(prefix: str) -> str:
    return f", under {prefix!r}" if prefix else ""
