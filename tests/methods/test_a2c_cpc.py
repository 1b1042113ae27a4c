"""A2C with CPC: what is played is what is learned from, episodes go on over updates, plain A2C with
weight 0."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run
from cl_jax.data import environments
from cl_jax.encoders import agent
from cl_jax.methods import a2c_cpc

WORLDS, UNROLL = 4, 5
ENCODER = agent.make(widths=(6,), memory=5)
BATCH = {"world": np.arange(WORLDS, dtype=np.int32), "id": np.arange(WORLDS, dtype=np.int32)}
KEY = jax.random.key(0)


def make(**changes):
    given = dict(
        encoder=ENCODER,
        tx=optax.adam(1e-2),
        views=(),
        run=Run(None, WORLDS, WORLDS, 1, 10, {}),
        environment=dict(name="catch", rows=4, columns=3),
        unroll=UNROLL,
        cpc_steps=2,
    )
    return a2c_cpc.make(**(given | changes))


@pytest.fixture(scope="module")
def trained():
    """(method, State before, State after, metrics, what was played) of one update. The weight of
    the auxiliary loss falls to nothing at the second."""
    method = make(cpc_weight=0.4, cpc_epochs=2.0)
    before = jax.jit(method.init)(KEY, BATCH)
    after, metrics = jax.jit(method.update)(before, BATCH, KEY)
    world = environments.make(dict(name="catch", rows=4, columns=3))
    player = a2c_cpc.Player(ENCODER, world.actions)
    rows = jax.tree.map(lambda x: x[BATCH["id"]], before.memory)
    keys = a2c_cpc.example_keys(KEY, BATCH["id"])
    played = jax.jit(
        lambda rows: a2c_cpc.play(player, world, UNROLL, before.params["player"], rows, keys)
    )(rows)
    return method, before, after, metrics, played


@pytest.mark.slow
def test_the_record_of_a_game(trained):
    *_, found = trained
    played = jax.device_get(found["played"])
    board = played["observation"]
    assert board.shape == (WORLDS, UNROLL + 1, 4, 3)
    ended = played["done"]
    np.testing.assert_array_equal(played["first"][:, 1:], ended)
    assert ended.any() and not ended.all()
    np.testing.assert_array_equal(np.abs(played["reward"]), ended)  # only at the end, 1 or -1
    ball = board[:, :, :-1].sum((2, 3))
    np.testing.assert_array_equal(ball, 1)  # an episode that ended shows its next start
    rows = board[:, :, :-1].sum(3).argmax(2)
    np.testing.assert_array_equal(rows[:, 1:][ended], 0)
    np.testing.assert_array_equal(rows[:, 1:][~ended], rows[:, :-1][~ended] + 1)
    for world, step in zip(*np.nonzero(~ended)):  # the paddle went where the action said
        paddle = board[world, step : step + 2, -1].argmax(1)
        moved = np.clip(paddle[0] + played["action"][world, step] - 1, 0, 2)
        assert paddle[1] == moved


def test_worlds_begin_at_different_places(trained):
    _, before, *_ = trained
    assert len(np.unique(before.memory["world"]["row"])) > 1


def test_episodes_go_on_over_updates(trained):
    _, _, after, _, found = trained
    for ours, theirs in zip(jax.tree.leaves(after.memory), jax.tree.leaves(found["after"])):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_return_is_of_episodes_that_ended(trained):
    _, _, after, metrics, found = trained
    memory = jax.device_get(after.memory)
    last = {}
    for world in range(WORLDS):
        for step in range(UNROLL):
            if found["played"]["done"][world, step]:
                last[world] = float(found["played"]["reward"][world, step])
    assert sorted(np.flatnonzero(memory["finished"])) == sorted(last)
    np.testing.assert_allclose(metrics["return"], np.mean(list(last.values())), atol=1e-6)


def test_what_is_learned_from_is_what_was_remembered(trained):
    """The memory after the game is that of the replay: a GRU's output is its memory."""
    _, before, _, _, found = trained
    player = a2c_cpc.Player(ENCODER, 3)
    params = {"params": before.params["player"]}

    @jax.jit
    def remembered(memory, seen, first):
        z = player.apply(params, seen[:, None], method="encode")[:, 0]
        return player.apply(params, memory, z, first, method="remember")[0]

    memory, played = found["before"], found["played"]
    for t in range(UNROLL):
        memory = remembered(memory, played["observation"][:, t], played["first"][:, t])
    np.testing.assert_allclose(memory, found["after"]["memory"], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_weight_zero_is_plain_a2c():
    """Players of runs that predict differently, and not at all, are equal. They are two programs,
    whose sums a compiler may order differently."""
    players = []
    for steps in (1, 3):
        method = make(cpc_weight=0.0, cpc_steps=steps)
        state, update = jax.jit(method.init)(KEY, BATCH), jax.jit(method.update)
        start = state.params["predict"]
        for step in range(2):
            state, metrics = update(state, BATCH, jax.random.fold_in(KEY, step))
        np.testing.assert_array_equal(state.params["predict"], start)
        assert metrics["cpc"] > 0
        players.append(state.params["player"])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-8), *players)


def test_the_auxiliary_loss_moves_encoder_and_memory_alone(trained):
    method, state, after, *_ = trained
    without = dataclasses.replace(state, step=np.int32(2))  # the weight has fallen to 0
    plain, _ = jax.jit(method.update)(without, BATCH, KEY)
    moved = [end.params["player"] for end in (after, plain)]
    differs = jax.tree.map(lambda a, b: bool(np.any(a != b)), *moved)
    assert any(jax.tree.leaves(differs["agent"])) and not any(jax.tree.leaves(differs["heads"]))


def test_a_weight_that_falls_to_nothing(trained):
    method, state, *_ = trained
    update = jax.jit(method.update)
    start = state.params["predict"]
    for step, weight in enumerate((0.4, 0.2, 0.0, 0.0)):
        after, found = update(dataclasses.replace(state, step=np.int32(step)), BATCH, KEY)
        np.testing.assert_allclose(found["cpc_weight"], weight, rtol=1e-6)
        a2c = found["policy_loss"] + 0.5 * found["value_loss"] - 0.01 * found["entropy"]
        np.testing.assert_allclose(found["loss"], a2c + weight * found["cpc"], rtol=1e-5)
        assert np.array_equal(after.params["predict"], start) == (weight == 0)
    with pytest.raises(ValueError, match=r"cpc_epochs is 0.0; expected a number above 0"):
        make(cpc_epochs=0.0)


def test_greedy_play(trained):
    method, _, after, *_ = trained
    found = jax.jit(method.functions["play"])(after, BATCH)
    assert set(np.asarray(found["return"]).tolist()) <= {-1.0, 1.0}
    np.testing.assert_array_equal(found["length"], 3)
    turned = jax.jit(method.functions["play"])(after, {n: x[::-1] for n, x in BATCH.items()})
    np.testing.assert_array_equal(found["return"], turned["return"][::-1])
    encoded = jax.eval_shape(method.functions["encode"], after, BATCH)
    assert encoded["h"].shape == (WORLDS, 5) and encoded["z"].shape == (WORLDS, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(environment="catchy"), "environment 'catchy' is unknown.*did you mean 'catch'"),
        (dict(cpc_steps=5), "cpc_steps=5 of an unroll of 5"),
        (dict(views=(1,)), "Set config.views to an empty section"),
        (dict(encoder=nn.Dense(3)), "Dense, which remembers nothing"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)
