"""LeJEPA (Balestriero and LeCun 2025, arXiv 2511.08544).

All views of an image are pulled to their mean; that the output does not become constant is left to
SIGReg alone, which holds each view's batch, seen along random directions, to a standard normal
distribution. There are no negatives, no slow copy, no predictor and no stop-gradient, and one
weight balances the two terms. The metric "sigreg" is about 1.05 where the output is as it should
be, and "prediction" the distance of views to their mean.

Default: the embedded `scenes`, a small ResNet, two CPU cores, four equal views, 256 directions.

Variants:
  folder        your own images: `cl-jax train lejepa:folder PATH`.
  cifar10       ResNet-18, four equal views, projector 512-2048-2048-64, batch 256, 400 epochs,
                AdamW 5e-4. No setting of the authors.
  imagenet2012  ViT-S/16, two global crops of 224 and six local ones of 96, batch 512, 100 epochs,
                AdamW 5e-4, weight decay 0.05, weight 0.05. Published: 64.0 % linear, 47.1 % kNN
                (lightly's README, by a program whose global crops did not enter SIGReg). The paper
                reports 79.0 % linear of a ViT-H/14.
  debug         any of them in seconds.

Differences from the authors' code:
  - Directions are drawn from the step's key, the same on any number of devices; theirs from a
    counter.
  - No path is dropped; theirs and lightly's are, with a probability that rises to 0.1 in the last
    block.
  - Local crops are 96 pixels, as in lightly; theirs are 98 with patches of 14.
  - Their probe reads the class tokens of the last two layers through a layer norm; the probe is the
    one of all configs, on "h".

Command: python -m cl_jax.main --config=configs/lejepa.py --workdir=runs/lejepa
Reached: kNN 78.9 %, linear 84.6 % after six epochs (untrained kNN 39.6 %).
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults

VARIANTS = ("folder", "cifar10", "imagenet2012", "debug")


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, VARIANTS)
    config = defaults.get_config()
    defaults.laptop(config)
    config.views.both.copies = 4
    config.method = ConfigDict(
        dict(name="lejepa", weight=0.05, hidden_dim=256, out_dim=32, num_directions=256)
    )
    adam = dict(
        name="adamw",
        learning_rate=5e-4,
        learning_rate_scaling="none",
        weight_decay=5e-4,
        warmup_epochs=1.0,
        final_learning_rate=5e-7,
    )
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
        config.method.num_global = 2
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.batch_size, config.total_epochs = 256, 400.0
        config.method = ConfigDict(dict(name="lejepa", num_directions=256))
        config.views = ConfigDict(dict(both=dict(name="moco_cifar", copies=4)))
        config.optimizer = ConfigDict(adam)
    if "imagenet2012" in chosen:
        defaults.imagenet2012(config)
        config.encoder = ConfigDict(
            dict(name="vit", size="small", patch=16, variant="dino", dtype="bfloat16")
        )
        config.batch_size, config.total_epochs = 512, 100.0
        config.method = ConfigDict(dict(name="lejepa", num_global=2))
        crops = dict(name="dino", crop="global1", blur=0.5, solarize=0.2)
        config.views = ConfigDict(
            dict(
                a_global=dict(crops, size=224, scale=(0.3, 1.0), copies=2),
                b_local=dict(crops, size=96, scale=(0.05, 0.3), copies=6),
            )
        )
        config.optimizer = ConfigDict(dict(adam, weight_decay=0.05))
    if "debug" in chosen:
        defaults.debug(config)
        if config.encoder.name == "vit":
            config.encoder = ConfigDict(
                dict(name="vit", width=32, depth=2, heads=2, patch=4, image_size=16)
            )
            config.views.b_local.size = 8
        config.method.update(dict(hidden_dim=16, out_dim=8, num_directions=16))
    return config
