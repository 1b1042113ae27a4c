"""InstDisc (Wu et al. 2018, arXiv 1805.01978).

Every image is a class of its own. The weights of the classes are the images' own earlier features,
kept in a memory bank: a feature should be nearer to the stored one of its image than to those of
all others. One view of each image a step, and no head but one linear layer, whose output is
trained, stored and evaluated.

Default: the embedded `scenes`, a small ResNet, two CPU cores, the softmax over the whole bank.

Variants:
  folder                your own images: `cl-jax train instdisc:folder PATH`.
  cifar10               ResNet-18, full softmax at temperature 0.1, batch 128, 200 epochs, learning
                        rate 0.03, weight decay 5e-4. Published: 80.8 % kNN of z (paper).
  imagenet2012          ResNet-50, NCE with 4,096 negatives at temperature 0.07, batch 256, 200
                        epochs. Published: 46.8 % kNN of z (README of the authors' code), 42.5 % in
                        the paper's first version.
  imagenet2012_softmax  the authors' updated release: cross-entropy over 65,536 drawn rows.
                        Published: 58.5 % linear (README of the authors' code).
  debug                 any of them in seconds, with the NCE.

Differences from the authors' code:
  - The paper's proximal term is not in their code, where the bank's momentum of 0.5 stands in for
    it, and no weight of it is published: `proximal_weight` of the method is 0.
  - Their CIFAR-10 code lowers the rate at 120 and 160 epochs, as here; its formula has a third
    drop, at 80, without effect.
  - The code of the updated release is not public; `imagenet2012_softmax` follows its description.
  - Rows of the bank are of the global batch, gathered from all devices.

Command: python -m cl_jax.main --config=configs/instdisc.py --workdir=runs/instdisc
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(
        arg, ("folder", "cifar10", "imagenet2012", "imagenet2012_softmax", "debug")
    )
    config = defaults.get_config()
    defaults.laptop(config)
    config.total_epochs = 48.0
    config.views = ConfigDict(dict(one=defaults.lightness()))
    config.optimizer.learning_rate = 2e-3
    config.method = ConfigDict(dict(name="instdisc", loss="full_softmax", temperature=0.2))
    published = dict(
        name="sgd",
        learning_rate=0.03,
        learning_rate_scaling="none",
        schedule="step_decay",
        milestones_epochs=(120.0, 160.0),
    )
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.encoder.update(dict(variant="torchvision", kernel_init="torch"))
        config.batch_size, config.total_epochs = 128, 200.0
        config.method = ConfigDict(dict(name="instdisc", loss="full_softmax", temperature=0.1))
        config.views = ConfigDict(dict(one=dict(name="instdisc_cifar")))
        config.optimizer = ConfigDict(dict(published, weight_decay=5e-4))
        config.evals.feature = "z"
        config.evals.protocols.knn.temperature = 0.1
    if "imagenet2012" in chosen or "imagenet2012_softmax" in chosen:
        defaults.imagenet2012(config)
        config.batch_size, config.total_epochs = 256, 200.0
        config.method = ConfigDict(
            dict(name="instdisc", loss="nce", temperature=0.07, num_negatives=4096)
        )
        config.views = ConfigDict(dict(one=dict(name="instdisc")))
        config.optimizer = ConfigDict(dict(published, weight_decay=1e-4))
        config.evals.feature = "z"
        config.evals.protocols.knn.temperature = 0.07
    if "imagenet2012_softmax" in chosen:
        config.method.update(dict(loss="softmax", num_negatives=65536, block_size=4096))
    if "debug" in chosen:
        defaults.debug(config)
        if len(chosen) == 1:  # the other loss than the default's
            config.method.update(dict(loss="nce", proximal_weight=0.1))
        config.method.update(dict(num_negatives=24, out_dim=16, block_size=None))
    return config
