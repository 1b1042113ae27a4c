"""Populations: members are runs of their own, unrolled and vmapped; NaN in one stops that one."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core import population as populations
from cl_jax.core.keys import example_keys
from cl_jax.core.method import Aux, State, Variables, from_loss
from cl_jax.core.population import Members, member, other_form, population, seeded, vmapped

SIZE, STEPS = 8, 3


def method(temperature=1.0, spoil=0.0):
    """A linear map of noisy rows; from step 1 on, `spoil` times inf is added to the loss."""

    def variables(key, batch):
        w = jax.random.normal(key, (3, 2))
        return Variables({"w": w}, {"mean": jnp.zeros(2)}, memory={"steps": jnp.zeros(SIZE)})

    def views(batch, key):
        noise = jax.vmap(lambda k: jax.random.normal(k, (3,)))(example_keys(key, batch["id"]))
        return batch["x"] + 0.1 * noise

    def forward(params, stats, target, inputs, batch, key):
        z = inputs @ params["w"]
        return z, {"mean": 0.5 * stats["mean"] + z.mean(0)}, None

    def loss(z, params, memory, batch, key):
        value = ((z - 1) ** 2).mean() / temperature
        late = memory["steps"][batch["id"]].min() >= 1
        value = value + jnp.where(late & (jnp.asarray(spoil) > 0), jnp.inf, 0.0)
        steps = memory["steps"].at[batch["id"]].add(1)
        return value, Aux({"seen": steps.sum()}, {"steps": steps})

    return from_loss(
        variables=variables,
        views=views,
        forward=forward,
        loss=loss,
        tx=optax.adam(0.1),
        features=lambda params, stats, x, train: (
            {"h": x @ params["w"] - stats["mean"][None]},
            stats,
        ),
        clean=lambda batch: batch["x"],
        axis_name=None,
        needs=("x",),
    )


BATCH = {
    "x": jnp.asarray(np.random.default_rng(0).normal(size=(SIZE, 3)), jnp.float32),
    "id": jnp.arange(SIZE),
}
KEY = jax.random.key(0)


def train(method, steps=STEPS):
    """(State, metrics of each step) of a method compiled as the trainer does."""
    state, found = jax.jit(method.init)(KEY, BATCH), []
    update = jax.jit(method.update)
    for step in range(steps):
        state, metrics = update(state, BATCH, jax.random.fold_in(KEY, step))
        found.append(jax.device_get(metrics))
    return state, found


def same(a, b):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), a, b)


OVER = [dict(temperature=0.5, seed=0), dict(temperature=2.0, seed=7)]
NAMES = [f"{one['temperature']:g},{one['seed']}" for one in OVER]


def of(temperature, seed):
    return seeded(method(temperature), seed)


def test_the_state_of_one_form_is_that_of_the_other():
    def zeros(method):
        shapes = jax.eval_shape(method.init, KEY, BATCH)
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)

    unrolled = zeros(population({name: of(**one) for name, one in zip(NAMES, OVER)}))
    stacked = zeros(vmapped(of, OVER, NAMES))
    for one, other in ((unrolled, stacked), (stacked, unrolled)):
        assert jax.tree.structure(other_form(one)) == jax.tree.structure(other)
        jax.tree.map(np.testing.assert_array_equal, other_form(one), other)


def test_members_of_different_shapes_have_one_form():
    zeros = State(0, *[(np.zeros(2), np.zeros(3))] * 4, Members((None, None), np.ones(2)))
    with pytest.raises(ValueError, match="same shape"):
        other_form(zeros)


@pytest.mark.parametrize("how", ["unrolled", "vmapped"])
def test_members_are_runs_of_their_own(how):
    whole = (
        population({name: of(**one) for name, one in zip(NAMES, OVER)})
        if how == "unrolled"
        else vmapped(of, OVER, NAMES)
    )
    state, found = train(whole)
    assert int(state.step) == STEPS
    without = dataclasses.replace(state, opt=None)  # as evaluations pass it
    encoded = jax.jit(whole.functions["encode"])(without, BATCH)
    for i, (name, one) in enumerate(zip(NAMES, OVER)):
        single = of(**one)
        alone, metrics = train(single)
        own = (
            member(state, i)
            if how == "unrolled"
            else jax.tree.map(lambda x: x[i], (state.params, state.opt, state.stats))
        )
        if how == "unrolled":
            same(own, alone)
        else:
            same(own, (alone.params, alone.opt, alone.stats))
        for ours, theirs in zip(found, metrics):
            for metric, value in theirs.items():
                np.testing.assert_allclose(ours[f"{name}/{metric}"], value, rtol=1e-5)
            assert ours[f"{name}/alive"] == 1
        same(encoded[f"h@{name}"], jax.jit(single.functions["encode"])(alone, BATCH)["h"])
    assert encoded["h"].shape == (SIZE, 2 * len(OVER))
    losses = [found[-1][f"{name}/loss"] for name in NAMES]
    norms = [found[-1][f"{name}/grad_norm"] for name in NAMES]
    np.testing.assert_allclose(found[-1]["loss"], np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(found[-1]["grad_norm"], np.linalg.norm(norms), rtol=1e-5)


@pytest.mark.parametrize("how", ["unrolled", "vmapped"])
def test_nan_in_one_stops_that_one(how):
    if how == "unrolled":
        whole = population({"well": method(), "ill": method(spoil=1.0)})
    else:
        whole = vmapped(method, [dict(spoil=0.0), dict(spoil=1.0)], ["well", "ill"])
    state, found = train(whole)
    alone, metrics = train(method(spoil=0.0))
    first, _ = train(method(), steps=1)

    def part(i):
        return jax.tree.map(lambda x: x[i], state.params) if how == "vmapped" else state.params[i]

    same(part(0), alone.params)
    same(part(1), first.params)  # the State before the step that went wrong
    assert np.asarray(state.memory.alive).tolist() == [True, False]
    assert [row["ill/alive"] for row in found] == [1, 0, 0]
    assert np.isnan(found[2]["ill/loss"]) and np.isnan(found[2]["ill/seen"])
    for ours, theirs in zip(found, metrics):
        np.testing.assert_allclose(ours["well/loss"], theirs["loss"], rtol=1e-5)
    np.testing.assert_allclose(found[2]["loss"], metrics[2]["loss"], rtol=1e-5)
    state, found = train(population({"ill": method(spoil=1.0)}))
    assert np.isnan(found[2]["loss"])


def test_refresh_is_of_each_member():
    calls = []

    def refresh(state, encode_all, epoch):
        rows = encode_all(encode)
        calls.append((epoch, float(rows.sum())))
        return state.replace(memory={"steps": state.memory["steps"] + rows.sum()})

    def encode(state, batch):
        return state.params["w"].sum(keepdims=True)

    one = populations.dataclasses.replace(method(), refresh=refresh)
    whole = population({"a": one, "b": seeded(one, 3), "c": method()})
    state, _ = train(whole, steps=0)
    asked = []

    def encode_all(f):
        asked.append(f)
        return np.asarray(f(state, BATCH))

    after = whole.refresh(state, encode_all, 5)
    sums = [float(member(state, i).params["w"].sum()) for i in range(2)]
    np.testing.assert_allclose([x for _, x in calls], sums, rtol=1e-6)
    np.testing.assert_allclose(member(after, 1).memory["steps"], sums[1], rtol=1e-6)
    assert not np.any(member(after, 2).memory["steps"])
    whole.refresh(state, encode_all, 6)
    assert asked[0] == asked[2] and hash(asked[0]) == hash(asked[2])  # compiled once


def test_begin_is_of_each_member():
    def begin(state):
        return state.replace(params={"w": np.full(state.params["w"].shape, 3.0)})

    one = populations.dataclasses.replace(method(), begin=begin)
    whole = population({"a": one, "b": seeded(one, 3), "c": method()})
    made, _ = train(whole, steps=0)
    state = whole.begin(made)
    for i, w in enumerate((3.0, 3.0, member(made, 2).params["w"])):
        found = member(state, i).params["w"]
        np.testing.assert_array_equal(found, np.broadcast_to(w, found.shape))
    assert population({"c": method()}).begin is None


def test_begin_is_of_each_vmapped_member():
    """So a run of members that start from weights is as before where they were read in `init`."""

    def of_weights(temperature, seed):
        def begin(state):
            w = np.full(state.params["w"].shape, temperature + state.params["w"])
            return state.replace(params={"w": w})

        return dataclasses.replace(of(temperature, seed), begin=begin)

    assert vmapped(of, OVER, NAMES).begin is None
    whole = vmapped(of_weights, OVER, NAMES)
    shapes = jax.eval_shape(whole.init, KEY, BATCH)
    state = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)
    begun = whole.begin(state)
    np.testing.assert_array_equal(
        begun.params["w"], np.stack([np.full((3, 2), x) for x in (1.5, 3)])
    )
    placed = jax.tree.map(lambda new, old: np.asarray(new, old.dtype), begun, state)
    jax.tree.map(
        np.testing.assert_array_equal, placed.replace(params=None), state.replace(params=None)
    )


@pytest.mark.parametrize("form", ["unrolled", "vmapped"])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_member_without_what_a_guard_reads_is_one_sentence(form, name):
    def make(temperature):
        whole = method(temperature)

        def update(state, batch, key):
            after, metrics = whole.update(state, batch, key)
            return after, {key: x for key, x in metrics.items() if key != name}

        return populations.dataclasses.replace(whole, update=update)

    one = dict(temperature=1.0)
    group = population({"a": make(1.0)}) if form == "unrolled" else vmapped(make, [one], ["a"])
    state = jax.eval_shape(group.init, KEY, BATCH)
    with pytest.raises(ValueError, match=f'member of the population .*expected "{name}" among'):
        jax.eval_shape(group.update, state, BATCH, KEY)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: population({}), "a population of no member"),
        (
            lambda: population(
                {"a": populations.dataclasses.replace(method(), order=lambda *_: None)}
            ),
            "a: the method chooses the examples of an epoch",
        ),
        (lambda: vmapped(method, [], []), "expected at least one"),
        (
            lambda: vmapped(method, [dict(spoil=0.0), dict(temperature=1.0)], ["a", "b"]),
            "all of the same names",
        ),
        (
            lambda: vmapped(
                lambda temperature: populations.dataclasses.replace(
                    method(), refresh=lambda *_: None
                ),
                [dict(temperature=1.0)],
                ["a"],
            ),
            "has a `refresh`.*how='unrolled'",
        ),
        (
            lambda: vmapped(
                lambda temperature: method() if temperature > 0 else None,
                [dict(temperature=1.0)],
                ["a"],
            ).init(KEY, BATCH),
            "looks at the value of one of temperature",
        ),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
