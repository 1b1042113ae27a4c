"""The temperature study's figures, and a population that trains on all four losses."""

from types import SimpleNamespace

import numpy as np
import pytest

from cl_jax.data.source import Splits, from_arrays
from cl_jax.evals import Given, hardness, pictures, requirements
from cl_jax.training import configs, loop


def views(rows=16, width=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, rows, width)).astype(np.float32)


def test_probabilities_and_penalties_are_the_gradient_of_the_loss():
    first, second = views()
    seen = hardness.similarities(first, second, temperature=0.3)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second)]
    cosine = unit[0] @ unit[1].T
    weight = np.exp(cosine / 0.3)
    own = np.eye(16, dtype=bool)
    p = np.where(own, 0, weight / weight.sum(1, keepdims=True))
    r = np.where(own, 0, weight) / np.where(own, 0, weight).sum(1, keepdims=True)

    def ranked(x):
        return -np.sort(-x, axis=1)[:, :-1]

    np.testing.assert_allclose(seen.probability, ranked(p), rtol=1e-4)
    np.testing.assert_allclose(seen.penalty, ranked(r), rtol=1e-4)
    np.testing.assert_allclose(seen.positive, np.diagonal(cosine), rtol=1e-4, atol=1e-6)
    others = ranked(np.where(own, -2, cosine))[:, :10]
    np.testing.assert_allclose(seen.nearest, others, rtol=1e-4, atol=1e-6)


def test_a_high_temperature_weighs_all_negatives_alike():
    entropies = [
        float(hardness.similarities(*views(), temperature=t).entropy) for t in (0.01, 0.1, 100.0)
    ]
    assert entropies[0] < 0.3 < entropies[1] < 0.99 < entropies[2] <= 1 + 1e-6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(temperature=0.0), "temperature is 0.0"),
        (dict(members=({"name": "a"}, {"name": "a"})), "each name once"),
        (dict(members=({"name": "a", "temperature": 0.0},)), "a number above 0"),
        (dict(members=({"title": "a"},)), "expected name, curve and temperature"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        hardness.make(**given)
    with pytest.raises(ValueError, match="12 or more"):
        hardness.similarities(*views(rows=11), temperature=0.1)


def test_figures_of_pairs_are_left_out_where_there_are_not_ten_negatives():
    """Eight pairs, of four batches of two: an evaluation that failed would end the run."""
    test = from_arrays(
        "test",
        {"image": np.zeros((8, 2, 2, 3), np.uint8), "label": np.arange(8, dtype=np.int32) % 2},
        {"label": 2},
    )
    seen = SimpleNamespace(
        data=Splits(test, test),
        features=lambda source, name: np.eye(8, dtype=np.float32),
        views=lambda source, name, train: np.eye(16, 8, dtype=np.float32),
        batch_size=2,
        seed=0,
    )
    found = hardness.make(k=3).measure(seen)
    assert "hardness/knn" in found and "hardness/positive" not in found


def test_it_is_left_out_where_one_part_has_no_label():
    rows = {"image": np.zeros((4, 2, 2, 3), np.uint8)}
    train, test = (
        from_arrays("a", rows | {"label": np.full(4, label, np.int32)}, {"label": 2})
        for label in (0, -1)
    )
    evaluators = {"hardness": hardness.make()}
    assert requirements.with_data(evaluators, Splits(train, train)).keys() == {"hardness"}
    assert not requirements.with_data(evaluators, Splits(train, test))


@pytest.fixture
def asked(monkeypatch):
    """(what an evaluator is given, the ks that it asked kNN for): 50 labelled examples of 60, no
    views; nothing is compiled: the vote and the geometry stand in."""
    asked, label = [], np.where(np.arange(60) < 50, 0, -1).astype(np.int32)
    part = from_arrays("a", {"x": np.zeros((60, 1), np.int16), "label": label}, {"label": 2})
    monkeypatch.setattr(
        hardness.nearest, "knn", lambda *_, k, **__: asked.append(k) or SimpleNamespace(top1=0.5)
    )
    monkeypatch.setattr(hardness, "unit", lambda x: x)
    spread = dict(tolerance=lambda *_: SimpleNamespace(all_pairs=0.0, same_class=0.0))
    spread |= dict(uniformity=lambda *_, **__: 0.0)
    monkeypatch.setattr(hardness, "geometry", SimpleNamespace(**spread))
    given = Given(
        **dict.fromkeys(Given._fields)
        | dict(data=Splits(part, part), seed=0, batch_size=64, views=lambda *_: None)
        | dict(features=lambda source, name: np.zeros((60, 2), np.float32))
    )
    return given, asked


def test_the_k_that_few_labels_leave_is_told(asked):
    given, ks = asked
    members = ({"name": "a"}, {"name": "b"})
    found = hardness.make(members=members).measure(given)
    assert found["hardness@a/k"] == found["hardness@b/k"] == 50 and ks == [50, 50]
    assert hardness.make(k=7).measure(given)["hardness/k"] == 7


@pytest.mark.parametrize("loss", ["hard_contrastive", "hard_simple"])
def test_a_single_network_is_measured_at_its_own_temperature(asked, monkeypatch, loss):
    given, temperatures = asked[0]._replace(views=lambda *_: np.zeros((60, 2)), batch_size=16), []
    seen = hardness.Similarities(*[np.ones(1)] * 4, np.float32(0.25))
    monkeypatch.setattr(
        hardness, "similarities", lambda *_, temperature: temperatures.append(temperature) or seen
    )
    found = hardness.make(loss=loss, temperature=0.5).measure(given)
    assert found["hardness/positive"] == 1
    if loss == "hard_simple":  # the softmax that it does not have has no entropy
        assert "hardness/entropy" not in found
    else:
        assert found["hardness/entropy"] == 0.25 and temperatures == [0.5]


def test_the_plots(tmp_path):
    panels = {"accuracy": {"a": [(0.1, 0.5), (1.0, 0.7)], "b": [(None, 0.6)]}}
    pictures.curves(tmp_path / "curves.png", panels, xlabel="temperature")
    values = np.random.default_rng(0).normal(size=100)
    rows = {"one": [("similarity", {"positive": values})], "two": [("similarity", {"p": values})]}
    pictures.histograms(tmp_path / "histograms.png", rows)
    assert all((tmp_path / f"{name}.png").stat().st_size for name in ("curves", "histograms"))
    with pytest.raises(ValueError, match="no panel"):
        pictures.curves(tmp_path / "none.png", {}, xlabel="")


@pytest.mark.parametrize("variant", ["cifar10", "cifar100", "single"])
def test_variants_measure_the_members_that_they_train(variant):
    config = configs.load(f"temperature:{variant}")
    if variant == "single":
        assert config.method.name == "temperature"
        configs.change(config, [("method.temperature", "0.5"), ("method.loss", "hard_contrastive")])
        section = configs.plain(config)["evals"]["protocols"]["hardness"]
        assert (section["temperature"], section["loss"]) == (0.5, "hard_contrastive")
        return
    assert config.data.dataset == variant
    assert len(config.method.over) == 16 == len(config.evals.protocols.hardness.members)


@pytest.mark.slow  # compiles ten steps of a network
def test_the_study_from_one_command(tmp_path):
    config = configs.load("temperature:debug")
    loop.train(config, tmp_path)
    assert (tmp_path / "temperature.png").exists() and (tmp_path / "similarities.png").exists()
    row = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    assert '"hardness@simple/uniformity"' in row and "hard_contrastive,0.1/knn" in row
