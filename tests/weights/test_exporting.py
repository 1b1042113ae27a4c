"""Weights go out under the names of other libraries as they came in."""

import json
from types import SimpleNamespace
from typing import ClassVar

import flax.traverse_util
import numpy as np
import pytest
from jax import export as jax_export
from safetensors.numpy import load_file, save_file

import cl_jax
from cl_jax.core.errors import ConfigError, SaveError
from cl_jax.core.tokens import MARKS
from cl_jax.tools import export, import_
from cl_jax.training import configs
from cl_jax.views import image
from cl_jax.weights import (
    card,
    exporting,
    folders,
    huggingface,
    importing,
    limits,
    names,
    network,
    padding,
    programs,
)
from tests.tools import kept
from tests.weights import tiny
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


def test_an_encoder_beside_a_predictor_is_found():
    class Run:
        workdir, config = "here", configs.load("byol:debug")
        built = SimpleNamespace(views=())
        net = tiny.network("resnet", blocks=(1, 1), variant="byol", width=0.125)
        variables: ClassVar = {
            "params": {"network": {"encoder": net.params, "head": {}}, "predictor": {}},
            "batch_stats": {"network": {"encoder": net.stats}},
        }

    with Run.config.unlocked():
        Run.config.encoder = dict(name="resnet", blocks=(1, 1), variant="byol", width=0.125)
    found = network.of_run(Run)
    assert found.stats.keys() == Run.net.stats.keys() and found.kind == "resnet"
    np.testing.assert_array_equal(
        found.params["stem_conv1"]["kernel"], Run.net.params["stem_conv1"]["kernel"]
    )
    Run.variables["params"]["other"] = {"encoder": {}}
    with pytest.raises(ConfigError, match="its parts: network, other, predictor"):
        network.of_run(Run)


def views_of(config):
    return tuple(
        image.make(**{k: v for k, v in view.items() if k not in ("kind", "copies")})
        for view in configs.plain(config)["views"].values()
    )


@pytest.mark.parametrize("name, side", [("simclr_v1:cifar10", 32), ("simclr_v1:imagenet2012", 224)])
def test_images_have_the_side_of_the_runs_views(name, side, tmp_path):
    """Where the size is the recipe's own, which the config does not say."""
    config = configs.load(name)
    net = tiny.network("resnet", blocks=(1, 1), width=0.125)
    with config.unlocked():
        config.encoder = dict(name="resnet", blocks=(1, 1), width=0.125)
    run = SimpleNamespace(
        workdir=tmp_path,
        config=config,
        step=0,
        built=SimpleNamespace(views=views_of(config)),
        variables={"params": {"encoder": net.params}, "batch_stats": {"encoder": net.stats}},
    )
    found = network.of_run(run)
    assert found.side == side
    assert f"- Images: [N, 3, {side}, {side}]" in card.text(run, found, "onnx", [])


def test_the_card_of_a_vit_has_the_side_of_its_positions():
    sizes = dict(width=16, depth=1, heads=1, patch=8, image_size=32)
    learnt = tiny.network("vit", 16, variant="dino", **sizes)
    assert (learnt.side, learnt.named_side) == (16, 32)
    assert tiny.network("vit", 16, variant="moco_v3", **sizes).named_side == 16


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    save_file(tensors_of("timm vit"), root / "x.safetensors")
    assert not import_.main([str(root / "x.safetensors"), f"--out={root}/run"])
    return cl_jax.load(root / "run")


def test_a_data_path_that_is_not_utf_8_is_in_the_card(run, tmp_path, monkeypatch):
    text = card.text
    monkeypatch.setattr(card, "text", lambda *args: text(*args) + "- Data: B\udce4ume")
    assert not export.main([str(run.workdir), "--to=timm", f"--out={tmp_path}/out"])
    assert "B\\udce4ume" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("to", exporting.TARGETS)
def test_what_is_written_answers_as_the_run(to, run, tmp_path, capsys):
    assert not export.main([str(run.workdir), f"--to={to}", f"--out={tmp_path}/out"])
    assert "largest difference on random inputs" in capsys.readouterr().out
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


def carded(workdir, name, step=0):
    """A run and a network, for the card of a config with two residual blocks."""
    config = configs.load(name)
    built = SimpleNamespace(views=views_of(config))
    net = tiny.network("resnet", blocks=(1, 1), width=0.125)
    return SimpleNamespace(workdir=workdir, config=config, step=step, built=built), net


def test_the_card_has_the_figures_of_its_own_step(tmp_path, caplog):
    def figures(step):
        run, net = carded(tmp_path, "simclr_v1", step)
        found = card.text(run, net, "timm", ["compared", "half of it"])
        assert "Written by cl_jax for timm. Compared. Half of it." in found
        rows = found.split("| evaluation | |\n|---|---|\n")[1].split("\n\n## Config")[0]
        return rows.split("\n")

    assert figures(5) == figures(0) == ["| none | |"]
    log = [
        {"step": 0, "untrained/knn/top1": 0.1},
        {"step": 5, "time": 1.0, "knn/top1": 0.25, "eval_seconds": 2.0},
        {"step": 5, "loss": 3.0, "learning_rate": 0.1},
        {"step": 9, "knn/top1": 0.75},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    path = tmp_path / "eval.json"
    path.write_text('{"step": 5, "knn/top1": 0.5}')
    assert figures(5) == ["| knn/top1 | 0.5 |"]
    assert figures(9) == ["| knn/top1 | 0.75 |"]  # not those of eval.json, of an earlier State
    assert figures(7) == figures(0) == ["| none | |"]
    path.write_text("{")
    assert figures(5) == ["| knn/top1 | 0.25 |"] and "the card has the log's" in caplog.text


def test_the_card_says_how_images_are_normalised(tmp_path):
    def said(name, *changes):
        run, net = carded(tmp_path, name)
        run.built.views = changes or run.built.views
        lines = card.text(run, net, "timm", []).split("\n")
        return next(line for line in lines if line.startswith("- Images"))

    imagenet = "from 0 to 1, then mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)."
    assert said("moco_v2:folder").endswith(imagenet)
    assert said("simclr_v1").endswith("from 0 to 1, not normalised.")
    assert "converted to lab, then mean (50.0, " in said("simclr_v1", image.make(name="cmc_lab"))
    assert said("simclr_v1", object()).endswith("as the view of the config makes them.")


def test_what_cannot_be_exported_is_named_and_leaves_nothing(run, tmp_path):
    with pytest.raises(ConfigError, match="to='caffe'; expected one of torchvision"):
        exporting.write(run, "caffe", tmp_path / "out")
    with pytest.raises(ConfigError, match="is there already"):
        exporting.write(run, "timm", tmp_path)
    assert not list(tmp_path.iterdir())


WIDE = dict(blocks=(1, 1, 1, 1))


@pytest.mark.parametrize(
    "to, kind, section, words",
    [
        ("timm", "resnet", dict(blocks=(1,), variant="simclr"), "stem: the max-pool and shortcuts"),
        ("timm", "resnet", dict(blocks=(1,), stem="cifar"), "stem_conv1: 3x3 without a max-pool"),
        (
            "huggingface",
            "resnet",
            dict(blocks=(1,), bottleneck=True, sk_ratio=0.1, width=0.5),
            "stage1_block1/sk: selective kernels",
        ),
        ("timm", "resnet", dict(blocks=(1, 1)), "stage2_block1: 2 stages; huggingface has it"),
        ("timm", "resnet", WIDE | dict(width=2.0), "stem_conv1: 128 channels in place of 64"),
        (
            "torchvision",
            "resnet",
            WIDE | dict(width=0.5, stem_width=16),
            "stem_conv1: 16 channels in place of 64",
        ),
        (
            "torchvision",
            "resnet",
            WIDE | dict(width=0.5, stem_width=64),
            "stage1_block1: width 0.5; timm and huggingface have it",
        ),
        ("torchvision", "transformer", tiny.TEXT, "embedding: it reads tokens"),
        ("huggingface", "transformer", tiny.TEXT | dict(style="clip"), "norms_0_0: the norms of"),
        ("huggingface", "transformer", tiny.TEXT | dict(causal=True), "blocks_0/attention: causal"),
        ("onnx", "transformer", tiny.TEXT | dict(style="t5"), "relative: positions by distance"),
        ("onnx", "clip", tiny.CLIP, "towers: two encoders in one"),
        ("huggingface", "clip", tiny.CLIP | dict(share="blocks"), "shared_blocks_0: one block"),
    ],
)
def test_layers_that_a_target_does_not_have_are_named(to, kind, section, words):
    net = tiny.network(kind, 16, **section)
    with pytest.raises(ConfigError, match=f"{to} cannot express this .*: {words}"):
        limits.refuse(net, to)


def test_five_channels_are_not_torchvisions():
    net = tiny.network("vit", 16, 5, width=16, depth=1, heads=1, patch=8)
    with pytest.raises(ConfigError, match="patches: 5 channels of images"):
        limits.refuse(net, "torchvision")
    limits.refuse(net, "timm")


@pytest.mark.parametrize("kind", ["transformer", "clip"])
def test_bert_and_clip_as_hugging_face_folders(kind, tmp_path):
    """Computed again from the folder alone, by its names and config; the vocabulary is the run's,
    whose file is gone."""
    workdir, gone = tmp_path / "run", str(tmp_path / "bert" / "vocab.txt")
    workdir.mkdir()
    kept = {"tokenizer": {"pieces": [*MARKS, "a"], "lowercase": True}}
    (workdir / "learnt.json").write_text(json.dumps(kept))
    config = SimpleNamespace(data={"tokenizer_path": gone})
    run = SimpleNamespace(config=config, workdir=workdir)
    section = tiny.TEXT | dict(pool="cls") if kind == "transformer" else tiny.CLIP
    net = tiny.network(kind, 16, head=kind == "transformer", **section)
    difference, _ = folders.tokens(run, net, tmp_path)
    assert difference.largest < 1e-5
    if kind == "transformer":
        assert (tmp_path / "vocab.txt").read_text().split() == [*MARKS, "a"]
    settings = json.loads((tmp_path / "config.json").read_text())
    tensors = load_file(tmp_path / "model.safetensors")
    assert settings["model_type"] == {"transformer": "bert"}.get(kind, kind)
    assert ("pooler.dense.weight" in tensors) == (kind == "transformer")
    if kind == "clip":  # a wrong tensor is noticed
        tensors["text_projection.weight"] = -tensors["text_projection.weight"]
        save_file(tensors, tmp_path / "model.safetensors")
        inputs = net.inputs
        _, text = huggingface.clip_answers(tmp_path, inputs["images"], inputs["tokens"])
        assert np.abs(text - net.answers(inputs)["text_z"]).max() > 0.1


def test_answers_that_differ_are_refused_and_leave_nothing(run, tmp_path, monkeypatch):
    found = network.Difference(2e-4, 0.5)
    monkeypatch.setattr(programs, "stablehlo_file", lambda net, folder: (found, "by a test"))
    with pytest.raises(ConfigError, match=r"differ by 0.0002 from the run's; expected at most"):
        exporting.write(run, "stablehlo", tmp_path / "out")
    found = network.Difference(9.0, 58_000.0)
    with pytest.raises(ConfigError, match=r"differ by 9, which is 0.00016 of the root mean square"):
        exporting.write(run, "stablehlo", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_difference_is_judged_against_answers_above_1():
    ours = {"h": np.full((2, 4), 58_000.0, np.float32)}
    found = network.difference({"h": ours["h"] + 0.5}, ours)
    assert found == (0.5, 58_000.0) and found.relative == pytest.approx(0.5 / 58_000)
    assert str(found).startswith("0.5, which is 8.6e-06 of the root mean square of the answers")
    small = {"h": np.full((2, 4), 1e-3, np.float32)}  # a small network is not held to less
    assert network.difference({"h": small["h"] + 2e-4}, small).relative == pytest.approx(2e-4)
    for bad in (np.nan, np.inf):  # of any of several answers, on either side
        odd = {"a": np.zeros((1, 2)), "b": np.array([[1.0, bad]])}
        even = {"a": np.ones((1, 2)), "b": np.ones((1, 2))}
        for pair in ((odd, even), (even, odd), (odd, odd)):
            assert not network.difference(*pair).relative <= exporting.TOLERANCE


@pytest.mark.parametrize("bottleneck", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_narrow_resnet_goes_out_as_a_part_of_a_full_one(bottleneck, tmp_path):
    net = tiny.network("resnet", blocks=(1, 1, 1, 1), bottleneck=bottleneck, width=1 / 16)
    limits.refuse(net, "torchvision")
    limits.refuse(net, "timm")
    found, _ = folders.images(net, "torchvision", tmp_path)
    assert found.largest < 1e-5
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["conv1.weight"].shape == (64, 3, 7, 7)
    assert tensors[f"layer4.0.bn{2 + bottleneck}.weight"].shape == (512 * (4 if bottleneck else 1),)
    assert not tensors["layer1.0.conv2.weight"][4:].any() and tensors["bn1.running_var"][4:].all()
    assert "width 0.0625 is written as width 1" in padding.told(net)


def test_a_place_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out=.*file/out cannot be written"):
        exporting.write(run, "timm", tmp_path / "file" / "out")


def test_a_full_disk_leaves_nothing(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(programs, "stablehlo_file", full)
    with pytest.raises(SaveError, match=r"out cannot be written: No space left"):
        exporting.write(run, "stablehlo", tmp_path / "out")
    assert not list(tmp_path.iterdir())
    with pytest.raises(SaveError, match=r"model\.safetensors cannot be written: .*os error"):
        folders._write_tensors(tmp_path / "none" / "model.safetensors", {"a": np.zeros(2)})


def test_a_run_of_sentences(tmp_path, capsys):
    """SimCSE's network: BERT's, so that a folder, ONNX and StableHLO have it and timm does not."""
    workdir = kept.sentences(tmp_path / "run")
    for to in ("huggingface", "onnx"):
        assert not export.main([str(workdir), f"--to={to}", f"--out={tmp_path}/{to}"])
        card = (tmp_path / to / "README.md").read_text()
        assert "Tokens: [N, 20], 0 padding" in card and "the mean over tokens" in card
    capsys.readouterr()
    assert export.main([str(workdir), "--to=timm", f"--out={tmp_path}/timm"]) == 1
    said = capsys.readouterr().err
    assert "timm cannot express this transformer: embedding" in said and said.count("\n") == 1
