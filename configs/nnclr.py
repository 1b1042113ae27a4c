"""NNCLR (Dwibedi et al. 2021, arXiv 2104.14548).

SimCLR whose positive is another image: a view's embedding is replaced by its nearest neighbour in a
queue of earlier embeddings, and a predictor on the other view must pick that neighbour out among
those of the batch. What a crop and a colour jitter cannot vary, the neighbours do. Neighbours are
random at first, and the loss stays near chance for some epochs.

Default: the embedded `scenes`, a small ResNet, two CPU cores, a queue of 1,024.

Variants:
  folder        your own images: `cl-jax train nnclr:folder PATH`.
  cifar10       ResNet-18, queue of 65,536 reduced to 49,152 (the data set has 50,000), batch 256,
                1000 epochs, LARS 0.4 x B/256, weight decay 1e-5, temperature 0.2. solo-learn's but
                for what is said below. Published: 91.88 % online linear (solo-learn's README).
  imagenet2012  ResNet-50, queue of 98,304, batch 4096, 1000 epochs, LARS 0.3 x B/256, weight decay
                1e-6, temperature 0.1. Published: 75.6 % linear (the paper's abstract).
  debug         any of them in seconds.

Differences from solo-learn's code (the authors' is not released):
  - A queue may have any length; theirs is a multiple of the batch.
  - `form="both"` and `form="nt_xent"` of the method are the paper's text and lightly's loss; the
    default is the paper's pseudo-code, which is theirs.
  - Dense layers before a batch norm have no bias, which the norm cancels.

Command: python -m cl_jax.main --config=configs/nnclr.py --workdir=runs/nnclr
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults

VARIANTS = ("folder", "cifar10", "imagenet2012", "debug")


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, VARIANTS)
    config = defaults.get_config()
    defaults.laptop(config)
    config.method = ConfigDict(
        dict(
            name="nnclr",
            temperature=0.2,
            queue_size=1024,
            hidden_dim=256,
            out_dim=64,
            predictor_dim=256,
        )
    )
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.batch_size, config.total_epochs = 256, 1000.0
        config.method = ConfigDict(dict(name="nnclr", temperature=0.2, queue_size=49152))
        shared = dict(
            name="simsiam_cifar",
            scale=(0.08, 1.0),
            saturation=0.2,
            order=("jitter", "gray", "solarize", "flip"),
            interpolation="bicubic",
            **defaults.CIFAR10_PIXELS,
        )
        config.views = ConfigDict(dict(a=shared, b=dict(shared, solarize=0.2)))
        config.optimizer = defaults.solo_learn_larc(0.4, weight_decay=1e-5)
    if "imagenet2012" in chosen:
        defaults.imagenet2012(config)
        config.batch_size, config.total_epochs = 4096, 1000.0
        config.method = ConfigDict(dict(name="nnclr"))
        config.views = ConfigDict(dict(both=dict(name="simclr", copies=2)))
        config.optimizer = ConfigDict(
            dict(name="lars_byol", learning_rate=0.3, weight_decay=1e-6, warmup_epochs=10.0)
        )
    if "debug" in chosen:
        defaults.debug(config)
        config.method.update(dict(queue_size=48, hidden_dim=16, out_dim=8, predictor_dim=16))
    return config
