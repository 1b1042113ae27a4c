"""SupCon (Khosla et al. 2020, arXiv 2004.11362).

SimCLR with labels: all views of all images of a class are each other's positives. A second stage
trains a linear classifier on the frozen encoder.

Default: the embedded `scenes`, a small ResNet, two CPU cores; SimCLR's head, whose batch norm keeps
features apart until there is something to learn (with the authors' head all became equal, until the
learning rate had fallen).

Variants:
  folder        your own images: `cl-jax train supcon:folder PATH`.
  cifar10       the authors' PyTorch code: ResNet-50, batch 1024, 1000 epochs, SGD 0.5 to 0.0005,
                temperature 0.1; the classifier 100 epochs of SGD 5, times 0.2 at 60, 75 and 90.
                Published: 96.0 % (README of that code).
  cifar100      the same. Published: 76.5 % (README of that code).
  imagenet2012  the authors' TPU code for ResNet-50: batch 6144, 350 epochs, LARS 0.4 x B/256, a
                linear head on an embedding of unit length. No figure of this setting, without
                AutoAugment, is published.
  simclr        with any of them: no labels in pre-training, the authors' own SimCLR (temperature
                and rate 0.5). Published: 93.6 % on CIFAR-10, 70.7 % on CIFAR-100 (README of the
                PyTorch code).
  debug         any of them in seconds.

Differences from the authors' code:
  - `imagenet2012`: SimCLR's views in place of AutoAugment, which is not built; SimCLR's SGD for the
    classifier in place of RMSProp with smoothed labels.
  - The cosine starts after the warm-up, where theirs runs over all epochs: 0.5 and 0.49988 at the
    junction. It falls with every step; theirs with every epoch, counted from 1.
  - They start the classifier from PyTorch's weights, here from zeros.
  - `base_temperature` scales the loss by 1.43, as in their PyTorch code and not in the paper; None
    is the paper's. `summation="inside"` of the method is the paper's other loss, inferior there.

Command: python -m cl_jax.main --config=configs/supcon.py --workdir=runs/supcon --stage=all
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(
        arg, ("folder", "cifar10", "cifar100", "imagenet2012", "simclr", "debug")
    )
    config = defaults.get_config()
    defaults.laptop(config)
    config.method = ConfigDict(
        dict(
            name="supcon", temperature=0.1, head="simclr", out_dim=64, labels="simclr" not in chosen
        )
    )
    crop = dict(
        name="simclr_crop_flip",
        size=config.views.both.size,
        scale=(0.7, 1.0),
        flip=0.0,
        test_crop=1.0,
    )
    linear = dict(name="sgd", learning_rate=0.1, learning_rate_scaling="none", weight_decay=0.0)
    linear_epochs, linear_batch = 10.0, 256
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
        crop = dict(name="simclr_crop_flip", size=64, test_crop=1.0, **defaults.NORMALISED)
    if "cifar10" in chosen or "cifar100" in chosen:
        defaults.cifar10(config)
        config.data.dataset = "cifar100" if "cifar100" in chosen else "cifar10"
        config.encoder.update(dict(depth=50, variant="torchvision"))
        config.batch_size, config.total_epochs = 1024, 1000.0
        view = dict(name="moco_cifar", scale=(0.2, 1.0))
        if "cifar100" in chosen:
            view |= defaults.CIFAR100_PIXELS
        config.views = ConfigDict(dict(both=view | dict(copies=2)))
        config.method.update(
            dict(temperature=0.1 if config.method.labels else 0.5, head="moco_v2", out_dim=128)
        )
        config.optimizer = ConfigDict(
            dict(
                name="sgd",
                learning_rate=0.5,
                learning_rate_scaling="none",
                weight_decay=1e-4,
                schedule="linspace_warmup_cosine",
                warmup_epochs=10.0,
                warmup_start=0.01,
                final_learning_rate=0.0005,
            )
        )
        crop = view | dict(jitter=0.0, gray=0.0)
        linear = dict(
            name="sgd",
            learning_rate=5.0 if config.method.labels else 1.0,
            learning_rate_scaling="none",
            weight_decay=0.0,
            schedule="step_decay",
            milestones_epochs=(60.0, 75.0, 90.0),
            decay_factor=0.2,
        )
        linear_epochs, linear_batch = 100.0, 512
    if "imagenet2012" in chosen:
        defaults.imagenet2012(config)
        config.encoder.variant = "simclr"
        config.batch_size, config.total_epochs = 6144, 350.0
        config.views = ConfigDict(dict(both=dict(name="simclr", copies=2)))
        config.method.update(
            dict(head="linear", unit_embedding=True, base_temperature=1.0, out_dim=128)
        )
        config.optimizer = ConfigDict(
            dict(name="lars_simclr", learning_rate=0.4, weight_decay=1e-3, warmup_epochs=12.0)
        )
        crop = dict(name="simclr_crop_flip", size=224)
        linear = dict(name="sgd", learning_rate=0.1, weight_decay=0.0, nesterov=True)
        linear_epochs, linear_batch = 90.0, 4096
    config.stage_order = ("pretrain", "linear")
    config.previous = ""
    config.stages = ConfigDict(
        dict(
            pretrain=dict(),
            linear=dict(
                previous="../pretrain",
                method=dict(name="finetune", freeze=True),
                views=dict(one=crop),
                optimizer=linear,
                total_epochs=linear_epochs,
                batch_size=linear_batch,
                evals=dict(baselines=False, every_epochs=linear_epochs),
            ),
        )
    )
    if "debug" in chosen:
        defaults.debug(config)
        config.method.temperature = (
            0.5  # a lower one amplifies rounding, and tiny runs are compared to the last digits
        )
        if config.optimizer.get("warmup_epochs", 0) > 1:
            config.optimizer.warmup_epochs = 0.5
        config.stages.linear.update(dict(total_epochs=1.0, batch_size=16))
    return config
