"""Losses and memories of arrays that are sharded over a mesh, without a named axis: meshes with
Explicit axes (the default of `jax.make_mesh`) and with Auto axes; inside `jit` and outside."""

import inspect
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cl_jax.losses import agents
from cl_jax.losses.contrast import contrast
from cl_jax.losses.image_text import clip, siglip
from cl_jax.losses.infonce import info_nce, nt_xent
from cl_jax.losses.inva_spread import inva_spread
from cl_jax.losses.positives import supcon
from cl_jax.memory import queue as ring
from tests.losses import test_table as table

EXPLICIT, AUTO = (AxisType.Explicit,), (AxisType.Auto,)
# One of each kind of dependence between examples; every row of the table with `-m slow`.
HEADLINE = {
    "nt_xent",
    "info_nce",
    "supcon",
    "clip",
    "siglip",
    "dino",
    "swav",
    "swav_codes",
    "hcl",
    "nce",
    "proto_nce",
    "inva_spread",
    "hard_simple",
    "tolerance",
    "cpc",
    "simsiam",
    "cross_entropy",
    "update",
}


# Whose sum over all outputs is the same for any input: its gradient would be rounding alone.
CONSTANT_SUM = {"whiten", "dclw_weights"}


def mesh_of(kind, shape=(2,), names=("data",)):
    count = int(np.prod(shape))
    return jax.make_mesh(shape, names, kind * len(names), devices=jax.devices()[:count])


def spec_of(axes: str) -> PartitionSpec:
    """The batch "b" over the mesh's axis, everything else on every device."""
    letters = axes.strip("*").split()
    at = letters.index("b") if "b" in letters else None
    return PartitionSpec(*["data" if i == at else None for i in range(len(letters))])


def step_of(given: table.Row, rest: dict, **how):
    """Value of all floating outputs, and its gradient."""

    def total(inputs, rest):
        out = table.floats(table.run(given, inputs | rest, **how))
        if table.name_of(given.f) in CONSTANT_SUM:
            out = [jnp.sin(x) for x in out]
        return sum((jnp.sum(jnp.where(x > -1e29, x, 0)) for x in out), jnp.zeros(()))

    return jax.value_and_grad(total)


def held(ours, exact, bound=2e-5):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= bound * max(np.abs(b).max(), 1e-2)


def table_rows():
    seen = set()
    for index, given in enumerate(table.ROWS):
        if any("b" in axes.strip("*").split() for axes in given.arrays.values()):
            # Of the rows of one loss, those of different arrays: they are sharded differently.
            name, letters = table.name_of(given.f), tuple(given.arrays.values())
            by_default = name in HEADLINE and (name, letters) not in seen
            seen.add((name, letters))
            marks = [] if by_default else [pytest.mark.slow]
            yield pytest.param(index, id=f"{name}-{index}", marks=marks)


@pytest.mark.parametrize("index", table_rows())
def test_an_explicit_mesh_gives_what_one_device_gives(index):
    given = table.ROWS[index]
    arrays = table.arrays_of(given)
    inputs = {name: x for name, x in arrays.items() if x.dtype.kind == "f"}
    rest = {name: x for name, x in arrays.items() if name not in inputs}
    step = step_of(given, rest)
    exact = jax.jit(step)(inputs, rest)
    mesh = mesh_of(EXPLICIT)
    sharding = {name: NamedSharding(mesh, spec_of(axes)) for name, axes in given.arrays.items()}
    with jax.set_mesh(mesh):
        placed = {name: jax.device_put(x, sharding[name]) for name, x in arrays.items()}
        ours = jax.jit(step)(
            {name: placed[name] for name in inputs}, {name: placed[name] for name in rest}
        )
    held(ours, exact)
    for name, grad in ours[1].items():
        assert grad.sharding.is_equivalent_to(sharding[name], grad.ndim), name


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 0, 2])
@pytest.mark.parametrize("where", ["sharded", "replicated", "both"])
@pytest.mark.parametrize("kind", [EXPLICIT, AUTO])
def test_sharded_replicated_or_both(kind, where, block_size):
    mesh = mesh_of(kind, (4,))
    z = np.random.default_rng(0).normal(size=(2, 8, 5)).astype(np.float32)
    specs = [PartitionSpec("data"), PartitionSpec("data")]
    if where != "sharded":
        specs[1] = PartitionSpec()
    if where == "replicated":
        specs[0] = PartitionSpec()
    f = jax.value_and_grad(partial(nt_xent, temperature=0.3, block_size=block_size), (0, 1))
    exact = jax.jit(f)(*z)
    with jax.set_mesh(mesh):
        given = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(z, specs)]
        ours = jax.jit(f)(*given)
    held(ours, exact)
    if kind == EXPLICIT:
        for grad, x in zip(ours[1], given):
            assert grad.sharding.is_equivalent_to(x.sharding, 2)


WHERE = ("sharded", "replicated", "both")
# Outside `jit` a loss is a hundred small programs to compile: a few of them by default, and with
# `-m slow` every row of the table in one of the three placements, in turn.
EAGER = {"swav", "enqueue"}


def placements():
    """Every row of the table, its inputs sharded, replicated, or sharded and replicated in turn."""
    for index, given in enumerate(table.ROWS):
        if any("b" in axes.strip("*").split() for axes in given.arrays.values()):
            for where in WHERE:
                yield pytest.param(index, where, id=f"{table.name_of(given.f)}-{index}-{where}")


def placements_outside_jit():
    seen = set()
    for given in placements():
        index, where = given.values
        name = table.name_of(table.ROWS[index].f)
        few = name in EAGER and where == "sharded" and name not in seen
        seen.add(name)
        if few or where == WHERE[index % 3]:
            marks = [] if few else [pytest.mark.slow]
            yield pytest.param(index, where, id=given.id, marks=marks)


def held_on_four_devices(given, where, jitted, **how):
    """A row's value and gradient on a mesh of a data and a model axis, both Explicit."""
    arrays = table.arrays_of(given)
    inputs = {name: x for name, x in arrays.items() if x.dtype.kind == "f"}
    rest = {name: x for name, x in arrays.items() if name not in inputs}
    step = step_of(given, rest, **how)
    exact = jax.jit(step)(inputs, rest)
    mesh = mesh_of(EXPLICIT, (2, 2), ("data", "model"))
    sharding = {}
    for i, (name, axes) in enumerate(given.arrays.items()):
        alone = where == "sharded" or (where == "both" and i % 2 == 0)
        sharding[name] = NamedSharding(mesh, spec_of(axes) if alone else PartitionSpec())
    with jax.set_mesh(mesh):
        placed = {name: jax.device_put(x, sharding[name]) for name, x in arrays.items()}
        ours = (jax.jit(step) if jitted else step)(
            {name: placed[name] for name in inputs}, {name: placed[name] for name in rest}
        )
    held(ours, exact)
    for name, grad in ours[1].items():
        assert grad.sharding.is_equivalent_to(sharding[name], grad.ndim), name


@pytest.mark.parametrize(("index", "where"), placements_outside_jit())
def test_outside_jit(index, where):
    held_on_four_devices(table.ROWS[index], where, jitted=False)


@pytest.mark.slow
@pytest.mark.parametrize(("index", "where"), placements())
def test_inside_jit(index, where):
    held_on_four_devices(table.ROWS[index], where, jitted=True)


@pytest.mark.slow
@pytest.mark.parametrize("jitted", [True, False])
@pytest.mark.parametrize(
    "index",
    [i for i, row in enumerate(table.ROWS) if "block_size" in inspect.signature(row.f).parameters],
    ids=table._id,
)
def test_tiles_on_an_explicit_mesh(index, jitted):
    held_on_four_devices(table.ROWS[index], "sharded", jitted, block_size=2)


def test_a_vmap_over_what_an_explicit_mesh_shards():
    """A loss a device: the mesh's axis is the vmap's and divides no rows."""
    mesh = mesh_of(EXPLICIT)
    z = np.random.default_rng(0).normal(size=(2, 2, 8, 5)).astype(np.float32)
    f = jax.vmap(jax.value_and_grad(partial(nt_xent, temperature=0.3)))
    with jax.set_mesh(mesh):
        ours = jax.jit(f)(*jax.device_put(z, NamedSharding(mesh, PartitionSpec(None, "data"))))
    held(ours, jax.jit(f)(*z))


def test_shard_map_over_one_of_two_explicit_axes():
    mesh = mesh_of(EXPLICIT, (2, 2), ("data", "model"))
    z = np.random.default_rng(0).normal(size=(2, 8, 5)).astype(np.float32)
    with jax.set_mesh(mesh):
        mapped = jax.shard_map(
            partial(nt_xent, temperature=0.3, axis_name="data"),
            in_specs=PartitionSpec("data"),
            out_specs=PartitionSpec(),
            axis_names={"data"},
        )
        ours = jax.jit(jax.value_and_grad(mapped, (0, 1)))(*z)
    held(ours, jax.jit(jax.value_and_grad(partial(nt_xent, temperature=0.3), (0, 1)))(*z))


@pytest.mark.slow
@pytest.mark.parametrize("jitted", [True, False])
def test_losses_of_agents(jitted):
    rng = np.random.default_rng(0)
    p, z = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 4, 5, 3), (4, 5, 3)))
    episode, observation = rng.integers(0, 2, (4, 5)).cumsum(1), rng.integers(0, 2, (4, 5, 1))
    f = jax.value_and_grad(agents.cpc_unroll, (0, 1))
    exact = jax.jit(f)(p, z, episode, observation=observation)
    mesh = mesh_of(EXPLICIT)
    rows, steps = (NamedSharding(mesh, PartitionSpec(*x)) for x in (("data",), (None, "data")))
    with jax.set_mesh(mesh):
        given = [jax.device_put(p, steps), *jax.device_put([z, episode], rows)]
        seen = jax.device_put(observation, rows)
        ours = (jax.jit(f) if jitted else f)(*given, observation=seen)
    held(ours, exact)
    for grad, x in zip(ours[1], given):
        assert grad.sharding.is_equivalent_to(x.sharding, x.ndim)


def test_a_mesh_with_a_data_and_a_model_axis():
    """Rows are divided over all devices, whatever the batch is sharded over."""
    z = np.random.default_rng(0).normal(size=(2, 8, 5)).astype(np.float32)
    f = jax.value_and_grad(partial(clip, logit_scale=5.0, block_size=2), (0, 1))
    exact = jax.jit(f)(*z)
    for kind in (EXPLICIT, AUTO):
        mesh = mesh_of(kind, (2, 2), ("data", "model"))
        with jax.set_mesh(mesh):
            given = [jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))) for x in z]
            held(jax.jit(f)(*given), exact)


def test_a_queue_sharded_or_replicated():
    mesh = mesh_of(EXPLICIT)
    new = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    start = ring.init(jax.random.key(0), 16, 3)
    exact = jax.jit(ring.enqueue)(start, new)
    with jax.set_mesh(mesh):
        rows = jax.device_put(new, NamedSharding(mesh, PartitionSpec("data")))
        for spec in (PartitionSpec(), PartitionSpec("data")):
            where = NamedSharding(mesh, spec)
            held_rows = jax.device_put(start.rows, where)
            queue = start._replace(rows=held_rows)
            after = jax.jit(ring.enqueue)(queue, rows)  # test_outside_jit has it without
            np.testing.assert_array_equal(after.rows, exact.rows)
            if spec:
                assert after.rows.sharding.is_equivalent_to(where, 2)
        loss = jax.jit(partial(info_nce, temperature=0.2))(rows, rows, after.rows)
    held(loss, jax.jit(partial(info_nce, temperature=0.2))(new, new, exact.rows))


def trips(compiled) -> list[int]:
    """Trip counts of the loops of a compiled program, the longest first."""
    found = re.findall(r'known_trip_count.{0,4}:\{"n":"(\d+)"', compiled.as_text())
    return sorted(map(int, found), reverse=True)


def sharded(mesh, *shapes):
    where = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    return [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=where) for shape in shapes]


@pytest.mark.parametrize(
    ("name", "f"),
    [
        ("nt_xent", partial(nt_xent, temperature=0.3, block_size=8)),
        ("clip", partial(clip, logit_scale=5.0, block_size=8)),
        ("siglip", partial(siglip, logit_scale=5.0, logit_bias=0.0, block_size=8)),
        ("queue", lambda a, b: info_nce(a, b, b[:56], temperature=0.3, block_size=8)),
        ("inva_spread", partial(inva_spread, temperature=0.3, block_size=8)),
    ],
)
def test_tiles_are_divided_among_devices(name, f):
    """Forward and backward loops of one device's program: total / devices tiles each."""
    step = jax.value_and_grad(f, (0, 1))
    shapes = [(64, 16)] * 2
    one = jax.jit(step).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()
    total, backward = trips(one)[:2]
    assert total == backward >= 16
    for kind in (EXPLICIT, AUTO):
        mesh = mesh_of(kind, (4,))
        with jax.set_mesh(mesh):
            four = jax.jit(step).lower(*sharded(mesh, *shapes)).compile()
        assert total not in trips(four) and trips(four).count(total // 4) >= 2, trips(four)
        # A queue is replicated; a block of InvaSpread's rows is as large on each of four devices.
        if name not in ("queue", "inva_spread"):
            temporaries = (x.memory_analysis().temp_size_in_bytes for x in (one, four))
            assert next(temporaries) > next(temporaries)


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [64, None])
def test_blocks_of_rows_take_what_they_take_in_shard_map(block_size):
    mesh = mesh_of(AUTO, (4,))
    f = partial(inva_spread, temperature=0.3, block_size=block_size)
    shapes = [(4096, 64)] * 2
    with jax.set_mesh(mesh):
        ours = jax.jit(jax.value_and_grad(f, (0, 1))).lower(*sharded(mesh, *shapes)).compile()
        mapped = jax.shard_map(
            jax.value_and_grad(partial(f, axis_name="data"), (0, 1)),
            mesh=mesh,
            in_specs=PartitionSpec("data"),
            out_specs=(PartitionSpec(), PartitionSpec("data")),
            check_vma=False,
        )
        exact = jax.jit(mapped).lower(*sharded(mesh, *shapes)).compile()
    taken, least = (x.memory_analysis().temp_size_in_bytes for x in (ours, exact))
    own_rows = 4 * 2 * 4096 // 4 * 64  # bytes; XLA's partition of the program keeps a copy of them
    assert taken <= 1.02 * least + own_rows, (taken / 2**20, least / 2**20)


def test_the_plain_matrix_is_chosen_by_the_rows_of_one_device():
    """1,024 x 1,024 in float32 are 4 MiB, the most that is not tiled on a CPU."""
    mesh = mesh_of(AUTO, (4,))
    f = jax.grad(lambda a: contrast(a, a, scale=2.0).lse.sum())
    where = sharded(mesh, (2048, 4))
    assert trips(jax.jit(f).lower(jax.ShapeDtypeStruct((2048, 4), jnp.float32)).compile())
    assert not trips(jax.jit(f).lower(*where).compile())


def test_labels_of_a_sharded_batch():
    mesh = mesh_of(AUTO, (4,))
    z = np.random.default_rng(0).normal(size=(8, 2, 5)).astype(np.float32)
    labels = np.array([0, 1, 0, -1, -1, 1, 2, 2])
    f = jax.value_and_grad(lambda z, y: supcon(z, y, temperature=0.3, block_size=4))
    where = NamedSharding(mesh, PartitionSpec("data"))
    held(jax.jit(f)(jax.device_put(z, where), jax.device_put(labels, where)), jax.jit(f)(z, labels))


AXES = ("host", "device")


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["gather", "ring"])
@pytest.mark.parametrize(
    "f",
    [
        partial(nt_xent, temperature=0.3),
        partial(clip, logit_scale=5.0),
        lambda a, b, **how: supcon(jnp.stack([a, b], 1), temperature=0.3, **how),
    ],
)
@pytest.mark.parametrize("check_vma", [True, False])
def test_two_named_axes_count_as_one(f, plan, check_vma):
    mesh = mesh_of(AUTO, (2, 2), AXES)
    z = np.random.default_rng(0).normal(size=(2, 8, 5)).astype(np.float32)

    batch, one = PartitionSpec(AXES), PartitionSpec()
    mapped = partial(f, axis_name=AXES, plan=plan)
    if check_vma:
        mapped = jax.value_and_grad(
            jax.shard_map(mapped, mesh=mesh, in_specs=batch, out_specs=one), (0, 1)
        )
    else:
        inside = jax.value_and_grad(mapped, (0, 1))
        mapped = jax.shard_map(
            inside, mesh=mesh, in_specs=batch, out_specs=(one, batch), check_vma=False
        )
    value, grads = jax.jit(mapped)(*z)
    exact = jax.jit(jax.value_and_grad(f, (0, 1)))(*z)
    # Inside, each device has the gradient of the sum over devices of the one loss.
    held((value, grads if check_vma else jax.tree.map(lambda g: g / 4, grads)), exact)
