"""Deep InfoMax (Hjelm et al. 2019, arXiv 1808.06670).

The summary of an image should tell the image's own local features from those of the other images in
the batch, which bounds their mutual information. There is one view of each image. A second player
pulls the distribution of summaries towards a uniform one.

Default: the embedded `scenes`, the authors' CIFAR-10 encoder at half the width, DIM(G) with JSD on
lightness alone, two CPU cores. With the local term alone, or with both, by InfoNCE, it stays below
its untrained network there, 22 and 23 % kNN; DIM(G) reaches 72.

Variants:
  folder         your own images: `cl-jax train dim:folder PATH`.
  cifar10        DIM(L) with InfoNCE: `basic32x32`, batch 64, 1000 epochs, Adam 1e-4. Published:
                 75.21 % from conv, 75.57 % from fc, 69.13 % from y; with
                 `--config.method.estimator=JSD` 73.25, 73.62, 66.96 % (table 1).
  stl10          JSD, `alex64x64` on random 64x64 crops with flips. Published: 72.86, 70.85, 65.93 %
                 (table 2).
  tiny_imagenet  InfoNCE, `alex64x64`; a folder: set --config.data.path. Published: 34.21, 38.09,
                 33.33 % (table 2).
  imagenet2012   a ResNet-50 with the local term on its third stage. Not a setting of the authors.
  debug          any of them in seconds.

Differences from the authors' code:
  - The published figures are of a classifier with a hidden layer of 200 units on the frozen
    features. The probe here is linear, so they are not to be set beside it.
  - Their gradient penalty takes the last example of the batch alone, by an index; here it is the
    mean over the batch.
  - Their Donsker-Varadhan estimator masks the wrong axes; here it is the formula.
  - The optimiser, Adam, and the scaling of inputs are those of a library that is not published;
    here inputs are normalised by channel.
  - Scores are products of two encodings, as in their code; the paper's concat-and-convolve critic
    is in neither. The coordinate task and occlusion are not built, nor the paper's measures by
    MINE, by neural dependency and by a decoder.

Command: python -m cl_jax.main --config=configs/dim.py --workdir=runs/dim
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(
        arg, ("folder", "cifar10", "stl10", "tiny_imagenet", "imagenet2012", "debug")
    )
    config = defaults.get_config()
    defaults.laptop(config)
    config.encoder = ConfigDict(dict(name="conv", variant="basic32x32", width=0.5, dtype="float32"))
    config.method = ConfigDict(
        dict(name="dim", alpha=1.0, beta=0.0, gamma=1.0, estimator="JSD", units=256)
    )
    config.views = ConfigDict(dict(one=defaults.lightness(32)))
    config.batch_size = 64
    config.optimizer.learning_rate = 1e-3
    adam = dict(
        name="adamw",
        learning_rate=1e-4,
        learning_rate_scaling="none",
        schedule="constant",
        weight_decay=0.0,
    )
    alex = dict(name="conv", variant="alex64x64", dtype="float32")
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
        config.encoder = ConfigDict(
            dict(name="conv", variant="alex64x64", width=0.5, dtype="float32")
        )
        config.method.local = "conv3"
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.encoder = ConfigDict(dict(name="conv", variant="basic32x32", dtype="float32"))
        config.views = ConfigDict(dict(one=dict(crop="none", flip=0.0, size=32, test_crop=1.0)))
    if "stl10" in chosen:
        config.data = ConfigDict(dict(name="tfds", dataset="stl10", train_split="train+unlabelled"))
        config.encoder = ConfigDict(alex)
        config.views = ConfigDict(
            dict(one=dict(size=64, scale=(4 / 9, 4 / 9), ratio=(1.0, 1.0), test_crop=2 / 3))
        )
    if "tiny_imagenet" in chosen:
        config.data = ConfigDict(dict(name="folder", path="", image_size=64, labels=True))
        config.encoder = ConfigDict(alex)
        config.views = ConfigDict(dict(one=dict(crop="none", flip=0.0, size=64, test_crop=1.0)))
    if set(chosen) & {"cifar10", "stl10", "tiny_imagenet"}:
        config.batch_size, config.total_epochs = 64, 1000.0
        config.method = ConfigDict(
            dict(
                name="dim",
                estimator="JSD" if "stl10" in chosen else "InfoNCE",
                local="conv2" if "cifar10" in chosen else "conv3",
            )
        )
        config.optimizer = ConfigDict(adam)
        config.evals.every_epochs = 50.0
    if "imagenet2012" in chosen:
        config.encoder = ConfigDict(dict(name="resnet"))
        defaults.imagenet2012(config)
        config.batch_size, config.total_epochs = 256, 100.0
        config.method = ConfigDict(dict(name="dim", estimator="InfoNCE", local="stage3"))
        config.views = ConfigDict(dict(one=dict(name="crop_flip", size=224)))
        config.optimizer = ConfigDict(adam)
    if "debug" in chosen:
        defaults.debug(config)
        every_term = (
            dict(alpha=0.5, beta=1.0, gamma=0.1, estimator="InfoNCE") if chosen == ["debug"] else {}
        )
        config.method.update(dict(every_term, units=16, summary_dim=8, discriminator_dims=(16, 8)))
        if config.encoder.get("variant") == "alex64x64":
            config.views.one.size = 64  # its layers need so much
    return config
