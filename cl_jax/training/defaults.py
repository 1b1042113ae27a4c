"""What every config has in common; a setting is what it changes.

Sections are keywords of the function that reads them: `data` of `cl_jax.data.<name>.make`,
`encoder` of `cl_jax.encoders.<name>.make` (or a section for each role), `optimizer` of
`cl_jax.training.optim.build`, `method` of `cl_jax.methods.<name>.make`; each section of `views` is
one of `cl_jax.views.<kind>.make`, `copies` times, and each of `evals.protocols` of
`cl_jax.evals.<name>.make`.
"""

from typing import Any

from ml_collections import ConfigDict

from cl_jax.core.names import nearest


def get_config() -> ConfigDict:
    """Defaults of the trainer; no method, no data."""
    return ConfigDict(
        dict(
            seed=0,
            devices=0,  # 0: all
            batch_size=256,
            total_epochs=12.0,
            log_steps=10,
            # where figures go besides metrics.jsonl: TensorBoard's files, a project of Weights &
            # Biases, an experiment of MLflow ("": neither)
            log=dict(tensorboard=True, wandb="", mlflow=""),
            checkpoint_steps=0,  # 0: at the end of each epoch that is evaluated, and at the end
            keep_checkpoints=2,
            # training steps in one dispatch where the data is on the device; 0: 1 on CPU, else
            # log_steps
            dispatch_steps=0,
            # weights of another library that the encoder starts from, and its kind and sizes with
            # them: a file or a Hugging Face folder, see docs/guides/weights.md
            init_from="",
            # a loss or gradient that is NaN or inf: "stop", "skip" the batch, or "ignore"
            nonfinite="stop",
            data=dict(name="scenes"),
            # threads that read (0: one a core), processes besides, batches ahead; a set of at most
            # resident_bytes lies on the device (0: a quarter of the device's memory)
            loading=dict(workers=0, worker_processes=0, prefetch=2, resident_bytes=0),
            views=dict(both=dict(name="simclr_cifar", copies=2)),
            encoder=dict(name="resnet", depth=18, stem="cifar", width=1.0, dtype="float32"),
            optimizer=dict(name="lars_simclr", learning_rate=0.3, weight_decay=1e-4),
            method=dict(name=""),
            evals=dict(
                every_epochs=4.0,
                batch_size=512,
                feature="h",
                baselines=True,
                best="",  # the figure that chooses the best checkpoint; "": the first of protocols
                protocols=dict(  # evaluators by name: sections of `cl_jax.evals.<name>.make`
                    geometry=dict(),
                    knn=dict(k=200, temperature=0.1),
                    linear=dict(
                        total_epochs=30.0, batch_size=256, learning_rate=0.1, weight_decay=0.0
                    ),
                    neighbours=dict(),
                ),
            ),
            stage="",  # the stage to run; "": the config's only one, "all": one after the other
            stages=dict(),  # name -> what it changes above; `stage_order` puts them in order
        )
    )


class UnknownVariant(ValueError):
    """A config has no variant of this name."""


def variants(arg: str | None, known: tuple[str, ...]) -> list[str]:
    """`configs/x.py:a,b` -> ["a", "b"], refusing what the config does not have."""
    given = [word for word in (arg or "").split(",") if word]
    for word in given:
        if word not in known:
            raise UnknownVariant(
                f"variant {word!r} of this config is unknown; have {', '.join(known)}"
                f"{nearest(word, known)}."
            )
    return given


def laptop(config: ConfigDict) -> None:
    """The embedded `scenes`, a network and an optimiser for two cores: the default of every
    config."""
    config.data = ConfigDict(dict(name="scenes", level="easy", share=("digit",)))
    config.encoder.update(dict(depth=10, width=0.25, stem="cifar", variant="torchvision"))
    config.views = ConfigDict(
        dict(
            both=dict(
                name="simclr_cifar",
                copies=2,
                size=16,
                scale=(0.7, 1.0),
                flip=0.0,
                strength=0.5,
                gray=0.2,
                family="tv",
                crop="tv",
                interpolation="bilinear",
            )
        )
    )
    config.optimizer = ConfigDict(
        dict(
            name="adamw",
            learning_rate=4e-3,
            learning_rate_scaling="none",
            weight_decay=1e-4,
            warmup_epochs=0.5,
        )
    )
    config.batch_size = 64
    config.total_epochs = 12.0


def table(config: ConfigDict) -> None:
    """The embedded table of digits without augmentation, a perceptron and an optimiser for a CPU;
    --config.data.path takes your own .csv."""
    config.data = ConfigDict(dict(name="tabular"))
    config.encoder = ConfigDict(
        dict(
            name="mlp",
            widths=(256, 256),
            out_dim=128,
            splits=config.encoder.get("splits", 1),
            dtype="float32",
        )
    )
    config.views = ConfigDict(dict(both=dict(kind="row", copies=2)))
    _small_data(config, total_epochs=60.0, temperature=0.1)


def audio(config: ConfigDict) -> None:
    """The embedded `vowels` as spectrograms of 32 x 32 cells, convolutions and an optimiser for a
    CPU; --config.data.name=audio and --config.data.path take your own recordings of 8 kHz."""
    config.data = ConfigDict(dict(name="vowels"))
    config.encoder = ConfigDict(
        dict(
            name="conv",
            variant="basic32x32",
            width=0.25,
            splits=config.encoder.get("splits", 1),
            dtype="float32",
        )
    )
    config.views = ConfigDict(
        dict(
            both=dict(
                kind="spectrogram", sample_rate=8000, samples=5760, frame=256, hop=180, copies=2
            )
        )
    )
    _small_data(config, total_epochs=20.0, temperature=0.2)


def _small_data(config: ConfigDict, total_epochs: float, temperature: float) -> None:
    """Optimiser, length and evaluators of one or two thousand examples; temperatures of i-Mix's
    paper for data without augmentation."""
    if "temperature" in config.method:
        config.method.temperature = temperature
    config.optimizer = ConfigDict(
        dict(
            name="adamw",
            learning_rate=1e-3,
            learning_rate_scaling="none",
            weight_decay=1e-4,
            warmup_epochs=total_epochs / 12,
        )
    )
    config.batch_size, config.total_epochs = 128, total_epochs
    config.evals.every_epochs = total_epochs / 2
    config.evals.protocols = ConfigDict(dict(knn=dict(k=20), logistic=dict(), geometry=dict()))


def lightness(size: int = 16, **changes: Any) -> ConfigDict:
    """A view of `scenes` for methods that keep whatever helps to tell images apart, and colours
    first: lightness alone, the colours of Lab divided away."""
    return ConfigDict(
        dict(
            name="cmc_lab",
            size=size,
            scale=(0.7, 1.0),
            flip=0.0,
            jitter=0.8,
            brightness=0.4,
            contrast=0.4,
            test_crop=1.0,
            std=(50.0, 1e4, 1e4),
        )
        | changes
    )


def cifar10(config: ConfigDict) -> None:
    """CIFAR-10 through TensorFlow Datasets, ResNet-18 with the CIFAR stem."""
    config.data = ConfigDict(dict(name="tfds", dataset="cifar10"))
    config.encoder.update(dict(depth=18, width=1.0, stem="cifar"))
    config.views = ConfigDict(dict(both=dict(name="simclr_cifar", copies=2)))
    config.batch_size = 512


# Of all pixels of a training part, as solo-learn (10) and the authors of CRD and SupCon (100) have
# them.
CIFAR10_PIXELS = dict(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))
CIFAR100_PIXELS = dict(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))

# What networks trained on photographs expect; of a recipe whose authors have none, too, so that
# weights go from one library to another.
NORMALISED = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def solo_learn_larc(learning_rate: float, weight_decay: float) -> ConfigDict:
    """The optimiser of solo-learn's CIFAR-10 settings: momentum at LARC's clipped rates, ten
    epochs of warm-up; biases and norms are neither decayed nor rescaled."""
    return ConfigDict(
        dict(
            name="larc_sgd",
            trust_coefficient=0.02,
            larc_clip=True,
            exclude_ndim=1,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            warmup_epochs=10.0,
        )
    )


def folder(config: ConfigDict, like: ConfigDict, size: int = 64) -> None:
    """Your own images: set data.path. A ResNet-18 of half the width at 64 pixels, and sizes that
    `training.fit` chooses for the number of images.

    Args:
      config: is changed; a network that is not a ResNet is left to the caller.
      like: the config of a setting of photographs, whose views are taken.
      size: side of the largest view in pixels.
    """
    config.data = ConfigDict(
        dict(name="folder", path="", image_size=size * 3 // 2, labels=True, on_error="raise")
    )
    if config.encoder.get("name") == "resnet":
        config.encoder.update(dict(depth=18, width=0.5, stem="imagenet"))
    if config.optimizer.name == "adamw":  # the rates of the small network are too high for this one
        config.optimizer.learning_rate = min(config.optimizer.learning_rate, 1e-3)
    config.views = photographs(like.views, size)
    # sizes that are not given follow from the data, and epochs from these on `scenes`:
    # `training.fit`
    config.fit, config.fit_epochs = True, config.total_epochs


def photographs(views: ConfigDict, size: int) -> ConfigDict:
    """Views of photographs at another size: crops keep their shares, blur its strength relative to
    the image, and the whole image is seen at test."""
    largest = max(view.get("size", 224) for view in views.values())
    found = ConfigDict()
    for name, view in views.items():
        section = view.to_dict()
        side = section.get("size", 224)
        section.update(size=max(8, 8 * round(side * size / largest / 8)), test_crop=1.0)
        if section.get("name", "").startswith("simclr"):
            section = NORMALISED | section
        section.setdefault("blur_sigma", (0.1, round(2.0 * size / largest, 2)))
        found[name] = ConfigDict(section)
    return found


def debug(config: ConfigDict) -> None:
    """Shrinks any setting to seconds: the same program on a tiny network, tiny images, four
    steps. Of one's own folder, the first images are read."""
    if config.data.name == "folder":
        config.data.update(dict(image_size=24, limit=64))
        config.fit = False
    elif config.data.name in ("vowels", "audio"):  # a command may put one in the other's place
        config.data.limit = 64
    elif config.data.name == "tabular":
        config.data.embedded = "wine"
    else:
        config.data = ConfigDict(dict(name="scenes", train_size=64, test_size=32))
    if config.encoder.name == "resnet":
        config.encoder.update(dict(depth=10, width=0.125, stem="cifar"))
    elif config.encoder.name == "mlp":
        config.encoder.update(dict(widths=(16,), out_dim=8))
    elif config.encoder.name == "conv":
        config.encoder.width = min(config.encoder.get("width", 1.0), 0.0625)
    for views in (
        config.views,
        *(stage.views for stage in config.stages.values() if "views" in stage),
    ):
        for view in views.values():
            if view.get("kind", "image") == "image":
                view.size = min(view.get("size", 32), 16)
    config.batch_size = 16
    config.total_epochs = 1.0
    config.log_steps = 2
    for optimizer in (
        config.optimizer,
        *(stage.optimizer for stage in config.stages.values() if "optimizer" in stage),
    ):
        if "warmup_epochs" in optimizer:
            optimizer["warmup_epochs"] = min(optimizer["warmup_epochs"], 0.5)
    config.evals.update(dict(every_epochs=1.0, batch_size=32))
    protocols = config.evals.protocols
    if "knn" in protocols:
        protocols.knn.k = 5
    if "linear" in protocols:
        protocols.linear.update(dict(total_epochs=1.0, batch_size=16))


def imagenet2012(config: ConfigDict) -> None:
    """ImageNet through TensorFlow Datasets (prepared by hand, as its licence asks), ResNet-50 at
    224, bfloat16."""
    config.data = ConfigDict(
        dict(name="tfds", dataset="imagenet2012", test_split="validation", image_size=256)
    )
    config.encoder.update(dict(depth=50, width=1.0, stem="imagenet", dtype="bfloat16"))


def captions(config: ConfigDict) -> None:
    """`scenes` with captions, and views, optimiser and evaluation for two cores: the default of
    methods of pictures and text."""
    config.data = ConfigDict(dict(name="image_text", length=20))
    config.views = ConfigDict(
        dict(
            image=dict(
                name="simclr_crop_flip",
                size=16,
                scale=(0.8, 1.0),
                flip=0.0,
                family="tv",
                crop="tv",
                interpolation="bilinear",
                test_crop=1.0,
            ),
            text=dict(kind="tokens"),
        )
    )
    config.optimizer = ConfigDict(
        dict(
            name="adamw",
            learning_rate=2e-3,
            learning_rate_scaling="none",
            weight_decay=0.1,
            b2=0.98,
            eps=1e-6,
            warmup_epochs=0.5,
            exclude_ndim=1,
        )
    )
    config.batch_size = 128
    config.total_epochs = 12.0
    config.evals.every_epochs = 4.0
    config.evals.protocols = ConfigDict(
        dict(
            zero_shot=dict(),
            retrieval=dict(),
            linear=dict(total_epochs=30.0, batch_size=256, learning_rate=0.1, weight_decay=0.0),
        )
    )


def captions_folder(config: ConfigDict) -> None:
    """Your own pictures with captions: set --config.data.path."""
    config.data = ConfigDict(
        dict(name="image_text", path="", image_size=72, length=32, vocab_size=8000)
    )
    config.views.image = ConfigDict(
        dict(name="simclr_crop_flip", size=64, scale=(0.8, 1.0), flip=0.0, test_crop=1.0)
    )
    config.evals.protocols = ConfigDict(dict(retrieval=dict()))


def clip_published(config: ConfigDict) -> None:
    """The batch, length and optimiser of CLIP's paper for a ViT."""
    config.batch_size = 32768
    config.total_epochs = 32.0
    config.method.out_dim = 512
    config.optimizer = ConfigDict(
        dict(
            name="adamw",
            learning_rate=5e-4,
            learning_rate_scaling="none",
            weight_decay=0.2,
            b2=0.98,
            eps=1e-6,
            warmup_steps=2000,
            exclude_ndim=1,
        )
    )


def captions_debug(config: ConfigDict) -> None:
    """Tiny pictures and a few steps; the caller shrinks the encoder. Of one's own pictures, some
    are read."""
    if "path" in config.data:
        config.data.update(dict(image_size=24, length=20, vocab_size=300, limit=64))
    else:
        config.data = ConfigDict(dict(name="image_text", length=20, train_size=64, test_size=32))
    config.views.image.size = 16
    config.batch_size = 16
    config.total_epochs = 1.0
    config.log_steps = 2
    if "warmup_epochs" in config.optimizer:
        del config.optimizer.warmup_epochs  # the steps below would win
    config.optimizer.warmup_steps = 1
    config.method.out_dim = 16
    config.evals.update(dict(every_epochs=1.0, batch_size=32))
    if "linear" in config.evals.protocols:
        config.evals.protocols.linear.update(dict(total_epochs=1.0, batch_size=16))


def crops(
    large: int,
    small: int,
    count: int,
    global_scale: tuple[float, float],
    local_scale: tuple[float, float],
    **changes: float,
) -> ConfigDict:
    """Two global crops by their own recipes and `count` local ones; the first of each size comes
    first by name."""
    return ConfigDict(
        dict(
            a_global1=dict(name="dino", crop="global1", size=large, scale=global_scale, **changes),
            b_global2=dict(name="dino", crop="global2", size=large, scale=global_scale, **changes),
            c_local=dict(
                name="dino", crop="local", size=small, scale=local_scale, copies=count, **changes
            ),
        )
    )
