"""`cl-jax embed`: names travel with the rows, broken pictures have none, a stopped job goes on, and
mistakes are one sentence that leaves nothing behind."""

import shutil

import numpy as np
import pytest

import cl_jax
from cl_jax.data import embeddings
from cl_jax.tools import embed
from cl_jax.training import configs, experiment, loop, stages
from cl_jax.training.trained import Trained
from tests.tools import kept


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return kept.run(tmp_path_factory.mktemp("embed") / "run")


@pytest.fixture
def folder(tmp_path):
    root = kept.pictures(tmp_path / "pets")
    whole = (root / "cat" / "03.png").read_bytes()
    (root / "cat" / "03.png").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "99.jpg").write_bytes(b"")
    (root / "notes.txt").write_text("no picture")
    return root


def test_rows_have_names_labels_and_what_is_missing(run, folder, tmp_path, capsys):
    out = tmp_path / "pets.npz"
    assert embed.main([str(run), str(folder), f"--out={out}", "--features=h,z"]) == 0
    said = capsys.readouterr()
    assert "15 rows of h [" in said.out and "cl-jax search" in said.out
    assert "2 cannot be read" in said.err and "cat/03.png: image file is truncated" in said.err
    found = embeddings.load(out)
    names = [f"{c}/{i:02d}.png" for c in ("cat", "dog") for i in range(8) if (c, i) != ("cat", 3)]
    assert list(found.paths) == names and set(found) == {"h", "z"}
    assert found.words("label") == ["cat"] * 7 + ["dog"] * 8
    assert set(found.about["bad"]) == {"cat/03.png", "dog/99.jpg"}
    assert found.about["root"] == str(folder) and found.about["run"] == str(run)
    mine = cl_jax.load(run).embed(folder)
    np.testing.assert_allclose(found["h"], mine["h"], atol=1e-6)


def test_a_stopped_job_goes_on(run, folder, tmp_path, capsys, monkeypatch):
    words = [str(run), str(folder), "--batch_size=8"]
    whole, cut = tmp_path / "whole.npz", tmp_path / "cut.npz"
    assert embed.main([*words, f"--out={whole}"]) == 0
    blocks = Trained.blocks

    def interrupted(self, *args, **kwargs):
        for i, part in enumerate(blocks(self, *args, **kwargs)):
            if i == 1:
                raise KeyboardInterrupt
            yield part

    monkeypatch.setattr(Trained, "blocks", interrupted)
    assert embed.main([*words, f"--out={cut}"]) == embed.STOPPED
    assert "stopped after 8 of 16; the same command resumes there" in capsys.readouterr().err
    assert not cut.exists()
    monkeypatch.undo()
    assert embed.main([*words, f"--out={cut}"]) == 0
    assert "resuming at example 8 of 16" in capsys.readouterr().err
    assert cut.read_bytes() == whole.read_bytes()
    assert not (tmp_path / "cut.npz.partial").exists()


def test_memory_is_bounded_by_pieces(run, folder, tmp_path, monkeypatch):
    """A piece for each block where the bound is one byte, and still one file."""
    seen = []
    add = embeddings.Pieces.add
    monkeypatch.setattr(embed, "FLUSH_BYTES", 1)
    monkeypatch.setattr(
        embeddings.Pieces,
        "add",
        lambda self, part, until: (seen.append(until), add(self, part, until)),
    )
    out = tmp_path / "e.npz"
    assert embed.main([str(run), str(folder), f"--out={out}", "--batch_size=8"]) == 0
    assert seen == [8, 16] and len(embeddings.load(out)) == 15


def test_mistakes_are_one_sentence_and_leave_nothing(run, folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.npz").write_bytes(b"")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for name in ("config.json", "data.json"):
        shutil.copy(run / name, unfinished)
    before = sorted(tmp_path.iterdir())
    out = f"--out={tmp_path / 'e.npz'}"
    for words, message in (
        ([str(tmp_path / "none"), str(folder), out], "holds no run"),
        ([str(unfinished), str(folder), out], "has no checkpoint yet"),
        ([str(run), str(folder), out, "--best"], "has no best checkpoint"),
        ([str(run), str(tmp_path / "empty"), out], "holds no image"),
        ([str(run), str(tmp_path / "none"), out], "neither a folder nor an image"),
        ([str(run), str(folder), out, "--features=q"], "has no feature 'q'"),
        ([str(run), str(folder), out, "--features=,"], "features is empty; expected one or more"),
        ([str(run), str(folder), "--out=/proc/e.npz"], "cannot be written"),
        ([str(run), str(folder), f"--out={tmp_path / 'e.doc'}"], "expected a name that ends in"),
        ([str(run), str(folder), f"--out={tmp_path / 'there.npz'}"], "Give --overwrite"),
        ([str(run), out], "'nowhere' is not a folder"),
    ):
        assert embed.main(words) == 1
        said = capsys.readouterr()
        assert message in said.err and "Traceback" not in said.err, said.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simcse", "cpc_audio", "graphcl", "clip", "cpc", "dino"])
def test_every_modality(name, tmp_path):
    """The run's own data, all parts, of sentences, sound, graphs, pictures with captions."""
    config = configs.smallest(name)
    built = experiment.build(config)
    state = experiment.initial_state(built, config)
    stages.keep(tmp_path / "run", config, built.data, state)
    out = tmp_path / "e.npz"
    assert embed.main([str(tmp_path / "run"), f"--out={out}"]) == 0
    found = embeddings.load(out)
    assert len(found) >= built.data.train.size and found.classes["split"][0] == "train"
    source = built.data.train
    evaluation = loop.evaluation_of(built, config, tmp_path)
    (feature,) = list(found)
    rows = evaluation.rows(built.method.encode, state, source)[feature]
    np.testing.assert_allclose(found[feature][: source.size], rows, atol=2e-5)
