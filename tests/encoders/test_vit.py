"""ViT: the authors' parameter counts, what is frozen, dropped and returned."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.encoders import vit
from tests.drawn import drawn
from tests.losses.compiled import program

SMALL = dict(width=16, depth=2, heads=2, patch=4, image_size=8)
IMAGES = np.random.default_rng(0).uniform(size=(4, 8, 8, 3)).astype(np.float32)


@functools.cache
def built(**settings):
    """Tests of the same settings share the network's programs too."""
    network = vit.make(**{**SMALL, **settings})
    return network, drawn(network, IMAGES, train=True)


# timm's models of these sizes at patch 16 and 224 pixels without their classifier; "small" is
# DINO's 21.67 M.
@pytest.mark.parametrize(
    ("size", "count"), [("tiny", 5_524_416), ("small", 21_665_664), ("base", 85_798_656)]
)
def test_parameter_counts(size, count):
    network = vit.make(size=size)
    shapes = jax.eval_shape(
        lambda: network.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_features_attention_and_pooling():
    network, variables = built()
    found = program(network.apply)(variables, IMAGES, train=False, attention=True)
    assert found["tokens"].shape == (4, 5, 16) and found["blocks"].shape == (4, 2, 16)
    np.testing.assert_array_equal(found["h"], found["tokens"][:, 0])
    assert found["attention"].shape == (4, 2, 5, 5)
    np.testing.assert_allclose(found["attention"].sum(-1), 1, rtol=1e-5)
    mean = program(vit.make(**SMALL, pool="mean").apply)(variables, IMAGES, train=False)
    np.testing.assert_allclose(mean["h"], found["tokens"][:, 1:].mean(1), rtol=1e-6)
    assert "attention" not in mean


def test_the_attention_that_is_returned_is_the_one_that_is_used():
    """The last block's output, computed by hand from the weights returned."""
    network, variables = built(depth=1)
    _, state = program(network.apply)(
        variables,
        IMAGES,
        train=False,
        attention=True,
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    inner = state["intermediates"]["block1"]
    qkv = np.asarray(inner["qkv"]["__call__"][0]).reshape(4, 5, 3, 2, 8)
    v = qkv[:, :, 2]
    weights = np.asarray(inner["__call__"][0][1])
    mixed = np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(4, 5, 16)
    layer = variables["params"]["block1"]["projection"]
    expected = mixed @ layer["kernel"] + layer["bias"][None, None]
    np.testing.assert_allclose(expected, inner["projection"]["__call__"][0], atol=1e-5)


@pytest.mark.slow
def test_other_sizes_resize_learned_positions_and_move_fixed_ones():
    larger = np.concatenate([IMAGES, IMAGES], axis=1)
    for variant in ("dino", "moco_v3"):
        network, variables = built(variant=variant)
        assert program(network.apply)(variables, larger, train=False)["tokens"].shape == (4, 9, 16)
        assert ("positions" in variables["params"]) == (variant == "dino")


def test_frozen_patches_get_no_gradient():
    network, variables = built(variant="moco_v3", freeze_patches=True, depth=1)
    weights = np.random.default_rng(1).normal(size=16).astype(np.float32)
    grads = jax.jit(
        jax.grad(lambda p: (network.apply({"params": p}, IMAGES, train=True)["h"] @ weights).sum())
    )(variables["params"])
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads["patches"]))
    assert np.abs(grads["block1"]["qkv"]["kernel"]).max() > 0


def test_stochastic_depth_is_each_examples_own():
    network, variables = built(drop_path=0.5)
    keys = jax.random.split(jax.random.key(1), 4)
    run = jax.jit(
        lambda keys, images: network.apply(variables, images, train=True, drop_keys=keys)["h"]
    )
    once = run(keys, IMAGES)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(run(keys[order], IMAGES[order]), once[order], atol=1e-6)
    keys = jax.random.split(jax.random.key(2), 1000)
    assert np.abs(once - run(keys[:4], IMAGES)).max() > 1e-3
    kept = np.asarray(jax.jit(lambda keys: network._kept(1000, keys))(keys))
    np.testing.assert_allclose(kept.mean(0), 1, atol=0.35)  # of mean 1 at every depth
    assert (kept[:, 0] == 1).all()  # the first block is never left out


@pytest.mark.slow
def test_bfloat16_keeps_the_stream_and_parameters_in_float32():
    network, variables = built(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    wide = program(built()[0].apply)(variables, IMAGES, train=False)["h"]
    narrow = program(network.apply)(variables, IMAGES, train=False)["h"]
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [4, 5])
def test_flash_attends_to_every_token_and_to_no_other(monkeypatch, tokens):
    """cuDNN's lengths and the token more that it needs, by the plain form: values and gradients."""
    plain, seen = jax.nn.dot_product_attention, []

    def stand_in(q, k, v, *, implementation, **lengths):
        seen.append((implementation, q.shape[1]))
        return plain(q, k, v, **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    *qkv, pull = jax.random.normal(jax.random.key(0), (4, 2, tokens, 3, 8))
    both = [jax.vjp(attend, *qkv) for attend in (vit._flash, plain)]
    for got, expected in zip(*(jax.tree.leaves((y, vjp(pull))) for y, vjp in both)):
        np.testing.assert_allclose(got, expected, atol=1e-6)
    assert seen == [("cudnn", 4 if tokens == 4 else 6)]


@functools.partial(jax.jit, static_argnums=0)
def derivatives(attention, q, k, v, dy):
    """The value, gradients, and what is kept from one to the others."""
    y, back = jax.vjp(attention, q, k, v)
    return (y, *back(dy)), jax.tree.leaves(back)


def plain_attention(q, k, v):
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), v)


@pytest.mark.parametrize(
    ("dtype", "bound"), [("float64", 1e-12), ("float32", 2e-6), ("bfloat16", 6e-3)]
)
@pytest.mark.parametrize(
    "tokens",
    [5, pytest.param(16, marks=pytest.mark.slow), pytest.param(37, marks=pytest.mark.slow)],
)
def test_attention_is_softmax_of_products_and_keeps_one_array_of_that_size(dtype, bound, tokens):
    """Value and gradients against differentiation in float64."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        given = [
            (rng.normal(size=(3, tokens, 2, 8)) * scale).astype(dtype) for scale in (2, 2, 1, 1)
        ]
        ours, kept = derivatives(vit._attention, *given)
        theirs, _ = derivatives(plain_attention, *(x.astype("float64") for x in given))
        for found, right in zip(ours, theirs):
            assert found.dtype == dtype and found.shape == right.shape
            assert np.linalg.norm(np.float64(found) - right) <= bound * np.linalg.norm(right)
        large = [
            leaf
            for leaf in kept
            if leaf.size >= 3 * 2 * tokens**2
            and leaf.ndim == 4
            and leaf.shape[-1] == leaf.shape[-2]
        ]
        assert [leaf.dtype for leaf in large] == [dtype]
        # Exponentials of such logits overflow.
        steep = (given[0] * 1000).astype(dtype)
        assert np.isfinite(np.float64(derivatives(vit._attention, steep, *given[1:])[0][0])).all()


def test_flash_where_there_is_no_cudnn():
    _, variables = built(dtype="bfloat16")
    same = vit.make(**SMALL, dtype="bfloat16", flash=True)
    if importlib.util.find_spec("jax_plugins") is not None:
        pytest.skip("jax's CUDA plug-in is installed")
    with pytest.raises(ValueError, match="needs an NVIDIA GPU"):
        program(same.apply)(variables, IMAGES, train=False)


def test_errors():
    for settings, text in (
        (dict(size="huge"), "have tiny, small, base, large"),
        (dict(pool="max"), "expected cls or mean"),
        (dict(heads=5), "not divisible by heads=5"),
        (dict(drop_path=1.0), "drop_path is 1.0"),
        (dict(patch=5), "not a multiple of patch=5"),
        (dict(variant="timm"), "have moco_v3, dino"),
        (dict(flash=True), "set dtype=bfloat16"),
    ):
        with pytest.raises(ValueError, match=text):
            vit.make(**{**SMALL, **settings})
    network, variables = built()
    with pytest.raises(ValueError, match="multiples of its patch of 4"):
        program(network.apply)(variables, IMAGES[:, :6], train=False)


def test_a_mask_replaces_patches_before_positions_and_the_blocks_see_no_more_of_them():
    network, variables = built(mask_token=True)
    mask = np.zeros((4, 4), bool)
    mask[:, 1] = True
    changed = IMAGES.copy()
    changed[:, :4, 4:] = 0  # patch 1

    def tokens(images, mask):
        return program(network.apply)(variables, images, train=False, mask=mask)["tokens"]

    np.testing.assert_array_equal(tokens(IMAGES, mask), tokens(changed, mask))
    assert np.abs(tokens(IMAGES, None) - tokens(changed, None)).max() > 1e-3
    np.testing.assert_array_equal(tokens(IMAGES, np.zeros_like(mask)), tokens(IMAGES, None))


def test_kept_patches_carry_their_positions_and_the_others_are_not_seen():
    network, variables = built(variant="mae")

    def tokens(images, kept):
        return np.asarray(
            program(network.apply)(variables, images, train=False, kept=kept)["tokens"]
        )

    whole = np.asarray(program(network.apply)(variables, IMAGES, train=False)["tokens"])
    order = np.array([[3, 0, 2, 1]] * 4)
    np.testing.assert_allclose(tokens(IMAGES, order)[:, 1:], whole[:, 1:][:, order[0]], atol=1e-5)
    changed = IMAGES.copy()
    changed[:, :4, 4:] = 0  # patch 1
    part = tokens(IMAGES, order[:, :2])
    assert part.shape == (4, 3, 16)
    np.testing.assert_array_equal(part, tokens(changed, order[:, :2]))


def test_a_mask_needs_its_token_and_an_entry_for_each_patch():
    network, variables = built()
    with pytest.raises(ValueError, match="set mask_token=True"):
        program(network.apply)(variables, IMAGES, train=False, mask=np.zeros((4, 4), bool))
    network, variables = built(mask_token=True)
    with pytest.raises(ValueError, match=r"mask has shape \(4, 5\); expected \(4, 4\)"):
        program(network.apply)(variables, IMAGES, train=False, mask=np.zeros((4, 5), bool))
