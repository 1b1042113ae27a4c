"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230).

The features of two views are brought to mean 0 and variance 1 over the batch, and their
cross-correlation is driven to the identity: 1 on the diagonal, so that a feature does not change
with the view, 0 off it, so that features do not repeat each other. There are no negatives, no slow
copy and no predictor.

Default: the embedded `scenes` by their lightness, a small ResNet, two CPU cores, a projector of 128
features: with more features and with colours, those that tell pictures apart rule the correlation.

Variants:
  folder        your own images: `cl-jax train barlow:folder PATH`.
  cifar10       ResNet-18, projector 2048-2048-2048, scale 0.1, batch 256, 1000 epochs, LARS 0.3 x
                B/256. solo-learn's but for what is said below. Published: 92.10 % online linear
                (solo-learn's README).
  imagenet2012  ResNet-50, projector 8192-8192-8192, batch 2048, 1000 epochs, LARS 0.2 x B/256,
                biases and norms at 0.0048 x B/256, weight decay 1e-6. Published: 73.5 % linear
                (README of the authors' code).
  debug         any of them in seconds.

Differences from the authors' code:
  - The correlation is summed over devices inside the gradient. Their program leaves the sum out of
    it, and trains biases and norms, which LARS does not rescale, at 1/devices of the rate that is
    written: `imagenet2012` has 0.0048 / 16 (`optimizer.parts.one_axis`), of the 16 GPUs of their
    README.
  - Their classifier on ImageNet trains at 0.3 for 100 epochs; the probe is the one of all configs.
  - `cifar10`: solo-learn's moments and correlations are of each device's rows, here of the batch;
    its projector has biases, which batch norm cancels.
  - Matrix products are in bfloat16 on ImageNet, theirs in float16; the loss is in float32.

Command: python -m cl_jax.main --config=configs/barlow.py --workdir=runs/barlow
Reached: 54.2 % kNN and 63.0 % linear on `scenes` (39.6 % kNN untrained).
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults

VARIANTS = ("folder", "cifar10", "imagenet2012", "debug")


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, VARIANTS)
    config = defaults.get_config()
    defaults.laptop(config)
    config.method = ConfigDict(
        dict(name="barlow", hidden_dim=512, out_dim=128, off_diagonal_weight=0.0051)
    )
    config.views = ConfigDict(dict(both=defaults.lightness(copies=2)))
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.batch_size, config.total_epochs = 256, 1000.0
        config.method = ConfigDict(dict(name="barlow", hidden_dim=2048, out_dim=2048, scale=0.1))
        shared = dict(
            name="simsiam_cifar",
            scale=(0.08, 1.0),
            saturation=0.2,
            order=("jitter", "gray", "solarize", "flip"),
            interpolation="bicubic",
            **defaults.CIFAR10_PIXELS,
        )
        config.views = ConfigDict(dict(a=shared, b=dict(shared, solarize=0.2)))
        config.optimizer = defaults.solo_learn_larc(0.3, weight_decay=1e-4)
    if "imagenet2012" in chosen:
        defaults.imagenet2012(config)
        config.encoder.zero_init_last = True
        config.batch_size, config.total_epochs = 2048, 1000.0
        config.method = ConfigDict(dict(name="barlow"))
        config.views = ConfigDict(
            dict(
                a=dict(name="dino", crop="global1", scale=(0.08, 1.0)),
                b=dict(name="dino", crop="global2", scale=(0.08, 1.0)),
            )
        )
        config.optimizer = ConfigDict(
            dict(
                name="lars_byol",
                learning_rate=0.2,
                weight_decay=1e-6,
                final_learning_rate=1.6e-3,
                warmup_epochs=10.0,
                parts=dict(  # biases and norms
                    one_axis=dict(
                        paths=("(scale|bias)$",),
                        learning_rate=0.0048 / 16,
                        final_learning_rate=2.4e-6,
                    )
                ),
            )
        )
    if "debug" in chosen:
        defaults.debug(config)
        # At full scale the gradient of so small a network is so large that rounding grows without
        # bound, and `verify` would say nothing.
        config.method.update(dict(hidden_dim=64, out_dim=16, scale=0.1))
    return config
