"""Every method of images takes a folder; sizes follow from what is in it."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from cl_jax import views
from cl_jax.core.errors import ConfigError
from cl_jax.data import folder
from cl_jax.tools import train
from cl_jax.training import configs, defaults, experiment, fit
from cl_jax.training.stages import stages

KINDS = ("scenes", "digits", "domains")
IMAGES = [name for name in configs.names() if configs.load(name).data.name in KINDS]
PER_CLASS, CLASSES = 24, 4


def write(place, count, seed=0, size=20):
    place.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)
    for number, image in enumerate(images):
        Image.fromarray(image).save(place / f"{number}.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "photos"
    for number in range(CLASSES):
        write(root / f"kind{number}", PER_CLASS, number)
    return root


def config_of(name, path, **settings):
    config = configs.load(name)
    configs.change(config, [("data.path", str(path)), *settings.items()])
    return config


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n == "temperature" else []) for n in IMAGES],
)
def test_every_method_of_images_takes_a_folder(name, photos, tmp_path):
    config = config_of(f"{name}:folder", photos)
    fit.fit(config, ["data.path"], tmp_path)
    _, config, _ = stages(config, tmp_path)[0]
    built = experiment.build(config)
    assert built.data.train.size >= built.run.batch_size
    assert built.run.steps_per_epoch >= 2
    dry = configs.load(f"{name}:folder,debug")
    assert dry.data.name == "folder" and dry.data.limit and not dry.fit and dry.total_epochs <= 2


def test_a_begun_run_is_fitted_to_folders_named_like_parts(tmp_path):
    """A run of an earlier version, which took them for classes."""
    for name in ("my_train", "my_test"):
        write(tmp_path / "data" / name, PER_CLASS)
    config = config_of("simclr_v1:folder", tmp_path / "data")
    with pytest.raises(ValueError, match="named like parts"):
        fit.fit(config, ["data.path"], tmp_path / "run")
    (tmp_path / "run" / "last" / "1").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps(configs.plain(config)))
    lines = fit.fit(config, ["data.path"], tmp_path / "run")
    assert "2 classes" in lines[1] and "on_parts" not in config.data


@pytest.mark.slow  # compiles every method
@pytest.mark.parametrize("name", IMAGES)
def test_a_dry_run_of_every_method_ends(name, photos, tmp_path):
    assert not train.main([f"{name}:folder,debug", str(photos), f"--workdir={tmp_path}/run"])


@pytest.mark.slow
def test_a_command_with_a_path_needs_no_workdir(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert not train.main(["simclr_v2:folder,debug", str(photos)])
    assert (tmp_path / "runs/simclr_v2_debug-photos/pretrain/config.json").exists()
    said = capsys.readouterr().err
    assert "4 classes, one for each sub-folder" in said and "20 x 20 pixels" in said


def test_without_a_path_it_refuses(tmp_path, capsys):
    assert train.main(["simclr_v2:folder", f"--workdir={tmp_path}/run"]) == 1
    assert "`cl-jax train CONFIG:folder PATH`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_sizes_follow_from_the_number_of_images(photos, tmp_path):
    config = config_of("moco_v2:folder", photos)
    lines = fit.fit(config, ["data.path"], tmp_path)
    count = folder.survey(path=str(photos)).train
    assert config.batch_size == 16 and config.total_epochs == fit.EPOCHS[1]
    assert config.method.queue_size <= count / 2 and config.method.queue_size % 16 == 0
    assert config.evals.protocols.knn.k == (count // CLASSES) // 2
    assert "queue_size" in lines[-1] and "--config.batch_size=16" in lines[-1]


@pytest.mark.parametrize(
    "settings",
    [{"fraction": "0.4"}, {"validation": "0.3", "fraction": "0.5"}, {"imbalance": "3.0"}],
    ids=str,
)
def test_sizes_follow_from_the_images_that_are_trained_on(settings, photos, tmp_path):
    given = {f"data.{key}": value for key, value in settings.items()}
    config = config_of("moco_v2:folder", photos, **given)
    lines = fit.fit(config, ["data.path", *given], tmp_path)
    size = experiment.load_data(config).train.size
    assert f"fitted to {size} training images" in lines[-1]
    assert config.method.queue_size == max(size // 2 // 16, 1) * 16 <= size
    config = config_of("moco_v2:folder", photos, **{"data.fraction": "0.1"})
    with pytest.raises(ConfigError, match=r"8 training images after fraction=0\.1; expected at l"):
        fit.fit(config, ["data.path", "data.fraction"], tmp_path)


def test_a_stage_has_a_batch_of_its_own_images(photos, tmp_path):
    config = config_of("simclr_v2:folder", photos, **{"data.validation": "0.5"})
    fit.fit(config, ["data.path", "data.validation"], tmp_path)
    config.stage = "finetune"
    ((_, stage, _),) = stages(config, tmp_path, ["data.path", "data.validation"])
    assert stage.batch_size <= experiment.load_data(stage).train.size < 2 * stage.batch_size


def test_a_stage_that_was_begun_keeps_its_batch(photos, tmp_path):
    def fitted():
        config = config_of("simclr_v2:folder", photos)
        fit.fit(config, ["data.path"], tmp_path)
        return config

    config = fitted()
    fresh = config.stages.finetune.batch_size
    config.batch_size = fresh // 2  # as another version fitted it
    for place in ("pretrain", "finetune"):
        keep(config, tmp_path / place)
    assert fitted().stages.finetune.batch_size == fresh
    (tmp_path / "finetune/last/1").mkdir(parents=True)
    assert fitted().stages.finetune.batch_size == fresh // 2


def test_what_the_user_gives_is_kept(photos, tmp_path):
    config = config_of("moco_v2:folder", photos, batch_size="8", total_epochs="3")
    lines = fit.fit(config, ["data.path", "batch_size", "total_epochs"], tmp_path)
    assert (config.batch_size, config.total_epochs) == (8, 3.0)
    assert "total_epochs" not in lines[-1]
    whole = config_of("moco_v2:folder", photos, fit="false")
    fit.fit(whole, ["data.path", "fit"], tmp_path)
    assert whole.batch_size == configs.load("moco_v2:folder").batch_size


def test_a_run_keeps_its_sizes_when_images_are_added(tmp_path):
    write(tmp_path / "photos", 40)
    config = config_of("simclr_v1:folder", tmp_path / "photos")
    fit.fit(config, ["data.path"], tmp_path / "run")
    keep(config, tmp_path / "run")
    (tmp_path / "run/last/1").mkdir(parents=True)
    write(tmp_path / "photos", 400)
    again = config_of("simclr_v1:folder", tmp_path / "photos")
    fit.fit(again, ["data.path"], tmp_path / "run")
    assert again.batch_size == config.batch_size
    fit.fit(again, ["data.path"], tmp_path / "another")
    assert again.batch_size > config.batch_size


@pytest.mark.parametrize("now", ["photos/", "./photos", "moved"])
def test_a_resume_may_spell_the_path_otherwise_or_follow_a_renamed_folder(
    now, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "photos", 40)
    config = config_of("simclr_v1:folder", "photos", total_epochs="16")
    fit.fit(config, ["data.path", "total_epochs"], tmp_path / "run")
    keep(config, tmp_path / "run")
    (tmp_path / "run/last/1").mkdir(parents=True)
    if now == "moved":
        (tmp_path / "photos").rename(tmp_path / now)
    again = config_of("simclr_v1:folder", now)
    fit.fit(again, ["data.path"], tmp_path / "run")
    assert again.total_epochs == 16
    write(tmp_path / "photos", 40)  # the old place is there, and the other is not it
    write(tmp_path / "others", 40)
    other = config_of("simclr_v1:folder", "others")
    fit.fit(other, ["data.path"], tmp_path / "run")
    assert other.total_epochs != 16


def keep(config, place):
    place.mkdir(parents=True)
    (place / "config.json").write_text(config.to_json_best_effort())


@pytest.mark.parametrize("name, stage", [("simclr_v1", ""), ("simclr_v2", "pretrain")])
def test_an_attempt_that_saved_nothing_leaves_no_sizes(name, stage, photos, tmp_path):
    """As one whose batch did not fit into memory; a later stage's are not the first one's."""
    tried = config_of(f"{name}:folder", photos, batch_size="512")
    fit.fit(tried, ["data.path", "batch_size"], tmp_path)
    root = tmp_path / "run"
    keep(tried, root / stage)
    if stage:
        keep(tried, root / "finetune")
        (root / "finetune/last/1").mkdir(parents=True)
    again = config_of(f"{name}:folder", photos)
    fit.fit(again, ["data.path"], root)
    assert again.batch_size == fit.BATCH[0]
    (root / stage / "last/1").mkdir(parents=True)
    fit.fit(again, ["data.path"], root)
    assert again.batch_size == 512


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("data.name", "foldr", r"cl_jax\.data\.foldr does not exist; .* did you mean 'folder'"),
        ("data.limit", "abc", r"data\.limit='abc'; expected a whole number"),
        ("data.test_share", "1.5", r"data\.test_share=1\.5; expected from 0 to 1"),
        ("data.channels", "rgb", r"data\.channels='rgb'; expected a whole number"),
        ("total_epochs", "nan", r"total_epochs=nan; expected finite numbers"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_fitted(key, value, words, photos, tmp_path):
    config = configs.load("simclr_v1:folder")
    configs.change(config, [("data.path", str(photos)), (key, value)])
    with pytest.raises(ValueError, match=words):
        fit.fit(config, ["data.path", key], tmp_path)


def test_too_few_images_are_refused(tmp_path):
    write(tmp_path, 10)
    with pytest.raises(ConfigError, match=r"has \d+ training images; expected at least 16"):
        fit.fit(config_of("byol:folder", tmp_path), [], tmp_path)


@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_other_channels_are_normalised_by_their_number(channels, photos, tmp_path):
    config = config_of("simclr_v1:folder", photos, **{"data.channels": str(channels)})
    fit.fit(config, ["data.path", "data.channels"], tmp_path)
    assert len(config.views.both.mean) == channels
    recipe = {key: value for key, value in config.views.both.items() if key != "copies"}
    drawn = jax.eval_shape(
        partial(views.make(recipe).draw, jax.random.split(jax.random.key(0), 2)),
        {"image": jnp.zeros((2, 24, 24, channels), jnp.uint8)},
    )
    assert drawn.shape == (2, 64, 64, channels)


def test_photographs_keep_the_proportions_of_their_recipe():
    recipes = ConfigDict(
        dict(
            a=dict(name="dino", crop="global1", size=224, scale=(0.4, 1.0)),
            b=dict(name="dino", crop="local", size=96, scale=(0.05, 0.4), copies=8),
            c=dict(name="simclr"),
        )
    )
    found = defaults.photographs(recipes, 64)
    assert [found[name].size for name in "abc"] == [64, 24, 64]
    assert found.b.scale == (0.05, 0.4) and found.b.copies == 8
    assert found.a.blur_sigma == (0.1, 0.57)
    assert found.c.mean == defaults.NORMALISED["mean"] and "mean" not in found.a


@pytest.mark.parametrize(
    "name, path, workdir",
    [
        ("simclr_v2:folder", "/data/photos", "runs/simclr_v2-photos"),
        ("configs/dino.py:vit,folder,debug", "photos/", "runs/dino_vit_debug-photos"),
        ("simclr_v2", None, "runs/simclr_v2"),
        ("my_lab.mine:debug", None, "runs/mine_debug"),
    ],
)
def test_the_workdir_is_named_by_config_and_folder(name, path, workdir):
    assert train.default_workdir(name, path) == workdir


@pytest.mark.parametrize("path, words", [(".", []), ("../photos", ["--workdir=../photos"])])
def test_a_run_in_the_folder_of_its_data_is_refused_at_once(
    path, words, tmp_path, monkeypatch, capsys
):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    monkeypatch.setattr(fit, "fit", lambda *_: pytest.fail("the data were looked at"))
    assert train.main(["simclr_v2:folder,debug", path, *words]) == 1
    said = capsys.readouterr().err
    assert f"lies in the folder of the data, {tmp_path}/photos; expected a folder outside" in said
    assert f"--workdir={tmp_path}/runs/" in said
    assert not list((tmp_path / "photos").iterdir())


def test_a_run_in_the_folder_of_one_of_its_sources_is_refused(tmp_path, capsys):
    config, words = "spcl:folders,debug", []
    for role in ("source", "target"):
        (tmp_path / role).mkdir()
        words.append(f"--config.data.{role}.path={tmp_path / role}")
    assert train.main([config, *words, f"--workdir={tmp_path / 'target' / 'run'}"]) == 1
    assert f"lies in the folder of the data, {tmp_path}/target;" in capsys.readouterr().err


@pytest.mark.parametrize("path, workdir", [("photos", "run"), ("photos/a.csv", "photos/run")])
def test_a_run_beside_its_data_or_beside_its_file_is_not_refused(
    path, workdir, tmp_path, monkeypatch, capsys
):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.csv").write_text("")
    monkeypatch.setattr(fit, "fit", lambda *_: (_ for _ in ()).throw(ConfigError("surveyed")))
    words = ["simclr_v2:folder", str(tmp_path / path), f"--workdir={tmp_path / workdir}"]
    assert train.main(words) == 1
    assert "error: surveyed" in capsys.readouterr().err


def test_a_folder_without_a_path_is_left_to_the_build(tmp_path):
    config = configs.load("simclr_v1:debug")
    configs.change(config, [("data.name", "folder")])
    assert fit.fit(config, ["data.name"], tmp_path) == []
    with pytest.raises(ConfigError, match=r"cl_jax\.data\.folder\.make has no setting"):
        experiment.build(config)


@pytest.mark.parametrize("steps, fitted", [(256, 1000 // 64), (None, None)])
def test_a_length_in_steps_that_is_switched_off_stays_so(steps, fitted):
    config = configs.load("swav:folder").unlock()
    config.optimizer.freeze_steps = steps
    found = fit._sizes(config, 12.0, 1000, {})
    assert found.get("optimizer.freeze_steps") == fitted
