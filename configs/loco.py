"""LoCo (Xiong et al. 2020, arXiv 2008.01342).

A network trained in parts: each pair of neighbouring stages has a contrastive loss of its own, and
no gradient passes from one pair to the next. Pairs overlap in a stage, which so learns from the
loss above it too; without the overlap, as in Greedy InfoMax, lower stages learn what helps only
themselves. Backward passes are as long as two stages, and a part can be trained without keeping
what the others computed.

Default: the embedded `scenes`, a small ResNet of four stages, two CPU cores, SimCLR's settings.

Variants:
  greedy        one stage a unit, without overlap: Greedy InfoMax's division with SimCLR's loss.
  end_to_end    one unit of all stages: SimCLR. For a comparison at equal budget.
  folder        your own images: `cl-jax train loco:folder PATH`.
  imagenet2012  ResNet-50, batch 4096, 800 epochs, LARS, learning rate 0.3 x B/256, weight decay
                1e-6, temperature 0.1.
  debug         any of them in seconds.

Differences from the paper (no code was released):
  - Its decoders may have further convolutions; here a unit's head is pooling and SimCLR's head.
  - Settings of `imagenet2012` are from descriptions of the paper and were not run.

Command: python -m cl_jax.main --config=configs/loco.py --workdir=runs/loco
Reached: kNN 78.2 %, linear 83.6 % after six epochs (`end_to_end` 76.7, 81.2 %; `greedy` 61.3,
67.6 %; untrained kNN 36.3 %).
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, ("greedy", "end_to_end", "folder", "imagenet2012", "debug"))
    config = defaults.get_config()
    config.method = ConfigDict(dict(name="loco", span=2, temperature=0.2, out_dim=64, num_layers=2))
    defaults.laptop(config)
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
    if "imagenet2012" in chosen:
        defaults.imagenet2012(config)
        config.batch_size = 4096
        config.total_epochs = 800.0
        config.method.update(dict(temperature=0.1, out_dim=128))
        config.views = ConfigDict(dict(both=dict(name="simclr", copies=2)))
        config.optimizer = ConfigDict(
            dict(name="lars_simclr", learning_rate=0.3, weight_decay=1e-6, warmup_epochs=10.0)
        )
    if "greedy" in chosen:
        config.method.span = 1
    if "end_to_end" in chosen:
        config.method.span = 4
    if "debug" in chosen:
        defaults.debug(config)
    return config
