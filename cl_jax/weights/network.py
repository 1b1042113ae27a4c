"""The network of a run that goes to other libraries, and its own answers to random inputs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.core.errors import ConfigError
from cl_jax.core.tokens import END, PAD, SPECIAL, START
from cl_jax.encoders import ms_clip, positions, resnet, transformer, vit
from cl_jax.training import configs
from cl_jax.training.trained import Trained

_KINDS = {"resnet": resnet, "vit": vit, "transformer": transformer, "ms_clip": ms_clip}
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
    def named_side(self) -> int:
        """Of images that the network takes under another library's names: the positions that a ViT
        learnt are written as they are, of one side."""
        learnt = self.kind == "vit" and self.encoder.variant == "dino"
        return int(self.encoder.image_size) if learnt else self.side

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
        return without_padding({name: np.asarray(x) for name, x in found.items()}, inputs)


def of_run(run: Trained) -> Network:
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
    places = [("towers",)] if name == "ms_clip" and "towers" in params else _places(params)
    if name not in _KINDS or len(places) != 1:
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
        for part in places[0]:
            params, stats = params[part], stats.get(part, {})
        table = params["embedding"]["embedding"] if name == "transformer" else None
    if table is not None:
        section["vocab_size"] = len(table)
    make: Any = _KINDS[name].make  # type: ignore[attr-defined]
    plain = {key: value for key, value in section.items() if key != "name"}
    if name == "resnet":
        plain["for_cpu"] = False
    encoder = make(**plain)
    # Of the view, not of its section: a recipe's own size is written nowhere in the config.
    sides = [view.recipe.size for view in run.built.views if hasattr(view, "recipe")]
    side = next(iter(sides), int(run.config.data.get("image_size", 0)) or 224)
    if name == "ms_clip":
        side = encoder.image_size
    kind = "clip" if name == "ms_clip" else name
    return Network(kind, section, encoder, params, stats, head, side)


def _places(params: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Where an encoder is in the parameters of a network: beside a predictor it is deeper."""
    found: list[tuple[str, ...]] = []
    for name, value in params.items():
        if name == "encoder":
            found.append((name,))
        elif isinstance(value, Mapping):
            found += [(name, *place) for place in _places(value)]
    return found


class Difference(NamedTuple):
    """How far two libraries' answers to the same inputs are apart. largest: of all numbers. scale:
    root mean square of the run's own answers."""

    largest: float
    scale: float

    @property
    def relative(self) -> float:
        """The largest as it is judged: as a share of the scale where that is above 1, since the
        rounding of float32 is."""
        return self.largest / max(self.scale, 1.0)

    def __str__(self) -> str:
        if self.scale <= 1:
            return f"{self.largest:.2g}"
        return (
            f"{self.largest:.2g}, which is {self.relative:.2g} of the root mean square of the "
            f"answers, {self.scale:.2g}"
        )


def difference(theirs: Mapping[str, Any], ours: Answers) -> Difference:
    """That of the answer which differs most; NaN where one is NaN."""
    found = []
    for name in theirs:
        with np.errstate(invalid="ignore"):  # inf - inf
            largest = float(np.abs(theirs[name] - ours[name]).max())
        scale = float(np.sqrt(np.square(ours[name], dtype=np.float64).mean()))
        found.append(Difference(largest, scale))
    undefined = [one for one in found if np.isnan(one.relative)]
    return (undefined or sorted(found, key=lambda one: one.relative))[-1]


def without_padding(found: Answers, inputs: Answers) -> Answers:
    """States of padding are what a library makes of them."""
    if "tokens" not in found:
        return found
    real = (inputs["tokens"] != PAD)[:, :, None]
    return found | {"tokens": np.where(real, found["tokens"], 0)}


def positions_of(net: Network) -> np.ndarray:
    """[1, 1 + P, D] of a ViT at its side."""
    encoder: vit.ViT = net.encoder
    grid = net.side // encoder.patch
    if "positions" in net.params:
        table = jnp.asarray(net.params["positions"])
        return np.asarray(positions.interpolate(table, net.side, net.side, patch=encoder.patch))
    table = positions.sincos_2d(grid, grid, encoder.width, order=encoder.variant)
    return np.asarray(table).reshape(1, grid * grid + 1, -1)
