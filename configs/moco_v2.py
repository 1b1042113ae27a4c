"""MoCo v2 (Chen et al. 2020, arXiv 2003.04297).

A query must pick out the key of its image's other view among a long queue of earlier keys. Keys
come from a slow copy of the network, so that old ones stay comparable and the number of negatives
does not depend on the batch. v2 is v1 with a head of two layers, blurred views, a cosine schedule
and a higher temperature. Batch norm must not see a query and its key among the same examples, or it
gives the pair away.

Default: the embedded `scenes`, a small ResNet, two CPU cores.

Variants:
  folder           your own images: `cl-jax train moco_v2:folder PATH`.
  table            rows of numbers: the embedded digits, or --config.data.path=my.csv.
  audio            spectrograms of the embedded `vowels`.
  cifar10          the authors' demo: ResNet-18, linear head, batch 512, 200 epochs, learning rate
                   0.06, weight decay 5e-4, temperature 0.1, momentum 0.99, 4,096 keys. Published:
                   82.6 % kNN of z; with `--config.method.symmetric=True` 85.3 % (the demo's
                   notebook).
  imagenet2012     ResNet-50, batch 256, 200 epochs, learning rate 0.03, temperature 0.2, 65,536
                   keys. Published: 67.5 % linear, the mean of five trials (README of the authors'
                   code).
  imagenet2012_v1  v1: linear head, temperature 0.07, v1's views and schedule. Published: 60.8 %
                   linear, likewise.
  debug            any of them in seconds.

Differences from the authors' code:
  - Their batch norm is that of each of eight GPUs, with keys shuffled between GPUs. Here `splits=8`
    cuts the global batch into eight groups, and keys are shuffled within it, so that any number of
    devices that divides eight makes the same run.
  - The momentum network moves at the end of a step and not at the start of the next: the same
    numbers.
  - The batch need not divide the queue.
  - The demo counts its epochs from 1, so that the cosine begins one epoch further on and the last
    epoch has a rate of 0; here the first has the full rate.
  - Their classifier's rate of 30 falls to a tenth at epochs 60 and 80 of 100; the probe's falls by
    a cosine.

Command: python -m cl_jax.main --config=configs/moco_v2.py --workdir=runs/moco_v2
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(
        arg, ("folder", "table", "audio", "cifar10", "imagenet2012", "imagenet2012_v1", "debug")
    )
    config = defaults.get_config()
    config.method = ConfigDict(dict(name="moco_v2", temperature=0.2, momentum=0.99, queue_size=512))
    config.encoder.update(dict(variant="torchvision", splits=8))
    defaults.laptop(config)
    config.optimizer.learning_rate = (
        2e-3  # keys must not age: a queue of fast-moving networks tells new from old
    )
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
    if "table" in chosen:
        defaults.table(config)
    if "audio" in chosen:
        defaults.audio(config)
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.total_epochs = 200.0
        config.method.update(dict(head="linear", temperature=0.1, queue_size=4096, symmetric=False))
        config.views = ConfigDict(dict(both=dict(name="moco_cifar", copies=2)))
        config.optimizer = ConfigDict(
            dict(name="sgd", learning_rate=0.03, weight_decay=5e-4, schedule_per_epoch=True)
        )
        config.evals.feature = "z"  # the demo's kNN is on the output of the head
    if "imagenet2012" in chosen or "imagenet2012_v1" in chosen:
        defaults.imagenet2012(config)
        config.batch_size = 256
        config.total_epochs = 200.0
        config.method.update(dict(momentum=0.999, queue_size=65536))
        config.views = ConfigDict(dict(both=dict(name="moco_v2", copies=2)))
        config.optimizer = ConfigDict(
            dict(name="sgd", learning_rate=0.03, weight_decay=1e-4, schedule_per_epoch=True)
        )
        config.evals.protocols.linear.update(dict(total_epochs=100.0, learning_rate=30.0))
    if "imagenet2012_v1" in chosen:
        config.method.update(dict(head="linear", temperature=0.07))
        config.views = ConfigDict(dict(both=dict(name="moco_v1", copies=2)))
        config.optimizer.update(
            dict(schedule="step_decay", milestones_epochs=(120.0, 160.0), schedule_per_epoch=False)
        )
    if "debug" in chosen:
        defaults.debug(config)
        config.encoder.splits = 8
        config.method.queue_size = 40  # the batch of 16 does not divide it
    return config
