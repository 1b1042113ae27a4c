"""cl_jax.checks.verify finds the classic faults of several devices, passes a healthy method, and
reports as it says."""

import dataclasses
import functools
import json
import os
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from cl_jax.checks import verify
from cl_jax.core.method import State
from cl_jax.tools import verify as command
from cl_jax.training import optim
from tests import small

DEVICES = (1, 2, 4)


@functools.cache
def runner(devices, fault=None):
    return verify.Runner(small.built(devices, fault), small.config(devices))


@pytest.fixture(scope="module")
def healthy():
    return verify.compare(lambda devices, seed: runner(devices)(seed), DEVICES, "small")


def test_a_healthy_method_passes(healthy):
    assert healthy.same() and set(healthy.differences) == {2, 4}
    assert set(healthy.bounds) == {
        "loss",
        "grad_norm",
        "params",
        "opt",
        "memory",
        "stats",
    }  # there is no target


def test_the_bound_is_rounding_and_no_more(healthy):
    """A few roundings of float32 (1.2e-7) of each quantity's magnitude, although nobody wrote these
    numbers down."""
    for name, bound in healthy.bounds.items():
        assert 1e-7 < bound / healthy.magnitudes[name] < 2e-5, name


@pytest.mark.parametrize(
    "fault",
    [  # the second leaves the loss as it is
        pytest.param(fault, marks=() if fault == small.FAULTS[1] else pytest.mark.slow)
        for fault in small.FAULTS
    ],
)
def test_a_planted_fault_is_found(fault):
    record = verify.compare(
        lambda devices, seed: runner(devices, fault if devices > 1 else None)(seed), (1, 2), "small"
    )
    assert not record.same()
    assert {"grad_norm", "params", "opt"} <= set(record.broken(2))
    # Far beyond the bound, so that neither luck nor a generous factor decides.
    assert record.differences[2]["grad_norm"] > 1000 * record.bounds["grad_norm"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", small.FAULTS)
def test_on_one_device_none_of_the_faults_is_one(fault):
    """What it comes to is the healthy run, to the last bit but for fusion."""
    healthy, faulty = (runner(1, given)(None) for given in (None, fault))
    for a, b in zip(jax.tree.leaves(healthy.state), jax.tree.leaves(faulty.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_the_gradients_scale_alone_leaves_the_first_loss_right():
    """The second fault is silent: the loss of the first step is right, and Adam would train on."""
    right, wrong = (runner(2, fault)(None) for fault in (None, small.FAULTS[1]))
    assert wrong.loss[0] == pytest.approx(right.loss[0], rel=1e-6)
    assert wrong.grad_norm[0] == pytest.approx(right.grad_norm[0] / 2, rel=1e-5)


def test_a_nudge_is_one_ulp():
    tree = {"a": np.float32([1.0, -3.0, 0.0, 1e-20]), "n": np.int32([3])}
    moved = verify.nudged(tree, 0)
    assert moved["a"][2] == 0 and moved["n"][0] == 3 and moved["a"].dtype == np.float32
    steps = moved["a"].view(np.int32) - tree["a"].view(np.int32)
    assert set(np.abs(steps[[0, 1, 3]])) == {1}
    many = verify.nudged({"a": np.ones(1000, np.float32)}, 1)["a"]
    assert 400 < (many > 1).sum() < 600


def outcome(loss, memory=None, steps=3):
    state = State(np.int32(steps), {"w": np.float32([1.0])}, (), {}, None, memory)
    return verify.Outcome(np.full(steps, loss, np.float32), np.ones(steps, np.float32), state)


def test_integers_and_what_is_no_number_must_agree_exactly():
    def compared(loss, memory):
        return verify.differences(outcome(1.0, {"ids": np.int32([1, 2])}), outcome(loss, memory))

    assert compared(1.5, {"ids": np.int32([1, 2])}) == {
        "loss": 0.5,
        "grad_norm": 0,
        "params": 0,
        "memory": 0,
    }
    assert compared(1.0, {"ids": np.int32([1, 3])})["memory"] == np.inf
    assert compared(1.0, {"ids": np.int32([1, 2, 3])})["memory"] == np.inf
    assert compared(np.nan, {"ids": np.int32([1, 2])})["loss"] == np.inf


def test_a_bound_that_says_nothing_is_not_passed():
    """Runs that part under a nudge, as training at an absurd rate does, would excuse any
    difference."""
    record = verify.compare(
        lambda devices, seed: outcome(1.0 if seed is None else 1.1 + seed), (1, 2), "chaotic"
    )
    assert record.loose() == ["loss"] and not record.same() and not record.differences
    assert "says nothing: loss" in verify.table([record]) and "same" not in verify.table([record])


def test_where_the_bound_says_nothing_the_next_seed_is_tried(monkeypatch):
    """All seeds but the third part under a nudge; what the next stage starts from is the
    third's."""
    monkeypatch.setattr(verify, "debug_stages", lambda *_: [("", ConfigDict({"seed": 0}))])

    def runner(config, devices, previous, steps, state=None):
        def run(nudge):
            return outcome(
                3.0 + config.seed + (0.0 if nudge is None or config.seed == 2 else nudge)
            )

        run.built = SimpleNamespace(
            mesh=SimpleNamespace(size=devices), method=f"of seed {config.seed}"
        )
        run.state = None
        return run

    monkeypatch.setattr(verify, "runner", runner)
    ((record, stage),) = verify.verify("any", (1, 2))
    assert (
        record.seed == 2
        and record.same()
        and record.magnitudes["loss"] == 5.0
        and stage.method == "of seed 2"
    )
    assert "| seed 2 |" in verify.table([record])
    monkeypatch.setattr(verify, "SEEDS", 2)
    ((record, _),) = verify.verify("any", (1, 2))
    assert not record.same() and record.loose() == ["loss"]


def test_what_differs_from_every_start_is_tried_from_the_next_seed(monkeypatch):
    """Two devices part from one at seed 0 alone; a fault does at every seed."""
    monkeypatch.setattr(verify, "debug_stages", lambda *_: [("", ConfigDict({"seed": 0}))])

    def runner(config, devices, previous, steps, state=None):
        def run(nudge):
            return outcome(
                1.0 + 1e-7 * (nudge or 0) + (0.1 if devices == 2 and config.seed in faulty else 0.0)
            )

        run.built = SimpleNamespace(mesh=SimpleNamespace(size=devices), method="any")
        run.state = None
        return run

    monkeypatch.setattr(verify, "runner", runner)
    faulty = {0}
    ((record, _),) = verify.verify("any", (1, 2))
    assert record.seed == 1 and record.same()
    faulty = set(range(verify.SEEDS))
    ((record, _),) = verify.verify("any", (1, 2))
    assert not record.same() and record.broken(2) == ["loss"]


def test_what_tips_over_at_one_start_is_no_fault_and_what_differs_at_every_start_is():
    """A rounding tips a ReLU of one nudged run, and of the first run on two devices; three devices
    always differ."""

    def run(devices, seed):
        tipped = 0.2 if devices == 3 else 0.1 if (devices, seed) in ((1, 3), (2, None)) else 0.0
        return outcome(1.0 + 1e-7 * (seed or 0) + tipped)

    record = verify.compare(run, (1, 2, 3), "kinks")
    assert record.bounds["loss"] < 3e-6 and not record.loose()
    assert (
        not record.broken(2)
        and record.starts == {2: 2, 3: verify.NUDGES + 1}
        and record.broken(3) == ["loss"]
    )
    assert "| same, from start 2 |" in verify.table([record]) and "DIFFERS: loss |" in verify.table(
        [record]
    )


def test_command_line(healthy, tmp_path, monkeypatch, capsys):
    """Table, JSON, page and exit status; a config verified again takes the place of its old
    record."""
    wrong = dataclasses.replace(
        healthy, name="b second", differences={2: healthy.bounds | {"loss": 1.0}}, starts={2: 3}
    )
    found = {
        "a": [dataclasses.replace(healthy, name="a")],
        "b": [dataclasses.replace(healthy, name="b first"), wrong],
    }
    monkeypatch.setattr(command.configs, "load", lambda name: None)
    monkeypatch.setattr(
        verify,
        "verify",
        lambda name, devices, steps, pieces: ((record, None) for record in found[name]),
    )
    path, page = tmp_path / "all.json", tmp_path / "page.md"
    page.write_text("before\n<!-- verify -->\nold\n<!-- end of verify -->\nafter\n")
    words = [f"--json={path}", f"--page={page}", "--devices=1,2,4", "--micro-batches=1"]
    assert command.main([*words, "--configs=a"]) == 0
    assert command.main([*words, "--configs=b"]) == 1
    said = capsys.readouterr().out
    assert (
        "1 of 1 the same on 1, 2, 4 devices" in said
        and "1 of 2 the same on 1, 2, 4 devices; not: b second" in said
    )
    assert "| 2 | 1.0e+00 |" in said and "DIFFERS: loss" in said
    assert [(row["name"], row["same"]) for row in json.loads(path.read_text())["methods"]] == [
        ("a", True),
        ("b first", True),
        ("b second", False),
    ]
    assert verify.stored(path)["b second"] == wrong
    text = page.read_text()
    assert text.startswith("before\n<!-- verify -->\n| method |") and text.endswith(
        "\n<!-- end of verify -->\nafter\n"
    )
    assert text.count("**a**") == 1 and "old" not in text
    del found["b"][1]
    assert command.main([*words, "--configs=b"]) == 0 and "b second" not in path.read_text()
    before = path.read_text(), page.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    capsys.readouterr()
    monkeypatch.setattr(os, "fsync", full)
    assert command.main([*words, "--configs=a,b"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {path} cannot be written: No space left")
    assert (path.read_text(), page.read_text()) == before


def test_a_config_that_does_not_run_hides_no_other(healthy, monkeypatch, capsys):
    def found(name, devices, steps, micro_batches):
        if name == "a":
            raise ValueError("path is empty; set --config.data.path.")
        yield dataclasses.replace(healthy, name=name), None

    monkeypatch.setattr(command.configs, "load", lambda name: None)
    monkeypatch.setattr(command.configs, "names", lambda: ["a", "b"])
    monkeypatch.setattr(verify, "verify", found)
    assert command.main(["--devices=1,2,4", "--micro-batches=1"]) == 1
    said = capsys.readouterr()
    assert (
        "a does not run: ValueError: path is empty; set --config.data.path. `cl-jax verify` takes "
        "no settings: give a config file of your own that has it, --configs=FILE.py.\n"
        in said.err
        and "1 of 2 the same" in said.out
    )


@pytest.mark.parametrize(
    "words,message",
    [
        (["--configs=simclr_v3"], "config 'simclr_v3' does not exist"),
        (["--devices=1"], "expected at least two devices"),
        (["--devices=1,x"], "--devices=1,x; expected whole numbers"),
        (["--micro-batches="], "--micro-batches=; expected whole numbers"),
        (["--devices=1,64"], "device_count=64 before starting"),
        (["--steps=0"], "expected at least two devices and one step"),
        (["--json=gs://b/v.json"], "is a URL; a file system is needed"),
        (["--json=no/v.json"], "its folder does not exist"),
        (["--page=README.md"], "README.md is no page with the lines <!-- verify -->"),
    ],
)
def test_mistakes_are_named(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(words)
    assert ended.value.code == 2 and message in capsys.readouterr().err


WHOLE = (
    '{"methods": [{"name": %s, "bounds": %s, "magnitudes": {}, "differences": {}, "starts": {}, '
    '"seed": 0}]}'
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"methods": 3}',
        '{"methods": [{"name": "a"}]}',
        '{"methods": [3]}',
        WHOLE % ("3", "{}"),
        WHOLE % ('" "', "{}"),
        WHOLE % ('"a"', '{"gradient": 0.1}'),
    ],
)
def test_a_file_of_other_records_is_named(text, tmp_path, capsys):
    file = tmp_path / "records.json"
    file.write_text(text)
    with pytest.raises(SystemExit):
        command.main(["--configs=byol", "--devices=1,2", f"--json={file}"])
    assert f"{file} holds no records that `cl-jax verify` wrote" in capsys.readouterr().err


def test_a_page_that_cannot_be_read_or_written_is_named_before_anything_runs(
    tmp_path, monkeypatch, capsys
):
    page = tmp_path / "page.md"
    words = ["--configs=byol", "--devices=1,2", f"--page={page}"]
    page.write_bytes(b"\xff")
    with pytest.raises(SystemExit):
        command.main(words)
    assert f"{page} cannot be read as text" in capsys.readouterr().err
    page.write_text("<!-- verify -->\n<!-- end of verify -->\n")

    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(page), "write_bytes", denied)
    with pytest.raises(SystemExit):
        command.main(words)
    assert f"{page} cannot be written: Permission denied" in capsys.readouterr().err


def test_a_page_without_its_marks_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("text\n")
    with pytest.raises(ValueError, match="no page with the lines <!-- verify -->"):
        verify.put_into(tmp_path / "page.md", "table")


def test_the_optimiser_is_the_same_whatever_the_config_says():
    section = dict(
        name="adamw",
        learning_rate=1.0,
        momentum=0.0,
        nesterov=True,
        weight_decay=0.1,
        warmup_epochs=0.5,
        clip_global_norm=1.0,
        parts={"head": {"paths": ("head",), "name": "adamw"}},
    )
    run = dict(batch_size=16, steps_per_epoch=128, total_steps=10)
    found = verify.optimizer(section, 128, 10)
    optim.build(**found, **run)  # a warm-up of 64 steps would be refused
    assert found | verify.OPTIMIZER == found and found["parts"] == {}
    assert found["weight_decay"] == 0.1
    short = verify.optimizer(section, 4, 10)  # as docs/devices.json was measured
    assert short["warmup_epochs"] == 0.5 and "warmup_steps" not in short
    steps = verify.optimizer(section | {"warmup_steps": 11, "warmup_epochs": 0.0}, 4, 10)
    assert steps["warmup_steps"] == 0


def test_every_config_has_its_stages():
    names = verify.configs.names()
    assert {"simclr_v1", "simclr_v2"} <= set(names)
    assert [stage for stage, _ in verify.debug_stages("simclr_v2")] == [
        "pretrain",
        "finetune",
        "distill",
    ]
    assert [stage for stage, _ in verify.debug_stages("simclr_v1")] == [""]


def test_eight_devices_are_there():
    assert jax.device_count() >= max(verify.DEVICES)
