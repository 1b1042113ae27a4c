"""iBOT (Zhou et al. 2021, arXiv 2111.07832; DINOv2: Oquab et al. 2023, arXiv 2304.07193).

DINO on the class token, and the same distillation at hidden patches: the student sees crops with
patches hidden, its slow copy, the teacher, sees them whole, and the student must give the teacher's
distribution over prototypes at each hidden place. Evaluations read the teacher.

Default: scikit-learn's digits at 16 pixels, a small transformer on patches of 4, two global crops,
24 epochs, two CPU cores. Pictures of `scenes` share so little that DINO's loss alone did not
learn their digit in 400 steps of such a network, and did with patches and KoLeo ("iBOT" in
docs/results.md). Not the authors': batch norm in the head, a teacher balanced by Sinkhorn and five
times as sharp as the student, fixed positions.

Variants:
  folder        your own images: `cl-jax train ibot:folder PATH`.
  cifar10       ViT-Ti on patches of 4, 4,096 prototypes, batch 256, 800 epochs, two global and four
                local crops. No setting of the authors.
  imagenet2012  ViT-S/16: batch 1024, 100 epochs, 2x224 + 10x96 crops, AdamW 5e-4 x B/256, weight
                decay 0.04 to 0.4. Published: 75.2 % kNN, 77.9 % linear after 800 epochs (README of
                the authors' code).
  scenes        lightness of pictures of `scenes`, half of the pairs of two that share a digit,
                twelve epochs; run with `dinov2`.
  dino          of any of them without the loss of the patches and without masks: DINO alone on the
                same network.
  dinov2        of any of them DINOv2's recipe: KoLeo, the teacher balanced by Sinkhorn, one
                temperature that rises by step, rate 0.004 sqrt(B/1024) on ImageNet. Published:
                81.6 % kNN, 82.9 % linear of a ViT-L/16 after 100 epochs of 1,250 steps, centred in
                place of balanced (README of the authors' code).
  debug         any of them in seconds.

Differences from the authors' code:
  - Features are "h" and "blocks", the class tokens of the last four blocks; logits are not among
    them.
  - Dropped paths and masks are drawn by example. DINOv2 hides patches in exactly half of the crops
    of each device's batch, with shares spread evenly; here each crop has its own coin and share.
  - KoLeo's neighbours are sought in the global batch, theirs among each device's rows.
  - `dinov2`: no decay of the rate over layers, nor a fifth of it for the patch embedding, no
    LayerScale, and the parts' gradients are clipped together, not backbone and heads apart. The
    last layer's moments rest while it is frozen; theirs move at a rate of 0. The probability of
    dropping a path rises from 0 in the first block to 0.3 in the last; theirs is 0.3 in all.
  - Matrix products are in bfloat16, theirs in float16.

Command: python -m cl_jax.main --config=configs/ibot.py --workdir=runs/ibot
Reached: see docs/results.md.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults

VARIANTS = ("folder", "scenes", "cifar10", "imagenet2012", "dino", "dinov2", "debug")


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, VARIANTS)
    config = defaults.get_config()
    defaults.laptop(config)
    config.encoder = ConfigDict(
        dict(
            name="vit",
            size="tiny",
            width=64,
            depth=3,
            heads=2,
            patch=4,
            image_size=16,
            variant="mae",  # Xavier's weights: 0.02 is too small for this width
            drop_path=0.0,
            mask_token=True,
            dtype="float32",
        )
    )
    config.total_epochs = 24.0
    config.method = ConfigDict(
        dict(
            name="ibot",
            num_prototypes=64,
            hidden_dim=128,
            bottleneck_dim=64,
            head_norm=True,
            norm_last_layer=True,
            momentum=0.96,
            centring="sinkhorn",
            teacher_temperature=0.02,
            patch_temperature=0.02,
            teacher_temperature_start=0.02,
            teacher_warmup_epochs=0,
        )
    )
    held = dict(exclude_ndim=1, freeze_epochs=1.0, freeze_paths=("last_layer",))
    config.optimizer.update(dict(held, learning_rate=1e-3, clip_tensor_norm=3.0))
    published = dict(
        held,
        name="adamw",
        learning_rate=5e-4,
        learning_rate_scaling="linear",
        schedule="linspace_warmup_cosine",
        final_learning_rate=1e-6,
        weight_decay=0.04,
        final_weight_decay=0.4,
        warmup_epochs=10.0,
        clip_tensor_norm=3.0,
    )
    if "folder" in chosen:
        defaults.folder(config, get_config("imagenet2012"))
        config.encoder.update(dict(patch=8, image_size=64, width=96, depth=4, heads=3))
        config.method.update(dict(hidden_dim=256, momentum=0.99))
    if "cifar10" in chosen:
        config.encoder = defaults.get_config().encoder
        defaults.cifar10(config)
        config.encoder = ConfigDict(
            dict(
                name="vit",
                size="tiny",
                patch=4,
                image_size=32,
                variant="dino",
                mask_token=True,
                dtype="float32",
            )
        )
        config.batch_size, config.total_epochs = 256, 800.0
        config.method = ConfigDict(
            dict(name="ibot", num_prototypes=4096, norm_last_layer=True, momentum=0.9995)
        )
        config.views = defaults.crops(32, 16, 4, (0.4, 1.0), (0.1, 0.4), blur=0.0, test_crop=1.0)
        config.optimizer = ConfigDict(published)
    if "imagenet2012" in chosen:
        config.encoder = defaults.get_config().encoder
        defaults.imagenet2012(config)
        config.encoder = ConfigDict(
            dict(
                name="vit",
                size="small",
                patch=16,
                variant="dino",
                drop_path=0.1,
                mask_token=True,
                dtype="bfloat16",
            )
        )
        config.batch_size, config.total_epochs = 1024, 100.0
        config.method = ConfigDict(dict(name="ibot"))
        config.views = defaults.crops(224, 96, 10, (0.25, 1.0), (0.05, 0.25))
        config.optimizer = ConfigDict(published)
        config.evals.protocols.knn.update(dict(k=20, temperature=0.07))
    if "scenes" in chosen:
        if len(set(chosen) & set(VARIANTS[:4])) > 1:
            raise defaults.UnknownVariant("variant scenes is another data set; give one.")
        config.views = ConfigDict(dict(a_global=defaults.lightness(copies=2)))
        config.total_epochs = 12.0
    elif config.data.name == "scenes":  # no variant has set another
        config.data = ConfigDict(dict(name="digits"))
        grey = dict(mean=(0.5,), std=(0.5,))
        crop = dict(name="crop_flip", size=16, scale=(0.5, 1.0), flip=0.0, test_crop=1.0)
        config.views = ConfigDict(dict(a_global=crop | grey | dict(copies=2)))
        config.evals.every_epochs = 24.0
        config.evals.protocols = ConfigDict(dict(knn=dict(k=20), logistic=dict(), geometry=dict()))
    if "dino" in chosen:
        if "dinov2" in chosen:
            raise defaults.UnknownVariant("variants dino and dinov2 exclude each other; give one.")
        config.method.update(dict(patch_weight=0.0, mask_probability=0.0))
    if "dinov2" in chosen:
        config.method.update(
            dict(
                koleo_weight=0.1,
                centring="sinkhorn",
                temperature_per_step=True,
                centre_hidden=True,
            )
        )
        if "imagenet2012" in chosen:
            config.method.update(dict(num_prototypes=65536, momentum=0.992, smallest_block=4))
            config.encoder.drop_path = 0.3
            config.views = defaults.crops(224, 96, 8, (0.32, 1.0), (0.05, 0.32))
            config.optimizer.update(
                dict(learning_rate=0.004 / 32, learning_rate_scaling="sqrt", clip_global_norm=3.0)
            )
            config.optimizer.clip_tensor_norm = None
    if "debug" in chosen:
        config.encoder.update(
            dict(width=32, depth=2, heads=2, patch=4, image_size=16, dtype="float32")
        )
        for name in config.views:  # the patch divides the side
            config.views[name].size = 16 if "global" in name else 8
        embedded = config.data.name == "digits"
        defaults.debug(config)
        if embedded:  # grey as well
            config.data = ConfigDict(dict(name="glyphs", train_size=64, test_size=32))
        config.method.update(dict(num_prototypes=32, hidden_dim=32, bottleneck_dim=16))
        config.optimizer.freeze_epochs = 0.25
    return config
