"""k-means on the device, streamed over blocks of rows, and the concentration of the clusters it
finds (PCL)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.cluster._lloyd import (
    Rows,
    assign_rows,
    block_of,
    nearest,
    rows_at,
    rows_of,
    seen_by,
    sums,
    unit,
)
from cl_jax.core.axis import AxisName, gather, total
from cl_jax.core.shapes import check, check_count, check_integer, check_key, check_positive
from cl_jax.core.sharded import Sharded


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

    `block_size` rows are compared at a time, so that [block_size, K] is the largest array;
    None chooses it to hold 64 MiB, and on a CPU to stay in its cache. The first of equal centroids
    wins. Products are exact to float32.
    """
    sizes = check("k d", check("n d", x=x), centroids=centroids)
    rows = Rows(x, jnp.ones(sizes["n"], bool))
    find = nearest(centroids, spherical=False)
    numbers = assign_rows(rows, find, block_of(sizes["k"], block_size))
    return numbers, _distance(x, centroids, numbers)


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
        "axis_name",
    ),
)
def kmeans(
    key: jax.Array,
    x: jax.Array | Sharded,
    num_clusters: int,
    *,
    iterations: int = 20,
    restarts: int = 1,
    spherical: bool = False,
    block_size: int | None = None,
    max_points_per_centroid: int | None = None,
    start: str = "rows",
    initial: jax.Array | None = None,
    axis_name: AxisName = None,
) -> KMeans:
    """Lloyd's algorithm: rows to their nearest centroid, centroids to the mean of their rows.

    Args:
      key: draws the starting rows, and the subsample if there is one.
      x: [N, D] rows, at least K, an array or `Sharded` over `axis_name`: then each device compares
        its own rows with the centroids. Used as given: normalise them for spherical clustering.
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
      axis_name: the mapped axis that `Sharded` rows are split over; not read of an array. The
        result is that of one device, to the order of summation.

    Returns:
      KMeans of the centroids after the last update; distances are squared Euclidean, spherical or
      not. Of `Sharded` rows the assignment and the distances are `Sharded` too, all else is the
      same on every device.

    A cluster that loses all its rows takes half of the largest one: both continue from its
    centroid, moved apart by 1/1024 of themselves. (faiss, which the authors of PCL and DeepCluster
    call, does the same to a cluster drawn in proportion to its size.)

    Raises:
      ValueError: fewer rows than clusters, counts below 1, `initial` of another shape or with
        restarts.
    """
    check_key(key=key)
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
    split_over = axis_name if isinstance(x, Sharded) else None
    rows = rows_of(x, split_over)
    block_size = block_of(num_clusters, block_size)
    sub_key, start_key = jax.random.split(key)
    limit = num_clusters * max_points_per_centroid if max_points_per_centroid else sizes["n"]
    ids, seen = jnp.arange(min(sizes["n"], limit)), rows
    if sizes["n"] > limit:
        ids = jax.random.permutation(sub_key, sizes["n"])[:limit]
        seen = seen_by(x, ids, split_over)

    def run(key):
        if initial is not None:
            centroids = initial.astype(rows.x.dtype)
        elif start == "rows":
            first = jax.random.permutation(key, ids.shape[0])[:num_clusters]
            centroids = rows_at(x, ids[first], split_over)
        else:
            centroids = _spread(key, x, ids, seen, num_clusters, split_over)
        centroids = unit(centroids) if spherical else centroids

        def step(_, centroids):
            return _update(seen, centroids, spherical, block_size, split_over)

        centroids = lax.fori_loop(0, iterations, step, centroids)
        numbers = assign_rows(rows, nearest(centroids, spherical=False), block_size)
        distance = jnp.where(rows.real, _distance(rows.x, centroids, numbers), 0)
        counts = jnp.zeros(num_clusters, jnp.int32)
        counts = counts.at[jnp.where(rows.real, numbers, num_clusters)].add(1, mode="drop")
        return KMeans(
            centroids,
            numbers,
            distance,
            total(counts, split_over),
            total(jnp.sum(distance), split_over),
        )

    def better(best, key):
        found = run(key)
        return jax.tree.map(partial(jnp.where, found.objective < best.objective), found, best), None

    keys = jax.random.split(start_key, restarts)
    best, _ = lax.scan(better, run(keys[0]), keys[1:])
    if not isinstance(x, Sharded):
        return best
    return best._replace(
        assignment=Sharded(best.assignment, x.size, 1), distance=Sharded(best.distance, x.size, 1)
    )


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

    Raises:
      ValueError: shapes that disagree, assignments that are not integers, a temperature that is not
        above 0.

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


def _distance(x: jax.Array, centroids: jax.Array, numbers: jax.Array) -> jax.Array:
    """[N] squared distances. From the difference itself: the expanded square loses the distance of
    rows close to their centroid."""
    return jnp.sum(jnp.square(x - centroids[numbers]), axis=1)


def _update(rows, centroids, spherical, block_size, axis_name):
    k, width = centroids.shape
    found, counts = sums(rows, nearest(centroids, spherical=False), k, block_size, axis_name)
    means = jnp.where(counts[:, None] > 0, found / jnp.maximum(counts, 1)[:, None], centroids)
    apart = jnp.where(jnp.arange(width) % 2 == 0, 1 / 1024, -1 / 1024).astype(means.dtype)

    def split(carry):
        counts, means = carry
        empty, largest = jnp.argmin(counts), jnp.argmax(counts)
        centre, half = means[largest], counts[largest] // 2
        means = means.at[empty].set(centre * (1 + apart)).at[largest].set(centre * (1 - apart))
        return counts.at[empty].set(half).at[largest].add(-half), means

    def unfinished(carry):
        return (jnp.min(carry[0]) == 0) & (jnp.max(carry[0]) > 1)

    _, means = lax.while_loop(unfinished, split, (counts, means))
    return unit(means) if spherical else means


def _spread(key, x, ids, seen, k, axis_name):
    first, rest = jax.random.split(key)
    draws = jax.random.uniform(rest, (k,), seen.x.dtype)

    def drawn(distance, draw):
        """The row at which the sum of the distances, over devices in rank order, passes a share of
        all of it."""
        reach = jnp.cumsum(distance)
        ends = jnp.cumsum(gather(reach[-1:], axis_name))
        target = draw * ends[-1]
        # A row at distance 0 has an empty interval; should all be at 0 the last row serves as well
        # as any.
        device = jnp.minimum(jnp.searchsorted(ends, target, side="right"), ends.shape[0] - 1)
        before = jnp.where(device > 0, ends[device - 1], 0)
        row = jnp.searchsorted(reach, target - before, side="right")
        new = seen.x[jnp.minimum(row, jnp.sum(seen.real) - 1)]
        if ends.shape[0] == 1:
            return new
        return total(jnp.where(lax.axis_index(axis_name) == device, new, 0), axis_name)

    def apart(new):
        return jnp.where(seen.real, jnp.sum(jnp.square(seen.x - new[None]), axis=1), 0)

    def add(i, carry):
        centroids, distance = carry
        new = drawn(distance, draws[i])
        return centroids.at[i].set(new), jnp.minimum(distance, apart(new))

    new = rows_at(x, ids[jax.random.randint(first, (), 0, ids.shape[0])][None], axis_name)[0]
    centroids = jnp.zeros((k, seen.x.shape[1]), seen.x.dtype).at[0].set(new)
    return lax.fori_loop(1, k, add, (centroids, apart(new)))[0]
