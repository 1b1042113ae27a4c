"""Places in the plane for rows of features, by kept libraries."""

import importlib.util
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np

# t-SNE and UMAP take seconds for a thousand rows. Beyond this many, drawn by the seed, the others
# are placed by their neighbours among these.
PLACED_ROWS = 3000
PERPLEXITY = 30
UMAP = importlib.util.find_spec("umap") is not None


def layouts(x: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """{"PCA", "t-SNE", and "UMAP" where umap-learn is installed: [N, 2]} of rows [N, D], which are
    made unit first; of equal rows one place by "PCA" alone."""
    from sklearn.decomposition import PCA

    rows = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    flat = np.zeros((len(rows), 2), np.float32)
    if np.ptp(rows, axis=0).max() < 1e-6:  # a collapsed network has one place
        return {"PCA": flat}
    width = min(50, *rows.shape)
    reduced = PCA(width, random_state=seed).fit_transform(rows)
    flat[:, : min(2, width)] = reduced[:, :2]
    chosen = np.arange(len(rows))
    if len(rows) > PLACED_ROWS:
        drawn = np.random.default_rng(seed).choice(len(rows), PLACED_ROWS, replace=False)
        chosen = np.sort(drawn)
    with ThreadPoolExecutor(2) as pool:  # either leaves the interpreter to others most of its time
        jobs = {"t-SNE": pool.submit(_tsne, reduced[chosen], seed)}
        if UMAP:
            jobs["UMAP"] = pool.submit(_umap, rows[chosen], seed)
    others = {name: _with_others(job.result(), chosen, reduced) for name, job in jobs.items()}
    found = {"PCA": flat} | others
    return {name: np.asarray(places, np.float32) for name, places in found.items()}


def _with_others(placed: np.ndarray, chosen: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Places of all rows: those of `chosen` as they are, any other at the mean of its three nearest
    of these."""
    from sklearn.neighbors import NearestNeighbors

    if len(chosen) == len(x):
        return placed
    near = NearestNeighbors(n_neighbors=3).fit(x[chosen]).kneighbors(x, return_distance=False)
    places = placed[near].mean(1)
    places[chosen] = placed
    return places


def _umap(x: np.ndarray, seed: int) -> np.ndarray:
    if len(x) < 4:  # its start needs three eigenvectors
        return np.zeros((len(x), 2), np.float32)
    with warnings.catch_warnings(action="ignore"):  # of parts of it that need TensorFlow
        import umap

        near = min(15, len(x) - 1)
        return umap.UMAP(n_neighbors=near, random_state=seed, n_jobs=1).fit_transform(x)


def _tsne(x: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    if len(x) < 4:
        return np.zeros((len(x), 2), np.float32)
    fit = TSNE(
        perplexity=min(PERPLEXITY, (len(x) - 1) / 3),
        init="pca" if x.shape[1] > 1 else "random",
        max_iter=500,
        random_state=seed,
        n_jobs=-1,
    )
    return fit.fit_transform(x.astype(np.float32))
