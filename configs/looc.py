"""LooC (Xiao et al. 2021, arXiv 2008.05659).

Views that differ in colour teach a network to ignore colour, and turned views to ignore which way
up a thing is. Leave-one-out contrast keeps both: beside a space in which the positive differs in
every augmentation there is one for each augmentation in which the positive shares it, and the other
keys of the same image are negatives. All spaces read one representation, which must hold what each
of them needs.

Default: the embedded `scenes`, turned by quarters and jittered in colour, both views of one
picture; a space for rotation and one for colour; a small ResNet, two CPU cores.

Variants:
  invariant     the same views and one space that ignores them all, which is MoCo v2.
  simclr        SimCLR on the same views.
  folder        your own images: `cl-jax train looc:folder PATH`.
  imagenet100   a folder of ImageNet's 100 classes of CMC: ResNet-50, batch 256, 500 epochs,
                learning rate 0.03, temperature 0.2, 16,384 keys; `--config.data.path=PATH`.
  debug         any of them in seconds.

Differences from the paper (no code was released):
  - Texture, its third augmentation, needs a set of stylised copies and is not there; `left_out` of
    the method takes crop, flip, blur and solarize besides rotation and colour.
  - Batch norm and the order of keys are those of `configs/moco_v2.py`.
  - The settings of `imagenet100` are from descriptions of the paper and were not run.

Command: python -m cl_jax.main --config=configs/looc.py --workdir=runs/looc
Reached: on `scenes` after eight epochs, logistic regressions on the heads' hidden layers: which
  way up 55.9 %, the digit's colour 99.3 %; `looc:invariant` 43.7 and 84.8 %, `looc:simclr` 45.8
  and 84.2 %.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, ("invariant", "simclr", "folder", "imagenet100", "debug"))
    config = defaults.get_config()
    config.encoder.update(dict(variant="torchvision", splits=4))
    defaults.laptop(config)
    config.data.share = None
    config.views.both.update(dict(copies=1, quarter_turns=True, hue=0.5, saturation=0.8))
    config.optimizer.learning_rate = 2e-3  # as in configs/moco_v2.py
    config.method = ConfigDict(
        dict(
            name="looc",
            left_out=("rotation", "colour"),
            temperature=0.2,
            momentum=0.99,
            queue_size=512,
            out_dim=64,
        )
    )
    config.evals.protocols.update(
        dict(
            rotation=dict(),
            digit=dict(name="logistic", label="label"),
            colour=dict(name="logistic", label="colour"),
            rotation_spaces=dict(name="rotation", feature="spaces", figure="rotation_spaces"),
            colour_spaces=dict(name="logistic", label="colour", feature="spaces", figure="spaces"),
        )
    )
    if "simclr" in chosen:
        if len(set(chosen) - {"debug"}) > 1:
            raise defaults.UnknownVariant("variant simclr is of the default's data alone.")
        config.encoder.splits, config.views.both.copies = 1, 2
        config.method = ConfigDict(dict(name="simclr_v1", temperature=0.2, out_dim=64))
        for section in ("rotation_spaces", "colour_spaces"):  # a hidden layer of its head
            config.evals.protocols[section].feature = "proj1"
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet100"))
    if "imagenet100" in chosen:
        defaults.imagenet2012(config)
        config.data = ConfigDict(dict(name="folder", path="", image_size=256, labels=True))
        config.batch_size = 256
        config.total_epochs = 500.0
        config.method.update(dict(momentum=0.999, queue_size=16384, out_dim=128))
        config.views = ConfigDict(dict(both=dict(name="moco_v2", quarter_turns=True)))
        config.optimizer = ConfigDict(
            dict(
                name="sgd",
                learning_rate=0.03,
                weight_decay=1e-4,
                schedule="step_decay",
                milestones_epochs=(300.0, 400.0),
            )
        )
    if "invariant" in chosen:
        config.method.left_out = ()
    if "debug" in chosen:
        defaults.debug(config)
        if "simclr" not in chosen:
            config.encoder.splits = 8  # for up to eight devices
            config.method.update(dict(queue_size=40, out_dim=8))
    return config
