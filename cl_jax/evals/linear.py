"""The linear probe: a softmax classifier on frozen features, cached ones or those of augmented
views.

The learning rate is used as given: linear scaling (0.1 * batch / 256 and the like) is the caller's.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cl_jax import views
from cl_jax.core.numerics import unit, wide
from cl_jax.core.seeds import check_seed
from cl_jax.core.shapes import check, check_count, check_integer, check_positive
from cl_jax.data.source import labels_of
from cl_jax.evals import Evaluator, Given, Needs
from cl_jax.evals._labels import check_classes, check_test_classes

Tree = Any
Array = jax.Array | np.ndarray
Batch = Mapping[str, Any]

NORMALISATIONS = ("none", "batch_norm", "unit")
BATCH_NORM_EPS, BATCH_NORM_MOMENTUM = 1e-5, 0.9


class Linear(NamedTuple):
    """kernel: [D, C]. bias: [C]. mean, var: [D] running statistics of "batch_norm", 0 and 1
    otherwise."""

    kernel: jax.Array
    bias: jax.Array
    mean: jax.Array
    var: jax.Array


class History(NamedTuple):
    """Per epoch: loss, [E] mean training cross-entropy in nats; top1, [E] accuracy on the test set
    after it."""

    loss: np.ndarray
    top1: np.ndarray


class Probe(NamedTuple):
    """top1, top5: test accuracy after the last step, shares from 0 to 1 (never the best
    epoch's)."""

    top1: float
    top5: float
    params: Linear
    history: History


def make(
    *,
    total_epochs: float = 30.0,
    batch_size: int = 256,
    learning_rate: float = 0.1,
    weight_decay: float = 0.0,
    feature: str = "",
    label: str = "label",
    figure: str = "linear/cached",
) -> Evaluator:
    """A linear classifier on cached clean features, at the end of a run: "linear/cached/top1" and
    "linear/cached/top5".

    feature, label: as for `knn`. figure: the name of its figures, for a probe of another label
    beside it. The others: see `probe`; a batch is at most the training split.

    Raises:
      ValueError: a setting that is not above 0.
    """
    check_count(batch_size=batch_size)
    check_positive(total_epochs=total_epochs, learning_rate=learning_rate)

    def measure(given: Given) -> dict[str, float]:
        parts = []
        for source in given.data[:2]:
            truth = labels_of(source, label)
            parts += [given.features(source, feature)[truth >= 0], truth[truth >= 0]]
        found = probe(
            *parts,
            num_classes=given.data.train.sizes[label],
            total_epochs=total_epochs,
            batch_size=min(batch_size, len(parts[0])),
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            seed=given.seed,
        )
        return accuracies(figure, found)

    return Evaluator(
        measure,
        Needs(features=(feature,), labels=(label,), labelled=("train", "test")),
        when="final",
        better={f"{figure}/top1": 1},
        titles={f"{figure}/top1": "linear probe, cached features %"},
        check=lambda data: check_test_classes(data, label),
    )


def accuracies(figure: str, found: Probe) -> dict[str, float]:
    """{"<figure>/top1", "<figure>/top5"} of a probe; NaN where its loss is not finite, since what
    such a classifier answers is no accuracy."""
    if not np.isfinite(found.history.loss).all():
        return {f"{figure}/top1": math.nan, f"{figure}/top5": math.nan}
    return {f"{figure}/top1": float(found.top1), f"{figure}/top5": float(found.top5)}


def probe(
    train_features: Array,
    train_labels: Array,
    test_features: Array,
    test_labels: Array,
    *,
    num_classes: int,
    total_epochs: float,
    batch_size: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    normalise: str = "none",
    seed: int = 0,
    frozen: Tree = None,
) -> Probe:
    """Trains a linear classifier on cached features: SGD, cosine to 0 over all steps, one compiled
    program.

    Kernel from N(0, 0.01), bias 0; weight decay on both. Each epoch is a new permutation without
    its last, partial batch. The features are not standardised unless `normalise` says so.

    Args:
      train_features: [N, D].
      train_labels: [N] integers.
      test_features: [M, D].
      test_labels: [M] integers.
      num_classes: C.
      total_epochs: may be fractional.
      batch_size: at most N.
      learning_rate: at the first step; after the last it is 0.
      weight_decay, momentum, nesterov: of SGD. Decay is added to the gradient, as in PyTorch.
      normalise: "none"; "batch_norm", without scale and offset, by the batch in training and by
        running statistics in the test; "unit", rows of norm 1.
      seed: of the kernel and the order, 0 to 2^32 - 1.
      frozen: the backbone's variables, to compare their checksum before and after.

    Returns:
      Probe; at chance level its top1 is the share of the most frequent class and its loss log C.

    Raises:
      ValueError: shapes that disagree, labels outside 0 .. C - 1, fewer rows than one batch.
      RuntimeError: `frozen` has changed.
    """
    sizes = check("m d", check("n d", train_features=train_features), test_features=test_features)
    check_integer("n", sizes, train_labels=train_labels)
    check_integer("m", sizes, test_labels=test_labels)
    check_classes(num_classes, train_labels=train_labels, test_labels=test_labels)
    check_count(batch_size=batch_size)
    _check_knobs(num_classes, total_epochs, learning_rate, weight_decay, normalise)
    _check_batch(sizes["n"], batch_size)
    before = checksum(frozen)
    steps_per_epoch = sizes["n"] // batch_size
    params, loss, accuracy = _fit(
        train_features,
        train_labels,
        test_features,
        test_labels,
        jax.random.key(check_seed(seed)),
        learning_rate,
        weight_decay,
        momentum,
        total_epochs * steps_per_epoch,
        num_classes,
        math.ceil(total_epochs),
        batch_size,
        nesterov,
        normalise,
    )
    _check_frozen(frozen, before)
    loss, accuracy = np.asarray(loss), np.asarray(accuracy)
    return Probe(
        float(accuracy[-1, 0]), float(accuracy[-1, 1]), params, History(loss, accuracy[:, 0])
    )


def probe_augmented(
    encode: Callable[[Tree, jax.Array], jax.Array],
    frozen: Tree,
    train_images: Array,
    train_labels: Array,
    test_images: Array,
    test_labels: Array,
    *,
    recipe: views.Recipe,
    num_classes: int,
    total_epochs: float,
    batch_size: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    normalise: str = "none",
    seed: int = 0,
    clean: Callable[[jax.Array], jax.Array] | None = None,
) -> Probe:
    """Trains a linear classifier on the features of a new augmented view of each image in each
    epoch.

    As `probe` otherwise. An image's view is drawn by (seed, step, its row).

    Args:
      encode: (frozen, [B, size, size, C] float images) -> [B, D] features, in evaluation mode. No
        gradient is taken.
      frozen: the backbone's variables.
      train_images, train_labels: [N, H, W, C] uint8, [N] integers.
      test_images, test_labels: [M, H, W, C] uint8, [M] integers.
      recipe: of the training views, `views.presets.crop_flip(size)` in the published protocols. It
        must end in the normalisation that the backbone was trained with.
      num_classes, total_epochs, batch_size, learning_rate, weight_decay, momentum, nesterov,
        normalise, seed: as in `probe`.
      clean: uint8 images -> the backbone's test input, a Method's `clean`; None for
        `views.evaluate(recipe, images)`.

    Returns:
      Probe.

    Raises:
      ValueError: as `probe`; images that are not uint8.
      RuntimeError: `frozen` has changed.
    """
    check_count(num_classes=num_classes, batch_size=batch_size)
    for name, images, labels in (
        ("train", train_images, train_labels),
        ("test", test_images, test_labels),
    ):
        if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
            raise ValueError(
                f"{name}_images are {images.dtype}{list(images.shape)}; expected uint8 [N, H, W, "
                f"C]."
            )
        check_integer("n", {"n": len(images)}, **{f"{name}_labels": labels})
        check_classes(num_classes, **{f"{name}_labels": labels})
    _check_batch(len(train_images), batch_size)

    def train(epoch: int) -> Iterator[Batch]:
        order = np.random.default_rng([check_seed(seed), epoch]).permutation(len(train_images))
        for step in range(len(order) // batch_size):
            rows = order[step * batch_size : (step + 1) * batch_size]
            yield {"image": train_images[rows], "label": train_labels[rows], "id": rows}

    def test() -> Iterator[Batch]:
        for start in range(0, len(test_images), batch_size):
            yield {
                "image": test_images[start : start + batch_size],
                "label": test_labels[start : start + batch_size],
            }

    return probe_batches(
        encode,
        frozen,
        train,
        test,
        recipe=recipe,
        steps_per_epoch=len(train_images) // batch_size,
        num_classes=num_classes,
        total_epochs=total_epochs,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        momentum=momentum,
        nesterov=nesterov,
        normalise=normalise,
        seed=seed,
        clean=clean,
    )


def probe_batches(
    encode: Callable[[Tree, jax.Array], jax.Array],
    frozen: Tree,
    train: Callable[[int], Iterable[Batch]],
    test: Callable[[], Iterable[Batch]],
    *,
    recipe: views.Recipe,
    steps_per_epoch: int,
    num_classes: int,
    total_epochs: float,
    learning_rate: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    nesterov: bool = False,
    normalise: str = "none",
    seed: int = 0,
    clean: Callable[[jax.Array], jax.Array] | None = None,
) -> Probe:
    """`probe_augmented` for data that comes in batches, such as a set that is read from disk.

    The step is plain `jax.jit`: batches that lie split over the devices of a mesh, with `frozen` on
    each of them, are worked on by all.

    Args:
      train: epoch -> batches {"image": [B, H, W, C] uint8, "label": [B], "id": [B]} in the order to
        be used, of one size, at least steps_per_epoch of them.
      test: () -> batches {"image", "label"}; a last one of another size compiles once more.
      steps_per_epoch: batches used per epoch.

    The others, what it returns and raises: as `probe_augmented`; ValueError too for too few
    batches.
    """
    check_count(steps_per_epoch=steps_per_epoch)
    _check_knobs(num_classes, total_epochs, learning_rate, weight_decay, normalise)
    before = checksum(frozen)
    key = jax.random.key(check_seed(seed))
    tx = _sgd(learning_rate, weight_decay, momentum, nesterov, total_epochs * steps_per_epoch)
    prepare = clean or partial(views.evaluate, recipe)

    @jax.jit
    def step(frozen, params, opt, batch, number):
        drawn = views.example_keys(
            jax.random.fold_in(jax.random.fold_in(key, 2), number), batch["id"]
        )
        features = lax.stop_gradient(encode(frozen, views.apply(recipe, drawn, batch["image"])))
        return _step(tx, normalise, params, opt, features, batch["label"])

    @jax.jit
    def right(frozen, params, batch):
        logits = predict(params, encode(frozen, prepare(batch["image"])), normalise=normalise)
        return jnp.sum(_right(logits, batch["label"]), axis=0)

    features = jax.eval_shape(
        lambda f, x: encode(f, prepare(x)), frozen, next(iter(test()))["image"]
    )
    params = _start(jax.random.fold_in(key, 0), features.shape[-1], num_classes)
    opt, number, history = tx.init(_moved(params)), 0, []
    for epoch in range(math.ceil(total_epochs)):
        losses = []
        for _, batch in zip(range(steps_per_epoch), train(epoch)):
            params, opt, loss = step(frozen, params, opt, dict(batch), number)
            number += 1
            losses.append(loss)
        if len(losses) < steps_per_epoch:
            raise ValueError(
                f"epoch {epoch} gave {len(losses)} batches; expected "
                f"steps_per_epoch={steps_per_epoch}."
            )
        counts = [(right(frozen, params, dict(batch)), len(batch["label"])) for batch in test()]
        accuracy = np.sum(jax.device_get([hits for hits, _ in counts]), axis=0) / sum(
            rows for _, rows in counts
        )
        history.append((np.mean(jax.device_get(losses)), *accuracy))
    _check_frozen(frozen, before)
    loss, top1, top5 = np.array(history, np.float32).T
    return Probe(float(top1[-1]), float(top5[-1]), params, History(loss, top1))


def predict(params: Linear, features: jax.Array, *, normalise: str = "none") -> jax.Array:
    """[B, C] logits of a trained probe; `normalise` as it was trained with."""
    x = wide(features)
    if normalise == "unit":
        x = unit(x)
    elif normalise == "batch_norm":
        x = (x - params.mean[None]) * lax.rsqrt(params.var + BATCH_NORM_EPS)[None]
    return x @ params.kernel + params.bias[None]


def checksum(tree: Tree) -> str:
    """sha256 over path, dtype, shape and bytes of every leaf, in the order of their paths; on the
    host."""
    digest = hashlib.sha256()
    leaves = [
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    for path, leaf in sorted(leaves, key=lambda pair: pair[0]):
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if (
            isinstance(leaf, jax.Array)
            and not leaf.is_fully_addressable
            and leaf.is_fully_replicated
        ):
            leaf = leaf.addressable_data(0)
        array = np.ascontiguousarray(leaf)
        digest.update(f"{path} {array.dtype} {np.shape(leaf)}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@partial(jax.jit, static_argnums=(9, 10, 11, 12, 13))
def _fit(
    train_features,
    train_labels,
    test_features,
    test_labels,
    key,
    learning_rate,
    weight_decay,
    momentum,
    total_steps,
    num_classes,
    epochs,
    batch_size,
    nesterov,
    normalise,
):
    count, width = train_features.shape
    steps = count // batch_size
    tx = _sgd(learning_rate, weight_decay, momentum, nesterov, total_steps)
    params = _start(jax.random.fold_in(key, 0), width, num_classes)

    def one_epoch(carry, epoch):
        shuffle = jax.random.fold_in(jax.random.fold_in(key, 1), epoch)
        rows = jax.random.permutation(shuffle, count)[: steps * batch_size].reshape(
            steps, batch_size
        )

        def one_step(carry, rows):
            params, opt, loss = _step(
                tx, normalise, *carry, train_features[rows], train_labels[rows]
            )
            return (params, opt), loss

        carry, losses = lax.scan(one_step, carry, rows)
        logits = predict(carry[0], test_features, normalise=normalise)
        return carry, (jnp.mean(losses), jnp.mean(_right(logits, test_labels), axis=0))

    (params, _), (loss, accuracy) = lax.scan(
        one_epoch, (params, tx.init(_moved(params))), jnp.arange(epochs)
    )
    return params, loss, accuracy


def _step(tx, normalise, params, opt, features, labels):
    if normalise == "batch_norm":
        mean, var = jnp.mean(wide(features), axis=0), jnp.var(wide(features), axis=0)
        running = (
            BATCH_NORM_MOMENTUM * old + (1 - BATCH_NORM_MOMENTUM) * new
            for old, new in zip((params.mean, params.var), (mean, var))
        )
        used, kept = (
            params._replace(mean=mean, var=var),
            params._replace(**dict(zip(("mean", "var"), running))),
        )
    else:
        used = kept = params

    def loss(moved):
        logits = predict(used._replace(**moved), features, normalise=normalise)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    value, grads = jax.value_and_grad(loss)(_moved(params))
    updates, opt = tx.update(grads, opt, _moved(params))
    return kept._replace(**optax.apply_updates(_moved(params), updates)), opt, value


def _sgd(learning_rate, weight_decay, momentum, nesterov, total_steps):
    def cosine(step):
        # Of a fractional number of epochs the last one runs to its end, at 0.
        return learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(step / total_steps, 0, 1)))

    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum, nesterov=nesterov),
        optax.scale_by_learning_rate(cosine),
    )


def _start(key, width, num_classes):
    return Linear(
        0.01 * jax.random.normal(key, (width, num_classes), jnp.float32),
        jnp.zeros(num_classes),
        jnp.zeros(width),
        jnp.ones(width),
    )


def _moved(params):
    return {"kernel": params.kernel, "bias": params.bias}


def _right(logits, labels):
    """[B, 2] whether the label is the first, among the first five; of equal logits the lower class
    is before."""
    first = lax.top_k(logits, min(5, logits.shape[1]))[1] == labels[:, None]
    return jnp.stack([first[:, 0], first.any(axis=1)], axis=1).astype(jnp.float32)


def _check_knobs(num_classes, total_epochs, learning_rate, weight_decay, normalise):
    check_count(num_classes=num_classes)
    check_positive(total_epochs=total_epochs, learning_rate=learning_rate)
    if weight_decay < 0:
        raise ValueError(f"weight_decay is {weight_decay}; expected 0 or more.")
    if normalise not in NORMALISATIONS:
        raise ValueError(
            f"normalise is {normalise!r}; expected one of {', '.join(NORMALISATIONS)}."
        )


def _check_batch(rows: int, batch_size: int) -> None:
    if rows < batch_size:
        raise ValueError(
            f"batch_size is {batch_size} but there are {rows} training rows; lower it to {rows} "
            f"or less."
        )


def _check_frozen(frozen: Tree, before: str) -> None:
    after = checksum(frozen)
    if after != before:
        raise RuntimeError(
            f"the frozen backbone changed during the probe: checksum {before[:12]} before, "
            f"{after[:12]} "
            "after. Give encode a copy, and let it write to nothing."
        )
