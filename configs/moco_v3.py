"""MoCo v3 (Chen et al. 2021, arXiv 2104.02057).

MoCo without the queue: each view's prediction must pick out the slow network's key of the other
view among those of a large batch, both ways. Projection and predictor are BYOL's. A vision
transformer trains stably once its patch projection stays as it was drawn.

Default: the embedded `scenes`, a small ResNet, two CPU cores.

Variants:
  folder                  your own images: `cl-jax train moco_v3:folder PATH`.
  cifar10                 ResNet-18, 1000 epochs, batch 256, LARS 0.3 x B/256 with trust coefficient
                          0.02, temperature 0.2. No setting of the authors; solo-learn's but for
                          what is said below. Published: 93.10 % online linear (solo-learn's
                          README).
  imagenet2012            ResNet-50, batch 4096, 300 epochs, LARS 0.3 x B/256, weight decay 1e-6,
                          temperature 1. Published: 72.8 % linear (README of the authors' code).
  imagenet2012_vit_small  ViT-S/16 with twelve heads: AdamW 1.5e-4 x B/256, weight decay 0.1 of
                          everything, 40 epochs of warm-up, 300 epochs, temperature 0.2. Published:
                          73.2 % linear (README of the authors' code).
  imagenet2012_vit_base   ViT-B/16, likewise. Published: 76.7 % linear (README of the authors'
                          code).
  vit                     the default with a tiny transformer.
  debug                   any of them in seconds.

Differences from the authors' code:
  - The momentum network moves at the end of a step and not between the queries and keys of the
    next: the same numbers.
  - Matrix products of the ImageNet settings are in bfloat16, theirs in float16.
  - Their classifier trains on batches of 1,024; the probe's rates are theirs for 256.
  - The stem of convolutions and ViT-L are not built.
  - `cifar10`: solo-learn's last batch-norm scales start at 1, here at 0 as the authors' do. Its
    crops are bicubic and its pixels have CIFAR's mean and deviation; here they are bilinear and
    have ImageNet's.

Command: python -m cl_jax.main --config=configs/moco_v3.py --workdir=runs/moco_v3
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults

VARIANTS = (
    "folder",
    "cifar10",
    "imagenet2012",
    "imagenet2012_vit_small",
    "imagenet2012_vit_base",
    "vit",
    "debug",
)


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, VARIANTS)
    config = defaults.get_config()
    defaults.laptop(config)
    config.method = ConfigDict(
        dict(name="moco_v3", temperature=0.2, momentum=0.9, hidden_dim=256, out_dim=64)
    )
    config.encoder.update(dict(variant="torchvision", zero_init_last=False))
    vit_head = dict(projector_layers=3, predictor_variant="moco_v3_vit")
    frozen = dict(freeze_paths=("patches",), freeze_steps=-1)
    if "vit" in chosen:
        config.encoder = ConfigDict(
            dict(
                name="vit",
                size="tiny",
                width=96,
                depth=4,
                heads=3,
                patch=4,
                variant="moco_v3",
                freeze_patches=True,
                flash=False,
                dtype="float32",
            )
        )
        config.method.update(vit_head)
        config.optimizer.update(dict(frozen, learning_rate=1e-3))
    if "folder" in chosen:
        transformer = config.encoder.name == "vit"
        setting = "imagenet2012_vit_small" if transformer else "imagenet2012"
        defaults.folder(config, get_config(setting))
        if transformer:
            config.encoder.update(dict(patch=8, image_size=64))
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.encoder.zero_init_last = True
        config.batch_size, config.total_epochs = 256, 1000.0
        config.method = ConfigDict(dict(name="moco_v3", temperature=0.2, momentum=0.99))
        config.views = ConfigDict(
            dict(
                a=dict(name="moco_v3", view=2, size=32, blur=0.0, solarize=0.0, test_crop=1.0),
                b=dict(name="moco_v3", view=2, size=32, blur=0.0, test_crop=1.0),
            )
        )
        config.optimizer = defaults.solo_learn_larc(0.3, weight_decay=1e-6)
    if "imagenet2012" in chosen:
        defaults.imagenet2012(config)
        config.encoder.zero_init_last = True
        config.batch_size, config.total_epochs = 4096, 300.0
        config.method = ConfigDict(dict(name="moco_v3", temperature=1.0, momentum=0.99))
        config.views = ConfigDict(
            dict(
                a=dict(name="moco_v3", view=1, crop_min=0.2),
                b=dict(name="moco_v3", view=2, crop_min=0.2),
            )
        )
        config.optimizer = ConfigDict(
            dict(name="lars_byol", learning_rate=0.3, weight_decay=1e-6, warmup_epochs=10.0)
        )
        config.evals.protocols.linear.update(dict(total_epochs=90.0, learning_rate=0.1))
    for size, heads in (("small", 12), ("base", 12)):
        if f"imagenet2012_vit_{size}" in chosen:
            defaults.imagenet2012(config)
            config.encoder = ConfigDict(
                dict(
                    name="vit",
                    size=size,
                    heads=heads,
                    patch=16,
                    variant="moco_v3",
                    freeze_patches=True,
                    flash=False,
                    dtype="bfloat16",
                )
            )
            config.batch_size, config.total_epochs = 4096, 300.0
            config.method = ConfigDict(
                dict(vit_head, name="moco_v3", temperature=0.2, momentum=0.99)
            )
            config.views = ConfigDict(
                dict(a=dict(name="moco_v3", view=1), b=dict(name="moco_v3", view=2))
            )
            config.optimizer = ConfigDict(
                dict(
                    frozen, name="adamw", learning_rate=1.5e-4, weight_decay=0.1, warmup_epochs=40.0
                )
            )
            config.evals.protocols.linear.update(dict(total_epochs=90.0, learning_rate=3.0))
    if "debug" in chosen:
        transformer = config.encoder.name == "vit"
        if transformer:
            config.encoder.update(dict(width=32, depth=2, heads=2, patch=8, dtype="float32"))
        defaults.debug(config)
        config.method.update(dict(hidden_dim=32, out_dim=16))
    return config
