"""Stages of a config: what the user set holds for all that have it, views keep their order, and a
stage starts from one that has ended."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from cl_jax.core.errors import ConfigError, NotFoundError, WithoutEffect
from cl_jax.core.method import Run
from cl_jax.training import configs, experiment, fingerprint, loop, resuming, stages
from tests import small

ORDER = ["pretrain", "finetune", "distill"]


RUN = Run(None, 8, 64, 8, 8, {})


def of(stage, *settings):
    """{stage: its config} of simclr_v2, as on a command line."""
    config = configs.load("simclr_v2:debug")
    with config.unlocked():
        config.stage = stage
    configs.change(config, [tuple(setting.split("=")) for setting in settings])
    given = [setting.split("=")[0] for setting in settings]
    return {name: found for name, found, _ in stages.stages(config, "w", given)}


def test_the_size_of_a_view_is_that_of_every_stage():
    found = of("all", "views.both.size=24")
    assert [stage.views[name].size for stage in found.values() for name in stage.views] == [24] * 3


def test_a_setting_of_the_optimiser_reaches_the_stage_that_is_asked_for():
    found = of("finetune", "optimizer.learning_rate=123")
    assert list(found) == ["finetune"] and found["finetune"].optimizer.learning_rate == 123
    assert found["finetune"].optimizer.name == "adamw"


def test_a_setting_that_no_stage_reads_is_refused_where_it_is_given(tmp_path):
    """Momentum is read by SGD, and not by the AdamW of this config."""
    names = ("optimizer.name=sgd", "stages.finetune.optimizer.name=adamw")
    found = of("all", *names, "optimizer.momentum=0.5")
    optimizer = found["finetune"].optimizer
    assert (optimizer.name, optimizer.momentum) == ("adamw", 0.5)
    for stage, key in (
        ("finetune", "optimizer.momentum=0.5"),
        ("all", "stages.finetune.optimizer.momentum=0.5"),
        ("all", "optimizer.milestones_epochs=(1.0,)"),
    ):
        with pytest.raises(ConfigError, match=r"^optimizer\.m.* has no effect with"):
            of(stage, key)
    config = configs.load("simclr_v1:debug").unlock()
    config.optimizer.freeze_steps = 3
    given = ["optimizer.freeze_steps"]
    with pytest.raises(ConfigError, match="has no effect without freeze_paths"):
        stages.stages(config, tmp_path, given)
    assert stages.stages(config, tmp_path)
    (tmp_path / "last/1").mkdir(parents=True)  # the run of an older version, resumed
    assert stages.stages(config, tmp_path, given)


@pytest.mark.parametrize("name, steps", [("warmup", 2), ("freeze", 256)])
def test_epochs_that_the_user_gives_beside_steps_are_refused(name, steps, tmp_path):
    def found(*settings):
        config = configs.load("swav").unlock()
        config.optimizer.warmup_steps = 2
        configs.change(config, settings)
        return stages.stages(config, tmp_path, [key for key, _ in settings])

    epochs = (f"optimizer.{name}_epochs", "0.0")
    words = rf"^optimizer\.{name}_epochs=0\.0 has no effect beside {name}_steps={steps}, which wins"
    with pytest.raises(ConfigError, match=words):
        found(epochs)
    assert found(epochs, (f"optimizer.{name}_steps", "None"))
    (tmp_path / "last/1").mkdir(parents=True)  # the run of an older version, resumed
    assert found(epochs)


def test_a_wrong_setting_of_the_optimiser_is_a_sentence_where_a_run_is_read(tmp_path):
    config = configs.load("simclr_v1:debug").unlock()
    resuming.check_config(tmp_path, configs.plain(config))
    config.optimizer.parts = 3
    with pytest.raises(ConfigError, match=r"optimizer\.parts=3; expected a section of settings"):
        stages.load(tmp_path, config)


def test_stages_do_not_start_inside_a_run(tmp_path):
    config = configs.load("simclr_v2:debug")
    (tmp_path / "pretrain/last/1").mkdir(parents=True)
    assert stages.stages(config, tmp_path)[0][2] == tmp_path / "pretrain"
    with pytest.raises(ConfigError, match=f"Give --workdir={tmp_path}."):
        stages.stages(config, tmp_path / "pretrain")
    (tmp_path / "best/1").mkdir(parents=True)
    with pytest.raises(ConfigError, match="of their own in the workdir"):
        stages.stages(config, tmp_path)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (None, r"stages has pretrain, finetune, distill, .* missing or empty; set .*'finetune',"),
        ((), "missing or empty"),
        (("pretrain", "finetun"), "'finetun', .* did you mean 'finetune'.* finetun=dict()"),
    ],
)
def test_stages_and_their_order_name_the_same(order, words):
    config = configs.load("simclr_v2:debug").unlock()
    del config.stage_order
    if order is not None:
        config.stage_order = order
    with pytest.raises(ConfigError, match=words):
        stages.stages(config, "w")


def test_settings_of_all_and_of_one_stage():
    found = of("all", "optimizer.learning_rate=0.5", "total_epochs=2", "data.train_size=32")
    assert [found[name].optimizer.learning_rate for name in ORDER] == [0.5] * 3
    assert [found[name].total_epochs for name in ORDER] == [2.0] * 3
    assert [found[name].data.train_size for name in ORDER] == [32] * 3
    assert [found[name].data.get("fraction") for name in ORDER] == [None, 0.5, None]
    found = of("all", "total_epochs=2", "stages.finetune.total_epochs=5")
    assert [found[name].total_epochs for name in ORDER] == [2.0, 5.0, 2.0]


def test_a_setting_of_another_method_stays_with_its_own():
    found = of("all", "method.temperature=0.9")
    assert found["pretrain"].method.temperature == 0.9
    assert "temperature" not in found["finetune"].method
    assert found["distill"].method.temperature == 0.1
    assert of("distill", "method.temperature=0.9")["distill"].method.temperature == 0.9


@pytest.mark.parametrize("text", ["semi", "semi,debug", "tu,semi"])
def test_graphs_are_fine_tuned_without_the_machine_that_needs_many_of_each_class(text):
    config = configs.load(f"graphcl:{text}").unlock()
    config.stage, given = "all", ["evals.protocols.svm_folds.repeats", "evals.protocols.knn.k"]
    for keys in ([], given):
        configs.change(config, [(key, "3") for key in keys])
        (_, first, _), (_, second, _) = stages.stages(config, "w", keys)
        added = {"knn"} if keys else set()
        assert set(first.evals.protocols) == {"svm_folds"} | added
        assert set(second.evals.protocols) == {"classifier"} | added
    assert first.evals.protocols.svm_folds.repeats == 3
    assert first.evals.protocols.knn.k == second.evals.protocols.knn.k == 3


def test_views_keep_the_order_in_which_they_are_written(tmp_path):
    config = configs.load("simclr_v1:debug").copy_and_resolve_references().unlock()
    both = configs.plain(config.views.both)
    for names in (["small", "large", "a"], ["a", "large", "small"]):
        config.views = ConfigDict(
            {name: both | {"size": 4 + i, "copies": 1} for i, name in enumerate(names)}
        )
        (_, stage, _), *_ = stages.stages(config, tmp_path)
        assert list(configs.plain(stage)["views"]) == names
        assert [view.recipe.size for view in experiment._views(stage.views, RUN)] == [4, 5, 6]


@pytest.fixture
def previous(monkeypatch, tmp_path):
    """The config of a stage, and what it would start from: a small run with steps done."""

    def make(steps):
        config = configs.load("simclr_v1:debug").copy_and_resolve_references().unlock()
        config.update({"devices": 1, "total_epochs": 2.0})
        built = small.epochal(config)
        monkeypatch.setattr(stages, "build", lambda *_: built)
        _, config, _ = stages.stages(config, tmp_path)[0]
        resuming.check_config(tmp_path / "first", configs.plain(config))
        stepper, state = loop.stepper(built, config, 0), loop.initial_state(built, config)
        for _ in range(steps):
            state, _ = stepper(state)
        store = loop.checkpoint.Checkpoints(tmp_path / "first")
        store.save(state)
        store.close()
        return ConfigDict({"previous": "../first"})

    return make


def test_a_stage_starts_from_one_that_has_ended(previous, tmp_path):
    found = stages.previous_stage(previous(6), tmp_path / "second")
    assert int(found.state.step) == 6
    # A program for one device refuses to close over arrays of a mesh of more.
    assert all(
        isinstance(x.sharding, jax.sharding.SingleDeviceSharding)
        for x in jax.tree.leaves(found.state)
    )


def test_an_unfinished_stage_is_not_started_from(previous, tmp_path):
    with pytest.raises(ConfigError, match=r"first, which is at step 4 of 6\. Finish it first"):
        stages.previous_stage(previous(4), tmp_path / "second")


def test_a_run_is_loaded_by_a_config_that_lists_a_default(tmp_path, monkeypatch):
    """As a resume takes it, so does an evaluation."""
    config = stages.stages(configs.load("simclr_v1:debug"), tmp_path)[0][1].unlock()
    resuming.check_config(tmp_path, configs.plain(config))
    monkeypatch.setattr(stages, "build", lambda config, *_: small.epochal(config))
    assert "b1" not in config.optimizer and config.optimizer.name == "adamw"
    config.optimizer.b1 = 0.9
    with pytest.raises(NotFoundError, match="has no checkpoint yet"):  # the run is the config's
        stages.load(tmp_path, config)
    config.optimizer.b1 = 0.5
    with pytest.raises(ConfigError, match=r"optimizer\.b1: 0\.9 in the workdir, 0\.5 now"):
        stages.load(tmp_path, config)


def test_a_run_with_a_drop_path_that_is_not_drawn_is_loaded_and_none_begins(tmp_path):
    config = stages.stages(configs.load("swav:debug"), tmp_path)[0][1].unlock()
    vit = dict(name="vit", width=8, depth=1, heads=1, patch=4, image_size=16, dtype="float32")
    config.devices, config.encoder = 1, ConfigDict(vit | dict(drop_path=0.5))
    with pytest.warns(WithoutEffect, match=r"drop_path=0\.5: this method does not draw it"):
        built = experiment.build(config)
        shapes = experiment.shape_of_state(built)
        zeros = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype)), shapes)
        stages.keep(tmp_path / "old", config, built.data, zeros)
        assert stages.load(tmp_path / "old", with_data=False)[0].encoder.drop_path == 0.5
        with pytest.raises(ConfigError, match=r"drop_path=0\.5: this method does not draw it"):
            loop.train(config, tmp_path / "new")


def test_a_resume_may_leave_out_what_the_method_did_not_do(tmp_path, monkeypatch):
    """As where a later version of a config sets no drop path in a stage that drew none."""
    config = stages.stages(configs.load("swav:debug"), tmp_path)[0][1].unlock()
    vit = dict(name="vit", width=8, depth=1, heads=1, patch=4, image_size=16, dtype="float32")
    config.encoder = ConfigDict(vit | dict(drop_path=0.5))
    resuming.check_config(tmp_path, configs.plain(config))
    (tmp_path / "last" / "1").mkdir(parents=True)
    fingerprint.check(tmp_path, config, experiment.load_data(config))
    for changes, refused in (
        (dict(drop_path=0.25), "drop_path"),
        (dict(drop_path=0.0, freeze_patches=True), "freeze_patches"),
        (dict(drop_path=0.0), ""),
    ):
        config.encoder = ConfigDict(vit | changes)
        leeway = stages.leeway_of(tmp_path, config)
        found = resuming.differences(
            configs.plain(configs.of_run(tmp_path)), configs.plain(config), leeway
        )
        assert [line.split(":")[0].strip() for line in found[0]] == (
            [f"encoder.{refused}"] if refused else []
        )
        assert found[1] == ["  encoder.drop_path: 0.5 in the workdir, 0.0 now"] or refused
    monkeypatch.setattr(stages, "shape_of_state", lambda built: None)  # of one that draws it
    with pytest.raises(ConfigError, match=r"encoder\.drop_path: 0\.5 in the workdir, 0\.0 now"):
        resuming.check_config(tmp_path, configs.plain(config), stages.leeway_of(tmp_path, config))


def test_a_stage_that_was_not_run_is_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"starts from the end of another stage.*--stage=all"):
        stages.previous_stage(ConfigDict({"previous": "../first"}), tmp_path / "second")
