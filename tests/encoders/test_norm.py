"""Batch norm: against NumPy, at large means, over devices and groups."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cl_jax.encoders.norm import BatchNorm
from tests.losses.compiled import program
from tests.losses.parity import AXIS, assert_parity

RNG = np.random.default_rng(0)


def _variables(channels, rng=RNG):
    scale, bias, mean = rng.normal(size=(3, channels)).astype(np.float32)
    return {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": mean, "var": rng.uniform(0.5, 2, channels).astype(np.float32)},
    }


def trained(module, variables, x, **given):
    """(y, the collections that changed) of a compiled call with the moments of the batch."""
    return program(module.apply)(variables, x, train=True, mutable=["batch_stats"], **given)


def _expected(x, variables, splits, unbiased=False):
    """In loops, from the definition: (output, running mean, running variance)."""
    p, stats = variables["params"], variables["batch_stats"]
    y, means, variances = np.zeros_like(x), [], []
    rows = len(x) // splits
    for g in range(splits):
        group = slice(g * rows, (g + 1) * rows)
        values = x[group].reshape(-1, x.shape[-1]).astype(np.float64)
        mean, var = values.mean(0), values.var(0)
        y[group] = (x[group] - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]
        means.append(mean)
        variances.append(var * (len(values) / (len(values) - 1) if unbiased else 1))
    return (
        y,
        0.9 * stats["mean"] + 0.1 * np.mean(means, 0),
        0.9 * stats["var"] + 0.1 * np.mean(variances, 0),
    )


@pytest.mark.parametrize("splits", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("unbiased", [False, True])
def test_equals_the_definition(splits, unbiased):
    x, variables = RNG.normal(2, 3, (8, 3, 2, 5)).astype(np.float32), _variables(5)
    module = BatchNorm(splits=splits, unbiased_running_variance=unbiased)
    y, state = trained(module, variables, x)
    expected = _expected(x, variables, splits, unbiased)
    for ours, theirs in zip(
        (y, state["batch_stats"]["mean"], state["batch_stats"]["var"]), expected
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_evaluation_uses_the_running_statistics():
    x, variables = RNG.normal(size=(4, 5)).astype(np.float32), _variables(5)
    p, stats = variables["params"], variables["batch_stats"]
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * p["scale"] + p["bias"]
    found = program(BatchNorm().apply)(variables, x, train=False)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("first, rtol", [(0.0, 5e-4), (1e4, 1e-5)])
def test_large_means_do_not_cancel(first, rtol):
    """E[x^2] - E[x]^2 in float32 would be off by 8 here."""
    x = (1e4 + RNG.normal(size=(64, 4, 4, 2))).astype(np.float32)
    x[0] += (
        first - 1e4
    )  # also where the first example, about which deviations are taken, lies far from the others
    module, variables = (
        BatchNorm(use_scale=False, use_bias=False),
        {"batch_stats": _variables(2)["batch_stats"]},
    )
    _, state = trained(module, variables, x)
    var = (state["batch_stats"]["var"] - 0.9 * variables["batch_stats"]["var"]) / 0.1
    expected = x.astype(np.float64).var((0, 1, 2))
    np.testing.assert_allclose(var, expected, rtol=rtol)


@pytest.mark.slow
def test_gradient_and_hessian():
    x = jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)
    w = jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)
    variables = _variables(2)

    def ours(x):
        y, _ = BatchNorm().apply(variables, x, train=True, mutable=["batch_stats"])
        return jnp.sum(w * y**3)

    def plain(x):
        y = (x - x.mean(0)[None]) / jnp.sqrt(x.var(0) + 1e-5)[None]
        return jnp.sum(
            w * (y * variables["params"]["scale"][None] + variables["params"]["bias"][None]) ** 3
        )

    for derivative in (jax.grad, jax.hessian):
        expected = jax.jit(derivative(plain))(x)
        np.testing.assert_allclose(
            jax.jit(derivative(ours))(x), expected, atol=1e-4 * np.abs(expected).max()
        )


def _loss(x, weights, scale, bias, *, axis_name, splits):
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": jnp.zeros(x.shape[-1]), "var": jnp.ones(x.shape[-1])},
    }
    y, _ = BatchNorm(axis_name=axis_name, splits=splits).apply(
        variables, x, train=True, mutable=["batch_stats"]
    )
    loss = jnp.mean(weights * jnp.tanh(y))
    return loss if axis_name is None else jax.lax.pmean(loss, axis_name)


@pytest.mark.parametrize("splits", [1, 8])
def test_devices_agree_in_value_and_gradient(splits):
    x, weights = RNG.normal(1, 2, (2, 16, 3, 4))
    assert_parity(
        partial(_loss, splits=splits),
        [x, weights, *RNG.normal(size=(2, 4))],
        [True, True, False, False],
    )


@pytest.mark.parametrize("splits", [1, 8])
def test_devices_agree_in_running_statistics(splits):
    x, variables = RNG.normal(1, 2, (16, 3, 4)).astype(np.float32), _variables(4)

    def stats(x, axis_name):
        module = BatchNorm(axis_name=axis_name, splits=splits, unbiased_running_variance=True)
        return module.apply(variables, x, train=True, mutable=["batch_stats"])[1]

    expected = jax.jit(partial(stats, axis_name=None))(x)
    for n in (2, 4, 8):
        mesh = jax.make_mesh((n,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:n])
        # The varying-axes check proves that all devices hold the same statistics.
        actual = jax.jit(
            jax.shard_map(
                partial(stats, axis_name=AXIS),
                mesh=mesh,
                in_specs=PartitionSpec(AXIS),
                out_specs=PartitionSpec(),
            )
        )(x)
        jax.tree.map(
            partial(np.testing.assert_allclose, atol=1e-6),
            jax.device_get(actual),
            jax.device_get(expected),
        )


@pytest.mark.parametrize("weighted", [False, True])
def test_a_layer_is_one_all_reduce_forward_and_one_back(weighted):
    x = jnp.ones((16, 3, 4))
    weight = jnp.ones(16) if weighted else None
    scale = jnp.ones(4)

    def forward(x, scale):
        variables = {"params": {"scale": scale, "bias": jnp.zeros(4)}, **_variables(4)}
        return BatchNorm(axis_name=AXIS).apply(
            variables,
            x,
            train=True,
            mutable=["batch_stats"],
            weight=None if weight is None else weight[: x.shape[0]],
        )

    def backward(x, scale):
        return jax.grad(lambda x: jnp.sum(jnp.sin(forward(x, scale)[0])))(x)

    for function, devices, count in ((forward, 4, 1), (backward, 4, 2), (backward, 1, 0)):
        mesh = jax.make_mesh(
            (devices,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
        )
        mapped = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(PartitionSpec(AXIS), PartitionSpec()),
            out_specs=PartitionSpec(AXIS) if function is backward else PartitionSpec(),
            check_vma=False,
        )
        text = jax.jit(mapped).lower(x, scale).compile().as_text()
        found = len(re.findall(r" all-reduce(?:-start)?\(", text))
        assert found == count, (function.__name__, devices, found)


def test_bfloat16_keeps_float32_statistics():
    x = jnp.asarray(RNG.normal(300, 1, (64, 3)), jnp.bfloat16)
    variables = {"batch_stats": {"mean": np.zeros(3, np.float32), "var": np.ones(3, np.float32)}}
    y, state = trained(BatchNorm(use_scale=False, use_bias=False), variables, x)
    assert y.dtype == jnp.bfloat16
    assert {s.dtype for s in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(
        state["batch_stats"]["mean"], 0.1 * np.asarray(x, np.float64).mean(0), rtol=1e-6
    )


def test_initialisation_does_not_need_the_axis_or_whole_groups():
    module = BatchNorm(axis_name=AXIS, splits=8)
    variables = program(module.init)(jax.random.key(0), np.ones((1, 3), np.float32), train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(3))


@pytest.mark.parametrize("weighted", [False, True])
def test_forward_mode_and_products_with_the_hessian(weighted):
    rng = np.random.default_rng(1)
    x, along = rng.normal(size=(2, 6, 3, 2)).astype(np.float32)
    weight = rng.uniform(size=(6, 3)).astype(np.float32) if weighted else None
    start = _variables(2, rng)

    def ours(x, params):
        call = partial(BatchNorm().apply, train=True, weight=weight, mutable=["batch_stats"])
        return call({"params": params, "batch_stats": start["batch_stats"]}, x)[0]

    def plain(x, params):
        shares = jnp.full((6, 3), 1 / 18) if weight is None else weight / weight.sum()
        mean = jnp.einsum("bt,btc->c", shares, x)[None, None]
        var = jnp.einsum("bt,btc->c", shares, jnp.square(x - mean))[None, None]
        scale, bias = params["scale"][None, None], params["bias"][None, None]
        return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias

    @partial(jax.jit, static_argnums=0)
    def derivatives(f, point, moved):
        def value(*given):
            return jnp.sin(f(*given)).sum()

        return jax.jvp(value, point, moved), jax.jvp(jax.grad(value, (0, 1)), point, moved)

    point = (x, start["params"])
    moved = (along, jax.tree.map(np.cos, start["params"]))
    found, right = (jax.tree.leaves(derivatives(f, point, moved)) for f in (ours, plain))
    for a, b in zip(found, right):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("spec", [("data",), (None, "data")])
def test_rows_or_channels_may_be_divided_over_explicit_axes(spec, weighted):
    rng = np.random.default_rng(2)
    x, start = jnp.asarray(rng.normal(size=(6, 4)), jnp.float32), _variables(4, rng)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))

    counts = jnp.arange(6.0) / 3

    def run(x, params, counts=counts):
        def value(x, params, counts):
            variables = {"params": params, "batch_stats": start["batch_stats"]}
            y, stats = BatchNorm().apply(
                variables,
                x,
                train=True,
                weight=counts if weighted else None,
                mutable=["batch_stats"],
            )
            return jnp.sin(y).sum(), stats

        return jax.grad(value, (0, 1, 2), has_aux=True)(x, params, counts)

    whole = jax.jit(run)(x, start["params"])
    assert not np.any(whole[0][2])  # no gradient flows to the weights
    expected = jax.tree.leaves(whole)
    with jax.set_mesh(mesh):
        divided = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
        params = jax.device_put(start["params"], NamedSharding(mesh, PartitionSpec(*spec[1:])))
        rows = jax.device_put(counts, NamedSharding(mesh, PartitionSpec(*spec[:1])))
        for a, b in zip(jax.tree.leaves(jax.jit(run)(divided, params, rows)), expected):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_have_the_types_of_the_parameters(weighted):
    with jax.enable_x64(True):
        rng = np.random.default_rng(4)
        x, start = jnp.asarray(rng.normal(size=(6, 4))), _variables(4, rng)
        weight = jnp.arange(6.0) if weighted else None

        def value(params):
            variables = {"params": params, "batch_stats": start["batch_stats"]}
            return (
                BatchNorm()
                .apply(variables, x, train=True, weight=weight, mutable=["batch_stats"])[0]
                .sum()
            )

        params = jax.tree.map(jnp.float32, start["params"])
        found = jax.tree.leaves(jax.eval_shape(jax.grad(value), params))
        assert found and all(one.dtype == jnp.float32 for one in found)


def test_numpys_float64_is_read_as_jax_reads_it():
    layer, x = BatchNorm(), RNG.normal(size=(4, 3))
    start = jax.eval_shape(
        lambda key: layer.init_with_output(key, x, train=True), jax.random.key(0)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(start)} == {np.dtype("float32")}


def test_errors_say_what_to_do():
    x, variables = np.ones((6, 3), np.float32), _variables(3)
    with pytest.raises(ValueError, match="make the global batch a multiple of 4"):
        BatchNorm(splits=4).apply(variables, x, train=True, mutable=["batch_stats"])
    with pytest.raises(ValueError, match="not mapped here"):
        BatchNorm(axis_name="elsewhere").apply(variables, x, train=True, mutable=["batch_stats"])
    with pytest.raises(ValueError, match="splits=3 on 2 devices"):
        jax.eval_shape(
            jax.vmap(
                lambda x: BatchNorm(axis_name=AXIS, splits=3).apply(
                    variables, x, train=True, mutable=["batch_stats"]
                )[0],
                axis_name=AXIS,
            ),
            x.reshape(2, 3, 3),
        )
    with pytest.raises(ValueError, match="floating-point"):
        BatchNorm().apply(variables, x.astype(np.uint8), train=False)


# Row weights
# --------------------------------------


def _repeated(x, counts):
    """The rows of x, each as often as its weight says."""
    return np.repeat(x, counts, axis=0)


@pytest.mark.parametrize("unbiased", [False, True])
def test_a_weight_is_how_often_a_row_counts(unbiased):
    x, variables = RNG.normal(2, 3, (6, 5)).astype(np.float32), _variables(5)
    counts = np.array([1, 0, 2, 1, 3, 0])
    module = BatchNorm(unbiased_running_variance=unbiased)
    y, state = trained(module, variables, x, weight=counts)
    z, expected = trained(module, variables, _repeated(x, counts))
    np.testing.assert_allclose(_repeated(y, counts), z, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), state, dict(expected))


def test_padding_changes_nothing():
    x, variables = RNG.normal(size=(4, 3, 2)).astype(np.float32), _variables(2)
    padded = np.concatenate([x, np.full((2, 3, 2), 1e6, np.float32)])
    weight = np.array([1, 1, 1, 1, 0, 0], np.float32)
    y, state = trained(BatchNorm(), variables, padded, weight=weight)
    z, expected = trained(BatchNorm(), variables, x)
    np.testing.assert_allclose(y[:4], z, atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), state, dict(expected))


def test_weights_of_single_places():
    """[B, T] weights of x [B, T, C] are those of its B T rows."""
    x, variables = RNG.normal(size=(3, 4, 2)).astype(np.float32), _variables(2)
    weight = RNG.integers(0, 3, (3, 4)).astype(np.float32)
    y, state = trained(BatchNorm(), variables, x, weight=weight)
    z, expected = trained(BatchNorm(), variables, x.reshape(12, 2), weight=weight.reshape(12))
    np.testing.assert_allclose(y.reshape(12, 2), z, atol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), dict(state), dict(expected))


def test_no_weight_at_all_is_finite():
    x, variables = RNG.normal(size=(3, 2)).astype(np.float32), _variables(2)

    def loss(x):
        apply = partial(BatchNorm().apply, variables, train=True, mutable=["batch_stats"])
        return apply(x, weight=jnp.zeros(3))[0].sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(x))
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.slow
def test_weighted_gradient():
    x = jnp.asarray(RNG.normal(size=(5, 2)), jnp.float32)
    v = jnp.asarray(RNG.normal(size=(5, 2)), jnp.float32)
    weight, variables = jnp.array([1.0, 0.0, 2.0, 0.5, 1.0]), _variables(2)

    def ours(x):
        y, _ = BatchNorm().apply(variables, x, train=True, weight=weight, mutable=["batch_stats"])
        return jnp.sum(v * y**3)

    def plain(x):
        share = (weight / weight.sum())[:, None]
        mean = (share * x).sum(0)[None]
        y = (x - mean) / jnp.sqrt((share * (x - mean) ** 2).sum(0) + 1e-5)[None]
        p = variables["params"]
        return jnp.sum(v * (y * p["scale"][None] + p["bias"][None]) ** 3)

    for derivative in (jax.grad, jax.hessian):
        expected = jax.jit(derivative(plain))(x)
        np.testing.assert_allclose(
            jax.jit(derivative(ours))(x), expected, atol=1e-4 * np.abs(expected).max()
        )


def _weighted_loss(x, v, weight, scale, bias, *, axis_name, splits):
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": jnp.zeros(x.shape[-1]), "var": jnp.ones(x.shape[-1])},
    }
    y, _state = BatchNorm(axis_name=axis_name, splits=splits, unbiased_running_variance=True).apply(
        variables, x, train=True, weight=weight, mutable=["batch_stats"]
    )
    loss = jnp.mean(v * jnp.tanh(y))
    return loss if axis_name is None else jax.lax.pmean(loss, axis_name)


@pytest.mark.parametrize("splits", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_devices_agree_with_weights(splits):
    """Devices hold different weight: the mean of their means would be another one."""
    x, v = RNG.normal(1, 2, (2, 16, 4, 3))
    weight = np.arange(16) % 5 * 0.7 + 0.3
    assert_parity(
        partial(_weighted_loss, splits=splits),
        [x, v, weight, *RNG.normal(size=(2, 3))],
        [True, True, True, False, False],
    )


def test_a_weight_of_another_shape():
    x, variables = np.ones((6, 3), np.float32), _variables(3)
    with pytest.raises(ValueError, match=r"weight has shape \(3,\).*for each row, \[6\]"):
        BatchNorm().apply(variables, x, train=True, weight=np.ones(3), mutable=["batch_stats"])
