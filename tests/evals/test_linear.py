"""The probe learns what is there and nothing that is not; its arithmetic; the frozen backbone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import views
from cl_jax.evals import linear
from cl_jax.evals.linear import checksum, predict, probe, probe_augmented, probe_batches

CLASSES, WIDTH = 3, 8
KNOBS = {"num_classes": CLASSES, "total_epochs": 5.0, "batch_size": 32, "learning_rate": 0.5}


def blobs(count, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    return np.float32(3 * np.eye(WIDTH)[labels] + 0.5 * rng.normal(size=(count, WIDTH))), labels


def test_learns_separable_features_and_not_shuffled_labels():
    (x, y), (x_test, y_test) = blobs(256), blobs(128, seed=1)
    out = probe(x, y, x_test, y_test, **KNOBS)
    assert out.top1 > 0.97 and out.top5 == 1.0
    assert out.history.loss.shape == (5,) and out.history.loss[-1] < 0.1 < out.history.loss[0]
    assert out.history.top1[-1] == np.float32(out.top1)
    right = np.argmax(predict(out.params, x_test), axis=1) == y_test
    assert right.mean() == pytest.approx(out.top1, abs=1e-6)
    shuffled = np.random.default_rng(2).permutation(y)
    assert probe(x, shuffled, x_test, y_test, **KNOBS).top1 < 0.6


@pytest.mark.parametrize("normalise", ["batch_norm", "unit"])
def test_normalisation_makes_the_scale_of_features_irrelevant(normalise):
    (x, y), (x_test, y_test) = blobs(256), blobs(128, seed=1)
    knobs = KNOBS | {"normalise": normalise, "total_epochs": 20.0}
    one, thousandth = (probe(s * x, y, s * x_test, y_test, **knobs) for s in (100.0, 1.0))
    assert one.top1 > 0.97
    # With batch norm's epsilon and running statistics the two are not quite the same program.
    assert thousandth.top1 == pytest.approx(one.top1, abs=0.02)
    if normalise == "batch_norm":
        np.testing.assert_allclose(thousandth.params.var, x.var(axis=0), rtol=0.3)
    else:
        np.testing.assert_array_equal(one.params.var, 1)


@pytest.mark.parametrize("nesterov", [False, True])
def test_two_full_batch_steps_equal_the_equations(nesterov):
    (x, y), rate, decay = blobs(24), 0.4, 0.01
    out = probe(
        x,
        y,
        x,
        y,
        num_classes=CLASSES,
        total_epochs=2,
        batch_size=24,
        learning_rate=rate,
        weight_decay=decay,
        nesterov=nesterov,
    )
    kernel = np.array(
        linear._start(jax.random.fold_in(jax.random.key(0), 0), WIDTH, CLASSES).kernel, np.float64
    )
    assert 0.003 < kernel.std() < 0.03
    weights = np.concatenate([kernel, np.zeros((1, CLASSES))])
    rows, velocity = np.concatenate([x, np.ones((24, 1))], axis=1), 0.0
    for step in range(2):
        p = np.exp(rows @ weights)
        p /= p.sum(axis=1, keepdims=True)
        assert out.history.loss[step] == pytest.approx(
            -np.log(p[np.arange(24), y]).mean(), abs=1e-5
        )
        grad = rows.T @ (p - np.eye(CLASSES)[y]) / 24 + decay * weights
        velocity = 0.9 * velocity + grad
        weights -= (
            rate
            * (1 + np.cos(np.pi * step / 2))
            / 2
            * (0.9 * velocity + grad if nesterov else velocity)
        )
    np.testing.assert_allclose(out.params.kernel, weights[:-1], atol=1e-5)
    np.testing.assert_allclose(out.params.bias, weights[-1], atol=1e-5)


def test_half_an_epoch_is_half_its_steps():
    (x, y) = blobs(64)
    out = probe(x, y, x, y, **KNOBS | {"total_epochs": 0.5})  # of two steps the first moves
    key = jax.random.key(0)
    start = linear._start(jax.random.fold_in(key, 0), WIDTH, CLASSES)
    rows = np.asarray(
        jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 1), 0), 64)
    )[:32]
    p = np.asarray(jax.nn.softmax(x[rows] @ start.kernel))
    np.testing.assert_allclose(
        out.params.bias, -0.5 * (p - np.eye(CLASSES)[y[rows]]).mean(axis=0), atol=1e-5
    )
    assert out.history.loss.shape == (1,)


def test_the_seed_decides():
    (x, y) = blobs(64)
    first, same, other = (probe(x, y, x, y, **KNOBS, seed=seed).params.kernel for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert np.abs(np.asarray(first) - np.asarray(other)).max() > 1e-4


def test_errors_say_what_to_do():
    (x, y) = blobs(16)
    with pytest.raises(ValueError, match="batch_size is 32 but there are 16 training rows"):
        probe(x, y, x, y, **KNOBS)
    with pytest.raises(
        ValueError, match="normalise is 'layer'; expected one of none, batch_norm, unit"
    ):
        probe(x, y, x, y, **KNOBS | {"batch_size": 8, "normalise": "layer"})
    with pytest.raises(ValueError, match="test_labels go from 3"):
        probe(x, y, x, np.full(16, 3), **KNOBS | {"batch_size": 8})
    with pytest.raises(ValueError, match="uint8"):
        probe_augmented(None, {}, x, y, x, y, recipe=views.presets.crop_flip(8), **KNOBS)


def pictures(count, seed=0):
    """8x8 images whose class is their colour; a crop or a flip changes nothing of it."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    colour = np.eye(3)[labels] * 120 + 60
    return np.uint8(colour[:, None, None] + rng.integers(-50, 50, (count, 8, 8, 3))), labels


def encode(frozen, images):
    return jnp.mean(images, axis=(1, 2)) @ frozen["w"]


def test_augmented_learns_and_leaves_the_backbone():
    (x, y), (x_test, y_test) = pictures(96), pictures(40, seed=1)
    frozen = {"w": np.float32(np.random.default_rng(0).normal(size=(3, WIDTH)))}
    before = checksum(frozen)
    seen = []
    knobs = {"recipe": views.presets.crop_flip(8), **KNOBS, "learning_rate": 1.0, "total_epochs": 4}
    out = probe_augmented(
        encode,
        frozen,
        x,
        y,
        x_test,
        y_test,
        **knobs,
        clean=lambda images: seen.append(images.shape) or views.evaluate(knobs["recipe"], images),
    )
    assert out.top1 > 0.9 and out.top5 == 1.0
    assert out.history.loss.shape == out.history.top1.shape == (4,)
    assert out.history.loss[-1] < out.history.loss[0]
    assert checksum(frozen) == before and seen
    shuffled = np.random.default_rng(3).permutation(y)
    assert probe_augmented(encode, frozen, x, shuffled, x_test, y_test, **knobs).top1 < 0.7


def test_a_backbone_that_changes_is_refused():
    x, y = pictures(32)
    frozen = {"w": np.ones((3, WIDTH), np.float32)}

    def writes(variables, images):
        frozen["w"][0, 0] += 1
        return encode(variables, images)

    plain = views.Recipe(size=8, crop="none", flip=0.0, mean=None, std=None)
    knobs = {"recipe": plain, **KNOBS, "total_epochs": 1}
    with pytest.raises(RuntimeError, match="frozen backbone changed"):
        probe_augmented(writes, frozen, x, y, x, y, **knobs)


def test_batches_that_run_out_are_an_error():
    x, y = pictures(32)
    batch = {"image": x, "label": y, "id": np.arange(32)}
    with pytest.raises(ValueError, match="epoch 0 gave 0 batches; expected steps_per_epoch=2"):
        probe_batches(
            encode,
            {"w": np.ones((3, WIDTH), np.float32)},
            lambda epoch: [],
            lambda: [batch],
            recipe=views.presets.crop_flip(8),
            steps_per_epoch=2,
            num_classes=CLASSES,
            total_epochs=1,
            learning_rate=0.1,
        )


def test_checksum_sees_every_bit_name_shape_and_type():
    tree = {
        "a": np.arange(6, dtype=np.float32),
        "b": {"c": jnp.ones((2, 3)), "key": jax.random.key(1)},
    }
    same = {"b": {"key": jax.random.key(1), "c": np.ones((2, 3), np.float32)}, "a": jnp.arange(6.0)}
    assert checksum(tree) == checksum(same) and len(checksum(tree)) == 64
    assert checksum(None) == checksum({})
    last = np.arange(6, dtype=np.float32)
    last[-1] = np.nextafter(last[-1], np.float32(9))
    changed = [
        {"a": last},
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3)},
        {"a": np.arange(6, dtype=np.int32)},
        {"b": {"c": jnp.ones((2, 3)), "key": jax.random.key(2)}},
        {"b": {"d": jnp.ones((2, 3))}},
    ]
    assert len({checksum(tree), *(checksum(tree | change) for change in changed)}) == 6
