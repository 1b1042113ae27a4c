"""Environments: rules against plays by hand, episodes that end, and what `make` refuses before the
first step."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.data import environments, worlds
from cl_jax.data.environments import Environment, catch, gymnax, t_maze

KEY = jax.random.key(0)


def play(environment, world, actions):
    """[(reward, done), ...] and the last world."""
    found = []
    for action in actions:
        world, reward, done = environment.step(world, jnp.int32(action), KEY)
        found.append((float(reward), bool(done)))
    return found, world


def test_catch_by_hand():
    environment = catch.make(rows=4, columns=5)
    world = {"row": jnp.int32(0), "column": jnp.int32(4), "paddle": jnp.int32(2)}
    board = np.zeros((4, 5))
    board[0, 4] = board[3, 2] = 1
    np.testing.assert_array_equal(environment.observe(world), board)
    assert play(environment, world, [2, 2, 1])[0] == [(0, False), (0, False), (1, True)]
    assert play(environment, world, [2, 1, 1])[0][-1] == (-1, True)
    assert play(environment, world, [2, 2, 2])[0][-1] == (1, True)  # the wall
    assert environment.limit == 3


def test_a_covered_ball_is_hidden_and_comes_out_again():
    environment = catch.make(rows=5, columns=3, covered=2)
    world = {"row": jnp.int32(0), "column": jnp.int32(0), "paddle": jnp.int32(1)}
    for ball in (1, 0, 0, 1):
        board = np.asarray(environment.observe(world))
        assert board[-1].sum() == 1 and board[:-1].sum() == ball
        world = world | {"row": world["row"] + 1}
    with pytest.raises(ValueError, match="covered=3 of 5 rows; expected from 0 to 2"):
        catch.make(rows=5, columns=3, covered=3)


def test_t_maze_by_hand():
    environment = t_maze.make(length=2, patience=2)
    world = {"left": jnp.bool_(True), "place": jnp.int32(0), "time": jnp.int32(0)}
    np.testing.assert_array_equal(environment.observe(world), [1, 0, 1, 0])
    found, after = play(environment, world, [1, 0])  # a turn before the junction does nothing
    assert found == [(0, False)] * 2 and int(after["place"]) == 1
    np.testing.assert_array_equal(environment.observe(after), [0, 0, 1, 0])
    assert play(environment, world, [0, 0, 1])[0][-1] == (1, True)
    assert play(environment, world, [0, 0, 2])[0][-1] == (-1, True)
    assert play(environment, world, [0, 0, 0, 0, 0, 0])[0][-2:] == [(0, False), (-1, True)]


@pytest.mark.parametrize("name", ["catch", "t_maze"])
def test_an_episode_ends_and_a_world_starts_anew(name):
    environment = environments.make(dict(name=name))

    def act(observation, memory, key):
        return jax.random.randint(key, (), 0, environment.actions), memory + 1

    keys = jax.random.split(KEY, 8)
    total, length, ended = jax.jit(
        jax.vmap(lambda key: environments.episode(environment, act, jnp.int32(0), key))
    )(keys)
    assert np.all(ended) and np.all(length <= environment.limit) and set(total.tolist()) <= {-1, 1}

    def one(world, key):
        world, _, done = environments.advance(environment, world, jnp.int32(0), key)
        return world, (world, done)

    _, (after, done) = jax.lax.scan(
        one, environment.reset(KEY), jax.random.split(KEY, 3 * environment.limit)
    )
    clock = after["row" if name == "catch" else "time"]
    assert int(done.sum()) == 3
    np.testing.assert_array_equal(np.asarray(clock)[np.asarray(done)], 0)


def test_the_best_policy_of_catch_catches_every_ball():
    environment = catch.make()

    def act(observation, memory, key):
        ball = observation[:-1].sum(0)  # its column; the paddle is in the last row
        paddle = observation[-1]
        columns = jnp.arange(5.0)
        return 1 + jnp.sign(ball @ columns - paddle @ columns).astype(jnp.int32)

    total, length, _ = jax.jit(
        jax.vmap(lambda key: environments.episode(environment, act, jnp.zeros(()), key))
    )(jax.random.split(KEY, 16))
    np.testing.assert_array_equal(total, 1)
    np.testing.assert_array_equal(length, 9)


def of_one_step(**changes):
    base = dict(
        reset=lambda key: {"x": jnp.float32(0)},
        step=lambda world, action, key: (world, jnp.float32(0), jnp.bool_(True)),
        observe=lambda world: world["x"][None],
        actions=2,
        limit=3,
    )
    return Environment(**(base | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(limit=0), "a limit of 0 steps; expected at least 1"),
        (
            dict(step=lambda world, action, key: (world, jnp.float32(0), jnp.bool_(False))),
            "32 of 32 random episodes did not end within its limit of 3 steps",
        ),
        (
            dict(step=lambda world, action, key: (world, jnp.float32(jnp.nan), jnp.bool_(True))),
            "a reward that is NaN",
        ),
        (
            dict(step=lambda world, action, key: (world, jnp.int32(0), jnp.bool_(True))),
            "expected a float32 scalar, a bool scalar",
        ),
        (
            dict(step=lambda world, action, key: ({"y": 0}, jnp.float32(0), jnp.bool_(True))),
            "expected the same shapes and types",
        ),
    ],
)
def test_an_environment_that_breaks_the_contract(changes, message):
    with pytest.raises(ValueError, match=message):
        environments.check(of_one_step(**changes), "mine")


def test_names_and_settings(monkeypatch):
    with pytest.raises(ValueError, match="have catch, gymnax, t_maze; did you mean 'catch'"):
        environments.make(dict(name="catsh"))
    with pytest.raises(ValueError, match="no setting 'column'; did you mean 'columns'"):
        environments.make(dict(name="catch", column=3))
    with pytest.raises(ValueError, match="environment 'gymnax' needs the setting 'id'"):
        environments.make(dict(name="gymnax"))
    with pytest.raises(ValueError, match="speckle='abc'; expected a number"):
        environments.make(dict(name="catch", speckle="abc"))
    with pytest.raises(ValueError, match=r"covered=1\.5; expected a whole number"):
        environments.make(dict(name="catch", covered=1.5))
    with pytest.raises(ValueError, match="No module named 'my_lab'"):
        environments.make(dict(name="my_lab.maze"))
    module = types.ModuleType("my_maze")
    module.make = of_one_step
    monkeypatch.setitem(sys.modules, "lab.my_maze", module)
    monkeypatch.setitem(sys.modules, "lab", types.ModuleType("lab"))
    assert environments.make(dict(name="lab.my_maze")).limit == 3


def test_a_board_that_flickers_goes_on_unseen():
    plain, dark = catch.make(), catch.make(flicker=0.5)
    keys = jax.random.split(KEY, 400)
    worlds = jax.vmap(dark.reset)(keys)
    same = jax.vmap(plain.reset)(keys)
    for at in range(2):
        seen, whole = jax.vmap(dark.observe)(worlds), jax.vmap(plain.observe)(same)
        lit = np.asarray(worlds["lit"])
        assert 0.4 < lit.mean() < 0.6
        np.testing.assert_array_equal(seen, np.where(lit[:, None, None], whole, 0))
        actions, now = jnp.arange(400) % 3, jax.vmap(jax.random.fold_in, (0, None))(keys, at)
        worlds, *_ = jax.vmap(dark.step)(worlds, actions, now)
        same, *_ = jax.vmap(plain.step)(same, actions, keys)
        assert 0.4 < (np.asarray(worlds["lit"]) == lit).mean() < 0.6  # each time for itself
    with pytest.raises(ValueError, match=r"flicker=1.0; expected a probability from 0 to below 1"):
        catch.make(flicker=1.0)


def test_speckles_flip_what_is_seen_and_nothing_else():
    plain, noisy = catch.make(), catch.make(speckle=0.1)
    keys = jax.random.split(KEY, 400)
    now, same = jax.vmap(noisy.reset)(keys), jax.vmap(plain.reset)(keys)
    before = np.zeros((400, 10, 5), bool)
    for at in range(3):
        seen, whole = jax.vmap(noisy.observe)(now), jax.vmap(plain.observe)(same)
        flipped = np.asarray(now["flipped"])
        np.testing.assert_array_equal(seen, np.abs(np.asarray(whole) - flipped))
        for name in same:
            np.testing.assert_array_equal(now[name], same[name])
        assert abs(flipped.mean() - 0.1) < 0.01  # 20,000 cells: 5 standard errors
        assert abs(flipped[np.asarray(whole) > 0].mean() - 0.1) < 0.06  # 800 with ball or paddle
        assert abs(flipped.mean(0) - 0.1).max() < 0.08  # of each cell
        assert (flipped & before).mean() < 0.02  # each time for itself
        before = flipped
        drawn = jax.vmap(jax.random.fold_in, (0, None))(keys, at)
        alone = noisy.step(jax.tree.map(lambda x: x[7], now), jnp.int32(1), drawn[7])[0]
        actions = jnp.arange(400) % 3
        now, *rewards = jax.vmap(noisy.step)(now, actions, drawn)
        same, *theirs = jax.vmap(plain.step)(same, actions, drawn)
        np.testing.assert_array_equal(rewards, theirs)
        np.testing.assert_array_equal(now["flipped"][7], alone["flipped"])  # by its key alone


def test_speckles_on_a_board_that_flickers():
    dark = catch.make(flicker=0.5, speckle=0.2)
    worlds = jax.vmap(dark.reset)(jax.random.split(KEY, 100))
    lit, seen = np.asarray(worlds["lit"]), np.asarray(jax.vmap(dark.observe)(worlds))
    assert not seen[~lit].any() and seen[lit].any((1, 2)).all()


@pytest.mark.parametrize("speckle", [-0.1, 0.5])
def test_a_board_of_nothing_but_noise(speckle):
    with pytest.raises(ValueError, match=rf"speckle={speckle}; expected a probability from 0 to"):
        catch.make(speckle=speckle)


@pytest.mark.slow
def test_gymnax_by_the_hand_of_gymnax_itself():
    theirs = pytest.importorskip("gymnax")
    with pytest.raises(ValueError, match="no environment 'Memory-bsuite'; did you mean 'Memory"):
        environments.make(dict(name="gymnax", id="Memory-bsuite"))
    with pytest.raises(ValueError, match=r"has actions Box.*; expected discrete ones"):
        environments.make(dict(name="gymnax", id="Pendulum-v1"))
    with pytest.raises(ValueError, match="steps=-1; expected 0"):
        gymnax.make(id="CartPole-v1", steps=-1)
    with jax.numpy_rank_promotion("allow"):
        mine = environments.make(dict(name="gymnax", id="CartPole-v1", steps=7))
        game, settings = theirs.make("CartPole-v1")
        seen, state = game.reset_env(KEY, settings)
        world = mine.reset(KEY)
        np.testing.assert_array_equal(mine.observe(world), seen)
        for at in range(7):
            seen, state, reward, _, _ = game.step_env(KEY, state, at % 2, settings)
            world, mine_reward, done = mine.step(world, jnp.int32(at % 2), KEY)
            np.testing.assert_array_equal(mine.observe(world), seen)
            assert float(mine_reward) == float(reward) and bool(done) == (at == 6)
    assert (mine.actions, mine.limit) == (2, 7)


def test_without_gymnax(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(ValueError, match=r"pip install cl_jax\[gymnax\]"):
        environments.make(dict(name="gymnax", id="CartPole-v1"))


def test_worlds_are_numbered_through_both_parts():
    splits = worlds.make(train_size=3, test_size=2)
    assert splits.train.arrays["world"].tolist() == [0, 1, 2]
    assert splits.test.arrays["world"].tolist() == [3, 4]
    with pytest.raises(ValueError, match="expected 1 or more"):
        worlds.make(train_size=0)
