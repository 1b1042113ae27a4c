"""What is CMC's own: a network and a bank per view, banks that move at the batch's ids alone, Z,
graphs of views."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from PIL import Image

from cl_jax.core.method import Run
from cl_jax.encoders.resnet import ResNet
from cl_jax.methods import cmc
from cl_jax.training import configs, loop, metrics
from cl_jax.views import make as recipe
from tests.small import Pixels, started, updates

RUN = Run(None, 8, 32, 4, 8, {"label": 2})
VIEW = recipe({"name": "cmc_lab", "size": 8, "test_crop": 1.0})
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
BATCH = {"image": IMAGES, "id": np.array([3, 30, 4, 11, 12, 0, 31, 7], np.int32)}
NETWORK = Pixels()


def build(views=(VIEW,), **settings):
    settings = {"encoder": NETWORK, "num_negatives": 16, "out_dim": 8} | settings
    method = cmc.make(tx=optax.sgd(0.1), views=views, run=RUN, **settings)
    return method, started(method, BATCH), updates(method)


@pytest.fixture(scope="module")
def two():
    return build()


def test_banks_move_at_the_batch_ids_alone(two):
    _, state, update = two
    after, metrics = update(state, BATCH, jax.random.key(1))
    ids, others = BATCH["id"], np.setdiff1d(np.arange(32), BATCH["id"])
    for before, moved in zip(state.memory.banks, after.memory.banks):
        old, new = before.rows, moved.rows
        np.testing.assert_array_equal(new[others], old[others])
        np.testing.assert_allclose(np.linalg.norm(new[ids], axis=1), 1, atol=1e-5)
        assert np.abs(new[ids] - old[ids]).max(axis=1).min() > 1e-3
    assert np.isfinite(metrics["loss"])


def test_z_is_that_of_the_first_batch(two):
    _, state, update = two
    first, _ = update(state, BATCH, jax.random.key(1))
    second, _ = update(first, BATCH, jax.random.key(2))
    [(one, two_)], [(one_later, two_later)] = first.memory.normalizers, second.memory.normalizers
    assert (one.log_z, two_.log_z) == (one_later.log_z, two_later.log_z)
    assert one.log_z != two_.log_z and one.log_z != 0
    assert one_later.batches == 2


def test_each_network_sees_its_own_channels(two):
    method, state, _ = two
    features = jax.jit(lambda x: method.features(state.params, state.stats, x, False)[0])
    x = method.clean({"image": IMAGES})
    grey = features(x.at[..., 1:].set(0.5))
    lit = features(x.at[..., 0].set(0.5))
    plain = features(x)
    np.testing.assert_array_equal(plain["h"], jnp.concatenate([plain["h1"], plain["h2"]], 1))
    np.testing.assert_array_equal(grey["h1"], plain["h1"])
    np.testing.assert_array_equal(lit["h2"], plain["h2"])
    assert np.abs(grey["h2"] - plain["h2"]).max() > 0 and np.abs(lit["h1"] - plain["h1"]).max() > 0
    kernels = [
        len(state.params[v]["encoder"]["Dense_0"]["kernel"]) / 16 for v in ("view1", "view2")
    ]
    assert kernels == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "graph,edges", [("core", [(1, 2), (1, 3)]), ("full", [(1, 2), (1, 3), (2, 3)])]
)
def test_graphs_of_three_views(graph, edges):
    _, state, update = build(channels=[[0], [1], [2]], graph=graph, loss="softmax", temperature=1e6)
    after, metrics = update(state, BATCH, jax.random.key(1))
    assert {name for name in metrics if name.startswith("similarity")} == {
        f"similarity_{a}_{b}" for a, b in edges
    }
    np.testing.assert_allclose(metrics["loss"], 2 * len(edges) * np.log(17), rtol=1e-4)
    assert len(after.memory.banks) == 3 and after.memory.normalizers == ()


def test_recipes_are_views():
    views = (VIEW, recipe({"name": "cmc_ycbcr", "size": 8, "test_crop": 1.0}))
    method, state, update = build(views)
    assert jax.eval_shape(method.clean, {"image": IMAGES}).shape == (8, 8, 8, 6)
    after, metrics = jax.eval_shape(update, state, BATCH, jax.random.key(1))
    assert metrics["loss"].shape == () and len(after.memory.banks) == 2


def test_errors():
    with pytest.raises(ValueError, match="at least two groups"):
        build(channels=((0, 1, 2),))
    with pytest.raises(ValueError, match="images with 3 channels"):
        build(channels=((0,), (3,)))
    with pytest.raises(ValueError, match='expected "core" or "full"'):
        build(graph="ring")


@pytest.mark.slow
def test_without_a_bank_the_other_view_s_features_of_the_batch_are_the_candidates():
    method, state, update = build(loss="in_batch", temperature=0.5)
    assert state.memory is None and method.negatives == 7
    after, metrics = update(state, BATCH, jax.random.key(1))
    (images,) = method.views(BATCH, jax.random.key(1))
    z = jax.jit(lambda x: method.features(state.params, state.stats, x, True)[0]["z"])(images)
    logits = np.asarray(z[:, :8] @ z[:, 8:].T, np.float64) / 0.5
    own = 2 * np.diagonal(logits)
    expected = np.log(np.exp(logits).sum(1)) + np.log(np.exp(logits).sum(0)) - own
    np.testing.assert_allclose(metrics["loss"], expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["chance"], 2 * np.log(8), rtol=1e-6)
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), after.params, state.params)
    assert all(moved[v]["encoder"]["Dense_0"]["kernel"] > 0 for v in ("view1", "view2"))


def test_patches_are_at_chance_where_scores_say_nothing_and_name_the_maps():
    network = ResNet(blocks=(1,), width=0.125, stem="cifar", for_cpu=False)
    settings = dict(encoder=network, loss="patches", temperature=1e6)
    _, state, update = build(**settings, patch_map="stage1")
    after, metrics = update(state, BATCH, jax.random.key(1))
    np.testing.assert_allclose(metrics["loss"], 2 * np.log(1 + 64 * 7), rtol=1e-4)
    np.testing.assert_allclose(metrics["chance"], 2 * np.log(1 + 64 * 7), rtol=1e-6)
    assert np.isfinite(jax.tree.leaves(after.params)[0]).all()
    with pytest.raises(ValueError, match="not a map of the encoder; it has conv1, stem, stage1"):
        build(**settings, patch_map="stage7")


def test_pictures_on_one_channel_axis_are_views_by_threes():
    plain = {"crop": "none", "size": 8, "test_crop": 1.0, "mean": None, "std": None}
    view = recipe({"name": "crop_flip", **plain})
    network = cmc.make(
        encoder=NETWORK,
        tx=optax.sgd(0.1),
        views=(view,),
        run=RUN,
        loss="in_batch",
        graph="full",
        out_dim=8,
    )
    batch = BATCH | {"image": np.concatenate([IMAGES, IMAGES[::-1], IMAGES], axis=-1)}
    state = started(network, batch)
    _, metrics = jax.jit(network.update)(state, batch, jax.random.key(1))
    assert len(state.params) == 3 and metrics["chance"] == pytest.approx(6 * np.log(8), rel=1e-6)


@pytest.mark.slow
def test_a_folder_of_ways_trains_to_its_end(tmp_path):
    """`cmc:aligned` on three folders, one of a single channel: a network each, the label of the
    folders inside, a picture of neighbours."""
    rng = np.random.default_rng(0)
    for way in ("ink", "flat", "depth"):
        for number in range(48):
            file = tmp_path / "data" / way / "ab"[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            shape = (20, 20) if way == "depth" else (20, 20, 3)
            Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(file)
    config = configs.load("cmc:aligned,debug")
    config.devices = 1
    with config.unlocked():
        config.data.update(
            path=str(tmp_path / "data"), shown=("ink", "flat", "depth"), channels=(3, 3, 1)
        )
        config.method.channels = ((0, 1, 2), (3, 4, 5), (6,))
    config.evals.protocols = ConfigDict(
        {
            "knn": {"k": 5},
            "core": {"name": "logistic", "feature": "h1", "figure": "core"},
            "neighbours": {},
        }
    )
    found = loop.train(config, tmp_path / "run")
    assert 0 <= found["core/label"] <= 1 and 0 <= found["knn/top1"] <= 1
    assert (tmp_path / "run" / "neighbours.png").stat().st_size > 0
    rows = metrics.read(str(tmp_path / "run"))
    assert "similarity_2_3" in rows[0].keys() | rows[1].keys()
