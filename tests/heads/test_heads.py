"""Heads: layer outputs for fine-tuning, precision, prototypes on the sphere, weight norm."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax.heads import mlp, predictor, prototypes, weight_norm

H = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


def _init(module, x=H, **call):
    return jax.jit(partial(module.init, **call))(jax.random.key(0), x)


def test_hiddens_are_the_layers_for_fine_tuning():
    head = mlp.make(variant="simclr", num_layers=3, out_dim=4)
    variables = _init(head, train=False)
    (z, hiddens), _ = head.apply(variables, H, train=True, mutable=["batch_stats"])
    assert len(hiddens) == 4
    np.testing.assert_array_equal(hiddens[0], H)
    np.testing.assert_array_equal(hiddens[3], z)
    first = H @ np.asarray(variables["params"]["dense1"]["kernel"])
    first = (first - first.mean(0)) / np.sqrt(first.var(0) + 1e-5)
    np.testing.assert_allclose(hiddens[1], np.maximum(first, 0), atol=2e-3)
    assert (
        "bias" not in variables["params"]["norm3"] and "bias" not in variables["params"]["dense1"]
    )


@pytest.mark.parametrize(
    "make, variant",
    [
        *(
            (mlp.make, variant)
            for variant in ("simclr", "linear", "moco_v2", "byol", "simsiam", "moco_v3", "swav")
        ),
        *((predictor.make, variant) for variant in ("byol", "simsiam", "moco_v3", "moco_v3_vit")),
    ],
)
def test_bfloat16_heads_put_out_float32(make, variant):
    head = make(variant=variant, out_dim=3, hidden_dim=8, dtype="bfloat16")
    (z, _), variables = jax.eval_shape(
        partial(head.init_with_output, train=False), jax.random.key(0), H
    )
    assert z.dtype == jnp.float32 and z.shape == (6, 3)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("head", "call"),
    [
        (mlp.make(variant="simclr", out_dim=3), {"train": True}),
        (predictor.make(variant="byol", out_dim=3, hidden_dim=8), {"train": True}),
        (weight_norm.make(out_dim=4, hidden_dim=8, bottleneck_dim=3), {"train": True}),
        (prototypes.make(num_prototypes=4), {}),
    ],
)
def test_numpys_float64_is_read_as_jax_reads_it(head, call):
    """Without 64 bits as float32, and without a warning for each layer."""
    wide = H.astype(np.float64)  # in the closure: jax converts arguments
    start = jax.eval_shape(lambda key: head.init_with_output(key, wide, **call), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(start)} == {np.dtype("float32")}


def test_unknown_variants_and_maps_are_refused():
    with pytest.raises(ValueError, match="have simclr, linear"):
        mlp.make(variant="mocov2")
    with pytest.raises(ValueError, match="have byol, simsiam"):
        predictor.make(variant="dino", out_dim=3)
    with pytest.raises(ValueError, match="pool maps first"):
        mlp.make(variant="linear").init(jax.random.key(0), H[:, None], train=False)


def test_prototypes_are_projected_alone():
    module = prototypes.make(num_prototypes=7)
    params = {"head": {"kernel": jnp.ones((2, 2))}, "swav": _init(module)["params"]}
    projected = jax.jit(prototypes.project)(params)
    np.testing.assert_allclose(
        np.linalg.norm(projected["swav"]["prototypes"], axis=1), np.ones(7), rtol=1e-6
    )
    np.testing.assert_array_equal(projected["head"]["kernel"], params["head"]["kernel"])
    scores = module.apply(
        {"params": projected["swav"]}, H / np.linalg.norm(H, axis=1, keepdims=True)
    )
    rows = np.asarray(projected["swav"]["prototypes"])
    np.testing.assert_allclose(
        scores, H / np.linalg.norm(H, axis=1, keepdims=True) @ rows.T, atol=1e-6
    )
    assert np.abs(params["swav"]["prototypes"]).max() <= 5**-0.5


def test_a_zero_prototype_stays_finite():
    rows = jnp.zeros((1, 4))
    value, grad = jax.value_and_grad(
        lambda rows: prototypes.project({"prototypes": rows})["prototypes"].sum()
    )(rows)
    assert value == 0 and np.isfinite(grad).all()


def test_unit_last_layer_gives_cosines():
    head = weight_norm.make(out_dim=9, hidden_dim=8, bottleneck_dim=4)
    variables = _init(head, train=False)
    logits = head.apply(variables, H, train=False)
    assert logits.shape == (6, 9) and np.abs(logits).max() <= 1 + 1e-6
    scaled = jax.tree.map(lambda v: 3 * v, variables["params"]["last_layer"])
    same = head.apply({"params": variables["params"] | {"last_layer": scaled}}, H, train=False)
    np.testing.assert_allclose(same, logits, atol=1e-6)
