"""Writes the encoder of a run for another library, checked against the run on random images.

examples:
  cl-jax export runs/mine --to=timm --out=weights
  cl-jax export runs/mine --to=huggingface --out=folder

torchvision and timm: model.safetensors with their names. huggingface: a folder of ResNetModel or
ViTModel. stablehlo: jax.export, weights inside. Each with a model card, README.md.
"""

import argparse
import sys
from collections.abc import Sequence

from cl_jax.tools import train
from cl_jax.training import configs


def main(argv: Sequence[str] | None = None) -> int:
    options = argparse.ArgumentParser(
        "cl-jax export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("run", metavar="RUN", help="the workdir of the run, or of one stage")
    options.add_argument("--to", required=True, help="torchvision, timm, huggingface or stablehlo")
    options.add_argument("--out", required=True, help="a new folder")
    options.add_argument("--best", action="store_true", help="the best checkpoint, not the newest")
    args = options.parse_args(sys.argv[1:] if argv is None else list(argv))
    configs.see_working_folder()
    train.prepare()
    try:
        import cl_jax
        from cl_jax.weights import exporting

        lines = exporting.write(cl_jax.load(args.run, best=args.best), args.to, args.out)
    except Exception as error:
        return train.failed(error)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
