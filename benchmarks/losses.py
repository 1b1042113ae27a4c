"""NT-Xent, value and gradient: time and temporaries of the streamed form and of what else there is.

python benchmarks/losses.py --rows 256,1024,4096 --width 128 --out benchmarks/results/losses

Forms: `cl_jax` streamed and plain, `optax.losses.ntxent`, and where torch is installed PyTorch's
plain form, lightly's NTXentLoss and pytorch-metric-learning's. For each number of rows (both views
counted) all forms are built first and then run in turn, again and again, so that a slow minute of a
shared machine hits all of them; medians are reported. A form that follows a large one finds cold
caches and busy threads, which at 256 rows once made a form four times slower than its equal: so the
order turns by one form each time around, and each timed run follows an untimed one of the same
form.

JAX's temporaries are those of the compiled program, CUDA's the peak above the inputs; a form whose
temporaries are above --max-gib is compiled but not run, and one is repeated no more than --seconds,
but at least three times; a form whose first run alone takes longer is timed by that run. Up to the
tile's own size, 1,024 rows on a CPU, the streamed form is one tile. All forms have as many threads
as the process has cores (taskset). Writes <out>.md, <out>.json and <out>.png."""

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import _timing
import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.losses import nt_xent
from cl_jax.losses.contrast import OTHER_TILE, TILE

TEMPERATURE = 0.1
FORMS = (
    "cl_jax streamed",
    "cl_jax plain",
    "optax",
    "PyTorch plain",
    "lightly",
    "pytorch-metric-learning",
)
NEEDS = {
    "optax": "optax",
    "PyTorch plain": "torch",
    "lightly": "lightly",
    "pytorch-metric-learning": "pytorch_metric_learning",
}
GIB = 2**30


class Built(NamedTuple):
    """run: () -> loss, after the gradient is there; None where the form is not run, and note says
    why."""

    run: Callable[[], float] | None
    temporaries: int | None
    note: str = ""


def jax_form(loss, z, max_bytes) -> Built:
    step = jax.jit(jax.value_and_grad(loss))
    compiled = step.lower(jax.ShapeDtypeStruct(z.shape, z.dtype)).compile()
    temporaries = int(compiled.memory_analysis().temp_size_in_bytes)
    if temporaries > max_bytes:
        return Built(None, temporaries, "not run")

    def run():
        value, grad = compiled(z)
        jax.block_until_ready(grad)
        return float(value)

    return Built(run, temporaries)


def streamed(z, max_bytes):
    block = TILE.get(jax.default_backend(), OTHER_TILE)
    return jax_form(
        lambda z: nt_xent(*jnp.split(z, 2), temperature=TEMPERATURE, block_size=block), z, max_bytes
    )


def plain(z, max_bytes):
    return jax_form(
        lambda z: nt_xent(*jnp.split(z, 2), temperature=TEMPERATURE, block_size=0), z, max_bytes
    )


def optax_form(z, max_bytes):
    import optax

    labels = jnp.tile(jnp.arange(z.shape[0] // 2), 2)
    return jax_form(lambda z: optax.losses.ntxent(z, labels, temperature=TEMPERATURE), z, max_bytes)


def torch_form(make, z, max_bytes, device):
    import torch

    # PyTorch programs of this loss were measured to hold 16 to 28 bytes per logit in float32;
    # pytorch-metric-learning compares each positive with all negatives, in booleans and in floats.
    if (5 * z.shape[0] ** 3 if make is metric_learning else 28 * z.shape[0] ** 2) > max_bytes:
        return Built(None, None, "not run")
    dtype = torch.bfloat16 if z.dtype == jnp.bfloat16 else torch.float32
    given = torch.tensor(np.asarray(z, np.float32), device=device).to(dtype).requires_grad_()
    loss = make(torch, given.shape[0] // 2, device)

    def run():
        given.grad = None
        value = loss(given)
        value.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        return float(value.detach())

    if device != "cuda":
        return Built(run, None)
    run()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return Built(run, torch.cuda.max_memory_allocated() - before)


def torch_plain(torch, pairs, device):
    positive = torch.arange(2 * pairs, device=device).roll(pairs)
    own = torch.eye(2 * pairs, dtype=torch.bool, device=device)

    def loss(z):
        z = torch.nn.functional.normalize(z, dim=1)
        s = ((z @ z.T) / TEMPERATURE).float().masked_fill(own, -torch.inf)
        return torch.nn.functional.cross_entropy(s, positive)

    return loss


def lightly_form(torch, pairs, device):
    criterion = importlib.import_module("lightly.loss").NTXentLoss(temperature=TEMPERATURE)
    return lambda z: criterion(z[:pairs], z[pairs:])


def metric_learning(torch, pairs, device):
    criterion = importlib.import_module("pytorch_metric_learning.losses").NTXentLoss(
        temperature=TEMPERATURE
    )
    labels = torch.arange(pairs, device=device).repeat(2)
    return lambda z: criterion(z, labels)


def installed(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def makers() -> dict[str, Callable]:
    """The forms whose libraries are installed."""
    have = {form: form not in NEEDS or installed(NEEDS[form]) for form in FORMS}
    device = "cpu"
    if have["PyTorch plain"]:
        torch = importlib.import_module("torch")
        torch.set_num_threads(_timing.cores())
        device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    every = {
        "cl_jax streamed": streamed,
        "cl_jax plain": plain,
        "optax": optax_form,
        "PyTorch plain": partial(torch_form, torch_plain, device=device),
        "lightly": partial(torch_form, lightly_form, device=device),
        "pytorch-metric-learning": partial(torch_form, metric_learning, device=device),
    }
    return {form: make for form, make in every.items() if have[form]}


def measure(
    rows: int, width: int, dtype, repeats: int, limit: float, max_bytes: int
) -> dict[str, dict]:
    z = jax.random.normal(jax.random.key(0), (rows, width), jnp.float32).astype(dtype)
    built, results = {}, {form: {"note": "not installed"} for form in FORMS}
    for form, make in makers().items():
        built[form] = make(z, max_bytes)
        results[form] = {"temporaries": built[form].temporaries, "note": built[form].note}
    seconds = {form: [] for form in built if built[form].run}
    for form in seconds:
        start = time.perf_counter()
        results[form]["loss"] = built[form].run()  # also the warm-up
        if time.perf_counter() - start > limit:
            seconds[form].append(time.perf_counter() - start)
    order = [form for form, times in seconds.items() if not times]
    for _ in range(repeats):
        order = order[1:] + order[:1]
        for form in order:
            if len(seconds[form]) >= 3 and sum(seconds[form]) > limit:
                continue
            built[form].run()
            start = time.perf_counter()
            built[form].run()
            seconds[form].append(time.perf_counter() - start)
    for form, times in seconds.items():
        results[form] |= {"seconds": statistics.median(times), "all_seconds": times}
        if not np.isclose(results[form]["loss"], results["cl_jax streamed"]["loss"], rtol=2e-2):
            raise ValueError(
                f"{form} gives {results[form]['loss']} at {rows} rows; cl_jax gives "
                f"{results['cl_jax streamed']['loss']}. The forms are meant to be one loss."
            )
    return results


def cell(result: dict, key: str) -> str:
    value = result.get(key)
    if value is None:
        return result["note"] or "not measured"
    value, unit = (1e3 * value, "ms") if key == "seconds" else (value / 2**20, "MiB")
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


def markdown(record: dict) -> str:
    lines = [
        f"NT-Xent, value and gradient, {record['dtype']}, D={record['width']}, "
        f"{record['machine']}; "
        + ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        + f"; medians of up to {record['repeats']} interleaved runs, {record['date']}.",
        "",
    ]
    for key, title in (("seconds", "time"), ("temporaries", "temporaries")):
        lines += [f"| rows, {title} | " + " | ".join(FORMS) + " |", "|---" * (len(FORMS) + 1) + "|"]
        lines += [
            f"| {rows} | " + " | ".join(cell(results[form], key) for form in FORMS) + " |"
            for rows, results in record["results"].items()
        ]
        lines.append("")
    return "\n".join(lines)


def plot(record: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4))
    for key, factor, label, axis in (
        ("seconds", 1e3, "milliseconds", axes[0]),
        ("temporaries", 1 / 2**20, "MiB of temporaries", axes[1]),
    ):
        for form in FORMS:
            points = [
                (int(rows), factor * results[form][key])
                for rows, results in record["results"].items()
                if results[form].get(key)
            ]
            if points:
                axis.plot(*zip(*points), marker="o", label=form)
        rows = [int(rows) for rows in record["results"]]
        axis.set(xscale="log", yscale="log", xlabel="rows", ylabel=label)
        axis.set_xticks(rows, [f"{count:,}" for count in rows], rotation=45, ha="right")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(
        f"NT-Xent, value and gradient, {record['dtype']}, D={record['width']}, {record['machine']}"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows",
        default="256,1024,4096,8192,16384,65536",
        help="rows of both views, separated by commas",
    )
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="of timed runs, after which a form is not repeated",
    )
    parser.add_argument(
        "--max-gib", type=float, default=2.0, help="forms that need more temporaries are not run"
    )
    parser.add_argument("--machine", default=None, help="what to call this machine")
    parser.add_argument("--out", type=_timing.given_path, default=Path("benchmarks/results/losses"))
    args = parser.parse_args(argv)
    record = _timing.facts(
        "optax",
        "torch",
        "lightly",
        "pytorch-metric-learning",
        repeats=args.repeats,
        machine=args.machine,
    ) | {
        "backend": jax.default_backend(),
        "dtype": args.dtype,
        "width": args.width,
        "temperature": TEMPERATURE,
        "results": {},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for rows in map(int, args.rows.split(",")):
        record["results"][str(rows)] = measure(
            rows, args.width, args.dtype, args.repeats, args.seconds, int(args.max_gib * GIB)
        )
        print(
            rows,
            {
                form: cell(result, "seconds")
                for form, result in record["results"][str(rows)].items()
            },
            flush=True,
        )
        # After each size: a call that is cut keeps those before.
        args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(markdown(record))
    plot(record, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
