"""Re-identification: for each query, how far up are the other pictures of the same thing?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cl_jax.core.shapes import check_count
from cl_jax.data.source import Splits, labels_of
from cl_jax.evals import Evaluator, Given, Needs
from cl_jax.evals._labels import at_hand

_BLOCK = 1024  # queries whose similarities are in memory at a time


class Ranking(NamedTuple):
    """map: mean average precision over the queries. cmc: [K] share of the queries with a right row
    among the first k, k from 1 to K: the cumulative match characteristic. queries: how many had a
    right row at all; both figures are of these."""

    map: float
    cmc: np.ndarray
    queries: int


def make(
    *,
    query: str = "",
    gallery: str = "",
    label: str = "label",
    camera: str = "",
    feature: str = "",
    ks: Sequence[int] = (1, 5, 10),
    when: str = "always",
) -> Evaluator:
    """ "reidentification/map" and the points of the CMC curve "reidentification/cmc1", "cmc5",
    "cmc10", by cosine. Of features that are NaN or inf all are NaN.

    query, gallery: names in `Splits.more`; "" is the test part. Where both are the same source,
      each query is left out of its own gallery.
    label: who is seen. Queries without one (-1) are left out; such rows of the gallery are wrong
      for every query.
    camera: a label field; rows of a query's own label and camera are left out of its gallery, the
      Market-1501 protocol. "": none are.
    feature: of "encode"; "" for the run's own. ks: points of the curve. when: see `Evaluator`.

    Raises:
      ValueError: no place of the curve, or one below 1.
    """
    if not ks:
        raise ValueError("ks is empty; expected points of the CMC curve, for instance (1, 5, 10).")
    for k in ks:
        check_count(k=k)
    names = ["reidentification/map", *(f"reidentification/cmc{k}" for k in ks)]

    def check(data: Splits) -> None:
        for name in (query, gallery):
            for field in filter(None, (label, camera)):
                at_hand(data.more[name] if name else data.test, field)

    def measure(given: Given) -> dict[str, float]:
        asked, kept = (
            given.data.more[name] if name else given.data.test for name in (query, gallery)
        )
        q, g = given.features(asked, feature), given.features(kept, feature)
        if not (np.isfinite(q).all() and np.isfinite(g).all()):
            return dict.fromkeys(names, float("nan"))
        found = ranking(
            q,
            labels_of(asked, label),
            g,
            labels_of(kept, label),
            cameras=(labels_of(asked, camera), labels_of(kept, camera)) if camera else None,
            same=asked is kept,
            length=max(ks),
        )
        return dict(zip(names, [found.map, *(float(found.cmc[k - 1]) for k in ks)]))

    return Evaluator(
        measure,
        Needs(
            features=(feature,),
            labels=() if query else (label, *((camera,) if camera else ())),
            labelled=() if query else ("test",),
            sources=tuple(dict.fromkeys(name for name in (query, gallery) if name)),
        ),
        when=when,
        better=dict.fromkeys(names, 1),
        titles={
            names[0]: "re-identification, mAP %",
            names[1]: f"re-identification, top-{ks[0]} %",
        },
        check=check,
    )


def ranking(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    *,
    cameras: tuple[np.ndarray, np.ndarray] | None = None,
    same: bool = False,
    length: int = 10,
) -> Ranking:
    """Average precision and match curve of a gallery ordered by cosine.

    The average precision of a query is the mean, over its right rows, of the share of right rows
    down to that one. Wrong rows that are as similar as a right one count as before it, so that a
    network that maps everything to one point is not rewarded.

    Args:
      queries: [Q, D]. gallery: [G, D].
      query_labels, gallery_labels: [Q], [G] integers; a negative one is nobody.
      cameras: ([Q], [G]) integers: rows of the query's label and camera are left out.
      same: queries are the gallery, and row i is left out for query i.
      length: K, of the curve.

    Returns:
      Ranking, NaN where no query has a right row. The curve of fewer rows than K stays at its end.

    Raises:
      ValueError: shapes that disagree, `same` with arrays of different length.

    Reference: Zheng et al. 2015, "Scalable person re-identification: a benchmark", section 5.
    """
    check_count(length=length)
    if (
        queries.ndim != 2
        or gallery.ndim != 2
        or queries.shape[1] != gallery.shape[1]
        or query_labels.shape != queries.shape[:1]
        or gallery_labels.shape != gallery.shape[:1]
        or (same and len(queries) != len(gallery))
    ):
        raise ValueError(
            f"queries have shape {queries.shape} with {query_labels.shape} labels, gallery "
            f"{gallery.shape} with {gallery_labels.shape}; expected [Q, D], [Q], [G, D], [G]"
            + (" with Q = G, the same examples." if same else ".")
        )
    q, g = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        for x in (np.asarray(queries, np.float32), np.asarray(gallery, np.float32))
    )
    precision, first = [], []
    for at in range(0, len(q), _BLOCK):
        similarity = q[at : at + _BLOCK] @ g.T
        for i, row in enumerate(similarity, at):
            if query_labels[i] < 0:
                continue
            right = gallery_labels == query_labels[i]
            kept = np.ones(len(g), bool)
            if same:
                kept[i] = False
            if cameras is not None:
                kept &= ~(right & (cameras[1] == cameras[0][i]))
            right, row = right[kept], row[kept]
            if not right.any():
                continue
            places = np.flatnonzero(right[np.lexsort((right, -row))])
            precision.append(np.mean(np.arange(1, len(places) + 1) / (places + 1)))
            first.append(places[0])
    if not precision:
        return Ranking(float("nan"), np.full(length, np.nan), 0)
    curve = np.mean(np.array(first)[:, None] <= np.arange(length)[None, :], axis=0)
    return Ranking(float(np.mean(precision)), curve, len(precision))
