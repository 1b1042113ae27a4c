"""The figures and plots of the temperature study (Wang and Liu 2021, arXiv 2012.09740) for one
network or the members of a population."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.core.numerics import unit
from cl_jax.core.shapes import check_count, check_positive
from cl_jax.data.source import labels_of
from cl_jax.evals import Evaluator, Given, Needs
from cl_jax.evals import geometry as spread
from cl_jax.evals import knn as nearest
from cl_jax.evals._labels import check_test_classes
from cl_jax.losses import geometry

NEAREST = 10  # negatives whose similarity the paper draws beside the positive's
_ALIKE = ("simple", "hard_simple")  # losses that weigh all negatives alike, at no temperature


class Similarities(NamedTuple):
    """positive: [N] of a pair of views. nearest: [N, 10] of the most similar second views of other
    examples. penalty: [N, N - 1] the relative penalties r_ij, highest first. probability: [N, N -
    1] P_ij of the negatives, highest first. entropy: of r_i over log(N - 1), mean; 1 where all
    negatives weigh alike."""

    positive: jax.Array
    nearest: jax.Array
    penalty: jax.Array
    probability: jax.Array
    entropy: jax.Array


def make(
    *,
    members: Sequence[Mapping[str, Any]] = (),
    loss: str = "contrastive",
    temperature: float = 0.1,
    feature: str = "z",
    representation: str = "h",
    label: str = "label",
    rows: int = 2048,
    k: int = 200,
    knn_temperature: float = 0.1,
) -> Evaluator:
    """What a temperature does to features: for each member "hardness@NAME/uniformity",
    ".../tolerance" (over all pairs), ".../tolerance_same_class", ".../positive" and ".../nearest"
    (mean similarity of two views, and of a view with its ten nearest negatives), ".../entropy" (of
    the weights of the negatives, 1 where all weigh alike), ".../knn" and the ".../k" that was used.

    At the end of a run `temperature.png` has accuracy, uniformity and tolerance against the
    temperature, one curve for each loss, and `similarities.png` for each member the histograms of
    the similarities and of P_ij, the probability that the softmax gives a negative.

    Args:
      members: dictionaries of "name" (of the population's member), "curve" (members of one curve
        are joined in the plots) and "temperature" (of the member's softmax; None for a loss without
        one: a horizontal line, no entropy and no P_ij). None of them for a single network, whose
        figures are "hardness/...".
      loss, temperature: of a single network. "simple" and "hard_simple" have no temperature.
      feature: of "encode", that the loss compares. representation: that kNN votes by.
      label: for kNN and tolerance. rows: test examples that uniformity and tolerance are of.
      k, knn_temperature: of the vote; k is the number of labelled training examples where those
        are fewer.

    Raises:
      ValueError: a member named twice, a count below 1, a temperature that is not above 0.
    """
    check_count(rows=rows, k=k)
    check_positive(temperature=temperature)
    single = {"curve": loss, "temperature": None if loss in _ALIKE else temperature}
    chosen = [_member(one) for one in members or [single]]
    names = [one["name"] for one in chosen]
    if len(set(names)) < len(names):
        raise ValueError(f"members are named {names}; expected each name once.")
    head = {name: f"hardness@{name}" if name else "hardness" for name in names}

    def of(name: str, base: str) -> str:
        return f"{base}@{name}" if name else base

    def measure(given: Given) -> dict[str, float]:
        train, test = given.data[:2]
        truth = [labels_of(source, label) for source in (train, test)]
        picked = np.random.default_rng(given.seed).permutation(test.size)[:rows]
        used = min(k, int((truth[0] >= 0).sum()))
        found: dict[str, float] = {}
        for one in chosen:
            name = one["name"]
            z = jnp.asarray(given.features(test, of(name, feature))[picked])
            tolerance = geometry.tolerance(z, jnp.asarray(truth[1][picked]))
            found |= {
                f"{head[name]}/uniformity": float(geometry.uniformity(unit(z), block_size=1024)),
                f"{head[name]}/tolerance": float(tolerance.all_pairs),
                f"{head[name]}/tolerance_same_class": float(tolerance.same_class),
                f"{head[name]}/knn": _accuracy(
                    *(given.features(source, of(name, representation)) for source in (train, test)),
                    *truth,
                    k=used,
                    temperature=knn_temperature,
                    classes=train.sizes[label],
                ),
                f"{head[name]}/k": float(used),
            }
            seen = pairs(given, one)
            if seen is not None:
                found |= {
                    f"{head[name]}/positive": float(seen.positive.mean()),
                    f"{head[name]}/nearest": float(seen.nearest.mean()),
                }
                if one["temperature"] is not None:
                    found[f"{head[name]}/entropy"] = float(seen.entropy)
        return found

    def pairs(given: Given, one: Mapping[str, Any]) -> Similarities | None:
        source = spread.pair_source(given.data.test, given.batch_size, given.seed)
        drawn = None if source is None else given.views(source, of(one["name"], feature), False)
        if drawn is None:
            return None
        if len(drawn) < 2 * (NEAREST + 2):  # too few for ten negatives
            return None
        first, second = drawn.reshape(2, len(drawn) // 2, -1)
        return similarities(first, second, temperature=one["temperature"] or 1.0)

    def draw(given: Given) -> None:
        from cl_jax.evals import pictures  # matplotlib: only where something is drawn

        values = measure(given)
        curves: dict[str, list[tuple[float | None, dict[str, float]]]] = {}
        for one in chosen:
            own = {
                figure: values[f"{head[one['name']]}/{figure}"]
                for figure in ("knn", "uniformity", "tolerance_same_class")
            }
            curves.setdefault(one["curve"], []).append((one["temperature"], own))
        panels = {
            "kNN accuracy": {c: [(t, v["knn"]) for t, v in points] for c, points in curves.items()},
            "uniformity (lower is more uniform)": {
                c: [(t, v["uniformity"]) for t, v in points] for c, points in curves.items()
            },
            "tolerance (same class)": {
                c: [(t, v["tolerance_same_class"]) for t, v in points]
                for c, points in curves.items()
            },
        }
        pictures.curves(given.workdir / "temperature.png", panels, xlabel="temperature")
        seen = {one["name"]: (one["temperature"], pairs(given, one)) for one in chosen}
        shown = {name: pair for name, pair in seen.items() if pair[1] is not None}
        if shown:
            pictures.histograms(given.workdir / "similarities.png", _panels(shown))

    return Evaluator(
        measure,
        Needs(
            features=tuple(of(name, base) for name in names for base in (feature, representation)),
            labels=(label,),
            labelled=("train", "test"),
            views=True,
        ),
        untrained=False,
        better={f"{head[name]}/knn": 1 for name in names},
        titles={f"{head[name]}/knn": f"kNN {name} %".replace("  ", " ") for name in names},
        draw=draw,
        check=lambda data: check_test_classes(data, label),
    )


@jax.jit
def _similarities(first: jax.Array, second: jax.Array, temperature: jax.Array) -> Similarities:
    cosine = unit(first) @ unit(second).T
    count = cosine.shape[0]
    positive = jnp.diagonal(cosine)
    others = jnp.where(jnp.eye(count, dtype=bool), -jnp.inf, cosine)
    ranked = jax.lax.top_k(others, count - 1)[0]
    penalty = jax.nn.softmax(ranked / temperature, axis=1)
    logits = jnp.concatenate([positive[:, None], ranked], axis=1) / temperature
    probability = jax.nn.softmax(logits, axis=1)[:, 1:]
    entropy = -jnp.sum(jnp.where(penalty > 0, penalty * jnp.log(penalty), 0.0), axis=1)
    return Similarities(
        positive,
        ranked[:, :NEAREST],
        penalty,
        probability,
        entropy.mean() / jnp.log(jnp.float32(count - 1)),
    )


def similarities(
    first: jax.Array | np.ndarray, second: jax.Array | np.ndarray, *, temperature: float
) -> Similarities:
    """How alike pairs and negatives are, and what the softmax makes of it.

    With s_ij the cosine of first view i and second view j,
      P_ij = exp(s_ij / t) / sum_k exp(s_ik / t)
      r_ij = exp(s_ij / t) / sum_{k != i} exp(s_ik / t)
    P_ij / t is the gradient of the loss with respect to s_ij, and r_ij its share in that of the
    positive.

    Args:
      first, second: [N, D] features of two views of N examples.
      temperature: t.

    Raises:
      ValueError: fewer than 12 rows, which have no ten negatives; a temperature <= 0.

    Reference: Wang and Liu 2021, arXiv 2012.09740, equations 2 to 5.
    """
    if np.shape(first) != np.shape(second) or np.ndim(first) != 2 or len(first) < NEAREST + 2:
        raise ValueError(
            f"first has shape {np.shape(first)} and second {np.shape(second)}; expected the same "
            f"[N, D] with N of {NEAREST + 2} or more."
        )
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}; expected a number above 0.")
    return _similarities(jnp.asarray(first), jnp.asarray(second), jnp.float32(temperature))


def _member(given: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ValueError(f"members has {given!r}; expected sections with name and temperature.")
    one = {"name": "", "curve": "", "temperature": None} | dict(given)
    temperature = one["temperature"]
    if set(one) != {"name", "curve", "temperature"} or (
        temperature is not None and not temperature > 0
    ):
        raise ValueError(
            f"a member is {dict(given)}; expected name, curve and temperature, a number above 0 or "
            "None."
        )
    return one


def _accuracy(
    train: np.ndarray,
    test: np.ndarray,
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    *,
    k: int,
    temperature: float,
    classes: int,
) -> float:
    bank, queries = train_labels >= 0, test_labels >= 0
    found = nearest.knn(
        train[bank],
        train_labels[bank],
        test[queries],
        test_labels[queries],
        k=k,
        temperature=temperature,
        num_classes=classes,
        keep_votes=False,
    )
    return float(found.top1)


def _panels(
    shown: Mapping[str, tuple[float | None, Similarities]],
) -> dict[str, list[tuple[str, dict[str, np.ndarray]]]]:
    """{name: [(axis, {legend: values})]}: similarities, and log10 of P_ij where there is a
    temperature."""
    found: dict[str, list[tuple[str, dict[str, np.ndarray]]]] = {}
    for name, (temperature, seen) in shown.items():
        panels = [
            (
                "similarity",
                {
                    "positive": np.asarray(seen.positive),
                    "ten nearest negatives": np.asarray(seen.nearest).ravel(),
                },
            )
        ]
        if temperature is not None:
            tiny = np.maximum(np.asarray(seen.probability), 1e-12)
            panels.append(("log10 P of a negative", {"negatives": np.log10(tiny).ravel()}))
        found[name or "trained"] = panels
    return found
