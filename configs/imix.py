"""i-Mix (Lee et al. 2021, arXiv 2010.08887).

Each example is a class of its own, and MixUp does to these virtual labels what it does to real
ones: the input of a query is mixed with another one, and the query must find the keys of both, by
their shares. It needs no augmentation that knows the kind of data, and works over SimCLR, MoCo and
BYOL.

Default: over SimCLR on the embedded `scenes`, a small ResNet, two CPU cores.

Variants:
  folder   your own images: `cl-jax train imix:folder PATH`.
  table    rows of numbers without augmentation: the embedded digits, or your own table by
           --config.data.path=my.csv.
  audio    spectrograms of the embedded `vowels` without augmentation. Your own recordings:
           --config.data.name=audio --config.data.path=FOLDER and the sizes of the view.
  moco     over MoCo v2, with a queue of momentum keys.
  byol     over BYOL, without negatives.
  cutmix   a box of another image is pasted in place of the weighted sum.
  cifar10  the CIFAR-10 setting of the base.
  debug    any of them in seconds.

Differences from the authors' code:
  - Partners and keys come from the global batch; theirs from one device's.
  - Over SimCLR the loss is theirs of N pairs: one direction, and no query among the candidates.
  - The base keeps its own network, head, temperature, optimiser and length; theirs are chosen for
    each cell of their table. With `cifar10` it also keeps its momentum (MoCo 0.99, BYOL 0.99
    rising to 1) and its crops of 0.08 to 1 of the area; theirs are 0.999 and 0.2 to 1.
  - One direction, their default; their `--sym`, which adds the other, is not a setting. Nor is
    their InputMix (`losses.mixing.input_mix`). Columns left out at random are `views.both.drop`.
  - `table` and `audio` have small networks; theirs are a perceptron of 2,048 to 8,192 units and a
    ResNet-50.

Command: python -m cl_jax.main --config=configs/imix.py --workdir=runs/imix
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import configs, defaults

BASES = {"moco": "moco_v2", "byol": "byol"}


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(
        arg, ("folder", "table", "audio", "moco", "byol", "cutmix", "cifar10", "debug")
    )
    base = next((BASES[name] for name in chosen if name in BASES), "simclr_v1")
    passed = [name for name in chosen if name in ("folder", "table", "audio", "cifar10", "debug")]
    config = configs.load(f"{base}:{','.join(passed)}").unlock()
    if base == "byol":
        config.method.monitor = False
    kind = "cutmix" if "cutmix" in chosen else "mixup"
    config.method = ConfigDict(
        dict(name="imix", base=config.method.to_dict(), alpha=1.0, kind=kind)
    )
    return config
