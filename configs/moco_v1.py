"""MoCo v1 (He et al. 2020, arXiv 1911.05722): MoCo with a linear head and InstDisc's views.

Default: the embedded `scenes`, a small ResNet, two CPU cores. Variants: `imagenet2012` (ResNet-50, batch 256, 200 epochs,
learning rate 0.03 lowered at 120 and 160, temperature 0.07, 65,536 keys: 60.8 % linear, the mean of five trials in the
README of the authors' code), `cifar10` (the authors' demo: see configs/moco_v2.py), `debug`.

The method is `cl_jax/methods/moco_v2.py`: v2 changed the head, the views and the schedule, and no equation.

Command: python -m cl_jax.main --config=configs/moco_v1.py --workdir=runs/moco_v1
Reached: see the table of README. `cifar10` and `imagenet2012` at the published length: not run.
"""

from ml_collections import ConfigDict

from configs import common, moco_v2


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = common.variants(arg, ("cifar10", "imagenet2012", "debug"))
    names = ["imagenet2012_v1" if name == "imagenet2012" else name for name in chosen]
    config = moco_v2.get_config(",".join(names))
    config.method.head = "linear"
    return config
