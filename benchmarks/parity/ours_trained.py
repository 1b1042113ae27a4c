"""Our side of the trained comparison: cl_jax's own trainer, views and optimiser.

python benchmarks/parity/ours_trained.py CASE SEED FOLDER STEPS: trains on FOLDER/data, going on
from a checkpoint where there is one, and writes FOLDER/ours/CASE/STEPSsteps.seedSEED/features.npz.
CASE "views" writes FOLDER/ours/views.npz, what `view_statistics.py` reads.
"""

from pathlib import Path

import cases
import jax
import numpy as np
import view_statistics
from ml_collections import ConfigDict

from cl_jax.core import parallel
from cl_jax.core.parallel import EACH, SAME
from cl_jax.training import defaults, loop, metrics, stages
from cl_jax.views import image as images


def recipe(**changes):
    """The section of the common recipe."""
    return {
        "name": "simclr_cifar",
        "family": "tv",
        "crop": "tv",
        "interpolation": "bilinear",
        **cases.VIEW,
        **changes,
    }


def config_of(name, seed, folder, steps):
    """The case's config."""
    given = cases.TRAIN
    config = defaults.get_config().unlock()
    config.update(seed=seed, batch_size=given["batch"], checkpoint_steps=given["save_steps"])
    config.total_epochs = steps / (given["examples"] // given["batch"])
    config.data = ConfigDict(dict(name="packed", path=str(folder / "data")))
    config.encoder.update(depth=cases.DEPTH, width=cases.WIDTH, stem="cifar", variant="torchvision")
    config.views = ConfigDict(dict(both=dict(recipe(), copies=cases.views_of(name))))
    config.optimizer = ConfigDict(
        dict(
            name="sgd",
            learning_rate=given["learning_rate"],
            learning_rate_scaling="none",
            warmup_steps=round(given["warmup_share"] * steps),
            momentum=given["momentum"],
            weight_decay=given["weight_decay"],
        )
    )
    config.method = ConfigDict(dict(name=cases.CASES[name]["method"], **cases.TRAINED[name]))
    config.evals.update(every_epochs=0.0, baselines=False)
    config.evals.protocols = ConfigDict(dict(geometry={}))  # kNN is the common evaluator's
    return config


def features(built, state, pixels):
    """h of clean pixels [N, S, S, 3] of 0 to 1."""

    def of(state, images):
        return built.method.features(*built.method.evaluated(state), images, False)[0]["h"]

    encode = parallel.lift(of, built.mesh, (SAME, EACH), EACH)
    blocks = [pixels[at : at + 500] for at in range(0, len(pixels), 500)]
    return np.concatenate([np.asarray(encode(state, block)) for block in blocks])


def main(name, seed, folder, steps):
    folder = Path(folder)
    if name == "views":
        view_statistics.export(folder / "ours" / "views.npz", drawn)
        return
    workdir = folder / "ours" / name / f"{steps}steps.seed{seed}"
    loop.train(config_of(name, int(seed), folder, int(steps)), str(workdir / "run"))
    _, built, state = stages.load(str(workdir / "run"))
    clean = np.load(folder / "clean.npz")
    speeds = [
        r["examples_per_second"]
        for r in metrics.read(str(workdir / "run"))
        if "examples_per_second" in r
    ]
    np.savez(
        workdir / "features.npz",
        train=features(built, state, clean["train"]),
        test=features(built, state, clean["test"]),
        images_per_second=np.median(speeds),
        steps=int(state.step),
    )


def drawn(pixels, **changes):
    """One view of each image, uint8 [N, 32, 32, 3] to [N, S, S, 3]."""
    view = images.make(**recipe(**changes))
    keys = jax.random.split(jax.random.key(11), len(pixels))
    return np.asarray(jax.jit(lambda k, x: view.draw(k, {"image": x}))(keys, pixels))


if __name__ == "__main__":
    main(**cases.words(__doc__, **cases.OF_TRAINED))
