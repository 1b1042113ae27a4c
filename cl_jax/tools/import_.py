"""Makes a run of weights of another library, on which every command works without training.

examples:
  cl-jax import resnet50-11ad3fa6.pth --out=runs/torchvision
  cl-jax import dino_deitsmall16_pretrain.pth --out=runs/dino --data=photos
  cl-jax import huggingface_folder --out=runs/vit --mean=0.5,0.5,0.5 --std=0.5,0.5,0.5

FILE is safetensors, a PyTorch checkpoint, or a Hugging Face folder of a ResNet or ViT. A pickle in
it is not run: only tensors are read.
"""

import argparse
import shlex
from collections.abc import Sequence

from cl_jax.core.paths import user_path
from cl_jax.tools import verbs


def parser() -> argparse.ArgumentParser:
    options = verbs.parser("import", __doc__)
    options.add_argument("file", metavar="FILE", help="the weights")
    options.add_argument("--out", required=True, help="the workdir of the run, a new folder")
    options.add_argument("--data", default="", help="a folder of images that evaluations read")
    options.add_argument("--prefix", help="what stands before the names of the network in the file")
    options.add_argument("--heads", type=int, default=0, help="heads of a ViT")
    options.add_argument("--image_size", type=int, default=0, help="side of its images in pixels")
    options.add_argument("--mean", type=numbers, default=(), help="of its images, as 0.5,0.5,0.5")
    options.add_argument("--std", type=numbers, default=(), help="of its images")
    return options


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(","))


def main(argv: Sequence[str] | None = None) -> int:
    return verbs.called(import_, parser().parse_args(argv))


def import_(args: argparse.Namespace) -> int:
    """Makes the run that the options ask for; returns the exit status."""
    from cl_jax.weights import importing, runs

    found = importing.read(args.file, prefix=args.prefix, heads=args.heads)
    config = runs.config_of(
        found,
        str(user_path(args.file).resolve()),
        data=args.data,
        image_size=args.image_size,
        mean=args.mean,
        std=args.std,
    )
    runs.make(found, config, args.out)
    print("\n".join(found.report()))
    if found.others:
        print("--prefix chooses another copy.")
    print(
        f"images of {config.views.one.size} pixels, mean {config.views.one.mean}, std "
        f"{config.views.one.std}"
    )
    out, folder = shlex.quote(args.out), shlex.quote(args.data or "FOLDER")
    print(f"next: cl-jax eval --workdir={out} --config.data.path={folder}")
    return 0
