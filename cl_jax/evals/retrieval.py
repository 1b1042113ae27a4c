"""Retrieval between two kinds of features: how far up is the right text of an image, and the right
image of a text?"""

from collections.abc import Sequence

import numpy as np

from cl_jax.evals import Evaluator, Given, Needs

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
) -> Evaluator:
    """Recall at k and median rank, both ways: "retrieval/image_to_text/r1", ...,
    "retrieval/text_to_image/median".

    Args:
      image, text: features of "encode".
      ks: places.
      rows: the first examples of the set that are the gallery; 0 for all. Ranks depend on it.
      source: a name of `Splits.more`; "" is the test part.
      figure: the name of its figures in place of "retrieval", for a second pair of features.

    Raises:
      ValueError: no place, or one below 1.
    """

    if not ks or min(ks) < 1:
        raise ValueError(f"ks={ks!r}; expected places from 1 on, for instance (1, 5, 10).")

    def measure(given: Given) -> dict[str, float]:
        gallery = given.data.more[source] if source else given.data.test
        features = [given.features(gallery, name)[: rows or None] for name in (image, text)]
        found: dict[str, float] = {}
        for way, (a, b) in (
            ("image_to_text", (0, 1)),
            ("text_to_image", (1, 0)),
        ):
            found |= {
                f"{figure}/{way}/{name}": value
                for name, value in figures(ranks(features[a], features[b]), ks).items()
            }
        return found

    ways = ("image_to_text", "text_to_image")
    better = {f"{figure}/{way}/r{k}": 1 for way in ways for k in ks}
    better |= {f"{figure}/{way}/median": -1 for way in ways}
    of = "" if figure == "retrieval" else f"{figure}: "
    said = {way: of + way.replace("_", " ") for way in ways}
    titles = {f"{figure}/{way}/r{ks[0]}": f"{said[way]}, R@{ks[0]} %" for way in ways}
    titles |= {f"{figure}/{way}/median": f"{said[way]}, median rank" for way in ways}
    return Evaluator(
        measure,
        Needs(features=(image, text), sources=(source,) if source else ()),
        better=better,
        titles=titles,
    )
