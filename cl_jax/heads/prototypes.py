"""Prototypes: trainable cluster centres scored by a dot product, as SwAV and DeepCluster-v2 have
them."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cl_jax.core.numerics import dots, unit
from cl_jax.core.shapes import check
from cl_jax.encoders import initializers

# the parameter's last path element, by which `project` and optimiser settings find it
NAME = "prototypes"


class Prototypes(nn.Module):
    """scores = z C^T for z [B, D] and C [num_prototypes, D], no bias; the caller normalises z.

    Scores are cosines where `project` has put the rows of C on the unit sphere: before every step
    in SwAV, once after k-means in DeepCluster-v2. C starts as nn.Linear does, U(+-1/sqrt(D)).
    Scores are float32 at least."""

    num_prototypes: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        check("b d", z=z)
        rows = self.param(NAME, _uniform, (self.num_prototypes, z.shape[-1]))
        wide = jnp.promote_types(jnp.result_type(z, rows), jnp.float32)
        return dots("bd,kd->bk", z.astype(wide), rows.astype(wide))


def project(params: Mapping[str, Any]) -> Any:
    """The same parameters with every "prototypes" array on the unit sphere, row by row; the rest
    untouched."""

    def leaf(path, value):
        return unit(value).astype(value.dtype) if getattr(path[-1], "key", None) == NAME else value

    return jax.tree_util.tree_map_with_path(leaf, params)


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return initializers.bias("torch", shape[-1])(key, shape, jnp.float32)


def make(*, num_prototypes: int) -> Prototypes:
    """`Prototypes` from a config section; SwAV has 3000 for ImageNet."""
    return Prototypes(num_prototypes=num_prototypes)
