"""Weights of a BERT: read, put in our order, and the same network as Hugging Face's."""

import json
import shutil
import struct

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.errors import ConfigError, NotFoundError
from cl_jax.core.method import Run
from cl_jax.data import wordpiece
from cl_jax.encoders import bert_weights, transformer
from cl_jax.methods import simcse
from cl_jax.views import tokens

WIDTH, HIDDEN, DEPTH, POSITIONS = 8, 16, 2, 10
# Twelve pieces; BERT's own numbers of the five marks are 0, 7, 3, 4 and 8 here.
PIECES = ["[PAD]", "a", "b", "[CLS]", "[SEP]", "c", "d", "[UNK]", "[MASK]", "e", "f", "g"]
NETWORK = dict(vocab_size=12, length=6, width=WIDTH, depth=DEPTH, heads=2, hidden=HIDDEN)


def _tensors():
    """Random weights by name, in the order of the names."""
    shapes = {
        "embeddings.LayerNorm.bias": (WIDTH,),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.position_embeddings.weight": (POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.word_embeddings.weight": (12, WIDTH),
    }
    for i in range(DEPTH):
        of = f"encoder.layer.{i}."
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{of}{name}.{kind}": (WIDTH,) for kind in ("bias", "weight")}
        for name, sides in {
            "attention.output.dense": (WIDTH, WIDTH),
            "attention.self.key": (WIDTH, WIDTH),
            "attention.self.query": (WIDTH, WIDTH),
            "attention.self.value": (WIDTH, WIDTH),
            "intermediate.dense": (HIDDEN, WIDTH),
            "output.dense": (WIDTH, HIDDEN),
        }.items():
            shapes |= {f"{of}{name}.bias": sides[:1], f"{of}{name}.weight": sides}
    rng = np.random.default_rng(0)
    found = {}
    for name in sorted(shapes):
        values = rng.normal(size=shapes[name]).astype(np.float32) * 0.5
        found[name] = 1 + values if name.endswith("LayerNorm.weight") else values
    return found


def _write(folder, tensors, pieces=PIECES, prefix="bert."):
    header, body = {}, b""
    for name, values in tensors.items():
        end = len(body) + values.nbytes
        header[prefix + name] = {
            "dtype": "F32", "shape": list(values.shape), "data_offsets": [len(body), end],
        }  # fmt: skip
        body += values.tobytes()
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return folder


def _params(**settings):
    network = transformer.make(**NETWORK | settings)
    shapes = jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32), train=False)
    )
    return network, shapes["params"]


# Last hidden states by transformers 4.46 and torch of these weights, BERT's tokens
# [3, 5, 9, 11, 4] and [3, 10, 4]: their first three values.
EXPECTED = (
    [[-0.6231263, -0.2982141, 0.6321297], [-0.6456359, -0.3934513, 0.7066785],
     [-1.04624, -0.3292093, 1.1858265], [-0.7267043, -0.2992488, 0.6988258],
     [-0.6657274, -0.3507766, 0.6822354]],
    [[-1.1277384, -0.4634314, 0.5395244], [-0.4938241, -0.3084093, 0.5392045],
     [-0.6873566, -0.3179502, 0.6074561]],
)  # fmt: skip


def test_the_network_is_hugging_face_s(tmp_path):
    network, params = _params()
    loaded = bert_weights.load(_write(tmp_path, _tensors()), params)
    made = wordpiece.load(tmp_path / "vocab.txt")
    rows = made.encode(["c e g", "f"], 6)
    np.testing.assert_array_equal(
        bert_weights.order(PIECES)[rows], [[3, 5, 9, 11, 4, 0], [3, 10, 4, 0, 0, 0]]
    )
    out = jax.jit(lambda p: network.apply({"params": p}, rows, train=False)["tokens"])(loaded)
    np.testing.assert_allclose(out[0, :5, :3], EXPECTED[0], atol=2e-5)
    np.testing.assert_allclose(out[1, :3, :3], EXPECTED[1], atol=2e-5)


def test_old_names_and_files_without_a_prefix(tmp_path):
    params = _params()[1]
    (tmp_path / "old").mkdir()
    old = {
        name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): values
        for name, values in _tensors().items()
    }
    a = bert_weights.load(_write(tmp_path, _tensors()), params)
    b = bert_weights.load(_write(tmp_path / "old", old, prefix=""), params)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_simcse_starts_from_the_weights(tmp_path):
    network, params = _params()
    batch = {"id": np.arange(2, dtype=np.int32), "tokens": np.array([[2, 5, 3], [2, 6, 3]])}
    method = simcse.make(
        encoder=network,
        tx=optax.sgd(0.1),
        views=(tokens.make(), tokens.make()),
        run=Run(None, 2, 8, 4, 8, {"tokens": 12}),
        weights=str(_write(tmp_path, _tensors())),
    )
    loaded = bert_weights.load(tmp_path, params)
    state = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(method.init, jax.random.key(0), batch)
    )
    started = method.begin(state).params
    jax.tree.map(np.testing.assert_array_equal, started["encoder"], loaded)
    assert set(started) == {"encoder", "sentence_head"}
    shutil.rmtree(tmp_path)  # a State is restored without the files
    jax.eval_shape(method.init, jax.random.key(0), batch)
    with pytest.raises(NotFoundError, match=r"method\.weights='.*has no vocab\.txt"):
        method.begin(state)
    tmp_path.mkdir()
    _write(tmp_path, _tensors())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"method\.weights='.*model\.safetensors is not a file"):
        method.begin(state)
    damaged = [
        ("vocab.txt", b"\xff\xfe", "vocab.txt is not text in UTF-8"),
        ("model.safetensors", b"damaged", "not a whole safetensors file"),
        ("model.safetensors", struct.pack("<Q", 2) + b"[]", "not a whole safetensors file"),
    ]
    for file, content, words in damaged:
        _write(tmp_path, _tensors())
        (tmp_path / file).write_bytes(content)
        with pytest.raises(ConfigError, match=rf"method\.weights='.*{words}"):
            method.begin(state)


def test_half_precision_is_read(tmp_path):
    values = np.array([1.0, -2.5, 3.0], np.float32)
    for kind, raw in (
        ("BF16", (values.view(np.uint32) >> 16).astype(np.uint16)),
        ("F16", values.astype(np.float16)),
    ):
        text = json.dumps({"x": {"dtype": kind, "shape": [3], "data_offsets": [0, 6]}}).encode()
        file = tmp_path / "one.safetensors"
        file.write_bytes(struct.pack("<Q", len(text)) + text + raw.tobytes())
        np.testing.assert_array_equal(bert_weights.read(file)["x"], values)


def test_errors_say_what_was_expected(tmp_path):
    params = _params()[1]
    with pytest.raises(FileNotFoundError, match="no vocab"):
        bert_weights.load(tmp_path, params)
    _write(tmp_path, _tensors())
    lacking = {name: x for name, x in params.items() if name != "positions"}
    with pytest.raises(ValueError, match=r"'positions'\] has shape None and BERT's \(10, 8\)"):
        bert_weights.load(tmp_path, lacking)
    for settings, message in (
        (dict(width=4), r"has shape \(4,\) and BERT's \(8,\); set width"),
        (dict(depth=3), "has no encoder.layer.2.attention.self.query.weight"),
        (dict(length=12), r"has shape \(12, 8\) and BERT's \(10, 8\)"),
    ):
        with pytest.raises(ValueError, match=message):
            bert_weights.load(tmp_path, _params(**settings)[1])
    (tmp_path / "vocab.txt").write_text("\n".join([*PIECES, "h"]))
    with pytest.raises(ValueError, match="13 pieces and the weights 12"):
        bert_weights.load(tmp_path, params)
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES[1:]))
    with pytest.raises(ValueError, match=r"no \[PAD\]|11 pieces"):
        bert_weights.load(tmp_path, params)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        bert_weights.read(file)
    with pytest.raises(FileNotFoundError, match="is not a file"):
        bert_weights.read(tmp_path / "none")
