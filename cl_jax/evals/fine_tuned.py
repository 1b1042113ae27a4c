"""A network that is fine-tuned on few labels: the linear probe first, then all weights from it.

Kumar et al. 2022, arXiv 2202.10054: fine-tuning from a random classifier distorts the features
before the classifier is any good; it starts from the probe's instead. Running statistics of batch
norm stay as they are.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cl_jax import losses
from cl_jax.core import parallel
from cl_jax.core.errors import ConfigError
from cl_jax.core.method import Method, views_of
from cl_jax.core.names import nearest
from cl_jax.evals import evaluation, few_labels

EPOCHS = (2, 5, 10, 20)
BATCH, LEARNING_RATE, WEIGHT_DECAY = 32, 3e-4, 1e-4
_MEND = "Leave out --finetune: a classifier on the features of the network as it is needs no more."
Tree = Any
Examples = Mapping[str, np.ndarray]


class Tuned(NamedTuple):
    """params: {"network", "classifier": {"kernel" [D, C], "bias" [C]}}. epochs: over the labels.
    The others as in `few_labels.Probe`."""

    params: Tree
    epochs: int
    temperature: float
    accuracy: float
    log_loss: float
    calibration_error: float
    held_out: np.ndarray


def check(
    method: Method,
    variables: tuple[Tree, Tree],
    example: Mapping[str, np.ndarray],
    feature: str,
    mesh: jax.sharding.Mesh,
) -> None:
    """Checks that `fit` can train a method's network; nothing is compiled.

    Args:
      variables: (params, stats), arrays or their shapes.
      example: the fields of one.
      feature: the one that the classifier reads.

    Raises:
      ConfigError: the method lacks what `fit` calls, or its views or features are of another kind.
    """
    parts = ("features", "views", "clean")
    missing = [name for name in parts if getattr(method, name) is None]
    if missing:
        raise ConfigError(
            f"the network cannot be fine-tuned: its method has no {' and no '.join(missing)}; "
            f"expected {', '.join(parts)}. {_MEND}"
        )
    batch = {
        name: jax.ShapeDtypeStruct((2 * mesh.size, *np.shape(value)), np.asarray(value).dtype)
        for name, value in example.items()
        if name in (*method.needs, *method.wants)
    } | {"id": jax.ShapeDtypeStruct((2 * mesh.size,), np.int32)}
    view = evaluation.first_view(method, batch, mesh)
    if view is None:
        raise ConfigError(
            f"the network cannot be fine-tuned: its method's views cannot be drawn here. {_MEND}"
        )
    features: Any = method.features
    try:
        named, _ = jax.eval_shape(lambda v, x: features(*v, x, False), variables, view)
    except Exception as error:  # a task, a masked view: whatever the network makes of it
        raise ConfigError(
            "the network cannot be fine-tuned: it does not take one training view as it takes a "
            f"clean input ({type(error).__name__}: {error}). {_MEND}"
        ) from error
    if feature not in named:
        raise ConfigError(
            f"the network cannot be fine-tuned for the feature {feature!r}, which is not among "
            f"those that can be differentiated{nearest(feature, named)}; these are "
            f"{', '.join(named)}. {_MEND}"
        )


def fit(
    method: Method,
    variables: tuple[Tree, Tree],
    examples: Examples,
    features: np.ndarray,
    labels: np.ndarray,
    probe: few_labels.Probe,
    *,
    feature: str,
    learning_rate: float = LEARNING_RATE,
    after_epoch: Callable[[], None] = lambda: None,
) -> Tuned:
    """Fine-tunes the whole network and its probe on labelled examples.

    AdamW on the first of the method's views; cross-validation, in the probe's folds, chooses how
    often the examples are seen, and then one temperature. It takes as many trainings as there are
    folds and one more.

    Args:
      method, variables: of the run; (params, stats).
      examples: {field: [N, ...]} of the labelled ones.
      features: [N, D] of them, by the network as it is.
      labels: [N] integers 0 to C - 1.
      probe: fitted to the same features and labels.
      feature: the one that the classifier reads.
      after_epoch: is called after each, `trainings(labels)` times at most.

    Raises:
      ConfigError: as `check`.
    """
    first = {name: values[0] for name, values in examples.items()}
    check(method, variables, first, feature, parallel.make_mesh(1))
    params, stats = jax.device_get(variables)
    fold, classes = few_labels.folds(labels), int(labels.max()) + 1
    tx = optax.adamw(learning_rate, weight_decay=WEIGHT_DECAY)
    advance, logits_of = _programs(method, stats, feature, tx)
    held = {epochs: np.full((len(labels), classes), np.nan) for epochs in EPOCHS}

    def trained(rows: np.ndarray, until: int, out: np.ndarray | None) -> Tree:
        """Parameters after so many epochs of `rows`; the logits of `out` are kept on the way."""
        head = probe if out is None else few_labels.fitted(features[rows], labels[rows], probe.c)
        now = {"network": params, "classifier": linear(head, classes)}
        opt = tx.init(now)
        for epoch in range(1, until + 1):
            order = np.random.default_rng((0, epoch)).permutation(rows)
            for at in range(0, len(order), BATCH):
                some = np.resize(order[at : at + BATCH], min(BATCH, len(order)))
                batch = {name: values[some] for name, values in examples.items()}
                batch["id"] = some.astype(np.int32)
                key = jax.random.fold_in(jax.random.key(0), epoch)
                now, opt = advance(now, opt, batch, labels[some], key)
            after_epoch()
            if out is not None and epoch in held:
                for at in range(0, len(out), BATCH):
                    some = np.resize(out[at : at + BATCH], BATCH)
                    batch = {name: values[some] for name, values in examples.items()}
                    found = np.asarray(logits_of(now, batch | {"id": some.astype(np.int32)}))
                    held[epoch][some] = found
        return now

    for number in range(int(fold.max()) + 1):
        trained(np.flatnonzero(fold != number), EPOCHS[-1], np.flatnonzero(fold == number))
    found = {epochs: few_labels.calibrated(logits, labels) for epochs, logits in held.items()}
    best = min(EPOCHS, key=lambda epochs: np.nan_to_num(found[epochs].log_loss, nan=np.inf))
    return Tuned(trained(np.arange(len(labels)), best, None), best, *found[best])


def better(tuned: Tuned, probe: few_labels.Probe, labels: np.ndarray) -> bool:
    """Whether the held-out log loss of the fine-tuned network is lower by more than the standard
    error of the difference: of few labels a smaller one is chance."""
    at = np.arange(len(labels))
    losses_of = [-np.log(found.held_out[at, labels]) for found in (probe, tuned)]
    gain = losses_of[0] - losses_of[1]
    gain = gain[np.isfinite(gain)]
    return bool(len(gain) > 1 and gain.mean() > gain.std(ddof=1) / len(gain) ** 0.5)


def trainings(labels: np.ndarray) -> int:
    """How many epochs `fit` runs at most."""
    return (int(few_labels.folds(labels).max()) + 2) * EPOCHS[-1]


def linear(model: Any, classes: int) -> dict[str, np.ndarray]:
    """The classifier of a probe, or of its pipeline, on features that are not standardised."""
    scaler, logistic = getattr(model, "model", model)
    coef, bias = logistic.coef_, logistic.intercept_
    if len(coef) == 1 and classes == 2:  # scikit-learn keeps the difference of two classes
        coef, bias = np.concatenate([-coef, coef]) / 2, np.concatenate([-bias, bias]) / 2
    kernel = (coef / scaler.scale_).T
    return {
        "kernel": kernel.astype(np.float32),
        "bias": (bias - scaler.mean_ @ kernel).astype(np.float32),
    }


def _programs(
    method: Method, stats: Tree, feature: str, tx: optax.GradientTransformation
) -> tuple[Any, Any]:
    """(a step, logits without augmentation), compiled once for all trainings."""

    @jax.jit
    def advance(params: Tree, opt: Any, batch: Any, labels: jax.Array, key: jax.Array) -> Any:
        view = views_of(method, batch, key)[0]

        def loss(params: Tree) -> jax.Array:
            return losses.cross_entropy(_logits(method, feature, params, stats, view), labels)

        updates, opt = tx.update(jax.grad(loss)(params), opt, params)
        return optax.apply_updates(params, updates), opt

    of = logits(method, feature)
    return advance, jax.jit(lambda params, batch: of((params, stats), batch)["logits"])


def logits(method: Method, feature: str) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """((params, stats), batch) -> {"logits": [B, C]} of a fine-tuned network."""
    return lambda variables, batch: {
        "logits": _logits(method, feature, variables[0], variables[1], method.clean(batch))
    }


def _logits(method: Method, feature: str, params: Tree, stats: Tree, inputs: Any) -> jax.Array:
    found, _ = method.features(params["network"], stats, inputs, False)
    classifier = params["classifier"]
    return jnp.float32(found[feature]) @ classifier["kernel"] + classifier["bias"][None]
