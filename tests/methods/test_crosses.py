"""Crosses: a cross changes one part of its base, and nothing else."""

import importlib
import pkgutil
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cl_jax.methods
from cl_jax import losses
from cl_jax.core.method import Run
from cl_jax.core.parts import Pairs, from_parts
from cl_jax.encoders import mlp
from cl_jax.encoders.resnet import ResNet
from cl_jax.methods import byol, clae, hcl, imix, invaspread, mochi, moco_v2, simclr_v1, temperature
from cl_jax.training import configs, experiment
from cl_jax.views import make as view
from tests.small import started

VIEW = view({"name": "crop_flip", "crop": "none", "size": 8, "test_crop": 1.0})
RUN = Run(None, 8, 32, 4, 8, {"label": 3})
BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8),
    "id": np.arange(8, dtype=np.int32),
}
KEY = jax.random.key(3)
ROWS = {
    "row": np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32),
    "id": np.arange(8, dtype=np.int32),
}
METHODS = [module.name for module in pkgutil.iter_modules(cl_jax.methods.__path__)]
NETWORK = ResNet(blocks=(1,), width=0.125, stem="cifar", for_cpu=False)
BASES = {
    "simclr": (simclr_v1, dict(out_dim=8)),
    "moco": (moco_v2, dict(out_dim=8, queue_size=24, shuffle=False)),
    "byol": (byol, dict(out_dim=8, hidden_dim=8)),
}


def parts(name):
    module, settings = BASES[name]
    return module.parts(encoder=NETWORK, tx=optax.sgd(0.1), views=(VIEW, VIEW), run=RUN, **settings)


def of_rows(make, noise=0.5, **settings):
    """Parts over rows of a table: for what an encoder of images, which is slower, says no more."""
    return make(
        encoder=mlp.make(widths=(6,), out_dim=4),
        tx=optax.sgd(0.1),
        views=(view({"kind": "row", "noise": noise}),) * 2,
        run=RUN,
        out_dim=8,
        **settings,
    )


def pair(queue=0):
    """Unit queries and keys of 8 examples, and rows of a queue."""
    rows = np.random.default_rng(0).normal(size=(16 + queue, 8)).astype(np.float32)
    q, k, negatives = np.split(rows / np.linalg.norm(rows, axis=1, keepdims=True), (8, 16))
    return Pairs(q, k, negatives if queue else None)


def contrasts(*made):
    """The value of a pair or pairs in the loss of each, compiled together."""
    return jax.jit(lambda *pairs: [one.contrast(pairs, None, BATCH, KEY)[0] for one in made])


def has_parts(method):
    return hasattr(importlib.import_module(f"cl_jax.methods.{method}"), "parts")


def step(made):
    method = from_parts(made)
    state = jax.jit(method.init)(jax.random.key(0), BATCH)
    return state, *jax.jit(method.update)(state, BATCH, KEY)


def traced(made):
    """The shapes of a step, for what is refused."""
    method = from_parts(made)
    state = jax.eval_shape(method.init, KEY, BATCH)
    return jax.eval_shape(method.update, state, BATCH, KEY)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [name if name == "moco" else pytest.param(name, marks=pytest.mark.slow) for name in BASES],
)
def test_a_mixture_of_nothing_is_the_base_with_its_own_candidates(name, monkeypatch):
    """With every share at 1 i-Mix is the unmixed loss of N pairs, MoCo's keys, or BYOL."""
    base = parts(name)

    def whole(key, rows, *, alpha, axis_name):
        return losses.mixing.Mix(jnp.ones(rows), jnp.arange(rows))

    monkeypatch.setattr(losses.mixing, "draw_mixup", whole)
    state, _, values = step(imix.make(base=base, run=RUN))
    inputs = base.views(BATCH, KEY)
    outputs, *_ = base.embed(state.params, state.stats, state.target, inputs, KEY)
    q, k, negatives = base.pairs(outputs, state.memory)[0][:3]
    if name == "byol":
        expected = losses.mixing.imix_byol(q, k)
    elif name == "moco":
        expected = losses.mixing.imix_moco(q, k, negatives, temperature=base.temperature)
    else:
        expected = losses.mixing.imix_n_pair(q, k, temperature=base.temperature)
    np.testing.assert_allclose(values["loss"], expected, rtol=2e-5)


def test_imix_refuses_what_it_cannot_mix():
    config = configs.load("imix:table,cutmix,debug")
    built = experiment.build(config)
    rows = {**{k: v[None] for k, v in built.data.train.read(0).items()}, "id": np.zeros(1, int)}
    with pytest.raises(ValueError, match="Use MixUp for rows"):
        jax.eval_shape(built.method.views, rows, KEY)
    base = parts("simclr")._replace(views=lambda batch, key: [Pairs(jnp.ones(1), jnp.ones(1))] * 2)
    with pytest.raises(ValueError, match="those of this base are Pairs; use a base of images"):
        imix.make(base=base, run=RUN).views(BATCH, KEY)


@pytest.mark.parametrize("cross", [clae, hcl, imix], ids=lambda module: module.__name__[15:])
def test_bases_that_a_cross_names_can_be_its_base(cross):
    """A base's name in brackets, such as SimCLR, is that of a module or of its first words."""
    named = re.findall(r"\(([^)]*)\)", cross.make.__doc__.partition("\n\n")[0])
    found = [
        [module for module in METHODS if module.startswith(word.lower())]
        for word in re.findall(r"\b[A-Z][A-Za-z]+", " ".join(named))
    ]
    assert found and all(any(has_parts(one) for one in modules) for modules in found), found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mixup", pytest.param("cutmix", marks=pytest.mark.slow)])
def test_only_the_query_is_mixed_and_the_loss_draws_the_same_mixture(kind):
    base = parts("simclr")
    crossed = imix.make(base=base, run=RUN, kind=kind)
    (a, b), (mixed, clean) = base.views(BATCH, KEY), crossed.views(BATCH, KEY)
    np.testing.assert_array_equal(b, clean)
    assert np.abs(np.asarray(mixed - a)).max() > 0
    _, _, values = step(crossed)
    if kind == "mixup":
        # x_mixed = w x + (1 - w) x[partner]: the share that the loss reports is that of the inputs.
        drawn = losses.mixing.draw_mixup(imix.batch_key(KEY, imix.MIXTURE), 8, alpha=1.0)
        np.testing.assert_allclose(mixed, losses.mixing.mix_inputs(a, drawn), atol=1e-6)
        np.testing.assert_allclose(values["own_share"], drawn.weight.mean(), rtol=1e-6)
    assert 0.5 <= float(values["own_share"]) <= 1


def test_rows_are_mixed_and_kind_none_mixes_nothing():
    """Over rows of a table; with "none" both inputs and labels stay as they are."""
    base = of_rows(simclr_v1.parts, noise=0.0)
    rows = ROWS["row"]
    crossed, made = (imix.make(base=base, run=RUN, **given) for given in ({}, {"kind": "none"}))
    pairs = (pair(),)

    @jax.jit
    def values(batch):
        plain = losses.mixing.imix_n_pair(*pairs[0][:2], temperature=base.temperature)
        views = crossed.views(batch, KEY), made.views(batch, KEY)
        return views, made.contrast(pairs, None, batch, KEY)[0], plain

    ((mixed, clean), (same, _)), value, plain = values(ROWS)
    np.testing.assert_array_equal(clean, rows)
    assert np.abs(np.asarray(mixed) - rows).max() > 0.1
    np.testing.assert_array_equal(same, rows)
    np.testing.assert_allclose(value, plain, rtol=1e-6)


@pytest.mark.parametrize(
    "text",
    ["imix:table,moco", "imix:table,byol", "imix:audio", "imix:audio,moco", "imix:audio,byol"],
)
def test_tables_and_recordings_over_every_base_from_a_config(text):
    """The config is whole: data, views, network and base fit together."""
    config = configs.smallest(text)
    built = experiment.build(config)
    assert built.method.needs == (("row",) if "table" in text else ("audio", "length"))
    if text == "imix:audio,moco":
        state = experiment.shape_of_state(built)
        assert state.memory.rows.shape[0] == config.method.base.queue_size
    assert config.method.base.name in {"simclr_v1", "moco_v2", "byol"}


def test_easy_hcl_is_nt_xent():
    base = parts("simclr")
    made = hcl.make(base=base, run=RUN, estimator="easy", temperature=base.temperature)
    value, plain = contrasts(made, base)(pair())
    np.testing.assert_allclose(2 * value, plain, rtol=2e-5)
    assert made._replace(contrast=base.contrast) == base
    with pytest.raises(ValueError, match="has a queue"):
        traced(hcl.make(base=parts("moco"), run=RUN))


@pytest.mark.slow
def test_mochi_without_mixtures_is_moco_and_mixtures_make_it_harder():
    base = parts("moco")
    _, _, plain = step(base)
    _, _, none = step(mochi.make(base=base, run=RUN, num_hard=4, num_pairs=0, num_query=0))
    np.testing.assert_allclose(none["loss"], plain["loss"], rtol=2e-5)
    _, _, some = step(mochi.make(base=base, run=RUN, num_hard=4, num_pairs=6, num_query=3))
    assert some["loss"] > plain["loss"] + 0.1
    with pytest.raises(ValueError, match="use a base with one"):
        traced(mochi.make(base=parts("simclr"), run=RUN))


def test_mochi_contrasts_both_directions_of_a_symmetric_base():
    """Both losses, as the base adds them; the mixtures of the second are draws of their own."""
    base = of_rows(moco_v2.parts, queue_size=24, shuffle=False, symmetric=True)
    made = mochi.make(base=base, run=RUN, num_hard=4, num_pairs=6, num_query=3)
    one = pair(queue=24)
    other = one._replace(q=one.k, k=one.q)

    @jax.jit
    def value(*pairs):
        return made.contrast(pairs, None, BATCH, KEY)

    # The first of a sum is the loss of it alone: its key is that of the step.
    (alone, both, twice), metrics = zip(value(one), value(one, other), value(one, one))
    assert float(both) > float(alone) + 1
    np.testing.assert_allclose(metrics[1]["chance"], 2 * metrics[0]["chance"], rtol=1e-6)
    assert abs(twice / 2 - float(alone)) < 0.2 and twice != 2 * float(alone)


def test_every_part_of_a_cross_but_the_loss_is_that_of_its_base():
    """The queue too."""
    base = parts("moco")
    for made in (
        mochi.make(base=base, run=RUN, num_hard=4, num_pairs=6, num_query=3),
        temperature.make(base=base, run=RUN),
    ):
        assert made.contrast is not base.contrast
        assert made._replace(contrast=base.contrast) == base


@pytest.mark.slow
def test_losses_of_the_temperature_study():
    """With all negatives kept the hard losses are the plain ones."""
    base = parts("simclr")
    values = {}
    for loss in temperature.LOSSES:
        made = temperature.make(base=base, run=RUN, loss=loss, num_hard=7, temperature=0.3)
        values[loss] = float(step(made)[2]["loss"])
    np.testing.assert_allclose(values["hard_contrastive"], values["contrastive"], rtol=1e-5)
    np.testing.assert_allclose(values["hard_simple"], values["simple"], rtol=1e-4, atol=1e-6)
    fewer = temperature.make(base=base, run=RUN, loss="hard_contrastive", num_hard=2)
    assert float(step(fewer)[2]["chance"]) == pytest.approx(np.log(3))
    with pytest.raises(ValueError, match="num_hard=8; expected 1 to 7"):
        traced(temperature.make(base=base, run=RUN, loss="hard_simple", num_hard=8))
    with pytest.raises(ValueError, match="'hrad'"):
        temperature.make(base=base, run=RUN, loss="hrad")


def test_the_temperature_study_over_a_queue_meets_batch_and_queue():
    base, given = parts("moco"), pair(queue=24)
    names = ("contrastive", "hard_simple")  # all 31 negatives are kept
    made = [
        temperature.make(base=base, run=RUN, loss=loss, num_hard=31, temperature=0.3)
        for loss in names
    ]
    q, k, queue = (np.asarray(x, np.float64) for x in given[:3])
    similarity = q @ np.concatenate([k, queue]).T
    own, rows = similarity[np.arange(8), np.arange(8)], similarity / 0.3
    expected = [
        (np.log(np.exp(rows).sum(1)) - own / 0.3).mean(),
        ((similarity.sum(1) - own) / 31 - own).mean(),
    ]
    np.testing.assert_allclose(contrasts(*made)(given), expected, rtol=1e-4, atol=1e-5)


def clae_step(base=None, **settings):
    made = clae.make(base=base or parts("simclr"), run=RUN, **settings)
    return made, *step(made)


def test_clae_adds_the_loss_of_a_view_moved_against_it():
    """The moved view is one step of epsilon away, raises the loss, and is one more positive."""
    base = of_rows(simclr_v1.parts)
    made = clae.make(base=base, run=RUN, epsilon=0.05, weight=0.5)
    method = from_parts(made)
    state = started(method, ROWS)

    @jax.jit
    def found(state, batch):
        _, values = method.update(state, batch, KEY)
        first, second, moved = views = made.views(made.rest["prepare"](state, batch, KEY), KEY)
        own = clae.replaced(state.params["clean"], state.params["adversarial"])

        def loss(params, passes):
            z = [base.embed(params, state.stats, None, views, KEY)[0] for views in passes]
            return base.contrast(base.pairs(jnp.concatenate(z, 1), None), params, batch, KEY)[0]

        plain = loss(state.params["clean"], [[first, second]])
        return values, views, plain, [loss(own, [[first], [x]]) for x in (first, moved)]

    values, (first, second, moved), plain, (still, against) = found(state, ROWS)
    np.testing.assert_allclose(values["clean"], plain, rtol=2e-5)
    np.testing.assert_allclose(
        values["loss"], values["clean"] + 0.5 * values["adversarial"], rtol=1e-6
    )
    np.testing.assert_allclose(np.abs(moved - first).max(), 0.05, rtol=1e-5)
    assert against > still + 1e-3
    assert jax.eval_shape(made.views, ROWS, KEY)[0].shape == second.shape


@pytest.mark.slow
def test_clae_has_second_batch_norms_and_shares_everything_else():
    _, state, after, _ = clae_step()
    second = after.params["adversarial"]
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(second)}
    norms = {path[-2].key for path, _ in jax.tree_util.tree_leaves_with_path(second)}
    assert names == {"scale", "bias"} and all("norm" in name for name in norms)
    assert jax.tree.structure(after.stats) == jax.tree.structure(state.stats)
    clean = after.params["clean"]["encoder"]["stem_norm1"]["scale"]
    assert np.abs(clean - second["encoder"]["stem_norm1"]["scale"]).max() > 0
    _, shared, _, _ = clae_step(own_norm=False)
    assert shared.params["adversarial"] == {}


@pytest.mark.slow
def test_clae_without_weight_trains_its_base():
    base = parts("simclr")
    _, _, after, _ = clae_step(base, weight=0.0)
    _, plain, _ = step(base)
    for x, y in zip(jax.tree.leaves(after.params["clean"]), jax.tree.leaves(plain.params)):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5)


def test_clae_refuses_a_queue():
    with pytest.raises(ValueError, match="a queue or a slow network"):
        traced(clae.make(base=parts("moco"), run=RUN))


@pytest.mark.slow
def test_clae_over_the_authors_other_bases():
    """The "plain" one is the temperature study's contrastive loss, "UEL" InvaSpread."""
    plain = temperature.make(base=parts("simclr"), run=RUN, temperature=0.1)
    spread = invaspread.parts(
        encoder=NETWORK, tx=optax.sgd(0.1), views=(VIEW, VIEW), run=RUN, out_dim=8
    )
    for base in (plain, spread):
        _, _, _, values = clae_step(base)
        total = values["clean"] + values["adversarial"]
        np.testing.assert_allclose(values["loss"], total, rtol=1e-6)
        assert values["adversarial"] > 0.1
