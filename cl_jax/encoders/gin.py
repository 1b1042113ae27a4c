"""Graph isomorphism network (Xu et al. 2019, arXiv 1810.00826) as GraphCL has it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cl_jax.core.graphs import Graphs, messages, pool
from cl_jax.encoders.norm import BatchNorm


class Gin(nn.Module):
    """Layers x <- BatchNorm(ReLU(MLP((1 + eps) x + sum over neighbours of x))), eps 0.

    The MLP is `width`-ReLU-`width`. Takes `Graphs`; nodes that are padding count neither in the
    batch norm's moments nor in the pooled sums. Returns features by name: "block1", ... [B, width],
    each layer's sum over the graph's nodes, and "h" [B, depth * width], all of them side by side,
    in float32 at least.

    Args:
      width, depth: of the layers; 32 and 3 in GraphCL's runs on TU data.
      axis_name: mapped device axis of the batch norm, or None for the local batch.
      dtype: of the computation; parameters and statistics stay float32.
    """

    width: int = 32
    depth: int = 3
    kernel_init: Callable[..., Any] = nn.initializers.xavier_uniform()
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, graphs: Graphs, *, train: bool) -> dict[str, jax.Array]:
        x, features = graphs.x, {}
        weight = graphs.real.astype(jnp.float32)
        for i in range(1, self.depth + 1):
            x = x + messages(graphs, x)
            for j, name in enumerate(("in", "out")):
                x = nn.relu(x) if j else x
                x = nn.Dense(
                    self.width,
                    dtype=self.dtype,
                    kernel_init=self.kernel_init,
                    name=f"layer{i}_{name}",
                )(x)
            x = BatchNorm(
                axis_name=self.axis_name,
                dtype=self.dtype,
                unbiased_running_variance=True,
                name=f"layer{i}_norm",
            )(nn.relu(x), train=train, weight=weight)
            pooled = pool(graphs, x.astype(jnp.promote_types(x.dtype, jnp.float32)))
            features[f"block{i}"] = pooled
        features["h"] = jnp.concatenate(list(features.values()), axis=1)
        return features


def make(
    *,
    width: int = 32,
    depth: int = 3,
    dtype: str | None = "float32",
    axis_name: str | None = None,
) -> Gin:
    """A `Gin` from a config section.

    Raises:
      ValueError: a width or depth below 1.
    """
    if width < 1 or depth < 1:
        raise ValueError(f"width={width}, depth={depth}; expected at least 1 of both.")
    return Gin(
        width=width,
        depth=depth,
        axis_name=axis_name,
        dtype=None if dtype is None else jnp.dtype(dtype),
    )
