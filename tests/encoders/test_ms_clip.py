"""One transformer for two modalities: what is shared, what is not, and CLIP as the case of
nothing."""

import math

import flax.linen as nn
import jax
import numpy as np
import pytest

from cl_jax.core.tokens import END, PAD, START
from cl_jax.encoders import ms_clip, transformer
from cl_jax.encoders.layer_norm import LayerNorm
from tests.drawn import drawn

SMALL = dict(
    vocab_size=20, length=6, image_size=16, patch=4, width=16, depth=3, heads=2, share="blocks"
)
TOKENS = np.array([[START, 9, 7, END, PAD, PAD], [START, 5, 6, 8, 9, END]], np.uint16)
IMAGES = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
INPUTS = {"image": IMAGES, "tokens": TOKENS}


def built(**settings):
    network = ms_clip.make(**{**SMALL, **settings})
    return network, drawn(network, INPUTS, train=False)


def number(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def counted(**settings):
    network = ms_clip.make(**{**SMALL, **settings})
    found = jax.eval_shape(lambda k: network.init(k, INPUTS, train=False), jax.random.key(0))
    return number(found["params"])


BLOCK = 12 * 16**2 + 9 * 16  # attention and MLP with their biases
NORMS = 4 * 16


def test_sharing_saves_exactly_the_shared_weights():
    separate = counted(share="none")
    assert separate - counted() == 3 * BLOCK
    assert separate - counted(specific=1) == 2 * BLOCK
    assert separate - counted(share="blocks+norms") == 3 * (BLOCK + NORMS)
    assert separate == counted(share="blocks", specific=3)


def test_parameters_are_as_many_as_the_authors():
    """CLIP's ViT-B/32 is a pair of widths 768 and 512; its vision tower is ours of share="none"."""
    network = ms_clip.make(vocab_size=49408, share="none")
    shape = jax.eval_shape(
        lambda k: network.init(
            k,
            {"image": np.zeros((1, 224, 224, 3), np.float32), "tokens": TOKENS},
            train=False,
        ),
        jax.random.key(0),
    )["params"]
    image = {name: leaf for name, leaf in shape.items() if not name.startswith(("text", "token"))}
    assert number(image) == 87_849_216 - 768 * 512  # less the projection


def moved(variables, pattern):
    """The variables with noise in the leaves whose path holds the pattern."""
    rng, hits = np.random.default_rng(2), []

    def change(path, leaf):
        if pattern not in jax.tree_util.keystr(path):
            return leaf
        hits.append(path)
        return leaf + rng.normal(size=leaf.shape).astype(np.float32)

    changed = jax.tree_util.tree_map_with_path(change, variables)
    assert hits
    return changed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "changes"),
    [
        ("shared_blocks_1", {"image", "text"}),
        ("image_norms_1", {"image"}),
        ("text_norms_1", {"text"}),
        ("token_table", {"text"}),
        ("patches", {"image"}),
    ],
)
def test_a_shared_weight_serves_both_and_others_one(pattern, changes):
    network, variables = built()
    run = jax.jit(lambda v: network.apply(v, INPUTS, train=False))
    before, after = run(variables), run(moved(variables, pattern))
    assert {name for name in before if np.abs(before[name] - after[name]).max() > 1e-3} == changes


@pytest.mark.slow
def test_a_modality_alone_gives_what_it_gives_beside_the_other():
    network, variables = built()
    both = network.apply(variables, INPUTS, train=False)
    for field, name in (("image", "image"), ("tokens", "text")):
        alone = network.apply(variables, {field: INPUTS[field]}, train=False)
        assert set(alone) == {name}
        np.testing.assert_allclose(alone[name], both[name], atol=1e-6)


def test_with_nothing_shared_the_text_tower_is_clips():
    network, variables = built(share="none", depth=2)
    text = transformer.make(
        vocab_size=20, length=6, width=16, depth=2, heads=2, style="clip", causal=True, pool="eos"
    )
    p = variables["params"]
    renamed = {
        "embedding": p["token_table"],
        "positions": p["text_positions"],
        "last_norm": p["text_last"],
    }
    for i in range(2):
        renamed[f"blocks_{i}"] = p[f"text_blocks_{i}"]
        for j in range(2):
            renamed[f"norms_{i}_{j}"] = p[f"text_norms_{i}_{j}"]

    @jax.jit
    def both(variables, renamed):
        ours = network.apply(variables, {"tokens": TOKENS}, train=False)["text"]
        return ours, text.apply({"params": renamed}, TOKENS, train=False)["h"]

    np.testing.assert_allclose(*both(variables, renamed), atol=1e-6)


def test_the_image_tower_is_clips():
    """Against NumPy: class token, positions, a norm before the blocks, one after, no mask."""
    network, variables = built(depth=1, share="none")
    rng = np.random.default_rng(3)
    leaves, tree = jax.tree.flatten(variables["params"])
    p = tree.unflatten([np.float64(x) + 0.1 * rng.normal(size=x.shape) for x in leaves])

    def norm(x, q):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * q["scale"] + q["bias"]

    def dense(x, q):
        return x @ q["kernel"] + q["bias"]

    patches = IMAGES.reshape(2, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 16, 48)
    x = patches @ p["patches"]["kernel"].reshape(48, 16)
    x = np.concatenate([np.broadcast_to(p["class_token"], (2, 1, 16)), x], 1)
    x = norm(x + p["image_positions"], p["image_first"])
    block, y = p["image_blocks_0"], norm(x, p["image_norms_0_0"])
    q, k, v = (
        dense(y, block["attention"][name]).reshape(2, 17, 2, 8)
        for name in ("query", "key", "value")
    )
    score = np.einsum("bthd,bshd->bhts", q, k) / 8**0.5
    weight = np.exp(score) / np.exp(score).sum(-1, keepdims=True)
    y = np.einsum("bhts,bshd->bthd", weight, v).reshape(2, 17, 16)
    x = x + dense(y, block["attention"]["out"])
    y = dense(norm(x, p["image_norms_0_1"]), block["mlp1"])
    x = x + dense(y / (1 + np.exp(-1.702 * y)), block["mlp2"])
    found = jax.jit(lambda p: network.apply({"params": p}, {"image": IMAGES}, train=False))(
        jax.tree.map(np.float32, p)
    )["image"]
    np.testing.assert_allclose(found, norm(x[:, 0], p["image_last"]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "patch", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)]
)
def test_early_convolutions_take_the_place_of_patches_and_of_a_block(patch):
    network, variables = built(stem="early", patch=patch, branch=True, depth=5)
    features, changed = jax.jit(
        lambda v: network.apply(v, INPUTS, train=True, mutable=["batch_stats"])
    )(variables)
    assert features["image"].shape == (2, 16) and np.isfinite(features["image"]).all()
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (changed, variables))))
    names = set(variables["params"])
    assert "text_blocks_0" in names and "image_blocks_0" not in names and "patches" not in names
    assert {name for name in names if name.startswith("shared_blocks")} == {
        f"shared_blocks_{i}" for i in range(1, 5)
    }
    assert network.bind(variables).side.places == (2, 4)


def test_every_layer_norm_has_the_epsilon_that_is_set():
    found = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, LayerNorm):
            found[context.module.name] = context.module.epsilon
        return call(*args, **kwargs)

    network = ms_clip.make(**{**SMALL, "depth": 5}, stem="early", branch=True, epsilon=1e-12)
    with nn.intercept_methods(note):
        jax.eval_shape(lambda k: network.init(k, INPUTS, train=False), jax.random.key(0))
    assert {"fuse_norm0c", "fuse_norm1c", "image_first", "text_last"} <= set(found)
    assert set(found.values()) == {1e-12}


def test_errors():
    for settings, message in (
        (dict(share="all"), "expected one of none, blocks, blocks\\+norms"),
        (dict(stem="late"), "expected one of patch, early"),
        (dict(specific=4), "expected 0 to depth=3"),
        (dict(patch=5), "not a multiple of patch=5"),
        (dict(stem="early", patch=16, width=24, heads=2), "divisible by 16"),
        (dict(vocab_size=None), "give vocab_size"),
        (dict(heads=3), "not divisible by heads=3"),
    ):
        with pytest.raises(ValueError, match=message):
            ms_clip.make(**{**SMALL, **settings})
    network = ms_clip.make(**SMALL)
    for inputs, message in (
        ({"image": IMAGES[:, :8, :8]}, "expected \\[B, 16, 16, C\\]"),
        ({"tokens": np.ones((1, 7), np.int32)}, "positions for length=6"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(
                lambda key, x=inputs: network.init(key, x, train=False), jax.random.key(0)
            )
