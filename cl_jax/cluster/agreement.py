"""How far two clusterings of the same examples agree."""

import numpy as np


def normalised_mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """I(a; b) / sqrt(H(a) H(b)) of two assignments [N] of the same examples to clusters, integers
    with any names: 0 where they are independent, 1 where they are the same up to names.

    scikit-learn's, with the square root of DeepCluster in place of the arithmetic mean of the
    entropies (Caron et al. 2018, arXiv 1807.05520, section 4.1).
    """
    from sklearn.metrics import normalized_mutual_info_score  # half a second that only this needs

    return float(normalized_mutual_info_score(a, b, average_method="geometric"))
