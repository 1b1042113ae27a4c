"""What may import what, read from the source, and what `import cl_jax` and `import cl_jax.losses`
must not need."""

import ast
import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "cl_jax"

# The arrows of docs/design/architecture.md: per folder, the libraries and the parts of cl_jax that
# it may import.
NETWORK = {"jax", "numpy", "flax"}
TRAINING = {"jax", "numpy", "flax", "optax"}
# Of core, the modules that know jax alone.
PLAIN = {
    f"core.{name}"
    for name in (
        "axis",
        "gelu",
        "graphs",
        "linear",
        "keys",
        "names",
        "neighbours",
        "numerics",
        "paths",
        "schedule",
        "seeds",
        "shapes",
        "sharded",
        "tokens",
    )
}
LAYERS = {"views", "encoders", "heads"}
ALLOWED = {
    "core": (TRAINING, {"core"}),
    "losses": ({"jax"}, {"losses"} | PLAIN),
    "memory": ({"jax"}, {"memory"} | PLAIN),
    "views": (NETWORK, {"views"} | PLAIN),
    "encoders": (NETWORK, LAYERS | PLAIN),
    "heads": (NETWORK, LAYERS | PLAIN),
    "cluster": (NETWORK | {"scipy", "sklearn"}, {"cluster"} | PLAIN),
    "data": (
        {"PIL", "absl", "grain", "jax", "matplotlib", "numpy", "scipy", "sentencepiece", "sklearn"}
        | {"soundfile"}
        | {"av", "pillow_heif", "pyarrow", "simplejpeg", "tensorflow_datasets", "tifffile"},
        {"data", "core"},
    ),
    "methods": (
        TRAINING,
        {"losses", "memory", "cluster", "core", "methods", "training.optim"}
        | {"data.batches", "data.domains", "data.environments"}
        | LAYERS,
    ),
    "evals": (
        TRAINING | {"absl", "scipy", "sklearn", "matplotlib", "ml_collections"},
        {"evals", "data", "losses", "cluster", "core"} | LAYERS,
    ),
    "planning": (TRAINING | {"ml_collections"}, {"planning", "data", "training", "core"}),
    "reports": (
        {"PIL", "numpy", "plotly", "scipy", "sklearn", "umap"},
        {"reports", "cluster"} | {"core.neighbours"},
    ),
    "checks": (
        TRAINING | {"ml_collections"},
        {"checks", "data", "evals", "training", "core"},
    ),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The folder that a file belongs to: losses, methods, training, ..."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def belongs(path: Path, name: str) -> bool:
    """Whether a file is of a row of ALLOWED: a folder, or a module as "core.axis"."""
    return part(path) == name or path == PACKAGE / f"{name.replace('.', '/')}.py"


@functools.cache
def imported(path: Path, package: Path = PACKAGE) -> frozenset[str]:
    """Every module a file imports, anywhere in it, as dotted names; relative imports resolved."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                folder = path.relative_to(package.parent).parent.parts
                base = ".".join([*folder[: len(folder) - node.level + 1], *filter(None, [base])])
            # `from cl_jax import losses` and `from cl_jax.losses import nt_xent` alike name what is
            # below.
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return frozenset(names)


def ours(names: set[str], parts: set[str] = frozenset()) -> set[str]:
    """The parts of cl_jax among `names`, less what `parts` allows: whole parts, or single modules
    as "core.axis"."""
    inside = {name.removeprefix("cl_jax.") for name in names if name.startswith("cl_jax.")}
    return {
        name.split(".")[0]
        for name in inside
        if name.split(".")[0] not in parts and ".".join(name.split(".")[:2]) not in parts
    }


def foreign(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names} - {"cl_jax"} - sys.stdlib_module_names


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_arrows(name):
    libraries, parts = ALLOWED[name]
    wrong = {}
    for path in FILES:
        if belongs(path, name):
            names = imported(path)
            extra = (foreign(names) - libraries) | {
                f"cl_jax.{p}" for p in ours(names, parts | {"__version__"})
            }
            if extra:
                wrong[str(path.relative_to(PACKAGE))] = sorted(extra)
    assert not wrong


def test_train_names_no_method():
    """Nothing outside methods/ imports a method, and the trainer names none."""
    methods = {path.stem for path in (PACKAGE / "methods").glob("*.py")} - {"__init__"}
    for path in FILES:
        if part(path) == "methods":
            continue
        assert "methods" not in ours(imported(path)), f"{path.name} imports a method"
        if part(path) == "training" and path.stem != "defaults":
            tree = ast.parse(path.read_text())
            words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            # Arguments and functions of the file's own may have a method's name: `clip`.
            words -= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
            words -= {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
            words |= {
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            assert not methods & words, f"{path.name} names {sorted(methods & words)}"


def test_the_reader_of_imports_sees_every_form(tmp_path):
    package = tmp_path / "cl_jax"
    (package / "losses").mkdir(parents=True)
    file = package / "losses" / "a.py"
    file.write_text(
        "import flax.linen as nn\nfrom . import b\nfrom ..memory import queue\nfrom cl_jax import "
        "methods\n"
        "def f():\n    import optax\n    from cl_jax.encoders.resnet import ResNet\n"
    )
    names = imported(file, package)
    assert foreign(names) == {"flax", "optax"}
    assert ours(names) == {"losses", "memory", "methods", "encoders"}


def run(code: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent
    )
    assert result.returncode == 0, result.stderr


def test_losses_and_memory_need_only_jax():
    """Importing any module of them where everything else that a full install has raises."""
    run("""
import importlib, pkgutil, sys
for name in ("flax", "optax", "orbax", "tensorflow_datasets", "tensorflow", "ml_collections",
             "sklearn", "matplotlib", "grain", "PIL", "absl", "rich", "tensorboardX"):
    sys.modules[name] = None
import cl_jax.losses, cl_jax.memory
for package in (cl_jax.losses, cl_jax.memory):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
        print(module.name)
""")


def test_cl_jax_is_light():
    run("""
import sys
import cl_jax
loaded = {name.split(".")[0] for name in sys.modules}
heavy = sorted(loaded & {"jax", "jaxlib", "flax", "optax", "numpy", "orbax"})
assert not heavy, heavy
""")


def test_training_needs_no_internals_of_jax():
    """`train` imports where a module of `jax._src` that diagnosis reads cannot be imported again;
    no file but that one names `jax._src`."""
    run("""
import sys
import jax, flax, optax, orbax.checkpoint, grain  # they may use what they like
sys.modules["jax._src.source_info_util"] = None
import cl_jax.training.loop, cl_jax.tools.train
""")
    users = {path.name for path in FILES if any(n.startswith("jax._src") for n in imported(path))}
    assert users <= {"finite.py"}


def test_nothing_private_crosses_folders():
    crossing = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in FILES
        for name in imported(path)
        if name.startswith("cl_jax.")
        and name.split(".")[1] != part(path)
        and any(re.match(r"_[^_]", word) for word in name.split("."))
    ]
    assert not crossing


def test_private_attributes_are_those_of_their_own_file():
    public = {"_replace", "_fields", "_asdict", "_exit"}  # of named tuples, of os
    for path in FILES:
        tree = ast.parse(path.read_text())
        used, own = set(), set(public)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                (own if isinstance(node.ctx, ast.Store) else used).add(node.attr)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                own.add(node.target.id)
        foreign_names = {name for name in used - own if re.match(r"_[^_]", name)}
        assert not foreign_names, f"{path.relative_to(PACKAGE)} reads {sorted(foreign_names)}"


def test_every_folder_has_its_arrows_and_nothing_is_loose():
    """What composes the rest (`training`, `tools`) may import all of it."""
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__", "main"}
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders - {"training", "tools", "weights"} == ALLOWED.keys()


def test_every_module_is_read_by_a_test():
    """The tests of a module are `tests/<folder>/test_<module>.py`, or lie beside those of what it
    serves, and then import it. Private modules are tested by what uses them."""
    tests = Path(__file__).resolve().parent
    names = set().union(*(imported(path, tests) for path in tests.rglob("*.py")))
    tested = names | {name.rpartition(".")[0] for name in names}
    modules = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in FILES
        if not path.name.startswith("_")
        and not (tests / path.relative_to(PACKAGE).parent / f"test_{path.name}").exists()
    }
    assert not modules - tested
