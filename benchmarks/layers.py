"""Layers that are written in a form of their own for a CPU, against XLA's and PyTorch's.

python benchmarks/layers.py [--small]

Forward, then forward with gradients, of a batch of 128 images:

  convolution   3x3 kernels on maps that are no larger than the kernel, as a product per tap
                (cl_jax/encoders/convolve.py), and on larger ones in Winograd's form
                (cl_jax/encoders/winograd.py), against `lax.conv_general_dilated` and PyTorch with
                channels_last
  SwAV          codes of two views and 3,000 prototypes, then codes, loss and its gradient: by
                factors (cl_jax/losses/assignments.py), in logarithms, and PyTorch's by factors

A form of which this does not show a gain has no place in the library. Forms run in turn; times are
medians of processor time, ratios the median over rounds."""

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

import _timing

# side of the map, channels, features, stride
CONVOLUTIONS = (
    *((2, 128, 128, 1), (2, 256, 256, 1), (3, 256, 256, 1), (4, 64, 128, 2)),
    *((4, 64, 64, 1), (8, 32, 32, 1), (16, 64, 64, 1)),
)
Runs = dict[str, Callable[[], Any]]


def both_ways(forward: Callable[..., Any], *given: Any) -> dict[str, Callable[[], Any]]:
    """{"forward", "with gradients"} of a jax function of (x, kernel); the last of given is dy."""
    import jax

    def gradients(x, kernel, dy):
        y, pull = jax.vjp(forward, x, kernel)
        return y, pull(dy)

    compiled = jax.jit(forward), jax.jit(gradients)
    return {
        "forward": lambda: jax.block_until_ready(compiled[0](*given[:2])),
        "with gradients": lambda: jax.block_until_ready(compiled[1](*given)),
    }


def both_ways_of_torch(forward: Callable[..., Any], x: Any, kernel: Any, dy: Any):
    """The same of a PyTorch function."""
    import torch

    x, kernel = x.requires_grad_(True), kernel.requires_grad_(True)

    def alone() -> None:
        with torch.no_grad():
            forward(x, kernel)

    return {
        "forward": alone,
        "with gradients": lambda: torch.autograd.grad(forward(x, kernel), [x, kernel], dy),
    }


def convolution(images: int, side: int, channels: int, features: int, stride: int) -> dict:
    """{form: {part: one run}}."""
    import jax
    import numpy as np
    from jax import lax

    from cl_jax.encoders.convolve import NUMBERS, convolve

    rng = np.random.default_rng(0)
    x = rng.normal(size=(images, side, side, channels)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, channels, features)).astype(np.float32)
    out = (side - 1) // stride + 1
    dy = rng.normal(size=(images, out, out, features)).astype(np.float32)
    settings: Any = ((stride, stride), ((1, 1), (1, 1)))
    given = [jax.device_put(value) for value in (x, kernel, dy)]

    def form(function):
        return lambda x, kernel: function(x, kernel, *settings, dimension_numbers=NUMBERS)

    found = {
        "cl_jax": both_ways(form(convolve), *given),
        "XLA": both_ways(form(lax.conv_general_dilated), *given),
    }
    torch = torch_or_none()
    if torch is not None:
        layout = dict(memory_format=torch.channels_last)
        found["PyTorch"] = both_ways_of_torch(
            lambda x, kernel: torch.nn.functional.conv2d(x, kernel, stride=stride, padding=1),
            torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).contiguous(**layout),
            torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).contiguous(**layout),
            torch.from_numpy(dy.transpose(0, 3, 1, 2).copy()).contiguous(**layout),
        )
    return found


def swav(examples: int, prototypes: int) -> dict:
    """{form: {part: one run}}; "XLA" stands for the iterations in logarithms."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cl_jax import losses

    rng = np.random.default_rng(0)
    z, c = rng.normal(size=(2, examples, 128)), rng.normal(size=(prototypes, 128))
    z, c = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (z, c))
    given = (z @ c.T).astype(np.float32)

    def in_logarithms(scores):
        log_q = scores / 0.05
        for _ in range(3):
            log_q = log_q - jax.nn.logsumexp(log_q, axis=1, keepdims=True)
            log_q = log_q - jax.nn.logsumexp(log_q, axis=2, keepdims=True)
        return jnp.exp(log_q)

    def runs(codes):
        def loss(scores):
            return losses.swav(scores, jax.lax.stop_gradient(codes(scores)), temperature=0.1)

        scores = jax.device_put(given)
        compiled = jax.jit(codes), jax.jit(jax.value_and_grad(loss))
        return {
            "forward": lambda: jax.block_until_ready(compiled[0](scores)),
            "with gradients": lambda: jax.block_until_ready(compiled[1](scores)),
        }

    found = {
        "cl_jax": runs(lambda s: losses.swav_codes(s, epsilon=0.05, iterations=3)),
        "XLA": runs(in_logarithms),
    }
    torch = torch_or_none()
    if torch is None:
        return found
    rows = torch.from_numpy(given).requires_grad_(True)

    def codes() -> Any:
        with torch.no_grad():
            q = torch.exp(rows / 0.05)
            for _ in range(3):
                q /= q.sum(1, keepdim=True)
                q /= q.sum(2, keepdim=True)
            return q

    def step() -> None:
        log_p = torch.log_softmax(rows / 0.1, 2)
        torch.autograd.grad(-(codes().flip(0) * log_p).sum(2).mean(), [rows])

    found["PyTorch"] = {"forward": codes, "with gradients": step}
    return found


def torch_or_none() -> Any:
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(_timing.cores())
    return torch


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each layer's rounds")
    parser.add_argument("--small", action="store_true", help="tiny layers, to try the program")
    parser.add_argument("--out", type=_timing.given_path, default=None)
    args = parser.parse_args(argv)
    os.environ["JAX_PLATFORMS"] = "cpu"
    _timing.prepare()
    convolutions = ((2, 4, 4, 1),) if args.small else CONVOLUTIONS
    layers = {
        f"3x3, {side} x {side}, {channels} to {features}, stride {stride}": convolution(
            8 if args.small else 128, side, channels, features, stride
        )
        for side, channels, features, stride in convolutions
    }
    sizes = (16, 8) if args.small else (1024, 3000)
    layers |= {"SwAV, {} examples, {} prototypes".format(*sizes): swav(*sizes)}
    found, rows = {}, []
    for layer, forms in layers.items():
        runs: Runs = {
            f"{form}, {part}": run for form, parts in forms.items() for part, run in parts.items()
        }
        _, times = _timing.in_turn(
            runs, repeats=args.repeats, limit=args.seconds, warm=2, between=True
        )
        found[layer] = times
        row: list[Any] = [layer]
        for part in ("forward", "with gradients"):
            medians = [1e3 * statistics.median(times[f"{form}, {part}"]) for form in forms]
            row.append(" / ".join(f"{value:.3g}" for value in medians))
            for other in ("XLA", "PyTorch"):
                known = f"{other}, {part}" in times
                row.append(
                    _timing.ratio(times, f"cl_jax, {part}", f"{other}, {part}") if known else None
                )
        rows.append(row)
    by = ["by XLA", "by PyTorch"]
    head = ["layer, float32", "forward, ms", *by, "with gradients, ms", *by]
    text = "Milliseconds of cl_jax / XLA / PyTorch\n\n" + _timing.table(head, rows)
    record = _timing.facts("torch", repeats=args.repeats) | {"processor_seconds": found}
    _timing.write("layers" + ("_small" if args.small else ""), record, text, args.out)


if __name__ == "__main__":
    main()
