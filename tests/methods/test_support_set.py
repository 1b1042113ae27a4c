"""Support sets: what a sentence is written from, the losses, gradients, errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run
from cl_jax.encoders import conv, gru, transformer
from cl_jax.methods import support_set
from cl_jax.training import configs, experiment, loop
from cl_jax.views import clip, tokens
from tests import small

RUN = Run(None, 4, 16, 4, 8, {"tokens": 12})
VIEWS = (
    clip.make(size=8, flip=0.0, test_crop=1.0, crop="none", mean=None, std=None),
    tokens.make(),
)
RNG = np.random.default_rng(0)
BATCH = {
    "clip": RNG.integers(0, 256, (4, 2, 8, 8, 3), np.uint8),
    "tokens": np.array([[2, 5, 6, 3, 0], [2, 7, 8, 9, 3], [2, 5, 3, 0, 0], [2, 9, 3, 0, 0]]),
    "id": np.array([3, 1, 14, 9], np.int32),
}
LATER = BATCH | {
    "clip": RNG.integers(0, 256, (4, 2, 8, 8, 3), np.uint8),
    "id": np.array([2, 14, 5, 8], np.int32),
}
WORDS = dict(vocab_size=12, length=5, width=8, depth=1, heads=2, style="pre_norm", dropout=0.0)


class Words(nn.Module):
    """An encoder of sentences by the mean of their words."""

    @nn.compact
    def __call__(self, tokens, *, train, keys=None):
        return {"h": nn.Embed(12, 6)(tokens).mean(1)}


ENCODER = {
    "frame": conv.ConvNet([(4, 4, 4, 0, False)]),
    "time": gru.make(width=5),
    "text": Words(),
    "decoder": transformer.make(**WORDS, causal=True, cross=True),
}


def build(**settings):
    settings = {"encoder": ENCODER, "views": VIEWS, "run": RUN, "out_dim": 6} | settings
    return support_set.make(tx=optax.sgd(0.1), **settings)


@pytest.fixture(scope="module")
def started():
    method = build(queue_size=6)
    # Of the method's own start, which takes as long to compile as the step, the queue alone.
    memory = jax.jit(lambda key: method.init(key, BATCH).memory)(jax.random.key(0))
    state = small.started(method, BATCH).replace(memory=memory)
    return method, state, jax.jit(method.update)


def embedder(method):
    """The sentences and clips of a step, float64, as a function of its State and batch."""

    @jax.jit
    def run(state, batch, key):
        (inputs,) = method.views(batch, key)
        z, _ = method.features(state.params, state.stats, inputs, True)
        return z["text_z"], z["video_z"]

    return lambda state, batch: [
        np.asarray(z, np.float64) for z in run(state, batch, jax.random.key(5))
    ]


def attention(t, videos, allowed):
    """The weights of what each sentence is written from, and their mean entropy."""
    weights = np.where(allowed, np.exp(t @ videos.T / 0.1), 0)
    weights /= weights.sum(1, keepdims=True)
    logs = np.log(weights, where=weights > 0, out=np.zeros_like(weights))
    return weights, -np.mean(np.sum(weights * logs, 1))


def caption_by_hand(state, batch, vectors):
    network = support_set.Network(**ENCODER, out_dim=6)

    @jax.jit
    def write(params, tokens, vectors):
        return network.apply(
            {"params": params}, tokens, vectors, False, None, method=support_set.Network.write
        )

    logits = write(state.params, batch["tokens"], np.asarray(vectors, np.float32))
    likelihood = np.asarray(jax.nn.log_softmax(logits, axis=-1), np.float64)
    return -np.mean(
        [
            np.mean([likelihood[i, k - 1, row[k]] for k in range(1, 5) if row[k]])
            for i, row in enumerate(batch["tokens"])
        ]
    )


@pytest.mark.slow
def test_a_sentence_is_written_from_the_other_clips(started):
    """The loss by hand: attention over the others at .1, the mean log likelihood of tokens; in the
    second step over clips of the first too."""
    method, state, update = started
    embedded = embedder(method)
    after, metrics = update(state, BATCH, jax.random.key(5))
    t, v = embedded(state, BATCH)
    weights, _ = attention(t, v, ~np.eye(4, dtype=bool))
    caption = caption_by_hand(state, BATCH, weights @ v)
    np.testing.assert_allclose(metrics["caption"], caption, rtol=1e-4)
    own = np.sum(t * v, 1)
    ranking = sum(
        np.mean(
            [max(max(0.0, 0.2 + s[i, j] - own[i]) for j in range(4) if j != i) for i in range(4)]
        )
        for s in (t @ v.T, v @ t.T)
    )
    np.testing.assert_allclose(metrics["ranking"], ranking, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], ranking + 10 * caption, rtol=1e-4)
    np.testing.assert_allclose(metrics["chance"], 0.4 + 10 * np.log(12), rtol=1e-6)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.params, state.params)
    assert {name for name, part in moved.items() if max(jax.tree.leaves(part)) > 0} == set(moved)

    _, metrics = update(after, LATER, jax.random.key(5))
    t, now = embedded(after, LATER)
    allowed = np.concatenate([~np.eye(4, dtype=bool), LATER["id"][:, None] != BATCH["id"]], 1)
    videos = np.concatenate([now, v])
    weights, _ = attention(t, videos, allowed)
    caption = caption_by_hand(after, LATER, weights @ videos)
    np.testing.assert_allclose(metrics["caption"], caption, rtol=1e-4)


def test_a_sentence_is_written_from_earlier_clips_but_not_its_own(started):
    """The queue has clips in the order of their batches, oldest overwritten; its empty slots and
    the own clip, of which it has an older embedding, have no weight."""
    method, state, update = started
    embedded = embedder(method)
    _, first = embedded(state, BATCH)
    after, metrics = update(state, BATCH, jax.random.key(5))
    assert metrics["queue_filled"] == 0
    kept = after.memory
    np.testing.assert_array_equal(kept.rows["id"], [*BATCH["id"], -1, -1])
    np.testing.assert_array_equal(kept.rows["video"], -1)
    np.testing.assert_allclose(kept.rows["video_z"][:4], first, atol=1e-5)
    assert (int(kept.pointer), int(kept.filled)) == (4, 4)

    then, metrics = update(after, LATER, jax.random.key(5))
    t, second = embedded(after, LATER)
    allowed = np.concatenate([~np.eye(4, dtype=bool), LATER["id"][:, None] != BATCH["id"]], 1)
    assert allowed.sum() == 4 * 7 - 1
    _, entropy = attention(t, np.concatenate([second, first]), allowed)
    np.testing.assert_allclose(metrics["attention_entropy"], entropy, rtol=1e-4)
    np.testing.assert_allclose(metrics["queue_filled"], 4 / 6, rtol=1e-6)
    ids = [LATER["id"][2], LATER["id"][3], *BATCH["id"][2:], *LATER["id"][:2]]
    np.testing.assert_array_equal(then.memory.rows["id"], ids)


def test_a_clip_of_the_same_film_is_left_out(started):
    """Of two films of two clips each, a sentence is written from the other film alone."""
    _, state, update = started
    films = BATCH | {"video": np.array([0, 0, 1, 1], np.int32)}
    _, metrics = update(state, films, jax.random.key(5))
    assert 0 < float(metrics["attention_entropy"]) <= np.log(2) + 1e-6
    later = films | {"id": LATER["id"], "video": np.array([0, 0, 0, 2], np.int32)}
    _, metrics = update(update(state, films, jax.random.key(5))[0], later, jax.random.key(5))
    assert 0 < float(metrics["attention_entropy"]) <= np.log(3 * 3 * 3 * 7) / 4 + 1e-6
    alone = BATCH | {"video": np.zeros(4, np.int32)}
    _, metrics = update(state, alone, jax.random.key(5))
    assert float(metrics["attention_entropy"]) == 0 and np.isfinite(metrics["loss"])


def test_the_hardest_negative_takes_over_from_the_sum():
    """After a quarter of an epoch of four steps, in the value and in the chance level."""
    method = build(support="none", sum_epochs=0.25)
    state = small.started(method, BATCH)
    update, embedded = jax.jit(method.update), embedder(method)
    for reduce, chance in ((np.sum, 1.2), (np.max, 0.4)):
        t, v = embedded(state, BATCH)
        state, metrics = update(state, BATCH, jax.random.key(5))
        hinge = [np.maximum(0.2 + s - np.diag(s)[:, None], 0) for s in (t @ v.T, v @ t.T)]
        expected = sum(np.mean(reduce(np.where(np.eye(4), 0, h), axis=1)) for h in hinge)
        np.testing.assert_allclose(metrics["ranking"], expected, rtol=1e-4)
        np.testing.assert_allclose(metrics["chance"], chance, rtol=1e-6)


def test_score_is_of_the_clip_itself_and_text_alone_can_be_encoded(started):
    method, state, _ = started
    score = jax.jit(method.functions["score"])(state, BATCH)
    assert score.shape == (4,) and (np.asarray(score) < 0).all()
    text = {name: BATCH[name] for name in ("tokens", "id")}
    assert set(jax.jit(method.encode)(state, text)) == {"text_h", "text_z"}


@pytest.mark.parametrize(
    "variant, figure, better",
    [
        ("debug", "retrieval/text_to_image/median", -1),
        ("debug,meanings", "retrieval/text_to_image/label_map", 1),
        pytest.param("debug,ablation", "none,0/image_to_text/r1", 1, marks=pytest.mark.slow),
    ],
)
def test_the_figure_of_the_best_checkpoint_is_measured(variant, figure, better, tmp_path):
    config = configs.load(f"support_set:{variant}")
    evaluation = loop.evaluation_of(experiment.build(config), config, tmp_path)
    assert evaluation.best == figure
    assert evaluation.score({figure: 3.0}) == better * 3.0


def test_members_of_the_ablation_are_measured_by_their_own_features():
    config = configs.load("support_set:ablation,folder")
    sections = [s for s in configs.plain(config.evals.protocols).values() if "image" in s]
    assert len(sections) == len(config.method.over)
    assert all("@" in section[key] for section in sections for key in ("image", "text"))


def test_errors_say_what_was_expected():
    plain = transformer.make(**WORDS)
    for settings, text in (
        (dict(encoder=plain), "sections frame, time, text, decoder; it has a single network"),
        (dict(encoder=ENCODER | {"decoder": plain}), "a transformer that writes"),
        (dict(views=VIEWS[:1]), "has 1 views"),
        (dict(support="all"), "support='all'"),
        (dict(ranking="all"), "ranking='all'"),
        (dict(run=RUN._replace(batch_size=1)), "2 or more"),
        (dict(ranking="sum", sum_epochs=1.0), "ranking='hardest', which takes over"),
        (dict(sum_epochs=-1.0), "expected 0 or more epochs"),
        (dict(queue_size=17), "queue_size=17 is more than the 16 training examples"),
        (dict(queue_size=4, support="identity"), "reads no other clips"),
    ):
        with pytest.raises(ValueError, match=text):
            build(**settings)
