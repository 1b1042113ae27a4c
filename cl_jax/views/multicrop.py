"""Multi-crop: a few large views and many small ones of each image, as a tuple of recipes for
`recipe.augment`."""

from collections.abc import Sequence

from cl_jax.views import presets
from cl_jax.views.presets import Recipe


def swav(
    sizes: Sequence[int] = (224, 96),
    counts: Sequence[int] = (2, 6),
    scales: Sequence[tuple[float, float]] = ((0.14, 1.0), (0.05, 0.14)),
) -> tuple[Recipe, ...]:
    """SwAV's crops, `counts[i]` of `sizes[i]` from `scales[i]` of the area; DeepCluster v2: sizes
    (160, 96), scales from 0.08. The first sizes' views come first.

    Raises:
      ValueError: different numbers of sizes, counts and scales.
    """
    if not len(sizes) == len(counts) == len(scales):
        raise ValueError(
            f"{len(sizes)} sizes, {len(counts)} counts and {len(scales)} scales; expected one of "
            f"each per "
            "resolution."
        )
    return tuple(
        recipe
        for size, count, scale in zip(sizes, counts, scales)
        for recipe in (presets.swav(size, (scale[0], scale[1])),) * count
    )


def dino(
    sizes: tuple[int, int] = (224, 96),
    num_local: int = 8,
    global_scale: tuple[float, float] = (0.4, 1.0),
    local_scale: tuple[float, float] = (0.05, 0.4),
) -> tuple[Recipe, ...]:
    """DINO's two global crops, each by its own recipe, then `num_local` local ones."""
    return (
        presets.dino("global1", sizes[0], global_scale),
        presets.dino("global2", sizes[0], global_scale),
        *(presets.dino("local", sizes[1], local_scale),) * num_local,
    )


def by_size(views: Sequence) -> list[list[int]]:
    """Runs of consecutive views of equal size, as lists of their indices: one pass of the encoder
    each.

    >>> [jnp.concatenate([views[i] for i in run]) for run in by_size(views)]
    """
    runs: list[list[int]] = []
    for index, view in enumerate(views):
        if runs and views[runs[-1][-1]].shape[1:] == view.shape[1:]:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs
