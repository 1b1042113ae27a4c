"""MoCHi (Kalantidis et al. 2020, arXiv 2010.01028).

A longer queue adds negatives that are easy. MoCHi makes hard ones: mixtures of the entries nearest
to a query, and of such an entry with the query itself, drawn for each query.

Default: over MoCo v2 on the embedded `scenes`, a small ResNet, two CPU cores.

Variants:
  folder        your own images: `cl-jax train mochi:folder PATH`.
  cifar10       MoCo's CIFAR-10 setting, (N, s, s') = (256, 256, 64).
  imagenet2012  MoCo v2's setting with (1024, 1024, 128).
  debug         any of them in seconds.

Differences from the authors' code:
  - None is released; equations of the paper. Mixing starts with the first step.

Command: python -m cl_jax.main --config=configs/mochi.py --workdir=runs/mochi
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import configs, defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, ("folder", "cifar10", "imagenet2012", "debug"))
    config = configs.load(f"moco_v2:{','.join(chosen)}").unlock()
    sizes = (64, 64, 16)
    if "cifar10" in chosen:
        sizes = (256, 256, 64)
    if "imagenet2012" in chosen:
        sizes = (1024, 1024, 128)
    if "debug" in chosen:
        sizes = (8, 8, 4)
    num_hard, num_pairs, num_query = sizes
    config.method = ConfigDict(
        dict(
            name="mochi",
            base=config.method.to_dict(),
            num_hard=num_hard,
            num_pairs=num_pairs,
            num_query=num_query,
        )
    )
    return config
