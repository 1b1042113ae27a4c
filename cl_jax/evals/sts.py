"""Semantic textual similarity: does the cosine of two sentences order pairs as people do?"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import sparse, stats

from cl_jax.core import logs
from cl_jax.core.tokens import SPECIAL
from cl_jax.data.source import Source, Splits, renamed
from cl_jax.evals import Evaluator, Given, Needs

AGGREGATIONS = ("all", "mean", "wmean")
KINDS = ("sts", "sts_dev")  # as `data.text_tasks` names sources of scored pairs, before a slash
_MOST = 100_000  # sentences whose words are counted to weigh them


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N] cosine of each row of a [N, D] with that of b; norms below 1e-8 count as 1e-8."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = [np.maximum(np.linalg.norm(x, axis=1), 1e-8) for x in (a, b)]
    return np.sum(a * b, axis=1) / (norms[0] * norms[1])


def spearman(scores: np.ndarray, gold: np.ndarray) -> float:
    """Rank correlation of two vectors [N], ties with their mean rank; 0 where one is constant.

    Raises:
      ValueError: fewer than two pairs, or lengths that differ.
    """
    scores, gold = np.asarray(scores, np.float64), np.asarray(gold, np.float64)
    if scores.shape != gold.shape or scores.ndim != 1 or len(scores) < 2:
        raise ValueError(
            f"scores have shape {scores.shape}, gold {gold.shape}; expected one vector each, of "
            "the same length, at least 2."
        )
    if np.ptp(scores) == 0 or np.ptp(gold) == 0:
        return 0.0
    return float(stats.spearmanr(scores, gold).statistic)


def aggregate(parts: Sequence[tuple[np.ndarray, np.ndarray]], aggregation: str = "all") -> float:
    """One figure of several sets of (scores, gold).

    "all" is one correlation over all of them, as SimCSE reports; "mean" the mean of theirs, "wmean"
    weighted by their sizes. Figures of the three differ by up to 5 points and must not be compared.

    Raises:
      ValueError: an unknown aggregation.
    """
    if aggregation not in AGGREGATIONS:
        raise ValueError(
            f"aggregation is {aggregation!r}; expected one of {', '.join(AGGREGATIONS)}."
        )
    if aggregation == "all":
        return spearman(*(np.concatenate(each) for each in zip(*parts)))
    weights = [len(gold) if aggregation == "wmean" else 1 for _, gold in parts]
    return float(np.average([spearman(*part) for part in parts], weights=weights))


def on_the_sphere(a: np.ndarray, b: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """(alignment of the pairs marked `positive` [N], uniformity of all sentences) of unit rows: the
    two axes of the paper's figure 2. Both are lower where better. Wang and Isola 2020, arXiv
    2005.10242; uniformity over distinct pairs of at most 4,096 sentences."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-8) for x in (a, b)]
    apart = np.sum((unit[0] - unit[1]) ** 2, axis=1)
    rows = np.unique(np.concatenate(unit)[:4096].astype(np.float64), axis=0)
    square = np.maximum(2 - 2 * rows @ rows.T, 0)[np.triu_indices(len(rows), 1)]
    spread = np.log(np.mean(np.exp(-2 * square))) if len(rows) > 1 else 0.0
    return float(apart[positive].mean()) if positive.any() else 0.0, float(spread)


def counts(tokens: np.ndarray, size: int) -> sparse.csr_matrix:
    """[N, size] how often each sentence of tokens [N, T] has each token; reserved ones count 0."""
    rows, places = np.nonzero(tokens >= SPECIAL)
    found = np.ones(len(rows)), (rows, tokens[rows, places].astype(np.int64))
    return sparse.csr_matrix(found, shape=(len(tokens), size))


def rareness(tokens: np.ndarray, size: int) -> np.ndarray:
    """[size] log((1 + N) / (1 + n)) + 1 of each token, n of the N sentences [N, T] having it (the
    inverse document frequency of scikit-learn)."""
    having = (counts(tokens, size) > 0).sum(axis=0)
    return np.log((1 + len(tokens)) / (1 + np.asarray(having)[0])) + 1


def shared_words(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[N] cosine of the counts of tokens in a [N, T] and b [N, T], each count times the weight of
    its token [size]: what two sentences share without a network."""
    return _shared(counts(a, len(weights)), counts(b, len(weights)), weights)


def _shared(x: sparse.csr_matrix, y: sparse.csr_matrix, weights: np.ndarray) -> np.ndarray:
    """`shared_words` of the counts [N, size] of both sides."""
    x, y = (one.multiply(weights).tocsr() for one in (x, y))
    norms = [np.sqrt(np.asarray(one.multiply(one).sum(axis=1))[:, 0]) for one in (x, y)]
    return np.asarray(x.multiply(y).sum(axis=1))[:, 0] / np.maximum(norms[0] * norms[1], 1e-8)


def make(
    *,
    sources: Sequence[str] = (),
    feature: str = "",
    field: str = "tokens",
    aligned: float = 0.8,
) -> Evaluator:
    """Spearman of cosine and gold score: "<source>/spearman" of each source, and their mean as
    "sts/spearman"; "sts_dev/spearman" is the mean over those named "sts_dev/...", to choose
    settings by. No regressor, no training data (SentEval's protocol, aggregation "all").

    Beside it, once, what the words alone are worth: "<source>/shared_words" and its means, the
    Spearman of the cosine of two sentences' counts of tokens, and "shared_words_idf", counts
    weighted by how rare a token is in the training sentences.

    Args:
      sources: names of `Splits.more` with fields `field`, `<field>_b` and "score"; () for those
        named "sts" or "sts_dev", alone or with a slash after it.
      feature: of "encode"; "" is the run's own.
      aligned: pairs with a score above this share of the highest are positives of
        "<source>/alignment"; "<source>/uniformity" is of all sentences.

    At the end of a run `WORKDIR/alignment_uniformity.png` shows the two over training, means over
    sources (figure 2 of SimCSE's paper); lower is better.
    """
    other: dict[str, Source] = {}

    def names(data: Splits) -> Sequence[str]:
        return sources or [name for name in data.more if name.split("/")[0] in KINDS]

    def check(data: Splits) -> None:
        for name in names(data):
            pairs = data.more[name]
            missing = {field, f"{field}_b", "score"} - set(pairs.arrays or ())
            if missing or pairs.size < 2:
                raise ValueError(
                    f"the source {name!r} has {pairs.size} examples of "
                    f"{', '.join(sorted(pairs.arrays or ())) or 'nothing in memory'}; expected two "
                    f"or more of {field}, {field}_b and score."
                )

    def measure(given: Given) -> dict[str, float]:
        found: dict[str, float] = {}
        for name in names(given.data):
            pairs = given.data.more[name]
            if name not in other:
                other[name] = renamed(pairs, {field: f"{field}_a", f"{field}_b": field})
            a, b = (given.features(source, feature) for source in (pairs, other[name]))
            gold = np.asarray(pairs.arrays["score"])
            found[f"{name}/spearman"] = spearman(cosines(a, b), gold)
            positive = gold > aligned * gold.max()
            found[f"{name}/alignment"], found[f"{name}/uniformity"] = on_the_sphere(a, b, positive)
        return found | means(found, "spearman")

    def words(given: Given) -> dict[str, float]:
        train, found = given.data.train, dict[str, float]()
        if train.arrays is None or field not in train.arrays or field not in train.sizes:
            return found
        size, sentences = train.sizes[field], np.asarray(train.arrays[field])
        sentences = sentences.reshape(-1, sentences.shape[-1])
        rare = rareness(sentences[:: -(-len(sentences) // _MOST)], size)
        for name in names(given.data):
            arrays = given.data.more[name].arrays
            gold = np.asarray(arrays["score"])
            a, b = (counts(np.asarray(arrays[key]), size) for key in (field, f"{field}_b"))
            for figure, weights in (("words", np.ones(size)), ("words_idf", rare)):
                found[f"{name}/shared_{figure}"] = spearman(_shared(a, b, weights), gold)
        return found | means(found, "shared_words") | means(found, "shared_words_idf")

    def draw(given: Given) -> None:
        steps, points = over_training(given.workdir)
        if steps:
            from cl_jax.evals import pictures  # matplotlib: only where something is drawn

            pictures.trajectory(
                given.workdir / "alignment_uniformity.png",
                [uniformity for _, uniformity in points],
                [alignment for alignment, _ in points],
                steps,
                xlabel="uniformity",
                ylabel="alignment",
                title="Alignment and uniformity over training",
            )

    kinds = dict.fromkeys(kind_of(name) for name in sources or KINDS)
    return Evaluator(
        measure,
        Needs(features=(feature,), sources=tuple(sources), kinds=() if sources else KINDS),
        better={f"{kind}/spearman": 1 for kind in kinds},
        titles={
            "sts/spearman": "STS, Spearman of cosine and gold score %",
            "sts_dev/spearman": "STS, dev pairs %",
        },
        baseline=words,
        draw=draw,
        check=check,
    )


def kind_of(source: str) -> str:
    """The mean that a source counts in."""
    return "sts_dev" if source.split("/")[0] == "sts_dev" else "sts"


def means(found: Mapping[str, float], figure: str) -> dict[str, float]:
    """{"sts/<figure>", "sts_dev/<figure>": mean of "<source>/<figure>"}, each over its sources;
    those of another name count as "sts"."""
    of: dict[str, list[float]] = {}
    for name, value in found.items():
        source, _, last = name.rpartition("/")
        if last == figure:
            of.setdefault(kind_of(source), []).append(value)
    return {f"{kind}/{figure}": float(np.mean(values)) for kind, values in of.items()}


def over_training(workdir: Path) -> tuple[list[int], list[tuple[float, float]]]:
    """(steps, (alignment, uniformity)) of a run's log, means over the sources named "sts"; the
    untrained network first where it was measured."""
    rows, _ = logs.rows(workdir / "metrics.jsonl")
    found: dict[int, tuple[float, float]] = {}
    for row in rows:
        both = [
            [
                value
                for name, value in row.items()
                if name.removeprefix("untrained/").split("/")[0] == "sts" and name.endswith(figure)
            ]
            for figure in ("/alignment", "/uniformity")
        ]
        if all(both):
            alignment, uniformity = (float(np.mean(values)) for values in both)
            found[int(row["step"])] = alignment, uniformity
    steps = sorted(found)
    return steps, [found[step] for step in steps]
