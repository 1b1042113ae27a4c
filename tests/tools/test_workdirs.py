"""Every verb that takes the workdir of a run says in one sentence what is wrong with it."""

import importlib
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cl_jax.__main__ import VERBS
from configs import simclr_v1


def verbs(workdir, aside):
    """{verb: its words} for a workdir; further files in `aside`."""
    return {
        "train": ["simclr_v1:debug", f"--workdir={workdir}"],
        "eval": [f"--workdir={workdir}"],
        "embed": [workdir, str(aside / "pictures"), f"--out={aside / 'out.npz'}"],
        "label": [workdir, str(aside / "labels.csv"), f"--pictures={aside / 'pictures'}"],
        "export": [workdir, "--to=torchvision", f"--out={aside / 'exported'}"],
        "report": [workdir],
        "replay": [workdir],
        "diagnose": [workdir],
        "search": [f"{workdir}/embeddings/data.npz", "--duplicates"],
        "benchmark": ["--methods=simclr_v1", f"--workdir={workdir}"],
    }


def no_run(path):
    path.mkdir()


def damaged_config(path):
    path.mkdir()
    (path / "config.json").write_text('{"seed": 0')


def no_checkpoint(path):
    path.mkdir()
    config = simclr_v1.get_config("debug").to_dict()
    (path / "config.json").write_text(json.dumps(config))
    (path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo\n\xff\n[]\n')
    (path / "bad_step").mkdir()
    (path / "bad_step" / "record.json").write_text("{}")


MADE = {
    "missing": lambda path: None,
    "file": lambda path: path.write_bytes(b"x"),
    "empty": no_run,
    "damaged": damaged_config,
    "no checkpoint": no_checkpoint,
}
NAMED = {
    "nothing": "",
    "below a file": "{}/file/run",
    "bucket": "gs://bucket/run",
    "home": "~nobody-of-that-name/run",
    "control": "{}/a\x1b[2Jb",
}
# What is no mistake there: a new workdir, or one whose run is overwritten or went on by itself.
FINE = {
    ("train", "missing"), ("train", "empty"), ("train", "damaged"), ("train", "no checkpoint"),
    ("benchmark", "missing"), ("benchmark", "empty"), ("benchmark", "damaged"),
    ("benchmark", "no checkpoint"), ("diagnose", "no checkpoint"),
    ("train", "nothing"), ("eval", "nothing"),  # as where the option is left out
}  # fmt: skip


@pytest.mark.parametrize("verb", verbs("", Path()))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_bad_workdir_is_one_sentence(verb, tmp_path, capsys, monkeypatch):
    level = logging.getLogger("absl").level
    (tmp_path / "pictures").mkdir()
    for i in range(2):
        Image.new("RGB", (8, 8), (90 * i, 0, 0)).save(tmp_path / "pictures" / f"{i}.png")
    (tmp_path / "labels.csv").write_text("path,label\n0.png,a\n1.png,b\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    for name, given in [*((n, str(tmp_path / n)) for n in MADE), *NAMED.items()]:
        if (verb, name) in FINE:
            continue
        if name in MADE and name != "file":
            MADE[name](tmp_path / name)
        words = verbs(given.format(tmp_path), tmp_path)[verb]
        status = importlib.import_module(VERBS[verb][0]).main(words)
        told = capsys.readouterr().err
        assert status in (1, 2) and "error: " in told and "Traceback" not in told, (name, told)
        assert "\x1b" not in told, name
        assert not (tmp_path / "gs:").exists() and not (tmp_path / "~nobody-of-that-name").exists()
    logging.getLogger("absl").setLevel(level)


@pytest.mark.parametrize("place", ["gs://bucket", "~nobody-of-that-name"])
@pytest.mark.parametrize(
    "words",
    [
        ["embed", "run", "pictures", "--out={}/a.npz"],
        ["embed", "run", "{}/pictures"],
        ["label", "run", "labels.csv", "--out={}/a.csv"],
        ["label", "run", "{}/labels.csv"],
        ["search", "a.npz", "--duplicates", "--sheet={}/a.png"],
        ["search", "a.npz", "--like={}/a.png"],
        ["import", "{}/a.safetensors", "--out=run"],
    ],
    ids=" ".join,
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_place_that_is_no_path_of_this_machine_is_one_sentence(
    words, place, tmp_path, capsys, monkeypatch
):
    level = logging.getLogger("absl").level
    np.savez(tmp_path / "a.npz", h=np.ones((3, 2)))
    monkeypatch.chdir(tmp_path)
    verb, *given = [word.format(place) for word in words]
    try:
        status = importlib.import_module(VERBS[verb][0]).main(given)
    finally:
        logging.getLogger("absl").setLevel(level)
    said = capsys.readouterr().err
    assert status == 1 and "Traceback" not in said, said
    assert ("is a URL" if ":" in place else "home directory that is not known") in said
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]  # no folder "gs:"
