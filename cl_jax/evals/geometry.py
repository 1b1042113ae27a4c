"""How a set of features lies on the sphere: the figures of `losses.geometry` for a whole data set, by fixed names."""

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax import evals
from cl_jax.losses import geometry as measures
from cl_jax.losses._float import unit, wide
from cl_jax.shapes import check, check_count, check_integer

Array = jax.Array | np.ndarray


def measure(features: Array, labels: Array | None = None, pairs: tuple[Array, Array] | None = None, *,
            max_rows: int = 4096, seed: int = 0) -> dict[str, float]:
    """Alignment, uniformity, tolerance, effective rank and spread of features.

    All but the effective rank are of the rows scaled to norm 1.

    Args:
      features: [N, D] clean features.
      labels: [N] integers; None leaves the tolerance out.
      pairs: two [M, D], rows the features of two views of one image; None leaves the alignment out.
      max_rows: of more rows that many are drawn, by `seed` and the number of rows alone.
      seed: of the draw.

    Returns:
      {name: value}, names as in `cl_jax.evals`:
      "geometry/alignment": mean squared distance of a pair; 0 where all coincide, 2 for independent directions.
      "geometry/uniformity": log mean exp(-2 d^2) over pairs of rows; 0 collapsed, towards -4 the more uniform.
      "geometry/tolerance": mean over all pairs of rows of their cosine, where of one class, else 0;
      "geometry/tolerance_same_class": over the pairs of one class only, which does not depend on their number.
      "geometry/effective_rank": exp of the entropy of the singular values; 1 collapsed, at most min(N, D).
      "geometry/feature_std": mean over the D of the standard deviation; 0 collapsed, near 1 / sqrt(D) when isotropic.

    Raises:
      ValueError: shapes that disagree.

    Reference: Wang and Isola 2020 (alignment, uniformity); Wang and Liu 2021 (tolerance); Roy and Vetterli 2007
    (effective rank); Chen and He 2021, figure 2 (standard deviation).
    """
    sizes = check("n d", features=features)
    check_count(max_rows=max_rows)
    if sizes["n"] < 2:
        raise ValueError(f"features have {sizes['n']} rows; expected at least 2.")
    rows = _draw(sizes["n"], max_rows, seed)
    if labels is not None:
        check_integer("n", sizes, labels=labels)
        labels = jnp.asarray(labels)[rows]
    values = _of_rows(jnp.asarray(features)[rows], labels)
    if pairs is not None:
        drawn = _draw(check("m d", x=pairs[0], y=pairs[1])["m"], max_rows, seed)
        values[evals.GEOMETRY_ALIGNMENT] = _alignment(*(jnp.asarray(x)[drawn] for x in pairs))
    return {name: float(value) for name, value in sorted(values.items())}


def _draw(count: int, max_rows: int, seed: int) -> np.ndarray:
    if count <= max_rows:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, max_rows, replace=False))


@jax.jit
def _of_rows(features, labels):
    x = unit(features)
    values = {evals.GEOMETRY_UNIFORMITY: measures.uniformity(x, block_size=1024),
              evals.GEOMETRY_EFFECTIVE_RANK: measures.effective_rank(wide(features)),
              evals.GEOMETRY_FEATURE_STD: jnp.mean(jnp.std(x, axis=0))}
    if labels is not None:
        tolerance = measures.tolerance(x, labels)
        values[evals.GEOMETRY_TOLERANCE] = tolerance.all_pairs
        values[evals.GEOMETRY_TOLERANCE_SAME_CLASS] = tolerance.same_class
    return values


@jax.jit
def _alignment(x, y):
    return measures.alignment(unit(x), unit(y))
