"""Places in the plane for rows of features, by kept libraries."""

import importlib.util
import warnings

import numpy as np

# t-SNE takes seconds for a thousand rows. Beyond this many, the others are placed by their
# neighbours.
TSNE_ROWS = 5000
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
    found = {"PCA": flat, "t-SNE": _tsne(reduced, seed)}
    if UMAP:
        with warnings.catch_warnings(action="ignore"):  # of parts of it that need TensorFlow
            import umap

            near = min(15, len(rows) - 1)
            place = umap.UMAP(n_neighbors=near, random_state=seed, n_jobs=1)
            found["UMAP"] = place.fit_transform(rows)
    return {name: np.asarray(places, np.float32) for name, places in found.items()}


def _tsne(x: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE
    from sklearn.neighbors import NearestNeighbors

    if len(x) < 4:
        return np.zeros((len(x), 2), np.float32)
    chosen = np.arange(len(x))
    if len(x) > TSNE_ROWS:
        drawn = np.random.default_rng(seed).choice(len(x), TSNE_ROWS, replace=False)
        chosen = np.sort(drawn)
    perplexity = min(PERPLEXITY, (len(chosen) - 1) / 3)
    fit = TSNE(
        perplexity=perplexity,
        init="pca" if x.shape[1] > 1 else "random",
        max_iter=500,
        random_state=seed,
        n_jobs=-1,
    )
    placed = fit.fit_transform(x[chosen].astype(np.float32))
    if len(chosen) == len(x):
        return placed
    near = NearestNeighbors(n_neighbors=3).fit(x[chosen]).kneighbors(x, return_distance=False)
    places = placed[near].mean(1)
    places[chosen] = placed
    return places
