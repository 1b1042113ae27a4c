"""Reads golden vectors: inputs, pinned randomness, values and gradients from the authors' own
programs. README.md says how they were made; CL_JAX_GOLDENS names another folder to read."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

HERE = Path(__file__).resolve().parent
DIRECTORY = Path(os.environ.get("CL_JAX_GOLDENS", HERE))


@dataclasses.dataclass(frozen=True)
class Golden:
    """How one family is computed here and how closely it must agree.

    run: Case -> {name: array}, one entry for each array in the file's `meta.outputs`, except those
      in `skip`.
    f64: bound on max|a - b| / max(max|b|, floor) per array with x64 on, but for 1e-12 of rounding.
    f32: the same with float32 inputs; None where the file itself is float32 or uint8 (then it runs
    once, held to `f64`).
    loss, grad: bounds in float32 of the outputs named loss... and grad..., where they are not
      `f32`.
    floor: smallest scale an array is compared at; None for that of the README of the file: 1e-2 in
      set A; in B and C 1e-3 for losses and none for the rest.
    raised: outputs that may overflow float32: `run` gives log_<name>, which is raised in float64 on
      the host. Rounding of an exponent is multiplied by its size, so that in float32 they are held
      to two of its steps where that is more than `f32`.
    skip: outputs of the authors' program that are not ours to compute (say why beside it).
    jit: False for adapters that need concrete values (host-side clustering).
    bounds: per-output bounds that replace all of these: {name: (f64, f32)}.
    scales: per-output smallest scale in float32, for sums whose terms are of that size and cancel:
      what they are rounded to is of the terms' size, whatever the sum is.
    """

    run: Callable[["Case"], Mapping[str, Any]]
    f64: float = 1e-9
    f32: float | None = 1e-5
    loss: float | None = None
    grad: float | None = None
    floor: float | None = None
    raised: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    jit: bool = True
    bounds: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    scales: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def bound(self, name: str, theirs: np.ndarray, dtype: str) -> float | None:
        """How closely the output `name` must agree with theirs."""
        if name in self.bounds:
            return self.bounds[name][dtype == "float32"]
        if dtype == "float64":
            return self.f64
        if name in self.raised:
            return max(self.f32, 2 * np.finfo(np.float32).eps * np.log(np.max(theirs, initial=1)))
        special = {"loss": self.loss, "grad": self.grad}.get(name[:4])
        return self.f32 if special is None else special

    def smallest(self, name: str, path: Path, dtype: str) -> float:
        """The smallest scale that the output `name` of this file is compared at."""
        if dtype == "float32" and name in self.scales:
            return self.scales[name]
        if self.floor is not None:
            return self.floor
        if "has_loss" not in read(path)[1]:  # set A
            return 1e-2
        return 1e-3 if name.startswith("loss") else 0.0


class Case(Mapping):
    """One file. `case["z"]` is an array in the run's float type, or a Python number where the file
    holds a scalar.

    `case.group("param.")` is {rest of the name: array}. `case.numpy("x")` is the stored array,
    always concrete. `case.grad(f, *names)` returns (value, {"grad_<name>": gradient}) of the scalar
    function f(*arrays); with has_aux, f and the value are pairs as of `jax.value_and_grad`.
    """

    def __init__(
        self, stored: Mapping[str, np.ndarray], meta: dict, dtype: Any, arrays: Mapping[str, Any]
    ):
        self.stored, self.meta, self.dtype, self.arrays = stored, meta, dtype, arrays

    def __getitem__(self, name: str) -> Any:
        if name in self.arrays:
            return self.arrays[name]
        return self.stored[name].item()

    def __iter__(self):
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def numpy(self, name: str) -> np.ndarray:
        return self.stored[name]

    def group(self, prefix: str) -> dict[str, Any]:
        return {name[len(prefix) :]: self[name] for name in self.stored if name.startswith(prefix)}

    def grad(
        self, f: Callable[..., Any], *names: str, has_aux: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        value, grads = jax.value_and_grad(f, argnums=tuple(range(len(names))), has_aux=has_aux)(
            *(self[name] for name in names)
        )
        return value, {f"grad_{name}": grad for name, grad in zip(names, grads)}


def family(path: Path) -> str:
    return path.stem.rsplit("-", 1)[0]


@functools.lru_cache(maxsize=1)  # asked for at each output of a file
def read(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    with np.load(path, allow_pickle=False) as file:
        stored = {name: file[name] for name in file.files if name != "meta"}
        return stored, json.loads(str(file["meta"]))


def compute(
    golden: Golden, path: Path, dtype: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Runs our function on the file's inputs; returns (ours, theirs) by output name."""
    stored, meta = read(path)
    outputs = [name for name in meta["outputs"] if name not in golden.skip]
    inputs = {}
    for name, array in stored.items():
        if name in meta["outputs"] or array.ndim == 0:
            continue
        inputs[name] = (
            array.astype(dtype) if array.dtype.kind == "f" and golden.f32 is not None else array
        )

    def run(arrays):
        return dict(golden.run(Case(stored, meta, dtype, arrays)))

    if golden.jit:
        # Tiny programs that run once: compile time is all that counts.
        run = jax.jit(
            run,
            compiler_options={
                "xla_backend_optimization_level": 0,
                "xla_cpu_use_fusion_emitters": False,
            },
        )
    ours = run({name: jnp.asarray(array) for name, array in inputs.items()})
    ours |= {name: np.exp(np.asarray(ours[f"log_{name}"], np.float64)) for name in golden.raised}
    missing = sorted(set(outputs) - set(ours))
    assert not missing, f"{path.stem}: not computed: {missing}; has {sorted(ours)}"
    return {name: np.asarray(ours[name]) for name in outputs}, {
        name: stored[name] for name in outputs
    }


def assert_close(
    ours: np.ndarray, theirs: np.ndarray, bound: float, floor: float, what: str
) -> None:
    """What the type of `ours` cannot hold (a float64 sum of exponentials at a low temperature) must
    be infinite there."""
    assert ours.shape == theirs.shape, f"{what}: shape {ours.shape}, expected {theirs.shape}"
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    if ours.dtype.kind == "f":
        held = np.abs(b) <= np.finfo(ours.dtype).max
        assert (a[~held] == np.sign(b[~held]) * np.inf).all(), (
            f"{what}: finite where {ours.dtype} cannot be"
        )
        a, b = a[held], b[held]
    assert np.isfinite(a).all(), f"{what}: not finite"
    error, scale = np.abs(a - b).max(initial=0), np.abs(b).max(initial=floor)
    assert error <= bound * scale + 1e-12, (
        f"{what}: off by {error:.3g} at a scale of {scale:.3g}; the bound is {bound:.3g}"
    )
