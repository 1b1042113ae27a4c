"""LoCo: gradients stay in their unit, and one unit of all stages is SimCLR."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cl_jax import losses
from cl_jax.core.method import Run, from_loss
from cl_jax.encoders import vit
from cl_jax.encoders.resnet import ResNet
from cl_jax.methods import loco, simclr_v1
from cl_jax.views import make as recipe
from tests.small import started

RUN = Run(None, 8, 32, 4, 8, {"label": 8})
VIEW = recipe({"name": "crop_flip", "crop": "none", "size": 8, "test_crop": 1.0})
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
BATCH = {"image": IMAGES, "id": np.arange(8, dtype=np.int32)}
NETWORK = ResNet(blocks=(1, 1, 1), width=0.125, stem="cifar", for_cpu=False)
SHARED = dict(encoder=NETWORK, run=RUN, views=(VIEW, VIEW), out_dim=4, temperature=0.2)
KEY = jax.random.key(1)


def norms(tree):
    """Norm of the gradient of each stage and head, by name; the stem counts to stage 1."""
    found = {}
    for name, branch in (*tree["encoder"].items(), *tree.items()):
        if name == "encoder":
            continue
        where = "stage1" if name.startswith("stem") else name.split("_")[0]
        found[where] = found.get(where, 0.0) + float(optax.global_norm(branch))
    return found


@pytest.mark.parametrize("span", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_loss_of_a_unit_has_exactly_zero_gradient_outside_it(span, monkeypatch):
    network = ResNet(
        blocks=(1,) * (span + 1), width=0.125, stem="cifar", for_cpu=False
    )  # of two units
    given = {}
    monkeypatch.setattr(loco, "from_loss", lambda **own: given.update(own) or from_loss(**own))
    method = loco.make(tx=optax.sgd(0.1), span=span, **SHARED | {"encoder": network})
    state = started(method, BATCH)
    units = loco.local_units(span + 1, span)
    assert len(units) == 2

    def values(params):
        """[U] losses of the step, by its metrics."""
        inputs = given["views"](BATCH, KEY)
        outputs, *_ = given["forward"](params, state.stats, None, inputs, BATCH, KEY)
        _, aux = given["loss"](outputs, params, None, BATCH, KEY)
        return jnp.stack([aux.metrics[f"loss_{number}"] for number in (1, 2)])

    jacobian = jax.jit(jax.jacrev(values))(state.params)
    for number, (first, last) in enumerate(units):
        found = norms(jax.tree.map(lambda x, number=number: x[number], jacobian))
        inside = {f"stage{stage + 1}" for stage in range(first, last + 1)} | {f"head{number}"}
        assert all((found[name] > 0) == (name in inside) for name in found), found


@pytest.mark.slow
def test_one_unit_of_all_stages_is_simclr_and_statistics_move_once():
    tx = optax.sgd(0.1)
    own = loco.make(tx=tx, span=3, **SHARED)
    simclr = simclr_v1.make(tx=tx, sum_directions=False, **SHARED)
    first = jax.jit(own.init)(jax.random.key(0), BATCH)
    theirs = jax.jit(simclr.init)(jax.random.key(0), BATCH).replace(
        params={"encoder": first.params["encoder"], "head": first.params["head0"]},
        stats={"encoder": first.stats["encoder"], "head": first.stats["head0"]},
    )
    after, metrics = jax.jit(own.update)(first, BATCH, KEY)
    expected, reference = jax.jit(simclr.update)(theirs, BATCH, KEY)
    for name in ("loss", "grad_norm", "chance"):
        np.testing.assert_allclose(metrics[name], reference[name], rtol=1e-4)
    for part in ("params", "stats"):
        a, b = getattr(after, part)["encoder"], getattr(expected, part)["encoder"]
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
            np.testing.assert_allclose(x, y, atol=2e-4)
    shared = jax.jit(loco.make(tx=tx, span=2, **SHARED).init)(jax.random.key(0), BATCH)
    moved, _ = jax.jit(loco.make(tx=tx, span=2, **SHARED).update)(shared, BATCH, KEY)
    same = shared.params["encoder"], first.params["encoder"]
    for x, y in zip(*map(jax.tree.leaves, same)):
        np.testing.assert_allclose(x, y, atol=1e-6)
    for x, y in zip(*map(jax.tree.leaves, (moved.stats["encoder"], after.stats["encoder"]))):
        np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.slow  # compiles seven programs
def test_a_unit_by_itself_needs_less_memory_than_the_network_end_to_end():
    """Temporaries of the gradient of one unit's loss, given the map below it, by XLA's account."""
    network = ResNet(depth=10, width=0.25, stem="cifar")
    images = jax.ShapeDtypeStruct((128, 16, 16, 3), jnp.float32)
    maps, variables = jax.eval_shape(
        lambda x: network.init_with_output(jax.random.key(0), x, train=True), images
    )
    below = [images, *(maps[f"stage{stage}"] for stage in (1, 2, 3))]

    def temporaries(first, last):
        def value(params, stats, x):
            named, _ = network.apply(
                {"params": params, "batch_stats": stats},
                x,
                train=True,
                span=(first, last),
                mutable=["batch_stats"],
            )
            return losses.nt_xent(*jnp.split(named["h"], 2), temperature=0.2)

        lowered = jax.jit(jax.grad(value)).lower(
            variables["params"], variables["batch_stats"], below[first]
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes / 2**20

    found = {span: [temporaries(*unit) for unit in loco.local_units(4, span)] for span in (1, 2, 4)}
    print(found)
    (whole,) = found[4]
    assert max(found[2]) < whole and max(found[1]) < max(found[2])


def test_settings_that_cannot_be():
    tx = optax.sgd(0.1)
    with pytest.raises(ValueError, match="span is 4 with 3 stages"):
        loco.make(tx=tx, span=4, **SHARED)
    with pytest.raises(ValueError, match="ViT has none"):
        loco.make(tx=tx, **SHARED | {"encoder": vit.make()})
    with pytest.raises(ValueError, match=r"span is \(2, 3\) with 3 stages"):
        NETWORK.init(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), train=True, span=(2, 3))
