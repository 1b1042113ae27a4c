"""The log of a run: what is kept over a resume, and destinations that fail."""

import errno
import json
import os
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from cl_jax.training import metrics


def logged(folder, start, *steps):
    log = metrics.Metrics(folder, 100, start)
    for step in steps:
        log.write(step, {"knn/top1": step / 100})
    log.close()
    return log


def events(folder):
    """The events of all files, in the order in which TensorBoard reads them."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):  # length, its checksum, the event, its checksum
            size = int.from_bytes(data[at : at + 8], "little")
            found.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += 16 + size
    return found


def board(folder):
    """(step, value) of what TensorBoard shows: a start hides what is at or beyond its step."""
    points = []
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            points = [point for point in points if point[0] < event.step]
        points += [(event.step, round(v.simple_value, 3)) for v in event.summary.value]
    return points


def test_a_resume_keeps_what_its_checkpoint_holds_in_both_logs(tmp_path):
    """The evaluation at the step of the resume stays; later ones are made again."""
    logged(tmp_path, 0, 20, 40, 60)
    again = logged(tmp_path, 40, 60, 80)
    rows = [(row["step"], row["knn/top1"]) for row in metrics.read(tmp_path)]
    assert rows == [(20, 0.2), (40, 0.4), (60, 0.6), (80, 0.8)]
    assert board(tmp_path) == rows == [(row["step"], row["knn/top1"]) for row in again.rows]


def test_a_start_anew_hides_all_that_a_killed_run_logged(tmp_path):
    logged(tmp_path, 0, 10, 20)
    logged(tmp_path, 0, 10)
    assert board(tmp_path) == [(10, 0.1)] and len(metrics.read(tmp_path)) == 1


def test_a_run_from_step_0_has_no_baselines_of_an_earlier_network(tmp_path):
    """Their row is of step 0, and is kept where the run resumes from a later step."""
    logged(tmp_path, 0, 0, 20)
    assert [row["step"] for row in logged(tmp_path, 20).rows] == [0, 20]
    assert logged(tmp_path, 0).rows == [] == metrics.read(tmp_path)
    logged(tmp_path, 0, 20)
    assert board(tmp_path) == [(20, 0.2)]


def test_a_kill_while_the_log_is_cut_costs_no_row(tmp_path, monkeypatch):
    logged(tmp_path, 0, 20, 40, 60)

    def killed(*_):
        raise SystemExit

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(os if function == "fsync" else Path, function, killed)
            metrics.Metrics(tmp_path, 100, 40)
        assert [row["step"] for row in metrics.read(tmp_path)] == [20, 40, 60]


BROKEN = (
    b'{"step": 8, "lo',
    b"[1, 2]",
    b'{"loss": 1.0}',
    b'{"step": "8"}',
    b'{"step": 8, "loss": "high"}',
    b'{"step": NaN}',
    b"\xff\xfe",
    b"7",
    b"\0\0\0",
)


@pytest.mark.parametrize("line", BROKEN, ids=lambda line: repr(line)[2:20])
def test_lines_that_are_no_rows_are_left_out_with_a_warning(line, tmp_path, caplog):
    logged(tmp_path, 0, 2)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(line + b"\n" + json.dumps({"step": 4, "loss": float("nan")}).encode() + b"\n")
    assert [row["step"] for row in metrics.read(tmp_path)] == [2, 4]
    assert "left out line 2, which is not a row" in caplog.text
    logged(tmp_path, 4)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", ["metrics.jsonl", "TensorBoard", "the terminal"])
def test_a_destination_that_fails_is_named_once_and_left_out(name, tmp_path, caplog, monkeypatch):
    log = metrics.Metrics(tmp_path, 100)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log.destinations[name], "write", full)
    for step in (1, 2, 3):
        log.write(step, {"loss": step})
    log.say("something")
    log.close()
    assert caplog.text.count(f"{name} cannot be written (OSError: [Errno 28]") == 1
    assert [row["step"] for row in log.rows] == [1, 2, 3]
    if name != "metrics.jsonl":
        assert len(metrics.read(tmp_path)) == 3
    if name != "TensorBoard":
        assert len(board(tmp_path)) == 3


def test_a_full_device_does_not_hold_up_the_run(tmp_path, caplog):
    """/dev/full refuses every write; a writer's thread would die of it, and its queue would fill
    and block."""
    log = metrics.Metrics(tmp_path, 1000)
    log.write(0, {"loss": 1.0})  # which opens TensorBoard's file
    for name, mode in (("TensorBoard", "wb"), ("metrics.jsonl", "w")):
        log.destinations[name].file.close()
        log.destinations[name].file = open("/dev/full", mode)
    for step in range(1, 500):
        log.write(step, {f"value{i}": step for i in range(20)})
    log.close()
    assert caplog.text.count("cannot be written") == 2 and len(log.rows) == 500


def test_no_folder_for_tensorboard_is_said_and_the_run_goes_on(tmp_path, caplog):
    (tmp_path / "tensorboard").write_text("a file")
    logged(tmp_path, 0, 1)
    assert "TensorBoard cannot be written" in caplog.text and len(metrics.read(tmp_path)) == 1


def test_piped_output_says_where_the_run_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(metrics.time, "monotonic", iter((0.0, 90.0, 100.0)).__next__)
    log = metrics.Metrics(tmp_path, 1000, 100)
    log.write(150, {"loss": 1.25})
    log.write(1000, {"loss": 1.0})
    log.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step  150 of 1000, 25:30 left  loss 1.25"
    assert lines[1] == "step 1000 of 1000  loss 1"
