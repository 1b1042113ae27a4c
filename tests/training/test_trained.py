"""A run read back: without its data, on any devices, and what it says of arrays, folders, files and
sources."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import cl_jax
from cl_jax.core import parallel
from cl_jax.core.errors import ConfigError, NotFoundError
from cl_jax.data.source import Splits, from_arrays, joined, labels_of
from cl_jax.training import configs, loop, stages, trained
from cl_jax.training.transformer import Features
from tests import small


def pictures(root, count=12):
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        for i in range(count):
            path = root / label / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 18, 3), np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, folder of its data, what the run's own evaluation reads), trained on two devices;
    its data are elsewhere now."""
    root = tmp_path_factory.mktemp("trained")
    config = configs.load("simclr_v1:debug")
    with config.unlocked():
        config.data = {"name": "folder", "path": str(pictures(root / "data")), "image_size": 16}
    config.update({"batch_size": 8, "devices": 2})
    config.evals.update({"every_epochs": 0.0, "baselines": False})
    small.light(config, stages=0)
    with config.unlocked():
        config.evals.protocols = {"knn": {"k": 3}}
    workdir = root / "run"
    loop.train(config, workdir)
    config, built, state = stages.load(workdir)
    evaluation = loop.evaluation_of(built, config, workdir)
    rows = {
        name: evaluation.rows(evaluation._encode, state, source)["h"]
        for name, source in (("train", built.data.train), ("test", built.data.test))
    }
    (root / "data").rename(root / "moved")
    return workdir, root / "moved", rows, built.data


@pytest.fixture(scope="module")
def mine(run):
    return cl_jax.load(run[0])


def test_a_run_is_loaded_without_its_data_and_on_all_devices(run, mine):
    _, _, rows, data = run
    assert mine.mesh.size == jax.device_count() == 8
    assert mine.step == 2 and "simclr_v1" in repr(mine)
    found = mine.embed(data.test)
    assert list(found) == ["h"] and len(found) == data.test.size
    np.testing.assert_allclose(found["h"], rows["test"], atol=1e-5)
    np.testing.assert_array_equal(found.labels["label"], labels_of(data.test))
    assert found.classes == {"label": ("cat", "dog")}
    assert list(found.paths) == list(data.test.names)
    with pytest.raises(ValueError, match="is not a folder"):
        _ = mine.data


def test_variables_are_those_of_the_module(run, mine):
    _, _, rows, data = run
    section = {name: part["encoder"] for name, part in mine.variables.items()}
    images = mine.method.clean({"image": data.test.arrays["image"]})
    h = mine.encoder.apply(parallel.fetch(section), images, train=False)["h"]
    np.testing.assert_allclose(h, rows["test"], atol=1e-5)


def test_the_best_checkpoint_and_the_only_stage_of_a_run(run, tmp_path):
    (tmp_path / "pretrain").symlink_to(run[0])
    best = cl_jax.load(tmp_path, best=True)
    assert best.step == 2 and best.workdir == tmp_path / "pretrain"
    assert set(best.dimensions) == {"h", "z"} | {n for n in best.dimensions if n.startswith("proj")}


def test_a_folder_keeps_its_names_and_leaves_out_what_cannot_be_read(run, mine, tmp_path):
    _, folder, rows, data = run
    messy = tmp_path / "messy"
    shutil.copytree(folder, messy)
    whole = (messy / "cat" / "00.png").read_bytes()
    (messy / "cat" / "00.png").write_bytes(whole[: len(whole) // 2])
    (messy / "dog" / "empty.png").write_bytes(b"")
    found = mine.embed(messy, batch_size=8)
    assert set(found.about["bad"]) == {"cat/00.png", "dog/empty.png"}
    assert list(found.paths) == [
        f"{label}/{i:02d}.png"
        for label in ("cat", "dog")
        for i in range(12)
        if (label, i) != ("cat", 0)
    ]
    assert list(found.labels["label"]) == [0] * 11 + [1] * 12
    place = {name: i for i, name in enumerate(found.paths)}
    kept = [i for i, name in enumerate(data.train.names) if name in place]
    at = [place[data.train.names[i]] for i in kept]
    np.testing.assert_allclose(found["h"][at], rows["train"][kept], atol=1e-5)


def test_arrays_and_files_give_the_rows_of_their_images(run, mine):
    _, folder, rows, data = run
    images = data.test.arrays["image"]
    np.testing.assert_allclose(mine.embed(images)["h"], rows["test"], atol=1e-5)
    files = [folder / name for name in data.test.names]
    np.testing.assert_allclose(mine.embed(files)["h"], rows["test"], atol=1e-5)
    one = mine.embed({"image": images}, features=("z", "h"))
    assert list(one) == ["z", "h"] and set(mine.embed(images, features="all")) >= {"z", "h"}
    assert list(one.paths[:2]) == ["given/0", "given/1"]


def test_labels_that_training_needs_are_not_read_by_the_network(run, mine):
    method = dataclasses.replace(mine.method, needs=("image", "label"))
    built = mine.built._replace(method=method)
    other = trained.Trained(mine.workdir, mine.config, built, mine.state)
    assert other.source(str(run[1]))[0].size == 24
    assert other.source(np.zeros((5, 16, 16, 3), np.uint8))[0].size == 5


def test_wrong_inputs_are_one_sentence(mine, tmp_path):
    image = np.zeros((2, 16, 16, 3), np.uint8)
    for inputs, message in (
        (image / 255.0, "image is float64; expected uint8"),
        (image[0], r"image is uint8\[16, 16, 3\]; expected uint8 \[N, 16, 16, 3\]"),
        (image[:0], "one or more rows"),
        ({"tokens": np.zeros((2, 4), np.uint16)}, "has the fields tokens; the network"),
        (tmp_path, "holds no image"),
        (tmp_path / "none", "neither a folder nor an image"),
        ([tmp_path / "none.png"], "none of the 1 files is there"),
    ):
        with pytest.raises(ValueError, match=message):
            mine.embed(inputs)
    with pytest.raises(ConfigError, match="no feature 'hh'; did you mean 'h'"):
        mine.embed(image, features="hh")
    for features in (None, 5, ("h", 5)):
        with pytest.raises(ConfigError, match=r"features is .*; expected a name, a list of names"):
            mine.embed(image, features=features)
    for size in (-1, 0.5):
        with pytest.raises(ValueError, match=f"batch_size is {size}; expected an integer"):
            mine.embed(image, batch_size=size)
    found = mine.embed(image)
    with pytest.raises(KeyError, match="there is no feature 'z'"):
        found["z"]
    with pytest.raises(KeyError, match="there is no label 'kind'"):
        found.words("kind")
    with pytest.raises(NotFoundError, match="holds no run"):
        cl_jax.load(tmp_path)
    for name in ("pretrain", "finetune"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(NotFoundError, match=r"holds the runs finetune, pretrain: give one, such"):
        cl_jax.load(tmp_path)


def test_a_workdir_without_a_checkpoint_is_refused(run, tmp_path):
    for name in ("config.json", "data.json"):
        shutil.copy(run[0] / name, tmp_path)
    with pytest.raises(NotFoundError, match="has no checkpoint yet"):
        cl_jax.load(tmp_path)
    shutil.copytree(run[0] / "last", tmp_path / "last")
    with pytest.raises(NotFoundError, match="has no best checkpoint"):
        cl_jax.load(tmp_path, best=True)


def test_a_state_of_elsewhere_becomes_a_run(run, mine, tmp_path):
    """What an import does: a config, the fields of the data, a State."""
    _, _, rows, data = run
    fields = from_arrays("imported", {"image": np.zeros((8, 16, 16, 3), np.uint8)}, {})
    stages.keep(tmp_path, mine.config, Splits(fields, fields), mine.state)
    again = cl_jax.load(tmp_path)
    found = again.embed(data.test.arrays["image"])["h"]
    np.testing.assert_allclose(found, rows["test"], atol=1e-5)


def test_a_run_is_a_transformer(run, mine):
    _, _, rows, data = run
    images = data.test.arrays["image"]
    assert cl_jax.Features is Features
    step = clone(Features(mine, feature="h"))
    found = make_pipeline(step, StandardScaler()).fit_transform(images)
    np.testing.assert_allclose(found, StandardScaler().fit_transform(rows["test"]), atol=1e-4)
    assert list(step.fit(images).get_feature_names_out()[:2]) == ["h0", "h1"]
    assert step.__getstate__()["run"] == str(run[0]) and "run_" not in step.__getstate__()


def test_joined_sources_follow_each_other(run):
    data = run[3]
    both = joined("both", {"train": data.train, "test": data.test})
    assert both.size == data.train.size + data.test.size
    np.testing.assert_array_equal(both.read(data.train.size)["image"], data.test.read(0)["image"])
    np.testing.assert_array_equal(labels_of(both)[-data.test.size :], labels_of(data.test))
    assert labels_of(both, "split").tolist() == [0] * data.train.size + [1] * data.test.size
    assert both.classes["split"] == ("train", "test") and both.read(0)["split"] == 0
