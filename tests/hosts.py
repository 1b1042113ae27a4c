"""One process of a job whose machines do not share what they should; tests/training/test_hosts.py
starts it by launch/local.sh.

python -m tests.hosts FOLDER: prints what refuses a workdir, data and checkpoints that differ. The
data of process i are in FOLDER/data<i>.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
from ml_collections import ConfigDict

from cl_jax.core import parallel
from cl_jax.data.source import Splits, from_arrays, with_learnt
from cl_jax.training import checkpoint, configs, fingerprint, loop, resuming, stages, workdir
from configs import simclr_v1
from tests import processes


def main(folder):
    parallel.join()
    folder, index = Path(folder), jax.process_index()
    own, shared = folder / f"own{index}", folder / "shared"
    shared.mkdir(exist_ok=True)

    def refused(name, call):
        try:
            print(f"{name}: {call()}")
        except ValueError as error:
            print(f"{name}: {error}".replace("\n", " "))

    workdir.SEEN_WITHIN = 0.5
    config = loop.stages(simclr_v1.get_config("debug"), own)[0][1]
    config.batch_size = 17  # nothing trains, should the workdir be taken
    refused("own workdirs", lambda: loop.train(config, own))
    refused("an evaluation of own workdirs", lambda: loop.evaluate(own))
    refused("a shared workdir", lambda: loop.check_shared(shared))
    refused("a workdir that is not there", lambda: loop.check_shared(folder / "none"))

    source = from_arrays("parts", {"image": np.zeros((8, 2, 2, 3), np.uint8)}, {})
    data = ConfigDict({"data": {"path": str(folder / f"data{index}")}})
    splits = Splits(source, source)
    refused("data", lambda: fingerprint.check(shared, data, splits))
    data.data.path = str(folder / "data0")
    near, far = ({"mean": [0.1 + index * by], "words": ["a"] * (index + 1)} for by in (1e-12, 1.0))
    near["words"] = ["a"]
    refused("learnt alike", lambda: fingerprint.check(shared, data, with_learnt(splits, near)))
    refused("learnt else", lambda: fingerprint.check(shared, data, with_learnt(splits, far)))
    resuming.check_config(shared, configs.plain(config))
    config.data.path = str(folder / f"data{index}")
    with mock.patch.object(stages, "build", lambda *_: SimpleNamespace(data=splits)):
        refused("data of an evaluation", lambda: loop.evaluate(shared, config))

    if index == 0:
        for step in ("1", "2"):
            (own / "last" / step).mkdir(parents=True)
    refused("checkpoints", lambda: checkpoint.Checkpoints(own).restore(lambda: {}))


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = processes.flags()
    main(*sys.argv[1:])
