"""VICReg (Bardes et al. 2021, arXiv 2105.04906).

Two views of an image are pulled together by their squared distance alone. What keeps the output
from becoming constant acts on each view's batch by itself: every feature's standard deviation is
held above 1, and features are kept uncorrelated. There are no negatives, no slow copy and no
predictor. The metrics "invariance", "variance" and "covariance" are the three terms; "z_std" near 1
is health, 0 a collapse.

Default: the embedded `scenes`, a small ResNet, two CPU cores, an expander of 512 features.

Variants:
  folder        your own images: `cl-jax train vicreg:folder PATH`.
  cifar10       ResNet-18, expander 2048-2048-2048, batch 256, 1000 epochs, LARS 0.3 x B/256.
                solo-learn's but for what is said below. Published: 92.07 % online linear
                (solo-learn's README).
  imagenet2012  ResNet-50, expander 8192-8192-8192, batch 512, 100 epochs, LARS 0.3 x B/256, weight
                decay 1e-6: the command of the authors' README, which gives no figure for it.
                Published: 73.2 % linear after 1000 epochs of batch 2048 (README of the authors'
                code).
  debug         any of them in seconds.

Differences from the authors' code:
  - Variances and covariances are of the batch that is there; their code divides the last, smaller
    batch of an epoch by the full batch's size.
  - Their classifier on ImageNet trains at 0.02 for 100 epochs; the probe is the one of all configs.
  - `cifar10`: solo-learn adds the variance term over the two views, so that its weight of 25 is 50
    here, and the variant has 50.
  - Matrix products are in bfloat16 on ImageNet, theirs in float16; the loss is in float32.

Command: python -m cl_jax.main --config=configs/vicreg.py --workdir=runs/vicreg
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults

VARIANTS = ("folder", "cifar10", "imagenet2012", "debug")


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, VARIANTS)
    config = defaults.get_config()
    defaults.laptop(config)
    config.method = ConfigDict(dict(name="vicreg", hidden_dim=512, out_dim=512))
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.batch_size, config.total_epochs = 256, 1000.0
        config.method = ConfigDict(
            dict(name="vicreg", hidden_dim=2048, out_dim=2048, variance_weight=50.0)
        )
        config.views = ConfigDict(
            dict(
                both=dict(
                    name="simsiam_cifar",
                    copies=2,
                    saturation=0.2,
                    solarize=0.1,
                    order=("jitter", "gray", "solarize", "flip"),
                    interpolation="bicubic",
                    **defaults.CIFAR10_PIXELS,
                )
            )
        )
        config.optimizer = defaults.solo_learn_larc(0.3, weight_decay=1e-4)
    if "imagenet2012" in chosen:
        defaults.imagenet2012(config)
        config.encoder.zero_init_last = True
        config.batch_size, config.total_epochs = 512, 100.0
        config.method = ConfigDict(dict(name="vicreg"))
        config.views = ConfigDict(
            dict(
                a=dict(name="dino", crop="global1", scale=(0.08, 1.0)),
                b=dict(name="dino", crop="global2", scale=(0.08, 1.0)),
            )
        )
        config.optimizer = ConfigDict(
            dict(
                name="lars_byol",
                learning_rate=0.3,
                weight_decay=1e-6,
                final_learning_rate=6e-4,
                warmup_epochs=10.0,
            )
        )
    if "debug" in chosen:
        defaults.debug(config)
        config.method.update(dict(hidden_dim=16, out_dim=16))
    return config
