"""A run that was not trained: a tiny network with the State of its start, in a workdir of its own,
for tests of what is done with a run."""

import numpy as np
from PIL import Image

from cl_jax.data.source import Splits, from_arrays
from cl_jax.training import configs, experiment, stages
from tests import small


def pictures(root, count=8, size=16):
    """A folder of `count` pictures of each of two kinds, dark and bright."""
    rng = np.random.default_rng(0)
    for number, label in enumerate(("cat", "dog")):
        for i in range(count):
            path = root / label / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(100 * number, 100 * number + 100, (size, size, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def run(workdir):
    """The workdir of a run of images of 16 by 16, at step 0."""
    config = configs.load("simclr_v1:debug")
    config.update({"batch_size": 8})
    config.evals.batch_size = 8
    with config.unlocked():
        config.data = {"name": "folder", "path": "nowhere", "image_size": 16}
    small.light(config, stages=0)
    fields = {"image": np.zeros((8, 16, 16, 3), np.uint8)}
    source = from_arrays("nowhere/train", fields, {})
    data = Splits(source, source)
    built = experiment.build(config, data=data)
    stages.keep(workdir, config, data, experiment.initial_state(built, config))
    return workdir


def sentences(workdir):
    """The workdir of a run of SimCSE's debug network, at step 0."""
    config = configs.load("simcse:debug")
    built = experiment.build(config)
    stages.keep(workdir, config, built.data, experiment.initial_state(built, config))
    return workdir
