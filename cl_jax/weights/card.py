"""The README.md beside exported weights."""

import json
from collections.abc import Sequence
from typing import Any

from absl import logging

from cl_jax.core.tokens import END, PAD, SPECIAL, START
from cl_jax.training import configs, metrics
from cl_jax.training.trained import Trained
from cl_jax.views.presets import Recipe
from cl_jax.weights.network import Network


def text(run: Trained, net: Network, to: str, notes: Sequence[str]) -> str:
    """The model card, with what there is to say of how the weights were written and checked."""
    config = configs.plain(run.config)
    told = "\n".join(
        f"| {name} | {value:.4g} |"
        for name, value in sorted(_figures(run).items())
        if isinstance(value, int | float) and name not in ("time", "step", "eval_seconds")
    )
    return f"""---
library_name: {"transformers" if to == "huggingface" else to}
---
# {net.section["name"]} of {config["method"]["name"]}

Written by cl_jax for {to}. {" ".join(f"{note[0].upper()}{note[1:]}." for note in notes)}

{_inputs_told(run, net, config, to)}
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


def _figures(run: Trained) -> dict[str, Any]:
    """The figures of the run's State: those of `cl-jax eval` where it measured that step, else the
    log's of that step. Empty where neither has it: figures of another step are another network's.
    """
    path = run.workdir / "eval.json"
    if path.exists():
        try:
            found = dict(json.loads(path.read_text()))
            if found.get("step") == run.step:
                return found
        except (ValueError, TypeError) as error:
            logging.warning("%s cannot be read (%s); the card has the log's.", path, error)
    rows = [
        row
        for row in metrics.read(run.workdir)
        if row["step"] == run.step and not row.keys() & {"learning_rate", "skipped_steps"}
    ]
    return dict(rows[-1]) if rows and run.step else {}  # at step 0 are the baselines


def _inputs_told(run: Trained, net: Network, config: dict[str, Any], to: str) -> str:
    """What goes in and comes out, in lines of the card."""
    lines = []
    if net.kind != "transformer":
        side = net.side if to in ("onnx", "stablehlo") else net.named_side
        shape = f"[N, {net.channels}, {side}, {side}]"
        if to == "stablehlo":
            shape = f"[N, {side}, {side}, {net.channels}]"
        recipes = [view.recipe for view in run.built.views if hasattr(view, "recipe")]
        lines.append(f"- Images: {shape}, {_numbers_told(recipes[0] if recipes else None)}.")
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


def _numbers_told(recipe: Recipe | None) -> str:
    """What the numbers of an image are when the network reads them; of a view without a recipe,
    such as a spectrogram, its config says that."""
    if recipe is None:
        return "as the view of the config makes them"
    found = "from 0 to 1"
    if recipe.colour_space != "rgb":
        found += f", converted to {recipe.colour_space}"
    if recipe.mean is None:
        return f"{found}, not normalised"
    return f"{found}, then mean {recipe.mean}, std {recipe.std}"
