"""Generated images beside real ones: Fréchet distance, Inception Score, whether each shows its
class, and a picture of them."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cl_jax.data.source import Source, Splits, labels_of, subset
from cl_jax.evals import Evaluator, Given, Needs
from cl_jax.evals._labels import at_hand
from cl_jax.evals.generated import frechet_distance, gaussian, inception_score, label_accuracy

COLUMNS = 16  # samples of a class in the picture
FITTED = 5000  # real images at most that classifiers are fitted on, or that are read from a disk

Features = Callable[[np.ndarray], np.ndarray]


class Judges(NamedTuple):
    """Classifiers of real images. labels: images [N, H, W, C] -> classes [N]. probabilities: ->
    [N, C]. hidden: -> [N, 128], the layer before them."""

    labels: Callable[[np.ndarray], np.ndarray]
    probabilities: Callable[[np.ndarray], np.ndarray]
    hidden: Features


def make(
    *,
    feature: str = "pixels",
    samples: int = 10_000,
    label: str = "label",
    image: str = "image",
    splits: int = 1,
) -> Evaluator:
    """Figures of functions["generate"], with the classes and ids of the training examples.

    "samples/frechet": distance to the test images. "samples/inception_score".
    "samples/label_accuracy": the share of samples that a classifier of real images takes for the
    class they were asked for, and "samples/renamed_accuracy" under the best renaming of classes: a
    generator may make all classes and mix up their names, which the other figures do not show.
    "samples/frechet_of_training_images" and "samples/label_accuracy_of_test_images" say what real
    images have. `generated.png`: a row of samples for each class.

    The classifier of the labels is a support vector machine, that of the score (and of
    feature="classifier") a network of one hidden layer, both on pixels of the training images. They
    suit small images. Fréchet distances and scores of other features, and of other numbers of
    samples, are not comparable. Of a part that is not in memory at most 5,000 images, evenly
    spaced, are the real ones.

    Args:
      feature: "pixels", between 0 and 1; "classifier"; or "module:function" of one's own, images
        uint8 [N, H, W, C] -> [N, D]: an Inception network, for instance.
      samples: how many are generated at most, one for each labelled training example, or for so
        many of them, evenly spaced, so that examples sorted by class give samples of all classes.
      label, image: fields.
      splits: parts of the Inception Score, drawn by the run's seed.

    Raises:
      ValueError: an unknown feature, fewer than 2 samples.
    """
    if samples < 2 or splits < 1:
        raise ValueError(f"samples={samples}, splits={splits}; expected at least 2 and 1.")
    own = None if feature in ("pixels", "classifier") else _imported(feature)

    def features(judges: Judges) -> Features:
        if own is not None:
            return own
        return _pixels if feature == "pixels" else judges.hidden

    def check(data: Splits) -> None:
        train, test = data[:2]
        if test.size < 2:
            raise ValueError(f"{test.name} has one image; expected two or more, as real ones.")
        shapes = [source.read(0)[image].shape for source in (train, test)]
        if own is None and shapes[0] != shapes[1]:
            raise ValueError(
                f"{train.name} has images of shape {shapes[0]} and {test.name} of {shapes[1]}; "
                "expected the same, since their pixels are compared."
            )
        known = at_hand(train, label)
        if known is None:
            return
        if len(np.unique(known[_strided(known)])) < 2:
            raise ValueError(
                f"the labelled examples of {train.name} that classifiers are fitted to, {FITTED:,} "
                f"at most, are of one class; expected two or more. Give labels of more classes as "
                f"label, now {label!r}."
            )
        if splits > min(samples, len(known)):
            raise ValueError(
                f"splits={splits} are more than the {min(samples, len(known))} samples; expected "
                "at most as many."
            )

    def measure(given: Given) -> dict[str, float]:
        made = _generated(given, samples, label)
        judges = _judges(given.data.train, image, label, given.seed)
        of = features(judges)
        test = given.data.test
        real = gaussian(of(_images(test, image, _rows(test))))
        accuracy, renamed = label_accuracy(
            made["label"], judges.labels(made["image"]), given.data.train.sizes[label]
        )
        # in an order drawn by the seed: each part has samples of all classes
        order = np.random.default_rng(given.seed).permutation(len(made["image"]))
        score, _ = inception_score(judges.probabilities(made["image"])[order], splits)
        return {
            "samples/frechet": frechet_distance(gaussian(of(made["image"])), real),
            "samples/inception_score": score,
            "samples/label_accuracy": accuracy,
            "samples/renamed_accuracy": renamed,
        }

    def baseline(given: Given) -> dict[str, float]:
        train, test = given.data[:2]
        judges = _judges(train, image, label, given.seed)
        of = features(judges)
        chosen = [_rows(source) for source in (train, test)]
        images = [_images(source, image, rows) for source, rows in zip((train, test), chosen)]
        real = [gaussian(of(one)) for one in images]
        truth = labels_of(test, label)[chosen[1]]
        right = (judges.labels(images[1]) == truth)[truth >= 0]
        return {
            "samples/frechet_of_training_images": frechet_distance(*real),
            "samples/label_accuracy_of_test_images": float(np.mean(right)),
        }

    def draw(given: Given) -> None:
        made = _generated(given, samples, label)
        classes = range(given.data.train.sizes[label])
        rows = [made["image"][made["label"] == one][:COLUMNS] for one in classes]
        from cl_jax.evals import pictures  # matplotlib: only where something is drawn

        pictures.rows_of_images(given.workdir / "generated.png", rows)

    return Evaluator(
        measure,
        Needs(
            functions=("generate",),
            fields=(image,),
            labels=(label,),
            labelled=("train", "test"),
        ),
        better={"samples/frechet": -1, "samples/label_accuracy": 1, "samples/inception_score": 1},
        titles={
            "samples/frechet": "Fréchet distance of samples",
            "samples/label_accuracy": "samples that show their class %",
            "samples/inception_score": "Inception Score of samples",
        },
        baseline=baseline,
        draw=draw,
        check=check,
    )


def _generated(given: Given, samples: int, label: str) -> dict[str, np.ndarray]:
    train = given.data.train
    known = np.flatnonzero(labels_of(train, label) >= 0)  # each is asked for a class
    known = known[np.linspace(0, len(known) - 1, min(samples, len(known))).astype(int)]
    source = train if len(known) == train.size else subset(train, known)
    made: dict[str, np.ndarray] = given.rows("generate", source)
    return made


def _judges(train: Source, image: str, label: str, seed: int) -> Judges:
    from sklearn.neural_network import MLPClassifier
    from sklearn.svm import SVC

    labels = labels_of(train, label)
    chosen = np.flatnonzero(labels >= 0)
    chosen = chosen[_strided(chosen)]
    pixels, classes = _pixels(_images(train, image, chosen)), labels[chosen]
    machine = SVC().fit(pixels, classes)
    network = MLPClassifier((128,), max_iter=200, random_state=seed)
    network = _quietly(network.fit, pixels, classes)

    def hidden(images: np.ndarray) -> np.ndarray:
        return np.maximum(_pixels(images) @ network.coefs_[0] + network.intercepts_[0][None], 0)

    return Judges(
        lambda images: machine.predict(_pixels(images)),
        lambda images: network.predict_proba(_pixels(images)),
        hidden,
    )


def _strided(labelled: np.ndarray) -> slice:
    """Which of the labelled examples classifiers are fitted to."""
    return slice(None, None, max(1, -(-len(labelled) // FITTED)))


def _quietly(f: Callable[..., Any], *args: Any) -> Any:
    """f without scikit-learn's word that a network of so many iterations may not have converged."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return f(*args)


def _pixels(images: np.ndarray) -> np.ndarray:
    return np.asarray(images).reshape(len(images), -1) / 255.0


def _rows(source: Source) -> np.ndarray:
    """The examples whose images are the real ones: all in memory, else at most FITTED of all."""
    if source.arrays is not None or source.size <= FITTED:
        return np.arange(source.size)
    return np.linspace(0, source.size - 1, FITTED).astype(int)


def _images(source: Source, image: str, rows: np.ndarray) -> np.ndarray:
    if source.arrays is not None:
        return source.arrays[image][rows]
    return np.stack([source.read(int(row))[image] for row in rows])


def _imported(path: str) -> Features:
    module, _, name = path.partition(":")
    try:
        found: Features = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(
            f"feature={path!r}: {error}. Expected pixels, classifier, or module:function."
        ) from None
    return found
