"""MiCE (Tsai et al. 2021, arXiv 2105.01899).

Clustering and contrastive learning in one model: a gate divides the images among experts, and each
expert tells its images apart in an embedding of its own, around a prototype that pulls them
together. An image's cluster is the expert with the highest posterior; no k-means follows. The
evaluator `clustering` compares clusters with classes.

Default: scikit-learn's handwritten digits in crops of half to all of the image, a small ResNet, ten
experts, two CPU cores. On `scenes` two epochs left the clusters near chance.

Variants:
  folder     your own images: `cl-jax train mice:folder PATH`; method.num_experts is the number of
             clusters.
  cifar10    ResNet-34, batch 256, 1000 epochs of SGD 1.0 with steps at 480, 640 and 800,
             temperature 1, 16,384 past embeddings. Published: accuracy .835, NMI .737, ARI .698.
  cifar100   the same with 20 experts. Published: accuracy .440, on the 20 super-classes, which the
             labels here are not.
  two_stage  with any of them, what the paper compares with: MoCo of the same network, views, queue
             and epochs, whose features k-means divides.
  debug      any of them in seconds.

Differences from the authors' code:
  - They train and evaluate on training and test images together; here the figures are of the test
    part, which the network has not seen.
  - The prototypes start as random directions; theirs start as whatever the memory held.
  - Prototypes in closed form are taken as the next epoch begins; theirs as an epoch ends. So they
    evaluate and save these, and here it is those that the epoch's steps have moved.
  - Evaluation leaves the queue as it is; theirs pushes the evaluated images into it.
  - Training lasts as many epochs as it says; theirs one more, the first with a learning rate of 0.
    The warm-up rises with every step here, with every epoch there.
  - The heads of experts and gate start without biases, at a variance of 1 / inputs; theirs as
    PyTorch's linear layers do.

Command: python -m cl_jax.main --config=configs/mice.py --workdir=runs/mice
Reached: accuracy .735, NMI .719, ARI .604 of the experts on test digits; k-means on the untrained
network .568, .535, .382, on MoCo's after as many epochs (`two_stage`) .610, .604, .432.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, ("folder", "cifar10", "cifar100", "two_stage", "debug"))
    config = defaults.get_config()
    defaults.laptop(config)
    config.method = ConfigDict(
        dict(
            name="mice",
            num_experts=10,
            temperature=0.2,
            momentum=0.99,
            queue_size=512,
            out_dim=64,
        )
    )
    config.optimizer.learning_rate = 2e-3  # as in configs/moco_v2.py
    if "folder" in chosen:
        views = dict(both=dict(name="moco_v2", size=224, scale=(0.2, 1.0), copies=3))
        defaults.folder(config, ConfigDict(dict(views=views)))
    if "cifar10" in chosen or "cifar100" in chosen:
        defaults.cifar10(config)
        view = dict(name="mice_cifar", size=32, copies=3)
        if "cifar100" in chosen:
            config.data.dataset, config.method.num_experts = "cifar100", 20
            view["classes"] = 100
        config.encoder.depth = 34
        config.batch_size, config.total_epochs = 256, 1000.0
        config.method.update(dict(temperature=1.0, momentum=0.999, queue_size=16384, out_dim=128))
        config.views = ConfigDict(dict(both=view))
        config.optimizer = ConfigDict(
            dict(
                name="sgd",
                learning_rate=1.0,
                learning_rate_scaling="none",
                weight_decay=1e-4,
                schedule="step_decay",
                milestones_epochs=(480.0, 640.0, 800.0),
                warmup_epochs=10.0,
            )
        )
        config.evals.every_epochs = 50.0
    if config.data.name == "scenes":  # no variant has set another
        config.data = ConfigDict(dict(name="digits"))
        config.views = ConfigDict(
            dict(
                both=dict(
                    name="crop_flip",
                    size=16,
                    scale=(0.5, 1.0),
                    flip=0.0,
                    test_crop=1.0,
                    mean=(0.5,),  # grey
                    std=(0.5,),
                    copies=3,
                )
            )
        )
        config.total_epochs, config.evals.every_epochs = 60.0, 20.0
        config.evals.protocols.knn.k = 20  # of 144 images of a class
    protocols = config.evals.protocols
    clustering = dict(feature="posterior", argmax=True)
    config.evals.protocols = ConfigDict(
        dict(
            clustering=clustering,
            gate=dict(name="clustering", feature="gate", argmax=True, figure="gate"),
            kmeans=dict(name="clustering", figure="kmeans"),
        )
        | protocols.to_dict()
    )
    if "debug" in chosen:
        embedded = config.data.name == "digits"
        defaults.debug(config)
        if embedded:
            config.data = ConfigDict(dict(name="glyphs", train_size=64, test_size=32))
        config.method.update(dict(queue_size=40, temperature=0.5, num_experts=4, out_dim=16))
        config.total_epochs = 2.0  # the second with prototypes in closed form
    if "two_stage" in chosen:
        _two_stage(config)
    return config


def _two_stage(config: ConfigDict) -> None:
    """MoCo with a linear head, as an expert has, in place of the experts; k-means for clusters."""
    clusters = config.method.num_experts
    kept = {name: config.method[name] for name in ("momentum", "queue_size", "out_dim")}
    config.method = ConfigDict(dict(name="moco_v2", head="linear", temperature=0.2) | kept)
    config.views.both.copies = 2
    protocols = config.evals.protocols.to_dict()
    for name in ("clustering", "gate", "kmeans"):
        del protocols[name]
    config.evals.protocols = ConfigDict(
        dict(
            clustering=dict(clusters=clusters),
            head=dict(name="clustering", clusters=clusters, feature="z", figure="head"),
        )
        | protocols
    )
