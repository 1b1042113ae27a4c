"""Figures of sentences and of image-text pairs, against other implementations and by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance

from cl_jax.evals import retrieval, sts, transfer, zero_shot


def rank(x):
    """Ranks with ties at their mean, by counting."""
    return np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x])


def test_spearman_is_the_correlation_of_ranks():
    rng = np.random.default_rng(0)
    scores, gold = rng.normal(size=50), rng.integers(0, 6, 50)
    right = np.corrcoef(rank(scores), rank(gold))[0, 1]
    assert sts.spearman(scores, gold) == pytest.approx(right, abs=1e-12)
    assert sts.spearman(np.exp(scores), gold) == pytest.approx(right, abs=1e-12)
    assert sts.spearman(np.ones(50), gold) == 0
    with pytest.raises(ValueError, match="expected one vector each"):
        sts.spearman(scores, gold[:-1])


def test_cosines_ignore_length():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20, 7))
    right = [1 - distance.cosine(x, y) for x, y in zip(a, b)]
    np.testing.assert_allclose(sts.cosines(3 * a, b), right, atol=1e-12)
    assert sts.cosines(np.zeros((1, 7)), b[:1]) == [0]


def test_aggregations_differ_and_are_what_they_say():
    rng = np.random.default_rng(1)
    parts = [(rng.normal(size=n) + shift, rng.normal(size=n)) for n, shift in ((10, 0), (30, 5))]
    each = [stats.spearmanr(*part).statistic for part in parts]
    together = stats.spearmanr(*(np.concatenate(x) for x in zip(*parts))).statistic
    found = {name: sts.aggregate(parts, name) for name in sts.AGGREGATIONS}
    assert found["all"] == pytest.approx(together)
    assert found["mean"] == pytest.approx(np.mean(each))
    assert found["wmean"] == pytest.approx((10 * each[0] + 30 * each[1]) / 40)
    assert len(set(np.round(list(found.values()), 6))) == 3
    with pytest.raises(ValueError, match="expected one of all, mean, wmean"):
        sts.aggregate(parts, "median")


def test_alignment_and_uniformity_are_those_of_the_losses():
    from cl_jax.losses import geometry

    a, b = np.random.default_rng(0).normal(size=(2, 12, 5)).astype(np.float32)
    positive = np.arange(12) < 5
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    alignment, uniformity = sts.on_the_sphere(2 * a, b, positive)
    assert alignment == pytest.approx(float(geometry.alignment(unit[0][:5], unit[1][:5])), abs=1e-5)
    right = float(geometry.uniformity(np.concatenate(unit)))
    assert uniformity == pytest.approx(right, abs=1e-5)


def test_ranks_by_sorting():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40, 6))
    b = a + rng.normal(size=(40, 6))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    similarity = unit[0] @ unit[1].T
    right = [list(np.argsort(-row)).index(i) + 1 for i, row in enumerate(similarity)]
    found = retrieval.ranks(a, b)
    assert found.tolist() == right
    assert retrieval.figures(found) == {
        "r1": np.mean(np.array(right) <= 1),
        "r5": np.mean(np.array(right) <= 5),
        "r10": np.mean(np.array(right) <= 10),
        "median": np.floor(np.median(right)),
    }


def test_figures_of_a_second_pair_have_a_name_of_their_own():
    x = np.eye(4)
    seen = SimpleNamespace(
        data=SimpleNamespace(test=None), features=lambda source, name: x[:: {"a": 1, "b": -1}[name]]
    )
    one = retrieval.make(image="a", text="b", ks=(1,), figure="other")
    assert one.measure(seen)["other/image_to_text/r1"] == 0
    assert set(one.measure(seen)) - {"other/rows"} == set(one.better) == set(one.titles)


@pytest.mark.parametrize(("rows", "used"), [(3, 3), (1000, 4), (0, 4)])
def test_the_size_of_the_gallery_is_a_figure(rows, used):
    """A recall among 200 is not one among 1,000."""
    seen = SimpleNamespace(data=SimpleNamespace(test=None), features=lambda *_: np.eye(4))
    found = retrieval.make(image="a", text="b", ks=(1,), rows=rows).measure(seen)
    assert found["retrieval/rows"] == used


def test_rows_of_one_label_are_right_too():
    """Texts 0 and 1 mean the same; the rows are images' similarities to the texts."""
    images = np.array([[0.1, 0.9, 0.2], [0.3, 0.2, 0.9], [0.5, 0.3, 0.4]])
    source = SimpleNamespace(
        labels=None, arrays={"meaning": np.array([4, 4, 7])}, sizes={"meaning": 8}, name="test"
    )
    seen = SimpleNamespace(
        data=SimpleNamespace(test=source),
        features=lambda _, name: {"a": images, "b": np.eye(3)}[name],
    )
    one = retrieval.make(image="a", text="b", ks=(1,), label="meaning")
    found = one.measure(seen)
    assert found["retrieval/image_to_text/r1"] == 0
    assert found["retrieval/image_to_text/label_r1"] == pytest.approx(1 / 3)
    precision = np.mean([(1 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2, 1 / 2])
    assert found["retrieval/image_to_text/label_map"] == pytest.approx(precision)
    assert one.needs.labels == ("meaning",)
    assert set(found) - {"retrieval/rows"} == set(one.better) == set(one.titles)


def test_many_queries_are_ranked_in_blocks(monkeypatch):
    a, b = np.random.default_rng(0).normal(size=(2, 25, 4))
    whole = retrieval.ranks(a, b)
    monkeypatch.setattr(retrieval, "_BLOCK", 7)
    np.testing.assert_array_equal(retrieval.ranks(a, b), whole)


def test_ties_count_against():
    same = np.ones((9, 4))
    assert retrieval.ranks(same, same).tolist() == [9] * 9
    for bad in (np.nan, np.inf):  # a network that diverged finds nothing
        with np.errstate(invalid="ignore"):
            assert retrieval.ranks(bad * same, bad * same).tolist() == [9] * 9
    with pytest.raises(ValueError, match="expected both"):
        retrieval.ranks(same, same[:3])


def test_class_weights_are_means_of_unit_prompts():
    prompts = np.array([[2.0, 0], [0, 5], [0, 1], [0, -3]])
    weights = zero_shot.class_weights(prompts, np.array([0, 0, 1, 2]), 3)
    np.testing.assert_allclose(weights, [[0.5**0.5, 0.5**0.5], [0, 1], [0, -1]])
    features = np.array([[1.0, 1], [0.1, 9], [0, -1], [1, 0]])
    labels = np.array([0, 1, 1, -1])
    assert zero_shot.accuracy(features, weights, labels) == pytest.approx(2 / 3)
    assert zero_shot.accuracy(features, weights, labels, 3) == 1
    bad = np.where([[True], [False], [False], [False]], np.nan, features)  # of class 0, the first
    assert zero_shot.accuracy(bad, weights, labels) == pytest.approx(1 / 3)
    assert zero_shot.accuracy(np.nan * features, weights, np.zeros(4, int), 3) == 0
    with pytest.raises(ValueError, match="no prompt names class 3"):
        zero_shot.class_weights(prompts, np.array([0, 0, 1, 2]), 4)


def given(more, features):
    """A State as evaluators see it: features by the name of a source and of its first field."""
    data = SimpleNamespace(train=SimpleNamespace(name="text/train"), more=more)

    def of(source, name):
        return features[source.arrays["tokens"].tobytes()]

    return SimpleNamespace(data=data, features=of)


def test_sts_reads_both_sentences_of_every_set():
    from cl_jax.data.source import from_arrays

    rng = np.random.default_rng(0)
    more, features, right = {}, {}, []
    for name in ("sts/x", "sts/y", "prompts"):
        tokens = rng.integers(1, 50, (2, 20, 4)).astype(np.uint16)
        score = rng.random(20).astype(np.float32)
        arrays = {"tokens": tokens[0], "tokens_b": tokens[1], "score": score}
        more[name] = from_arrays(name, arrays, {"tokens": 50, "tokens_b": 50})
        rows = rng.normal(size=(2, 20, 3))
        features |= {t.tobytes(): x for t, x in zip(tokens, rows)}
        right.append(stats.spearmanr(sts.cosines(*rows), score).statistic)
    found = sts.make().measure(given(more, features))
    assert found["sts/x/spearman"] == pytest.approx(right[0])
    assert found["sts/y/spearman"] == pytest.approx(right[1])
    assert found["sts/spearman"] == pytest.approx(np.mean(right[:2]))
    only = sts.make(sources=("sts/y",)).measure(given(more, features))
    assert only["sts/spearman"] == pytest.approx(right[1]) and "sts/x/spearman" not in only
    assert sts.make().needs.kinds == ("sts", "sts_dev") and not sts.make(sources=("x",)).needs.kinds


def test_dev_pairs_have_a_mean_of_their_own():
    found = {
        "sts/a/spearman": 0.2, "sts/b/spearman": 0.4, "sts/b/alignment": 9.0,
        "sts_dev/b/spearman": 0.8, "gold/spearman": 0.6,
    }  # fmt: skip
    right = {"sts/spearman": pytest.approx(0.4), "sts_dev/spearman": 0.8}
    assert sts.means(found, "spearman") == right


def test_shared_words_are_the_cosine_of_counts(monkeypatch):
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

    from cl_jax.core.tokens import END, PAD, SPECIAL
    from cl_jax.data.source import from_arrays

    rng = np.random.default_rng(0)
    train, a, b = rng.integers(PAD, 20, (3, 30, 6)).astype(np.uint16)
    a[0], b[0] = END, END  # a sentence without words

    def counts(tokens):
        said = [" ".join(str(token) for token in row if token >= SPECIAL) for row in tokens]
        words = [str(token) for token in range(20)]
        return CountVectorizer(vocabulary=words, token_pattern=r"\d+").transform(said)

    weigh = TfidfTransformer(norm=None).fit(counts(train))
    assert sts.rareness(train, 20)[SPECIAL:] == pytest.approx(weigh.idf_[SPECIAL:])
    for weights, x, y in (
        (np.ones(20), counts(a), counts(b)),
        (sts.rareness(train, 20), weigh.transform(counts(a)), weigh.transform(counts(b))),
    ):
        right = sts.cosines(x.toarray(), y.toarray())
        np.testing.assert_allclose(sts.shared_words(a, b, weights), right, atol=1e-12)
        assert right[0] == 0 and np.ptp(right) > 0.5

    score = rng.random(30).astype(np.float32)
    sizes = {"tokens": 20, "tokens_b": 20}
    pairs = from_arrays("sts/x", {"tokens": a, "tokens_b": b, "score": score}, sizes)
    data = SimpleNamespace(
        train=from_arrays("text/train", {"tokens": train}, {"tokens": 20}), more={"sts/x": pairs}
    )
    count, counted = sts.counts, []

    def noting(tokens, size):
        counted.append(tokens)
        return count(tokens, size)

    monkeypatch.setattr(sts, "counts", noting)
    found = sts.make().baseline(SimpleNamespace(data=data))
    # Once each side of the pairs, for both figures, and the training sentences.
    assert [sum(one is side for one in counted) for side in (a, b)] == [1, 1]
    assert len(counted) == 3
    assert set(found) == {
        f"{name}/shared_{words}" for name in ("sts/x", "sts") for words in ("words", "words_idf")
    }
    right = sts.shared_words(a, b, sts.rareness(train, 20))
    assert found["sts/shared_words_idf"] == pytest.approx(sts.spearman(right, score))


def blobs(count, seed, spread=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count).astype(np.int32)
    centres = 2 * np.eye(3, 5)
    return centres[labels] + spread * rng.normal(size=(count, 5)), labels


def test_transfer_is_the_accuracy_of_a_logistic_regression():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    (x, y), (tx, ty) = blobs(200, 0), blobs(100, 1)
    scaler = StandardScaler().fit(x)
    right = LogisticRegression(C=0.1).fit(scaler.transform(x), y).score(scaler.transform(tx), ty)
    assert transfer.accuracy(x, y, tx, ty, strengths=(0.1,)) == pytest.approx(right)
    assert 0.6 < right < 1
    assert transfer.by_folds(x, y, folds=4) == pytest.approx(right, abs=0.15)
    noise = np.random.default_rng(2).permutation(y)
    assert transfer.by_folds(x, noise, folds=4) < 0.5


def test_transfer_takes_test_parts_where_there_are_some():
    from cl_jax.data.source import from_arrays

    more, features = {}, {}
    for number, (name, spread) in enumerate(
        [("classify/a", 0.01), ("classify/a/test", 0.01), ("classify/b", 9.0), ("sts", 1.0)]
    ):
        x, y = blobs(60, number, spread)
        tokens = np.full((60, 2), number + 1, np.uint16)
        more[name] = from_arrays(name, {"tokens": tokens, "label": y}, {"tokens": 9, "label": 3})
        features[tokens.tobytes()] = x
    seen = given(more, features)
    seen = SimpleNamespace(**vars(seen), seed=0)
    found = transfer.make(folds=3).measure(seen)
    assert set(found) == {"transfer/a", "transfer/b", "transfer/average"}
    assert found["transfer/a"] == 1 and found["transfer/b"] < 0.6
    assert found["transfer/average"] == pytest.approx((1 + found["transfer/b"]) / 2)
    assert transfer.make().needs.kinds == ("classify",)
    with pytest.raises(ValueError, match="expected 2 or more"):
        transfer.make(folds=1)


def test_transfer_reads_pairs_by_their_difference_and_product():
    """Whether two sentences are alike, which neither says alone (SentEval's MRPC)."""
    from cl_jax.data.source import from_arrays

    rng = np.random.default_rng(0)
    u = rng.normal(size=(80, 4))
    y = rng.integers(0, 2, 80).astype(np.int32)
    v = np.where(y[:, None] == 1, u, rng.normal(size=(80, 4)))
    first, second = np.full((80, 2), 1, np.uint16), np.full((80, 2), 2, np.uint16)
    arrays = {"tokens": first, "tokens_b": second, "label": y}
    sizes = {"tokens": 9, "tokens_b": 9, "label": 2}
    more = {"classify/pairs": from_arrays("pairs", arrays, sizes)}
    seen = given(more, {first.tobytes(): u, second.tobytes(): v})
    found = transfer.make(folds=4).measure(SimpleNamespace(**vars(seen), seed=0))
    assert found["transfer/pairs"] > 0.9
    more = {"classify/one": from_arrays("one", {"tokens": first, "label": y}, {"label": 2})}
    seen = given(more, {first.tobytes(): u})
    found = transfer.make(folds=4).measure(SimpleNamespace(**vars(seen), seed=0))
    assert found["transfer/one"] < 0.75


def test_alignment_and_uniformity_over_training_are_drawn(tmp_path):
    import json

    from PIL import Image

    rows = [
        {"step": 0, "untrained/sts/alignment": 0.5, "untrained/sts/uniformity": -1.0},
        {"step": 5, "loss": 1.0, "other/alignment": 9.0, "other/uniformity": 9.0},
        {
            "step": 10,
            "sts/a/alignment": 0.2, "sts/a/uniformity": -2.0,
            "sts/b/alignment": 0.4, "sts/b/uniformity": -3.0,
        },
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    steps, points = sts.over_training(tmp_path)
    assert steps == [0, 10]
    np.testing.assert_allclose(points, [(0.5, -1.0), (0.3, -2.5)])
    sts.make().draw(SimpleNamespace(workdir=tmp_path))
    with Image.open(tmp_path / "alignment_uniformity.png") as picture:
        assert picture.size == (900, 750)
    sts.make().draw(SimpleNamespace(workdir=tmp_path / "none"))


def test_transfer_of_sets_too_small_to_hold_a_tenth_out(caplog):
    y = np.arange(12) % 3
    x = 2 * np.eye(3, 5)[y] + np.random.default_rng(0).normal(0, 0.1, (12, 5))
    for count in (4, 7, 12):  # a class with one row, fewer rows held out than classes
        assert transfer.accuracy(x[:count], y[:count], x, y) > 1 / 3
        assert 0 <= transfer.by_folds(x[:count], y[:count], folds=10) <= 1
    assert "folds, not 10: no class has more rows" in caplog.text
    assert transfer.accuracy(x, 0 * y, x, y) == 1 / 3  # one class
    assert np.isnan(transfer.accuracy(x * np.nan, y, x, y))
    with pytest.raises(ValueError, match="no class has two of the 2 rows"):
        transfer.by_folds(x[:2], np.arange(2), folds=10)
    with pytest.raises(ValueError, match="expected at least one number above 0"):
        transfer.make(strengths=())
