"""DeepCluster v2 (Caron et al. 2020, arXiv 2006.09882).

DeepCluster as the authors of SwAV brought it up to date, with SwAV's network, crops and optimiser.
Spherical k-means of the embeddings that images had when they were last seen gives each image a
cluster for the epoch; every crop is classified into it, by its dot products with the centroids.
Several sets of clusters are found side by side.

Default: the embedded `scenes` without colours, a small ResNet, two CPU cores, two large crops and a
  small one.

Variants:
  folder        your own images: `cl-jax train deepcluster_v2:folder PATH`.
  cifar10       the `cifar10` of SwAV with three sets of 100 clusters. Not a setting of the authors.
  imagenet2012  400 epochs of 2x160 + 4x96 crops, batch 4096, LARC 4.8 to 0.0048 after 10 epochs
                from 0.3, weight decay 1e-6, three sets of 3,000 clusters. Published: 74.3 % linear,
                and 75.2 % after 800 epochs of 2x224 + 6x96 (README of the authors' code).
  debug         any of them in seconds.

Differences from the authors' code:
  - Each of their processes remembers the examples that it happens to see in an epoch, and clusters
    those; here every example is remembered, by the last time it was seen, whatever the number of
    devices.
  - The batch statistics of their first pass over the data are kept, here they are not.
  - Their option to train the prototypes, after 300,000 steps, starts after the end of any of their
    runs and is left out.
  - Their batch norm is over groups of eight GPUs; here it is of the global batch.

Command: python -m cl_jax.main --config=configs/deepcluster_v2.py --workdir=runs/deepcluster_v2
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, ("folder", "cifar10", "imagenet2012", "debug"))
    config = defaults.get_config()
    defaults.laptop(config)
    # Clusters of colours would say nothing of digits.
    config.views = ConfigDict(
        dict(a_large=defaults.lightness(copies=2), b_small=defaults.lightness(12, scale=(0.5, 0.8)))
    )
    config.batch_size = 128
    config.method = ConfigDict(
        dict(name="deepcluster_v2", num_prototypes=(100, 100, 100), hidden_dim=256, out_dim=64)
    )
    larc = dict(
        name="larc_sgd", schedule="linspace_warmup_cosine", weight_decay=1e-6, warmup_epochs=10.0
    )
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.encoder.variant = "torchvision"
        config.batch_size, config.total_epochs = 256, 1000.0
        config.method = ConfigDict(dict(name="deepcluster_v2", num_prototypes=(100, 100, 100)))
        config.views = ConfigDict(
            dict(
                a_large=dict(
                    name="swav", size=32, scale=(0.3, 1.0), blur=0.0, test_crop=1.0, copies=2
                ),
                b_small=dict(name="swav", size=16, scale=(0.08, 0.3), blur=0.0, copies=4),
            )
        )
        config.optimizer = ConfigDict(dict(larc, learning_rate=0.6, final_learning_rate=0.0006))
    if "imagenet2012" in chosen:
        defaults.imagenet2012(config)
        config.batch_size, config.total_epochs = 4096, 400.0
        config.method = ConfigDict(dict(name="deepcluster_v2"))
        config.views = ConfigDict(
            dict(
                a_large=dict(name="swav", size=160, scale=(0.08, 1.0), copies=2),
                b_small=dict(name="swav", size=96, scale=(0.05, 0.14), copies=4),
            )
        )
        config.optimizer = ConfigDict(
            dict(
                larc,
                learning_rate=4.8,
                learning_rate_scaling="none",
                warmup_start=0.3,
                final_learning_rate=0.0048,
            )
        )
        config.evals.protocols.linear.update(
            dict(total_epochs=100.0, learning_rate=0.3, weight_decay=1e-6)
        )
    if "debug" in chosen:
        defaults.debug(config)
        config.method.update(dict(num_prototypes=(6, 8), hidden_dim=32, out_dim=16))
        if config.optimizer.get("warmup_epochs", 0) > 1:
            config.optimizer.warmup_epochs = 0.5
        config.total_epochs = 2.0
    return config
