"""SimCLR (Chen et al. 2020, arXiv 2002.05709).

Two strongly augmented views of each image pass one network with a projection head, and each must
pick out the other among all views of the batch. There is no memory and no second network: what
counts is the batch, the augmentation and the head.

Default: the embedded `scenes`, a small ResNet, two CPU cores.

Variants:
  folder        your own images: `cl-jax train simclr_v1:folder PATH`.
  table         rows of numbers: the embedded digits, or --config.data.path=my.csv.
  audio         spectrograms of the embedded `vowels`.
  cifar10       ResNet-18, batch 512, 1000 epochs, LARS, learning rate 1.0 x B/256, weight decay
                1e-4, temperature 0.5. Published: "around 91 %" linear (README of the authors'
                code).
  imagenet2012  ResNet-50, batch 4096, 100 epochs, learning rate 0.3 x B/256, weight decay 1e-6,
                temperature 0.1. Published: 64.5 % linear (table B.1).
  debug         any of them in seconds.

Differences from the authors' code:
  - Blur's sigma is drawn for each image; they draw one for each core and batch.
  - The loss is the sum of both directions, as in their code, twice the paper's mean over 2B
    anchors: it matters for the biases and norms that LARS leaves alone. `sum_directions=False` of
    the method is the paper's.
  - The head ends in a batch norm, as in their code and not in the paper's text. Brightness is
    multiplied, as in their released default; the paper's adds.
  - `cifar10` has a head of two layers, the paper's; the figure of their README is of three, the
    default of their program (`--config.method.num_layers=3`).
  - Their classifier trains on batches of 4,096; the probe is the one of all configs.

Command: python -m cl_jax.main --config=configs/simclr_v1.py --workdir=runs/simclr_v1
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(
        arg, ("folder", "table", "audio", "cifar10", "imagenet2012", "debug")
    )
    config = defaults.get_config()
    config.method = ConfigDict(dict(name="simclr_v1", temperature=0.2, num_layers=2, out_dim=64))
    defaults.laptop(config)
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
    if "table" in chosen:
        defaults.table(config)
    if "audio" in chosen:
        defaults.audio(config)
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.encoder.variant = "simclr"
        config.total_epochs = 1000.0
        config.method.update(dict(temperature=0.5, out_dim=128))
        config.optimizer = ConfigDict(
            dict(name="lars_simclr", learning_rate=1.0, weight_decay=1e-4, warmup_epochs=10.0)
        )
    if "imagenet2012" in chosen:
        defaults.imagenet2012(config)
        config.encoder.variant = "simclr"
        config.batch_size = 4096
        config.total_epochs = 100.0
        config.method.update(dict(temperature=0.1, out_dim=128))
        config.views = ConfigDict(dict(both=dict(name="simclr", copies=2)))
        config.optimizer = ConfigDict(
            dict(name="lars_simclr", learning_rate=0.3, weight_decay=1e-6, warmup_epochs=10.0)
        )
    if "debug" in chosen:
        defaults.debug(config)
    return config
