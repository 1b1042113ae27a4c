"""What is each method's own: VICReg, Barlow Twins, DCL, NNCLR, W-MSE and LeJEPA."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import losses
from cl_jax.core.keys import batch_key
from cl_jax.core.method import Run
from cl_jax.methods import barlow, dcl, lejepa, nnclr, vicreg, wmse
from cl_jax.views import draw
from cl_jax.views import make as recipe
from tests.small import Pixels, started

RUN = Run(None, 8, 32, 4, 8, {"label": 8})
VIEW = recipe({"name": "crop_flip", "crop": "none", "size": 8, "test_crop": 1.0})
SMALL = recipe({"name": "crop_flip", "crop": "none", "size": 4, "test_crop": 1.0})
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
BATCH = {"image": IMAGES, "id": np.arange(8, dtype=np.int32)}
SHARED = dict(encoder=Pixels(), tx=optax.sgd(0.1), run=RUN)
WIDTHS = dict(hidden_dim=8, out_dim=4)
TWO = (VIEW, VIEW)
KEY = jax.random.key(1)


def stepped(method):
    first = started(method, BATCH)
    state, metrics = jax.jit(method.update)(first, BATCH, KEY)
    return first, state, metrics


def projections(module, first, views=TWO, one_by_one=True, **head):
    """[V, B, D] of the first step, by the network of a method with params and stats of its own."""
    network = module.Network(Pixels(), module.mlp.make(**head))
    params, stats = first.params, first.stats
    if "network" in params:
        params, stats = params["network"], stats["network"]
    variables = {"params": params, "batch_stats": stats}

    def z_of(variables, images):
        return network.apply(variables, images, True, mutable=["batch_stats"])[0][0]

    @jax.jit
    def all_of(variables, batch, key):
        inputs = draw(views, batch, key)
        if one_by_one:
            return jnp.stack([z_of(variables, images) for images in inputs])
        return jnp.stack(jnp.split(z_of(variables, jnp.concatenate(inputs)), len(views)))

    return all_of(variables, BATCH, KEY)


@pytest.mark.slow
def test_vicreg_weighs_its_terms_of_views_that_passed_one_by_one():
    method = vicreg.make(views=TWO, **SHARED, **WIDTHS, variance_weight=3.0, covariance_weight=2.0)
    first, _, metrics = stepped(method)
    z = projections(vicreg, first, variant="vicreg", **WIDTHS)
    expected = losses.vicreg(z[0], z[1], variance_weight=3.0, covariance_weight=2.0)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
    parts = 25 * metrics["invariance"] + 3 * metrics["variance"] + 2 * metrics["covariance"]
    np.testing.assert_allclose(metrics["loss"], parts, rtol=1e-5)


def test_barlow_twins_says_its_chance_and_its_diagonal():
    method = barlow.make(views=TWO, **SHARED, **WIDTHS, scale=0.5)
    first, _, metrics = stepped(method)
    z = projections(barlow, first, variant="barlow", **WIDTHS)
    expected = losses.barlow_twins(z[0], z[1], scale=0.5)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-3)
    correlation = losses.decorrelation.cross_correlation(z[0], z[1])
    diagonal = np.square(np.diag(correlation) - 1).sum()
    np.testing.assert_allclose(metrics["invariance"], diagonal, rtol=1e-3)
    assert metrics["chance"] == 0.5 * 4


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_dcl_passes_both_views_together_and_weighs_them_where_sigma_is_given(sigma):
    method = dcl.make(views=TWO, **SHARED, out_dim=4, temperature=0.2, sigma=sigma)
    first, _, metrics = stepped(method)
    z = projections(dcl, first, one_by_one=False, variant="simclr", out_dim=4, num_layers=2)
    expected = (
        losses.decoupled.dclw(z[0], z[1], temperature=0.2, sigma=sigma)
        if sigma
        else losses.dcl(z[0], z[1], temperature=0.2)
    )
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["chance"], np.log(14), rtol=1e-6)


def test_nnclr_looks_up_before_view_1_enters_the_queue():
    method = nnclr.make(views=TWO, **SHARED, **WIDTHS, predictor_dim=8, queue_size=20)
    first, after, metrics = stepped(method)
    z = projections(nnclr, first, variant="nnclr", num_layers=3, **WIDTHS)
    unit = losses.unit(z)
    np.testing.assert_allclose(after.memory.rows[:8], unit[0], atol=1e-5)
    np.testing.assert_array_equal(after.memory.rows[8:], first.memory.rows[8:])
    assert after.memory.pointer == 8 and after.memory.filled == 8
    near = (unit @ first.memory.rows.T).max(axis=-1)  # cosines, of the queue before the step
    np.testing.assert_allclose(metrics["neighbour_cosine"], near.mean(), rtol=1e-4)
    assert metrics["chance"] == np.float32(np.log(8)) and metrics["queue_filled"] == 0


@pytest.mark.slow
def test_w_mse_whitens_groups_of_the_steps_permutation():
    method = wmse.make(views=(VIEW,) * 3, **SHARED, hidden_dim=8, out_dim=2, group_size=4)
    first, _, metrics = stepped(method)
    z = jnp.asarray(network_of_list(wmse, first, (VIEW,) * 3, variant="wmse", out_dim=2))
    order = losses.decorrelation.draw_permutations(batch_key(KEY), 8, 1)
    np.testing.assert_allclose(
        metrics["loss"], losses.decorrelation.w_mse(z, order, group_size=4), rtol=1e-3
    )


@pytest.mark.slow
def test_lejepa_has_one_mean_of_the_global_crops_and_the_steps_directions():
    views = (VIEW, VIEW, SMALL)
    method = lejepa.make(views=views, **SHARED, **WIDTHS, num_global=2, num_directions=16)
    first, _, metrics = stepped(method)
    z = network_of_list(lejepa, first, views, variant="lejepa", out_dim=4)
    directions = losses.spread.draw_directions(batch_key(KEY), 4, 16)
    expected = losses.spread.lejepa(z, directions, num_global=2, weight=0.05)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-3)
    parts = 0.05 * metrics["sigreg"] + 0.95 * metrics["prediction"]
    np.testing.assert_allclose(metrics["loss"], parts, rtol=1e-5)


def network_of_list(module, first, views, **head):
    """Views of equal size that follow each other pass together in LeJEPA, one by one in W-MSE."""
    network = module.Network(Pixels(), module.mlp.make(hidden_dim=8, **head))

    @jax.jit
    def all_of(variables, batch, key):
        inputs = draw(views, batch, key)
        if module is lejepa:
            inputs = [jnp.concatenate(inputs[:2]), inputs[2]]
        z = network.apply(variables, inputs, True, mutable=["batch_stats"])[0][0]
        return jnp.stack(jnp.split(z, len(views)))

    return all_of({"params": first.params, "batch_stats": first.stats}, BATCH, KEY)


def test_settings_that_cannot_be():
    for module in (vicreg, barlow, dcl, nnclr):
        with pytest.raises(ValueError, match="two views; the config has 3"):
            module.make(views=(VIEW,) * 3, **SHARED)
    for module in (wmse, lejepa):
        with pytest.raises(ValueError, match="two views or more; the config has 1"):
            module.make(views=(VIEW,), **SHARED)
    with pytest.raises(ValueError, match="queue_size=98304 is more than the 32 training examples"):
        nnclr.make(views=TWO, **SHARED)
    with pytest.raises(ValueError, match="group_size=6 does not divide the batch of 8; use 2"):
        wmse.make(views=TWO, **SHARED, group_size=6)
    with pytest.raises(ValueError, match="num_global=3; expected 1 to the 2 views"):
        lejepa.make(views=TWO, **SHARED, num_global=3)
