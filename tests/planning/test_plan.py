"""The plan of a run: bytes, products and traffic against what can be counted, and what is said when
it does not fit."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import jax
import pytest

from cl_jax.planning import costs, plan
from cl_jax.planning.devices import DEVICES, known, peak_flops
from cl_jax.planning.kernels import Kernel
from cl_jax.training import experiment, loop, stages
from configs import simclr_v1
from tests import small


@pytest.fixture(scope="module")
def config():
    config = simclr_v1.get_config("debug")
    config.devices = 4
    small.light(config)
    with config.unlocked():  # of few channels, norms' moments are more than the gradients
        config.encoder.width = 4.0
    return stages.stages(config, "unused")[0][1]


@pytest.fixture(scope="module")
def found(config):
    return plan.plan(config, DEVICES["v5e"], search=False)


@pytest.mark.slow
def test_bytes_are_those_of_the_state_and_of_the_compiled_step(config, found):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.encoder.for_cpu = False  # a plan is of the forms that other devices compile
    built = loop.build(config)
    state = loop.initial_state(built, config)
    for kind, tree in (
        ("parameters", state.params),
        ("optimiser", state.opt),
        ("batch statistics", state.stats),
    ):
        assert found["bytes"][kind] == sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    assert found["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(state.params))
    stepper = loop.stepper(built, config, 0)
    stepper(state)
    assert found["bytes"]["temporaries"] == pytest.approx(stepper.temporary_bytes, rel=0.15)
    assert found["fits"] and found["bound"] in found["floor_seconds"]
    held = found["bytes"]["batch"] + found["bytes"]["temporaries"]
    kept = sum(found["bytes"].values()) - held
    block = config.evals.batch_size * built.data.train.read(0)["image"].nbytes // 4
    assert found["evaluation_bytes"] > block
    assert found["total_bytes"] == kept + max(held, found["evaluation_bytes"])


def test_traffic_is_the_gradients_and_the_embeddings(found):
    """All-reduced: the gradients (and norms' moments); gathered: the embeddings of both views, in
    float32."""
    rows = found["collectives"]
    assert 4 * found["parameters"] <= rows["all-reduce"]["bytes"] <= 1.1 * 4 * found["parameters"]
    embeddings = 2 * found["batch_size"] * 128 * 4
    assert 0 < rows["all-gather"]["bytes"] <= 2 * embeddings + 10_000
    assert all(row["sent"] > 0 for row in rows.values())


def test_products_are_counted():
    import jax.numpy as jnp

    def f(a, b):
        return jax.lax.scan(lambda c, _: (c @ b, None), a, None, length=3)[0]

    jaxpr = jax.make_jaxpr(f)(jnp.zeros((4, 5)), jnp.zeros((5, 5)))
    assert costs.flops(jaxpr) == 3 * 2 * 4 * 5 * 5 and costs.flops(jaxpr, exact=True) == 0

    def g(a, b):
        return f(a, b), jnp.matmul(a, b, precision="highest")

    jaxpr = jax.make_jaxpr(g)(jnp.zeros((4, 5)), jnp.zeros((5, 5)))
    assert costs.flops(jaxpr) == 4 * 2 * 4 * 5 * 5
    assert costs.flops(jaxpr, exact=True) == 2 * 4 * 5 * 5


@pytest.mark.slow
def test_what_does_not_fit_is_said_with_a_mend(config):
    tiny = dataclasses.replace(DEVICES["v5e"], memory=2e6)
    found = plan.plan(config, tiny, search=False)
    assert (
        not found["fits"]
        and found["advice"].startswith("Choose ")
        and "--config.batch_size" in found["advice"]
    )
    smaller = dataclasses.replace(DEVICES["v5e"], memory=1e5)
    assert "The State and data alone take" in plan.plan(config, smaller, search=False)["advice"]


def test_the_largest_batch_is_found_on_a_line():
    compiled = []

    def total(batch):
        compiled.append(batch)
        return 1000 + 10 * batch

    largest, seen = plan.largest_batch(total, {64: 1640}, 5000, 4, 10_000)
    assert 0.9 * 5000 < seen[largest] <= 5000 and len(compiled) <= 4


def test_declared_sizes_stand_for_absent_data():
    config = stages.stages(simclr_v1.get_config("imagenet2012"), "unused")[0][1]
    declared = plan.with_declared_data(config)
    assert (declared.data.name, declared.data.train_size) == ("declared", 1_281_167)
    config.data.channels = 5
    assert plan.with_declared_data(config).data.channels == 5
    with config.data.ignore_type():
        config.data.channels = (3, 1)
    assert plan.with_declared_data(config).data.channels == 4
    config.data.channels, config.data.shown = (), ("rgb", "depth")
    assert plan.with_declared_data(config).data.channels == 6
    config.data.dataset = "unheard_of"
    with pytest.raises(ValueError, match="give --examples"):
        plan.with_declared_data(config)


def test_devices_by_the_names_that_jax_gives_them():
    assert known("NVIDIA H100 80GB HBM3").name.startswith("NVIDIA H100")
    assert known("TPU v5 lite") is DEVICES["v5e"] and known("cpu") is None
    assert peak_flops("NVIDIA H200", "bfloat16") == 989e12 and peak_flops("cpu", "float32") is None


def test_the_parts_of_a_gpus_program():
    device = dataclasses.replace(
        DEVICES["h200"], bfloat16=1e6, float32=5e5, exact=1e5, bandwidth=1e6
    )

    def kernel(scope, size, flops=0.0, dtype="bf16", times=1, exact=False):
        return Kernel(scope, "fusion", times, size, flops, dtype, exact)

    rows = plan.layers(
        [
            kernel("views", 10, times=3),
            kernel("crop", 1, 8.0, "f32", exact=True),
            kernel("Network/encoder/block10/mlp1", 100, 50.0),
            kernel("Network/encoder/encoder/block10/mlp2", 100, 300.0),
            kernel("", 1),
            kernel("Network/encoder/block2/mlp1", 8, 8.0, "f32"),
        ],
        device,
    )
    assert [row["part"] for row in rows] == [
        "Network/encoder/block2",
        "Network/encoder/block10",
        "crop",
        "no scope",
        "views",
    ]
    assert (
        [row["kernels"] for row in rows] == [1, 2, 1, 1, 3]
        and rows[1]["bytes"] == 200
        and rows[1]["flops"] == 350
    )
    assert [row["seconds"] for row in rows] == pytest.approx([16e-6, 400e-6, 80e-6, 1e-6, 30e-6])
    assert [row["by_products"] for row in rows] == pytest.approx([1, 0.75, 1, 0, 0])


def test_a_gpu_that_is_not_there(config):
    """Its own compiler plans for it: where jax's CUDA plug-in is installed, with a GPU or
    without."""
    assert plan.gpu_mesh("v5e", 1) is None
    mesh = plan.gpu_mesh("h200", 4)
    if importlib.util.find_spec("jax_plugins") is None:
        assert mesh is None
        return
    found = plan.plan(config, DEVICES["h200"], mesh=mesh, search=False)
    assert found["compiler"] == "xla:gpu" and found["bound"] == "kernel by kernel"
    assert found["collectives"]["all-reduce"]["bytes"] >= 4 * found["parameters"]
    assert {"views", "loss", "optimizer", "Network/encoder/stage1_block1"} <= {
        row["part"] for row in found["layers"]
    }
    assert found["floor_seconds"]["kernel by kernel"] >= found["floor_seconds"]["memory"] * (
        1 - 1e-9
    )


@pytest.mark.slow
def test_command(tmp_path):
    out = tmp_path / "plan.json"
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "cl_jax",
            "plan",
            "--config=configs/simclr_v1.py:debug",
            "--devices=2",
            "--device=h200",
            "--nosearch",
            f"--out={out}",
        ],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0 and ran.stdout.rstrip().endswith("fits"), ran.stderr
    assert json.loads(out.read_text())["devices"] == 2


def test_what_an_encoder_does_on_a_cpu_alone_is_not_planned(config, monkeypatch):
    built = []

    def build(config):
        built.append(config)
        raise ValueError("seen")

    monkeypatch.setattr(experiment, "build", build)
    for encoder in (config.encoder, dict(name="conv"), dict(name="no_such")):
        changed = config.copy_and_resolve_references().unlock()
        changed.encoder = encoder
        with pytest.raises(ValueError, match="seen"):
            plan.programme(changed)
    assert [found.encoder.get("for_cpu") for found in built] == [
        False,
        None,
        None,
    ] and "for_cpu" not in config.encoder
