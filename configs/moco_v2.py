"""MoCo v2 and v1 (Chen et al. 2020, arXiv 2003.04297; He et al. 2020, arXiv 1911.05722).

Default: the embedded `scenes`, a small ResNet, two CPU cores. Variants: `cifar10` (the authors' demo: ResNet-18, linear
head, batch 512, 200 epochs, learning rate 0.06, weight decay 5e-4, temperature 0.1, momentum 0.99, 4,096 keys: 82.6 %
kNN of z, `--config.method.symmetric=True` 85.3 %), `imagenet2012` (ResNet-50, batch 256, 200 epochs, learning rate
0.03, temperature 0.2, 65,536 keys: 67.5 % linear), `imagenet2012_v1` (linear head, temperature 0.07, v1's views and
schedule: 60.8 %), both figures the means of five trials in the README of the authors' code; `debug` (any of them in
seconds). The encoder's `splits` are the authors' eight GPUs; the number of devices must divide it.

Command: python -m cl_jax.main --config=configs/moco_v2.py --workdir=runs/moco_v2
Reached: see the table of README. `cifar10`, `imagenet2012` and `imagenet2012_v1` at the published length: not run.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = common.variants(arg, ("cifar10", "imagenet2012", "imagenet2012_v1", "debug"))
    config = common.get_config()
    config.method = ConfigDict(dict(name="moco_v2", temperature=0.2, momentum=0.99, queue_size=4096))
    config.encoder.update(dict(variant="torchvision", splits=8))
    common.laptop(config)
    if "cifar10" in chosen:
        common.cifar10(config)
        config.total_epochs = 200.0
        config.method.update(dict(head="linear", temperature=0.1, queue_size=4096, symmetric=False))
        config.views = ConfigDict(dict(both=dict(name="moco_cifar", copies=2)))
        config.optimizer = ConfigDict(dict(name="sgd", learning_rate=0.03, weight_decay=5e-4, schedule_per_epoch=True))
        config.evals.feature = "z"  # the demo's kNN is on the output of the head
    if "imagenet2012" in chosen or "imagenet2012_v1" in chosen:
        common.imagenet2012(config)
        config.batch_size = 256
        config.total_epochs = 200.0
        config.method.update(dict(momentum=0.999, queue_size=65536))
        config.views = ConfigDict(dict(both=dict(name="moco_v2", copies=2)))
        config.optimizer = ConfigDict(dict(name="sgd", learning_rate=0.03, weight_decay=1e-4, schedule_per_epoch=True))
        config.probe.update(dict(total_epochs=100.0, learning_rate=30.0))
    if "imagenet2012_v1" in chosen:
        config.method.update(dict(head="linear", temperature=0.07))
        config.views = ConfigDict(dict(both=dict(name="moco_v1", copies=2)))
        config.optimizer.update(dict(schedule="step_decay", milestones_epochs=(120.0, 160.0), schedule_per_epoch=False))
    if "debug" in chosen:
        common.debug(config)
        config.encoder.splits = 8
        config.method.queue_size = 40  # the batch of 16 does not divide it
        config.views.both.size = 16
    return config
