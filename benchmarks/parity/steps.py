"""Step for step against the peer: the same initial weights and views, ten steps of both programs.

    python benchmarks/parity/steps.py --peer-python=/path/to/python [--cases=simclr,byol]

Every case and type is two processes; what is finished is kept in
benchmarks/results/parity_steps.json and not run again (--fresh does). The peer's Python has torch,
lightly, torchvision and pytorch-metric-learning; this one has cl_jax.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cases
import numpy as np

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "parity_steps.json"
KINDS = ("loss", "gradient", "params", "target", "memory")


def difference(ours, theirs):
    """|a - b| / |b| over all arrays of the peer together, in the 2-norm."""
    apart = size = 0.0
    for key, value in theirs.items():
        if ours[key].shape != value.shape:
            raise ValueError(f"{key} is {ours[key].shape} here and {value.shape} in the peer.")
        a, b = ours[key].astype(np.float64), value.astype(np.float64)
        apart, size = apart + float(np.sum((a - b) ** 2)), size + float(np.sum(b**2))
    return (apart / max(size, 1e-300)) ** 0.5


def compare(stem, side="ours", other="peer"):
    """{kind: [relative difference of each step]}, and the arrays that the second side lacks."""
    ours, theirs = (dict(np.load(f"{stem}.{which}.npz")) for which in (side, other))
    found = {}
    for kind in KINDS:
        steps = []
        for step in range(cases.STEPS):
            start = f"{step}/{kind}"
            of_peer = {k: v for k, v in theirs.items() if k == start or k.startswith(f"{start}/")}
            if of_peer:
                steps.append(difference(ours, of_peer))
        if steps:
            found[kind] = steps
    # Only what is cancelled by a batch norm may be missing there.
    last = f"{cases.STEPS - 1}/params/"
    found["not_compared"] = sorted(
        k.removeprefix(last) for k in ours if k.startswith(last) and k not in theirs
    )
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--cases", default=",".join(cases.CASES))
    parser.add_argument("--types", default="float64,float32")
    parser.add_argument("--minutes", type=float, default=1e9, help="start nothing after so long")
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args()
    until = time.time() + 60 * args.minutes
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in args.cases.split(","):
        for dtype in args.types.split(","):
            if f"{name}.{dtype}" in kept and not args.fresh:
                continue
            if time.time() > until:
                return
            with tempfile.TemporaryDirectory() as folder:
                stem, given = f"{folder}/{name}.{dtype}", [name, dtype, folder]
                commands = [
                    [sys.executable, "ours.py", *given],
                    [args.peer_python, "peer.py", *given],
                ]
                if dtype == "float32":
                    commands.append([args.peer_python, "peer.py", *given, "float64"])
                codes = [
                    subprocess.run([python, str(HERE / script), *words]).returncode
                    for python, script, *words in commands
                ]
                if any(codes):
                    print(name, dtype, "failed", flush=True)
                    continue
                found = compare(stem)
                if dtype == "float32":
                    found["rounding"] = compare(stem, "peer", "control")
            kept[f"{name}.{dtype}"] = found
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
            shown = {k: f"{v[0]:.1e} {v[-1]:.1e}" for k, v in found.items() if k in KINDS}
            print(name, dtype, shown, found["not_compared"], flush=True)


if __name__ == "__main__":
    main()
