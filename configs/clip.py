"""CLIP (Radford et al. 2021, arXiv 2103.00020).

An encoder of images and one of sentences map into one space, in which an image and its sentence
must find each other in the batch, in both directions, at a learned temperature. Classes are then
named by sentences: no classifier is trained.

Default: `scenes` with captions, a small ResNet and a causal transformer of two layers, one CPU
  core.

Variants:
  siglip        the sigmoid loss of every pair by itself (Zhai et al. 2023, arXiv 2303.15343).
  folder        your own pictures with captions, at --config.data.path.
  rn50          the authors' RN50 with their text encoder, 102,007,137 parameters, for your own
                pictures with captions, batch 32,768, AdamW 5e-4. Published: 59.8 % zero-shot on
                ImageNet, measured again by open_clip.
  vit_b32       the authors' ViT-B/32 for your own pictures with captions, batch 32,768, AdamW
                5e-4; the text's width is the image's, 768, and not 512. Published: 63.2 % zero-shot
                on ImageNet with their 400 million pairs; 63.3 % measured again by open_clip.
  debug         any of them in seconds.

Differences from the authors' code:
  - There is no code of their training; open_clip is what it is compared with.
  - The end of a sentence is found by its token and not as the largest number.
  - The tokenizer is trained on the captions.
  - Weights are not decayed where they have one axis or none, open_clip's rule. Tables of positions
    are decayed; open_clip now leaves them out too.
  - All blocks of `vit_b32` start by the rule of the text's; those of their image encoder start as
    PyTorch's layers do.
  - Crops of `rn50` and `vit_b32` keep .8 to 1 of the area at ratios of 3/4 to 4/3, and pixels go
    from 0 to 1; theirs are random squares of the resized image, less CLIP's mean and divided by its
    deviation.

Command: python -m cl_jax.main --config=configs/clip.py --workdir=runs/clip
Reached: zero-shot digit 68.8 % (untrained 10.3 %), median rank 2 of 1,000 both ways (untrained
  501), in 121 s of one core. `siglip`: 38.2 % (untrained 10.3 %), median rank 3 both ways.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults

VARIANTS = ("siglip", "folder", "rn50", "vit_b32", "debug")


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, VARIANTS)
    config = defaults.get_config()
    defaults.captions(config)
    config.encoder = ConfigDict(
        dict(
            image=dict(name="resnet", depth=10, width=0.25, stem="cifar", variant="torchvision"),
            text=dict(
                name="transformer",
                style="clip",
                causal=True,
                pool="eos",
                width=64,
                depth=2,
                heads=4,
                length=20,
                dropout=0.0,
            ),
        )
    )
    config.method = ConfigDict(dict(name="clip", out_dim=64))
    if "siglip" in chosen:
        config.method.update(dict(loss="siglip", scale=10.0, max_scale=None, bias=-10.0))
    if {"folder", "rn50", "vit_b32"} & set(chosen):
        defaults.captions_folder(config)
        config.encoder.image.update(dict(depth=18, width=0.5, stem="imagenet"))
        config.encoder.text.update(dict(width=256, depth=4, heads=4, length=32))
        config.method.out_dim = 256
    if "vit_b32" in chosen:
        config.data.update(dict(image_size=256, length=77, vocab_size=49408))
        config.views.image.size = 224
        config.encoder = ConfigDict(
            dict(name="ms_clip", share="none", patch=32, depth=12, heads=12, dtype="bfloat16")
        )
        defaults.clip_published(config)
    if "rn50" in chosen:
        config.data.update(dict(image_size=256, length=77, vocab_size=49408))
        config.views.image.size = 224
        config.encoder.image = ConfigDict(dict(name="clip_resnet", variant="50", dtype="bfloat16"))
        config.encoder.text.update(dict(width=512, depth=12, heads=8, length=77, dtype="bfloat16"))
        defaults.clip_published(config)
        config.method.update(dict(out_dim=1024, image_projection=False))
        config.optimizer.update(dict(b2=0.999, eps=1e-8))
    if "debug" in chosen:
        defaults.captions_debug(config)
        if "name" in config.encoder:
            config.encoder.update(
                dict(width=16, depth=2, heads=2, image_size=16, patch=8, length=20)
            )
        elif "rn50" in chosen:
            config.views.image.size = 32
            config.encoder.image.update(
                dict(blocks=(1, 1, 1, 1), width=4, out_dim=16, heads=2, dtype="float32")
            )
            config.encoder.text.update(dict(width=16, depth=1, heads=2, length=20, dtype="float32"))
        else:
            config.encoder.image.update(dict(depth=10, width=0.125, stem="cifar"))
            config.encoder.text.update(dict(width=16, depth=1, heads=2, length=20))
    return config
