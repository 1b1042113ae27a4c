"""How far two clusterings of the same examples agree."""

import numpy as np


def normalised_mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """I(a; b) / sqrt(H(a) H(b)) of two assignments [N] of the same examples to clusters, integers
    with any names.

    From 0 (independent, or one of them a single cluster) to 1 (the same up to names). The square
    root is DeepCluster's normalisation; scikit-learn's default is the arithmetic mean of the
    entropies.

    Raises:
      ValueError: other shapes or types.

    Reference: Caron et al. 2018, arXiv 1807.05520, section 4.1.
    """
    a, b = np.asarray(a), np.asarray(b)
    if (
        a.ndim != 1
        or a.shape != b.shape
        or not len(a)
        or a.dtype.kind not in "iu"
        or b.dtype.kind not in "iu"
    ):
        raise ValueError(
            f"the assignments are {a.dtype}{list(a.shape)} and {b.dtype}{list(b.shape)}; expected "
            f"integers "
            "[N] both."
        )
    _, a = np.unique(a, return_inverse=True)
    names, b = np.unique(b, return_inverse=True)
    pairs = (
        a.astype(np.int64) * len(names) + b
    )  # only pairs that occur are counted: the whole table may not fit
    entropies = [_entropy(x) for x in (a, b, pairs)]
    scale = np.sqrt(entropies[0] * entropies[1])
    return float(max(entropies[0] + entropies[1] - entropies[2], 0.0) / scale) if scale > 0 else 0.0


def _entropy(names: np.ndarray) -> float:
    share = np.unique(names, return_counts=True)[1] / len(names)
    return float(-np.sum(share * np.log(share)))
