"""DCL (Yeh et al. 2021, arXiv 2110.06848).

SimCLR's loss without the positive in its denominator. With few negatives the positive dominates
that sum, and SimCLR's gradient fades where the pair is already near; without it small batches
learn. DCLW also weighs each positive pair by how badly its views agree.

Default: the embedded `scenes`, a small ResNet, two CPU cores, batches of 64.

Variants:
  folder        your own images: `cl-jax train dcl:folder PATH`.
  cifar10       ResNet-18, head 512-512-128, batch 128, 200 epochs, SGD 0.06 x B/128, weight decay
                5e-4, temperature 0.1. Published: 84.4 % by kNN of 200, the best of all epochs
                (lightly's benchmark, whose batch norm sees one view at a time).
  imagenet2012  ResNet-50, batch 256, 100 epochs, LARS 0.075 sqrt(B), weight decay 1e-6, temperature
                0.1. Published: 65.1 % linear, 49.6 % kNN (lightly's README). The paper reports
                68.2 % linear after 200 epochs by SGD.
  weighted      DCLW, of any of them: sigma 0.5. Published: 83.3 % on CIFAR-10, 64.5 % linear on
                ImageNet (lightly).
  debug         any of them in seconds.

Differences from lightly's code (the authors' is not released):
  - Both views pass the network together, and batch norm has their moments together.
  - DCLW's weights are averaged over the global batch, lightly's over each device's.
  - Their head has no batch norm after its last layer and starts as PyTorch's layers do; SimCLR's
    here has one, and starts at a deviation of 0.01.

Command: python -m cl_jax.main --config=configs/dcl.py --workdir=runs/dcl
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults

VARIANTS = ("folder", "cifar10", "imagenet2012", "weighted", "debug")


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, VARIANTS)
    config = defaults.get_config()
    config.method = ConfigDict(dict(name="dcl", temperature=0.2, num_layers=2, out_dim=64))
    defaults.laptop(config)
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.batch_size, config.total_epochs = 128, 200.0
        config.method.update(dict(temperature=0.1, out_dim=128))
        config.optimizer = ConfigDict(
            dict(
                name="sgd",
                learning_rate=0.06,
                learning_rate_scaling="none",
                weight_decay=5e-4,
                schedule_per_epoch=True,
            )
        )
    if "imagenet2012" in chosen:
        defaults.imagenet2012(config)
        config.batch_size, config.total_epochs = 256, 100.0
        config.method.update(dict(temperature=0.1, out_dim=128))
        config.views = ConfigDict(dict(both=dict(name="simclr", copies=2)))
        config.optimizer = ConfigDict(
            dict(
                name="lars_simclr",
                learning_rate=0.075,
                learning_rate_scaling="sqrt",
                weight_decay=1e-6,
                warmup_epochs=10.0,
            )
        )
    if "weighted" in chosen:
        config.method.sigma = 0.5
    if "debug" in chosen:
        defaults.debug(config)
    return config
