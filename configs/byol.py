"""BYOL (Grill et al. 2020, arXiv 2006.07733).

A network predicts, from one view of an image, what a slow copy of itself makes of another view;
there are no negatives. The copy gets no gradient and moves a little after each step, the trained
side alone has a predictor, and the heads have batch norm: without these the easiest answer is one
constant for all images.

Default: the embedded `scenes`, a small ResNet, two CPU cores, 48 epochs: four times those of the
contrastive methods. For the first eight it is below its untrained network on the digits, and above
it afterwards. LARS, as in the paper: AdamW at 2e-3 reaches 40 % kNN where LARS reaches 68.

Variants:
  folder        your own images: `cl-jax train byol:folder PATH`.
  table         rows of numbers: the embedded digits, or --config.data.path=my.csv.
  audio         spectrograms of the embedded `vowels`.
  cifar10       ResNet-18, batch 256, 1000 epochs, learning rate 1.0 x B/256, weight decay 1e-5,
                momentum 0.99. No setting of the authors; solo-learn's but for what is said below.
                Published: 92.58 % online linear (solo-learn's README).
  imagenet2012  the 300-epoch preset of the authors' code: ResNet-50, batch 4096, LARS 0.3 x B/256,
                weight decay 1e-6, momentum 0.99. Published: 72.5 % linear (the paper's baseline of
                its ablations).
  debug         any of them in seconds.

Differences from the authors' code:
  - The released code starts the last batch-norm scale of each block at 0, and so does this; the
    paper's runs started it at 1 (README of the code), which `zero_init_last=False` of the encoder
    does.
  - Their linear figures take the best of five learning rates on held-out training images, after 80
    epochs; the probe here is the one of all configs.
  - `cifar10`: solo-learn has torchvision's network and colour operators, PyTorch's initial weights
    and CIFAR's mean and deviation; here all of these are those of BYOL's code.
  - The loss is the paper's squared distance in both directions, 0 to 8, and so is solo-learn's;
    lightly's is a mean cosine from -1 to 1, of which this one is 4 + 4 times.

Command: python -m cl_jax.main --config=configs/byol.py --workdir=runs/byol
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(
        arg, ("folder", "table", "audio", "cifar10", "imagenet2012", "debug")
    )
    config = defaults.get_config()
    defaults.laptop(config)
    config.views.both.update(dict(strength=1.0, gray=0.5))
    config.method = ConfigDict(
        dict(name="byol", momentum=0.98, hidden_dim=1024, out_dim=256, monitor=True)
    )
    lars = dict(name="lars_byol", exclude_ndim=1, warmup_epochs=10.0)
    config.optimizer = ConfigDict(
        dict(
            lars,
            learning_rate=1.0,
            learning_rate_scaling="none",
            weight_decay=1e-6,
            warmup_epochs=1.0,
        )
    )
    config.total_epochs = 48.0
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
    if "table" in chosen:
        defaults.table(config)
    if "audio" in chosen:
        defaults.audio(config)
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.encoder.variant = "byol"
        config.batch_size, config.total_epochs = 256, 1000.0
        config.method = ConfigDict(dict(name="byol", momentum=0.99, monitor=True))
        config.views = ConfigDict(
            dict(
                a=dict(name="byol", view=1, size=32, blur=0.0, test_crop=1.0),
                b=dict(name="byol", view=2, size=32, blur=0.0, test_crop=1.0),
            )
        )
        config.optimizer = defaults.solo_learn_larc(1.0, weight_decay=1e-5)
    if "imagenet2012" in chosen:
        defaults.imagenet2012(config)
        config.encoder.variant = "byol"
        config.batch_size, config.total_epochs = 4096, 300.0
        config.method = ConfigDict(dict(name="byol", momentum=0.99, monitor=True))
        config.views = ConfigDict(dict(a=dict(name="byol", view=1), b=dict(name="byol", view=2)))
        config.optimizer = ConfigDict(dict(lars, learning_rate=0.3, weight_decay=1e-6))
    if "debug" in chosen:
        defaults.debug(config)
        config.method.update(dict(hidden_dim=32, out_dim=16))
    return config
