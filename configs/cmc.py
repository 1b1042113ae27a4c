"""CMC (Tian et al. 2020, arXiv 1906.05849).

Groups of channels of one image are its views: luminance and colour of Lab. Each has a network of
its own, and the features of an image agree across views against the stored features of other
images, in a memory bank for each view. The representation is both networks' features side by side.

Default: the embedded `scenes`, two CPU cores: the views are the lightness of two pictures of one
handwriting (of one picture as often), a small ResNet for each, against the other images of the
batch, without a bank.

Variants:
  lab           luminance and colour of one crop on `scenes`, in the batch. What they share is the
                place, the ground and the colour, and that is what is learnt: see docs/results.md.
  folder        your own images: `cl-jax train cmc:folder PATH`.
  aligned       things that are each shown in several ways, --config.data.path: RGB, depth, normals
                and segmentation, or the folders that --config.data.shown names; a network for each,
                all pairs of them in the batch, without a bank. Four styles of emoji, all networks,
                kNN: two views 59.3 %, three 61.9 %, four 63.5 %, untrained 58 %.
  patches       the feature of one view against every place of a map of the other's network,
                without a bank; on `scenes` always of two pictures. With `lab`, luminance and colour
                of one crop.
  cifar10       a ResNet-18 for each view, softmax over 4,096 drawn rows. Not a setting of the
                authors.
  imagenet2012  a ResNet-50 of twice the width for each view, batch 128, 240 epochs, learning rate
                0.03, NCE with 4,096 negatives at temperature 0.07; `--config.encoder.width=0.5` and
                `1.0` are the smaller networks, whose classifier has a rate of 30. Published: 68.4 %
                linear (README of the authors' code).
  debug         any of them in seconds.

Differences from the authors' code:
  - Z of the NCE is estimated on the first batch and kept, as theirs; `normalizer_momentum=0.99` of
    the method averages it, which a later report found necessary where the bank is not noise (issue
    23 of their code).
  - Matrix products of `imagenet2012` are in bfloat16, theirs in float32; by their README mixed
    precision costs half a point to one.
  - Their classifier's rate is multiplied by 0.2 at epochs 30, 40 and 50 of 60; the probe's falls by
    a cosine.
  - The paper's video views are `cmc_video`. Several recipes or `channels` make other groups of
    channels views, and `graph="full"` contrasts all pairs of them.
  - Their later views YCbCr and YDbDr are the recipes `cmc_ycbcr` and `cmc_ydbdr`; those with
    RandAugment are not built.
  - `loss="in_batch"`, against the other images of the batch, is of no released code.

Command: python -m cl_jax.main --config=configs/cmc.py --workdir=runs/cmc
Reached: kNN 73.3 % after twelve epochs (untrained 43.2 %, raw pixels 46.4 %). `patches`: 50.0 %, by
logistic regression 76.9 % (untrained 47.7 %); `lab,patches` learns the ground and 14.4 % (untrained
22.9 %). See docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(
        arg, ("lab", "folder", "aligned", "patches", "cifar10", "imagenet2012", "debug")
    )
    config = defaults.get_config()
    config.method = ConfigDict(
        dict(
            name="cmc",
            loss="in_batch",
            temperature=0.2,
            head="moco_v2",
            out_dim=64,
            channels=((0,), (3,)),
        )
    )
    config.encoder.variant = "torchvision"
    defaults.laptop(config)
    config.views = ConfigDict(dict(first=defaults.lightness(), second=defaults.lightness()))
    colours = {"lab", "folder", "cifar10", "imagenet2012"} & set(chosen)
    if colours:  # the paper's two views, of one crop
        config.views = ConfigDict(
            dict(
                both=dict(
                    name="cmc_lab",
                    size=16,
                    scale=(0.7, 1.0),
                    flip=0.0,
                    test_crop=1.0,
                    jitter=0.8,
                    brightness=0.8,
                    contrast=0.8,
                    saturation=0.8,
                    hue=0.5,
                )
            )
        )
        del config.method.channels
    elif "patches" in chosen:  # of two pictures, or what one picture has at every place is learnt
        config.views.first.second, config.views.second.second = 0.0, 1.0
    if colours - {"lab"}:
        config.method = ConfigDict(
            dict(name="cmc", loss="softmax", temperature=0.2, num_negatives=512, head="moco_v2")
        )
        config.optimizer.learning_rate = 2e-3
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
    if "aligned" in chosen:
        config.data = ConfigDict(
            dict(
                name="aligned",
                path="",
                shown=("rgb", "depth", "normals", "segmentation"),
                image_size=48,
            )
        )
        config.views = ConfigDict(
            dict(every=dict(name="simclr_crop_flip", size=32, scale=(0.5, 1.0), test_crop=1.0))
        )
        config.method = ConfigDict(
            dict(
                name="cmc",
                loss="in_batch",
                graph="full",
                temperature=0.2,
                head="moco_v2",
                out_dim=64,
            )
        )
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.total_epochs = 200.0
        config.method.update(
            dict(head="linear", temperature=0.1, num_negatives=4096, block_size=512)
        )
        config.views = ConfigDict(dict(both=dict(name="cmc_lab", size=32, test_crop=1.0)))
        config.optimizer = ConfigDict(dict(name="sgd", learning_rate=0.03, weight_decay=1e-4))
    if "imagenet2012" in chosen:
        defaults.imagenet2012(config)
        config.batch_size = 128
        config.total_epochs = 240.0
        config.encoder.update(dict(width=2.0, stem_width=64))
        config.method.update(dict(head="linear", loss="nce", temperature=0.07, num_negatives=4096))
        config.views = ConfigDict(dict(both=dict(name="cmc_lab", crop_min=0.08)))
        config.optimizer = ConfigDict(
            dict(
                name="sgd",
                learning_rate=0.03,
                learning_rate_scaling="none",
                weight_decay=1e-4,
                schedule="step_decay",
                milestones_epochs=(120.0, 160.0, 200.0),
            )
        )
        config.evals.protocols.linear.update(dict(total_epochs=60.0, learning_rate=50.0))
    if "patches" in chosen:
        kept = {k: v for k, v in config.method.items() if k in ("channels", "temperature")}
        config.method = ConfigDict(
            kept | dict(name="cmc", loss="patches", head="moco_v2", out_dim=64)
        )
    if "debug" in chosen:
        data = config.data
        defaults.debug(config)
        if "aligned" in chosen:  # your own pictures, smaller
            config.data = ConfigDict(dict(data, image_size=24))
        if config.method.loss in ("nce", "softmax"):
            config.method.num_negatives = 24
        for view in config.views.values():
            view.size = 16
    return config
