"""CALM: the tasks made of a sentence, the two stages, what is generated."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run, Stage
from cl_jax.core.tokens import END, MASK, PAD, START, UNKNOWN
from cl_jax.encoders import encoder_decoder
from cl_jax.evals import concept_tasks
from cl_jax.losses import calm as losses
from cl_jax.methods import calm
from cl_jax.views import tokens
from tests.small import started

VOCAB, LENGTH = 24, 8
ENCODER = encoder_decoder.make(sizes={"tokens": VOCAB}, width=8, depth=1, heads=2, hidden=16)
VIEWS = tuple(tokens.make(field=field) for field in ("tokens", "concepts", "shuffled"))
RUN = Run(None, 4, 16, 4, 8, {"tokens": VOCAB})
CONCEPTS, ORDER, QUESTION, FIRST, SECOND = range(VOCAB, VOCAB + 5)


def _rows(*sentences, length=LENGTH):
    found = np.zeros((len(sentences), length), np.uint16)
    for row, pieces in zip(found, sentences):
        row[: len(pieces) + 2] = [START, *pieces, END]
    return found


BATCH = {
    "tokens": _rows([5, 6, 7], [8, 9, 10, 11], [12, 13], [14, 15, 16, 17, 18]),
    "concepts": _rows([20, 21], [22], [23, 20], [21], length=5),
    "shuffled": _rows([7, 6, 5], [10, 9, 8, 11], [13, 12], [14, 17, 16, 15, 18]),
    "id": np.arange(4, dtype=np.int32),
}


def _make(run=RUN, **settings):
    settings = dict(encoder=ENCODER, tx=optax.sgd(0.1), views=VIEWS) | settings
    return calm.make(run=run, **settings)


@pytest.fixture(scope="module")
def mixed():
    method = _make()
    return method, started(method, BATCH)


def test_pieces_are_joined_without_gaps():
    found = calm.joined(30, jnp.asarray(BATCH["concepts"]), 31, jnp.asarray(BATCH["tokens"][:, :4]))
    np.testing.assert_array_equal(found[0, :8], [30, 20, 21, 31, 5, 6, 7, END])
    np.testing.assert_array_equal(found[1, :7], [30, 22, 31, 8, 9, 10, END])
    assert not found[0, 8:].any() and not found[1, 7:].any()


def test_tasks_are_those_of_the_paper(mixed):
    method, _ = mixed
    views = jax.jit(method.views)
    tasks = dict(zip(calm.TASKS, views(BATCH, jax.random.key(1))))
    said = [5, 6, 7, END]
    for name, source in (
        ("concepts", [CONCEPTS, 20, 21, END]),
        ("order", [ORDER, 7, 6, 5, END]),
    ):
        np.testing.assert_array_equal(tasks[name].source[0, : len(source)], source)
    for task in tasks.values():
        np.testing.assert_array_equal(task.labels[0], [*said, *[-100] * 4])
    many = {k: np.tile(v, (16, *[1] * (v.ndim - 1))) for k, v in BATCH.items()}
    many["id"] = np.arange(64, dtype=np.int32)
    asked = np.asarray(views(many, jax.random.key(1))[2].source)[::4]
    true, false = ([QUESTION, FIRST, *a, SECOND, *b, END]
                   for a, b in (([5, 6, 7], [7, 6, 5]), ([7, 6, 5], [5, 6, 7])))  # fmt: skip
    found = [tuple(row[: len(true)]) for row in asked]
    assert set(found) == {tuple(true), tuple(false)}


def test_the_first_stage_is_the_cross_entropy_of_all_tokens(mixed):
    """Without dropout: of the tasks together, each token counting alike."""
    still = encoder_decoder.make(
        sizes={"tokens": VOCAB}, width=8, depth=1, heads=2, hidden=16, dropout=0.0
    )
    tasks = ("concepts", "question")  # each is a pass through the network to compile
    method, state = _make(encoder=still, tasks=tasks), mixed[1]
    key = jax.random.key(2)
    after, metrics = jax.jit(method.update)(state, BATCH, key)

    @jax.jit
    def log_p(source, labels):
        inputs = losses.shift_right(labels, pad_id=0)
        logits = still.apply({"params": state.params}, source, inputs, train=False)
        return jax.nn.log_softmax(logits)

    nats = count = 0
    for task in jax.jit(method.views)(BATCH, key):
        # Padding, which is masked, makes both one shape, and one program.
        source = np.pad(task.source, ((0, 0), (0, 24 - task.source.shape[1])))
        p = np.asarray(log_p(source, task.labels), np.float64)
        for b, t in zip(*np.nonzero(np.asarray(task.labels) >= 0)):
            nats -= p[b, t, task.labels[b, t]]
            count += 1
    assert count == 2 * (14 + 4)
    np.testing.assert_allclose(metrics["loss"], nats / count, rtol=1e-5)
    assert metrics["grad_norm"] > 0 and int(after.step) == 1


@pytest.mark.slow
def test_joint_training_starts_from_the_first_stage_and_drops_true_distractors(mixed):
    method, state = mixed
    run = RUN._replace(previous=Stage(method, state))
    joint = _make(run, joint=True, distractors="both")
    start = jax.jit(joint.init)(jax.random.key(9), BATCH)
    for a, b in zip(jax.tree.leaves(start.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)
    _, metrics = jax.jit(joint.update)(start, BATCH, jax.random.key(3))
    np.testing.assert_allclose(metrics["loss"], metrics["order"] + metrics["question"], rtol=1e-5)
    assert metrics["distractors_that_differ"] == 1
    given = BATCH | {"distractor": BATCH["tokens"].copy()}
    given["distractor"][1] = BATCH["shuffled"][1]
    order, question = joint.views(given, jax.random.key(3))
    assert (order.labels[0] >= 0).any()
    np.testing.assert_array_equal((np.asarray(question.labels) >= 0).any(1), [0, 1, 0, 0])


def test_fine_tuning_starts_from_a_stage_and_has_one_task(mixed):
    method, state = mixed
    tuned = _make(RUN._replace(previous=Stage(method, state)), tasks=("concepts",))
    assert tuned.init(jax.random.key(9), BATCH).params is state.params
    (task,), (known, *_) = (jax.jit(m.views)(BATCH, jax.random.key(3)) for m in (tuned, method))
    np.testing.assert_array_equal(task.source, known.source)
    assert task.source[0, 0] == CONCEPTS


def test_functions_write_sentences_and_score_them(mixed):
    method, state = mixed
    for name in ("generate", "reorder"):
        said = np.asarray(jax.jit(method.functions[name])(state, BATCH))
        assert said.shape == (4, LENGTH) and (said[:, 0] == START).all()
        for row in said:
            (ends,) = np.nonzero(row == END)
            assert len(ends) == 1 and not row[ends[0] + 1 :].any() and row.max() < VOCAB
    score = jax.jit(method.functions["score"])(state, BATCH)
    answer = jax.jit(method.functions["answer"])(state, BATCH)
    assert score.shape == (4,) and (score < 0).all()
    assert all((value < 0).all() and value.shape == (4,) for value in answer.values())


def test_greedy_writing_is_the_likeliest_token_each_time(mixed):
    """Against decoding one prefix after another by hand."""
    method, state = mixed
    said = np.asarray(jax.jit(method.functions["generate"])(state, BATCH))[0]
    source = jax.jit(method.views)(BATCH, jax.random.key(0))[0].source[:1]
    apply = jax.jit(lambda inputs: ENCODER.apply({"params": state.params}, source, inputs,
                                                 train=False))  # fmt: skip
    inputs = np.zeros((1, LENGTH), np.int32)
    for t in range(1, LENGTH - 1):
        scores = np.array(apply(inputs)[0, t - 1, :VOCAB])
        scores[[PAD, UNKNOWN, START, MASK]] = -np.inf
        token = int(scores.argmax())
        assert said[t] == token
        if token == END:
            break
        inputs[0, t] = token


def test_the_evaluator_compares_with_others_concepts():
    """A network that knows which concepts are whose, and one that writes the truth."""

    def rows(name, source):
        same = (source.arrays["concepts"] == BATCH["concepts"]).all(axis=1)
        return {
            "answer": {"true": np.array([0.0, 0, 0, -2]), "false": np.full(4, -1.0)},
            "score": np.where(same, -1.0, -2.0),
            "reorder": np.where(np.arange(4)[:, None] < 2, BATCH["tokens"], BATCH["shuffled"]),
        }[name]

    from cl_jax.data.source import from_arrays

    source = from_arrays("few", {k: v for k, v in BATCH.items() if k != "id"}, {})
    given = SimpleNamespace(data=SimpleNamespace(test=source), rows=rows)
    one = concept_tasks.make()
    assert one.measure(given) == {
        "concepts/answer": 0.75,
        "concepts/given": 1.0,
        "concepts/nats": 1.0,
        "concepts/restored": 0.5,
        "concepts/places": pytest.approx((3 + 4 + 0 + 3) / 14),
    }
    assert one.baseline(given) == {"shuffled/concepts/places": pytest.approx((1 + 2 + 0 + 3) / 14)}


def test_errors_say_what_was_expected():
    for settings, message in (
        (dict(views=VIEWS[:2]), "three views"),
        (dict(distractors="beam"), "order, concepts, both"),
        (dict(temperature=0.0), "temperature above 0"),
        (dict(tasks=("concept",)), "one or more of concepts, order, question"),
        (dict(joint=True), "starts from the mixed stage"),
    ):
        with pytest.raises(ValueError, match=message):
            _make(**settings)
    with pytest.raises(ValueError, match="give vocab_size"):
        encoder_decoder.make(sizes={"label": 3})
