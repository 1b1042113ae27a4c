"""InvaSpread (Ye et al. 2019, arXiv 1904.03436).

InstDisc with fresh features in place of a memory bank: two views of an instance agree, and every
other feature of the batch is pushed away by a term of its own. No head but one linear layer, whose
output is trained and evaluated.

Default: the embedded `scenes`, a small ResNet, two CPU cores, and SimCLR's head: with the linear
layer alone kNN was 35.0 % after four epochs, below the untrained network's 39.6 %.

Variants:
  folder        your own images: `cl-jax train invaspread:folder PATH`.
  cifar10       ResNet-18, batch 128, learning rate 0.03, weight decay 5e-4, 301 epochs, temperature
                0.1, as the authors' code. Published: 83.6 % kNN of z (paper).
  imagenet2012  InstDisc's network and schedule. Not a setting of the authors.
  debug         any of them in seconds.

Differences from the authors' code:
  - Where they train on several GPUs, batch norm sees one view on each; here it is of both views of
    the whole batch.
  - The loss is their code's, and no flag turns it into the paper's. The code augments both images,
    takes both views as anchors, leaves an anchor itself out of its sum, and lets gradient flow
    through one side of each similarity. The paper (equations 3 to 6) has plain images against
    augmented ones and their own in the sum. Plain images are a config away (two sections of
    `views`); the sum is not.
  - Their experiments on classes that training does not see (birds, cars, products) are not built.
  - 1 - P is computed from the other terms of the sum, so that it stays exact where one negative has
    nearly all the weight.

Command: python -m cl_jax.main --config=configs/invaspread.py --workdir=runs/invaspread
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, ("folder", "cifar10", "imagenet2012", "debug"))
    config = defaults.get_config()
    defaults.laptop(config)
    config.method = ConfigDict(dict(name="invaspread", temperature=0.2, head="simclr"))
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.encoder.update(dict(variant="torchvision", kernel_init="torch"))
        config.batch_size, config.total_epochs = 128, 301.0
        config.method.update(dict(temperature=0.1, head="linear"))
        config.views = ConfigDict(dict(both=dict(name="invaspread", copies=2)))
        config.optimizer = ConfigDict(
            dict(
                name="sgd",
                learning_rate=0.03,
                learning_rate_scaling="none",
                weight_decay=5e-4,
                schedule="step_decay",
                milestones_epochs=(120.0, 160.0, 200.0),
                decay_factor=(0.1, 0.5, 0.2),
            )
        )  # to 0.1, 0.05 and 0.01 of it
        config.evals.feature = "z"
    if "imagenet2012" in chosen:
        defaults.imagenet2012(config)
        config.batch_size, config.total_epochs = 256, 200.0
        config.method.update(dict(temperature=0.1, head="linear"))
        config.views = ConfigDict(dict(both=dict(name="instdisc", copies=2)))
        config.optimizer = ConfigDict(
            dict(
                name="sgd",
                learning_rate=0.03,
                learning_rate_scaling="none",
                weight_decay=1e-4,
                schedule="step_decay",
                milestones_epochs=(120.0, 160.0),
            )
        )
        config.evals.feature = "z"
    if "debug" in chosen:
        defaults.debug(config)
        # the other on 16 rows makes so much of a rounding that no comparison says anything
        config.method.head = "linear"
    return config
