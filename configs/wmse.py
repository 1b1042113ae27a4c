"""W-MSE (Ermolov et al. 2020, arXiv 2007.06346).

The embeddings of each view are whitened over groups of the batch, mean 0 and covariance the
identity, which scatters them over the sphere; then the views of an image are pulled together. There
are no negatives, no slow copy and no predictor, and any number of views fits in.

Default: the embedded `scenes`, a small ResNet, two CPU cores, batches of 128 in groups of 64, 32
features.

Variants:
  folder        your own images: `cl-jax train wmse:folder PATH`.
  cifar10       ResNet-18, 64 features, two views, batch 512 in groups of 128, 1000 epochs, Adam
                3e-3, times 0.2 at 950 and 975. Published: 91.55 % linear, 89.69 % by 5 nearest
                neighbours (table 1).
  imagenet2012  the authors' setting of ImageNet-100, on the whole of ImageNet: ResNet-18, 128
                features, batch 512 in groups of 256, 240 epochs, Adam 2e-3, times 0.2 at 190 and
                215. Published: nothing for it; 72.6 % linear of a ResNet-50 with four views after
                400 epochs, in a table of a later paper.
  four          of any of them four views in half the batch. Published: 91.99 % linear and 89.87 %
                by 5 nearest neighbours on CIFAR-10 (table 1).
  debug         any of them in seconds.

Differences from the authors' code:
  - A step's groups are of the global batch, on any number of devices; theirs has one.
  - Colour operations come after the crop, theirs before it.
  - Their weight decay of 1e-6 is a penalty on the gradient before Adam; here it is decoupled.
  - Step k of the warm-up (from 0) has k/500 of the rate, theirs (k + 1)/500, so that the first step
    here has a rate of 0.
  - Their kNN takes 5 neighbours by Euclidean distance, here 200 by cosine.

Command: python -m cl_jax.main --config=configs/wmse.py --workdir=runs/wmse
Reached: 66.7 % kNN and 72.6 % linear on `scenes` (39.6 % kNN untrained).
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults

VARIANTS = ("folder", "cifar10", "imagenet2012", "four", "debug")


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, VARIANTS)
    config = defaults.get_config()
    defaults.laptop(config)
    config.batch_size = 128
    config.method = ConfigDict(
        dict(name="wmse", group_size=64, out_dim=32, hidden_dim=256, eps=1e-4)
    )
    adam = dict(
        name="adamw",
        learning_rate=3e-3,
        learning_rate_scaling="none",
        weight_decay=1e-6,
        warmup_steps=500,
        schedule="step_decay",
        decay_factor=0.2,
    )
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.batch_size, config.total_epochs = 512, 1000.0
        config.method = ConfigDict(dict(name="wmse", group_size=128, out_dim=64))
        config.views = ConfigDict(
            dict(both=dict(name="simsiam_cifar", copies=2, gray=0.1, interpolation="bicubic"))
        )
        config.optimizer = ConfigDict(dict(adam, milestones_epochs=(950.0, 975.0)))
    if "imagenet2012" in chosen:
        defaults.imagenet2012(config)
        config.encoder.depth = 18
        config.batch_size, config.total_epochs = 512, 240.0
        config.method = ConfigDict(dict(name="wmse", group_size=256, out_dim=128))
        config.views = ConfigDict(
            dict(
                both=dict(
                    name="swav",
                    copies=2,
                    scale=(0.08, 1.0),
                    interpolation="bicubic",
                    std=(0.229, 0.224, 0.225),
                )
            )
        )
        config.optimizer = ConfigDict(
            dict(adam, learning_rate=2e-3, milestones_epochs=(190.0, 215.0))
        )
    if "four" in chosen:
        config.views.both.copies = 4
        config.batch_size //= 2
    if "debug" in chosen:
        defaults.debug(config)
        config.method.update(dict(group_size=8, out_dim=4, hidden_dim=16, eps=1e-3))
        if "warmup_steps" in config.optimizer:
            config.optimizer.warmup_steps = 2
    return config
