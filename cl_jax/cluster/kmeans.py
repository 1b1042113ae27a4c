"""k-means on the device, streamed over blocks of rows, and the concentration of the clusters it
finds (PCL)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.shapes import check, check_count, check_integer, check_positive


class KMeans(NamedTuple):
    """centroids: [K, D]. assignment: [N] int32, the nearest centroid. distance: [N] squared, to it.

    counts: [K] rows of each. objective: sum of the distances.
    """

    centroids: jax.Array
    assignment: jax.Array
    distance: jax.Array
    counts: jax.Array
    objective: jax.Array


def assign(
    x: jax.Array, centroids: jax.Array, *, block_size: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """([N] nearest centroid, [N] squared Euclidean distance to it) of [N, D] rows against [K, D]
    centroids.

    `block_size` rows meet the centroids at a time, so that [block_size, K] is the largest array;
    None chooses it to hold 64 MiB. The first of equal centroids wins.
    """
    sizes = check("k d", check("n d", x=x), centroids=centroids)
    block_size = _block(sizes["k"], block_size)
    half = 0.5 * jnp.sum(centroids * centroids, axis=1)

    def one(row):
        nearest = jnp.argmax(centroids @ row - half).astype(jnp.int32)
        # From the difference itself: the expanded square loses the distance of rows close to their
        # centroid.
        return nearest, jnp.sum(jnp.square(row - centroids[nearest]))

    return lax.map(one, x, batch_size=min(block_size, max(sizes["n"], 1)))


@partial(
    jax.jit,
    static_argnames=(
        "num_clusters",
        "iterations",
        "restarts",
        "spherical",
        "block_size",
        "max_points_per_centroid",
        "start",
    ),
)
def kmeans(
    key: jax.Array,
    x: jax.Array,
    num_clusters: int,
    *,
    iterations: int = 20,
    restarts: int = 1,
    spherical: bool = False,
    block_size: int | None = None,
    max_points_per_centroid: int | None = None,
    start: str = "rows",
    initial: jax.Array | None = None,
) -> KMeans:
    """Lloyd's algorithm: rows to their nearest centroid, centroids to the mean of their rows.

    Args:
      key: draws the starting rows, and the subsample if there is one.
      x: [N, D] rows, at least K. Used as given: normalise them for spherical clustering.
      num_clusters: K.
      iterations: updates of the centroids per run; 20 in PCL and DeepCluster.
      restarts: runs from different rows, of which the one with the lowest objective is kept; 5 in
        PCL.
      spherical: scales centroids back to unit norm after each update.
      block_size: rows compared at a time, see `assign`.
      max_points_per_centroid: of more than K times so many rows a random subset finds the centroids
        (1000 in PCL); all rows are assigned.
      start: "rows" for distinct rows drawn uniformly, as faiss; "spread" for rows drawn one after
        another in proportion to their squared distance from those drawn before (k-means++), which
        finds far better clusters in separated data for about one more iteration of work.
      initial: [K, D] centroids to start from instead.

    Returns:
      KMeans of the centroids after the last update; distances are squared Euclidean, spherical or
      not.

    A cluster that loses all its rows takes half of the largest one: both continue from its
    centroid, moved apart by 1/1024 of themselves. (faiss, which the authors of PCL and DeepCluster
    call, does the same to a cluster drawn in proportion to its size.)

    Raises:
      ValueError: fewer rows than clusters, counts below 1, `initial` of another shape or with
        restarts.
    """
    sizes = check("n d", x=x)
    check_count(
        num_clusters=num_clusters,
        iterations=iterations,
        restarts=restarts,
        block_size=block_size,
        max_points_per_centroid=max_points_per_centroid,
    )
    if sizes["n"] < num_clusters:
        raise ValueError(
            f"x has {sizes['n']} rows for num_clusters={num_clusters}; expected at least one row "
            f"per "
            "cluster. Use fewer clusters or more examples."
        )
    if initial is not None:
        check("k d", {"k": num_clusters, "d": sizes["d"]}, initial=initial)
        if restarts != 1:
            raise ValueError(
                f"restarts is {restarts} with initial centroids given; expected 1, since every "
                f"run would "
                "be the same."
            )
    if start not in ("rows", "spread"):
        raise ValueError(f'start is {start!r}; expected "rows" or "spread".')
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    block_size = _block(num_clusters, block_size)
    sub_key, start_key = jax.random.split(key)
    limit = num_clusters * max_points_per_centroid if max_points_per_centroid else sizes["n"]
    seen = x if sizes["n"] <= limit else x[jax.random.permutation(sub_key, sizes["n"])[:limit]]

    def run(key):
        if initial is not None:
            centroids = initial.astype(x.dtype)
        elif start == "rows":
            centroids = seen[jax.random.permutation(key, seen.shape[0])[:num_clusters]]
        else:
            centroids = _spread(key, seen, num_clusters)
        centroids = _unit(centroids) if spherical else centroids

        def step(_, centroids):
            return _update(seen, centroids, spherical, block_size)

        centroids = lax.fori_loop(0, iterations, step, centroids)
        assignment, distance = assign(x, centroids, block_size=block_size)
        counts = jnp.zeros(num_clusters, jnp.int32).at[assignment].add(1)
        return KMeans(centroids, assignment, distance, counts, jnp.sum(distance))

    def better(best, key):
        found = run(key)
        return jax.tree.map(partial(jnp.where, found.objective < best.objective), found, best), None

    keys = jax.random.split(start_key, restarts)
    best, _ = lax.scan(better, run(keys[0]), keys[1:])
    return best


def concentration(
    distance: jax.Array,
    assignment: jax.Array,
    num_clusters: int,
    *,
    temperature: float,
    alpha: float = 10.0,
    percentiles: tuple[float, float] = (10.0, 90.0),
) -> jax.Array:
    """PCL's temperature of each cluster: small where its rows lie close together and are many.

    phi_c = sum over its Z rows of sqrt(distance) / (Z log(Z + alpha)); clusters of fewer than two
    rows get the largest phi; clipped to the two percentiles; scaled to mean `temperature`.

    Args:
      distance: [N] *squared* distance of each row to its centroid, as `kmeans` returns it.
      assignment: [N] its cluster.
      num_clusters: K.
      temperature: mean of the result, 0.2 in PCL; alpha: keeps small clusters from small phi.
      percentiles: in the authors' code, not in the paper.

    Returns:
      [K], positive; `temperature` everywhere if no row is away from its centroid.

    Reference: Li et al. 2021, arXiv 2005.04966, equation 12.
    """
    sizes = check("n", distance=distance)
    check_integer("n", sizes, assignment=assignment)
    check_positive(temperature=temperature)
    check_count(num_clusters=num_clusters)
    distance = distance.astype(jnp.promote_types(distance.dtype, jnp.float32))
    count = jax.ops.segment_sum(jnp.ones_like(distance), assignment, num_clusters)
    total = jax.ops.segment_sum(jnp.sqrt(distance), assignment, num_clusters)
    several = count > 1
    phi = jnp.where(several, total / jnp.maximum(count, 1) / jnp.log(count + alpha), 0)
    phi = jnp.where(several, phi, jnp.max(phi))
    low, high = jnp.percentile(phi, jnp.asarray(percentiles, phi.dtype))
    phi = jnp.clip(phi, low, high)
    average = jnp.mean(phi)
    return jnp.where(
        average > 0, temperature * phi / jnp.where(average > 0, average, 1), temperature
    )


def _update(x, centroids, spherical, block_size):
    k = centroids.shape[0]
    assignment, _ = assign(x, centroids, block_size=block_size)
    counts = jnp.zeros(k, jnp.int32).at[assignment].add(1)
    sums = jnp.zeros_like(centroids).at[assignment].add(x)
    means = jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1)[:, None], centroids)
    apart = jnp.where(jnp.arange(x.shape[1]) % 2 == 0, 1 / 1024, -1 / 1024).astype(x.dtype)

    def split(carry):
        counts, means = carry
        empty, largest = jnp.argmin(counts), jnp.argmax(counts)
        centre, half = means[largest], counts[largest] // 2
        means = means.at[empty].set(centre * (1 + apart)).at[largest].set(centre * (1 - apart))
        return counts.at[empty].set(half).at[largest].add(-half), means

    def unfinished(carry):
        return (jnp.min(carry[0]) == 0) & (jnp.max(carry[0]) > 1)

    _, means = lax.while_loop(unfinished, split, (counts, means))
    return _unit(means) if spherical else means


def _spread(key, x, k):
    first, rest = jax.random.split(key)
    draws = jax.random.uniform(rest, (k,), x.dtype)

    def add(i, carry):
        centroids, distance = carry
        reach = jnp.cumsum(distance)
        # A row at distance 0 has an empty interval; should all be at 0 the last row serves as well
        # as any.
        row = jnp.searchsorted(reach, draws[i] * reach[-1], side="right")
        new = x[jnp.minimum(row, x.shape[0] - 1)]
        return centroids.at[i].set(new), jnp.minimum(
            distance, jnp.sum(jnp.square(x - new[None]), axis=1)
        )

    new = x[jax.random.randint(first, (), 0, x.shape[0])]
    centroids = jnp.zeros((k, x.shape[1]), x.dtype).at[0].set(new)
    return lax.fori_loop(1, k, add, (centroids, jnp.sum(jnp.square(x - new[None]), axis=1)))[0]


def _unit(x):
    return x * lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=1, keepdims=True), 1e-24))


def _block(num_clusters, block_size):
    check_count(block_size=block_size)
    return max(2**24 // num_clusters, 1) if block_size is None else block_size
