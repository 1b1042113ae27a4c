"""The head of PIRL and InfoMin over the shuffled crops of an image."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cl_jax.core.shapes import check, check_integer


class JigsawHead(nn.Module):
    """Each crop through a layer or two, the crops of an image shuffled and concatenated, one layer,
    unit norm.

    width: D of the output and of each crop's embedding.
    num_crops: crops per image, 9 in PIRL and InfoMin.
    mlp: a hidden layer as wide as the features, with ReLU, per crop; as InfoMin with its MLP head.
    """

    width: int
    num_crops: int = 9
    mlp: bool = False

    @nn.compact
    def __call__(self, h: jax.Array, permutations: jax.Array) -> jax.Array:
        """[B * num_crops, F] features, the crops of one image together, and [B, num_crops] orders
        -> [B, width].

        Place j of the concatenation holds crop permutations[i, j] of image i.
        """
        sizes = check("n f", h=h)
        check_integer(f"b {self.num_crops}", permutations=permutations)
        if sizes["n"] != permutations.shape[0] * self.num_crops:
            raise ValueError(
                f"h has {sizes['n']} rows; expected {permutations.shape[0]} images times "
                f"{self.num_crops} "
                "crops, the crops of one image together."
            )
        if self.mlp:
            h = nn.relu(nn.Dense(sizes["f"], name="fc1_hidden")(h))
        h = nn.Dense(self.width, name="fc1")(h)
        crops = h.reshape(permutations.shape[0], self.num_crops, self.width)
        crops = jnp.take_along_axis(crops, permutations[:, :, None], axis=1)
        z = nn.Dense(self.width, name="fc2")(lax.collapse(crops, 1))
        norm = jnp.sqrt(jnp.maximum(jnp.sum(z * z, axis=1, keepdims=True), 1e-24))
        return z / norm


def draw_permutations(key: jax.Array, ids: jax.Array, num_crops: int = 9) -> jax.Array:
    """[B, num_crops]: an order of the crops for each example, keyed by its id."""
    check_integer("b", ids=ids)
    return jax.vmap(lambda i: jax.random.permutation(jax.random.fold_in(key, i), num_crops))(ids)
