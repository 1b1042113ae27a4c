"""Views of sentences: dropout keys, one of several captions, masked tokens."""

import jax
import numpy as np
import pytest

from cl_jax import views
from cl_jax.core.tokens import END, MASK, PAD, SPECIAL, START
from cl_jax.views import tokens as token_views

TOKENS = np.array([[START, 9, 7, 8, END, PAD]] * 4, np.uint16)
BATCH = {"id": np.arange(4, dtype=np.int32), "tokens": TOKENS, "tokens_b": TOKENS[:, ::-1]}


def key_data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_two_views_differ_in_their_keys_alone():
    both = [views.make(dict(kind="tokens"))] * 2
    a, b = views.draw(both, BATCH, jax.random.key(0))
    np.testing.assert_array_equal(a["tokens"], b["tokens"])
    assert (
        len({row.tobytes() for row in np.concatenate([key_data(a["keys"]), key_data(b["keys"])])})
        == 8
    )
    one = {name: x[[2]] for name, x in BATCH.items()}
    alone, _ = views.draw(both, one, jax.random.key(0))
    np.testing.assert_array_equal(key_data(alone["keys"]), key_data(a["keys"])[[2]])


def test_a_field_is_named():
    view = views.make(dict(kind="tokens", field="tokens_b"))
    assert view.needs == ("tokens_b",)
    np.testing.assert_array_equal(view.clean(BATCH)["tokens"], BATCH["tokens_b"])


def test_one_of_several_captions_is_drawn():
    captions = np.arange(300 * 3 * 2, dtype=np.uint16).reshape(300, 3, 2)
    batch = {"id": np.arange(300, dtype=np.int32), "tokens": captions}
    view = views.make(dict(kind="tokens"))
    (drawn,) = views.draw([view], batch, jax.random.key(0))
    which = [
        list(map(list, c)).index(list(t)) for c, t in zip(captions, np.asarray(drawn["tokens"]))
    ]
    assert np.bincount(which, minlength=3).min() > 70
    np.testing.assert_array_equal(view.clean(batch)["tokens"], captions[:, 0])


def test_masking_chooses_as_bert():
    rng = np.random.default_rng(0)
    tokens = rng.integers(SPECIAL, 50, (600, 40)).astype(np.uint16)
    tokens[:, 0], tokens[:, -2], tokens[:, -1] = START, END, PAD
    keys = jax.random.split(jax.random.key(0), 600)
    mask = jax.jit(lambda keys, tokens: token_views.mask_tokens(keys, tokens, vocab_size=50))
    masked = mask(keys, tokens)
    seen, labels = np.asarray(masked.tokens), np.asarray(masked.labels)
    chosen = labels != token_views.IGNORE
    assert not chosen[:, [0, -2, -1]].any()
    np.testing.assert_array_equal(labels[chosen], tokens[chosen])
    np.testing.assert_array_equal(seen[~chosen], tokens[~chosen])
    assert chosen[:, 1:-2].mean() == pytest.approx(0.15, abs=0.01)
    assert (seen[chosen] == MASK).mean() == pytest.approx(0.8, abs=0.03)
    # A tenth stays as it is, and of the random tenth one in 45 does.
    assert (seen[chosen] == labels[chosen]).mean() == pytest.approx(0.1 + 0.1 / 45, abs=0.02)
    assert seen.min() >= 0 and seen.max() < 50
    order = rng.permutation(600)
    np.testing.assert_array_equal(mask(keys[order], tokens[order]).tokens, seen[order])


def test_errors():
    keys = jax.random.split(jax.random.key(0), 4)
    for settings, message in (
        (dict(rate=0.0), "expected a rate between 0 and 1"),
        (dict(masked=0.9, random=0.2), "add up to 1"),
        (dict(vocab_size=5), "more than 5 reserved"),
    ):
        with pytest.raises(ValueError, match=message):
            token_views.mask_tokens(keys, TOKENS, **{"vocab_size": 50, **settings})
