"""CMC on film (Tian et al. 2020, arXiv 1906.05849, section 4.2).

A frame, a frame near it and the optical flow around it are views of one moment of a film. One
network reads frames, another one flows. A frame must find its neighbour and its flow among those of
other clips, and they must find it.

Default: the embedded `moving_scenes`, digits that move in four directions at two speeds, clips of
  eight frames; a small ResNet for each stream, two CPU cores.

Variants:
  ventral  frames and their neighbours alone.
  dorsal   frames and their flow alone.
  bank     rows of a memory bank for each network in place of the batch, as the authors' code for
           images.
  folder   your own films or clips: set --config.data.path. Pieces of 12 frames at 64 pixels.
  debug    any of them in seconds.

Differences from the paper, whose authors released no code for film:
  - Negatives are the other clips of the batch by default; theirs are of a memory bank.
  - Flow is by Lucas and Kanade's method, computed on the device for each view; theirs was TV-L1,
    stored before training. Three flows make a stack; theirs had ten.
  - A ResNet in place of CaffeNet, at 24 pixels by default.
  - Evaluation is by probes of the embedded data's labels and by the order of frames; theirs is
    fine-tuning on UCF101 and HMDB51. Published: 59.1 % and 26.7 %.

Command: python -m cl_jax.main --config=configs/cmc_video.py --workdir=runs/cmc_video
Reached: after 640 steps of one seed, the order of three frames is right for 97.9 % of the clips
  from the frame's features (untrained 76.2 %, raw pixels 82.4 %), the digit of a frame at 35.1 %
  (untrained 11.6 %), the motion at 99.1 % (untrained 100 %: the flow itself shows it). 257 s of one
  core's time.
"""

from ml_collections import ConfigDict

from cl_jax.training import defaults

VARIANTS = ("ventral", "dorsal", "bank", "folder", "debug")


def get_config(arg: str | None = None) -> ConfigDict:
    chosen = defaults.variants(arg, VARIANTS)
    config = defaults.get_config()
    defaults.laptop(config)
    config.data = ConfigDict(dict(name="moving_scenes"))
    config.views = ConfigDict(
        dict(
            streams=dict(
                kind="streams",
                gap=2,
                fields=3,
                levels=2,
                name="simclr_crop_flip",
                size=24,
                scale=(0.7, 1.0),
                flip=0.0,
                family="tv",
                crop="tv",
                interpolation="bilinear",
                test_crop=1.0,
                jitter=0.8,
                brightness=0.4,
                contrast=0.4,
                saturation=0.4,
                hue=0.5,
                gray=0.2,
            )
        )
    )
    network = dict(
        name="resnet", depth=10, width=0.25, stem="cifar", variant="torchvision", dtype="float32"
    )
    config.encoder = ConfigDict(dict(frame=dict(network), flow=dict(network)))
    config.method = ConfigDict(dict(name="cmc_video", temperature=0.1, head="moco_v2", out_dim=64))
    config.optimizer.learning_rate = 2e-3
    config.total_epochs = 10.0
    config.evals.every_epochs = 5.0
    config.evals.protocols = ConfigDict(
        dict(
            digit_of_frame=dict(name="logistic", label="label", feature="frame"),
            motion=dict(name="logistic", label="motion", feature="h"),
            frame_order=dict(),
        )
    )
    if "ventral" in chosen or "dorsal" in chosen:
        config.method.edges = ("neighbour",) if "ventral" in chosen else ("flow",)
    if "bank" in chosen:
        config.method.update(dict(negatives="bank", num_negatives=512))
    if "folder" in chosen:
        config.data = ConfigDict(dict(name="video", path="", frames=12, image_size=72))
        config.views.streams.update(dict(size=64, gap=4, fields=5, levels=3))
        config.encoder.frame.update(dict(depth=18, width=0.5, stem="imagenet"))
        config.encoder.flow.update(dict(depth=18, width=0.5, stem="imagenet"))
        config.evals.protocols = ConfigDict(dict(frame_order=dict()))
    if "debug" in chosen:
        if config.data.name == "moving_scenes":
            config.data.update(dict(frames=6, train_size=64, test_size=32))
        else:
            config.data.limit = 64
        config.views.streams.update(dict(size=12, gap=2, fields=2, levels=1))
        for role in config.encoder.values():
            role.update(dict(depth=10, width=0.125, stem="cifar"))
        config.method.out_dim = 16
        if "bank" in chosen:
            config.method.num_negatives = 24
        config.batch_size, config.total_epochs, config.log_steps = 16, 1.0, 2
        config.evals.update(dict(every_epochs=1.0, batch_size=32))
    return config
