"""A run that has begun goes on in a version that knows more than the one that began it."""

import json

import pytest
from ml_collections import ConfigDict

from cl_jax.training import configs, experiment, rebuilding, resuming
from tests.data.photos import put


def test_a_run_that_was_begun_on_folders_named_like_parts_goes_on(tmp_path):
    """Earlier versions took them for classes."""
    for name in ("my_train", "my_test"):
        for i in range(3):
            put(tmp_path / "data" / name / f"{i}.png", size=(8, 8))
    section = dict(name="folder", path=str(tmp_path / "data"), image_size=8)
    two = dict(name="domains", source=section, target=dict(section, labels=False))
    before = configs.load("simclr_v1:folder").unlock()
    before.data = ConfigDict(section)

    def read(workdir, data=section, **more):
        config = ConfigDict({"data": data, "seed": 0, **more})
        there = rebuilding.as_begun(config, tmp_path / workdir)
        assert "on_parts" not in config.data  # the run keeps its config
        return experiment.load_data(there)

    def begin(workdir, config):
        (tmp_path / workdir / "last" / "1").mkdir(parents=True)
        (tmp_path / workdir / "config.json").write_text(json.dumps(configs.plain(config)))

    begin("run/pretrain", before)
    assert read("run/pretrain").train.classes["label"] == ("my_test", "my_train")
    assert read("run/pretrain", two).train.size  # sources in a section
    assert read("run/finetune", previous="../pretrain").train.size == 4
    with pytest.raises(ValueError, match="named like parts"):
        read("new")
    (tmp_path / "elsewhere").mkdir()
    before.data.path = str(tmp_path / "elsewhere")
    begin("other/pretrain", before)
    with pytest.raises(ValueError, match="named like parts"):
        read("other/finetune", previous="../pretrain")
    given = dict(section, on_parts="warn")
    changed, noted = resuming.differences({"data": section}, {"data": given})
    assert not changed and len(noted) == 1
