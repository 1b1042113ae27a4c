"""Losses, memories and the evaluators' arithmetic where nothing is installed but jax and numpy."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cl_jax

# jax, what jax itself requires, and numpy.
PACKAGES = ("jax", "jaxlib", "ml_dtypes", "numpy", "opt_einsum", "scipy")

CODE = """
import importlib, pkgutil, sys
import cl_jax.losses, cl_jax.memory
names = ["cl_jax.core.axis", "cl_jax.core.numerics"]
evaluators = ["knn", "geometry", "hardness", "neighbours", "reidentification", "retrieval"]
names += [f"cl_jax.evals.{name}" for name in [*evaluators, "sts", "zero_shot"]]
for package in (cl_jax.losses, cl_jax.memory):
    names += [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
import jax, jax.numpy as jnp
from cl_jax import losses
from cl_jax.memory import queue
z = jax.random.normal(jax.random.key(0), (2, 4, 8))
held = queue.enqueue(queue.init(jax.random.key(1), 16, 8), z[0])
step = jax.value_and_grad(lambda a, b: losses.info_nce(a, b, held.rows, temperature=0.2))
value, grad = jax.jit(step)(z[0], z[1])
assert jnp.isfinite(value) and jnp.isfinite(grad).all()
from cl_jax.evals import knn
for name in ("flax", "optax", "orbax", "grain", "PIL", "sklearn", "absl", "ml_collections"):
    assert importlib.util.find_spec(name) is None, name
print(len(names), "modules")
"""


@pytest.mark.slow  # tests/test_imports.py looks at what is imported
def test_in_an_environment_of_jax_and_numpy(tmp_path):
    """A folder of links to those packages is all that the interpreter can import from."""
    for name in PACKAGES:
        folder = Path(importlib.util.find_spec(name).origin).parent
        for path in (folder, folder.with_name(f"{name}.libs")):
            if path.is_dir():
                (tmp_path / path.name).symlink_to(path)
    (tmp_path / "cl_jax").symlink_to(Path(cl_jax.__file__).parent)
    found = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{CODE}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"},
    )
    assert found.returncode == 0, found.stderr
    assert int(found.stdout.split()[0]) > 30
