"""Retrieval between two kinds of features: how far up is the right text of an image, and the right
image of a text?"""

from collections.abc import Sequence

import numpy as np

from cl_jax.data.source import Splits, labels_of
from cl_jax.evals import Evaluator, Given, Needs
from cl_jax.evals._labels import at_hand
from cl_jax.evals.reidentification import ranking

_BLOCK = 2048  # queries whose similarities are in memory at a time


def ranks(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """[N] place, from 1, of row i of the gallery among all its rows for query i, by cosine.

    Rows as similar as the right one count as before it, so that a network that maps everything to
    one point is last and not first; so is a query or a right row with NaN. Other programs break
    ties by the order of the rows.

    Args:
      queries, gallery: [N, D].

    Raises:
      ValueError: shapes that differ.
    """
    if queries.shape != gallery.shape or queries.ndim != 2:
        raise ValueError(
            f"queries have shape {queries.shape}, gallery {gallery.shape}; expected both [N, D]."
        )
    q, g = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        for x in (np.asarray(queries, np.float32), np.asarray(gallery, np.float32))
    )
    found = []
    for at in range(0, len(q), _BLOCK):
        similarity = q[at : at + _BLOCK] @ g.T
        rows = np.arange(len(similarity))
        right = similarity[rows, at + rows]
        found.append((~(similarity < right[:, None])).sum(axis=1))
    return np.concatenate(found)


def figures(places: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """{"r1", "r5", ..., "median"} of places [N]: the share of queries whose right row is among the
    first k, and the median place."""
    return {f"r{k}": float(np.mean(places <= k)) for k in ks} | {
        "median": float(np.floor(np.median(places)))
    }


def make(
    *,
    image: str = "image_z",
    text: str = "text_z",
    ks: Sequence[int] = (1, 5, 10),
    rows: int = 1000,
    source: str = "",
    figure: str = "retrieval",
    label: str = "",
) -> Evaluator:
    """Recall at k and median rank, both ways: "retrieval/image_to_text/r1", ...,
    "retrieval/text_to_image/median"; "retrieval/rows" is the size of the gallery, which they
    depend on.

    Args:
      image, text: features of "encode".
      ks: places.
      rows: the first examples of the set that are the gallery, where there are as many; 0 for all.
      source: a name of `Splits.more`; "" is the test part.
      figure: the name of its figures in place of "retrieval", for a second pair of features.
      label: of what the pairs mean. Then "retrieval/text_to_image/label_r1" and "label_map" too,
        and the other way: the share of queries whose first row has their label, and the mean
        average precision where all rows of their label are right. "": neither.

    Raises:
      ValueError: no place, or one below 1.
    """

    if not ks or min(ks) < 1:
        raise ValueError(f"ks={ks!r}; expected places from 1 on, for instance (1, 5, 10).")

    def check(data: Splits) -> None:
        if label and source:
            at_hand(data.more[source], label)

    def measure(given: Given) -> dict[str, float]:
        gallery = given.data.more[source] if source else given.data.test
        features = [given.features(gallery, name)[: rows or None] for name in (image, text)]
        found = {f"{figure}/rows": float(len(features[0]))}
        for way, (a, b) in (
            ("image_to_text", (0, 1)),
            ("text_to_image", (1, 0)),
        ):
            found |= {
                f"{figure}/{way}/{name}": value
                for name, value in figures(ranks(features[a], features[b]), ks).items()
            }
            if label:
                meant = labels_of(gallery, label)[: rows or None]
                near = ranking(features[a], meant, features[b], meant, length=1)
                found |= {
                    f"{figure}/{way}/label_r1": float(near.cmc[0]),
                    f"{figure}/{way}/label_map": near.map,
                }
        return found

    ways = ("image_to_text", "text_to_image")
    better = {f"{figure}/{way}/r{k}": 1 for way in ways for k in ks}
    better |= {f"{figure}/{way}/median": -1 for way in ways}
    shares = {"label_r1": f"first row of its {label}", "label_map": f"mAP of {label}"}
    shares = shares if label else {}
    better |= {f"{figure}/{way}/{name}": 1 for way in ways for name in shares}
    of = "" if figure == "retrieval" else f"{figure}: "
    said = {way: of + way.replace("_", " ") for way in ways}
    titles = {f"{figure}/{way}/r{ks[0]}": f"{said[way]}, R@{ks[0]} %" for way in ways}
    titles |= {f"{figure}/{way}/median": f"{said[way]}, median rank" for way in ways}
    titles |= {
        f"{figure}/{way}/{name}": f"{said[way]}, {words} %"
        for way in ways
        for name, words in shares.items()
    }
    return Evaluator(
        measure,
        Needs(
            features=(image, text),
            sources=(source,) if source else (),
            labels=(label,) if label and not source else (),
        ),
        better=better,
        titles=titles,
        check=check,
    )
