"""Networks of other libraries: the answers that they gave, and files that are refused."""

import collections
import io
import json
import os
import pickle
import struct
import zipfile

import flax.traverse_util
import jax
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

import cl_jax
from cl_jax.core.errors import ConfigError, NotFoundError
from cl_jax.core.method import State, Target
from cl_jax.tools import import_
from cl_jax.weights import files, importing, names, pickles
from tests.weights import layouts, record

VECTORS = np.load(record.FILE)
CASES = sorted(name for name in VECTORS.files if not name.endswith("/names"))


def tensors_of(case):
    shapes = json.loads(str(VECTORS[f"{case}/names"]))
    return {name: record.drawn(name, tuple(shape)) for name, shape in shapes.items()}


def answer(found, images):
    encoder = importing.encoder_of(found.section)
    variables = {"params": found.params, "batch_stats": found.stats}
    return jax.jit(lambda x: encoder.apply(variables, x, train=False)["h"])(images)


# Seconds each to compile: one of each kind, the others with `-m slow`.
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case, marks=[] if case in ("torchvision resnet", "timm vit") else [pytest.mark.slow]
        )
        for case in CASES
    ],
)
def test_answers_are_those_of_the_library(case, tmp_path):
    save_file(tensors_of(case), tmp_path / "model.safetensors")
    found = importing.read(tmp_path / "model.safetensors")
    np.testing.assert_allclose(answer(found, record.images()), VECTORS[case], atol=2e-4, rtol=2e-4)
    assert not found.missing
    assert all("fc" in name or "mask" in name or "head" in name for name in found.left_over)


# A state_dict as PyTorch writes it, without PyTorch --------------------------------------


class _Storage:
    def __init__(self, key, array):
        self.key, self.array = key, array


class _Named:
    """Pickles as a call of a function of any module."""

    def __init__(self, module, name, *args):
        self.call = (module, name), args


class _Writer(pickle._Pickler):
    """The slow pickler, which writes a global that this machine does not have."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Named):
            (module, name), args = obj.call
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
            if args:
                self.save(args[0])
                self.write(pickle.REDUCE)
            return
        super().save(obj, save_persistent_id)

    def persistent_id(self, obj):
        if isinstance(obj, _Storage):
            return ("storage", _Named("torch", "FloatStorage"), obj.key, "cpu", obj.array.size)
        return None


def dumped(tree):
    buffer = io.BytesIO()
    _Writer(buffer, protocol=2).dump(tree)
    return buffer.getvalue()


def tensor(storage, shape=None, offset=0):
    shape = storage.array.shape if shape is None else shape
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    args = (storage, offset, shape, strides, False, collections.OrderedDict())
    return _Named("torch._utils", "_rebuild_tensor_v2", args)


def saved(path, tree):
    """Writes nested dictionaries of arrays as `torch.save` does."""
    storages = []

    def of(node):
        if isinstance(node, dict):
            return {name: of(value) for name, value in node.items()}
        if isinstance(node, np.ndarray):
            storages.append(_Storage(str(len(storages)), np.ascontiguousarray(node)))
            return tensor(storages[-1])
        return node

    tree = of(tree)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dumped(tree))
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.array.tobytes())


def write_pth(path, arrays, tree=None, old=False):
    storages = {name: _Storage(str(i), array) for i, (name, array) in enumerate(arrays.items())}
    tree = {"state_dict": {name: tensor(s) for name, s in storages.items()}, "epoch": 3} | (
        tree or {}
    )
    if old:
        body = b"".join(dumped(x) for x in (pickles.MAGIC, pickles.PROTOCOL, {}, tree))
        body += dumped([s.key for s in storages.values()])
        for s in storages.values():
            body += struct.pack("<q", s.array.size) + s.array.tobytes()
        path.write_bytes(body)
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", dumped(tree))
        for s in storages.values():
            archive.writestr(f"archive/data/{s.key}", s.array.tobytes())


@pytest.mark.parametrize("old", [False, True])
def test_a_pytorch_file_is_read_without_pytorch(old, tmp_path):
    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    more = {"args": _Named("argparse", "Namespace", ())}
    write_pth(tmp_path / "x.pth", arrays, more, old)
    found = files.read(tmp_path / "x.pth").tensors
    assert list(found) == ["state_dict.a.weight"]
    np.testing.assert_array_equal(found["state_dict.a.weight"], arrays["a.weight"])


SMALL = {
    "resnet/torchvision": dict(name="resnet", blocks=(1, 1, 1, 1), width=0.125),
    "vit/timm": dict(name="vit", width=64, depth=2, heads=1, patch=8, image_size=16),
}


@pytest.fixture(scope="module")
def copies():
    """{dialect: (a network of the library's names, another)}."""
    found = {}
    for dialect, section in SMALL.items():
        shapes = importing.shapes_of(section)
        leaves = [flax.traverse_util.flatten_dict(tree) for tree in shapes.values()]
        tensors = {}
        for at, like in (leaves[0] | leaves[1]).items():
            (called,) = names.DIALECTS[dialect].names(at)
            (tensors[called],) = names.to_theirs(at, record.drawn(called, like.shape))
        found[dialect] = tensors, {name: 2 * value for name, value in tensors.items()}
    return found


@pytest.mark.parametrize(
    "dialect, layout",
    [("resnet/torchvision", layout) for layout in layouts.RESNETS]
    + [("vit/timm", layout) for layout in layouts.VITS],
)
def test_checkpoints_of_the_methods(dialect, layout, copies, tmp_path):
    network, copy = copies[dialect]
    tree, prefix = layout(network, copy)
    saved(tmp_path / "x.pth", tree)
    found = importing.read(tmp_path / "x.pth")
    assert found.prefix == prefix and not found.missing
    first = ("stem_conv1", "conv1") if "resnet" in dialect else ("patches", "patch_embed.proj")
    kernel = network[f"{first[1]}.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found.params[first[0]]["kernel"], kernel)
    inside = {name for name in found.left_over if name.startswith(prefix)}
    assert not {name.removeprefix(prefix) for name in inside} & network.keys()


def test_of_two_copies_the_one_is_taken_that_its_method_evaluates(tmp_path):
    once = tensors_of("torchvision resnet")
    arrays = {f"module.encoder_k.{name}": 2 * value for name, value in once.items()}
    arrays |= {f"module.encoder_q.{name}": value for name, value in once.items()}
    arrays |= {"module.encoder_q.fc.weight": np.zeros((3, 512), np.float32)}
    write_pth(tmp_path / "moco.pth", arrays)
    found = importing.read(tmp_path / "moco.pth")
    assert found.prefix == "state_dict.module.encoder_q."
    kernel = once["conv1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found.params["stem_conv1"]["kernel"], kernel)
    assert "state_dict.module.encoder_q.fc.weight" in found.left_over
    other = importing.read(tmp_path / "moco.pth", prefix="state_dict.module.encoder_k.")
    np.testing.assert_array_equal(other.params["stem_conv1"]["kernel"], 2 * kernel)
    config = ConfigDict(dict(init_from=str(tmp_path / "moco.pth"), encoder=dict(name="resnet")))
    said = "\n".join(importing.settle(config, []))  # training has no such option
    assert "further copies, under 'state_dict.module.encoder_k.'." in said and "--" not in said
    with pytest.raises(ConfigError, match="no network under 'z'"):
        importing.read(tmp_path / "moco.pth", prefix="z")


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "module, name", [("os", "system"), ("builtins", "eval"), ("torch.nn.modules", "Linear")]
)
def test_a_hostile_pickle_runs_nothing(module, name, old, tmp_path, capsys):
    mark = tmp_path / "ran"
    write_pth(tmp_path / "x.pth", {}, {"bad": _Named(module, name, (f"touch {mark}",))}, old)
    assert import_.main([str(tmp_path / "x.pth"), f"--out={tmp_path}/run"]) == 1
    said = capsys.readouterr().err
    assert f"its pickle asks for {module}.{name}" in said and said.count("\n") == 1
    assert not mark.exists() and not (tmp_path / "run").exists()


def broken(case, path):
    arrays = tensors_of("torchvision resnet")
    if case == "cut":
        write_pth(path, arrays)
        cut = bytearray(path.read_bytes()[:-5000])
        cut[4:14] = b"0\n" * 5  # a time of day may put a line break there
        path.write_bytes(cut)
    elif case == "beyond":
        storage = _Storage("0", np.zeros(4, np.float32))
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", dumped({"x": tensor(storage, (4,), 1)}))
            archive.writestr("archive/data/0", storage.array.tobytes())
    elif case == "safetensors":
        save_file(arrays, path)
        path.write_bytes(path.read_bytes()[:1000])
    elif case == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(1000))
    elif case == "missing":
        save_file({k: v for k, v in arrays.items() if k != "layer3.0.bn1.bias"}, path)
    elif case == "more":
        save_file(arrays | {"layer3.0.se.fc1.weight": np.zeros((2, 2), np.float32)}, path)
    elif case == "groups":
        arrays["layer2.0.conv2.weight"] = arrays["layer2.0.conv2.weight"][:, :4].copy()
        save_file(arrays, path)
    elif case == "nan":
        arrays["bn1.bias"][0] = np.nan
        save_file(arrays, path)
    elif case == "quantised":
        save_file({name: x.astype(np.int8) for name, x in arrays.items()}, path)
    elif case == "none":
        save_file({"w": np.zeros((2, 2), np.float32)}, path)


@pytest.mark.parametrize(
    "case, words",
    [
        ("cut", "a zip file without its end. Is it whole"),
        ("beyond", "a view beyond its storage"),
        ("safetensors", "Is it whole"),
        ("noise", "neither safetensors nor a PyTorch checkpoint"),
        ("missing", "stage3_block1/norm1/bias .layer3.0.bn1.bias there"),
        ("more", "has layers that our resnet does not have: layer3.0.se.fc1.weight"),
        ("groups", r"layer2.0.conv2.weight makes stage2_block1/conv2/kernel"),
        ("nan", "bn1.bias holds NaN or inf"),
        ("quantised", "is int8; expected floating-point numbers"),
        ("none", "holds no ResNet or ViT"),
    ],
)
def test_files_that_are_refused(case, words, tmp_path):
    broken(case, tmp_path / "x.bin")
    with pytest.raises(ConfigError, match=words):
        importing.read(tmp_path / "x.bin")


def test_heads_are_those_given_where_a_vit_has_so_many(tmp_path):
    resnet, vit = tmp_path / "resnet.safetensors", tmp_path / "vit.safetensors"
    save_file(tensors_of("torchvision resnet"), resnet)
    save_file(tensors_of("timm vit"), vit)
    with pytest.raises(ConfigError, match=r"heads=2 is given, and .* holds a ResNet. Leave it out"):
        importing.read(resnet, heads=2)
    for heads in (-1, 3):
        with pytest.raises(ConfigError, match=f"heads={heads} of .* expected a divisor of the wid"):
            importing.read(vit, heads=heads)
    config = ConfigDict(dict(init_from=str(vit), encoder=dict(name="vit", heads=4, width=64)))
    importing.settle(config, ["encoder.heads"])
    assert config.encoder.heads == 4 and config.encoder.depth == 2
    importing.settle(config, [])
    assert config.encoder.heads == 1


def test_the_network_of_a_run_that_is_resumed_needs_no_file(tmp_path):
    begun = dict(init_from="/then/x.pth", encoder=dict(name="vit", heads=4, width=64))
    config = ConfigDict(dict(init_from=str(tmp_path / "gone.pth"), encoder=dict(name="resnet")))
    assert importing.settle(config, [], begun) == ["started from /then/x.pth"]
    assert config.encoder.to_dict() == begun["encoder"]
    config.encoder = dict(name="resnet", heads=2)  # refused then, as of another config
    importing.settle(config, ["encoder.heads"], begun)
    assert config.encoder.heads == 2 and config.encoder.name == "vit"
    with pytest.raises(NotFoundError):
        importing.settle(config, [], begun | {"init_from": ""})


def test_nothing_there(tmp_path):
    with pytest.raises(NotFoundError, match="does not exist"):
        importing.read(tmp_path / "x.pth")
    with pytest.raises(NotFoundError, match=r"neither model.safetensors nor"):
        importing.read(tmp_path)


def test_networks_and_momentum_copies_start_from_the_file(tmp_path):
    save_file(tensors_of("torchvision resnet"), tmp_path / "x.safetensors")
    found = importing.read(tmp_path / "x.safetensors")
    like = jax.tree.map(np.zeros_like, {"params": found.params, "stats": found.stats})
    like = jax.tree.map(jax.numpy.asarray, like)
    head = {"w": jax.numpy.ones(3)}
    params = {"encoder": like["params"], "head": head}
    target = Target(optax.EmaState(jax.numpy.zeros((), int), params), {"encoder": like["stats"]})
    state = State(jax.numpy.zeros((), int), params, (), {"encoder": like["stats"]}, target)
    after = importing.start(state, tmp_path / "x.safetensors")
    for tree in (after.params, after.target.params):
        np.testing.assert_array_equal(
            tree["encoder"]["stem_conv1"]["kernel"], found.params["stem_conv1"]["kernel"]
        )
        np.testing.assert_array_equal(tree["head"]["w"], head["w"])
    np.testing.assert_array_equal(
        after.target.stats["encoder"]["stem_norm1"]["var"], found.stats["stem_norm1"]["var"]
    )
    with pytest.raises(ConfigError, match="no network of this method"):
        importing.start(state.replace(params={"w": head["w"]}), tmp_path / "x.safetensors")


def test_an_imported_run_is_read_like_a_trained_one(tmp_path, capsys):
    case = "timm vit"
    save_file(tensors_of(case), tmp_path / "x.safetensors")
    out = tmp_path / "run"
    assert not import_.main([str(tmp_path / "x.safetensors"), f"--out={out}"])
    said = capsys.readouterr().out
    assert "vit/timm" in said and "missing: none" in said and "64 pixels" in said
    os.remove(tmp_path / "x.safetensors")
    run = cl_jax.load(out)
    images = np.random.default_rng(0).integers(0, 256, (3, 73, 73, 3), np.uint8)
    assert run.embed(images)["h"].shape == (3, 64)
    assert import_.main([str(out), f"--out={out}"]) == 1
