"""A label below 0 is not a label: the row's own views are its only positives, in every loss with
labels, and no other row's loss depends on which such number it is."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.losses import (
    assignments,
    calm,
    clusters,
    distillation,
    generation,
    geometry,
    positives,
    targeted,
    video_text,
)
from cl_jax.losses.contrast import separate_unlabelled
from tests.losses.parity import assert_parity, unit

RNG = np.random.default_rng(0)
Z = unit(RNG.normal(size=(8, 2, 16)))
FLAT = Z[:, 0]
QUEUE, TARGETS = unit(RNG.normal(size=(10, 16))), unit(RNG.normal(size=(8, 16)))
GIVEN = np.array([0, 0, 1, 1, -1, -1, -1, -100])
APART = np.array([0, 0, 1, 1, 2, 3, 4, 5])
QUEUE_LABELS = np.array([0, 1, -1, -1, 0, 1, -1, 0, 1, -1])


@pytest.mark.parametrize(
    "loss",
    [
        lambda y: positives.supcon(Z, y, temperature=0.1),
        lambda y: positives.supcon(Z, y, temperature=0.1, summation="inside"),
        lambda y: positives.supcon(Z, y, temperature=0.1, contrast_mode="one", block_size=3),
        lambda y: positives.stablerep(FLAT, y, temperature=0.1),
        lambda y: positives.kcl_in_batch(Z, y, np.ones((16, 16), int), temperature=0.1),
        lambda y: positives.in_batch_positives(y, np.full((2, 16), 0.3), num_views=2),
        lambda y: geometry.tolerance(FLAT, y),
        lambda y: video_text.ranking_loss(FLAT, Z[:, 1], y, margin=0.2),
        lambda y: video_text.support_set(FLAT, Z[:, 1], y, temperature=0.2).vectors,
    ],
)
def test_rows_without_a_label_are_each_on_their_own(loss):
    given, apart, as_class = (
        jax.jit(loss)(y) for y in (GIVEN, APART, np.where(GIVEN < 0, 2, GIVEN))
    )
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(apart)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert any(
        not np.allclose(a, c) for a, c in zip(jax.tree.leaves(given), jax.tree.leaves(as_class))
    )


def test_an_unlabelled_query_has_its_key_alone():
    """KCL and TSC: InfoNCE against queue (and targets), whatever the queue's unlabelled hold."""
    none = np.full(8, -1)
    kcl = jax.jit(partial(positives.kcl, temperature=0.2))
    loss = kcl(FLAT, Z[:, 1], QUEUE, none, QUEUE_LABELS)
    s = np.concatenate([(FLAT * Z[:, 1]).sum(1, keepdims=True), FLAT @ QUEUE.T], axis=1) / 0.2
    np.testing.assert_allclose(loss, (np.log(np.exp(s).sum(1)) - s[:, 0]).mean(), rtol=1e-5)
    tsc = jax.jit(partial(targeted.tsc, temperature=0.2))
    loss = tsc(FLAT, Z[:, 1], QUEUE, none, QUEUE_LABELS, TARGETS, np.arange(8))
    s = np.concatenate([s, FLAT @ TARGETS.T / 0.2], axis=1)
    np.testing.assert_allclose(loss, (np.log(np.exp(s).sum(1)) - s[:, 0]).mean(), rtol=1e-5)


def test_a_generated_image_without_a_label_is_a_negative_alone():
    two_c_rows = jax.jit(partial(generation.two_c_rows, temperature=1.0))
    rows, apart = (two_c_rows(FLAT, TARGETS, y) for y in (GIVEN, APART))
    np.testing.assert_allclose(rows.loss[:4], apart.loss[:4], rtol=1e-5)
    np.testing.assert_array_equal(rows.loss[4:], 0)
    two_c = jax.jit(jax.grad(lambda p: generation.two_c(FLAT, p, GIVEN, temperature=1.0)))
    grad = two_c(TARGETS)
    np.testing.assert_array_equal(grad[2:], 0)


@pytest.mark.parametrize("number", [0, 8, -1])
def test_a_class_that_there_is_not_makes_the_loss_nan(number):
    """A label of -1 is none; a cluster or an assignment of -1 is wrong."""
    y, nan = np.array([0, 1, 2, 3, 4, 5, 6, number]), number == 8
    two_c = jax.jit(partial(generation.two_c, temperature=1.0))
    tsc = jax.jit(partial(targeted.tsc, FLAT, Z[:, 1], QUEUE, temperature=0.2))

    def proto(y):
        clustering = clusters.Clustering(TARGETS, np.ones(8), y, np.array([7]))
        return clusters.proto_nce(FLAT, clustering)

    assert np.isnan(two_c(FLAT, TARGETS, y)) == nan
    assert np.isnan(tsc(y, QUEUE_LABELS, TARGETS, np.arange(8))) == nan
    assert np.isnan(tsc(np.arange(8), QUEUE_LABELS, TARGETS, y)) == (number != 0)
    assert np.isnan(jax.jit(proto)(y)) == (number != 0)
    moved = jax.jit(targeted.tsc_centroids)(TARGETS, FLAT, y)
    assert np.isnan(moved).all() if nan else np.isfinite(moved).all()


def test_cross_entropies_leave_unlabelled_rows_out():
    logits = RNG.normal(size=(8, 3))
    y = np.array([0, 1, 2, 0, -1, -1, -100, -1])
    cross_entropy = jax.jit(assignments.cross_entropy)
    expected = cross_entropy(logits[:4], y[:4])
    np.testing.assert_allclose(cross_entropy(logits, y), expected, rtol=1e-6)
    soft_labels = jax.jit(partial(distillation.soft_labels, temperature=1.0, alpha=0.5))
    np.testing.assert_allclose(soft_labels(logits, logits, y).labels, expected, rtol=1e-6)
    tokens = RNG.normal(size=(2, 4, 3))
    of_tokens = jax.jit(calm.token_cross_entropy)
    np.testing.assert_allclose(
        of_tokens(tokens, np.array([[0, 1, -1, -100], [2, -1, -1, -1]])),
        of_tokens(tokens, np.array([[0, 1, -100, -100], [2, -100, -100, -100]])),
    )


def test_centroids_and_spcl_leave_unlabelled_rows_out():
    y = np.array([0, 1, 1, 0, -1, -1, -1, -1])
    centroids = TARGETS[:3]
    moved = jax.jit(targeted.tsc_centroids)
    np.testing.assert_allclose(
        moved(centroids, FLAT, y), moved(centroids, FLAT[:4], y[:4]), rtol=1e-6
    )
    spcl = jax.jit(partial(clusters.spcl, temperature=0.1, num_labels=2))
    rows, few = (spcl(FLAT[:n], FLAT, y, np.arange(n)) for n in (8, 4))
    np.testing.assert_allclose(rows, few / 2, rtol=1e-5)
    outside = np.array([7, 6, 5, 4, 8, -1, 9, -9])  # the same program, the last row labelled
    np.testing.assert_allclose(spcl(FLAT, FLAT[::-1], y[::-1], outside), rows, rtol=1e-5)


def test_the_numbers_given_are_unique_over_devices_and_fit_small_types():
    assert len(set(np.asarray(separate_unlabelled(np.full(300, -1, np.int8))).tolist())) == 300

    def loss(z, y, *, axis_name):
        return positives.supcon(z, y, temperature=0.1, axis_name=axis_name)

    assert_parity(loss, [Z, GIVEN], [True, True])


def test_labels_that_agree_with_everything_stay():
    labels = jnp.array([3, 0, 3])
    np.testing.assert_array_equal(separate_unlabelled(labels), labels)
