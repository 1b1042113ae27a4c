"""Pickles of Haiku code, such as BYOL's published checkpoints, read without running them."""

import io
import pickle
import sys
import types
from typing import NamedTuple

import flax.traverse_util
import jax
import numpy as np
import pytest

from cl_jax.core.errors import ConfigError
from cl_jax.encoders import resnet
from cl_jax.tools import import_
from cl_jax.weights import importing, names, pickles


class FlatMapping(dict):
    """As Haiku pickles its own."""

    def __reduce__(self):
        return FlatMapping, (dict(self),)


class _ByolExperimentState(NamedTuple):
    online_params: object
    target_params: object
    online_state: object
    target_state: object
    opt_state: object


class ScaleByLarsState(NamedTuple):
    mu: object


class Anything:
    """An object of another package, with a state."""

    def __init__(self):
        self.kept = {"x": np.ones(2, np.float32)}


def _create_namedtuple(name, fields, module):
    raise AssertionError("a reader called it")


def _create_array(f, args, state, more):
    raise AssertionError("a reader called it")


PLACES = {
    "haiku._src.data_structures": [FlatMapping],
    "byol.byol_experiment": [_ByolExperimentState],
    "byol.utils.optimizers": [ScaleByLarsState],
    "somewhere.else": [Anything],
    "dill._dill": [_create_namedtuple, _create_array],
}


def parents(module):
    """A module, after the packages that it is in."""
    words = module.split(".")
    return [".".join(words[: i + 1]) for i in range(len(words))]


@pytest.fixture
def elsewhere(monkeypatch):
    """The classes above, as pickle sees them, in modules that are gone when a file is read."""
    with monkeypatch.context() as patch:
        for module, members in PLACES.items():
            for name in parents(module):
                if name not in sys.modules or name == module:
                    patch.setitem(sys.modules, name, types.ModuleType(name))
            for member in members:
                patch.setattr(member, "__module__", module)
                setattr(sys.modules[module], member.__name__, member)
        yield


class Dill(pickle._Pickler):
    """dill writes classes of named tuples, and arrays, as calls of its own functions."""

    def save_type(self, kind):
        if issubclass(kind, tuple) and hasattr(kind, "_fields"):
            args = (kind.__name__, kind._fields, kind.__module__)
            self.save_reduce(_create_namedtuple, args, obj=kind)
        else:
            pickle._Pickler.save_type(self, kind)

    def save_array(self, array):
        self.save_reduce(_create_array, (*array.__reduce__(), None), obj=array)

    dispatch = pickle._Pickler.dispatch | {type: save_type, np.ndarray: save_array}


def dumped(tree, protocol=2, by_dill=True):
    buffer = io.BytesIO()
    (Dill if by_dill else pickle._Pickler)(buffer, protocol=protocol).dump(tree)
    # as NumPy 1 called the module
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def haiku(params, stats):
    """(hk.Params, hk.State) of a ResNet of ours."""
    trees = {}, {}
    for tree, of in zip(trees, (params, stats)):
        for path, value in flax.traverse_util.flatten_dict(of).items():
            (name,) = names.DIALECTS["resnet/haiku"].names(path)
            module, leaf = f"res_net50/~/{name}".rsplit(".", 1)
            value = value if path[-1] == "kernel" else value.reshape(1, 1, 1, -1)
            tree.setdefault(module, {})[leaf] = value
            if leaf == "average":
                tree[module] |= {"hidden": 2 * value, "counter": np.int32(3)}
    return tuple(FlatMapping({k: FlatMapping(v) for k, v in tree.items()}) for tree in trees)


def network(section):
    encoder = resnet.make(**section)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(lambda k, x: encoder.init(k, x, train=False), jax.random.key(0), images)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.random(x.shape, np.float32), shapes)


SECTION = dict(blocks=(1, 2), width=0.125, variant="byol", dtype="float32")


def checkpoint(variables, head=True):
    params, state = haiku(variables["params"], variables["batch_stats"])
    other = haiku(*(jax.tree.map(np.negative, variables[k]) for k in ("params", "batch_stats")))
    more = {"projector/linear": {"w": np.ones((3, 2), np.float32)}} if head else {}
    params = FlatMapping(dict(params) | more)
    optimizer = [(), ScaleByLarsState(params), ()]
    tree = _ByolExperimentState(params, other[0], state, other[1], optimizer)
    return {"experiment_state": tree, "step": 300_000, "rng": np.zeros(2, np.uint32)}


@pytest.mark.parametrize("by_dill, protocol", [(True, 2), (False, 2), (False, 5)])
def test_a_checkpoint_of_byol_is_read(elsewhere, monkeypatch, tmp_path, by_dill, protocol):
    variables = network(SECTION)
    file = tmp_path / "pretrain_res50x1.pkl"
    file.write_bytes(dumped(checkpoint(variables), protocol, by_dill))
    for name in {name for module in PLACES for name in parents(module)}:
        monkeypatch.setitem(sys.modules, name, None)  # an import of it would fail
    found = importing.read(file)
    assert found.section == dict(
        name="resnet", blocks=(1, 2), bottleneck=False, stem="imagenet", **{
            key: SECTION[key] for key in ("width", "variant", "dtype")
        },
    )  # fmt: skip
    assert found.dialect == "resnet/haiku" and not found.missing
    assert found.prefix == "experiment_state.online.res_net50/~/"
    assert found.others == ("experiment_state.target.res_net50/~/",)
    jax.tree.map(np.testing.assert_array_equal, found.params, variables["params"])
    jax.tree.map(np.testing.assert_array_equal, found.stats, variables["batch_stats"])
    other = importing.read(file, prefix="experiment_state.target.res_net50/~/")
    np.testing.assert_array_equal(
        other.params["stem_conv1"]["kernel"], -variables["params"]["stem_conv1"]["kernel"]
    )
    assert any("projector/linear.w" in name for name in found.left_over)


def test_layers_that_our_network_does_not_have_are_refused(elsewhere, tmp_path):
    tree = checkpoint(network(SECTION))
    params = dict(tree["experiment_state"].online_params)
    params["res_net50/~/block_group_0/~/block_0/~/se_conv"] = {"w": np.ones((1, 1), np.float32)}
    tree["experiment_state"] = tree["experiment_state"]._replace(online_params=params)
    (tmp_path / "x.pkl").write_bytes(dumped(tree))
    with pytest.raises(ConfigError, match="layers that our resnet does not have: block_group_0"):
        importing.read(tmp_path / "x.pkl")


def test_objects_of_other_packages_are_data(elsewhere, monkeypatch, tmp_path):
    tree = [Anything(), {"y": np.arange(6.0).reshape(2, 3).T}, np.float32(3), np.array([True])]
    for protocol in (2, 3, 4, 5):
        (tmp_path / "x").write_bytes(dumped(tree, protocol, by_dill=False))
        found = pickles.read(tmp_path / "x")
        assert {*found} == {"0.0.kept.x", "1.y", "3"}
        np.testing.assert_array_equal(found["1.y"], tree[1]["y"])


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, f, *args):
        self.call = f, args

    def __reduce__(self):
        return self.call


def _hostile(case, mark):
    import builtins
    import os
    import subprocess

    touch = f"touch {mark}"
    return {
        "system": Calls(os.system, touch),
        "eval": Calls(builtins.eval, f"open({str(mark)!r}, 'w')"),
        "popen": Calls(subprocess.Popen, ["touch", str(mark)]),
        "getattr": Calls(builtins.getattr, os, "system"),
        "objects": np.array([Calls(os.system, touch)], object),
    }[case]


@pytest.mark.parametrize(
    "case, name",
    [
        ("system", "posix.system"),
        ("eval", "builtins.eval"),
        ("popen", "subprocess.Popen"),
        ("getattr", "builtins.getattr"),
        ("objects", "posix.system"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_a_hostile_pickle_is_refused_and_runs_nothing(case, name, protocol, tmp_path, capsys):
    mark = tmp_path / "ran"
    tree = {"params": {"a/~/b": {"w": np.ones(3)}}, "x": [_hostile(case, mark)]}
    try:
        (tmp_path / "x.pkl").write_bytes(dumped(tree, protocol, by_dill=False))
    except TypeError:  # a module cannot be pickled: by its name
        text = pickle.dumps(tree["params"], 2)[:-1] + b"cbuiltins\ngetattr\n."
        (tmp_path / "x.pkl").write_bytes(text)
    assert import_.main([str(tmp_path / "x.pkl"), f"--out={tmp_path}/run"]) == 1
    said = capsys.readouterr().err
    assert f"its pickle asks for {name}" in said and said.count("\n") == 1
    assert not mark.exists() and not (tmp_path / "run").exists()


def test_a_function_of_the_reader_cannot_be_changed(tmp_path):
    # BUILD on a function would set its attributes
    change = b"\x80\x02c_codecs\nencode\n}X\x0c\x00\x00\x00__defaults__K\x01sb."
    (tmp_path / "x").write_bytes(change)
    with pytest.raises(ConfigError, match="asks for a function in place of data"):
        pickles.read(tmp_path / "x")


def test_lists_that_hold_each_other_have_an_end(tmp_path):
    tree = [np.ones(2)]
    for _ in range(60):
        tree = [tree, tree]
    tree.append(tree)
    (tmp_path / "x").write_bytes(pickle.dumps(tree, 2))
    assert len(pickles.read(tmp_path / "x")) == 1


@pytest.mark.parametrize(
    "body, words",
    [
        (b"\x80\x02}q\x00.", "holds no tensor"),
        (b"\x80\x02}q\x00", "cannot be read as a pickle of arrays"),
        (pickle.dumps({"x": np.ones(9)}, 2)[:-30], "cannot be read as a pickle of arrays"),
        (pickle.dumps({"x": np.array(["a"])}, 2), "an array of type 'U1'"),
        (pickle.dumps({"x": np.ones(9)}, 2), "holds no ResNet or ViT"),
    ],
)
def test_what_is_no_checkpoint_is_one_sentence(body, words, tmp_path):
    (tmp_path / "x.pkl").write_bytes(body)
    with pytest.raises(ConfigError, match=words) as told:
        importing.read(tmp_path / "x.pkl")
    assert "\n" not in str(told.value)
