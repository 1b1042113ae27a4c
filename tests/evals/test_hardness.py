"""The temperature study's figures, and a population that trains on all four losses."""

import numpy as np
import pytest

from cl_jax.data.source import Splits, from_arrays
from cl_jax.evals import evaluation, hardness, pictures
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


def test_it_is_left_out_where_one_part_has_no_label():
    rows = {"image": np.zeros((4, 2, 2, 3), np.uint8)}
    train, test = (
        from_arrays("a", rows | {"label": np.full(4, label, np.int32)}, {"label": 2})
        for label in (0, -1)
    )
    evaluators = {"hardness": hardness.make()}
    assert evaluation.with_data(evaluators, Splits(train, train)).keys() == {"hardness"}
    assert not evaluation.with_data(evaluators, Splits(train, test))


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
