"""SimSiam (Chen and He 2020, arXiv 2011.10566).

A predictor on one view is pulled to the same network's projection of the other, held constant;
there are no negatives, no slow copy and no large batch. The predictor and the held side are what
keeps the output from becoming constant. The metric "z_std" is the deviation of the normalised
output (figure 2 of the paper): near 1/sqrt(dimensions) in health, 0 at a collapse.

Default: the embedded `scenes`, a small ResNet, two CPU cores, 48 epochs: four times those of the
contrastive methods. For the first sixteen it is below its untrained network on the digits, and
above it afterwards.

Variants:
  folder        your own images: `cl-jax train simsiam:folder PATH`.
  cifar10       ResNet-18, two-layer projector, batch 512, 800 epochs, learning rate 0.03 x B/256,
                weight decay 5e-4. Published: 91.8 % linear (appendix D).
  imagenet2012  ResNet-50, batch 512, 100 epochs, learning rate 0.05 x B/256, weight decay 1e-4, the
                predictor's rate constant. Published: 68.1 % linear (table 4, and README of the
                authors' code).
  fastsiam      of any of them FastSiam (Pototzky et al., GCPR 2022): each of four views predicts
                the mean of the others. Reached on `scenes`: 91.5 % by kNN, 76.0 % with
                `total_epochs=24`, SimSiam 68.3 %; one seed. `cifar10,fastsiam`: batch 128, 200
                epochs, learning rate 0.06 whatever the batch, the predictor's too on a cosine, last
                scales of blocks from 1. Published: 90.6 % by kNN of 200, the best of all epochs,
                and 81.9 % of SimSiam (lightly's benchmark, whose last norm of the projector has a
                scale and a bias).
  debug         any of them in seconds.

Differences from the authors' code:
  - Their classifier on ImageNet trains by LARC on batches of 4,096 at a rate of 1.6; the probe of
    `imagenet2012` is plain SGD on batches of 256 at 0.1, for their 90 epochs. (The paper says 0.02
    x B/256, their code 0.1.)
  - The projector's last bias, frozen in their code and cancelled by the batch norm after it, is
    left out.
  - Whether the predictor's rate was constant on CIFAR-10 is not stated; here it is.

Command: python -m cl_jax.main --config=configs/simsiam.py --workdir=runs/simsiam
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, ("folder", "cifar10", "imagenet2012", "fastsiam", "debug"))
    config = defaults.get_config()
    defaults.laptop(config)
    config.views.both.update(dict(strength=1.0, gray=0.5))
    config.method = ConfigDict(dict(name="simsiam", out_dim=256, hidden_dim=64, num_layers=2))
    config.encoder.update(dict(variant="torchvision", zero_init_last=False))
    config.optimizer = ConfigDict(
        dict(name="sgd", learning_rate=0.1, learning_rate_scaling="none", weight_decay=5e-4)
    )
    config.optimizer.constant_lr_paths = ("predictor",)
    config.total_epochs = 48.0
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.encoder.zero_init_last = True
        config.total_epochs = 800.0
        config.method = ConfigDict(dict(name="simsiam", num_layers=2))
        config.views = ConfigDict(dict(both=dict(name="simsiam_cifar", copies=2)))
        config.optimizer.update(
            dict(
                learning_rate=0.03,
                learning_rate_scaling="linear",
                weight_decay=5e-4,
                schedule_per_epoch=True,
            )
        )
    if "imagenet2012" in chosen:
        defaults.imagenet2012(config)
        config.encoder.zero_init_last = True
        config.batch_size, config.total_epochs = 512, 100.0
        config.method = ConfigDict(dict(name="simsiam"))
        config.views = ConfigDict(dict(both=dict(name="simsiam", copies=2)))
        config.optimizer.update(
            dict(
                learning_rate=0.05,
                learning_rate_scaling="linear",
                weight_decay=1e-4,
                schedule_per_epoch=True,
            )
        )
        config.evals.protocols.linear.update(dict(total_epochs=90.0, learning_rate=0.1))
    if "fastsiam" in chosen:
        config.views.both.copies = 4
        if "cifar10" in chosen:
            config.encoder.zero_init_last = False
            config.batch_size, config.total_epochs = 128, 200.0
            config.optimizer.update(
                dict(learning_rate=0.06, learning_rate_scaling="none", constant_lr_paths=())
            )
            config.views.both.update(defaults.NORMALISED)
    if "debug" in chosen:
        defaults.debug(config)
        config.method.update(dict(out_dim=16, hidden_dim=8))
    return config
