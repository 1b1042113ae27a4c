"""Runs a step that was not finite once more and names the first tensor that was NaN or inf.

example:
  cl-jax replay runs/first/bad_step

The exit status is 0 where the step gave the recorded numbers again, 1 where it did not, 2 where it
cannot be rebuilt.
"""

import argparse
import math
import sys
from collections.abc import Sequence

from cl_jax.training import configs


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        "cl-jax replay",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "path", help="WORKDIR/bad_step (the first step that was kept) or WORKDIR/bad_step/STEP"
    )
    options.add_argument(
        "--float64", action="store_true", help="look for the first tensor in float64"
    )
    return options


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    configs.see_working_folder()

    import numpy as np

    from cl_jax.checks import replay

    try:
        path = replay.find(args.path)
        replay.offer_devices(path)
        kept = replay.Replay(path)
        then, now = kept.record["metrics"], kept.again()
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    other = kept.same_bits()
    same = then.keys() == now.keys() and all(
        np.array_equal(then[name], now[name], equal_nan=True) for name in then
    )
    print(
        f"step {kept.record['step']} of {kept.config.method.name} on "
        f"{kept.built.data.train.name}: {_figures(now)}; "
        + ("as recorded, bit for bit" if same else f"recorded: {_figures(then)}")
    )
    if other:
        print(f"not the run's own program ({other}), so equal up to the order of sums")
    walked, cause = kept.first(args.float64)
    print(
        f"one operation at a time, {'all in float64' if args.float64 else 'in its own types'}: "
        f"{_figures(walked)}"
    )
    if cause:
        print(f"first not finite: {cause}")
    else:
        print(
            "all finite: the fault is rounding or overflow"
            if args.float64
            else "all finite: the compiled program orders its operations otherwise, at the edge "
            "of what its types hold"
        )
    return 0 if same or (other and _finite(then) == _finite(now)) else 1


def _figures(metrics: dict[str, float]) -> str:
    return ", ".join(
        f"{name.replace('grad_norm', 'gradient norm')} {metrics[name]:.9g}"
        for name in ("loss", "grad_norm")
        if name in metrics
    )


def _finite(metrics: dict[str, float]) -> list[bool]:
    return [math.isfinite(metrics.get(name, 0.0)) for name in ("loss", "grad_norm")]
