"""InstDisc (Wu et al. 2018, arXiv 1805.01978).

Default: the embedded `scenes`, a small ResNet, two CPU cores, softmax over the whole bank. Variants: `cifar10` (the authors'
setting: ResNet-18, full softmax at temperature 0.1, batch 128, 200 epochs, learning rate 0.03, weight decay 5e-4; 80.8 %
kNN of z), `imagenet2012` (ResNet-50, NCE with 4,096 negatives at temperature 0.07, batch 256, 200 epochs; 42.5 % kNN in the
paper's first version, 46.8 % of the released model), `imagenet2012_softmax` (the authors' updated release: cross-entropy
over 65,536 sampled rows; 58.5 % linear), `debug`.

The CIFAR-10 code lowers the rate at 120 and 160 epochs; its formula has a third drop at 80 that has no effect.

Command: python -m cl_jax.main --config=configs/instdisc.py --workdir=runs/instdisc
Reached: see the table of README. The others at the published length: not run.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = common.variants(arg, ("cifar10", "imagenet2012", "imagenet2012_softmax", "debug"))
    config = common.get_config()
    common.laptop(config)
    config.views.both.copies = 1
    config.method = ConfigDict(dict(name="instdisc", loss="full_softmax", temperature=0.2))
    published = dict(name="sgd", learning_rate=0.03, learning_rate_scaling="none", schedule="step_decay",
                     milestones_epochs=(120.0, 160.0))
    if "cifar10" in chosen:
        common.cifar10(config)
        config.encoder.variant = "torchvision"
        config.batch_size, config.total_epochs = 128, 200.0
        config.method = ConfigDict(dict(name="instdisc", loss="full_softmax", temperature=0.1))
        config.views = ConfigDict(dict(one=dict(name="instdisc_cifar")))
        config.optimizer = ConfigDict(dict(published, weight_decay=5e-4))
        config.evals.update(dict(feature="z", knn_temperature=0.1))
    if "imagenet2012" in chosen or "imagenet2012_softmax" in chosen:
        common.imagenet2012(config)
        config.batch_size, config.total_epochs = 256, 200.0
        config.method = ConfigDict(dict(name="instdisc", loss="nce", temperature=0.07, num_negatives=4096))
        config.views = ConfigDict(dict(one=dict(name="instdisc")))
        config.optimizer = ConfigDict(dict(published, weight_decay=1e-4))
        config.evals.update(dict(feature="z", knn_temperature=0.07))
    if "imagenet2012_softmax" in chosen:
        config.method.update(dict(loss="softmax", num_negatives=65536, block_size=4096))
    if "debug" in chosen:
        common.debug(config)
        if len(chosen) == 1:  # the other loss than the default's
            config.method.update(dict(loss="nce", proximal_weight=0.1))
        config.method.update(dict(num_negatives=24, out_dim=16, block_size=None))
    return config
