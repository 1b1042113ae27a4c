"""InfoMin (Tian et al. 2020, arXiv 2005.10243).

Good views of a task share what it needs and as little else as possible. Views that share one factor
of an image teach that factor and no other; of several, the easiest wins. So views may be learnt: a
generator of colours lowers the mutual information of two views while the networks that contrast
them raise it, and a few labels say what must stay.

Default: pictures of the embedded `scenes` that share the handwriting and nothing else, contrasted
as by SimCLR; a small ResNet, two CPU cores.

Variants:
  digit         the default: two pictures that share the handwriting and nothing else.
  place         they share the place.
  background    they share the ground.
  all           they share all three.
  learned       views of one picture, a flow that changes colours, labels of a tenth of the digits.
  unsupervised  no labels: the generator only lowers the mutual information.
  fixed         no generator: red against green and blue.
  folder        learned views of your own images: `cl-jax train infomin:folder PATH`.
  stl10         learned views, AlexNet-like ResNet-18, batch 256, 100 epochs, labels of all 5,000
                training images.
  debug         any of them in seconds.

Differences from the paper (no code of this part was released):
  - Generator and networks move in one step, by a gradient that changes its sign between them; the
    authors alternate. The generator's learning rate is a tenth of the networks'.
  - Moving digits are pictures of `scenes`, without motion; probes are logistic regressions.
  - The data set's augmentation recipe, "InfoMin Aug" with RandAugment and a jigsaw branch, is
    not one of the variants; the loss of its branch is `losses.nce`'s.
  - The settings of `stl10` were not run.

Command: python -m cl_jax.main --config=configs/infomin.py --workdir=runs/infomin
Reached: digit 85.6 % by logistic regression (untrained 37.8 %), ground 33.2 % (51.2 %). Of views
that share one factor, after two epochs: digit 70.9 % (37.9 %), place 77.6 % (49.3 %), ground 68.6 %
(51.1 %); with all three shared 27.5, 59.3 and 63.0 %. Over what views share the digit has the
paper's reversed U: 29.7 (nothing), 70.9, 65.2, 27.5 and 25.6 % (all). Learned views after two
epochs: digit 38.4 % (`unsupervised`) at a bound of 1.29 nats, 35.5 % at 1.23 (`learned`), 40.3 % at
2.54 of the channels as they are (`fixed`): see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults

FACTORS = {
    "digit": ("digit",),
    "place": ("place",),
    "background": ("background",),
    "all": ("digit", "place", "background"),
}


def get_config(arg: str | None = None) -> ConfigDict:
    of_one_picture = ("learned", "unsupervised", "fixed", "folder", "stl10")
    chosen = defaults.variants(arg, (*FACTORS, *of_one_picture, "debug"))
    factors = [name for name in chosen if name in FACTORS]
    if len(factors) > 1 or (factors and set(chosen) & set(of_one_picture)):
        raise ValueError(
            f"{','.join(chosen)}: two pictures share what one of {', '.join(FACTORS)} says, and "
            f"{', '.join(of_one_picture)} are of one picture; expected one of the former or none."
        )
    config = defaults.get_config()
    defaults.laptop(config)
    config.data.share = None
    config.views.both.update(dict(copies=1, jitter=0.0, gray=0.0))
    config.method = ConfigDict(
        dict(
            name="infomin",
            generator="flow",
            labelled=0.1,
            label_weight=1.0,
            temperature=0.2,
            out_dim=64,
        )
    )
    config.evals.protocols.update(
        {
            name: dict(name="logistic", label=label)
            for name, label in (("digit", "label"), ("place", "place"), ("ground", "background"))
        }
    )
    if not set(chosen) & set(of_one_picture):
        config.data.share = FACTORS[factors[0] if factors else "digit"]
        view = dict(config.views.both, copies=1, crop="none")
        config.views = ConfigDict(dict(a=dict(view, second=0.0), b=dict(view, second=1.0)))
        config.method = ConfigDict(dict(name="simclr_v1", temperature=0.2, out_dim=64))
        config.total_epochs = 6.0
    if "folder" in chosen:
        defaults.folder(config, get_config("stl10"))
        config.method.labelled = 0.0
    if "stl10" in chosen:
        config.data = ConfigDict(dict(name="tfds", dataset="stl10"))
        config.encoder.update(dict(depth=18, width=0.5, stem="imagenet"))
        config.views = ConfigDict(dict(both=dict(name="crop_flip", size=64, scale=(0.2, 1.0))))
        config.batch_size, config.total_epochs = 256, 100.0
        config.method.update(dict(labelled=1.0, out_dim=128))
    if "unsupervised" in chosen:
        config.method.labelled = 0.0
    if "fixed" in chosen:
        config.method.update(dict(generator="none", labelled=0.0))
    if config.method.get("generator", "none") != "none":
        # At the networks' own rate the generator outruns them: docs/results.md.
        config.optimizer.parts = ConfigDict(
            dict(
                generator=dict(
                    paths=("generator",), learning_rate=config.optimizer.learning_rate / 10
                )
            )
        )
    if "debug" in chosen:
        defaults.debug(config)
    return config
