"""Deep InfoMax's bounds against loops, closed forms, edges, and devices against one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from cl_jax.losses import mutual_information
from tests.losses.compiled import compiled
from tests.losses.parity import SLOW, assert_parity

module = compiled(mutual_information)

EVERY = [
    *(partial(module.dim_divergence, measure=measure) for measure in module.MEASURES),
    module.dim_infonce,
    partial(module.dim_infonce, own_logit=None),
    module.dim_donsker_varadhan,
]
NAMES = [*module.MEASURES, "infonce", "infonce without own", "dv"]
LOG2 = np.log(2)
PARTS = {
    "JSD": (lambda u: LOG2 - np.log1p(np.exp(-u)), lambda u: np.log1p(np.exp(u)) - LOG2),
    "GAN": (lambda u: np.log(1 / (1 + np.exp(-u))), lambda u: -np.log(1 - 1 / (1 + np.exp(-u)))),
    "X2": (lambda u: u * u, lambda u: -0.5 * (abs(u) + 1) ** 2),
    "KL": (lambda u: u, lambda u: np.exp(u - 1)),
    "RKL": (lambda u: -np.exp(-u), lambda u: u - 1),
    "H2": (lambda u: 1 - np.exp(-u), lambda u: np.exp(u) - 1),
    "W1": (lambda u: u, lambda u: u),
}


def maps(seed=0, images=4, places=3, summaries=2, width=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(images, places, width)), rng.normal(size=(images, summaries, width))


def pairs(local, summary):
    """(score, same image) of every summary with every place."""
    for n in range(len(summary)):
        for m in range(summary.shape[1]):
            for other in range(len(local)):
                for place in range(local.shape[1]):
                    yield summary[n, m] @ local[other, place], n == other


def oracle_divergence(local, summary, measure):
    positive, negative = PARTS[measure]
    return np.mean([negative(u) for u, own in pairs(local, summary) if not own]) - np.mean(
        [positive(u) for u, own in pairs(local, summary) if own]
    )


def oracle_infonce(local, summary, own_logit):
    terms = []
    for n in range(len(summary)):
        for m in range(summary.shape[1]):
            others = sum(
                np.exp(summary[n, m] @ z) for k in range(len(local)) if k != n for z in local[k]
            )
            others += local.shape[1] * np.exp(own_logit)
            for z in local[n]:
                u = summary[n, m] @ z
                terms.append(-np.log(np.exp(u) / (np.exp(u) + others)))
    return np.mean(terms)


def test_equals_loops():
    local, summary = maps()
    expected = [
        *(oracle_divergence(local, summary, measure) for measure in module.MEASURES),
        oracle_infonce(local, summary, -10),
        oracle_infonce(local, summary, -np.inf),
        np.log(np.mean([np.exp(u) for u, own in pairs(local, summary) if not own]))
        - np.mean([u for u, own in pairs(local, summary) if own]),
    ]
    with jax.enable_x64(True):
        ours = [loss(local, summary) for loss in EVERY]
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


@pytest.mark.parametrize("loss", EVERY, ids=NAMES)
def test_gradients_flow_to_both(loss):
    local, summary = maps(images=3, places=2, summaries=1, width=3)
    with jax.enable_x64(True):
        check_grads(jax.jit(loss), (0.5 * local, 0.5 * summary), order=1, modes="rev")
    for grad in jax.jit(jax.grad(loss, argnums=(0, 1)))(local, summary):
        assert np.any(grad)


def test_what_says_nothing():
    local, summary = maps()
    for loss, nothing in (
        (module.dim_divergence, 0),
        (module.dim_donsker_varadhan, 0),
        (partial(module.dim_infonce, own_logit=None), np.log(1 + 3 * 3)),
    ):
        np.testing.assert_allclose(loss(local, 0 * summary), nothing, atol=1e-6)
    np.testing.assert_allclose(
        module.dim_infonce(local, 0 * summary), np.log(1 + 9 + 3 * np.exp(-10)), rtol=1e-6
    )
    # Scores of 100 for one's own, -100 for others: the bounds' other ends.
    images = jnp.eye(4)[:, None]
    np.testing.assert_allclose(
        module.dim_divergence(100 * (2 * images - 1), images), -2 * LOG2, rtol=1e-6
    )
    np.testing.assert_allclose(module.dim_infonce(100 * (2 * images - 1), images), 0, atol=1e-6)


def test_donsker_varadhan_does_not_overflow():
    local, summary = maps()
    value, grads = jax.value_and_grad(module.dim_donsker_varadhan, argnums=(0, 1))(
        1e3 * local, summary
    )
    assert np.isfinite(value) and all(np.isfinite(grad).all() for grad in grads)
    with jax.enable_x64(True):
        shifted = np.concatenate([summary, np.ones((4, 2, 1))], axis=2)
        for constant in (0.0, 700.0):  # the same for all pairs: cancels
            with_constant = np.concatenate([local, np.full((4, 3, 1), constant)], axis=2)
            np.testing.assert_allclose(
                module.dim_donsker_varadhan(with_constant, shifted),
                module.dim_donsker_varadhan(local, summary),
                atol=1e-10,
            )


@pytest.mark.parametrize("loss", EVERY, ids=NAMES)
def test_zero_features_are_finite(loss):
    local, summary = maps()
    for given in ((0 * local, summary), (local, 0 * summary), (0 * local, 0 * summary)):
        value, grads = jax.value_and_grad(loss, argnums=(0, 1))(*map(jnp.asarray, given))
        assert np.isfinite(value) and all(np.isfinite(grad).all() for grad in grads)


def test_an_overflow_of_own_scores_does_not_reach_the_gradient():
    """exp(u) of an image with itself is infinite in float32, and takes no part in E-."""
    local = summary = 12 * jnp.eye(3)[:, None]
    value, grads = jax.value_and_grad(partial(module.dim_divergence, measure="KL"), argnums=(0, 1))(
        local, summary
    )
    assert np.isfinite(value) and all(np.isfinite(grad).all() for grad in grads)


def test_infonce_of_one_image():
    local, summary = maps(images=1)
    value, grads = jax.value_and_grad(partial(module.dim_infonce, own_logit=None), argnums=(0, 1))(
        *map(jnp.asarray, (local, summary))
    )
    assert value == 0 and not np.any(grads[0]) and not np.any(grads[1])
    np.testing.assert_allclose(
        module.dim_infonce(local, summary), oracle_infonce(local, summary, -10), rtol=1e-5
    )


def test_bfloat16_is_summed_in_float32():
    half = [jnp.asarray(x, jnp.bfloat16) for x in maps()]
    for loss in (module.dim_divergence, module.dim_infonce, module.dim_donsker_varadhan):
        assert loss(*half).dtype == jnp.float32
        np.testing.assert_allclose(
            loss(*half), loss(*(x.astype(jnp.float32) for x in half)), rtol=1e-6
        )


@pytest.mark.slow
@pytest.mark.parametrize("loss", [EVERY[0], *EVERY[-3:]], ids=[NAMES[0], *NAMES[-3:]])
def test_blocks_change_nothing_and_bound_memory(loss):
    local, summary = maps(images=48, places=16, summaries=1)
    runs = [
        jax.jit(jax.value_and_grad(partial(loss, block_size=size), argnums=(0, 1)))
        .lower(local, summary)
        .compile()
        for size in (None, 5)
    ]
    for plain, blocked in zip(
        *(
            jax.tree.leaves(run(local.astype(np.float32), summary.astype(np.float32)))
            for run in runs
        )
    ):
        np.testing.assert_allclose(blocked, plain, atol=2e-6, rtol=2e-6)
    plain, blocked = (run.memory_analysis().temp_size_in_bytes for run in runs)
    assert plain > 4 * 48 * 48 * 16 > 2 * blocked


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["gather", "ring"])
def test_parity_over_devices(plan):
    """Several in one, each with a weight of its own; all with CL_JAX_SLOW=1, where small scores
    suit exponentials."""
    several = EVERY if SLOW else [EVERY[0], *EVERY[-2:]]

    def loss(local, summary, axis_name):
        return sum(
            (1 + 0.1 * i) * each(local, summary, axis_name=axis_name, plan=plan)
            for i, each in enumerate(several)
        )

    local, summary = maps(images=8, places=2, summaries=2, width=3)
    assert_parity(loss, (0.5 * local, 0.5 * summary), [True, True])


def test_errors():
    local, summary = maps()
    with pytest.raises(ValueError, match=r"summary has shape \(4, 2, 4\).*d = 5"):
        module.dim_infonce(local, summary[..., :4])
    with pytest.raises(ValueError, match=r"local has shape \(4, 5\), 2 axes; expected \[b, l, d\]"):
        module.dim_divergence(local[:, 0], summary)
    with pytest.raises(
        ValueError, match=r"measure is 'DV'; expected one of JSD.*dim_donsker_varadhan"
    ):
        module.dim_divergence(local, summary, measure="DV")
    for loss in (module.dim_divergence, module.dim_donsker_varadhan):
        with pytest.raises(ValueError, match="The global batch has 1 image; expected at least 2"):
            loss(local[:1], summary[:1])
    with pytest.raises(ValueError, match="axis_name='i' is not mapped"):
        module.dim_divergence(local, summary, axis_name="i")
