"""CRD (Tian et al. 2020, arXiv 1910.10699).

A small network learns from a large one. Beside labels and the teacher's soft labels, its embedding
of an image must pick out the teacher's stored embedding of the same image among those of images of
other classes, so that it learns how the teacher represents images and not only what it calls them.

Default: the embedded `scenes` with labels, two CPU cores. `--stage=all`, which is set, trains the
teacher and then six students of one size: by labels alone (`alone`), with soft labels (`kd`), by
labels and CRD (`crd`), by all three (`crd_kd`), by CRD without labels or soft labels (`crd_only`,
whose classifier is not trained: read its kNN), and by SimCLR v2's soft labels alone (`simclr_v2`).

Variants:
  single       one picture of an image in place of two that share the digit, crops alone, and the
               authors' weight. A stored row is then of the picture that it is compared with. CRD
               takes 60 epochs there: 82.9 % of test digits, 49.9 after 24.
  folder       your own images, in folders by class: `cl-jax train crd:folder PATH`.
  cifar100     ResNet-56 to ResNet-20, batch 64, 240 epochs, SGD 0.05, weight decay 5e-4, the rate
               multiplied by 0.1 at epochs 150, 180 and 210, 16,384 negatives; labels weigh 0.1 and
               soft labels 0.9 in `kd`, as in the authors' script, and 1 each in `crd_kd`.
               Published: 71.16 % (KD 70.66, alone 69.06).
  resnet110    with `cifar100`, ResNet-110 to ResNet-32. Published: 73.48 % (KD 73.08, alone 71.14).
  resnet32x4   with `cifar100`, ResNet-32x4 to ResNet-8x4. Published: 75.51 % (KD 73.33, alone
               72.50).
  debug        any of them in seconds.

Differences from the authors' code:
  - The default's weight of CRD is 0.02, theirs 0.8 (`cifar100` has it); see docs/results.md.
  - Negatives are drawn with replacement; theirs without where the classes allow it.
  - The layers that make embeddings, and the classifier, start as Flax's; theirs as PyTorch's.
  - Images are cropped by area and resized; theirs are padded by 4 pixels and cropped.
  - Their wide ResNets, VGG and mobile networks, and transfer to other data, are not built.

Command: python -m cl_jax.main --config=configs/crd.py --workdir=runs/crd
Reached: test digits 64.9 % by labels alone, 73.5 % with CRD, 78.6 % with soft labels.
"""

from typing import Any

from ml_collections import ConfigDict

from cl_jax.training import configs, defaults

PAIRS = {"": (9, 3, 0.25, 16), "resnet110": (18, 5, 0.25, 16), "resnet32x4": (5, 1, 1.0, 32)}
VARIANTS = ("single", "folder", "cifar100", "resnet110", "resnet32x4", "debug")
STUDENTS: dict[str, dict[str, Any]] = {
    "alone": dict(name="supervised"),
    "kd": dict(name="crd", kd_weight=1.0, crd_weight=0.0),
    "crd": dict(name="crd"),
    "crd_kd": dict(name="crd", kd_weight=1.0),
    "crd_only": dict(name="crd", label_weight=0.0),
    "simclr_v2": dict(name="distill", temperature=1.0),
}


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, VARIANTS)
    config = defaults.get_config()
    defaults.laptop(config)
    config.method = ConfigDict(dict(name="supervised"))
    config.views = ConfigDict(dict(one=config.views.both.to_dict() | dict(copies=1)))
    config.optimizer.learning_rate = 2e-3
    # A stored row is as old as an epoch, and noise in the first: few images and many epochs.
    config.data.train_size, config.total_epochs = 2048, 24.0
    small: dict[str, Any] = dict(width=0.0625)
    # With the authors' weight of 0.8 the labels' loss stays at chance in so few steps.
    contrast: dict[str, Any] = dict(out_dim=32, num_negatives=256, crd_weight=0.02)
    if "single" in chosen:
        config.data.share = None
        crop = dict(name="crop_flip", size=16, scale=(0.7, 1.0), flip=0.0, test_crop=1.0)
        config.views = ConfigDict(dict(one=crop))
        contrast["crd_weight"] = 0.8
    if "folder" in chosen:
        like = configs.load("simclr_v1:imagenet2012").unlock()
        like.views = ConfigDict(dict(one=dict(name="simclr_crop_flip", size=224)))
        defaults.folder(config, like)
        small = dict(depth=10, width=0.25)
        contrast = dict(out_dim=128, num_negatives=512)
    if "cifar100" in chosen:
        defaults.cifar10(config)
        config.data.dataset = "cifar100"
        pair = next((name for name in PAIRS if name and name in chosen), "")
        large, few, width, stem = PAIRS[pair]
        config.encoder = ConfigDict(
            dict(
                name="resnet",
                blocks=(large,) * 3,
                width=width,
                stem_width=stem,
                stem="cifar",
                variant="torchvision",
                dtype="float32",
            )
        )
        small, contrast = dict(blocks=(few,) * 3), dict(num_negatives=16384, block_size=1024)
        crop = dict(name="crop_flip", size=32, scale=(0.6, 1.0), test_crop=1.0)
        config.views = ConfigDict(dict(one=crop | defaults.CIFAR100_PIXELS))
        config.batch_size, config.total_epochs = 64, 240.0
        config.optimizer = ConfigDict(
            dict(
                name="sgd",
                learning_rate=0.05,
                learning_rate_scaling="none",
                weight_decay=5e-4,
                schedule="step_decay",
                milestones_epochs=(150.0, 180.0, 210.0),
            )
        )
    config.evals.every_epochs = config.total_epochs
    config.evals.protocols = ConfigDict(dict(classifier=dict(), knn=dict(k=200, temperature=0.1)))
    config.evals.baselines = False
    if config.data.name == "scenes" and "debug" not in chosen:  # held beside the digit
        for factor in ("place", "background", "colour"):
            section = dict(name="logistic", label=factor, iterations=100)
            config.evals.protocols[factor] = ConfigDict(section)
    if "debug" in chosen:
        defaults.debug(config)
        if "cifar100" in chosen:
            config.encoder.blocks, small = (2, 2), dict(blocks=(1, 1))
        contrast = dict(out_dim=8, num_negatives=16)
    students = dict(STUDENTS)
    if "cifar100" in chosen:
        students["kd"] = STUDENTS["kd"] | dict(label_weight=0.1, kd_weight=0.9)
    config.previous = ""
    config.stage = "all"
    config.stage_order = ("teacher", *STUDENTS)
    config.stages = ConfigDict(
        {"teacher": dict()}
        | {
            name: dict(
                previous="../teacher",
                encoder=small,
                method=(contrast if method["name"] == "crd" else {}) | method,
            )
            for name, method in students.items()
        }
    )
    return config
