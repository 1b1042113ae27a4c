"""One process of a job that trains the small method; tests/training/test_processes.py starts it by
launch/local.sh.

python -m tests.processes FOLDER [FROM]: trains from the start, or from the checkpoint in FROM, to
the end, saves half way, and leaves in FOLDER what it came to and which examples each process read.
"""

import os
import sys
from pathlib import Path

import jax
import numpy as np

from cl_jax.checks import verify
from cl_jax.core import parallel
from cl_jax.data import batches
from cl_jax.training import checkpoint
from cl_jax.training.experiment import initial_state
from cl_jax.training.steps import stepper
from tests import small

HALF = small.STEPS // 2


def flags():
    """This process's XLA_FLAGS for another one; how many devices that has, its launcher says."""
    given = os.environ.get("XLA_FLAGS", "").split()
    return " ".join(flag for flag in given if "device_count" not in flag)


def outcome_of(folder, like):
    """What the job left in a folder, as an Outcome with a State like this one."""
    with np.load(folder / "outcome.npz") as arrays:
        leaves = [arrays[f"leaf{i}"] for i in range(len(jax.tree.leaves(like)))]
        return verify.Outcome(
            arrays["loss"],
            arrays["grad_norm"],
            jax.tree.unflatten(jax.tree.structure(like), leaves),
        )


def train(folder, start=None, devices=None, resident=True):
    """Trains to the end and saves half way; `start`: a folder with the checkpoint to go on from.
    Returns the Outcome of the steps done, and the State half way in NumPy (None when it went on
    from there)."""
    config, built = small.config(devices or 0), small.built(devices, resident=resident)
    state, half = initial_state(built, config), None
    if start is not None:
        store = checkpoint.Checkpoints(start)
        state = store.restore(state)
        store.close()
    store, steps, rows = checkpoint.Checkpoints(folder), stepper(built, config, int(state.step)), []
    while steps.step < small.STEPS:
        state, values = steps(state)
        rows.append((values["loss"], values["grad_norm"]))
        if steps.step == HALF and start is None:
            store.save(state)
            half = parallel.fetch(state)
    store.close()
    loss, norm = (np.array(column) for column in zip(*parallel.fetch(rows)))
    return verify.Outcome(loss, norm, parallel.fetch(state)), half


def main(folder, start=None):
    """Whole job: images from the host, batch by batch, so that each process reads its own rows."""
    parallel.join()
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    index, count = jax.process_index(), jax.process_count()
    result, _ = train(folder, start, resident=False)
    if start is None:
        resident, _ = train(folder / "resident")
        assert verify.differences(result, resident) == dict.fromkeys(
            verify.differences(result, result), 0.0
        )
    source = small.built(None, resident=False).data.train
    mine = batches.host_batches(
        source,
        batch_size=small.BATCH,
        seed=3,
        start_step=0,
        steps=small.STEPS,
        process_index=index,
        process_count=count,
    )
    np.save(folder / f"ids{index}.npy", np.stack([batch["id"] for batch in mine]))
    if index == 0:
        leaves = {f"leaf{i}": leaf for i, leaf in enumerate(jax.tree.leaves(result.state))}
        np.savez(folder / "outcome.npz", loss=result.loss, grad_norm=result.grad_norm, **leaves)
    print(
        f"process {index + 1} of {count} is done: {len(jax.local_devices())} of "
        f"{jax.device_count()} devices"
    )


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = flags()
    main(*sys.argv[1:])
