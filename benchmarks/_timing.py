"""What every benchmark here shares: where it ran, runs in turn, medians and ratios, records on
disk.

A shared machine has slow minutes. So all forms of a comparison are built first and then run in
turn, again and again, in an order that turns by one each time around: a slow minute hits all of
them. A ratio is the median over the rounds of one form's time by another's in the same round. On a
CPU that others use at the same time, the clock on the wall mostly measures them: there the
processor time of the process is recorded too, and says more.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))  # for `configs`, which is no part of the installed package


def prepare(cache: bool = True) -> str:
    """Before jax is imported: XLA's flags as the trainer sets them, and its cache of
    programs.

    Returns the flags that were added.
    """
    from cl_jax.core import xla

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    added = xla.prepare()
    if cache:
        import jax

        home = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(Path(home) / "cl_jax"))
        jax.config.update("jax_compilation_cache_dir", folder)
    return added


def given_path(text: str) -> Path:
    """A path of a command line, `~` and `file:` as the package reads them."""
    from cl_jax.core.paths import user_path

    try:
        return user_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def facts(
    *libraries: str, repeats: int | None = None, machine: str | None = None
) -> dict[str, Any]:
    """Machine, versions, flags and date of a record; `libraries` are named besides jax and
    jaxlib."""
    import jax

    return {
        "machine": machine or processor(),
        "devices": [device.device_kind for device in jax.devices()],
        "load": round(os.getloadavg()[0], 1),
        "flags": os.environ.get("XLA_FLAGS", ""),
        "versions": versions("jax", "jaxlib", *libraries),
        "date": time.strftime("%Y-%m-%d"),
        **({} if repeats is None else {"repeats": repeats}),
    }


def processor() -> str:
    """The accelerator's name, or how many cores of which CPU this process may use."""
    import jax

    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{len(jax.devices())} x {device.device_kind}"
    name = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = [
            line.split(":")[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        name = found[0] if found else name
    return f"{cores()} of {os.cpu_count()} cores of an {name}"


def cores() -> int:
    """The cores that this process may use (taskset)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(*names: str) -> dict[str, str]:
    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    return {"python": platform.python_version()} | {name: version(name) for name in names}


class Times(NamedTuple):
    """Seconds of each form in each round: on the wall, and of the process's processor time over all
    its threads."""

    wall: dict[str, list[float]]
    processor: dict[str, list[float]]


def seconds(
    run: Callable[[], Any], processor: Callable[[], float] = time.process_time
) -> tuple[float, float]:
    """(wall, processor) of one call, which must not return before its work is done."""
    start, used = time.perf_counter(), processor()
    run()
    return time.perf_counter() - start, processor() - used


def in_turn(
    runs: Mapping[str, Callable[[], Any]],
    *,
    repeats: int,
    limit: float = float("inf"),
    warm: int = 1,
    between: bool = False,
    processor: Callable[[], float] = time.process_time,
) -> Times:
    """Runs each form in turn, in rounds.

    Args:
      runs: name -> one run, which returns when its work is done.
      repeats: rounds; at least three are made, and no more once they have taken `limit` seconds.
      warm: untimed runs of each form first.
      between: an untimed run before each timed one too: for forms so short that caches decide,
        or whose memory the system takes back while the others run.
      processor: the processor time used so far, of this process or, for forms that are processes,
        of its children.
    """
    for run in runs.values():
        for _ in range(warm):
            run()
    found = Times({name: [] for name in runs}, {name: [] for name in runs})
    order, began = list(runs), time.perf_counter()
    for number in range(repeats):
        if number >= 3 and time.perf_counter() - began > limit:
            break
        for name in order:
            if between:
                runs[name]()
            for times, value in zip(found, seconds(runs[name], processor)):
                times[name].append(value)
        order = order[1:] + order[:1]
    return found


def ratio(times: Mapping[str, list[float]], above: str, below: str) -> float:
    """Time of one form by another's: the median over rounds."""
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def spread(values: list[float]) -> str:
    """Median with the fastest and the slowest, in milliseconds."""
    return (
        f"{1e3 * statistics.median(values):,.4g} ms ({1e3 * min(values):,.4g} to "
        f"{1e3 * max(values):,.4g})"
    )


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; floats to four digits."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        return "not run" if value is None else str(value)

    return "\n".join(
        "| " + " | ".join(map(cell, row)) + " |" for row in [head, ["---"] * len(head), *rows]
    )


def write(name: str, record: dict[str, Any], text: str, out: Path | None = None) -> Path:
    """Writes <out or results/name>.json and .md, prints the text, returns the path of the JSON."""
    path = (out or RESULTS / name).with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    versions_of = ", ".join(
        f"{library} {version}" for library, version in record["versions"].items()
    )
    text = (
        f"{text}\n\n{record['machine']}, load {record['load']}; {versions_of}; {record['date']}.\n"
    )
    path.with_suffix(".md").write_text(text)
    print(text, flush=True)
    return path
