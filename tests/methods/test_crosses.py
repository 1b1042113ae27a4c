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

VIEW = view({"name": "crop_flip", "crop": "none", "size": 8, "test_crop": 1.0})
RUN = Run(None, 8, 32, 4, 8, {"label": 3})
BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8),
    "id": np.arange(8, dtype=np.int32),
}
KEY = jax.random.key(3)
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
    rows = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    batch = {"row": rows, "id": np.arange(8, dtype=np.int32)}
    base = simclr_v1.parts(
        encoder=mlp.make(widths=(6,), out_dim=4),
        tx=optax.sgd(0.1),
        views=(view({"kind": "row"}),) * 2,
        run=RUN,
        out_dim=8,
    )
    mixed, clean = jax.jit(imix.make(base=base, run=RUN).views)(batch, KEY)
    np.testing.assert_array_equal(clean, rows)
    assert np.abs(np.asarray(mixed) - rows).max() > 0.1
    made = imix.make(base=base, run=RUN, kind="none")
    np.testing.assert_array_equal(made.views(batch, KEY)[0], rows)
    state = jax.jit(from_parts(made).init)(jax.random.key(0), batch)

    @jax.jit
    def values(params):
        outputs, *_ = base.embed(params, state.stats, None, (rows, rows), KEY)
        pairs = base.pairs(outputs, None)
        plain = losses.mixing.imix_n_pair(*pairs[0][:2], temperature=base.temperature)
        return made.contrast(pairs, params, batch, KEY)[0], plain

    np.testing.assert_allclose(*values(state.params), rtol=1e-6)


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
        state = experiment.initial_state(built, config)
        assert state.memory.rows.shape[0] == config.method.base.queue_size
    assert config.method.base.name in {"simclr_v1", "moco_v2", "byol"}


def test_easy_hcl_is_nt_xent():
    base = parts("simclr")
    made = hcl.make(base=base, run=RUN, estimator="easy", temperature=base.temperature)
    _, _, values = step(made)
    _, _, plain = step(base)
    np.testing.assert_allclose(2 * values["loss"], plain["loss"], rtol=2e-5)
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
    settings = dict(out_dim=8, queue_size=24, shuffle=False, symmetric=True)
    base = moco_v2.parts(
        encoder=NETWORK, tx=optax.sgd(0.1), views=(VIEW, VIEW), run=RUN, **settings
    )
    made = mochi.make(base=base, run=RUN, num_hard=4, num_pairs=6, num_query=3)
    q, k, queue = (
        losses.unit(np.random.default_rng(i).normal(size=(n, 8))) for i, n in enumerate((8, 8, 24))
    )
    one, other = Pairs(q, k, queue), Pairs(k, q, queue)

    @jax.jit
    def values(*pairs):
        value, metrics = made.contrast(pairs, None, BATCH, KEY)
        return value, metrics["chance"]

    alone, chance = values(one)
    assert float(values(one, other)[0]) > float(alone) + 1
    np.testing.assert_allclose(values(one, other)[1], 2 * chance, rtol=1e-6)
    twice = float(values(one, one)[0])
    assert abs(twice / 2 - float(alone)) < 0.2 and twice != 2 * float(alone)


def test_the_queue_of_a_cross_is_that_of_its_base():
    base = parts("moco")
    _, plain, _ = step(base)
    _, after, _ = step(mochi.make(base=base, run=RUN, num_hard=4, num_pairs=6, num_query=3))
    np.testing.assert_array_equal(after.memory.rows, plain.memory.rows)


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


@pytest.mark.parametrize(
    "loss", [pytest.param("contrastive", marks=pytest.mark.slow), "hard_simple"]
)
def test_the_temperature_study_over_a_queue_meets_batch_and_queue(loss):
    base = parts("moco")
    made = temperature.make(base=base, run=RUN, loss=loss, num_hard=31, temperature=0.3)
    state, _, values = step(made)

    @jax.jit
    def rows(state, key):
        inputs = base.views(BATCH, key)
        outputs, *_ = base.embed(state.params, state.stats, state.target, inputs, key)
        return base.pairs(outputs, state.memory)[0][:3]

    q, k, queue = (np.asarray(x, np.float64) for x in rows(state, KEY))
    similarity = q @ np.concatenate([k, queue]).T
    own, rows = similarity[np.arange(8), np.arange(8)], similarity / 0.3
    expected = (np.log(np.exp(rows).sum(1)) - own / 0.3).mean()
    if loss == "hard_simple":  # all 31 negatives are kept
        expected = ((similarity.sum(1) - own) / 31 - own).mean()
    np.testing.assert_allclose(values["loss"], expected, rtol=1e-4, atol=1e-5)


def clae_step(base=None, **settings):
    made = clae.make(base=base or parts("simclr"), run=RUN, **settings)
    return made, *step(made)


def test_clae_adds_the_loss_of_a_view_moved_against_it():
    """The moved view is one step of epsilon away, raises the loss, and is one more positive."""
    base = parts("simclr")
    made, state, _, values = clae_step(base, epsilon=0.05, weight=0.5)
    _, _, plain = step(base)
    np.testing.assert_allclose(values["clean"], plain["loss"], rtol=2e-5)
    np.testing.assert_allclose(
        values["loss"], values["clean"] + 0.5 * values["adversarial"], rtol=1e-6
    )
    batch = jax.jit(made.rest["prepare"])(state, BATCH, KEY)
    first, second, moved = jax.jit(made.views)(batch, KEY)
    np.testing.assert_allclose(np.abs(moved - first).max(), 0.05, rtol=1e-5)
    own = clae.replaced(state.params["clean"], state.params["adversarial"])

    @jax.jit
    def against(x):
        z = [base.embed(own, state.stats, None, [view], KEY)[0] for view in (first, x)]
        return base.contrast(base.pairs(jnp.concatenate(z, 1), None), own, BATCH, KEY)[0]

    assert against(moved) > against(first) + 1e-3
    assert jax.eval_shape(made.views, BATCH, KEY)[0].shape == second.shape


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
