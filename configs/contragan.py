"""ContraGAN (Kang and Park, NeurIPS 2020, arXiv 2006.12681).

A generator of images of given classes, and a discriminator that tells them from real ones and pulls
an image's embedding to its class's proxy and to images of its class, from all other images of the
batch (2C loss).

Default: scikit-learn's 8x8 digits, a small BigGAN, two CPU cores. The numerator of the 2C loss is
the proxy alone: with images of the class in it, as in the paper, a generator of ten classes can
learn all digits and mix up which is which.

Variants:
  folder   your own images: `cl-jax train contragan:folder PATH`.
  cifar10  the authors' configuration: BigGAN of 32 pixels, 5 steps of the discriminator, batch 64,
           100,000 steps, Adam 2e-4, temperature 1. Published: FID 8.065 (their repository, June
           2021), of Inception features, which are not part of this project.
  paper    with any of them: the paper's numerator.
  debug    any of them in seconds.

Differences from the authors' code:
  - Gradients flow between devices through all embeddings; theirs stop at the device's own.
  - Real and generated images are one call of the discriminator, so that its spectral norms do one
    power iteration in a step and not two.
  - The averaged generator has batch statistics of its own, from a pass of each step's noise.
  - The shortcut of a block is not rectified; their in-place ReLU rectifies it too.
  - Temperature 1 throughout, as in their present configuration; from September 2020 on it was 2 in
    the first half of the steps, and at first 1 with a margin that cancels.
  - `batch_size` counts the images of all steps of the discriminator together.

Command: python -m cl_jax.main --config=configs/contragan.py --workdir=runs/contragan
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, ("folder", "cifar10", "paper", "debug"))
    config = defaults.get_config()
    config.data = ConfigDict(dict(name="digits"))
    config.views = ConfigDict()
    config.encoder = ConfigDict(
        dict(
            generator=dict(
                name="biggan",
                role="generator",
                widths=(16, 16, 16),
                bottom=2,
                channels=1,
                noise_dim=24,
                shared_dim=16,
                dtype="float32",
            ),
            discriminator=dict(
                name="biggan",
                role="discriminator",
                widths=(16, 16, 16),
                down=1,
                embed_dim=64,
                dtype="float32",
            ),
        )
    )
    config.method = ConfigDict(
        dict(
            name="contragan",
            discriminator_steps=2,
            weight=1.0,
            temperature=0.3,
            positives="proxy",
            flip=0.0,
            ema=0.99,
            ema_start=0,
        )
    )
    config.optimizer = ConfigDict(
        dict(
            name="adamw",
            learning_rate=1e-3,
            learning_rate_scaling="none",
            schedule="warmup_cosine",
            b1=0.5,
            weight_decay=0.0,
        )
    )
    config.batch_size, config.total_epochs, config.log_steps = 128, 200.0, 50
    config.evals.every_epochs = 50.0
    config.evals.protocols = ConfigDict(dict(samples=dict()))
    if "folder" in chosen:
        config.data = ConfigDict(
            dict(name="folder", path="", image_size=32, labels=True, on_error="raise")
        )
        config.encoder.generator.update(dict(widths=(64,) * 4, bottom=4, channels=3))
        config.encoder.discriminator.update(dict(widths=(64,) * 4, down=2))
        config.method.flip = 0.5
        config.fit, config.fit_epochs = True, config.total_epochs
    if "cifar10" in chosen:
        defaults.cifar10(config)
        config.views = ConfigDict()
        config.encoder = ConfigDict(
            dict(
                generator=dict(
                    name="biggan",
                    role="generator",
                    widths=(384,) * 4,
                    attention=2,
                    noise_dim=80,
                    shared_dim=128,
                    dtype="float32",
                ),
                discriminator=dict(
                    name="biggan",
                    role="discriminator",
                    widths=(192,) * 4,
                    attention=1,
                    embed_dim=512,
                    dtype="float32",
                ),
            )
        )
        config.method.update(
            dict(
                discriminator_steps=5,
                temperature=1.0,
                positives="class",
                flip=0.5,
                ema=0.9999,
                ema_start=1000,
            )
        )
        config.optimizer.update(dict(learning_rate=2e-4, schedule="constant", eps=1e-6))
        config.batch_size = 5 * 64
        config.total_epochs = 100_000 / (50_000 // config.batch_size)
        config.evals.every_epochs = 64.0
    if "paper" in chosen:
        config.method.positives = "class"
    if "debug" in chosen:
        own = "folder" in chosen
        if own:
            config.data.update(dict(image_size=8, limit=64))
            config.fit = False
        else:
            config.data = ConfigDict(dict(name="digits"))
        config.encoder.generator.update(
            dict(
                widths=(8, 8, 8),
                bottom=2,
                channels=3 if own else 1,
                noise_dim=6,
                shared_dim=4,
                attention=0,
            )
        )
        config.encoder.discriminator.update(dict(widths=(8, 8), down=1, embed_dim=8, attention=0))
        config.method.update(dict(discriminator_steps=2, ema_start=2))
        config.batch_size, config.total_epochs, config.log_steps = 32, 0.1, 2
        config.evals.update(dict(every_epochs=1.0, batch_size=64))
    return config
