"""What is each method's own: InstDisc's bank and normaliser, InvaSpread's one-sided gradient."""

import functools

import jax
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run
from cl_jax.losses import nce
from cl_jax.methods import instdisc, invaspread
from cl_jax.views import make as recipe
from tests.small import Pixels, started, updates

RUN = Run(None, 8, 32, 4, 8, {"label": 8})
VIEW = recipe({"name": "crop_flip", "crop": "none", "size": 8, "test_crop": 1.0})
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
IDS = np.array([3, 1, 4, 15, 9, 2, 6, 5], np.int32)
BATCH = {"image": IMAGES, "id": IDS}
NETWORK = Pixels()


def build(**settings):
    method = instdisc.make(
        encoder=NETWORK,
        tx=optax.sgd(0.1),
        views=(VIEW,),
        run=RUN,
        out_dim=8,
        **{"num_negatives": 5, "momentum": 0.7, **settings},
    )
    return started(method, BATCH), updates(method)


@functools.cache
def plain():
    """A State, and what a step against the whole bank makes of it."""
    state, update = build(loss="full_softmax")
    return state, *update(state, BATCH, jax.random.key(1))


def test_only_the_rows_of_the_batch_move_and_z_stays_that_of_the_first():
    state, update = build(loss="nce")
    after, metrics = update(state, BATCH, jax.random.key(1))
    still = np.setdiff1d(np.arange(32), IDS)
    np.testing.assert_array_equal(after.memory.rows.rows[still], state.memory.rows.rows[still])
    assert (np.abs(after.memory.rows.rows[IDS] - state.memory.rows.rows[IDS]).max(1) > 0).all()
    np.testing.assert_allclose(np.linalg.norm(after.memory.rows.rows[IDS], axis=1), 1, rtol=1e-5)
    later, again = update(after, BATCH, jax.random.key(2))
    assert metrics["log_z"] == again["log_z"] == later.memory.normalizer.log_z
    moving, update = build(loss="nce", normalizer_momentum=0.5)
    one, first = update(moving, BATCH, jax.random.key(1))
    assert update(one, BATCH, jax.random.key(2))[1]["log_z"] != first["log_z"]


def test_a_row_moves_to_the_feature_of_this_step():
    """0.7 of the old row and 0.3 of the feature, normalised: so the feature lies in the plane of
    the two."""
    state, after, _ = plain()
    assert after.memory.normalizer is None
    old, new = np.asarray(state.memory.rows.rows[IDS]), np.asarray(after.memory.rows.rows[IDS])
    # scale * new - 0.7 old = 0.3 feature with a feature of norm 1: the quadratic's positive root
    # gives the scale.
    cosine = np.sum(old * new, axis=1)
    scale = 0.7 * cosine + np.sqrt((0.7 * cosine) ** 2 - 0.49 * np.sum(old**2, axis=1) + 0.09)
    assert np.isfinite(scale).all()
    feature = (scale[:, None] * new - 0.7 * old) / 0.3
    np.testing.assert_allclose(np.linalg.norm(feature, axis=1), 1, rtol=1e-4)


@pytest.mark.parametrize("loss", instdisc.LOSSES)
def test_chance_is_the_loss_of_equal_similarities(loss):
    state, update = build(loss=loss, temperature=1e6)
    _, metrics = update(state, BATCH, jax.random.key(1))
    np.testing.assert_allclose(metrics["loss"], metrics["chance"], rtol=1e-4)


def test_chance_of_nce_by_counting():
    np.testing.assert_allclose(nce.nce_chance(64), np.log(65) + 64 * np.log(65 / 64))


def test_the_proximal_term_adds_its_weight():
    _, _, without = plain()
    state, update = build(loss="full_softmax", proximal_weight=0.5)
    _, held = update(state, BATCH, jax.random.key(1))
    np.testing.assert_allclose(held["loss"], without["loss"] + 0.5 * held["proximal"], rtol=1e-5)


def test_invaspread_chance_and_errors():
    method = invaspread.make(
        encoder=NETWORK, tx=optax.sgd(0.1), views=(VIEW,) * 2, run=RUN, out_dim=8, temperature=1e6
    )
    _, metrics = jax.jit(method.update)(started(method, BATCH), BATCH, jax.random.key(1))
    np.testing.assert_allclose(metrics["loss"], metrics["chance"], rtol=1e-4)
    for settings, text in (
        (dict(loss="bce"), "expected one of nce"),
        (dict(proximal_weight=-1.0), "expected 0 or more"),
    ):
        with pytest.raises(ValueError, match=text):
            build(**settings)
    with pytest.raises(ValueError, match="one view of each image"):
        instdisc.make(encoder=NETWORK, tx=optax.sgd(0.1), views=(VIEW,) * 2, run=RUN)
    with pytest.raises(ValueError, match="contrasts two views"):
        invaspread.make(encoder=NETWORK, tx=optax.sgd(0.1), views=(VIEW,), run=RUN)
