"""MoCo v1 (He et al. 2020, arXiv 1911.05722).

A query must pick out the key of its image's other view among a long queue of earlier keys. Keys
come from a slow copy of the network, so that old ones stay comparable and the number of negatives
does not depend on the batch. v1 has a linear head and InstDisc's views; no equation changed in v2,
and the method is v2's file.

Default: the embedded `scenes`, a small ResNet, two CPU cores.

Variants:
  folder        your own images: `cl-jax train moco_v1:folder PATH`.
  cifar10       the authors' demo: see the page of MoCo v2.
  imagenet2012  ResNet-50, batch 256, 200 epochs, learning rate 0.03 lowered at 120 and 160,
                temperature 0.07, 65,536 keys. Published: 60.8 % linear, the mean of five trials
                (README of the authors' code); 60.6 % in the paper.
  debug         any of them in seconds.

Differences from the authors' code:
  - Those of MoCo v2: see configs/moco_v2.py.

Command: python -m cl_jax.main --config=configs/moco_v1.py --workdir=runs/moco_v1
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import configs, defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, ("folder", "cifar10", "imagenet2012", "debug"))
    names = ["imagenet2012_v1" if name == "imagenet2012" else name for name in chosen]
    config = configs.load(f"moco_v2:{','.join(names)}").unlock()
    config.method.head = "linear"
    if "folder" in chosen:
        views = configs.load("moco_v2:imagenet2012_v1").views
        config.views = defaults.photographs(views, config.views.both.size)
    return config
