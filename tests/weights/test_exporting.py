"""Weights go out under the names of other libraries as they came in."""

import json

import flax.traverse_util
import numpy as np
import pytest
from jax import export as jax_export
from safetensors.numpy import load_file, save_file

import cl_jax
from cl_jax.core.errors import ConfigError
from cl_jax.tools import export, import_
from cl_jax.weights import exporting, importing, names
from tests.weights.test_importing import CASES, tensors_of


@pytest.mark.parametrize("case", CASES)
def test_names_and_numbers_come_back(case, tmp_path):
    tensors = tensors_of(case)
    save_file(tensors, tmp_path / "x.safetensors")
    found = importing.read(tmp_path / "x.safetensors")
    dialect, back = names.DIALECTS[found.dialect], {}
    flat = flax.traverse_util.flatten_dict(found.params) | flax.traverse_util.flatten_dict(
        found.stats
    )
    for at, value in flat.items():
        called = dialect.names(at)
        back |= dict(zip(called, names.to_theirs(at, value, len(called)), strict=True))
    scaled = any("gamma" in name or "lambda1" in name for name in tensors)
    assert back.keys() == {k for k in tensors if "gamma" not in k and "lambda1" not in k}
    for name, value in back.items():
        if not (scaled and ("proj" in name or "dense" in name or "fc2" in name)):
            np.testing.assert_array_equal(value.reshape(tensors[name].shape), tensors[name], name)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    save_file(tensors_of("timm vit"), root / "x.safetensors")
    assert not import_.main([str(root / "x.safetensors"), f"--out={root}/run"])
    return cl_jax.load(root / "run")


@pytest.mark.parametrize("to", exporting.TARGETS)
def test_what_is_written_answers_as_the_run(to, run, tmp_path, capsys):
    assert not export.main([str(run.workdir), f"--to={to}", f"--out={tmp_path}/out"])
    assert "largest difference on random images" in capsys.readouterr().out
    card = (tmp_path / "out/README.md").read_text()
    assert "Licence" in card and f"for {to}" in card
    if to == "timm":
        theirs = load_file(tmp_path / "out/model.safetensors")
        own = tensors_of("timm vit")
        assert theirs.keys() == {name for name in own if "gamma" not in name}
    if to == "huggingface":
        settings = json.loads((tmp_path / "out/config.json").read_text())
        assert (settings["model_type"], settings["num_attention_heads"]) == ("vit", 1)
    if to == "stablehlo":
        data = bytearray((tmp_path / "out/model.stablehlo").read_bytes())
        images = np.zeros((3, 64, 64, 3), np.float32)
        assert jax_export.deserialize(data).call(images).shape == (3, 64)


def test_what_cannot_be_exported_is_named_and_leaves_nothing(run, tmp_path):
    with pytest.raises(ConfigError, match="to='caffe'; expected one of torchvision"):
        exporting.write(run, "caffe", tmp_path / "out")
    with pytest.raises(ConfigError, match="is there already"):
        exporting.write(run, "timm", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "section, words",
    [
        (dict(variant="simclr"), "stem: the max-pool and shortcuts of variant simclr"),
        (dict(stem="cifar"), "stem_conv1: 3x3 without a max-pool"),
        (dict(sk_ratio=0.1), "stage1_block1/sk: selective kernels"),
        (dict(width=0.5), r"stem_conv1: width 0.5; timm and huggingface have it"),
    ],
)
def test_layers_that_a_target_does_not_have_are_named(section, words):
    with pytest.raises(ConfigError, match=words):
        exporting._refuse(dict(name="resnet") | section, "torchvision")
