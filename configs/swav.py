"""SwAV (Caron et al. 2020, arXiv 2006.09882).

Features are scored against trained prototypes. Within a batch the scores of one crop are turned
into codes that use all prototypes equally, by a few steps of Sinkhorn's algorithm, and every other
crop of the image must predict them. Many small crops beside two large ones give more views for
little time.

Default: the embedded `scenes`, a small ResNet, two CPU cores, two large crops and two small ones.
Sharp codes: at an epsilon of 0.02 one seed of three stayed near its untrained network.

Variants:
  folder        your own images: `cl-jax train swav:folder PATH`.
  cifar10       ResNet-18, 1000 epochs, batch 256, learning rate 0.6, 3,000 prototypes frozen for
                two epochs, a queue of 3,840 from epoch 50. No setting of the authors; solo-learn's
                but for what is said below. Published: 89.17 % online linear (solo-learn's README).
  imagenet2012  the authors' batch-256 run: 2x224 + 6x96 crops, 200 epochs, LARC 0.6 to 0.0006,
                weight decay 1e-6, a queue of 3,840 from epoch 15, prototypes frozen for 5,005
                steps. Published: 72.7 % linear (README of the authors' code).
  debug         any of them in seconds.

Differences from the authors' code:
  - The queue is of the global batch and the same on every device; they keep a share of it on each.
  - Their classifier trains for 100 epochs at a rate of 0.3; the probe is the one of all configs.
  - Matrix products of the ImageNet setting are in bfloat16, theirs in float16.
  - `cifar10`: solo-learn has two crops of 32 pixels from the whole range of areas, and a LARS with
    trust coefficient 0.02 that clips the rate and does not rescale biases and norms; here there are
    two crops of 32 and four of 16, without blur, and the authors' LARC. Its crops are bicubic and
    its pixels have CIFAR's mean and deviation; here they are bilinear and have ImageNet's.

Command: python -m cl_jax.main --config=configs/swav.py --workdir=runs/swav
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, ("folder", "cifar10", "imagenet2012", "debug"))
    config = defaults.get_config()
    defaults.laptop(config)
    large = dict(config.views.both.to_dict(), strength=1.0, gray=0.5)
    config.views = ConfigDict(dict(a_large=large, b_small=dict(large, size=12, scale=(0.5, 0.8))))
    config.method = ConfigDict(
        dict(
            name="swav",
            num_prototypes=100,
            hidden_dim=256,
            out_dim=64,
            queue_size=0,
            queue_start_epochs=4.0,
            epsilon=0.01,
        )
    )
    config.optimizer.update(dict(freeze_steps=256, freeze_paths=("prototypes",)))
    larc = dict(
        name="larc_sgd",
        schedule="linspace_warmup_cosine",
        weight_decay=1e-6,
        freeze_paths=("prototypes",),
    )
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.batch_size, config.total_epochs = 256, 1000.0
        config.method = ConfigDict(
            dict(name="swav", num_prototypes=3000, queue_size=3840, queue_start_epochs=50.0)
        )
        config.views = ConfigDict(
            dict(
                a_large=dict(
                    name="swav", size=32, scale=(0.3, 1.0), blur=0.0, test_crop=1.0, copies=2
                ),
                b_small=dict(name="swav", size=16, scale=(0.08, 0.3), blur=0.0, copies=4),
            )
        )
        config.optimizer = ConfigDict(
            dict(
                larc,
                learning_rate=0.6,
                final_learning_rate=0.0006,
                freeze_steps=390,
                warmup_epochs=10.0,
            )
        )
    if "imagenet2012" in chosen:
        defaults.imagenet2012(config)
        config.batch_size, config.total_epochs = 256, 200.0
        config.method = ConfigDict(
            dict(name="swav", num_prototypes=3000, queue_size=3840, queue_start_epochs=15.0)
        )
        config.views = ConfigDict(
            dict(
                a_large=dict(name="swav", size=224, scale=(0.14, 1.0), copies=2),
                b_small=dict(name="swav", size=96, scale=(0.05, 0.14), copies=6),
            )
        )
        config.optimizer = ConfigDict(
            dict(larc, learning_rate=0.6, final_learning_rate=0.0006, freeze_steps=5005)
        )
    if "debug" in chosen:
        defaults.debug(config)
        config.method.update(
            dict(
                num_prototypes=10,
                hidden_dim=32,
                out_dim=16,
                queue_size=32,
                queue_start_epochs=0.0,
                epsilon=0.05,
            )
        )  # sharper codes of sixteen rows make too much of a rounding
        config.optimizer.freeze_steps = 1
    return config
