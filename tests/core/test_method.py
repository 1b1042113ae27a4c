"""`from_loss`: pieces of a batch on any number of devices, and what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.method import Aux, Variables, from_loss
from cl_jax.training.experiment import initial_state
from cl_jax.training.steps import stepper
from tests import small


@functools.cache
def losses_of(devices, micro_batches):
    config = small.config(devices)
    built = small.built(devices, micro_batches=micro_batches)
    state, step, found = initial_state(built, config), stepper(built, config, 0), []
    for _ in range(4):
        state, values = step(state)
        found.append([float(values["loss"]), float(values["grad_norm"])])
    return np.array(found), np.asarray(state.params["w"]), np.asarray(state.stats["mean"])


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_pieces_are_the_same_examples_on_any_number_of_devices(devices):
    """The method's statistics are of a piece, as batch norm's; contiguous pieces would differ."""
    for ours, theirs in zip(losses_of(devices, 2), losses_of(1, 2)):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


def test_pieces_are_not_the_whole_batch():
    assert abs(losses_of(1, 2)[0] - losses_of(1, 1)[0]).max() > 1e-4


def linear(**changes):
    """A method of one matrix without a mapped axis, with some of its arguments changed."""
    given = dict(
        variables=lambda key, batch: Variables({"w": jnp.ones((3, 2))}, {}),
        views=lambda batch, key: batch["x"],
        forward=lambda params, stats, target, x, batch, key: (x @ params["w"], stats, None),
        loss=lambda z, params, memory, batch, key: (jnp.mean(z**2), Aux({}, memory)),
        tx=optax.sgd(0.1),
        features=lambda params, stats, x, train: ({"h": x @ params["w"]}, stats),
        clean=lambda batch: batch["x"],
        axis_name=None,
        needs=("x",),
    )
    return from_loss(**given | changes)


BATCH = {"x": jnp.arange(12.0).reshape(4, 3), "id": jnp.arange(4)}


def test_prepare_sees_the_state_and_has_no_gradient():
    def prepare(state, batch, key):
        return batch | {"x": batch["x"] * state.params["w"].sum()}

    method = linear(prepare=prepare)
    state = method.init(jax.random.key(0), BATCH)
    after, values = method.update(state, BATCH, jax.random.key(1))
    scaled = np.asarray(BATCH["x"]) * 6.0
    gradient = 2 * scaled.T @ (scaled @ np.ones((3, 2))) / 8
    np.testing.assert_allclose(after.params["w"], 1 - 0.1 * gradient, rtol=1e-5)
    np.testing.assert_allclose(values["grad_norm"], np.linalg.norm(gradient), rtol=1e-5)


def test_others_get_views_as_a_list_whatever_tree_the_step_reads():
    pair = {"a": BATCH["x"], "b": BATCH["x"] + 1}
    for drawn, count in ((pair, 1), (BATCH["x"], 1), (list(pair.values()), 2)):
        found = linear(views=lambda batch, key, drawn=drawn: drawn).views(BATCH, jax.random.key(0))
        assert isinstance(found, list) and len(found) == count
        assert count == 2 or found[0] is drawn


def test_what_is_refused():
    with pytest.raises(ValueError, match="expected 1 or more"):
        linear(micro_batches=0)
    with pytest.raises(ValueError, match=r'functions=\{"encode"'):
        linear(features=None)
    forgetful = linear(
        variables=lambda key, batch: Variables({"w": jnp.ones((3, 2))}, {}, memory=jnp.zeros(2)),
        loss=lambda z, params, memory, batch, key: (jnp.mean(z**2), Aux({})),
    )
    state = forgetful.init(jax.random.key(0), BATCH)
    with pytest.raises(ValueError, match="returned no memory"):
        forgetful.update(state, BATCH, jax.random.key(1))
    uneven = linear(micro_batches=3)
    with pytest.raises(ValueError, match="4 is not divisible by micro_batches=3"):
        uneven.update(uneven.init(jax.random.key(0), BATCH), BATCH, jax.random.key(1))
    integers = linear(
        micro_batches=2,
        forward=lambda params, stats, target, x, batch, key: (
            {"z": x @ params["w"], "label": batch["id"]},
            stats,
            None,
        ),
        loss=lambda o, params, memory, batch, key: (jnp.mean(o["z"] ** 2), Aux({}, memory)),
    )
    with pytest.raises(ValueError, match="forward returned int32; expected floating-point"):
        integers.update(integers.init(jax.random.key(0), BATCH), BATCH, jax.random.key(1))


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize(
    ("name", "returned", "words"),
    [
        ("forward", lambda x: (x, {}), r"forward returned 2 values; expected \(outputs, stats, ta"),
        ("forward", lambda x: x, r"forward returned a \w+; expected \(outputs, stats, target_"),
        ("loss", lambda x: x.sum(), r"the loss returned a \w+; expected \(value, Aux\("),
        ("loss", lambda x: (x.sum(), {}), r"returned \(value, dict\); expected \(value, Aux\("),
        ("loss", lambda x: (x, Aux({})), r"the loss is float32\[4, 2\]; expected one floating"),
        (
            "loss",
            lambda x: (jnp.int32(1), Aux({})),
            r"the loss is int32\[\]; expected one floating",
        ),
    ],
)
def test_a_function_that_returns_something_else_is_one_sentence(
    micro_batches, name, returned, words
):
    def forward(params, stats, target, x, batch, key):
        return returned(x @ params["w"])

    def loss(z, params, memory, batch, key):
        return returned(z)

    changed = {"forward": forward} if name == "forward" else {"loss": loss}
    method = linear(micro_batches=micro_batches, **changed)
    state = method.init(jax.random.key(0), BATCH)
    with pytest.raises(ValueError, match=words):
        method.update(state, BATCH, jax.random.key(1))


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda z: z[1:], r"an array of shape \[(3|1), 2\] for (4|2) examples; expected \[(4|2), "),
        (
            lambda z: jnp.concatenate([z, z]),
            r"an array of shape \[(8|4), 2\] for .*jnp\.stack\(views, axis",
        ),
        (
            lambda z: {"z": z, "scale": z.sum()},
            r"an array at \['scale'\] of shape \[\] for .*jnp\.broadcast_to\(x, \((4|2),",
        ),
    ],
)
def test_outputs_without_a_row_per_example_are_one_sentence(micro_batches, returned, words):
    method = linear(
        micro_batches=micro_batches,
        forward=lambda params, stats, target, x, batch, key: (
            returned(x @ params["w"]),
            stats,
            None,
        ),
        loss=lambda z, params, memory, batch, key: (
            sum(jnp.mean(x) for x in jax.tree.leaves(z)),
            Aux({}, memory),
        ),
    )
    state = method.init(jax.random.key(0), BATCH)
    with pytest.raises(ValueError, match="forward returned " + words):
        method.update(state, BATCH, jax.random.key(1))


def test_views_on_a_later_axis_are_rows_per_example():
    method = linear(
        forward=lambda params, stats, target, x, batch, key: (
            jnp.stack([x @ params["w"], x @ params["w"]], axis=1),
            stats,
            None,
        )
    )
    method.update(method.init(jax.random.key(0), BATCH), BATCH, jax.random.key(1))


def test_what_examples_have_different_numbers_of_is_padded_and_what_all_share_is_copied():
    """Nodes of graphs, words or crops with a mask, and an amount of the whole batch."""
    nodes, counts = jnp.arange(4.0 * 5 * 3).reshape(4, 5, 3), jnp.array([5, 1, 2, 3])
    batch = BATCH | {"x": nodes, "known": jnp.arange(5)[None] < counts[:, None]}

    def forward(params, stats, target, x, batch, key):
        penalty = jnp.broadcast_to(jnp.sum(params["w"] ** 2), (len(x),))
        return {"nodes": x @ params["w"], "penalty": penalty}, stats, None

    def loss(outputs, params, memory, batch, key):
        known = batch["known"][..., None]
        value = jnp.sum(jnp.where(known, outputs["nodes"], 0.0)) + outputs["penalty"].mean()
        return value, Aux({}, memory)

    found = []
    for micro_batches in (1, 2):
        method = linear(forward=forward, loss=loss, micro_batches=micro_batches)
        state = method.init(jax.random.key(0), batch)
        found.append(method.update(state, batch, jax.random.key(1))[0].params["w"])
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_features_without_a_row_per_example_are_one_sentence():
    method = linear(features=lambda params, stats, x, train: ({"h": x[:3] @ params["w"]}, stats))
    with pytest.raises(
        ValueError, match=r"features returned an array at \['h'\] of shape \[3, 2\]"
    ):
        method.encode(method.init(jax.random.key(0), BATCH), BATCH)
    as_lists = linear(features=lambda params, stats, x, train: ({"h": x @ params["w"]}, stats))
    state = as_lists.init(jax.random.key(0), BATCH)
    assert as_lists.encode(state, BATCH | {"id": BATCH["id"].tolist()})["h"].shape == (4, 2)


def test_features_without_statistics_are_one_sentence():
    method = linear(features=lambda params, stats, x, train: {"h": x @ params["w"]})
    with pytest.raises(ValueError, match=r"features returned a dict; expected \(\{name"):
        method.encode(method.init(jax.random.key(0), BATCH), BATCH)


def test_encode_is_made_of_features_and_may_be_given():
    method = linear()
    state = method.init(jax.random.key(0), BATCH)
    np.testing.assert_array_equal(method.encode(state, BATCH)["h"], BATCH["x"] @ jnp.ones((3, 2)))
    given = linear(features=None, functions={"encode": lambda state, batch: {"h": batch["x"]}})
    assert dataclasses.is_dataclass(given) and given.features is None
    np.testing.assert_array_equal(given.encode(state, BATCH)["h"], BATCH["x"])
