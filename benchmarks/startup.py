"""How long a start takes, as whole processes: --help, imports, and a run to its first step without
and with the cache.

python benchmarks/startup.py [--config configs/simclr_v2.py] [--programs] [--small]

`python -m cl_jax.main --help` (goal: under 2 s); `import cl_jax.losses` against `import jax` (goal:
under 0.3 s more), in turn; and one config from the command line to its first logged step, first
with an empty folder for compiled programs and then with what the first start left there (goal: the
second under a third of the first). That time is all of it: imports, data, initialisation,
compilation. Python keeps its bytecode, as it does where PYTHONDONTWRITEBYTECODE is not set. A
logged step is the "time" of metrics.jsonl's first row with a loss, which is written one step late.
Processes are stopped as soon as it is there.

`--programs` also says what the first State and the first step cost this process, tracing and
compilation from nothing included. Times are of the wall's clock and, in a second column, of the
processes' processor time, which others on the machine disturb less.
"""

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _timing

COMMANDS = {
    "python": ["-c", "pass"],
    "--help": ["-m", "cl_jax.main", "--help"],
    "import jax": ["-c", "import jax"],
    "import cl_jax.losses": ["-c", "import cl_jax.losses"],
}


def children() -> float:
    """Processor time of the processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def first_step(
    config: str, folder: Path, workdir: Path, limit: float, settings: list[str]
) -> float:
    """Seconds from the command to the first step of a run that is written down."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONDONTWRITEBYTECODE": "",  # the sources would be compiled at every start
    }
    command = [
        sys.executable,
        "-m",
        "cl_jax.main",
        f"--config={config}",
        f"--workdir={workdir}",
        "--config.log_steps=1",
        *settings,
    ]
    with tempfile.TemporaryFile() as errors:
        began = time.time()
        process = subprocess.Popen(
            command, cwd=_timing.ROOT, env=environment, stdout=errors, stderr=errors
        )
        try:
            while time.time() - began < limit:
                logs = workdir.rglob(
                    "metrics.jsonl"
                )  # a config of several stages writes it into its first one's folder
                rows = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
                steps = [row["time"] for row in rows if "loss" in row]
                if steps:
                    return steps[0] - began
                if process.poll() is not None:
                    errors.seek(0)
                    raise RuntimeError(
                        f"{' '.join(command)} ended before its first "
                        f"step:\n{errors.read().decode()[-2000:]}"
                    )
                time.sleep(0.02)
            raise TimeoutError(f"{' '.join(command)} took more than {limit:.0f} s.")
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()


def programs(config: str) -> dict[str, float]:
    """Processor seconds of the first State and of the first step, without a cache of programs."""
    import jax

    from cl_jax.training import configs, experiment, stages
    from cl_jax.training.steps import stepper

    jax.config.update("jax_enable_compilation_cache", False)
    _, chosen, _ = stages.stages(configs.load(config), "unused")[0]
    built = experiment.build(chosen)
    found, state = {}, None

    def start() -> None:
        nonlocal state
        state = jax.block_until_ready(experiment.initial_state(built, chosen))

    found["the first State"] = _timing.seconds(start)[1]
    steps = stepper(built, chosen, 0)
    found["the first step"] = _timing.seconds(lambda: jax.block_until_ready(steps(state)))[1]
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/simclr_v2.py")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="--config.name=value",
        help="passed on to the run",
    )
    parser.add_argument("--repeats", type=int, default=7, help="of the short commands")
    parser.add_argument(
        "--starts", type=int, default=3, help="pairs of a first and a second start; 0 for none"
    )
    parser.add_argument("--programs", action="store_true")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a start may take")
    parser.add_argument(
        "--small", action="store_true", help="one pair of a tiny run, to try the program"
    )
    parser.add_argument("--out", type=_timing.given_path, default=None)
    args = parser.parse_args(argv)
    if args.programs:
        _timing.prepare(cache=False)
    if args.small:
        args.config, args.repeats, args.starts = "configs/simclr_v2.py:debug", 3, 1

    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(1)
    )  # through `finally`: no run is left behind

    def ran(arguments: list[str]) -> None:
        subprocess.run(
            [sys.executable, *arguments],
            cwd=_timing.ROOT,
            check="--help" not in arguments,
            capture_output=True,
        )

    times, processor = _timing.in_turn(
        {name: lambda a=arguments: ran(a) for name, arguments in COMMANDS.items()},
        repeats=args.repeats,
        processor=children,
    )
    starts: dict[str, list[float]] = {"first": [], "second": []}
    started: dict[str, list[float]] = {"first": [], "second": []}
    for _ in range(args.starts):
        with tempfile.TemporaryDirectory() as place:
            for which in starts:
                used = children()
                took = first_step(
                    args.config, Path(place) / "cache", Path(place) / which, args.limit, args.set
                )
                starts[which].append(took)
                started[which].append(children() - used)
                print(
                    f"{which} start of {args.config}: {took:.2f} s, processor "
                    f"{started[which][-1]:.2f} s",
                    flush=True,
                )
    medians = {name: statistics.median(values) for name, values in times.items()}
    extra, extra_processor = (
        statistics.median(a - b for a, b in zip(clock["import cl_jax.losses"], clock["import jax"]))
        for clock in (times, processor)
    )
    record = _timing.facts("flax", "optax", repeats=args.repeats) | {
        "config": args.config,
        "settings": args.set,
        "seconds": times,
        "processor_seconds": processor,
        "medians": medians,
        "losses_beyond_jax": extra,
        "losses_beyond_jax_processor": extra_processor,
        "starts": starts,
        "starts_processor": started,
    }
    rows = [
        [
            name,
            medians[name],
            min(times[name]),
            max(times[name]),
            statistics.median(processor[name]),
        ]
        for name in COMMANDS
    ]
    rows += [
        [
            f"{which} start to its first step",
            statistics.median(values),
            min(values),
            max(values),
            statistics.median(started[which]),
        ]
        for which, values in starts.items()
        if values
    ]
    text = _timing.table(["", "s, median", "fastest", "slowest", "processor s, median"], rows)
    text += (
        f"\n\n`import cl_jax.losses` takes {extra:.2f} s more than `import jax` "
        f"({extra_processor:.2f} s of processor)."
    )
    if args.starts:
        wall, used = (_timing.ratio(clock, "second", "first") for clock in (starts, started))
        record |= {"second_by_first": wall, "second_by_first_processor": used}
        text += (
            f" The second start of {args.config} takes {wall:.2f} of the first's time "
            f"({used:.2f} by processor)."
        )
    if args.programs:
        record["programs_processor"] = costs = programs(args.config)
        text += " Compiled from nothing, in processor time: " + ", ".join(
            f"{name} {value:.1f} s" for name, value in costs.items()
        )
        text += "."
    _timing.write("startup" + ("_small" if args.small else ""), record, text, args.out)


if __name__ == "__main__":
    main()
