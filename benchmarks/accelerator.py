"""All that an accelerator is needed for, in one call of under 8 minutes: steps beside PyTorch's,
memory by the allocator against the plan, streamed losses, the speed run's first piece.

python benchmarks/accelerator.py [--seconds 460] [--data path/to/cifar10] [--parts memory,losses]
[--small]

Each part is a script of this folder in a process of its own, with a budget of seconds after which
it is stopped. After each part the record is written again, with what a stopped part has written
until then, so that a call that is cut keeps all it has. What is needed most comes first; a part
for which no time is left says "not run". A second call may name the parts that are missing: the
record's other parts stay.

  resnet50, vit_b16           the whole SimCLR step in bfloat16, PyTorch in turn where it is there
  memory                      the plan's memory by the allocator's peak (configs/simclr_v1:cifar10)
  losses                      NT-Xent, value and gradient, at 8,192 to 262,144 rows
  speedrun                    the first piece of speedrun_cifar10.py; wants --data, and its second
                              call continues there
  resnet50_f32, vit_b16_f32   the same steps in float32
  resnet18                    at 32 pixels, batch 512

`--small` runs small forms of all of them, which shows on a CPU that the program works.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import _timing

HERE = Path(__file__).resolve().parent
SHORTEST = 15.0  # seconds below which no part is started
GO_ON = 75  # the status of a speed run that stopped and was saved


class Part(NamedTuple):
    """A script, its arguments in full and in small, and the seconds it may take."""

    script: str
    full: list[str]
    small: list[str]
    budget: float


def throughput(case: str, dtype: str, budget: float) -> Part:
    full = [f"--cases={case}", f"--dtype={dtype}", "--repeats=7", f"--seconds={budget / 4:.0f}"]
    small = ["--small", "--repeats=3", "--no-peer", f"--cases={case}", "--dtype=float32"]
    return Part("throughput", full, small, budget)


PARTS = {
    "resnet50": throughput("resnet50", "bfloat16", 100),
    "vit_b16": throughput("vit_b16", "bfloat16", 100),
    "memory": Part("memory", [], ["--small"], 60),
    "losses": Part(
        "losses",
        ["--rows=8192,65536,262144,16384,32768,131072", "--repeats=7", "--seconds=5"],
        ["--rows=64", "--width=16", "--repeats=3", "--seconds=1"],
        60,
    ),
    "speedrun": Part(
        "speedrun_cifar10",
        ["--seeds=0", "--piece=75"],
        ["--small", "--seeds=0", "--target=0.05", "--epochs=1"],
        100,
    ),
    "resnet50_f32": throughput("resnet50", "float32", 80),
    "vit_b16_f32": throughput("vit_b16", "float32", 80),
    "resnet18": throughput("resnet18", "bfloat16", 60),
}


def run(name: str, part: Part, args: argparse.Namespace, budget: float) -> dict[str, Any]:
    """A part's record: its status, seconds, command, and what its script wrote."""
    folder = args.workdir / name
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "record.json"
    out.unlink(missing_ok=True)
    given = list(part.small if args.small else part.full) + [f"--out={folder / 'record'}"]
    if part.script == "speedrun_cifar10":
        given.append(f"--workdir={folder / 'run'}")
        given += [f"--data={args.data}"] if args.data else []
    command = [sys.executable, str(HERE / f"{part.script}.py"), *given]
    began = time.monotonic()
    with (folder / "log.txt").open("w") as log:
        # Of a session of its own: a script's own processes end with it.
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=HERE.parent, start_new_session=True
        )
        try:
            status = process.wait(timeout=budget)
            said = "done" if status in (0, GO_ON) else f"failed with status {status}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            said = f"stopped after {budget:.0f} s"
    found: dict[str, Any] = {
        "status": said,
        "seconds": round(time.monotonic() - began, 1),
        "command": " ".join(["python", f"benchmarks/{part.script}.py", *given]),
    }
    if out.exists():
        found["record"] = json.loads(out.read_text())
    if said != "done":
        found["log"] = (folder / "log.txt").read_text(errors="replace")[-3000:]
    clock = folder / "run" / "seed0" / "clock.json"
    if part.script == "speedrun_cifar10" and clock.exists():
        found["piece"] = json.loads(clock.read_text())
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=460.0, help="of the whole call")
    parser.add_argument("--parts", default=",".join(PARTS), help="in this order")
    parser.add_argument("--data", type=_timing.given_path, default=None, help="of the speed run")
    parser.add_argument("--small", action="store_true", help="to try the program")
    parser.add_argument("--workdir", type=_timing.given_path, default=None)
    parser.add_argument("--out", type=_timing.given_path, default=None)
    args = parser.parse_args(argv)
    name = "accelerator" + ("_small" if args.small else "")
    args.workdir = args.workdir or _timing.ROOT / "runs" / name
    names = args.parts.split(",")
    for one in names:
        if one not in PARTS:
            parser.error(f"part {one!r} is unknown; have {', '.join(PARTS)}.")
    end = time.monotonic() + args.seconds
    args.workdir.mkdir(parents=True, exist_ok=True)
    kept = args.workdir / "parts.json"
    parts: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    record: dict[str, Any] = {}
    for one in names:
        part, left = PARTS[one], end - time.monotonic()
        if part.script == "speedrun_cifar10" and not (args.data or args.small):
            parts[one] = {"status": "not run: --data names no folder of CIFAR-10"}
        elif left < SHORTEST:
            parts.setdefault(one, {"status": "not run: no time was left"})
        else:
            parts[one] = run(one, part, args, left if args.small else min(part.budget, left))
        print(one, parts[one]["status"], parts[one].get("seconds", ""), flush=True)
        kept.write_text(json.dumps(parts, indent=1) + "\n")
        record = facts(parts) | {"small": args.small, "parts": parts}
        _timing.write(name, record, report(parts), args.out)
    return 0 if all("failed" not in parts[one]["status"] for one in names) else 1


def facts(parts: dict[str, Any]) -> dict[str, Any]:
    """Machine and versions as the first part saw them: this process leaves the device alone."""
    for found in parts.values():
        record = found.get("record", {})
        if "machine" in record:
            keys = ("machine", "devices", "load", "flags", "versions", "date")
            return {key: record[key] for key in keys if key in record}
    return {
        "machine": "not known: no part wrote a record",
        "load": round(os.getloadavg()[0], 1),
        "versions": _timing.versions("jax", "jaxlib"),
        "date": time.strftime("%Y-%m-%d"),
    }


def report(parts: dict[str, Any]) -> str:
    rows = [[name, found["status"], found.get("seconds", "")] for name, found in parts.items()]
    lines = [_timing.table(["part", "", "s"], rows)]
    for name, found in parts.items():
        record = found.get("record", {})
        if "planned_by_measured" in record:
            lines.append(f"{name}: the plan is {record['planned_by_measured']:.3f} of the peak.")
        for case in record.get("cases", ()):
            of = f"{name}, batch {case['batch']}, {record['dtype']}"
            timed = [
                [kind, 1e3 * row["seconds"], row["images_per_second"], row["mfu"] or ""]
                for kind, row in case["rows"].items()
            ]
            lines.append(_timing.table([of, "ms", "images/s", "of the peak"], timed))
            if case["ratio_to_peer"]:
                lines.append(f"{name}: {case['ratio_to_peer']:.3f} of PyTorch's time.")
        if "results" in record:
            timed = [
                [rows, form, 1e3 * found["seconds"]]
                for rows, forms in record["results"].items()
                for form, found in forms.items()
                if found.get("seconds")
            ]
            lines.append(_timing.table(["rows", "loss", "ms"], timed))
    return "\n\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
