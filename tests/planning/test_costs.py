"""What is exact about speed: products, bytes between devices, compilations, transfers. Nothing here
is timed."""

import jax
import jax._src.compiler
import jax.numpy as jnp
import numpy as np
import pytest

from cl_jax import losses
from cl_jax.core import parallel
from cl_jax.encoders import resnet
from cl_jax.planning import costs
from cl_jax.training.experiment import initial_state
from cl_jax.training.steps import stepper
from tests import small

PIXELS, WIDTH, BATCH = 48, 8, small.BATCH  # of the small method: one layer on 4 x 4 images


class Step:
    """The small method's step on so many devices, with its arguments where it wants them."""

    def __init__(self, devices, **settings):
        self.built, self.config = small.built(devices, **settings), small.config(devices)
        self.stepper = stepper(self.built, self.config, 0)
        self.state = initial_state(self.built, self.config)

    def arguments(self):
        ids = parallel.place_batch({"id": self.stepper.ids(0)}, self.built.mesh)["id"]
        return (
            self.state,
            self.stepper.rows,
            ids,
            self.stepper.key,
            parallel.replicate(np.int32(0), self.built.mesh),
        )


@pytest.fixture(scope="module")
def steps():
    return {devices: Step(devices) for devices in (1, 4)}


@pytest.mark.parametrize("devices", [1, 4])
def test_products_of_a_step(steps, devices):
    """Two views through the layer, forward and its weights' gradient; logits, and their gradient to
    both sides."""
    step, rows = steps[devices], BATCH // devices
    traced = step.stepper.one.trace(*step.arguments())
    assert (
        costs.flops(traced.jaxpr)
        == 2 * (2 * 2 * rows * PIXELS * WIDTH) + 3 * 2 * rows * BATCH * WIDTH
    )


def test_bytes_between_devices(steps):
    """Gathered: keys and ids. Scattered back: the gradient of the keys. Reduced: gradients, the
    centre and its gradient, and four numbers (the loss, its gradient, and the loss and the
    gradient's norm of the log)."""
    step, devices = steps[4], 4
    text = step.stepper.one.lower(*step.arguments()).compile().as_text()
    found, share = costs.collectives(text, devices), (devices - 1) / devices
    gathered, reduced = 4 * BATCH * (WIDTH + 1), 4 * (PIXELS * WIDTH + 2 * WIDTH + 4)
    assert found.keys() == {"all-gather", "all-reduce", "reduce-scatter"}
    assert found["all-gather"] == costs.Collective(2, gathered, gathered * share)
    assert found["all-reduce"].bytes == reduced and found["all-reduce"].sent == 2 * reduced * share
    scattered = 4 * BATCH // devices * WIDTH
    assert found["reduce-scatter"] == costs.Collective(1, scattered, scattered * (devices - 1))


TPU = """
%beside.1 (p: f32[2,8]) -> f32[8,8] {
  %gather.1 = f32[8,8]{1,0:T(8,128)S(1)} all-gather(%p), channel_id=1, frontend_attributes={chain_id="0"}
}

%beside.2 (p: f32[2,8]) -> f32[8,8] {
  %gather.2 = f32[8,8]{1,0:T(8,128)} all-gather(%p), channel_id=1, frontend_attributes={chain_id="0"}
}

ENTRY %main (a: f32[2,8]) -> f32[] {
  %one = f32[8,8]{1,0} fusion(%a), kind=kCustom, calls=%beside.1
  %two = f32[8,8]{1,0} fusion(%one), kind=kCustom, calls=%beside.2
  %sums = (f32[]{:T(128)}, f32[3,4]{1,0:T(4,128)}, /*index=5*/f32[5]{0:T(128)S(1)}) all-reduce(%x, %y, %z), channel_id=2
  ROOT %got = f32[]{:T(128)} get-tuple-element(%sums), index=0
}
"""  # noqa: E501


def test_collectives_of_a_tpu():
    """Many results in one, and one that is shown in each computation that it runs beside."""
    assert costs.collectives(TPU, 4) == {
        "all-gather": costs.Collective(1, 256, 192.0),
        "all-reduce": costs.Collective(1, 72, 108.0),
    }


@pytest.fixture(scope="module")
def runs(steps):
    """Seven steps, images from the device and from the host: losses, State, programs compiled after
    the first step."""
    found = []
    for step in (steps[1], Step(1, resident=False)):
        state, values = step.stepper(
            jax.tree.map(jnp.copy, step.state)
        )  # a step writes over what it is given
        seen, compiled = [values["loss"]], []
        with pytest.MonkeyPatch.context() as patch:
            compile_ = jax._src.compiler.compile_or_get_cached
            patch.setattr(
                jax._src.compiler,
                "compile_or_get_cached",
                lambda *a, **k: compiled.append(a) or compile_(*a, **k),
            )
            for _ in range(6):  # beyond two epochs of three steps
                state, values = step.stepper(state)
                seen.append(values["loss"])
        found.append((np.array(seen), parallel.fetch(state), len(compiled)))
    return found


def test_a_run_compiles_its_step_once(runs):
    assert [compiled for _, _, compiled in runs] == [0, 0]


def test_both_paths_of_the_input_give_the_same_batches(runs):
    """The small method's memory counts how often it saw each example, and holds the last batch's
    keys."""
    (first, state, _), (second, other, _) = runs
    np.testing.assert_allclose(first, second, rtol=1e-6)
    np.testing.assert_array_equal(state.memory["seen"], other.memory["seen"])
    np.testing.assert_allclose(state.memory["keys"], other.memory["keys"], rtol=1e-5, atol=1e-6)
    assert state.memory["seen"].sum() == 7 * BATCH


def test_nothing_moves_between_host_and_device_inside_steps(steps):
    """One step, and two in a dispatch, on arguments that are in their places."""
    step = steps[1]
    state, rows, ids, key, zero = step.arguments()
    stacked = np.stack([step.stepper.ids(number) for number in (1, 2)])
    many = parallel.place_batch(
        {"id": stacked}, step.built.mesh, jax.sharding.PartitionSpec(None, parallel.AXIS)
    )["id"]
    state, one = jax.tree.map(jnp.copy, state), parallel.replicate(np.int32(1), step.built.mesh)
    with jax.transfer_guard("disallow"):
        state, _ = step.stepper.one(state, rows, ids, key, zero)
        state, values = step.stepper.many(state, rows, many, key, one)
    assert int(state.step) == 3 and np.isfinite(values["loss"]).all()


@pytest.mark.parametrize("rows", [256, 4096])
def test_products_of_the_loss(rows):
    """The plain matrix takes three products of 2 N N D, one forward and two backward; tiles are
    made once more."""
    z = jax.ShapeDtypeStruct((rows // 2, 128), jnp.float32)
    for block_size, expected in ((0, 3), (256, 4)):

        def loss(a, b, block_size=block_size):
            return losses.nt_xent(a, b, temperature=0.1, block_size=block_size)

        jaxpr = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1)))(z, z)
        assert costs.flops(jaxpr) == expected * 2 * rows * rows * 128


def resnet_flops(blocks, side=32, width=64):
    """(FLOPs of a forward pass of one image, those of the stem), from the shapes: basic blocks,
    CIFAR stem."""

    def conv(side, inside, out, kernel, stride=1):
        end = side // stride
        taps = (
            end if kernel == 1 else 3 * end - (1 if stride == 2 else 2)
        )  # those that meet the padding are not counted
        return 2 * taps**2 * inside * out

    stem = conv(side, 3, width, 3)
    total, inside = stem, width
    for stage, count in enumerate(blocks):
        out = width * 2**stage
        for number in range(count):
            stride = 2 if stage and not number else 1
            total += conv(side, inside, out, 3, stride) + conv(side // stride, out, out, 3)
            if stride == 2:
                total += conv(side, inside, out, 1, stride)
            side, inside = side // stride, out
    return total, stem


def test_products_of_a_resnet():
    """Forward from the layers' shapes; a training step three times that, but for the gradient to
    the images."""
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    network = resnet.make(depth=18, stem="cifar")
    jaxpr, _ = jax.make_jaxpr(
        lambda x: network.init_with_output(jax.random.key(0), x, train=True), return_shape=True
    )(x)
    assert costs.flops(jaxpr) == resnet_flops((2, 2, 2, 2))[0]

    network = resnet.make(depth=10, width=0.25, stem="cifar")
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=True), x)

    def loss(params, stats, x):
        out, _ = network.apply(
            {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
        )
        return out["h"].sum()

    forward, stem = resnet_flops((1, 1, 1, 1), width=16)
    jaxpr = jax.make_jaxpr(jax.grad(loss))(variables["params"], variables["batch_stats"], x)
    assert costs.flops(jaxpr) == 3 * forward - stem
