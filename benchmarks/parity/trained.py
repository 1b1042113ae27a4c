"""Trained side by side with the peer: CIFAR-10 at 16 pixels, both programs by one recipe, one
optimiser and one schedule; kNN by one evaluator on the features that both export.

    python benchmarks/parity/trained.py --data=PATH --peer-python=/path/to/python \\
        --workdir=runs/parity

PATH is a folder of train.npz and test.npz (`cl_jax.data.packed`). Sides alternate, each run is a
process on one core, and its images/s is the median over the run, augmentation included. A run goes
on from its last save; finished ones are kept in benchmarks/results/parity_trained.json. --minutes
stops after so long; the same command continues.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import cases
import numpy as np
import view_statistics

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "parity_trained.json"
KNN = {"knn200": (200, 0.1), "knn20": (20, 0.07)}


def prepare(folder, path):
    """The same 25,000 images of each class alike for both, and clean pixels at 16 by means of
    2 x 2."""
    if (folder / "clean.npz").exists():
        return
    from cl_jax.data import packed
    from cl_jax.data.source import fraction

    splits = packed.make(path=path)
    train = fraction(splits.train, cases.TRAIN["examples"] / splits.train.size, seed=0)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    clean = {}
    for part, source in (("train", train), ("test", splits.test)):
        image, label = source.arrays["image"], source.arrays["label"]
        np.savez(folder / "data" / f"{part}.npz", image=image, label=label)
        side = image.shape[1] // 2
        halves = image.reshape(len(image), side, 2, side, 2, 3).mean((2, 4)) / 255
        clean[part] = halves.astype(np.float32)
    np.savez(folder / "clean.npz", **clean)


def knn(train, labels, test, k, temperature):
    """Classes of test rows by the weighted votes of their k nearest, Wu et al. 2018."""
    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    found = []
    for at in range(0, len(test), 500):
        similar = test[at : at + 500] @ train.T
        near = np.argpartition(-similar, k, axis=1)[:, :k]
        weights = np.exp(np.take_along_axis(similar, near, 1) / temperature)
        votes = np.zeros((len(near), cases.CLASSES))
        np.add.at(votes, (np.arange(len(near))[:, None], labels[near]), weights)
        found.append(votes.argmax(1))
    return np.concatenate(found)


def measure(folder, side, name, seed, steps):
    """kNN and speed of a finished run."""
    found = np.load(folder / side / name / f"{steps}steps.seed{seed}" / "features.npz")
    labels = {p: np.load(folder / "data" / f"{p}.npz")["label"] for p in ("train", "test")}
    row = {"steps": int(found["steps"]), "images_per_second": float(found["images_per_second"])}
    for key, (k, temperature) in KNN.items():
        right = (
            knn(found["train"], labels["train"], found["test"], k, temperature) == labels["test"]
        )
        row[key] = float(right.mean())
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--cases", default=",".join(cases.TRAINED))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=cases.TRAIN["steps"])
    parser.add_argument("--minutes", type=float, default=1e9, help="start nothing after so long")
    args = parser.parse_args()
    folder, until = Path(args.workdir).expanduser().absolute(), time.time() + 60 * args.minutes
    prepare(folder, args.data)
    pythons = {"ours": sys.executable, "peer": args.peer_python}
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}, "views": {}}

    def run(side, *words):
        script = str(HERE / f"{side}_trained.py")
        subprocess.run([pythons[side], script, *map(str, words)], check=True)

    for side in pythons:
        if side not in kept["views"]:
            run(side, "views", 0, folder, 0)
            kept["views"][side] = view_statistics.statistics(folder / side / "views.npz")
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    for name in args.cases.split(","):
        for seed in range(args.seeds):
            for side in pythons:
                key = f"{name}.{side}.{seed}.{args.steps}"
                if key in kept["runs"]:
                    continue
                if time.time() > until:
                    return
                run(side, name, seed, folder, args.steps)
                kept["runs"][key] = measure(folder, side, name, seed, args.steps)
                RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
                print(key, kept["runs"][key], flush=True)


if __name__ == "__main__":
    main()
