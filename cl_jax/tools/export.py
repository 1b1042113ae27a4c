"""Writes a run's network for another library, checked against the run on random inputs.

examples:
  cl-jax export runs/mine --to=timm --out=weights
  cl-jax export runs/mine --to=huggingface --out=folder
  cl-jax export runs/mine --to=onnx --out=graph

torchvision and timm: model.safetensors with their names. huggingface: a folder of ResNetModel,
ViTModel, BertModel or CLIPModel. onnx, stablehlo: the graph, weights inside. Each with a model
card, README.md.
"""

import argparse
from collections.abc import Sequence

from cl_jax.tools import verbs


def parser() -> argparse.ArgumentParser:
    options = verbs.of_run("export", __doc__)
    options.add_argument(
        "--to", required=True, help="torchvision, timm, huggingface, onnx or stablehlo"
    )
    options.add_argument("--out", required=True, help="a new folder")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    return verbs.called(export, parser().parse_args(argv))


def export(args: argparse.Namespace) -> int:
    """Writes the folder that the options ask for; returns the exit status."""
    import cl_jax
    from cl_jax.weights import exporting

    run = cl_jax.load(args.run, best=args.best)
    print("\n".join(exporting.write(run, args.to, args.out)))
    return 0
