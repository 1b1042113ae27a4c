"""Transformers over tokens: against NumPy, masks, dropout by example, the authors' sizes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from cl_jax.core.tokens import END, PAD, START
from cl_jax.encoders import transformer
from tests.drawn import drawn
from tests.losses.compiled import program

SMALL = dict(vocab_size=20, length=8, width=16, depth=2, heads=2)
TOKENS = np.array(
    [[START, 9, 7, END, PAD, PAD], [START, 5, 6, 8, 9, END], [START, END, PAD, PAD, PAD, PAD]],
    np.uint16,
)


@functools.cache
def built(**settings):
    """Tests of the same settings share the network's programs too."""
    network = transformer.make(**{**SMALL, **settings})
    return network, drawn(network, TOKENS, train=False)


def reference(params, tokens, style, causal):
    """[B, T, D] in float64, one sentence and one head at a time."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    t5, bert = style == "t5", style == "bert"
    epsilon = {"bert": 1e-12, "t5": 1e-6}.get(style, 1e-5)

    def norm(x, name):
        if t5:
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * p[name]["scale"]
        centred = x - x.mean(-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
        return unit * p[name]["scale"] + p[name]["bias"]

    def dense(x, q):
        return x @ q["kernel"] + q.get("bias", 0)

    def activation(x):
        if t5:
            return np.maximum(x, 0)
        if style == "clip":
            return x / (1 + np.exp(-1.702 * x))
        return x * (1 + erf(x / math.sqrt(2))) / 2

    def bucket(i, j):
        distance, count, offset = j - i, 32, 0
        if not causal:
            count, offset = 16, 16 * (distance > 0)
            distance = abs(distance)
        else:
            distance = max(-distance, 0)
        if distance < count // 2:
            return offset + distance
        grown = math.log(distance / (count // 2)) / math.log(128 / (count // 2))
        return offset + min(count - 1, count // 2 + int(grown * (count - count // 2)))

    def attention(x, q, real):
        rows = [dense(x, q[name]) for name in ("query", "key", "value")]
        out, width = np.zeros_like(x), x.shape[-1] // 2
        for h in range(2):
            a, b, c = (r[:, h * width : (h + 1) * width] for r in rows)
            for i in range(len(x)):
                seen = [j for j in range(len(x)) if real[j] and (j <= i or not causal)]
                score = b[seen] @ a[i] / (1 if t5 else math.sqrt(width))
                if t5:
                    score = score + [p["relative"][bucket(i, j), h] for j in seen]
                weight = np.exp(score - score.max())
                out[i, h * width : (h + 1) * width] = weight / weight.sum() @ c[seen]
        return dense(out, q["out"])

    def mlp(x, q):
        return dense(activation(dense(x, q["mlp1"])), q["mlp2"])

    result = []
    for row in tokens:
        real = row != PAD
        x = p["embedding"]["embedding"][row.astype(int)]
        if not t5:
            x = x + p["positions"][: len(row)]
        if bert:
            x = norm(x + p["segments"][0], "norm")
        for layer in range(2):
            q = p[f"blocks_{layer}"]
            first, second = f"norms_{layer}_0", f"norms_{layer}_1"
            if bert:
                x = norm(x + attention(x, q["attention"], real), first)
                x = norm(x + mlp(x, q), second)
            else:
                x = x + attention(norm(x, first), q["attention"], real)
                x = x + mlp(norm(x, second), q)
        result.append(x if bert else norm(x, "last_norm"))
    return np.stack(result)


@pytest.mark.parametrize(
    ("style", "causal"),
    [("bert", False), ("pre_norm", False), ("clip", True), ("t5", False), ("t5", True)],
)
def test_equals_numpy(style, causal):
    network, variables = built(style=style, causal=causal)
    found = program(network.apply)(variables, TOKENS, train=False)["tokens"]
    right = reference(variables["params"], TOKENS, style, causal)
    real = TOKENS != PAD
    np.testing.assert_allclose(found[real], right[real], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["cls", "avg", "avg_top2", "avg_first_last", "eos"])
def test_padding_changes_nothing(pool):
    network, variables = built(pool=pool)
    more = np.pad(TOKENS, ((0, 0), (0, 2)))
    short, long = (program(network.apply)(variables, x, train=False)["h"] for x in (TOKENS, more))
    np.testing.assert_allclose(short, long, atol=1e-6)
    assert short.shape == (3, 16)


def test_pools_are_of_the_layers_they_name():
    network, variables = built(pool="avg_first_last")
    features = program(network.apply)(variables, TOKENS, train=False)
    layers, real = np.asarray(features["layers"]), TOKENS != PAD
    assert layers.shape == (3, 3, 6, 16)
    right = [(layers[1] + layers[2])[i, real[i]].mean(0) / 2 for i in range(3)]
    np.testing.assert_allclose(features["h"], right, atol=1e-6)
    network, _ = built(pool="eos")
    ends = program(network.apply)(variables, TOKENS, train=False)
    np.testing.assert_array_equal(ends["h"], ends["tokens"][np.arange(3), [3, 5, 1]])


def test_the_end_is_found_whatever_the_numbers_are():
    states = np.arange(24, dtype=np.float32).reshape(2, 6, 2)
    tokens = np.array([[START, 19, END, END, PAD, PAD], [START, 5, 6, 7, PAD, PAD]])
    found = transformer.at_end(states, tokens)  # the first end; the last token where there is none
    np.testing.assert_array_equal(found, states[[0, 1], [2, 3]])


def test_a_causal_network_sees_no_later_token():
    network, variables = built(style="clip", causal=True)
    changed = TOKENS.copy()
    changed[1, 4] = 12
    before, after = (
        program(network.apply)(variables, x, train=False)["tokens"] for x in (TOKENS, changed)
    )
    np.testing.assert_array_equal(before[1, :4], after[1, :4])
    assert np.abs(before[1, 4:] - after[1, 4:]).min(axis=1).max() > 0


def test_the_mask_is_an_argument():
    network, variables = built()
    hidden = TOKENS != PAD
    hidden[1, 2] = False
    changed = TOKENS.copy()
    changed[1, 2] = 17
    one, other = (
        program(network.apply)(variables, x, train=False, mask=hidden)["tokens"]
        for x in (TOKENS, changed)
    )
    keep = np.arange(6) != 2
    np.testing.assert_array_equal(one[1, keep], other[1, keep])
    assert np.abs(one[1, 2] - other[1, 2]).max() > 1e-3


@pytest.mark.parametrize("style", ["bert", pytest.param("t5", marks=pytest.mark.slow)])
def test_dropout_is_each_examples_own(style):
    network, variables = built(style=style, dropout=0.3, depth=1)
    keys = jax.random.split(jax.random.key(1), 3)
    run = jax.jit(lambda keys, x: network.apply(variables, x, train=True, keys=keys)["h"])
    once, order = run(keys, TOKENS), np.array([2, 0, 1])
    np.testing.assert_allclose(run(keys[order], TOKENS[order]), once[order], atol=1e-6)
    same = run(keys[:1][np.zeros(3, int)], TOKENS[:1][np.zeros(3, int)])
    np.testing.assert_allclose(same, np.broadcast_to(same[:1], same.shape), atol=1e-6)
    clean = program(network.apply)(variables, TOKENS, train=False, keys=keys)["h"]
    assert np.abs(once - clean).max() > 1e-2
    np.testing.assert_array_equal(program(network.apply)(variables, TOKENS, train=True)["h"], clean)


def test_drop_keeps_the_mean():
    x = np.ones((4000, 8), np.float32)
    dropped = np.asarray(transformer.drop(x, jax.random.split(jax.random.key(0), 4000), 3, 0.1))
    assert abs((dropped == 0).mean() - 0.1) < 0.01 and abs(dropped.mean() - 1) < 0.01
    assert set(np.round(np.unique(dropped), 3)) == {0, np.float32(1.111)}
    other = transformer.drop(x, jax.random.split(jax.random.key(0), 4000), 4, 0.1)
    assert np.abs(other - dropped).max() > 1


def number(network, *inputs):
    found = jax.eval_shape(lambda k: network.init(k, *inputs, train=False), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(found))


def test_parameters_are_as_many_as_the_authors():
    base = dict(width=768, depth=12, heads=12)
    bert = transformer.make(vocab_size=30522, length=512, **base)
    assert number(bert, TOKENS) == 109_482_240 - (768 * 768 + 768)  # less the pooler
    clip = transformer.make(
        vocab_size=49408, length=77, width=512, depth=12, heads=8, style="clip", causal=True
    )
    assert number(clip, TOKENS) == 63_428_096 - 512 * 512  # less the projection


@pytest.mark.parametrize(
    ("width", "depth", "heads", "count"),
    [(512, 6, 8, 60_506_624), pytest.param(768, 12, 12, 222_903_552, marks=pytest.mark.slow)],
)
def test_parameters_of_t5_are_as_many_as_the_authors(width, depth, heads, count):
    assert (
        number(transformer.EncoderDecoder(32128, 0, width, depth, heads), TOKENS, TOKENS) == count
    )


def test_encoder_and_decoder():
    network = transformer.EncoderDecoder(**{**SMALL, "depth": 1})
    answer = np.array([[PAD, 5, 6], [PAD, 7, END], [PAD, 9, 9]], np.uint16)
    variables = drawn(network, TOKENS, answer, train=False)
    run = jax.jit(lambda v, x, y: network.apply(v, x, y, train=False))
    logits = run(variables, TOKENS, answer)
    assert logits.shape == (3, 3, 20)
    later = answer.copy()
    later[:, 2] = 11
    np.testing.assert_array_equal(run(variables, TOKENS, later)[:, :2], logits[:, :2])
    np.testing.assert_allclose(
        run(variables, np.pad(TOKENS, ((0, 0), (0, 3))), answer), logits, atol=1e-4
    )
    other = TOKENS.copy()
    other[0, 1] = 12
    assert np.abs(run(variables, other, answer)[0] - logits[0]).max() > 1e-3
    # One table serves both halves and the output.
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(variables)]
    assert [path for path in paths if "embedding" in path] == [
        "['params']['embedding']['embedding']"
    ]


def test_bfloat16_keeps_the_stream_and_parameters_in_float32():
    network, variables = built(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    wide = program(built()[0].apply)(variables, TOKENS, train=False)["h"]
    narrow = program(network.apply)(variables, TOKENS, train=False)["h"]
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, atol=0.05)


def test_the_vocabulary_is_the_datas():
    found = transformer.make(**{**SMALL, "vocab_size": None}, sizes={"tokens": 33})
    assert found.vocab_size == 33


def test_errors():
    for settings, message in (
        (dict(style="gpt5"), "expected one of bert, pre_norm, clip, t5"),
        (dict(pool="max"), "expected one of cls, avg"),
        (dict(heads=3), "not divisible by heads=3"),
        (dict(dropout=1.0), "dropout is 1.0"),
        (dict(vocab_size=None), "give vocab_size"),
    ):
        with pytest.raises(ValueError, match=message):
            transformer.make(**{**SMALL, **settings})
    network, variables = built()
    with pytest.raises(ValueError, match="positions for length=8"):
        program(network.apply)(variables, np.pad(TOKENS, ((0, 0), (0, 3))), train=False)
    with pytest.raises(ValueError, match="expected integers"):
        program(network.apply)(variables, TOKENS.astype(np.float32), train=False)
