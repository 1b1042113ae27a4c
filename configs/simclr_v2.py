"""SimCLR v2 (Chen et al. 2020, arXiv 2006.10029).

SimCLR with a larger network and a deeper head, in three stages: contrastive pre-training,
fine-tuning with few labels from a middle layer of the head, and distillation of the result into a
student on images without labels.

Default: the embedded `scenes`, a small ResNet, two CPU cores; four epochs, for which Muon moves the
network.

Variants:
  folder                     your own images: `cl-jax train simclr_v2:folder PATH`.
  cifar10                    pre-training at the CIFAR setting of the authors' code: ResNet-18,
                             batch 512, 1000 epochs. Published: "around 91 %" linear (README of the
                             authors' code, of SimCLR).
  imagenet2012               ResNet-50 with selective kernels, batch 4096, 800 epochs, LARS 0.1
                             sqrt(B), weight decay 1e-4, temperature 0.1. Published: 74.6 % linear;
                             fine-tuned 64.5, 72.1, 78.7 % with 1, 10, 100 % of the labels (README
                             of the authors' code).
  memory                     a queue of momentum keys (65,536 on ImageNet, decay 0.999).
  label1, label10, label100  the share of the labels that fine-tuning sees, 10 % where none is
                             named.
  debug                      any of them in seconds.

Differences from the authors' code:
  - The memory's code is not released, and the paper does not say how both views enter it. Here keys
    of both views do, and a query is contrasted with the keys of the batch and of the queue.
  - Distillation's code is not released; it is the paper's equation 2.
  - Fine-tuning trains all layers that it keeps, those of the head too, as their TF2 code; their TF1
    code leaves the head's.
  - Blur's sigma is drawn for each image; they draw one for each core and batch.
  - The published 1 % and 10 % are fixed lists of images; here the share is drawn by the seed.

Command: python -m cl_jax.main --config=configs/simclr_v2.py --workdir=runs/simclr_v2 --stage=all
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults

VARIANTS = ("folder", "cifar10", "imagenet2012", "memory", "label1", "label10", "label100", "debug")


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, VARIANTS)
    config = defaults.get_config()
    config.method = ConfigDict(
        dict(
            name="simclr_v2", temperature=0.2, num_layers=3, out_dim=64, queue_size=0, momentum=0.99
        )
    )
    defaults.laptop(config)
    crop = dict(
        name="simclr_crop_flip",
        size=config.views.both.size,
        scale=(0.7, 1.0),
        flip=0.0,
        test_crop=1.0,
    )
    tune = dict(name="adamw", learning_rate=1e-3, learning_rate_scaling="none", weight_decay=0.0)
    tune_epochs, distill_epochs, tune_batch = 30.0, 20.0, 64
    distill = dict(
        name="adamw",
        learning_rate=4e-3,
        learning_rate_scaling="none",
        weight_decay=1e-4,
        warmup_epochs=0.5,
    )
    queue_size = 4096
    if not {"folder", "cifar10", "imagenet2012"} & set(chosen):
        # A third of the other configs' epochs: benchmarks/README.md, "A third of the epochs".
        config.optimizer = ConfigDict(
            dict(
                name="muon",
                learning_rate=0.015,
                learning_rate_scaling="none",
                momentum=0.95,
                weight_decay=1e-4,
                warmup_epochs=0.25,
            )
        )
        config.views.both.update(dict(scale=(0.85, 1.0), gray=0.5))
        config.method.temperature = 0.1
        config.total_epochs, config.evals.every_epochs = 4.0, 2.0
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
        crop = dict(name="simclr_crop_flip", size=64, test_crop=1.0, **defaults.NORMALISED)
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.encoder.variant = "simclr"
        config.total_epochs = 1000.0
        config.method.update(dict(temperature=0.5, out_dim=128))
        config.optimizer = ConfigDict(
            dict(name="lars_simclr", learning_rate=1.0, weight_decay=1e-4, warmup_epochs=10.0)
        )
        crop = dict(name="simclr_crop_flip", size=32, test_crop=1.0)
    if "imagenet2012" in chosen:
        defaults.imagenet2012(config)
        config.encoder.variant = "simclr"
        config.encoder.sk_ratio = 0.0625
        config.batch_size = 4096
        config.total_epochs = 800.0
        config.views = ConfigDict(dict(both=dict(name="simclr", copies=2)))
        config.method.update(dict(temperature=0.1, momentum=0.999, out_dim=128))
        config.optimizer = ConfigDict(
            dict(
                name="lars_simclr",
                learning_rate=0.1,
                learning_rate_scaling="sqrt",
                weight_decay=1e-4,
                warmup_epochs=40.0,
            )
        )
        crop = dict(name="simclr_crop_flip", size=224)
        queue_size = 65536
    share = 0.01 if "label1" in chosen else 1.0 if "label100" in chosen else 0.1
    if "cifar10" in chosen or "imagenet2012" in chosen:
        tune = dict(
            name="lars_simclr",
            learning_rate=0.002 if config.encoder.get("sk_ratio", 0) else 0.005,
            learning_rate_scaling="sqrt",
            weight_decay=0.0,
            exclude_paths=("classifier",),  # it starts at 0: rescaled by its norm, it would stay
        )
        tune_epochs, tune_batch = (
            (60.0 if share == 0.01 else 30.0),
            1024 if "imagenet2012" in chosen else 64,
        )
        distill, distill_epochs = dict(config.optimizer), 400.0
    if "memory" in chosen:
        config.method.queue_size = queue_size
    config.stage_order = ("pretrain", "finetune", "distill")
    config.previous = ""
    config.stages = ConfigDict(
        dict(
            pretrain=dict(),
            finetune=dict(
                previous="../pretrain",
                method=dict(name="finetune", layer="h" if share == 1 else "proj1"),
                data=dict(fraction=share),
                views=dict(one=crop),
                optimizer=tune,
                total_epochs=tune_epochs,
                batch_size=tune_batch,
                evals=dict(
                    baselines=False,
                    every_epochs=tune_epochs,
                    protocols=dict(classifier=dict()),
                ),
            ),
            distill=dict(
                previous="../finetune",
                method=dict(name="distill", temperature=0.1),
                views=dict(one=crop),
                optimizer=distill,
                total_epochs=distill_epochs,
                evals=dict(
                    baselines=False,
                    every_epochs=distill_epochs,
                    protocols=dict(classifier=dict()),
                ),
            ),
        )
    )
    if "debug" in chosen:
        defaults.debug(config)
        config.stages.finetune.update(dict(total_epochs=1.0, batch_size=8))
        config.stages.finetune.data.fraction = 0.5
        config.stages.distill.total_epochs = 1.0
        if config.method.queue_size:
            config.method.queue_size = 32
    return config
