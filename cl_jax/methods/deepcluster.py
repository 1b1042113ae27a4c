"""DeepCluster (Caron et al. 2018, arXiv 1807.05520): the network classifies the clusters that
k-means finds in its features.

E-step, before each epoch: features of the whole training split without augmentation and before the
last ReLU, PCA-whitened to unit norm, k-means; then a new top layer, since the clusters' numbers
mean nothing from one epoch to the next. M-step: cross-entropy to the clusters, every one of which
is drawn equally often (the `order`), against the solution in which all images share one.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cl_jax import losses
from cl_jax.cluster import whitening
from cl_jax.cluster.agreement import normalised_mutual_information
from cl_jax.cluster.kmeans import kmeans
from cl_jax.core.keys import batch_key, example_keys
from cl_jax.core.method import Aux, Batch, Method, Run, State, Variables, from_loss
from cl_jax.core.network import check_no_drop_path
from cl_jax.core.parallel import fetch
from cl_jax.data.batches import balanced_order
from cl_jax.encoders import initializers
from cl_jax.views import View, keywords

_BLOCK = 1 << 16  # rows of features that are on the device at a time


class Memory(NamedTuple):
    """assignment: [N] int32, the cluster of each example; all 0 before the first E-step. agreement:
    mutual information of the last two assignments, 0 to 1. seed: uint32 [2], the key that E-steps
    draw from."""

    assignment: jax.Array
    agreement: jax.Array
    seed: jax.Array


class Network(nn.Module):
    """Sobel filters, encoder, and fully connected layers with dropout before each and no batch
    norm.

    Returns (features before the last ReLU, what the top layer sees, {"h": the encoder's, "z": the
    first}). Without fully connected layers the first two are the encoder's "h". Dropout only where
    `keys` [B], one for each example, are given."""

    encoder: nn.Module
    hidden_dims: Sequence[int]
    dropout: float
    sobel: bool
    dtype: Any = None

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool, keys: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        check_no_drop_path(self.encoder)
        h = self.encoder(sobel(images) if self.sobel else images, train=train)["h"]
        before, x = h, h
        for j, width in enumerate(self.hidden_dims, start=1):
            if keys is not None and self.dropout:
                x = drop(x, jax.vmap(jax.random.fold_in, (0, None))(keys, j), self.dropout)
            before = nn.Dense(
                width,
                dtype=self.dtype,
                kernel_init=initializers.kernel("normal_0.01"),
                name=f"dense{j}",
            )(x)
            before = before.astype(h.dtype)
            x = nn.relu(before)
        return before, x, {"h": h, "z": before}


def make(
    *,
    encoder: nn.Module,
    tx: optax.GradientTransformation,
    views: Sequence[View],
    run: Run,
    num_clusters: int = 10000,
    pca_dim: int = 256,
    iterations: int = 20,
    hidden_dims: Sequence[int] = (4096, 4096),
    dropout: float = 0.5,
    sobel: bool = True,
    top_learning_rate: float = 0.05,
    top_weight_decay: float = 1e-5,
    block_size: int | None = None,
) -> Method:
    """DeepCluster.

    views: one in the paper; of several, the loss is the mean. The clusters are those of clean
      images.
    num_clusters: ten times the classes did best in the paper. Empty clusters keep their row of the
      top layer, as there.
    pca_dim: features that are left after whitening.
    iterations: of k-means, from other rows in every epoch.
    hidden_dims, dropout: of the fully connected layers after the encoder; (4096, 4096) is AlexNet's
      and VGG-16's.
    sobel: edges of the grey image in place of its colours.
    top_learning_rate, top_weight_decay: of the top layer's own SGD, which has no momentum and no
      schedule. The config's optimiser, and its momentum, is the rest of the network's and continues
      from epoch to epoch.
    block_size: rows compared with the centroids at a time, see `kmeans`.

    An example that is drawn twice within one batch has the same view and dropout both times, where
    the authors draw new ones. The host holds the features of all examples during an E-step: N x D
    float32, for ImageNet and AlexNet 21 GB.

    Raises:
      ValueError: no view, a dropout that is not a share, fewer than 2 clusters or more than
        examples.
    """
    if not views:
        raise ValueError("DeepCluster sees one view of each image or more; the config has none.")
    if not 0 <= dropout < 1:
        raise ValueError(
            f"dropout is {dropout}; expected the share that is dropped, 0 or more and below 1."
        )
    if not 2 <= num_clusters <= run.size:
        raise ValueError(
            f"num_clusters={num_clusters}; expected 2 or more, and at most the {run.size} "
            f"examples of the "
            "data set."
        )
    network = Network(encoder, tuple(hidden_dims), dropout, sobel, encoder.dtype)
    top = optax.chain(optax.add_decayed_weights(top_weight_decay), optax.scale(-top_learning_rate))

    def apply(
        params: Any, stats: Any, images: jax.Array, train: bool, keys: jax.Array | None = None
    ) -> tuple[Any, Any]:
        outputs, changed = network.apply(
            {"params": params, "batch_stats": stats}, images, train, keys, mutable=["batch_stats"]
        )
        return outputs, changed.get("batch_stats", stats)

    def fresh(key: jax.Array, width: int) -> dict[str, jax.Array]:
        kernel = initializers.kernel("normal_0.01")(key, (width, num_clusters), jnp.float32)
        return {"kernel": kernel, "bias": jnp.zeros(num_clusters)}

    def variables(key: jax.Array, batch: Batch) -> Variables:
        network_key, top_key, memory_key = jax.random.split(key, 3)
        (before, x, _), start = network.init_with_output(network_key, views[0].clean(batch), True)
        if not 1 <= pca_dim <= min(before.shape[1], run.size):
            raise ValueError(
                f"pca_dim={pca_dim}; expected 1 to {min(before.shape[1], run.size)}, the width of "
                f"the "
                "features or the number of examples."
            )
        memory = Memory(
            jnp.zeros(run.size, jnp.int32), jnp.zeros(()), jax.random.key_data(memory_key)
        )
        return Variables(
            {"network": start["params"], "top": fresh(top_key, x.shape[1])},
            start.get("batch_stats", {}),
            memory=memory,
        )

    def forward(
        params: Any, stats: Any, target: Any, inputs: Any, batch: Batch, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        images = jnp.concatenate(inputs)
        keys = example_keys(batch_key(key), batch["id"])
        of_views = [jax.vmap(jax.random.fold_in, (0, None))(keys, v) for v in range(len(views))]
        (_, x, _), stats = apply(params["network"], stats, images, True, jnp.concatenate(of_views))
        logits = x @ params["top"]["kernel"] + params["top"]["bias"][None]
        return jnp.stack(jnp.split(logits, len(views)), axis=1), stats, None

    def loss(
        logits: jax.Array, params: Any, memory: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        labels = jnp.repeat(memory.assignment[batch["id"]], len(views))
        logits = logits.reshape(-1, num_clusters)
        metrics = {
            "cluster_accuracy": jnp.mean(logits.argmax(axis=1) == labels),
            "agreement": memory.agreement,
            "chance": jnp.float32(math.log(num_clusters)),
        }
        return losses.cross_entropy(logits, labels, axis_name=run.axis_name), Aux(metrics, memory)

    def features(
        params: Any, stats: Any, images: jax.Array, train: bool
    ) -> tuple[dict[str, jax.Array], Any]:
        (_, _, named), stats = apply(params["network"], stats, images, train)
        return named, stats

    def clustered(state: State, batch: Batch) -> jax.Array:
        return apply(state.params["network"], state.stats, views[0].clean(batch), False)[0][0]

    def refresh(state: State, encode_all: Callable[..., Any], epoch: int) -> State:
        rows, memory = encode_all(clustered), state.memory
        blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
        whitened = whitening.fit(map(jnp.asarray, blocks), pca_dim)
        rows = jnp.concatenate([whitening.apply(whitened, jnp.asarray(block)) for block in blocks])
        key = jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(fetch(memory.seed))), epoch)
        means_key, top_key = jax.random.split(key)
        means = kmeans(means_key, rows, num_clusters, iterations=iterations, block_size=block_size)
        agreement = normalised_mutual_information(
            fetch(memory.assignment), np.asarray(means.assignment)
        )
        params = state.params | {"top": fresh(top_key, state.params["top"]["kernel"].shape[0])}
        memory = Memory(means.assignment, jnp.float32(agreement), memory.seed)
        return dataclasses.replace(state, params=params, memory=memory)

    def order(state: State, epoch: int, seed: int) -> np.ndarray:
        balanced = balanced_order(seed, epoch, fetch(state.memory.assignment))
        return balanced[: run.steps_per_epoch * run.batch_size]

    parts = {"network": tx, "top": top}
    return from_loss(
        variables=variables,
        forward=forward,
        loss=loss,
        tx=optax.partition(parts, {k: k for k in parts}),
        features=features,
        axis_name=run.axis_name,
        **keywords(views),
        refresh=refresh,
        order=order,
    )


def sobel(images: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, 2]: horizontal and vertical Sobel filters of the mean of the
    channels, zeros around it.

    The authors' first layer, which is not trained; it acts on images that are normalised already.
    """
    across = jnp.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], images.dtype)
    down = jnp.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]], images.dtype)
    return lax.conv_general_dilated(
        images.mean(axis=3, keepdims=True),
        jnp.stack([across, down], axis=-1)[:, :, None],
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=lax.Precision.HIGHEST,
    )


def drop(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Dropout of rows [B, D] by a key for each, so that no row's depends on its place in the batch
    or its device."""
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0)
