"""CLAE (Ho and Vasconcelos 2020, arXiv 2010.12050).

The contrastive loss of the batch attacks the first view: one step of its pixels in the direction
that raises the loss makes a harder positive of it, and, because the loss joins all images of a
batch, harder negatives of the others. Clean and adversarial views have batch norms of their own.

Default: over SimCLR on the embedded `scenes`, a small ResNet, two CPU cores, epsilon 0.003: the
authors' 0.015 (of inputs from 0 to 1) takes away there what the third view gives.

Variants:
  folder      your own images: `cl-jax train clae:folder PATH`.
  plain       one direction, the other view's keys of the batch alone as candidates (the authors'
              "plain" base).
  invaspread  over InvaSpread (the authors' "UEL").
  base        weight 0: the base alone, at the same cost, for comparison.
  cifar10     the authors' SimCLR: ResNet-18, batch 256, 100 epochs, Adam 3e-4, temperature 0.5,
              inputs from -1 to 1, epsilon 0.03. With `plain` and `invaspread` SGD 0.03, weight
              decay 5e-4, batch 128, 301 epochs, temperature 0.1, and one linear layer as head,
              whose output is evaluated. Published: gains over each base on CIFAR-10, CIFAR-100 and
              Tiny ImageNet.
  debug       any of them in seconds.

Differences from the authors' code:
  - Both clean views pass through batch norm together; theirs one after the other.
  - The running statistics of the adversarial batch norms are not kept, since nothing reads them.
  - The two layers of SimCLR's head have batch norm; theirs have none. `plain` has that head too,
    except with `cifar10`.
  - They choose the epoch by the test accuracy; here it is the last.

Command: python -m cl_jax.main --config=configs/clae.py --workdir=runs/clae
Reached: kNN 79.0 %, SimCLR 77.9 %; what the step gives, and what the third view alone: see
docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import configs, defaults

VARIANTS = ("folder", "plain", "invaspread", "base", "cifar10", "debug")


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, VARIANTS)
    over = "invaspread" if "invaspread" in chosen else "simclr_v1"
    passed = [name for name in chosen if name in ("folder", "cifar10", "debug")]
    config = configs.load(f"{over}:{','.join(passed)}").unlock()
    base = config.method.to_dict()
    if over == "simclr_v1":
        base["sum_directions"] = False
    epsilon = 0.015
    if "folder" not in chosen:
        config.total_epochs, config.evals.every_epochs = 6.0, 3.0
        epsilon = 0.003  # a larger step takes away what the third view gives
    if "cifar10" in chosen:
        config.total_epochs, epsilon = 301.0, 0.03
        config.evals.every_epochs = 4.0
        half = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
        if over == "simclr_v1" and "plain" not in chosen:
            base.update(dict(temperature=0.5, out_dim=64))
            config.batch_size, config.total_epochs = 256, 100.0
            config.encoder.update(dict(variant="torchvision", kernel_init="torch"))
            torchvision = dict(family="tv", crop="tv", interpolation="bilinear")
            config.views.both.update(dict(strength=1.0, **torchvision, **half))
            config.optimizer = ConfigDict(
                dict(
                    name="adamw",
                    learning_rate=3e-4,
                    learning_rate_scaling="none",
                    schedule="constant",
                    weight_decay=0.0,
                )
            )
        elif "plain" in chosen:
            like = configs.load(f"invaspread:{','.join(passed)}")
            config.encoder, config.views = like.encoder, like.views
            config.optimizer = like.optimizer
            config.batch_size, config.total_epochs = like.batch_size, like.total_epochs
            base, config.evals.feature = like.method.to_dict(), like.evals.feature
    if "plain" in chosen:
        temperature = 0.1 if "cifar10" in chosen else base["temperature"]
        base = dict(name="temperature", base=base, loss="contrastive", temperature=temperature)
    config.method = ConfigDict(
        dict(name="clae", base=base, epsilon=epsilon, weight=0.0 if "base" in chosen else 1.0)
    )
    if "debug" in chosen:
        config.batch_size, config.total_epochs, config.evals.every_epochs = 16, 1.0, 1.0
    return config
