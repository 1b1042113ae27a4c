"""Every family of golden vectors against the authors' own numbers, in float64 and float32.

tests/goldens/README.md says how they were made. CL_JAX_GOLDENS names another directory of vectors;
files there are run whenever their family is in TABLE.
"""

import importlib
import os
import pkgutil
import re

import jax
import numpy as np
import pytest

from tests import golden_tables
from tests.goldens import DIRECTORY, HERE, Case, assert_close, compute, family
from tests.losses.parity import unit

TABLE = {}
for module in pkgutil.iter_modules(golden_tables.__path__):
    rows = importlib.import_module(f"tests.golden_tables.{module.name}").TABLE
    assert not TABLE.keys() & rows.keys(), f"listed twice: {sorted(TABLE.keys() & rows.keys())}"
    TABLE |= rows

FILES = [path for path in sorted(DIRECTORY.glob("*.npz")) if family(path) in TABLE]
# The first file of each family in float64, the rest with `-m slow`: each is a program to compile.
# Of another directory, all.
ALL = "CL_JAX_GOLDENS" in os.environ
# Run by tests/views/test_recipe.py, which holds them to closer bounds; and what others hold too:
# tests/cluster/test_kmeans.py, dcv2-loss, simclr-jitterv1 with simclr-augv2.
ELSEWHERE = re.compile(
    r"(moco|mocov3|simsiam|swav|instdisc|invaspread|dino)-aug\w*"
    r"|pcl-kmeans|dcv2-cluster|simclr-augv1"
)
RUNS = [
    pytest.param(
        path,
        dtype,
        id=f"{path.stem}-{dtype}",
        marks=[]
        if ALL
        or (
            path.stem.endswith("-0")
            and dtype == "float64"
            and not ELSEWHERE.fullmatch(family(path))
        )
        else [pytest.mark.slow],
    )
    for path in FILES
    for dtype in ("float64", "float32")
    if dtype == "float64" or TABLE[family(path)].f32 is not None
]  # a file in float32 itself is compared once


@pytest.mark.parametrize(("path", "dtype"), RUNS)
def test_equals_the_authors_program(path, dtype):
    golden = TABLE[family(path)]
    with jax.enable_x64(dtype == "float64"):
        ours, theirs = compute(golden, path, np.dtype(dtype))
    for name in theirs:
        assert_close(
            ours[name],
            theirs[name],
            golden.bound(name, theirs[name], dtype),
            golden.smallest(name, path, dtype),
            f"{path.stem} {name}",
        )


ZERO_ROWS = {  # family: the array with a zero row, the sizes of all
    "simclr-ntxent": (
        "hidden",
        {"hidden": (6, 4)},
        {"temperature": 0.5, "hidden_norm": True},
        1e-6,
    ),
    "simclr-ntxentmulti": (
        "hidden",
        {"hidden": (2, 4, 4)},
        {"temperature": 0.5, "hidden_norm": True},
        1e-6,
    ),
    "moco-loss": (
        "q",
        {"q": (1, 3, 4), "k": (1, 3, 4), "queue": (4, 6)},
        {"temperature": 0.2, "queue_ptr": 0},
        1e-12,
    ),
    "mocov3-loss": ("q", {"q": (3, 4), "k": (3, 4)}, {"temperature": 0.2}, 1e-12),
    "mice-elbo": (
        "expert_prototype",
        {
            "expert_prototype": (2, 4),
            "gating_prototype": (2, 4),
            "f": (3, 2, 4),
            "v": (3, 2, 4),
            "g": (3, 4),
            "queue": (6, 2, 4),
        },
        {"tau": 1.0, "queue_index": 0},
        1e-12,
    ),
}


@pytest.mark.parametrize("family", ZERO_ROWS)
def test_a_zero_row_has_the_authors_gradient(family):
    """That of x / eps, by differences of the value, where our losses have none by default."""
    name, shapes, scalars, eps = ZERO_ROWS[family]
    rng = np.random.default_rng(0)
    arrays = {key: rng.normal(size=shape) for key, shape in shapes.items()}
    arrays |= {key: unit(arrays[key]) for key in ("f", "v", "g") if key in arrays}
    row = (0,) * (len(shapes[name]) - 1)
    arrays[name][row] = 0
    stored = {key: np.asarray(value) for key, value in scalars.items()} | arrays

    with jax.enable_x64(True):
        run = jax.jit(lambda arrays: TABLE[family].run(Case(stored, {}, float, arrays)))
        grad = np.asarray(run(arrays)[f"grad_{name}"])[row]
        step = np.zeros_like(arrays[name])
        step[row] = 1e-3 * eps * grad / np.linalg.norm(grad)
        above, below = (
            float(run(arrays | {name: arrays[name] + x})["loss"]) for x in (step, -step)
        )
    slope = (above - below) / (2e-3 * eps)
    assert slope > 1e-2 / eps
    np.testing.assert_allclose(np.linalg.norm(grad), slope, rtol=1e-5)


def test_every_family_has_a_row():
    families = {family(path) for path in DIRECTORY.glob("*.npz")}
    assert families and not families - TABLE.keys()


def test_the_page_names_every_family():
    page = (HERE / "README.md").read_text()
    missing = [name for name in {family(path) for path in HERE.glob("*.npz")} if name not in page]
    assert not missing
