"""The logistic probe, and accuracy against steps ahead."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from cl_jax import losses
from cl_jax.data.source import Splits, from_arrays
from cl_jax.evals import balancedness, clustering, logistic, steps_ahead, svm_folds

RNG = np.random.default_rng(0)


def _given(features, seed=0, **functions):
    """Sources of 60 and 40 examples with labels of three classes, and what evaluators are given."""
    parts = []
    for size in (60, 40):
        label = (np.arange(size) % 3).astype(np.int32)
        arrays = {"x": np.zeros((size, 1), np.int16), "label": label}
        parts.append(from_arrays("toy", arrays, {"label": 3}))
    data = Splits(*parts)
    return SimpleNamespace(
        data=data,
        features=lambda source, name: features(source.arrays["label"]),
        rows=lambda name, source: functions[name](source),
        seed=seed,
    )


def test_separable_classes_are_found_and_noise_is_not():
    def separable(label):
        # Of another unit in each column: standardised away.
        return (np.eye(3)[label] + 0.05 * RNG.normal(size=(len(label), 3))) * [1e-3, 1, 1e3]

    one = logistic.make()
    assert one.measure(_given(separable)) == {"logistic/label": 1.0}
    noise = one.measure(_given(lambda label: RNG.normal(size=(len(label), 3))))
    assert noise["logistic/label"] < 0.6
    assert one.better == {"logistic/label": 1} and one.needs.labels == ("label",)


def test_examples_without_a_label_are_left_out():
    given = _given(lambda label: np.eye(4)[label])
    given.data.train.arrays["label"][:6] = -1
    given.data.test.arrays["label"][1] = -1
    assert logistic.make().measure(given) == {"logistic/label": 1.0}


def test_one_class_is_predicted_of_all():
    x = RNG.normal(size=(6, 2))
    truth = np.array([2, 2, 0, 1, 2, 0])
    assert logistic.accuracy(x, np.full(6, 2), x, truth) == 0.5
    assert (balancedness._predicted(x, np.full(6, 2), x, 1.0, 10) == 2).all()


def test_features_that_are_nan_give_nan():
    given = _given(lambda label: np.full((len(label), 2), np.nan))
    for evaluator in (logistic.make(), svm_folds.make(folds=2), clustering.make()):
        assert all(np.isnan(value) for value in evaluator.measure(given).values())


def test_steps_ahead_are_means_over_recordings():
    shares = RNG.uniform(size=(40, 3))
    found = steps_ahead.make().measure(_given(None, steps=lambda source: shares[: source.size]))
    np.testing.assert_allclose([found[f"steps_ahead/{k}"] for k in (1, 2, 3)], shares.mean(0))
    np.testing.assert_allclose(found["steps_ahead/mean"], shares.mean())
    assert steps_ahead.make().needs.functions == ("steps",)


def test_steps_ahead_are_drawn_from_the_log(tmp_path):
    rows = [
        {"step": 0, "untrained/steps_ahead/1": 0.1, "untrained/steps_ahead/mean": 0.1},
        {"step": 5, "steps_ahead/1": 0.2, "steps_ahead/10": 0.1, "steps_ahead/2": 0.15},
        {"step": 9, "steps_ahead/1": 0.4, "steps_ahead/10": 0.2, "steps_ahead/2": 0.3},
    ]
    given = SimpleNamespace(workdir=tmp_path)
    steps_ahead.make().draw(given)
    assert not list(tmp_path.iterdir())  # nothing was measured
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = steps_ahead.over_steps(tmp_path)
    assert list(drawn) == ["untrained", "trained"]
    assert drawn["untrained"] == [(1.0, 10.0)]
    assert drawn["trained"] == [(1.0, 40.0), (2.0, 30.0), (10.0, 20.0)]
    steps_ahead.make().draw(given)
    assert (tmp_path / "latents_ahead.png").stat().st_size > 1000


def test_steps_ahead_among_all_equal_the_loss_s_own_accuracy():
    p, z = RNG.normal(size=(4, 2, 7, 3)), RNG.normal(size=(4, 7, 3))
    steps = losses.predictive.cpc_steps(
        np.moveaxis(p, 1, 0).astype(np.float32), z.astype(np.float32)
    )
    higher, equal = steps_ahead.rivals(p, z)
    assert (equal == 1).all()
    ahead = higher + 1
    np.testing.assert_allclose((ahead == 1).mean(1), steps.accuracy, atol=1e-6)
    scores = np.sort(p[1, 0, 2] @ z.reshape(-1, 3).T)[::-1]
    assert scores[ahead[0].reshape(4, 5)[1, 2] - 1] == pytest.approx(p[1, 0, 2] @ z[1, 3])
    given = _given(None, predictions=lambda source: {"p": p, "z": z})
    found = steps_ahead.make(among="all").measure(given)
    np.testing.assert_allclose(found["steps_ahead/2"], steps.accuracy[1], atol=1e-6)
    assert found["steps_ahead/median"] == np.median(ahead)


def test_equal_latents_score_alike_whatever_their_number():
    rng = np.random.default_rng(2)
    p = rng.normal(size=(101, 3, 9, 128)).astype(np.float32)
    z = np.tile(rng.normal(size=128).astype(np.float32), (101, 9, 1))
    higher, equal = steps_ahead.rivals(p, z)
    assert (higher == 0).all() and (equal == 101 * 9).all()


def test_steps_ahead_of_a_dead_network_are_at_chance_and_of_nan_last():
    rng = np.random.default_rng(1)
    p, z = rng.normal(size=(4, 2, 7, 3)), rng.normal(size=(4, 7, 3))

    def found(p, z):
        given = _given(None, predictions=lambda source: {"p": p, "z": z})
        return steps_ahead.make(among="all").measure(given)

    dead = {f"steps_ahead/{k}": pytest.approx(1 / 28) for k in (1, 2, "mean")}
    assert found(p, 0 * z) == found(0 * p, z) == dead | {"steps_ahead/median": 14.5}
    nan = {f"steps_ahead/{k}": 0.0 for k in (1, 2, "mean")} | {"steps_ahead/median": 28.0}
    assert found(p, np.nan * z) == found(np.nan * p, z) == nan
    # Each latent has a copy, which is as likely to be picked out.
    once, twice = found(p, z), found(np.tile(p, (2, 1, 1, 1)), np.tile(z, (2, 1, 1)))
    assert once["steps_ahead/1"] == pytest.approx(2 * twice["steps_ahead/1"]) != 0


def test_svm_and_clusters_measure_their_source():
    """Folds of the training part, clusters of the test part; repeats are further divisions."""

    def features(label):
        return np.eye(3)[label] + 0.3 * np.random.default_rng(len(label)).normal(
            size=(len(label), 3)
        )

    given = _given(features, seed=4)
    labels = given.data.train.arrays["label"]
    each = [svm_folds.svm_folds(features(labels), labels, folds=3, seed=seed) for seed in (4, 5)]
    found = svm_folds.make(folds=3, repeats=2).measure(given)
    np.testing.assert_allclose(found["svm_folds/accuracy"], np.mean([one.mean for one in each]))
    np.testing.assert_allclose(found["svm_folds/std"], np.mean([one.std for one in each]))
    labels = given.data.test.arrays["label"]
    expected = clustering.kmeans_agreement(features(labels), labels, seed=4)
    assert clustering.make().measure(given) == {
        "clustering/accuracy": expected.accuracy,
        "clustering/nmi": expected.nmi,
        "clustering/ari": expected.ari,
    }
