"""What is each method's own: SimCSE, whose views are dropout, and CLIP, for two encoders and for
one."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run
from cl_jax.core.tokens import END, SPECIAL, START
from cl_jax.encoders import clip_resnet, ms_clip, transformer
from cl_jax.losses import image_text, sentence
from cl_jax.methods import clip, simcse
from cl_jax.views import draw
from cl_jax.views import make as view
from tests.small import Pixels, started

RNG = np.random.default_rng(0)


def sentences(count=8):
    tokens = RNG.integers(SPECIAL, 20, (count, 6)).astype(np.uint16)
    tokens[:, 0], tokens[:, -1] = START, END
    return tokens


BATCH = {
    "id": np.arange(8, dtype=np.int32),
    "image": RNG.integers(0, 256, (8, 8, 8, 3), np.uint8),
    "tokens": sentences(),
    "tokens_b": sentences(),
    "tokens_c": sentences(),
}
RUN = Run(None, 8, 32, 4, 8, {"tokens": 20})
SENTENCE = view({"kind": "tokens"})
POSITIVE, NEGATIVE = (view({"kind": "tokens", "field": f"tokens_{x}"}) for x in "bc")
PICTURE = view({"name": "crop_flip", "crop": "none", "size": 8, "test_crop": 1.0})
ENCODER = dict(vocab_size=20, length=6, width=16, depth=1, heads=2)


def encoder(**settings):
    return transformer.make(**{**ENCODER, "dropout": 0.2, **settings})


def made(**settings):
    given = dict(encoder=encoder(), tx=optax.sgd(0.1), views=(SENTENCE,) * 2, run=RUN)
    return simcse.make(**given | settings)


def stepped(method, steps=1, batch=BATCH, first=None):
    first = first or jax.jit(method.init)(jax.random.key(0), batch)
    state = first
    update = jax.jit(method.update)
    for step in range(steps):
        state, metrics = update(state, batch, jax.random.key(1 + step))
    return first, state, metrics


def drawn(views, batch=BATCH):
    return jax.jit(lambda batch, key: draw(views, batch, key))(batch, jax.random.key(1))


def features_of(method, state, train=True):
    """The method's features of inputs, compiled."""
    return jax.jit(lambda inputs: method.features(state.params, state.stats, inputs, train)[0])


@functools.cache
def dropped():
    """(method, State before, both views, compiled features) of SimCSE under dropout."""
    method = made(temperature=0.1)
    first = started(method, BATCH)
    return method, first, drawn((SENTENCE,) * 2), features_of(method, first)


def far(a, b):
    return max(float(np.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_simcse_contrasts_two_passes_through_dropout():
    method, first, (a, b), train = dropped()
    _, metrics = jax.jit(method.update)(first, BATCH, jax.random.key(1))
    test = features_of(method, first, train=False)
    z = [train(inputs)["z"] for inputs in (a, b)]
    np.testing.assert_allclose(metrics["loss"], sentence.simcse(*z, temperature=0.1), rtol=1e-5)
    assert metrics["chance"] == np.float32(math.log(8)) and method.negatives == 7
    assert far(*z) > 1e-2
    assert set(jax.eval_shape(method.encode, first, BATCH)) == {"h", "z"}
    same = [test(inputs)["z"] for inputs in (a, b)]
    assert far(*same) == 0


def test_simcse_with_one_mask_for_both_passes_has_nothing_to_align():
    """The paper's "fixed 0.1" control: the same key gives the same vector."""
    _, _, (a, b), train = dropped()
    z = [train({**inputs, "keys": a["keys"]})["z"] for inputs in (a, b)]
    assert far(*z) == 0


@pytest.mark.parametrize("weight", [pytest.param(0.0, marks=pytest.mark.slow), 1.0])
def test_simcse_with_hard_negatives(weight):
    views = (SENTENCE, POSITIVE, NEGATIVE)
    method = made(encoder=Words(), views=views, hard_negative_weight=weight)
    assert method.needs == ("tokens", "tokens_b", "tokens_c") and method.negatives == 15
    first, _, metrics = stepped(method, first=started(method, BATCH))
    train = features_of(method, first)
    z = [train(x)["z"] for x in drawn(views)]
    right = sentence.simcse(*z, temperature=0.05, hard_negative_weight=weight)
    np.testing.assert_allclose(metrics["loss"], right, rtol=1e-5)


def test_simcse_head_is_left_out_on_request():
    for head in (True, False):
        method = made(head=head)
        first = started(method, BATCH)
        assert ("sentence_head" in first.params) == head
        found = jax.jit(method.encode)(first, BATCH)
        assert (far(found["h"], found["z"]) == 0) != head


@pytest.mark.slow
def test_simcse_language_model_is_added_with_its_weight():
    method = made(mlm_weight=0.5)
    first, after, metrics = stepped(method)
    np.testing.assert_allclose(
        metrics["loss"], metrics["contrast"] + 0.5 * metrics["mlm"], rtol=1e-6
    )
    assert metrics["mlm"] == pytest.approx(math.log(20), rel=0.1)
    assert far(first.params["bias"], after.params["bias"]) > 0
    plain = stepped(made())[2]
    np.testing.assert_allclose(metrics["contrast"], plain["loss"], rtol=1e-5)


@pytest.mark.slow
def test_simcse_learns_its_language_model():
    method = made(mlm_weight=1.0, tx=optax.adam(1e-2))
    few, many = (stepped(method, steps)[2]["mlm"] for steps in (1, 40))
    assert many < few - 0.5


@pytest.mark.slow
@pytest.mark.parametrize("mlm", [0.0, 0.5])
def test_simcse_in_pieces_is_the_whole_step(mlm):
    whole, pieces = (stepped(made(mlm_weight=mlm, micro_batches=m))[1] for m in (1, 2))
    assert far(whole.params, pieces.params) < 2e-5


def test_simcse_errors():
    for settings, message in (
        (dict(views=(SENTENCE,)), "contrasts two views, or three"),
        (dict(mlm_weight=-1.0), "expected 0 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            made(**settings)


class Words(nn.Module):
    """An encoder of sentences by the mean of their words."""

    dropout: float = 0.0
    dtype: None = None

    @nn.compact
    def __call__(self, tokens, *, train, keys=None):
        return {"h": nn.Embed(20, 6)(tokens.astype(jnp.int32)).mean(1)}


def towers():
    return {"image": Pixels(), "text": Words()}


def one_for_both(**settings):
    return ms_clip.make(**ENCODER, image_size=8, patch=4, **settings)


def paired(**settings):
    given = dict(
        encoder=one_for_both(),
        tx=optax.sgd(0.1),
        views=(PICTURE, SENTENCE),
        run=RUN,
        out_dim=8,
    )
    return clip.make(**given | settings)


@pytest.mark.parametrize("encoders", [towers, pytest.param(one_for_both, marks=pytest.mark.slow)])
def test_clip_is_its_loss_and_encodes_what_there_is(encoders):
    method = paired(encoder=encoders())
    first, after, metrics = stepped(method)
    z = stepped_features(method, first)
    right = image_text.clip(z["image_z"], z["text_z"], logit_scale=1 / 0.07)
    np.testing.assert_allclose(metrics["loss"], right, rtol=1e-5)
    assert metrics["scale"] == pytest.approx(1 / 0.07) and metrics["chance"] == np.float32(
        math.log(8)
    )
    assert far(first.params["log_scale"], after.params["log_scale"]) > 0
    encode = jax.jit(method.encode)
    both = encode(first, BATCH)
    assert set(both) == {"h", "image_z", "text_h", "text_z"}
    np.testing.assert_allclose(np.linalg.norm(both["text_z"], axis=1), 1, rtol=1e-5)
    without = {name: x for name, x in BATCH.items() if name != "image"}
    prompts = encode(first, without)
    assert set(prompts) == {"text_h", "text_z"}
    np.testing.assert_allclose(prompts["text_z"], both["text_z"], atol=1e-6)


@pytest.mark.slow
def test_clip_holds_the_scale_below_its_bound():
    method = paired(scale=99.9, tx=optax.sgd(-10.0))  # uphill, so that the scale grows
    assert jnp.exp(stepped(method)[1].params["log_scale"]) == pytest.approx(100, rel=1e-5)
    free = paired(scale=99.9, tx=optax.sgd(-10.0), max_scale=None)
    assert jnp.exp(stepped(free)[1].params["log_scale"]) > 101


def test_siglip_learns_a_bias():
    method = paired(encoder=towers(), loss="siglip", scale=10.0, max_scale=None)
    first, after, metrics = stepped(method)
    z = stepped_features(method, first)
    right = image_text.siglip(z["image_z"], z["text_z"], logit_scale=10.0, logit_bias=-10.0)
    np.testing.assert_allclose(metrics["loss"], right, rtol=1e-5)
    assert metrics["bias"] == -10 and after.params["logit_bias"] != -10
    # What knows nothing but that one of eight is right says so of each pair.
    logit = math.log(1 / 7)
    chance = math.log1p(math.exp(-logit)) + 7 * math.log1p(math.exp(logit))
    assert metrics["chance"] == pytest.approx(chance, rel=1e-5)


def stepped_features(method, first):
    image, text = drawn((PICTURE, SENTENCE))
    return features_of(method, first)({"image": image} | text)


@pytest.mark.slow
def test_clip_in_pieces_is_the_whole_step():
    whole, pieces = (stepped(paired(micro_batches=m))[1] for m in (1, 4))
    assert far(whole.params, pieces.params) < 2e-5


@pytest.mark.slow
def test_shared_weights_get_the_gradients_of_both_modalities():
    method = paired(encoder=one_for_both(share="blocks"))
    first = started(method, BATCH)

    @jax.jit
    @jax.jacrev
    def gradients(params):
        z, _ = method.features(params, {}, method.clean(BATCH), True)
        return {kind: jnp.sum(z[f"{kind}_z"][:, 0]) for kind in ("image", "text")}

    for found in gradients(first.params).values():
        shared = found["towers"]["shared_blocks_0"]
        assert max(np.abs(x).max() for x in jax.tree.leaves(shared)) > 0


@pytest.mark.slow
def test_clip_of_a_resnet_has_the_authors_number_of_parameters():
    """102,007,137 of RN50, whose image encoder ends in the common space."""
    words = transformer.make(
        vocab_size=49408,
        length=77,
        style="clip",
        causal=True,
        pool="eos",
        width=512,
        depth=12,
        heads=8,
        dropout=0.0,
    )
    network = clip.Pair(
        clip.Towers(clip_resnet.make(), words), 1024, 14.3, None, image_projection=False
    )
    inputs = {"image": jnp.zeros((1, 224, 224, 3)), "tokens": jnp.full((1, 77), END, jnp.int32)}
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), inputs, False))
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == 102_007_137


def test_clip_errors():
    for settings, message in (
        (dict(views=(PICTURE,)), "has a view of images and one of tokens"),
        (dict(loss="ce"), "expected clip or siglip"),
        (dict(encoder={"image": None, "words": None}), "roles image, words"),
    ):
        with pytest.raises(ValueError, match=message):
            paired(**settings)
