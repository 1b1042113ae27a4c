"""What is SpCL's own: the memory's rows and labels, clusters between epochs, norms by domain, the
order."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run
from cl_jax.methods import spcl
from cl_jax.views import make as recipe
from tests.small import Pixels

RUN = Run(None, 8, 24, 3, 6, {"label": 3, "label_source": 3})
VIEWS = (recipe({"name": "crop_flip", "crop": "none", "size": 8, "test_crop": 1.0}),)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (24, 8, 8, 3), np.uint8)
OTHERS = RNG.integers(0, 256, (24, 8, 8, 3), np.uint8)
LABELS = (np.arange(24) % 3).astype(np.int32)
NETWORK = Pixels(norm=True)


def batch_of(ids):
    ids = np.asarray(ids, np.int32)
    return {
        "image": IMAGES[ids],
        "image_source": OTHERS[ids],
        "label_source": LABELS[ids],
        "id": ids,
    }


def build(run=RUN, **settings):
    settings = dict(k1=6, k2=2, min_samples=2) | settings
    return spcl.make(encoder=NETWORK, tx=optax.sgd(0.1), views=VIEWS, run=run, **settings)


@pytest.fixture(scope="module")
def stepped():
    method = build()
    first = jax.jit(method.init)(jax.random.key(0), batch_of(range(8)))
    first = jax.device_put(first, jax.devices()[0])
    embed = {}

    def encode_all(f):
        embed["rows"] = jax.tree.map(np.asarray, jax.jit(f)(first, batch_of(range(24))))
        return embed["rows"]

    ready = method.refresh(first, encode_all, 0)
    state, metrics = jax.jit(method.update)(ready, batch_of(range(8)), jax.random.key(1))
    return method, ready, state, metrics, embed["rows"]


def test_the_memory_starts_with_class_means_and_target_rows(stepped):
    _, ready, _, _, rows = stepped
    means = np.stack([rows["source"][LABELS == c].mean(0) for c in range(3)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    held = ready.memory.hybrid
    np.testing.assert_allclose(held.rows[:3], means, atol=1e-5)
    np.testing.assert_allclose(held.rows[3:], rows["target"], atol=1e-5)
    np.testing.assert_array_equal(held.labels[:3], [0, 1, 2])
    target = np.unique(held.labels[3:])
    np.testing.assert_array_equal(target, 3 + np.arange(len(target)))
    assert np.isfinite(ready.memory.threshold)


def test_a_step_moves_the_rows_of_its_images_and_no_others(stepped):
    _, ready, state, metrics, _ = stepped
    before, after = np.asarray(ready.memory.hybrid.rows), np.asarray(state.memory.hybrid.rows)
    moved = (before != after).any(axis=1)
    np.testing.assert_array_equal(moved, np.r_[[True] * 3, np.arange(24) < 8])
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, atol=1e-5)
    total = metrics["loss_source"] + metrics["loss_target"]
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)


def test_domains_have_norms_of_their_own(stepped):
    _, _, state, *_ = stepped
    source, target = (jax.tree.leaves(state.stats[name]) for name in ("source", "target"))
    assert all((np.asarray(a) != np.asarray(b)).any() for a, b in zip(source, target))
    named = jax.tree_util.tree_leaves_with_path(state.params["source_norms"])
    assert {path[-1].key for path, _ in named} == {"scale", "bias"}
    shared = jax.eval_shape(build(domain_norm=False).init, jax.random.key(0), batch_of(range(8)))
    assert set(shared.params) == {"network"} and set(shared.stats) == {"target"}


def test_clusters_come_from_the_memory_and_the_first_threshold_stays(stepped):
    method, _, state, *_ = stepped
    after = method.refresh(state, lambda f: pytest.fail("the memory has the rows"), 1)
    np.testing.assert_array_equal(after.memory.hybrid.rows, state.memory.hybrid.rows)
    assert after.memory.threshold == state.memory.threshold


def test_equal_images_are_found(stepped):
    """Three heaps of eight rows each."""
    _, _, state, *_ = stepped
    rows = np.asarray(state.memory.hybrid.rows).copy()
    rows[3:] = np.eye(rows.shape[1])[LABELS] + 1e-3 * RNG.normal(size=(24, rows.shape[1]))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    held = state.memory.hybrid._replace(rows=jnp.asarray(rows, jnp.float32))
    memory = state.memory._replace(hybrid=held, threshold=jnp.float32(spcl.NO_THRESHOLD))
    after = build(k1=8).refresh(state.replace(memory=memory), None, 1)
    assert after.memory.clusters == 3 and after.memory.clustered == 1
    found = np.asarray(after.memory.hybrid.labels[3:])
    assert all(len(np.unique(found[LABELS == c])) == 1 for c in range(3))


def test_a_warm_up_of_the_source_leaves_the_target_out(stepped):
    *_, state, _, rows = stepped
    method = build(warmup_epochs=1, warmup="source")
    first = method.refresh(state, lambda f: rows, 0)
    np.testing.assert_array_equal(first.memory.hybrid.labels, [0, 1, 2] + [-1] * 24)
    assert sorted(method.order(first, 0, 0)) == list(range(24))
    own = build(warmup_epochs=1).refresh(state, lambda f: rows, 0).memory.hybrid.labels
    np.testing.assert_array_equal(own, range(27))
    later = method.refresh(first, lambda f: rows, 1).memory
    assert (later.hybrid.labels >= 0).all() and later.threshold >= 0


def test_the_order_keeps_images_of_a_label_together():
    labels = np.array([0] * 10 + [1] * 3 + [2])
    found = spcl.together(labels, 4, 24, seed=0, epoch=1)
    first = labels[found[:8]]
    np.testing.assert_array_equal(np.bincount(first), [4, 3, 1])
    assert (np.diff(first) != 0).sum() == 2 and len(set(found[:8])) == 8 and len(found) == 24
    np.testing.assert_array_equal(found, spcl.together(labels, 4, 24, seed=0, epoch=1))
    assert (found != spcl.together(labels, 4, 24, seed=0, epoch=2)).any()


@pytest.mark.slow  # compiles a second program
def test_without_adaptation_the_target_is_in_no_label_and_its_rows_do_nothing(stepped):
    *_, rows = stepped
    method = build(adapt=False, domain_norm=False)
    first = jax.jit(method.init)(jax.random.key(0), batch_of(range(8)))
    first = method.refresh(jax.device_put(first, jax.devices()[0]), lambda f: rows, 0)
    held = first.memory.hybrid
    np.testing.assert_array_equal(held.labels, [0, 1, 2] + [-1] * 24)
    update = jax.jit(method.update)
    after, metrics = update(first, batch_of(range(8)), jax.random.key(1))
    assert metrics["chance"] == pytest.approx(np.log(3)) and "loss_target" not in metrics
    np.testing.assert_array_equal(after.memory.hybrid.rows[3:], held.rows[3:])
    other = first.memory._replace(hybrid=held._replace(rows=held.rows.at[3:].multiply(-1)))
    _, same = update(first.replace(memory=other), batch_of(range(8)), jax.random.key(1))
    assert same["loss"] == metrics["loss"]


def test_errors():
    with pytest.raises(ValueError, match="set source=True and domain_norm=False"):
        build(adapt=False)
    with pytest.raises(ValueError, match=r"Use data\.name='domains'"):
        build(run=RUN._replace(sizes={"label": 3}))
    with pytest.raises(ValueError, match="'source' where there is one"):
        build(source=False, warmup="source")
    with pytest.raises(ValueError, match="expected 0 <= eps_gap < eps"):
        build(eps_gap=0.7)
