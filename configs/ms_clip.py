"""MS-CLIP, first called MA-CLIP (You et al. 2022, arXiv 2207.12661).

CLIP with one transformer for images and words: attention and MLPs are shared, while embeddings,
norms and projections are each modality's own. Its comparison with two separate transformers of the
same width is a variant.

Default: `scenes` with captions, one transformer of three layers whose images come through
  convolutions (the paper's early specialisation), one CPU core.

Variants:
  separate      the same network with nothing shared.
  norms         the norms of the blocks are shared too.
  plain         patches in the place of the convolutions, every block shared.
  branch        with the parallel branch of MS-CLIP-S.
  folder        your own pictures with captions, at --config.data.path.
  b32           MS-CLIP-S B/32 for your own pictures with captions: width 768, 12 layers, early
                convolutions and the parallel branch. Published: 36.7 % zero-shot on ImageNet from
                YFCC-22M (README of the authors' code).
  debug         any of them in seconds.

Differences from the authors' code:
  - Only their model is released. The optimiser of `b32` is CLIP's: batch 32,768, AdamW 5e-4, weight
    decay 0.2. Their configuration files have 256 images a GPU, a rate of 1e-4, five epochs of
    warm-up, and weight decays of 0.2 for shared weights and of 0.05 for others.
  - Crops of `b32` keep .8 to 1 of the area at ratios of 3/4 to 4/3, and pixels go from 0 to 1;
    CLIP's are random squares of the resized image, less its mean and divided by its deviation.
  - Initial weights are CLIP's, in all blocks those of its text; theirs are normal with 0.02
    everywhere.
  - The layer norms' epsilon is 1e-5, CLIP's; theirs is 1e-12, `--config.encoder.epsilon`. That of
    the branch's batch norms is 1e-5; theirs is 1e-6.
  - Shared weights have the learning rate of the others unless the optimiser's parts say otherwise.

Command: python -m cl_jax.main --config=configs/ms_clip.py --workdir=runs/ms_clip
Reached: zero-shot digit 36.4 % (untrained 10.1 %), median rank 4 of 1,000 both ways (untrained
  499), 306,641 parameters, in 180 s of one core. `separate`: 24.3 %, median rank 6, 406,097
  parameters. One seed each.
"""

import math

from ml_collections import ConfigDict

from cl_jax.training import defaults

VARIANTS = ("separate", "norms", "plain", "branch", "folder", "b32", "debug")


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, VARIANTS)
    config = defaults.get_config()
    defaults.captions(config)
    config.encoder = ConfigDict(
        dict(
            name="ms_clip",
            share="blocks",
            specific=1,
            stem="early",
            stem_width=16,
            image_size=32,
            patch=8,
            width=64,
            depth=3,
            heads=4,
            length=20,
            epsilon=1e-5,
        )
    )
    config.method = ConfigDict(dict(name="clip", out_dim=64))
    config.views.image.size = 32
    config.batch_size = 64
    if "folder" in chosen or "b32" in chosen:
        defaults.captions_folder(config)
        config.encoder.update(dict(image_size=64, patch=8, width=256, length=32))
        config.method.out_dim = 256
    if "b32" in chosen:
        config.data.update(dict(image_size=256, length=77, vocab_size=49408))
        config.views.image.size = 224
        config.method.scale = math.e
        config.encoder.update(
            dict(
                stem_width=None,
                image_size=224,
                patch=32,
                width=768,
                depth=12,
                heads=12,
                length=77,
                branch=True,
                dtype="bfloat16",
            )
        )
        defaults.clip_published(config)
    if "separate" in chosen:
        config.encoder.share = "none"
    if "norms" in chosen:
        config.encoder.share = "blocks+norms"
    if "plain" in chosen:
        config.encoder.update(dict(stem="patch", specific=0))
    if "branch" in chosen:
        config.encoder.branch = True
    if "debug" in chosen:
        defaults.captions_debug(config)
        config.encoder.update(
            dict(width=16, depth=3, heads=2, image_size=16, patch=4, length=20, dtype="float32")
        )
    return config
