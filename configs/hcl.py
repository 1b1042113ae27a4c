"""HCL (Robinson et al. 2021, arXiv 2010.04592; the debiased loss: Chuang et al. 2020, arXiv
2007.00224).

Negatives that lie near the anchor teach most, and some of them are of its own class. The loss
weighs each negative by its similarity and takes the expected share of the own class away, at no
cost beside the plain loss.

Default: over SimCLR on the embedded `scenes`, a small ResNet, the paper's temperature of 0.5, four
epochs, two CPU cores. At 0.2, as in the default of `simclr_v1`, HCL did not gain on the plain loss.

Variants:
  folder    your own images: `cl-jax train hcl:folder PATH`.
  easy      the plain loss (NT-Xent), for comparison.
  debiased  beta 0: the correction without the weights.
  graphs    over GraphCL on the embedded `motifs`, by an SVM in ten folds.
  cifar10   SimCLR's CIFAR-10 setting. Published: STL-10, ResNet-50, 400 epochs: 80.15 % (easy),
            84.26 (debiased), 87.44 (beta 1) (README of the authors' code).
  debug     any of them in seconds.

Differences from the authors' code:
  - Views pass through batch norm together; theirs one after the other.
  - On graphs theirs is InfoGraph's bound between nodes and graphs (`losses.graph.infograph` with
    hard=True); here the loss of images is taken to GraphCL's pairs.
  - In logarithms, where theirs overflows at low temperatures.
  - `cifar10` has SimCLR's network, optimiser, batch of 512, length and views (TensorFlow's
    operators, no blur, pixels from 0 to 1); theirs are ResNet-50, Adam at 1e-3 with L2 of 1e-6 in
    it, 256, 400 epochs, and torchvision's operators with blur at 0.5 and CIFAR-10's mean and
    deviation. Their option to lower beta in nine steps is not here.

Command: python -m cl_jax.main --config=configs/hcl.py --workdir=runs/hcl
Reached: 71.6 % kNN and 75.6 % linear, the plain loss (`easy`) 57.5 and 67.4, means of two seeds.
"""

from ml_collections import ConfigDict

from cl_jax.training import configs, defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, ("folder", "easy", "debiased", "graphs", "cifar10", "debug"))
    passed = [name for name in chosen if name in ("folder", "cifar10", "debug")]
    base = "graphcl" if "graphs" in chosen else "simclr_v1"
    config = configs.load(f"{base}:{','.join(passed)}").unlock()
    if base == "simclr_v1":
        config.method.temperature = 0.5
    if not passed and base == "simclr_v1":
        config.total_epochs, config.evals.every_epochs = 4.0, 2.0
    estimator = "easy" if "easy" in chosen else "hard"
    beta = 0.0 if "debiased" in chosen else 1.0
    config.method = ConfigDict(
        dict(
            name="hcl",
            base=config.method.to_dict(),
            estimator=estimator,
            beta=beta,
            tau_plus=0.1,
            temperature=config.method.temperature,
        )
    )
    return config
