"""CPC on sound: what the step is made of, the control of time, errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import losses
from cl_jax.core.keys import example_keys, view_keys
from cl_jax.core.method import Run
from cl_jax.encoders import conv1d, gru
from cl_jax.methods import cpc_audio
from cl_jax.views import audio
from tests import small

RUN = Run(None, 6, 32, 4, 8, {"label": 2})
VIEW = audio.make(samples=80)
RNG = np.random.default_rng(0)
BATCH = {
    "audio": RNG.integers(-8000, 8000, (6, 120)).astype(np.int16),
    "length": np.array([120, 100, 90, 120, 81, 60], np.int32),
    "id": np.array([3, 1, 4, 15, 9, 2], np.int32),
}
ENCODER = {
    "wave": conv1d.make(channels=4, kernels=(8,), strides=(5,), padding=(2,)),
    "context": gru.make(width=3),
}
STEPS = 2


def build(**settings):
    settings = {"encoder": ENCODER, "views": (VIEW,), "run": RUN, "steps": STEPS} | settings
    return cpc_audio.make(tx=optax.sgd(0.1), **settings)


@pytest.fixture(scope="module")
def started():
    method = build()
    state = small.started(method, BATCH)
    # Latents of such a recording are small: as they are, all scores would be alike.
    return method, state.replace(params=jax.tree.map(lambda x: 4 * x, state.params))


def test_the_loss_is_that_of_the_paper(started):
    """Predictions W_k c_t of z_(t+k), negatives all latents of the batch, written out."""
    method, state = started
    key = jax.random.key(5)
    _, metrics = jax.jit(method.update)(state, BATCH, key)
    keys = view_keys(example_keys(key, jnp.asarray(BATCH["id"])), 0)

    @jax.jit
    def encoded(p, batch):
        x = VIEW.draw(keys, batch)
        z = ENCODER["wave"].apply({"params": p["latents"]}, x, train=True)["sequence"]
        return z, ENCODER["context"].apply({"params": p["context"]}, z, train=True)["sequence"]

    z, c, w = (
        np.asarray(a, np.float64) for a in (*encoded(state.params, BATCH), state.params["predict"])
    )
    batch, times, _ = z.shape
    everyone, value = z.reshape(batch * times, -1), []
    for k in (1, 2):
        for b in range(batch):
            for t in range(times - STEPS):
                scores = everyone @ (w[k - 1] @ c[b, t])
                value.append(np.log(np.exp(scores).sum()) - scores[b * times + t + k])
    np.testing.assert_allclose(metrics["loss"], np.mean(value), rtol=1e-5)
    np.testing.assert_allclose(metrics["chance"], np.log(batch * times), rtol=1e-6)
    assert {"accuracy_1", "accuracy_2", "grad_norm"} <= metrics.keys()


def test_gradient_reaches_every_part(started):
    method, state = started
    after, _ = jax.jit(method.update)(state, BATCH, jax.random.key(5))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.params, state.params)
    assert all(change > 0 for change in jax.tree.leaves(moved)), moved


def test_the_function_steps_looks_at_one_recording_at_a_time(started):
    """Shares of each recording, whatever else is in the batch; time out of order is at chance."""
    method, state = started
    steps = jax.jit(method.functions["steps"])
    found = np.asarray(steps(state, BATCH))
    assert found.shape == (6, STEPS) and ((found >= 0) & (found <= 1)).all()
    alone = {name: np.repeat(value[2:3], 6, axis=0) for name, value in BATCH.items()}
    np.testing.assert_allclose(np.asarray(steps(state, alone))[0], found[2], atol=1e-6)


def test_latents_that_score_alike_share_what_is_picked_out():
    picked = jax.jit(cpc_audio.picked_out)
    rng = np.random.default_rng(1)  # of its own: the other tests' draws stay what they are
    p, z = (rng.normal(size=shape).astype(np.float32) for shape in ((STEPS, 9, 4), (9, 4)))
    scores = p[:, : 9 - STEPS] @ z.T
    first = scores.argmax(2) == np.arange(9 - STEPS) + np.arange(1, STEPS + 1)[:, None]
    assert 0 < first.mean() < 1
    np.testing.assert_allclose(picked(p, z), first.mean(1), rtol=1e-6)
    np.testing.assert_allclose(picked(p, 0 * z), np.full(STEPS, 1 / 9), rtol=1e-6)
    np.testing.assert_array_equal(picked(p, np.nan * z), np.zeros(STEPS))


def test_time_out_of_order_brings_accuracy_to_chance():
    """The control of the paper's reimplementations, with contexts that know the latent to come."""
    batch, times, width = 3, 40, 16
    z = RNG.normal(size=(batch, times, width))
    c = np.roll(z, -1, axis=1)
    p = losses.predictive.predictions(jnp.asarray(c, jnp.float32), jnp.eye(width)[None])
    accuracy = partial(losses.predictive.cpc_steps, p)
    assert accuracy(jnp.asarray(z, jnp.float32)).accuracy[0] > 0.95
    shuffled = np.stack([one[RNG.permutation(times)] for one in z])
    assert accuracy(jnp.asarray(shuffled, jnp.float32)).accuracy[0] < 0.1


def test_features_and_micro_batches(started):
    method, state = started
    features = jax.jit(method.encode)(state, BATCH)
    assert {name: rows.shape for name, rows in features.items()} == {
        "h": (6, 3),
        "z": (6, 4),
        "last": (6, 3),
    }
    key = jax.random.key(5)
    _, whole = jax.jit(method.update)(state, BATCH, key)
    _, pieces = jax.jit(build(micro_batches=2).update)(state, BATCH, key)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(whole[name], pieces[name], rtol=1e-5)


def test_errors_say_what_was_expected():
    for settings, text in (
        (dict(encoder=ENCODER["wave"]), "sections wave and context"),
        (dict(encoder={"wave": ENCODER["wave"]}), "sections wave and context"),
        (dict(views=(VIEW, VIEW)), "one view of an example; the config has 2"),
        (dict(steps=0), "steps=0"),
    ):
        with pytest.raises(ValueError, match=text):
            build(**settings)
