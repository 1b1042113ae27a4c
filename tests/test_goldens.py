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
from tests.goldens import DIRECTORY, HERE, assert_close, compute, family

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


def test_every_family_has_a_row():
    families = {family(path) for path in DIRECTORY.glob("*.npz")}
    assert families and not families - TABLE.keys()


def test_the_page_names_every_family():
    page = (HERE / "README.md").read_text()
    missing = [name for name in {family(path) for path in HERE.glob("*.npz")} if name not in page]
    assert not missing
