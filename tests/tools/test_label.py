"""`cl-jax label`: a few labels give the rest, with confidence that means something; wrong labels
are noticed; mistakes are one sentence."""

import csv
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from cl_jax.core.errors import ConfigError
from cl_jax.data.embeddings import Embeddings, Pieces
from cl_jax.evals import few_labels, fine_tuned
from cl_jax.tools import label
from cl_jax.training import trained
from tests.tools import kept


def blobs(count=300, width=6, apart=2.0, seed=0):
    """Three classes that overlap."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, count)
    centres = apart * np.eye(3, width)
    return (centres[truth] + rng.standard_normal((count, width))).astype(np.float32), truth


def table(path):
    with path.open(newline="") as opened:
        return list(csv.DictReader(opened))


def put(path, rows, header=("path", "label")):
    with path.open("w", newline="") as out:
        csv.writer(out).writerows([header, *rows] if header else rows)
    return path


def test_the_probe_is_chosen_and_calibrated_on_what_it_did_not_see():
    x, y = blobs(2000)
    noise = np.random.default_rng(1).standard_normal((2000, 60)).astype(np.float32)
    wide = np.concatenate([x, noise], axis=1)  # many useless features ask for a penalty
    probe = few_labels.fit(wide[:90], y[:90])
    found = probe.probabilities(wide[90:])
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    accuracy = np.mean(found.argmax(1) == y[90:])
    assert accuracy > 0.6 and abs(accuracy - probe.accuracy) < 0.12
    assert few_labels.calibration_error(found, y[90:]) < 0.1
    assert probe.c < few_labels.STRENGTHS[-1] and probe.held_out.shape == (90, 3)


def test_folds_hold_every_example_out_once_and_singles_never():
    y = np.array([0] * 7 + [1] * 3 + [2])
    fold = few_labels.folds(y)
    assert fold[-1] == -1 and set(fold[:-1]) == {0, 1, 2}
    for number in range(3):
        assert set(y[fold != number]) == {0, 1, 2}
    probe = few_labels.fit(np.random.default_rng(0).standard_normal((11, 4)), y)
    assert np.isnan(probe.held_out[-1]).all() and np.isfinite(probe.accuracy)
    alone = few_labels.fit(np.eye(2), np.array([0, 1]))
    assert np.isnan(alone.accuracy) and alone.temperature == 1
    with pytest.raises(ValueError, match="two classes or more"):
        few_labels.fit(np.eye(2), np.array([0, 0]))


def test_calibration_error_by_hand():
    p = np.array([[0.95, 0.05], [0.95, 0.05], [0.65, 0.35], [0.35, 0.65]])
    error = few_labels.calibration_error(p, np.array([0, 1, 0, 1]))
    assert error == pytest.approx(0.5 * abs(0.5 - 0.95) + 0.5 * abs(1 - 0.65))


def test_what_to_label_next_is_uncertain_and_not_twice_the_same():
    x, y = blobs(400, apart=4.0)
    x[5:45] = x[4]  # forty copies of one picture between two classes
    x[4:45, :3] = (2, 2, 0)
    labelled = np.arange(60, 120)
    probe = few_labels.fit(x[labelled], y[labelled])
    p = probe.probabilities(x)
    chosen = few_labels.next_to_label(x, p, labelled, 5)
    assert len(set(chosen)) == 5 and not set(chosen) & set(labelled)
    assert p[chosen].max(1).mean() < p.max(1).mean()
    assert len(set(chosen) & set(range(4, 45))) <= 1
    assert len(few_labels.next_to_label(x[:70], p[:70], np.arange(60, 70), 99)) == 60


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("label")
    return kept.run(root / "run"), kept.pictures(root / "pets", count=16)


def test_a_few_labels_give_the_rest(run, tmp_path, capsys):
    workdir, folder = run
    given = [(f"{c}/{i:02d}.png", c) for c in ("cat", "dog") for i in range(4)]
    given += [("cat/09.png", "")]
    labels, out = put(tmp_path / "labels.csv", given), tmp_path / "p.csv"
    words = [str(workdir), str(labels), f"--pictures={folder}", f"--out={out}", "--next=5"]
    assert label.main(words) == 0
    said = capsys.readouterr().out
    assert "8 labels of 2 classes: cat 4, dog 4" in said and "100.0 % right" in said
    share = float(said.split("by their confidence ")[1].split(" %")[0])
    assert 50 <= share <= 100
    rows = table(out)
    assert len(rows) == 32 and all(row["path"].startswith(row["prediction"]) for row in rows)
    assert [row["label"] for row in rows[:5]] == ["cat"] * 4 + [""]
    assert sorted(row["next"] for row in rows if row["next"]) == list("12345")
    assert all(0.5 <= float(row["confidence"]) <= 1 for row in rows)
    assert label.main(words) == 0  # the features are there by now
    assert "rows of h" not in capsys.readouterr().out
    file = folder / "cat" / "00.png"
    file.write_bytes(file.read_bytes() + b"\0")
    (features,) = (workdir / "embeddings").glob("*.npz")
    Pieces(features, {"names": "of a run that was stopped"})
    assert label.main(words) == 0  # and are made again where a picture was written again
    assert "rows of h" in capsys.readouterr().out
    text = out.read_text().replace("dog/15.png,,", "dog/15.png,dog,")  # filled in by hand
    out.write_text(text)
    assert label.main(words) == 1
    assert "has labels of 1 pictures that have none in" in capsys.readouterr().err
    assert out.read_text() == text
    assert label.main([words[0], str(out), *words[2:]]) == 0
    assert "9 labels of 2 classes: cat 4, dog 5" in capsys.readouterr().out
    assert table(out)[-1]["label"] == "dog"
    own = put(tmp_path / "own.csv", [(f"pets/{name}", word) for name, word in given])
    assert label.main([words[0], str(own), words[2], f"--out={own}"]) == 0
    assert "8 labels of 2 classes" in capsys.readouterr().out


def test_a_probe_is_a_linear_layer():
    x, y = blobs(60)
    for classes in (2, 3):
        kept_rows = y < classes
        a, b = x[kept_rows], y[kept_rows]
        probe = few_labels.fit(a, b)
        layer = fine_tuned.linear(probe, classes)
        logits = a @ layer["kernel"] + layer["bias"]
        np.testing.assert_allclose(
            softmax(logits, axis=1), np.exp(probe.model.predict_log_proba(a)), atol=1e-5
        )


def linear_method():
    """A network that multiplies by a matrix; a view adds a little noise."""

    def view(batch, key):
        return [batch["x"] + 0.05 * jax.random.normal(key, batch["x"].shape)]

    return types.SimpleNamespace(
        views=view,
        clean=lambda batch: batch["x"],
        features=lambda params, stats, x, train: ({"h": jnp.tanh(x @ params["w"])}, stats),
        needs=("x",),
        wants=(),
    )


def test_fine_tuning_finds_what_the_features_leave_out():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    x = rng.standard_normal((60, 4)).astype(np.float32)
    x[:, 3] += 4 * y - 2  # of which the features have almost nothing
    w = np.eye(4, dtype=np.float32)
    w[3, 3] = 0.03
    h = np.tanh(x @ w)
    h[:, 3] += 0.2 * rng.standard_normal(60)  # stands for what drowns it
    probe = few_labels.fit(h[:40], y[:40])
    method, variables = linear_method(), ({"w": w}, {})
    seen = []
    tuned = fine_tuned.fit(
        method, variables, {"x": x[:40]}, h[:40], y[:40], probe,
        feature="h", learning_rate=0.03, after_epoch=lambda: seen.append(1),
    )  # fmt: skip
    assert tuned.accuracy > probe.accuracy and tuned.log_loss < probe.log_loss
    assert fine_tuned.better(tuned, probe, y[:40])
    worse = tuned._replace(held_out=probe.held_out)
    assert not fine_tuned.better(worse, probe, y[:40])
    assert tuned.epochs in fine_tuned.EPOCHS and len(seen) <= fine_tuned.trainings(y[:40])
    assert np.isfinite(tuned.held_out).all() and tuned.held_out.shape == (40, 2)
    found = fine_tuned.logits(method, "h")((tuned.params, {}), {"x": x[40:]})["logits"]
    assert np.mean(np.argmax(found, 1) == y[40:]) > 0.9


@pytest.mark.parametrize(
    ("changes", "feature", "words"),
    [
        ({"views": None, "features": None}, "h", "has no features and no views; expected"),
        ({"clean": None}, "h", "has no clean; expected"),
        ({"views": lambda batch, key: {"one": batch["x"]}}, "h", "views cannot be drawn"),
        ({"views": lambda batch, key: None}, "h", "views cannot be drawn"),
        ({"views": lambda batch, key: [batch["moved"]]}, "h", "views cannot be drawn"),
        ({"views": lambda batch, key: [{"x": batch["x"]}]}, "h", "not take one training view"),
        ({}, "hh", "'hh', which is not among .*did you mean 'h'; these are h"),
    ],
)
def test_a_method_that_cannot_be_fine_tuned_is_one_sentence(changes, feature, words):
    method = types.SimpleNamespace(**vars(linear_method()) | changes)
    x, y = blobs(40, 4)
    given = {"x": x}, x, y, few_labels.fit(x, y)
    with pytest.raises(ConfigError, match=f"{words}.*--finetune"):
        fine_tuned.fit(method, ({"w": np.eye(4, dtype=np.float32)}, {}), *given, feature=feature)


def test_that_a_run_cannot_be_fine_tuned_is_said_before_its_pictures_are_embedded(
    run, tmp_path, capsys, monkeypatch
):
    workdir, folder = run
    load = trained.load

    def without_views(*args, **settings):
        found = load(*args, **settings)
        found.method = dataclasses.replace(found.method, views=None)
        return found

    monkeypatch.setattr(trained, "load", without_views)
    monkeypatch.setattr(label, "_embeddings", lambda *_: pytest.fail("embedded first"))
    labels = put(tmp_path / "labels.csv", [("cat/00.png", "cat"), ("dog/00.png", "dog")])
    words = [str(workdir), str(labels), f"--pictures={folder}", "--finetune"]
    assert label.main([*words, f"--out={tmp_path / 'p.csv'}"]) == 1
    assert "its method has no views; expected" in capsys.readouterr().err


@pytest.mark.slow
def test_fine_tuning_of_a_run(run, tmp_path, capsys):
    workdir, folder = run
    given = [(f"{c}/{i:02d}.png", c) for c in ("cat", "dog") for i in range(8)]
    labels, out = put(tmp_path / "labels.csv", given), tmp_path / "p.csv"
    words = [str(workdir), str(labels), f"--pictures={folder}", f"--out={out}", "--finetune"]
    assert label.main(words) == 0
    said = capsys.readouterr().out
    assert "fine-tuned, of pictures that it did not see" in said
    assert all(row["path"].startswith(row["prediction"]) for row in table(out))
    one = put(tmp_path / "one.csv", [given[0], given[-1]])
    assert label.main([str(workdir), str(one), *words[2:]]) == 1
    assert "--finetune needs two labels of a class" in capsys.readouterr().err


def test_likely_wrong_labels_are_named(tmp_path, capsys, run):
    x, y = blobs(240, apart=6.0)
    names = np.array([f"{i:03d}.png" for i in range(240)])
    Embeddings({"h": x}, names, about={}).save(tmp_path / "e.npz")
    given = [(f"{i:03d}.png", "abc"[y[i]]) for i in range(120)]
    given[17] = ("017.png", "abc"[(y[17] + 1) % 3])
    labels = put(tmp_path / "labels.csv", given, header=None)
    words = [str(run[0]), str(labels), f"--embeddings={tmp_path / 'e.npz'}"]
    assert label.main([*words, f"--out={tmp_path / 'p.csv'}"]) == 0
    said = capsys.readouterr().out
    assert "1 labels are likely wrong" in said and "017.png: " in said


def test_paths_may_be_written_in_several_ways(tmp_path):
    held = Embeddings(
        {"h": np.ones((3, 2), np.float32)},
        np.array(["cat/1.png", "dog/1.png", "dog/2.png"]),
        about={"root": "/data/pets", "bad": {"dog/9.png": "cut"}},
    )
    given = {"/data/pets/cat/1.png": "a", "pets/dog/1.png": "b", "2.png": "c"}
    rows, names = label.matched("l.csv", given, held)
    assert list(rows) == [0, 1, 2] and names == ["a", "b", "c"]
    for wrong, message in (
        ({"1.png": "a"}, r"1\.png is not among the 3 pictures.*those lines\.$"),
        ({"\udcf6.png": "a"}, r"not among .*The table is not UTF-8\. Save it as .CSV UTF-8."),
        ({"dog/9.png": "a"}, "cannot be read: cut"),
        ({"2.png": "a", "dog/2.png": "b"}, "two paths for one picture"),
    ):
        with pytest.raises(ValueError, match=message):
            label.matched("l.csv", wrong, held)


def test_tables_of_spreadsheets_and_of_names_with_line_breaks(tmp_path):
    rows = [("a,1;\n\u2028.png", "x"), ("b.png", "y, z")]
    assert label.read_labels(str(put(tmp_path / "l.csv", rows))) == dict(rows)
    for between in ";\t":
        lines = [between.join(row) for row in (("path", "label"), ("a,1.png", "x"))]
        (tmp_path / "m.csv").write_text("\ufeff" + "\r\n".join(lines))
        assert label.read_labels(str(tmp_path / "m.csv")) == {"a,1.png": "x"}
    (tmp_path / "m.csv").write_text("path\tlabel\n", encoding="utf-16")
    with pytest.raises(ValueError, match=r'zero bytes; .* Save it as "CSV UTF-8"'):
        label.read_labels(str(tmp_path / "m.csv"))


def test_mistakes_are_one_sentence_and_leave_nothing(run, tmp_path, capsys):
    workdir, folder = run
    wrong = Embeddings({"h": np.ones((2, 3), np.float32)}, np.array(["a", "b"]), about={})
    wrong.about["network"] = "00000000"
    wrong.save(tmp_path / "other.npz")
    good = put(tmp_path / "good.csv", [("cat/00.png", "cat"), ("dog/00.png", "dog")])
    out = tmp_path / "p.csv"
    for labels, more, message in (
        (tmp_path / "none.csv", [], "is not a file"),
        (put(tmp_path / "e.csv", []), [], "has no label"),
        (put(tmp_path / "c.csv", [(1, 2, 3)], ("a", "b", "c")), [], "has the columns a, b, c"),
        (put(tmp_path / "s.csv", [("cat/00.png",)]), [], "line 2: 1 columns"),
        (put(tmp_path / "o.csv", [("cat/00.png", "cat")]), [], "has one class, 'cat'"),
        (put(tmp_path / "t.csv", [("a", "x"), ("a", "y")]), [], "line 3: a is 'y' here"),
        (put(tmp_path / "m.csv", [("cat/77.png", "x")]), [], "cat/77.png is not among"),
        (put(tmp_path / "n.csv", [("", "x")]), [], "line 2: a label and no path"),
        (good, [f"--embeddings={tmp_path / 'other.npz'}"], "is of another network"),
        (good, ["--feature=q"], "no feature 'q'"),
        (good, ["--pictures=/none"], "neither a folder nor an image"),
        (good, ["--out=/none/p.csv"], "its folder does not exist"),
    ):
        words = [str(workdir), str(labels), f"--pictures={folder}", f"--out={out}", *more]
        assert label.main(words) == 1, message
        said = capsys.readouterr()
        assert message in said.err and "Traceback" not in said.err, said.err
        assert not out.exists()
