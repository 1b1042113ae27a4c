"""The weighted k-nearest-neighbour vote of InstDisc, streamed over blocks of the bank on the
device."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cl_jax.core.neighbours import by_blocks, check_search, search
from cl_jax.core.shapes import check, check_count, check_integer, check_positive
from cl_jax.data.source import labels_of
from cl_jax.evals import Evaluator, Given, Needs
from cl_jax.evals._labels import check_classes, check_test_classes

Array = jax.Array | np.ndarray


class Knn(NamedTuple):
    """top1, top5: share of the queries whose label wins, or is among the five first; a class
    without a vote is never among them. NaN without labels.

    votes: [M, C] sums of exp(s / T) per class, or None where they were not asked for. Prediction
    does not depend on their range: a sum that is too large for the type is inf here and is still
    compared rightly. prediction: [M] int32.
    """

    top1: jax.Array
    top5: jax.Array
    votes: jax.Array | None
    prediction: jax.Array


def make(
    *,
    k: int = 200,
    temperature: float = 0.1,
    feature: str = "",
    label: str = "label",
    figure: str = "knn",
) -> Evaluator:
    """The kNN accuracy of the test split against the training split: "knn/top1", "knn/top5", and
    the "knn/k" and "knn/temperature" that were used; "knn/raw_pixels" of images in memory.

    k: neighbours; the size of the training split where that is smaller. temperature: of the vote.
    feature: of "encode"; "" for the run's own. label: a label field; examples without a label are
    left out. figure: the name of its figures, for a second vote beside it.

    Raises:
      ValueError: k below 1, a temperature that is not above 0.
    """
    check_count(k=k)
    check_positive(temperature=temperature)

    def voted(train: np.ndarray, test: np.ndarray, given: Given) -> tuple[Knn, int]:
        known = [labels_of(source, label) for source in given.data[:2]]
        (bank, bank_labels), (queries, truth) = (
            (rows, of) if np.all(of >= 0) else (rows[of >= 0], of[of >= 0])  # no copy of all pixels
            for rows, of in zip((train, test), known)
        )
        used, classes = min(k, len(bank)), given.data.train.sizes[label]
        found = knn(
            bank,
            bank_labels,
            queries,
            truth,
            k=used,
            temperature=temperature,
            num_classes=classes,
            keep_votes=False,
        )
        return found, used

    def measure(given: Given) -> dict[str, float]:
        train, test = (given.features(source, feature) for source in given.data[:2])
        found, used = voted(train, test, given)
        return {
            f"{figure}/top1": float(found.top1),
            f"{figure}/top5": float(found.top5),
            f"{figure}/k": float(used),
            f"{figure}/temperature": temperature,
        }

    def baseline(given: Given) -> dict[str, float]:
        train, test = (source.arrays for source in given.data[:2])
        if train is None or test is None or "image" not in train:
            return {}
        if train["image"].shape[1:] != test["image"].shape[1:]:  # of other sizes
            return {}
        found, _ = voted(raw_pixels(train["image"]), raw_pixels(test["image"]), given)
        return {f"{figure}/raw_pixels": float(found.top1)}

    return Evaluator(
        measure,
        Needs(features=(feature,), labels=(label,), labelled=("train", "test")),
        better={f"{figure}/top1": 1},
        titles={f"{figure}/top1": f"{figure.replace('knn', 'kNN ').strip()} %"},
        baseline=baseline,
        check=lambda data: check_test_classes(data, label),
    )


def knn(
    bank: Array,
    bank_labels: Array,
    features: Array,
    labels: Array | None = None,
    *,
    k: int,
    temperature: float,
    num_classes: int,
    normalise: bool = True,
    keep_votes: bool = True,
    block_size: int = 4096,
    query_size: int = 1024,
) -> Knn:
    """Classifies each query by its k most similar bank rows, each voting for its label.

    vote_c = sum_{j in the k nearest of x, y_j = c} exp(s_j / T),   s_j = x . bank_j

    Of equally similar rows the first in the bank counts as nearer, and of classes with equal votes
    the first wins. A bank row with NaN is nobody's neighbour, and a query with NaN has none: it
    counts as wrong.

    Args:
      bank: [N, D] features of the training set.
      bank_labels: [N] integers.
      features: [M, D] queries.
      labels: [M] integers, or None for the votes alone.
      k: neighbours; 200 in InstDisc, InvaSpread and MoCo's CIFAR demo, 20 in DINO.
      temperature: T; 0.1 on CIFAR, 0.07 on ImageNet.
      num_classes: C.
      normalise: makes s the cosine; False takes the rows as they are. A zero row has similarity 0
        to all.
      keep_votes: False leaves the votes of all queries out, [M, C]: 20 GB for 50,000 queries and
        100,000 classes.
      block_size, query_size: bank rows and queries compared at a time: the largest arrays are
        [query_size, k + block_size] and [query_size, C].

    Returns:
      Knn; at chance level top1 is the share of the most frequent class.

    Raises:
      ValueError: shapes that disagree, k above N, T <= 0, labels outside 0 .. C - 1.

    Reference: Wu et al. 2018, arXiv 1805.01978, section 3.4; the authors' `test.py`; MoCo's
      `knn_predict` and DINO's `knn_classifier` are the same rule.
    """
    sizes = check("m d", check("n d", bank=bank), features=features)
    check_integer("n", sizes, bank_labels=bank_labels)
    check_classes(num_classes, bank_labels=bank_labels)
    if labels is not None:
        check_integer("m", sizes, labels=labels)
        check_classes(num_classes, labels=labels)
    check_positive(temperature=temperature)
    check_count(num_classes=num_classes)
    check_search(sizes["n"], sizes["m"], k, block_size, query_size)
    return _knn(
        bank,
        bank_labels,
        features,
        labels,
        temperature,
        k,
        num_classes,
        normalise,
        keep_votes,
        block_size,
        query_size,
    )


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """The features of the raw-pixel baseline: [N, H, W, C] uint8 -> [N, H * W * C] float32 in [0,
    1], not centred.

    Raises:
      ValueError: images of another type or rank.
    """
    if np.ndim(images) != 4 or images.dtype != np.uint8:
        raise ValueError(
            f"images are {images.dtype}{list(np.shape(images))}; expected uint8 [N, H, W, C]."
        )
    return np.asarray(images).reshape(len(images), -1) / np.float32(255)


@partial(jax.jit, static_argnums=(5, 6, 7, 8, 9, 10))
def _knn(
    bank,
    bank_labels,
    features,
    labels,
    temperature,
    k,
    num_classes,
    normalise,
    keep_votes,
    block_size,
    query_size,
):
    def vote(queries):
        # The barrier keeps the slice below out of the search, where XLA would make a full sort of
        # the top k.
        similarity, nearest = lax.optimization_barrier(
            search(bank, queries, k, normalise, block_size)
        )
        # Relative to the nearest: exp(1 / 0.01) is above what float32 holds.
        found = similarity > -jnp.inf
        relative = jnp.where(found, similarity - similarity[:, :1], 0)
        weight = jnp.where(found, jnp.exp(relative / temperature), 0)
        rows = jnp.arange(queries.shape[0])[:, None]
        votes = (
            jnp.zeros((queries.shape[0], num_classes), weight.dtype)
            .at[rows, bank_labels[nearest]]
            .add(weight)
        )
        largest, first = lax.top_k(votes, min(5, num_classes))
        kept = ()
        if keep_votes:
            scale = jnp.exp(similarity[:, :1] / temperature)
            kept = jnp.where(votes > 0, votes * scale, 0.0)
        return kept, jnp.where(largest > 0, first, -1), first[:, 0]

    votes, first, prediction = by_blocks(vote, features, query_size)
    votes = votes if keep_votes else None
    dtype = jnp.promote_types(jnp.result_type(features), jnp.float32)
    if labels is None:
        unknown = jnp.full((), jnp.nan, dtype)
        return Knn(unknown, unknown, votes, prediction)
    right = (first == labels[:, None]).astype(dtype)
    return Knn(jnp.mean(right[:, 0]), jnp.mean(jnp.max(right, axis=1)), votes, prediction)
