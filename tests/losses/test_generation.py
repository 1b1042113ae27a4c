"""The 2C loss and the adversarial losses against loops, at kinks and empty classes, and over
devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.losses import generation
from tests.losses.compiled import compiled
from tests.losses.parity import AXIS, assert_parity

module = compiled(generation)

LABELS = np.array([0, 2, 0, 1, 2, 0, 4, 2])


def batch(seed=0, width=6, classes=5):
    rng = np.random.default_rng(seed)
    return (
        2 * rng.normal(size=(8, width)),
        rng.normal(size=(classes, width)),
        *rng.normal(size=(2, 8)),
    )


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def oracle(z, proxies, labels, temperature, positives="class"):
    total = 0.0
    for i in range(len(z)):
        own = np.exp(cosine(z[i], proxies[labels[i]]) / temperature)
        pair = [np.exp(cosine(z[i], z[j]) / temperature) for j in range(len(z)) if j != i]
        same = [labels[j] == labels[i] for j in range(len(z)) if j != i]
        above = own + sum(s for s, mine in zip(pair, same) if mine and positives == "class")
        total -= np.log(above / (own + sum(pair)))
    return total / len(z)


@pytest.mark.parametrize("positives", ["class", "proxy"])
def test_two_c_equals_loops(positives):
    z, proxies, *_ = batch()
    expected = oracle(z, proxies, LABELS, 0.5, positives)
    with jax.enable_x64(True):
        loss = module.two_c(
            jnp.asarray(z), jnp.asarray(proxies), LABELS, temperature=0.5, positives=positives
        )
    np.testing.assert_allclose(loss, expected, atol=1e-12)


@pytest.mark.parametrize("positives", ["class", "proxy"])
def test_tiles_give_the_same(positives):
    z, proxies, *_ = (jnp.asarray(x) for x in batch())

    def run(block_size):
        loss = partial(
            module.two_c, labels=LABELS, temperature=0.5, positives=positives, block_size=block_size
        )
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(z, proxies)

    for a, b in zip(jax.tree.leaves(run(3)), jax.tree.leaves(run(0))):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_two_c_closed_forms():
    z, proxies, *_ = batch()
    same = np.ones((8, 6))
    members = np.array([(LABELS == label).sum() for label in LABELS])
    loss = module.two_c(same, np.ones((5, 6)), LABELS, temperature=0.3)
    np.testing.assert_allclose(loss, np.mean(np.log(8) - np.log(members)), rtol=1e-5)
    one_class = module.two_c(z, proxies, np.zeros(8, int), temperature=0.3)
    np.testing.assert_allclose(one_class, 0, atol=1e-6)
    assert module.two_c(z[:1], proxies, LABELS[:1], temperature=0.3) == 0
    np.testing.assert_allclose(
        module.two_c(3 * z, 0.1 * proxies, LABELS, temperature=0.3),
        module.two_c(z, proxies, LABELS, temperature=0.3),
        rtol=1e-5,
    )


def test_rows_keep_their_digits_at_low_temperature():
    """Tight, far apart classes: the loss is far below a float32 step of its logarithms, which are
    near 100."""
    rng = np.random.default_rng(0)
    z = np.eye(6)[LABELS] + 0.05 * rng.normal(size=(8, 6))
    proxies = np.eye(6)[:5]
    for positives in ("class", "proxy"):
        expected = oracle(z, proxies, LABELS, 0.01, positives)
        loss = module.two_c(
            jnp.asarray(z, jnp.float32), proxies, LABELS, temperature=0.01, positives=positives
        )
        np.testing.assert_allclose(loss, expected, atol=3e-5 if positives == "proxy" else 1e-7)


def test_only_the_own_proxies_take_gradient():
    z, proxies, *_ = batch()
    loss = partial(generation.two_c, labels=LABELS, temperature=0.5)
    grad = jax.jit(jax.grad(loss, argnums=1))(z, proxies)
    np.testing.assert_array_equal(
        np.any(grad, axis=1), [True, True, True, False, True]
    )  # no image of class 3


def test_who_trains_on_what():
    z, proxies, d_real, d_fake = (jnp.asarray(x) for x in batch())
    knobs = {"temperature": 0.5, "weight": 0.7}
    expected = module.two_c(z, proxies, LABELS, temperature=0.5) * 0.7
    loss = partial(generation.contragan_discriminator, labels_real=LABELS, **knobs)
    d_loss, d_grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(
        d_real, d_fake, z, proxies
    )
    np.testing.assert_allclose(
        d_loss, module.hinge_discriminator(d_real, d_fake) + expected, rtol=1e-6
    )
    assert all(np.any(g) for g in d_grads)
    loss = partial(generation.contragan_generator, labels_fake=LABELS, **knobs)
    g_loss, g_grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(d_fake, z, proxies)
    np.testing.assert_allclose(g_loss, expected - d_fake.mean(), rtol=1e-6)
    assert np.any(g_grads[0]) and np.any(g_grads[1]) and not np.any(g_grads[2])


def test_adversarial_losses_equal_loops_and_stop_at_the_kink():
    real, fake = np.array([1.0, 2.5, -0.3, 0.2]), np.array([-1.0, 0.4, -3.0, 1.5])
    expected = {
        "hinge": (
            np.mean([max(0, 1 - d) for d in real]) + np.mean([max(0, 1 + d) for d in fake]),
            -fake.mean(),
        ),
        "logistic": (
            np.log1p(np.exp(-real)).mean() + np.log1p(np.exp(fake)).mean(),
            np.log1p(np.exp(-fake)).mean(),
        ),
        "least_squares": (
            ((real - 1) ** 2).mean() / 2 + (fake**2).mean() / 2,
            ((fake - 1) ** 2).mean() / 2,
        ),
    }
    for name, (d_loss, g_loss) in expected.items():
        np.testing.assert_allclose(
            getattr(module, f"{name}_discriminator")(real, fake), d_loss, rtol=1e-6
        )
        np.testing.assert_allclose(getattr(module, f"{name}_generator")(fake), g_loss, rtol=1e-6)
    grads = jax.jit(jax.grad(generation.hinge_discriminator, argnums=(0, 1)))(real, fake)
    np.testing.assert_array_equal(grads[0], [0, 0, -0.25, -0.25])
    np.testing.assert_array_equal(grads[1], [0, 0.25, 0, 0.25])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zero_rows_and_low_temperature_are_finite(dtype):
    z, proxies, *_ = (jnp.asarray(x, dtype) for x in batch())
    for positives in ("class", "proxy"):
        loss = partial(generation.two_c, labels=LABELS, temperature=0.01, positives=positives)
        value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(
            z.at[0].set(0), proxies.at[2].set(0)
        )
        assert value.dtype == jnp.float32 and np.isfinite(value)
        assert all(g.dtype == dtype and np.isfinite(np.asarray(g, np.float32)).all() for g in grads)


def test_bfloat16_rows_are_rounded_after_their_length():
    z, proxies, *_ = (jnp.asarray(x, jnp.bfloat16) for x in batch())
    np.testing.assert_allclose(
        module.two_c(z, proxies, LABELS, temperature=0.1),
        module.two_c(z.astype(jnp.float32), proxies.astype(jnp.float32), LABELS, temperature=0.1),
        rtol=1e-2,
    )


@pytest.mark.slow
def test_devices_agree():
    z, proxies, d_real, d_fake = batch()

    def loss(d_real, d_fake, z, proxies, labels, axis_name):
        knobs = {"temperature": 0.5, "axis_name": axis_name}
        return (
            module.contragan_discriminator(d_real, d_fake, z, proxies, labels, weight=0.7, **knobs)
            + 2
            * module.contragan_generator(
                d_fake, z, proxies, labels, weight=0.5, positives="proxy", **knobs
            )
            + 3 * module.logistic_discriminator(d_real, d_fake, axis_name=axis_name)
            + module.logistic_generator(d_fake, axis_name=axis_name)
            + module.least_squares_discriminator(d_real, d_fake, axis_name=axis_name)
            + 2 * module.least_squares_generator(d_fake, axis_name=axis_name)
        )

    assert_parity(loss, (d_real, d_fake, z, proxies, LABELS), (True, True, True, False, True))


def test_the_released_gradient_is_divided_by_the_devices():
    z, proxies, *_ = (np.asarray(x, np.float32) for x in batch())

    def step(z, labels, released):
        loss = partial(
            module.two_c,
            proxies=proxies,
            labels=labels,
            temperature=0.5,
            axis_name=AXIS,
            released_gradient=released,
        )
        return jax.value_and_grad(loss)(z)

    shards = z.reshape(4, 2, -1), LABELS.reshape(4, 2)
    ours, theirs = (
        jax.pmap(partial(step, released=released), axis_name=AXIS, devices=jax.devices()[:4])(
            *shards
        )
        for released in (False, True)
    )
    np.testing.assert_array_equal(theirs[0], ours[0])
    np.testing.assert_allclose(theirs[1], np.asarray(ours[1]) / 4, rtol=1e-6)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda z, p, d: module.two_c(z, p[:, :3], LABELS, temperature=0.5), "proxies has shape"),
        (lambda z, p, d: module.two_c(z, p, LABELS[:3], temperature=0.5), "labels has shape"),
        (lambda z, p, d: module.two_c(z, p, np.eye(5)[LABELS], temperature=0.5), "argmax"),
        (lambda z, p, d: module.two_c(z, p, LABELS, temperature=0), "temperature is 0"),
        (
            lambda z, p, d: module.two_c(z, p, LABELS, temperature=0.5, positives="own"),
            "expected 'class' or 'proxy'",
        ),
        (
            lambda z, p, d: module.two_c(z, p, LABELS, temperature=0.5, axis_name="nowhere"),
            "not mapped",
        ),
        (lambda z, p, d: module.hinge_discriminator(d[:, None], d), "d_real has shape"),
        (lambda z, p, d: module.hinge_generator(d.astype(int)), "floating-point"),
    ],
)
def test_errors(call, words):
    z, proxies, d_real, _ = batch()
    with pytest.raises(ValueError, match=words):
        call(z, proxies, d_real)
