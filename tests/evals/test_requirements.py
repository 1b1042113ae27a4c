"""What is refused, and what is left out, before a run begins: evaluators that their method, data or
config lack something for."""

import dataclasses
import importlib
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from cl_jax.core.errors import ConfigError
from cl_jax.data.source import Splits, from_arrays
from cl_jax.evals import (
    Evaluator,
    Needs,
    balancedness,
    captions,
    clustering,
    frame_order,
    generation,
    geometry,
    hardness,
    knn,
    linear,
    linear_augmented,
    logistic,
    reidentification,
    retrieval,
    rotation,
    samples,
    sts,
    svm_folds,
    transfer,
    zero_shot,
)
from cl_jax.evals.requirements import check, measured_always, with_data

METHOD = SimpleNamespace(functions={})


def config_of(**evals):
    return ConfigDict({"evals": {"feature": "h", "best": ""} | evals})


def source_of(name="train", sizes=None, size=24, shape=(4, 4, 3), **fields):
    """A source of images, of two classes in turn where nothing else is said."""
    arrays = {"image": np.zeros((size, *shape), np.uint8), "label": np.arange(size) % 2, **fields}
    arrays = {
        name: np.int32(x) if np.ndim(x) == 1 and name != "score" else x
        for name, x in arrays.items()
    }
    return from_arrays(name, arrays, {"label": 2} if sizes is None else sizes)


WIDE, ONE = source_of(shape=(4, 6, 3)), source_of(label=np.zeros(24))
THREE = source_of("test", {"label": 3}, label=np.arange(24) % 3)
RARE = source_of(label=np.arange(24) < 9)
CLIPS = source_of(clip=np.zeros((24, 2, 4, 4, 3), np.uint8))
FILMS = source_of(size=1, clip=np.zeros((1, 3, 4, 4, 3), np.uint8))
UNKNOWN = source_of(label=np.full(24, -1))
PAIR = source_of(
    "sts", {}, 1, tokens=np.ones((1, 2)), tokens_b=np.ones((1, 2)), score=np.ones(1, np.float32)
)
BOTH = Splits(source_of(), source_of("test"))


@pytest.mark.parametrize(
    "evaluators, changes, says",
    [
        ({"knn": knn.make(feature="hh")}, {}, "'hh'.*did you mean 'h'"),
        ({}, {"feature": "z"}, "reads the feature 'z'"),
        (
            {"x": Evaluator(lambda given: {}, Needs(functions=("generate",)))},
            {},
            "evals.protocols.x reads the function of the method 'generate'",
        ),
        (
            {"x": Evaluator(lambda given: {}, Needs(sources=("sts",)))},
            {},
            "further source of the data 'sts', which is missing; there are none",
        ),
        ({"knn": knn.make()}, {"best": "knn/top2"}, "did you mean 'knn/top1'"),
        (
            {"x": Evaluator(lambda given: {}, better={"epoch": 1})},
            {},
            "evals.protocols.x measures 'epoch', .* such as 'x/epoch'",
        ),
    ],
)
def test_what_is_missing_is_said_before_the_first_step(evaluators, changes, says):
    config = config_of(**changes)
    with pytest.raises(ConfigError, match=says):
        check(evaluators, METHOD, BOTH, config, ["h"])


def refused(evaluator, train=None, test=None, **more):
    """What `check` says of these data."""
    train = source_of() if train is None else train
    data = Splits(train, source_of("test") if test is None else test, more)
    method = SimpleNamespace(functions=dict.fromkeys(evaluator.needs.functions))
    check({"own": evaluator}, method, data, config_of(), None)


@pytest.mark.parametrize(
    ("evaluator", "data", "says"),
    [
        (svm_folds.make(), {"train": RARE}, "class 1 has 9 of 24 .* Use fewer folds"),
        (svm_folds.make(), {"train": ONE}, "class 0 has 24 of 24 .*expected two classes"),
        (rotation.make(), {"test": WIDE}, "images of 4x6"),
        (samples.make(), {"train": ONE}, "are of one class; expected two or more"),
        (samples.make(), {"test": WIDE}, r"\(4, 4, 3\) and .*\(4, 6, 3\)"),
        (samples.make(), {"test": source_of("test", size=1)}, "test has one image"),
        (samples.make(splits=25), {}, "splits=25 are more than the 24 samples"),
        (knn.make(), {"test": THREE}, "label=2, and train counts 2"),
        (linear.make(), {"test": THREE}, "label=2, and train counts 2"),
        (linear_augmented.make(), {"test": THREE}, "label=2, and train counts 2"),
        (hardness.make(), {"test": THREE}, "label=2, and train counts 2"),
        (balancedness.make(), {"test": THREE}, "label=2, and train counts 2"),
        (balancedness.make(source="b"), {"b": UNKNOWN}, "of the source 'b' has a label"),
        (clustering.make(clusters=25), {}, "clusters=25; expected 1 to 24"),
        (captions.make(field="image"), {"test": source_of(size=1)}, "has 1 examples"),
        (generation.make(), {}, "test has no references"),
        (frame_order.make(), {"train": CLIPS, "test": CLIPS}, "clips have 2 frames"),
        (frame_order.make(), {"train": FILMS, "test": FILMS}, "train has 1 clips"),
        (sts.make(), {"sts": PAIR}, "'sts' has 1 examples of .*; expected two or more"),
        (sts.make(sources=("a",)), {"a": source_of()}, "expected two or more of tokens"),
        (transfer.make(sources=("a",)), {"a": source_of(size=2)}, "no class has two of the 2"),
        (transfer.make(sources=("a",)), {"a": UNKNOWN}, "24 examples without a label"),
        (zero_shot.make(), {"prompts": ONE}, "no prompt names class 1"),
        (retrieval.make(source="a", label="b"), {"a": ONE}, "has no label 'b'"),
        (
            reidentification.make(gallery="a", camera="label"),
            {"a": source_of(sizes={})},
            "no label",
        ),
    ],
)
def test_data_that_an_evaluator_cannot_measure_are_refused_before_the_first_step(
    evaluator, data, says
):
    """Else a run trains an epoch, fails, and fails again each time it is resumed."""
    mend = r".* --config.evals.protocols.own=None leaves it out"
    with pytest.raises(ConfigError, match=f"evals.protocols.own: .*{says}.*{mend}"):
        refused(evaluator, **data)


@pytest.mark.parametrize(
    "evaluator",
    [
        svm_folds.make(folds=3),
        rotation.make(),
        samples.make(splits=24),
        knn.make(),
        hardness.make(),
        balancedness.make(),
        clustering.make(clusters=24),
        clustering.make(clusters=30, argmax=True),
        reidentification.make(),
    ],
)
def test_data_that_it_can_measure_are_taken(evaluator):
    refused(evaluator)


def test_labels_that_would_have_to_be_read_one_by_one_are_not_checked():
    refused(svm_folds.make(), dataclasses.replace(RARE, arrays=None))


def test_evaluators_of_labels_are_left_out_where_all_are_missing(caplog):
    every = {
        name: importlib.import_module(f"cl_jax.evals.{name}").make()
        for name in ("knn", "linear", "logistic", "balancedness", "classifier", "clustering")
    }
    assert with_data(every, Splits(UNKNOWN, source_of())).keys() == {"classifier", "clustering"}
    assert not with_data(every, Splits(source_of(), UNKNOWN))
    assert "evals.protocols.knn is left out: no example of the train part has a label" in (
        caplog.text
    )
    assert "classifier is left out: no example of the test part" in caplog.text


def test_evaluators_of_further_sources_are_left_out_where_there_are_none(caplog):
    gold = {"sts_dev/x": PAIR, "sts": PAIR}
    for name, more in (("sts", {}), ("transfer", gold), ("sts", {"stsx": PAIR})):
        one = importlib.import_module(f"cl_jax.evals.{name}").make()
        assert not with_data({name: one}, BOTH._replace(more=more))
    assert "sts is left out: train has no sts or sts_dev; give a file of them as data.sts." in (
        caplog.text
    )
    assert "transfer is left out: train has no classify; give a file" in caplog.text


def test_figures_over_a_further_source_that_there_is_not_are_not_measured():
    for there, other in (("sts", "sts_dev/x"), ("sts_dev/x", "sts")):
        data = BOTH._replace(more={there: PAIR})
        usable = with_data({"sts": sts.make()}, data)
        own, best = (f"{name.split('/')[0]}/spearman" for name in (there, other))
        assert measured_always(usable) == {own: 1}
        with pytest.raises(ConfigError, match=f"best='{best}' is not measured.*'{own}'"):
            check(usable, METHOD, data, config_of(best=best), None)


@pytest.mark.parametrize("make", [knn.make, geometry.make, logistic.make])
def test_two_evaluators_of_one_figure_are_refused_before_the_first_step(make):
    """The later one's figures would overwrite those of the other."""
    mend = "wide.figure=NAME, .*; --config.evals.protocols.wide=None"
    with pytest.raises(ConfigError, match=f"protocols.own and evals.protocols.wide both .*{mend}"):
        check({"own": make(), "wide": make()}, METHOD, BOTH, config_of(), None)


def test_two_evaluators_of_one_kind_with_figures_of_their_own_are_taken():
    evaluators = {
        "knn": knn.make(),
        "wide": knn.make(feature="z", figure="wide"),
        "label": logistic.make(),
        "kind": logistic.make(label="kind"),
        "geometry": geometry.make(),
        "geometry_z": geometry.make(feature="z", figure="@z"),
    }
    source = source_of(sizes={"label": 2, "kind": 2}, kind=np.arange(24) % 2)
    check(evaluators, METHOD, Splits(source, source), config_of(), None)
