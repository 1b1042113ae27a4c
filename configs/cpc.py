"""CPC for images (van den Oord et al. 2018, arXiv 1807.03748; Henaff et al. 2020, arXiv
1905.09272).

An image is a grid of overlapping patches, each encoded by itself. A context that has seen the rows
down to one predicts the encodings of patches some rows further down, and must pick each out among
the patches of the whole batch. Version 2 predicts in four directions with a larger network.

Default: the embedded `scenes` in grey, patches of 16 pixels on a 3x3 grid, a small ResNet with
layer norm, all four directions, two CPU cores. Evaluators read "grid", the encodings of all patches
side by side: their mean, "h", which the other settings read, does not say where a stroke is.

Variants:
  folder           your own images: `cl-jax train cpc:folder PATH`.
  cifar10          patches of 8 pixels on a 7x7 grid, a ResNet-50 to its third stage. Not a setting
                   of the authors.
  across           of any of them, the contexts of an image predict the patches of another draw of
                   it, on `scenes` half of the time of the other picture of the handwriting.
  imagenet2012     v2: ResNet-161 with layer norm, patches of 80 pixels on a 6x6 grid of 260, four
                   directions; patches lose channels, are flipped, turned, sheared, elastically
                   deformed and changed in colour. Published: 71.5 % linear (v2's paper).
  imagenet2012_v1  ResNet-101 to its third stage without norm, patches of 64 pixels on a 7x7 grid of
                   256 in grey, sub-crops of 60, downwards, Adam 2e-4, batch 512. Published: 48.7 %
                   linear (v1's paper, table 3).
  debug            any of them in seconds.

Differences from the papers, whose authors released no code but v2's pseudo-code:
  - By how much v2 turns, shears, deforms and colours patches could not be read. Here: turns of
    30 degrees and shears of 0.3, the ranges of AutoAugment, elastic displacements of 3 % of the
    side, and jitter of half of SimCLR's strength, each of a fifth of the patches; a quarter grey.
  - Not all of v2's sizes, offsets, batch, optimiser and length are stated; the config has what was
    chosen. Its pseudo-code predicts three rows further down and no other, and so does
    `imagenet2012`.
  - v1's offsets are those of its figure: 2, 3 and 4 rows. Its context network is v2's, since a
    PixelCNN is all that it says.
  - v1's linear classifier has stepwise rates over 85,000 updates of 2,048 images; the probe is the
    one of all configs.

Command: python -m cl_jax.main --config=configs/cpc.py --workdir=runs/cpc
Reached: 51.7 % kNN of the grid after three epochs (44.9 % untrained), 58.9 % after four with
`across`; the mean of the patches 28.8 % after twelve (20.9 % untrained).
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults

_ALL = ("down", "up", "right", "left")


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(
        arg, ("folder", "across", "cifar10", "imagenet2012", "imagenet2012_v1", "debug")
    )
    config = defaults.get_config()
    defaults.laptop(config)
    half = dict(mean=(0.5,) * 3, std=(0.25,) * 3)
    config.encoder = ConfigDict(
        dict(
            name="resnet_v2",
            stages=((1, 16, 64), (1, 32, 128), (1, 64, 256)),
            width=0.5,
            stem="strided",
            dtype="float32",
        )
    )
    config.method = ConfigDict(
        dict(
            name="cpc",
            patch_size=16,
            stride=8,
            offsets=(2,),
            directions=_ALL,
            grey=True,
            context_blocks=2,
            context_width=64,
        )
    )
    config.views = ConfigDict(
        dict(
            image=dict(size=32, scale=(0.7, 1.0), flip=0.0, test_crop=1.0, **half),
            patch=dict(crop="none", flip=0.0, jitter=0.8, brightness=0.4, contrast=0.4),
        )
    )
    config.batch_size = 128
    config.optimizer.learning_rate = 2e-3
    config.evals.feature = "grid"
    adam = dict(
        name="adamw",
        learning_rate=2e-4,
        learning_rate_scaling="none",
        schedule="constant",
        weight_decay=0.0,
    )
    if {"folder", "cifar10", "imagenet2012", "imagenet2012_v1"} & set(chosen):
        config.evals.feature = "h"
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
        config.views.image.update(half)  # patches are turned to grey after normalisation
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.encoder = ConfigDict(
            dict(name="resnet_v2", depth=50, stages=None, width=0.5, stem="cifar", dtype="float32")
        )
        config.batch_size, config.total_epochs = 256, 200.0
        config.method = ConfigDict(
            dict(
                name="cpc",
                patch_size=8,
                stride=4,
                offsets=(2, 3, 4),
                directions=_ALL,
                drop_channels=0.8,
            )
        )
        config.views = ConfigDict(
            dict(
                image=dict(size=32, scale=(0.3, 1.0), test_crop=1.0),
                patch=dict(crop="none", flip=0.5),
            )
        )
        config.optimizer = ConfigDict(adam)
    if "imagenet2012" in chosen or "imagenet2012_v1" in chosen:
        config.encoder = ConfigDict(dict(name="resnet_v2", depth=161, dtype="bfloat16"))
        config.data = ConfigDict(
            dict(name="tfds", dataset="imagenet2012", test_split="validation", image_size=300)
        )
        config.batch_size, config.total_epochs = 512, 200.0
        config.method = ConfigDict(
            dict(
                name="cpc",
                patch_size=80,
                stride=36,
                offsets=(3,),
                directions=_ALL,
                drop_channels=0.8,
                warp=dict(probability=0.2),
            )
        )
        colours = dict(jitter=0.2, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, gray=0.25)
        config.views = ConfigDict(
            dict(
                image=dict(size=260, scale=(0.3, 1.0)),
                patch=dict(crop="none", flip=0.5, **colours),
            )
        )
        config.optimizer = ConfigDict(adam)
        config.evals.every_epochs = 20.0
    if "imagenet2012_v1" in chosen:
        config.encoder.update(dict(depth=101, norm="none"))
        config.method = ConfigDict(
            dict(
                name="cpc",
                patch_size=64,
                stride=32,
                offsets=(2, 3, 4),
                grey=True,
                subcrop=60,
                target_dim=None,
                scale=1.0,
            )
        )
        # A random 256 x 256 crop of 300, not resized.
        area = (256 / 300) ** 2
        config.views = ConfigDict(
            dict(
                image=dict(
                    size=256, scale=(area, area), ratio=(1.0, 1.0), test_crop=256 / 300, **half
                )
            )
        )
        config.batch_size = 512
    if "across" in chosen:
        config.method.across = True
    if "debug" in chosen:
        defaults.debug(config)
        config.encoder.update(
            dict(stages=((1, 16, 64), (1, 32, 128)), width=0.125, stem="strided", dtype="float32")
        )
        config.method.update(dict(patch_size=8, stride=4, offsets=(1, 2), context_width=8))
        if "imagenet2012_v1" in chosen:
            config.method.subcrop = 6
    return config
