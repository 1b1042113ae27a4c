"""PCL v2 (Li et al. 2021, arXiv 2005.04966).

MoCo, and each query is also pulled to the centre of its image's cluster. Before each epoch, after a
warm-up as MoCo alone, k-means clusters the slow network's features at several granularities; a
cluster's spread is its temperature, so that loose clusters pull less.

Default: the embedded `scenes`, a small ResNet, two CPU cores. With fewer clusters than images in a
batch it draws no negative prototypes and masks the copies of a prototype.

Variants:
  folder           your own images: `cl-jax train pcl:folder PATH`.
  cifar10          MoCo's CIFAR-10 demo with 1,000, 1,500 and 2,000 clusters. Not a setting of the
                   authors.
  imagenet2012     ResNet-50, batch 256, 200 epochs of which 20 warm up, learning rate 0.03,
                   temperature 0.2, 25,000, 50,000 and 100,000 clusters, 16,384 keys and negative
                   prototypes. Published: 67.6 % linear (README of the authors' code).
  imagenet2012_v1  v1: linear head, MoCo v1's views, step schedule. Published: 61.5 % linear,
                   likewise.
  debug            any of them in seconds.

Differences from the authors' code:
  - Their batch norm is that of each of four GPUs; here `splits=4` groups of the global batch, on
    any number of devices that divides four.
  - Negative prototypes are the same on all devices and may be of any cluster that the global batch
    is not in; theirs are drawn on each GPU, never from empty clusters at the end of the list.
  - k-means is Lloyd's algorithm on the device, where they call faiss.
  - The E-step sees the slow network one movement ahead of theirs, which moves when the next batch
    comes.
  - Their classifier's rate of 5 falls to a tenth at epochs 60 and 80 of 100; the probe's falls by a
    cosine.
  - Where two images of a batch share a cluster, its copies are each other's negatives, as in their
    code; `mask_duplicates` drops them.

Command: python -m cl_jax.main --config=configs/pcl.py --workdir=runs/pcl
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(
        arg, ("folder", "cifar10", "imagenet2012", "imagenet2012_v1", "debug")
    )
    config = defaults.get_config()
    config.method = ConfigDict(
        dict(
            name="pcl",
            temperature=0.2,
            momentum=0.99,
            queue_size=512,
            num_prototypes=(50, 100, 200),
            num_negative_prototypes=0,
            mask_duplicates=True,
            warmup_epochs=2,
            restarts=1,
        )
    )
    config.encoder.update(dict(variant="torchvision", splits=4))
    defaults.laptop(config)
    config.total_epochs = 48.0
    config.optimizer.learning_rate = 2e-3  # as in configs/moco_v2.py
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.total_epochs = 200.0
        config.method.update(
            dict(
                queue_size=4096,
                num_prototypes=(1000, 1500, 2000),
                num_negative_prototypes=400,
                mask_duplicates=False,
                warmup_epochs=20,
                restarts=5,
            )
        )
        config.views = ConfigDict(dict(both=dict(name="moco_cifar", copies=2)))
        config.optimizer = ConfigDict(
            dict(name="sgd", learning_rate=0.03, weight_decay=5e-4, schedule_per_epoch=True)
        )
    if "imagenet2012" in chosen or "imagenet2012_v1" in chosen:
        defaults.imagenet2012(config)
        config.batch_size = 256
        config.total_epochs = 200.0
        config.method.update(
            dict(
                momentum=0.999,
                queue_size=16384,
                num_prototypes=(25000, 50000, 100000),
                num_negative_prototypes=16384,
                mask_duplicates=False,
                warmup_epochs=20,
                restarts=5,
            )
        )
        config.views = ConfigDict(dict(both=dict(name="moco_v2", copies=2)))
        config.optimizer = ConfigDict(
            dict(name="sgd", learning_rate=0.03, weight_decay=1e-4, schedule_per_epoch=True)
        )
        config.evals.protocols.linear.update(dict(total_epochs=100.0, learning_rate=5.0))
    if "imagenet2012_v1" in chosen:
        config.method.head = "linear"
        config.views = ConfigDict(dict(both=dict(name="moco_v1", copies=2)))
        config.optimizer.update(
            dict(schedule="step_decay", milestones_epochs=(120.0, 160.0), schedule_per_epoch=False)
        )
    if "debug" in chosen:
        defaults.debug(config)
        config.encoder.splits = 8  # for up to eight devices
        config.total_epochs = 2.0  # the second with prototypes
        config.method.update(
            dict(queue_size=40, num_prototypes=(24, 32), num_negative_prototypes=6, warmup_epochs=1)
        )
        config.views.both.size = 16
    return config
