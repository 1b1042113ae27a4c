"""The temperature study (Wang and Liu 2021, arXiv 2012.09740).

The contrastive loss weighs each negative by a softmax of its similarity. A low temperature pushes
the nearest ones alone and spreads the features evenly; a high one pushes all alike and tolerates
that images of one class lie together. Four losses show that this weighing is what the temperature
is for: the contrastive one, the simple one that weighs all negatives alike, and both over the
hardest negatives only. All members train side by side on the same batches, as a population.

Default: SimCLR's network on the embedded `scenes`, half as wide, two CPU cores: the contrastive and
the hard-contrastive loss at four temperatures, and both simple losses. The end of the run writes
temperature.png (accuracy, uniformity and tolerance against the temperature) and similarities.png
(histograms of similarities and of P_ij).

Variants:
  folder    your own images: `cl-jax train temperature:folder PATH`.
  cifar10   ResNet-18, batch 128, 200 epochs, SGD 0.03, weight decay 5e-4, a queue of 16,384
            momentum keys, of which the hard losses keep 1,342 (.0819 of them, the paper's share as
            it is remembered). Published: 79.75 % contrastive at its lowest temperature, 74 simple,
            84.84 hard-simple.
  cifar100  the same on CIFAR-100. Published: 51.82 % contrastive at its lowest temperature, 49
            simple, 55.71 hard-simple.
  single    one network, by --config.method.loss and --config.method.temperature, in place of the
            population.
  debug     any of them in seconds.

Differences from the paper, whose authors released no code:
  - Their keys are a bank of all images; here the other view's keys of the batch, on CIFAR those and
    a queue.
  - The weight of a negative in the simple losses is one over their number; the paper's is not
    known here.
  - Accuracy is kNN's; theirs is of a linear classifier.

Command: python -m cl_jax.main --config=configs/temperature.py --workdir=runs/temperature
Reached: kNN 53.4 to 19.9 % from the lowest to the highest temperature (contrastive), 53.8 to 57.1 %
(hard contrastive), 20.4 % simple, 50.7 % hard simple. CIFAR-10, four epochs of a quarter on a small
network: 32.2 % contrastive at 0.07, 24.5 % simple and hard simple, whose features collapse with a
queue. Against the keys of its own batch hard simple reaches 37.0 %, contrastive 33.1 % (untrained
26.5 %).
"""

from typing import Any

from ml_collections import ConfigDict

from cl_jax.training import configs, defaults

LOSSES = ("contrastive", "hard_contrastive")
SIMPLE = ("simple", "hard_simple")


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, ("folder", "cifar10", "cifar100", "single", "debug"))
    temperatures: tuple[float, ...] = (0.07, 0.2, 0.5, 1.0)
    cifar = [name for name in chosen if name.startswith("cifar")]
    if cifar:
        config = configs.load("moco_v2").unlock()
        defaults.cifar10(config)
        config.data.dataset = cifar[0]
        config.method.update(dict(out_dim=128, queue_size=16384))
        config.batch_size, config.total_epochs = 128, 200.0
        config.optimizer = ConfigDict(
            dict(name="sgd", learning_rate=0.03, learning_rate_scaling="none", weight_decay=5e-4)
        )
        temperatures, num_hard = (0.07, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0), 1342
    elif "folder" in chosen:
        config, num_hard = configs.load("simclr_v1:folder").unlock(), 8
    else:
        config = configs.load("simclr_v1").unlock()
        config.encoder.width = 0.125
        config.total_epochs, num_hard = 4.0, 8
    if "debug" in chosen:
        defaults.debug(config)
        if cifar:
            config.method.queue_size, config.method.out_dim = 32, 8
        temperatures, num_hard = (0.1, 1.0), 4
    study: dict[str, Any] = dict(
        name="temperature", base=config.method.to_dict(), num_hard=num_hard
    )
    members: tuple[dict[str, Any], ...] = (
        *(dict(loss=loss, temperature=t) for loss in LOSSES for t in temperatures),
        *(dict(loss=loss) for loss in SIMPLE),
    )
    hardness: dict[str, Any] = dict(k=config.evals.protocols.knn.k)
    if "single" in chosen:
        config.method = ConfigDict(study | dict(loss="contrastive", temperature=0.2))
        # What the user sets of the method holds for its measurement too.
        hardness |= {key: config.method.get_oneway_ref(key) for key in ("loss", "temperature")}
    else:
        config.method = ConfigDict(dict(name="population", base=study, over=members))
        hardness["members"] = tuple(
            dict(
                name=f"{one['loss']},{one['temperature']:g}"
                if "temperature" in one
                else one["loss"],
                curve=one["loss"],
                temperature=one.get("temperature"),
            )
            for one in members
        )
    config.evals.every_epochs = config.total_epochs
    config.evals.protocols = ConfigDict(dict(hardness=hardness))
    return config
