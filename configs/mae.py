"""MAE (He et al. 2021, arXiv 2111.06377; SimMIM: Xie et al. 2021, arXiv 2111.09886).

Three quarters of an image's patches are hidden; a transformer encodes the others, and a small
decoder predicts the pixels of the hidden ones. There is one view and no augmentation but a crop;
nothing is compared. Features do not separate classes by themselves as those of contrastive methods
do: kNN and linear figures are low, and fine-tuning is what they are for.

Default: the embedded `scenes` at 16 pixels, a small transformer on patches of 4, two CPU cores, 30
epochs. Pixels are predicted as they are: normalised in each patch, the rounding of a plain ground
would count as much as a stroke. With `--stage=all` two stages follow: `finetune` trains the whole
network on a twentieth of the labels, and `scratch` one that starts from nothing on the same labels,
for comparison; their settings are those of `scenes` in all variants.

Variants:
  folder        your own images: `cl-jax train mae:folder PATH`.
  cifar10       ViT-Ti on patches of 4, decoder of 2 blocks 128 wide, batch 512, 800 epochs, AdamW
                1.5e-4 x B/256. No setting of the authors.
  imagenet2012  ViT-B/16, decoder of 8 blocks 512 wide, batch 4096, 800 epochs, AdamW 1.5e-4 x
                B/256, weight decay 0.05. Published: 68.0 % linear, 83.6 % fine-tuned, after 1600
                epochs (the paper).
  simmim        of any of them SimMIM: all places enter the encoder, a learned token at those that
                are hidden, 60 % in cells; one linear layer reads the pixels.
                `imagenet2012,simmim`: batch 2048, 800 epochs, AdamW 1e-4 x B/512, a tenth of it
                from epoch 700, drop path 0.1. Published: 83.8 % fine-tuned (README of the authors'
                code).
  debug         any of them in seconds.

Differences from the authors' code:
  - MAE's classifier has a batch norm without scale before it; the probe is the one of all configs.
    Features are "h", the mean of the patches, "cls", the class token, and "mean".
  - The class and mask tokens are not decayed, nor are biases and norms.
  - SimMIM: the network is MAE's. Theirs has a LayerScale that starts at 0.1 and keys without a
    bias; its weights start normal with 0.02, those that end attention and MLP divided by the root
    of twice the block's number, and its layer of pixels as PyTorch's.
  - SimMIM: positions are MAE's fixed table, theirs are learned and relative. The warm-up starts at
    a rate of 0, theirs at 5e-7 x B/512. Beside other variants than `imagenet2012` the optimiser is
    MAE's.
  - Matrix products are in bfloat16, theirs in float16; the loss is in float32.

Command: python -m cl_jax.main --config=configs/mae.py --workdir=runs/mae
Reached: 36.0 % fine-tuned on 409 labels (`scratch` 24.5 %), with a mask ratio of .5 50.0 %. After
six epochs of pre-training, ratios of .25, .5, .75 and .9: 23.5, 16.8, 16.5 and 14.5 %. See
docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults

VARIANTS = ("folder", "cifar10", "imagenet2012", "simmim", "debug")


def crop(size: int, **changes: object) -> ConfigDict:
    return ConfigDict(
        dict(
            one=dict(
                name="crop_flip", size=size, scale=(0.2, 1.0), interpolation="bicubic", **changes
            )
        )
    )


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, VARIANTS)
    config = defaults.get_config()
    defaults.laptop(config)
    config.views = crop(16, flip=0.0, test_crop=1.0)
    config.views.one.scale = (0.7, 1.0)
    config.encoder = ConfigDict(
        dict(
            name="vit",
            size="tiny",
            width=64,
            depth=4,
            heads=2,
            patch=4,
            variant="mae",
            pool="mean",
            dtype="float32",
        )
    )
    config.total_epochs = 12.0
    config.method = ConfigDict(
        dict(
            name="mae",
            mask_ratio=0.75,
            normalise_pixels=False,
            decoder_width=64,
            decoder_depth=1,
            decoder_heads=2,
        )
    )
    adam = dict(
        name="adamw",
        b2=0.95,
        weight_decay=0.05,
        exclude_ndim=1,
        exclude_paths=("class_token", "mask_token"),
    )
    config.optimizer = ConfigDict(
        dict(adam, learning_rate=2e-3, learning_rate_scaling="none", warmup_epochs=1.0)
    )
    published = dict(adam, learning_rate=1.5e-4, learning_rate_scaling="linear", warmup_epochs=40.0)
    cell = 4
    if "folder" in chosen:
        config.encoder = defaults.get_config().encoder
        defaults.folder(config, get_config("imagenet2012"))
        config.encoder = ConfigDict(
            dict(name="vit", size="tiny", patch=8, variant="mae", pool="mean", dtype="float32")
        )
        config.method = ConfigDict(
            dict(name="mae", decoder_width=128, decoder_depth=2, decoder_heads=4)
        )
        cell = 16
    if "cifar10" in chosen:
        config.encoder = defaults.get_config().encoder
        defaults.cifar10(config)
        config.encoder = ConfigDict(
            dict(name="vit", size="tiny", patch=4, variant="mae", pool="mean", dtype="float32")
        )
        config.total_epochs = 800.0
        config.method = ConfigDict(
            dict(name="mae", decoder_width=128, decoder_depth=2, decoder_heads=4)
        )
        config.views = crop(32, test_crop=1.0)
        config.optimizer = ConfigDict(dict(published, warmup_epochs=20.0))
        cell = 8
    if "imagenet2012" in chosen:
        config.encoder = defaults.get_config().encoder
        defaults.imagenet2012(config)
        config.encoder = ConfigDict(
            dict(name="vit", size="base", patch=16, variant="mae", pool="mean", dtype="bfloat16")
        )
        config.batch_size, config.total_epochs = 4096, 800.0
        config.method = ConfigDict(dict(name="mae"))
        config.views = crop(224)
        config.optimizer = ConfigDict(published)
        cell = 32
    if "simmim" in chosen:
        config.encoder.mask_token = True
        config.method = ConfigDict(dict(name="mae", form="simmim", mask_ratio=0.6, mask_cell=cell))
        if "imagenet2012" in chosen:
            config.batch_size = 2048
            config.encoder.drop_path = 0.1
            config.views.one.update(dict(scale=(0.67, 1.0), interpolation="bilinear"))
            config.optimizer.update(
                dict(
                    b2=0.999,
                    learning_rate=5e-5,  # x B/256
                    schedule="step_decay",
                    milestones_epochs=(700.0,),
                    warmup_epochs=10.0,
                    clip_global_norm=5.0,
                )
            )
    few = dict(
        data=dict(fraction=0.05),
        batch_size=32,
        views=config.views.to_dict(),
        optimizer=dict(
            name="adamw",
            b2=0.999,
            learning_rate=1e-3,
            learning_rate_scaling="none",
            weight_decay=0.05,
            warmup_epochs=2.0,
        ),
        total_epochs=60.0,
        evals=dict(baselines=False, every_epochs=60.0, protocols=dict(classifier=dict())),
    )
    if config.data.name == "scenes":
        config.total_epochs = config.evals.every_epochs = 30.0
        # the spread of features is small, and this standardises them
        config.evals.protocols.logistic = ConfigDict(dict())
    config.stage_order = ("pretrain", "finetune", "scratch")
    config.previous = ""
    config.stages = ConfigDict(
        dict(
            pretrain=dict(),
            finetune=dict(few, previous="../pretrain", method=dict(name="finetune")),
            # as fine-tuning, which drops no path
            scratch=dict(few, method=dict(name="supervised"), encoder=dict(drop_path=0.0)),
        )
    )
    if "debug" in chosen:
        simmim = "simmim" in chosen
        defaults.debug(config)
        config.encoder.update(dict(width=32, depth=2, heads=2, patch=4, dtype="float32"))
        config.method = ConfigDict(
            dict(name="mae", form="simmim", mask_ratio=0.6, mask_cell=8)
            if simmim
            else dict(name="mae", decoder_width=16, decoder_depth=1, decoder_heads=2)
        )
        for name in ("finetune", "scratch"):
            config.stages[name].update(dict(total_epochs=1.0, batch_size=8))
            config.stages[name].data.fraction = 0.5
    return config
