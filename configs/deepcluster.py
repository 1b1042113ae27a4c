"""DeepCluster (Caron et al. 2018, arXiv 1807.05520).

Before each epoch k-means clusters the features of all training images; during the epoch the network
learns to classify each image into its cluster, with a new top layer. Clusters are drawn equally
often, so that "all images in one" does not pay.

Default: the embedded `scenes`, a small ResNet without fully connected layers, two CPU cores; both
renderings of a digit are classified into the cluster of the first.

Variants:
  folder        your own images: `cl-jax train deepcluster:folder PATH`.
  cifar10       a ResNet-18 and 100 clusters. Not a setting of the authors.
  imagenet2012  the authors' AlexNet with batch norm on Sobel edges, 10,000 clusters, SGD 0.05
                without a schedule, weight decay 1e-5, batch 256, the paper's 500 epochs (200 in the
                code). Published: 37.9 % linear (VISSL's evaluation of the released weights).
  debug         any of them in seconds.

Differences from the authors' code:
  - k-means is Lloyd's algorithm, on the device, where they call faiss. A cluster without rows takes
    half of the largest one; faiss draws by size which one to halve.
  - An example that is drawn twice within a batch has the same view and dropout both times; they
    draw new ones.
  - A cluster with exactly as many images as are drawn from it gives each of them once; they draw
    with replacement there.
  - Matrix products of `imagenet2012` are in bfloat16, theirs in float32.
  - Not built: VGG-16, clustering by a nearest-neighbour graph, classifiers on the maps of conv1 to
    conv4 (the probe reads the encoder's output, and its rate falls by a cosine where theirs falls
    as 1 / sqrt(1 + rate x decay x step)).

Command: python -m cl_jax.main --config=configs/deepcluster.py --workdir=runs/deepcluster
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, ("folder", "cifar10", "imagenet2012", "debug"))
    config = defaults.get_config()
    defaults.laptop(config)
    config.method = ConfigDict(
        dict(
            name="deepcluster",
            num_clusters=100,
            pca_dim=64,
            hidden_dims=(),
            dropout=0.0,
            top_learning_rate=0.5,
        )
    )
    published = dict(
        name="sgd",
        learning_rate=0.05,
        learning_rate_scaling="none",
        schedule="constant",
        weight_decay=1e-5,
    )
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.encoder.variant = "torchvision"
        config.batch_size, config.total_epochs = 256, 200.0
        config.views = ConfigDict(
            dict(one=dict(name="crop_flip", size=32, scale=(0.2, 1.0), test_crop=1.0))
        )
        config.method = ConfigDict(
            dict(name="deepcluster", num_clusters=100, pca_dim=256, hidden_dims=())
        )
        config.optimizer = ConfigDict(published)
    if "imagenet2012" in chosen:
        defaults.imagenet2012(config)
        config.encoder = ConfigDict(
            dict(
                name="alexnet",
                width=1.0,
                fully_connected=False,
                kernel_init="he_fan_out",
                dtype="bfloat16",
            )
        )
        config.batch_size, config.total_epochs = 256, 500.0
        config.views = ConfigDict(dict(one=dict(name="crop_flip", size=224)))
        config.method = ConfigDict(dict(name="deepcluster"))
        config.optimizer = ConfigDict(published)
        config.evals.every_epochs = 50.0
        config.evals.protocols.linear.update(
            dict(total_epochs=90.0, learning_rate=0.01, weight_decay=1e-4)
        )
    if "debug" in chosen:
        defaults.debug(config)
        config.method.update(dict(num_clusters=6, pca_dim=8))
        config.total_epochs = 2.0
        if config.encoder.name == "alexnet":
            config.encoder.update(dict(width=0.0625, dtype="float32"))
            config.views.one.size = 64  # the least that AlexNet takes is 63
            config.method.hidden_dims = (32, 32)
    return config
