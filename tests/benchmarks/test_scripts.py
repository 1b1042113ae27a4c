"""Every benchmark runs in its small form and writes its record; their figures are not looked at."""

import argparse
import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    "losses": ["--rows", "64", "--width", "16", "--repeats", "3"],
    "headline_losses": ["--rows", "64", "--width", "16", "--seconds", "0.01"],
    "layers": ["--small", "--repeats", "3"],
    "cpu_step": ["--small", "--batch", "8", "--repeats", "3"],
    "throughput": ["--small", "--repeats", "3", "--cases", "resnet18", "--layers"],
    "speedrun_cifar10": ["--small", "--seeds", "0", "--target", "0.1", "--epochs", "1"],
    "startup": ["--small"],
    "views": ["--small", "--repeats", "3"],
    "input": ["--small"],
    "reading": ["--small"],
    "memory": ["--small"],
    "kmeans": ["--small", "--repeats", "3"],
    "cost_curves": ["--small", "--repeats", "1"],
    "accelerator": ["--small", "--parts=losses,memory,resnet18,speedrun"],
    "cifar10_curve": ["--small"],
    "loco_memory": ["--small"],
    "view_studies": ["number", "--small"],
}


def run(name, *arguments):
    script = str(ROOT / "benchmarks" / f"{name}.py")
    return subprocess.run(
        [sys.executable, script, *arguments], capture_output=True, text=True, cwd=ROOT
    )


def test_there_is_a_case_for_every_script():
    assert SCRIPTS.keys() == {path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py")}


@pytest.mark.parametrize(
    "path",
    [p for p in (ROOT / "benchmarks").rglob("*.py") if "__main__" in p.read_text()],
    ids=lambda path: path.stem,
)
def test_every_script_reads_its_command_line(path):
    """So that --help tells what it does, and does nothing."""
    assert re.search(r"\.parse_args\(|cases\.words\(__doc__", path.read_text())


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda path: path.stem
)
def test_every_name_of_the_package_that_a_script_uses_is_there(path):
    """Their small forms are slow tests: a function that moved would be missed for days."""
    tree, found = ast.parse(path.read_text()), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cl_jax"):
            exec(ast.unparse(node), found)
    own = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)} | {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }  # variables that elsewhere in the script are called as the module
    modules = {
        name: one for name, one in found.items() if inspect.ismodule(one) and name not in own
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            assert module is None or hasattr(module, node.attr), (
                f"line {node.lineno}: {module.__name__} has no {node.attr}"
            )


# About a second each in this process, which has imported jax already.
QUICK = {
    "kmeans": ["--small", "--repeats=1"],
    "layers": ["--small", "--repeats=1"],
    "headline_losses": ["--rows=16", "--width=8", "--seconds=0.001", "--losses=nt_xent"],
    "reading": ["--small"],
    "cost_curves": ["--small", "--repeats=1", "--curves=files,state"],
    "throughput": ["--small", "--repeats=1", "--cases=vit_b16", "--layers", "--no-peer"],
}


@pytest.mark.parametrize("name", QUICK)
def test_the_measuring_part_of_a_script_runs(name, tmp_path, monkeypatch):
    """Their small forms are slow tests: a call that changed its form would be missed for days."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    script = __import__(name)
    monkeypatch.setattr(script._timing, "prepare", lambda *_: "")  # jax has begun
    whole = getattr(script, "config_of", None)

    def tiny(*given, **settings):
        config, _ = whole(*given, **settings)
        config.devices = config.dispatch_steps = 1
        config.batch_size = config.data.train_size = 4
        config.data.image_size = 8
        config.encoder = ConfigDict(dict(name="tests.benchmarks.linear", dtype="float32"))
        config.views.both = dict(name="crop_flip", crop="none", size=8, copies=2)
        return config, 8

    if whole is not None:
        monkeypatch.setattr(script, "config_of", tiny)
    pictures = [f"--pictures={tmp_path}"] * (name == "cost_curves")
    script.main([*QUICK[name], *pictures, f"--out={tmp_path / 'record'}"])
    assert {"machine", "versions"} <= json.loads((tmp_path / "record.json").read_text()).keys()
    if name == "throughput":
        (found,) = json.loads((tmp_path / "record.json").read_text())["cases"]
        parts = {"augmentation", "forward", "forward and backward", "step", "step, from the host"}
        assert found["rows"].keys() == parts and found["layers"][0]["stage"] == "h"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem
)
def test_paths_of_the_command_line_are_read_as_the_package_reads_them(path):
    """`type=Path` leaves "~" and "gs:" as they are: names of folders here."""
    assert "type=Path" not in path.read_text()


def test_a_path_of_the_command_line(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import _timing

    monkeypatch.setenv("HOME", "/home/me")
    assert _timing.given_path("~/out") == Path("/home/me/out")
    with pytest.raises(argparse.ArgumentTypeError, match="is a URL"):
        _timing.given_path("gs://b/x")


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_small_form(name, tmp_path):
    has = name in ("speedrun_cifar10", "accelerator")
    workdir = [f"--workdir={tmp_path}"] if has else []
    workdir += [f"--pictures={tmp_path}"] if name in ("cost_curves", "view_studies") else []
    ran = run(name, *SCRIPTS[name], *workdir, "--out", str(tmp_path / "record"))
    assert ran.returncode == 0, ran.stderr[-3000:]
    record = json.loads((tmp_path / "record.json").read_text())
    assert {"machine", "versions", "date", "load"} <= record.keys() and (
        tmp_path / "record.md"
    ).stat().st_size > 0


@pytest.mark.slow
def test_the_speed_run_goes_on_where_it_stopped(tmp_path):
    arguments = [
        "--small",
        "--seeds",
        "0",
        "--target",
        "1.1",
        "--epochs",
        "2",
        f"--workdir={tmp_path}",
        "--out",
        str(tmp_path / "record"),
    ]
    first = run("speedrun_cifar10", *arguments, "--piece", "1")
    assert first.returncode == 75, first.stderr[-3000:]
    assert run("speedrun_cifar10", *arguments).returncode == 1  # ends, the target not reached
    seed = json.loads((tmp_path / "record.json").read_text())["seeds"][0]
    assert seed["pieces"] == 2 and [row["epoch"] for row in seed["evaluations"]] == [1, 2]
    assert (
        seed["evaluations"][1]["seconds"] > seed["evaluations"][0]["seconds"]
        and not seed["reached"]
    )


def test_a_call_that_is_cut_keeps_the_parts_before(tmp_path):
    """A part that is stopped and one for which no time is left say so; what was done stays."""
    arguments = ["--small", f"--workdir={tmp_path}", "--out", str(tmp_path / "record")]
    (tmp_path / "parts.json").write_text(json.dumps({"memory": {"status": "done"}}))
    assert run("accelerator", *arguments, "--parts=losses,memory", "--seconds=1").returncode == 0
    parts = json.loads((tmp_path / "record.json").read_text())["parts"]
    assert parts["losses"]["status"].startswith("not run") and parts["memory"]["status"] == "done"
    code = (
        "import sys; sys.path.insert(0, 'benchmarks'); import accelerator as a\n"
        "a.SHORTEST = 0.0\n"
        f"a.main([*{arguments!r}, '--parts=losses', '--seconds=0.2'])"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    parts = json.loads((tmp_path / "record.json").read_text())["parts"]
    assert parts["losses"]["status"] == "stopped after 0 s" and parts["memory"]["status"] == "done"


def test_ratios_are_of_the_same_round(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    timing = __import__("_timing")
    assert timing.ratio({"a": [2.0, 8.0, 3.0], "b": [1.0, 4.0, 1.0]}, "a", "b") == 2.0
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "xyz"}
    times, processor = timing.in_turn(runs, repeats=3, warm=1)
    assert "".join(order) == "xyz" + "xyz" + "yzx" + "zxy" and [
        len(values) for values in times.values()
    ] == [3, 3, 3]
    assert np.all(np.array([*times.values(), *processor.values()]) >= 0)
