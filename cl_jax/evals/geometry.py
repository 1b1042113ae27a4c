"""How a set of features lies on the sphere: the figures of `losses.geometry` for a whole data set,
by fixed names.

Pairs are two views of an image, drawn as in training. Passed as training passes them, view by view
in batches with their own statistics, they also tell whether batch norm marks a batch, which a
method may learn to recognise its positives by."""

from collections.abc import Container

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.core.numerics import unit, wide
from cl_jax.core.shapes import check, check_count, check_integer
from cl_jax.data.source import Example, Source, labels_of
from cl_jax.evals import Evaluator, Given, Needs
from cl_jax.losses import geometry as measures

Array = jax.Array | np.ndarray
PAIR_ROWS = 1024  # examples that pairs are drawn of


def measure(
    features: Array,
    labels: Array | None = None,
    pairs: tuple[Array, Array] | None = None,
    *,
    max_rows: int = 4096,
    seed: int = 0,
) -> dict[str, float]:
    """Alignment, uniformity, tolerance, effective rank and spread of features.

    All but the effective rank are of the rows scaled to norm 1.

    Args:
      features: [N, D] clean features.
      labels: [N] integers; None leaves the tolerance out.
      pairs: two [M, D], rows the features of two views of one image; None leaves the alignment out.
      max_rows: of more rows that many are drawn, by `seed` and the number of rows alone.
      seed: of the draw.

    Returns:
      {name: value}:
      "geometry/alignment": mean squared distance of a pair; 0 where all coincide, 2 for independent
        directions.
      "geometry/uniformity": log mean exp(-2 d^2) over pairs of rows; 0 collapsed, towards -4 the
        more uniform.
      "geometry/tolerance": mean over all pairs of rows of their cosine, where of one class, else 0;
      "geometry/tolerance_same_class": over the pairs of one class only, which does not depend on
        their number.
      "geometry/effective_rank": exp of the entropy of the singular values; 1 collapsed, at most
        min(N, D).
      "geometry/feature_std": mean over the D of the standard deviation; 0 collapsed, near
        1 / sqrt(D) when isotropic.
      "geometry/relative_std": that times sqrt(D), the same in any dimension; 0 collapsed, 1
        isotropic.

    Raises:
      ValueError: shapes that disagree.

    Reference: Wang and Isola 2020 (alignment, uniformity); Wang and Liu 2021 (tolerance); Roy and
    Vetterli 2007 (effective rank); Chen and He 2021, figure 2 (standard deviation).
    """
    sizes = check("n d", features=features)
    check_count(max_rows=max_rows)
    if sizes["n"] < 2:
        raise ValueError(f"features have {sizes['n']} rows; expected at least 2.")
    rows = _draw(sizes["n"], max_rows, seed)
    # Rows are taken by NumPy: each operation of jax outside a program is compiled alone.
    if labels is not None:
        check_integer("n", sizes, labels=labels)
        labels = np.asarray(labels)[rows]
    values = {name: float(x) for name, x in _of_rows(np.asarray(features)[rows], labels).items()}
    if pairs is not None:
        drawn = _draw(check("m d", x=pairs[0], y=pairs[1])["m"], max_rows, seed)
        values["geometry/alignment"] = float(_alignment(*(np.asarray(x)[drawn] for x in pairs)))
    values["geometry/relative_std"] = values["geometry/feature_std"] * sizes["d"] ** 0.5
    return dict(sorted(values.items()))


def make(
    *, feature: str = "", label: str = "label", rows: int = 2048, figure: str = ""
) -> Evaluator:
    """The geometry of test features, "geometry/...": see `measure`, and of two views of test
    examples, "pairs/...": see `of_pairs`. Before the first step with the statistics of batches,
    since the running ones are not of any data yet. Empty where the test part is one example.

    rows: test examples, drawn by the run's seed, that the geometry is measured on. label: for the
    tolerance, where the data have it. figure: follows "geometry" and "pairs" in the names, for a
    second feature beside the first: "@0.2" gives "geometry@0.2/...".

    Raises:
      ValueError: fewer than two rows.
    """
    check_count(rows=rows)
    if rows < 2:
        raise ValueError(f"rows={rows}; expected at least 2: the figures are of pairs of rows.")

    def pairs(given: Given) -> tuple[np.ndarray, np.ndarray] | None:
        source = pair_source(given.data.test, given.batch_size, given.seed)
        if source is None:
            return None
        found = [given.views(source, feature, train) for train in (False, True)]
        if found[0] is None or found[1] is None:
            return None
        clean, trained = (x.reshape(2, len(x) // 2, -1) for x in found)
        return clean, trained

    def of_state(given: Given) -> dict[str, float]:
        if given.data.test.size < 2:
            return {}
        drawn = pairs(given)
        if not given.trained:
            if drawn is None:
                return {}
            return measure(drawn[1][0]) | of_pairs(drawn[1], drawn[1], given.batch_size)
        test = given.data.test
        chosen = _draw(test.size, rows, given.seed)
        truth = None
        if label in test.sizes:
            truth = labels_of(test, label)[chosen]
            truth = None if (truth < 0).any() else truth
        of_rows = given.features(test, feature)[chosen]
        if drawn is None:
            return measure(of_rows, truth)
        return measure(of_rows, truth, (drawn[0][0], drawn[0][1])) | of_pairs(
            *drawn, given.batch_size
        )

    def named(given: Given) -> dict[str, float]:
        return {
            name.replace("/", f"{figure}/", 1): value for name, value in of_state(given).items()
        }

    return Evaluator(
        named,
        Needs(features=(feature,), views=True),
        figures=(f"geometry{figure}/effective_rank",),
    )


def pair_count(source: Source, batch_size: int) -> int:
    """How many examples `pair_source` draws; 0 where the source is too small."""
    count = min(max(PAIR_ROWS, 2 * batch_size), source.size) // batch_size * batch_size
    return count if count >= 2 * batch_size else 0


def pair_source(source: Source, batch_size: int, seed: int) -> Source | None:
    """Examples of a source, drawn by the seed, then the second pictures ("<field>_b") of the same
    things, or the same examples again: 2n examples, n in whole batches, two at least. None where
    the source is smaller than that."""
    count = pair_count(source, batch_size)
    if not count:
        return None
    ids = _draw(source.size, count, seed)
    fields = [name for name in source.read(0) if not name.endswith("_b")]

    def second(field: str, there: Container[str]) -> str:
        return f"{field}_b" if f"{field}_b" in there else field

    def read(i: int) -> Example:
        example = source.read(int(ids[i % count]))
        return {f: example[f if i < count else second(f, example)] for f in fields}

    arrays = None
    if source.arrays is not None:
        there = source.arrays
        arrays = {f: np.concatenate([there[f][ids], there[second(f, there)][ids]]) for f in fields}
    return Source(f"pairs of {source.name}", 2 * count, read, {}, arrays)


def of_pairs(clean: np.ndarray, trained: np.ndarray, batch_size: int) -> dict[str, float]:
    """What two views of the same examples say.

    Args:
      clean: [2, N, D] features of both views with the running statistics.
      trained: [2, N, D] the same with the statistics of each batch of `batch_size` consecutive
        rows.

    Returns:
      "pairs/top1": share of first views whose nearest second view is of the same example, running
        statistics.
      "pairs/same_batch": how surely the nearest second view of *another* example is of the same
        batch: 0 as often as chance has it, 1 always. Images have no part in this; above 0, batch
        statistics mark the batch.
      "pairs/rows": N, which the share depends on.
    """
    near = np.asarray(_nearest(clean, False))
    other = np.asarray(_nearest(trained, True))
    rows, batches = np.arange(len(near)), len(near) // batch_size
    chance = (batch_size - 1) / (batches * batch_size - 1)
    same = float(np.mean(other // batch_size == rows // batch_size))
    return {
        "pairs/top1": float(np.mean(near == rows)),
        "pairs/same_batch": (same - chance) / (1 - chance),
        "pairs/rows": float(len(near)),
    }


def _draw(count: int, max_rows: int, seed: int) -> np.ndarray:
    if count <= max_rows:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, max_rows, replace=False))


@jax.jit
def _of_rows(features, labels):
    x = unit(features)
    values = {
        "geometry/uniformity": measures.uniformity(x, block_size=1024),
        "geometry/effective_rank": measures.effective_rank(wide(features)),
        "geometry/feature_std": jnp.mean(jnp.std(x, axis=0)),
    }
    if labels is not None:
        tolerance = measures.tolerance(x, labels)
        values["geometry/tolerance"] = tolerance.all_pairs
        values["geometry/tolerance_same_class"] = tolerance.same_class
    return values


@jax.jit
def _nearest(pairs, others_only):
    """[N] the most similar second view of each first one."""
    cosine = unit(pairs[0]) @ unit(pairs[1]).T
    return jnp.argmax(
        jnp.where(jnp.eye(len(cosine), dtype=bool) & others_only, -2.0, cosine), axis=1
    )


@jax.jit
def _alignment(x, y):
    return measures.alignment(unit(x), unit(y))
