"""How good generated images are: the Fréchet distance, the Inception Score, and whether each shows
the class it was asked for. NumPy arrays in, numbers out; whatever the features are is the caller's.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment


class Gaussian(NamedTuple):
    """Mean [D] and covariance [D, D] of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray


def gaussian(features: np.ndarray) -> Gaussian:
    """The Gaussian of features [N, D]; the covariance divides by N - 1.

    Raises:
      ValueError: another rank, fewer than two rows, or values that are not finite.
    """
    rows = np.asarray(features, np.float64)
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(f"features have shape {rows.shape}; expected [N, D] with N at least 2.")
    if not np.isfinite(rows).all():
        raise ValueError("features are not finite; expected numbers. Did the generator diverge?")
    mean = rows.mean(0)
    centred = rows - mean[None]
    return Gaussian(mean, centred.T @ centred / (len(rows) - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Fréchet (2-Wasserstein) distance of two Gaussians.

    |mean_a - mean_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2)), the last from the eigenvalues
    of C_a^(1/2) C_b C_a^(1/2), so that singular covariances are no exception. Its estimate from N
    examples is too large by an amount that falls with N: compare figures of equal N.

    Raises:
      ValueError: Gaussians of different dimension.

    Reference: Heusel et al., GANs trained by a two time-scale update rule, NeurIPS 2017, equation
      6.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features of {len(a.mean)} and of {len(b.mean)} dimensions; expected as many."
        )
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))[None]) @ vectors.T
    crossed = np.linalg.eigvalsh(root @ b.covariance @ root)
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    shift = ((a.mean - b.mean) ** 2).sum()
    return float(max(shift + traces - 2 * np.sqrt(np.maximum(crossed, 0)).sum(), 0))


def inception_score(probabilities: np.ndarray, splits: int = 1) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))): 1 where the classifier learns nothing from a sample, at most
    the number of classes.

    Args:
      probabilities: [N, C], a classifier's p(y|x) of generated examples; rows sum to 1.
      splits: parts of equal length; p(y) is the mean over a part.

    Returns:
      (mean, standard deviation) over parts.

    Raises:
      ValueError: rows that are no distributions, or fewer of them than parts.

    Reference: Salimans et al., Improved techniques for training GANs, NeurIPS 2016.
    """
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or not 1 <= splits <= len(p):
        raise ValueError(
            f"probabilities have shape {p.shape} and splits={splits}; expected [N, C] and at most "
            "N parts."
        )
    if p.min() < 0 or not np.allclose(p.sum(1), 1, atol=1e-3):
        raise ValueError("rows of probabilities do not sum to 1; expected softmax outputs.")
    scores = []
    for part in np.array_split(p, splits):
        marginal = part.mean(0, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(part > 0, part * (np.log(part) - np.log(marginal)), 0)
        scores.append(np.exp(terms.sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def label_accuracy(asked: np.ndarray, seen: np.ndarray, num_classes: int) -> tuple[float, float]:
    """How often a generated example shows the class it was asked for.

    Args:
      asked: [N] classes given to the generator. seen: [N] what a classifier says they show.

    Returns:
      (accuracy, accuracy under the best renaming of classes). A generator that learned all classes
      and mixed up their names has a low first and a high second figure, and a Fréchet distance that
      shows nothing of it.

    Raises:
      ValueError: classes outside 0 to num_classes - 1, or arrays of different length.
    """
    asked, seen = np.asarray(asked), np.asarray(seen)
    if asked.shape != seen.shape or asked.ndim != 1 or not len(asked):
        raise ValueError(f"classes asked {asked.shape} and seen {seen.shape}; expected [N] each.")
    for name, values in (("asked", asked), ("seen", seen)):
        if values.min() < 0 or values.max() >= num_classes:
            raise ValueError(
                f"classes {name} go from {values.min()} to {values.max()}; expected 0 to "
                f"{num_classes - 1}."
            )
    table = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(table, (asked, seen), 1)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(np.trace(table) / len(asked)), float(table[rows, columns].sum() / len(asked))
