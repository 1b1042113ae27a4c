"""ContraGAN: the losses of both players, schedules that count steps of the run, parts of a batch,
what `generate` depends on."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax.core.method import Run
from cl_jax.losses import generation
from cl_jax.methods import contragan

CLASSES, DIM = 3, 4
RNG = np.random.default_rng(0)


class Generator(nn.Module):
    noise_dim: int = 5

    @nn.compact
    def __call__(self, noise, labels, *, train):
        x = nn.Dense(4)(noise) + nn.Embed(CLASSES, 4)(labels)
        count = self.variable("batch_stats", "calls", jnp.zeros, ())
        if train and not self.is_initializing():
            count.value = count.value + 1
        return jnp.tanh(x).reshape(-1, 2, 2, 1)


class Discriminator(nn.Module):
    @nn.compact
    def __call__(self, images, *, train):
        self.param("proxies", nn.initializers.normal(1.0), (CLASSES, DIM))
        h = nn.Dense(6)(images.reshape(len(images), -1))
        return {"score": nn.Dense(1)(h)[:, 0], "z": nn.Dense(DIM)(h), "h": h}


def run(batch=8, **changes):
    return Run(None, batch, 64, 8, 100, {"label": CLASSES}, **changes)


def make(**changes):
    given = dict(
        encoder=dict(generator=Generator(), discriminator=Discriminator()),
        tx=optax.adam(1e-2),
        views=(),
        run=run(),
        discriminator_steps=2,
        ema=0.5,
        ema_start=0,
    )
    return contragan.make(**(given | changes))


BATCH = {
    "image": RNG.integers(0, 256, (8, 2, 2, 1)).astype(np.uint8),
    "label": np.arange(8, dtype=np.int32) % CLASSES,
    "id": np.arange(8, dtype=np.int32),
}
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def start():
    return jax.jit(make().init)(KEY, BATCH)


@pytest.mark.parametrize("positives", ["class", "proxy"])
def test_losses_are_those_of_the_formulas(positives, start):
    networks = contragan.Networks(Generator(), Discriminator(), 5, CLASSES)
    contrast = contragan.Contrast(0.7, 0.5, positives, None)
    params = start.params
    noise = jax.jit(networks.draw)(jax.random.split(KEY, 8))
    stats = {"generator": {"calls": jnp.zeros(())}, "discriminator": {}}
    real = contragan._real(BATCH)

    @jax.jit
    def played(params, noise):
        fake, _ = networks.make(params["generator"], stats["generator"], noise, True)
        judge = networks.judge
        return fake, [judge(params["discriminator"], {}, x, True)[0] for x in (real, fake)]

    fake, judged = played(params, noise)
    proxies = params["discriminator"]["proxies"]
    settings = dict(temperature=0.5, weight=0.7, positives=positives)

    def discriminator(d):
        return contragan._discriminator_loss(
            networks, contrast, {}, real, fake, jnp.asarray(BATCH["label"])
        )(d)[0]

    value, gradient = jax.jit(jax.value_and_grad(discriminator))(params["discriminator"])
    expected = generation.contragan_discriminator(
        judged[0]["score"], judged[1]["score"], judged[0]["z"], proxies, BATCH["label"], **settings
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.any(gradient["proxies"])

    made = contragan._generator_loss(networks, contrast, params["discriminator"], stats, noise)
    value = jax.jit(lambda g: made(g)[0])(params["generator"])
    expected = generation.contragan_generator(
        judged[1]["score"], judged[1]["z"], proxies, noise[1], **settings
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_schedules_count_steps_of_the_run():
    rates = jnp.array([1.0, 0.1, 0.01])
    schedule = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(lambda i: -rates[i]))
    plain, slow = optax.chain(optax.scale_by_adam()), contragan.per_step(schedule, 2)
    params = {"w": jnp.ones(2)}
    state, direction = slow.init(params), plain.init(params)
    for i in range(5):
        gradient = {"w": jnp.array([1.0, -2.0]) * (i + 1)}
        moved, state = slow.update(gradient, state, params)
        expected, direction = plain.update(gradient, direction, params)  # counts every update
        np.testing.assert_allclose(moved["w"], -rates[i // 2] * expected["w"], rtol=1e-6)


def test_a_step_moves_both_players_and_the_average(start):
    method, before = make(), start
    np.testing.assert_array_equal(
        before.params["generator"]["Dense_0"]["kernel"],
        before.target.params["Dense_0"]["kernel"],
    )
    after, metrics = jax.jit(method.update)(before, BATCH, KEY)
    assert int(after.step) == 1
    assert int(after.opt["discriminator"][0]) == 2  # updates of the discriminator
    assert int(after.stats["generator"]["calls"]) == 3  # two for the discriminator, one own
    for player in contragan.PLAYERS:
        moved = jax.tree.map(
            lambda a, b: np.any(a != b), before.params[player], after.params[player]
        )
        assert all(any(jax.tree.leaves(layer)) for layer in moved.values()), moved
    jax.tree.map(
        lambda old, new, kept: np.testing.assert_allclose(kept, 0.5 * (old + new), rtol=1e-5),
        before.params["generator"],
        after.params["generator"],
        after.target.params,
    )
    np.testing.assert_allclose(
        metrics["loss"], metrics["generator_loss"] + metrics["discriminator_loss"], rtol=1e-6
    )


@pytest.mark.slow
def test_the_average_starts_late():
    method = make(ema=0.9, ema_start=2)
    state, update = jax.jit(method.init)(KEY, BATCH), jax.jit(method.update)
    for step in range(3):
        state, _ = update(state, BATCH, jax.random.fold_in(KEY, step))
        own, kept = state.params["generator"], state.target.params
        same = np.array_equal(own["Dense_0"]["bias"], kept["Dense_0"]["bias"])
        assert same == (step < 2)


def test_what_is_generated_depends_on_id_and_label(start):
    method, state = make(truncation=0.5), start
    generate = jax.jit(method.functions["generate"])
    whole = generate(state, BATCH)
    assert whole["image"].shape == (8, 2, 2, 1) and whole["image"].dtype == jnp.uint8
    turned = generate(state, {name: x[::-1] for name, x in BATCH.items()})
    np.testing.assert_array_equal(whole["image"], turned["image"][::-1])
    none = generate(state, BATCH | {"label": np.full(8, -1, np.int32)})
    assert len(set(none["label"].tolist())) > 1 and none["label"].min() >= 0
    named = generate(state, BATCH | {"label": none["label"]})
    np.testing.assert_array_equal(none["image"], named["image"])
    other = generate(state, BATCH | {"label": (BATCH["label"] + 1) % CLASSES})
    assert np.any(whole["image"] != other["image"])
    noise = contragan._test_noise(jnp.arange(64), 5, 0.5)
    assert np.abs(noise).max() <= 0.5 and len(np.unique(noise)) == noise.size


def test_parts_of_a_batch_do_not_depend_on_devices():
    pieces = contragan._cut({"id": np.arange(8)}, 2)
    halves = [contragan._cut({"id": part}, 2) for part in np.split(np.arange(8), 2)]
    for p in range(2):
        joined = np.concatenate([half[p]["id"] for half in halves])
        np.testing.assert_array_equal(pieces[p]["id"], joined)


def test_mirrored_images():
    images = jnp.asarray(RNG.normal(size=(64, 2, 3, 1)))
    keys = jax.random.split(KEY, 64)
    np.testing.assert_array_equal(contragan._mirror(images, keys, 1.0), images[:, :, ::-1])
    half = contragan._mirror(images, keys, 0.5)
    turned = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(half, images)])
    kept = np.array([np.array_equal(a, b) for a, b in zip(half, images)])
    assert np.all(turned ^ kept) and 16 < turned.sum() < 48


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(encoder=dict(generator=Generator())), "no section 'discriminator'"),
        (dict(encoder=Generator()), "no section 'generator'"),
        (dict(views=(1,)), "Set config.views to an empty section"),
        (dict(label="digit"), "given the label 'digit'; the data have: label"),
        (dict(discriminator_steps=3), "batch_size=8 and discriminator_steps=3"),
        (dict(ema=1.0), "ema=1.0"),
        (dict(run=run(labels=lambda name: np.full(64, -1))), "no training image has a label"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_images_of_another_size():
    method = make()
    batch = BATCH | {"image": np.zeros((8, 4, 4, 1), np.uint8)}
    with pytest.raises(ValueError, match=r"makes images \[2, 2, 1\], the data have \[4, 4, 1\]"):
        jax.eval_shape(method.init, KEY, batch)
