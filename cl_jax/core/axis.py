"""Statistics over devices: of a mapped axis, or of the mesh that arrays lie on.

`axis_name` is the name of a mapped axis, a tuple of names whose devices count as one axis in
row-major order, or None, where `gather`, `mean` and `total` are the identity.

Losses return the mean over the *global* batch, the same number on every device. Differentiated
inside `jax.pmap` or `jax.shard_map` and averaged over the axis with `lax.pmean`, that gives the
gradient one device would give. Without a named axis, arrays may be sharded over a mesh: losses see
the global batch, `any_mesh` takes them through meshes with Explicit axes, and `split_over` says
over which axes sums over pairs are divided.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cl_jax.core.numerics import at_least_one, capped

AxisName = str | tuple[str, ...] | None
F = TypeVar("F", bound=Callable[..., Any])


def gather(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """[B_local, ...] -> [B, ...]: rows of all devices in rank order; gradient flows back to the
    device of each row."""
    return x if axis_name is None else lax.all_gather(x, axis_name, axis=0, tiled=True)


def mean(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Mean over devices of a per-device value."""
    return x if axis_name is None else lax.pmean(x, axis_name)


def averaged(tree: Any, axis_name: AxisName) -> Any:
    """Mean over devices of floating-point arrays; on one device the tree itself, since an
    all-reduce there is a copy that XLA's CPU compiler keeps."""
    if axis_name is None:
        return tree
    alone = axis_size(axis_name) == 1 and not any(map(axes_of, jax.tree.leaves(tree)))
    return tree if alone else lax.pmean(tree, axis_name)


def total(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Sum over devices of a per-device value."""
    return x if axis_name is None else lax.psum(x, axis_name)


def log_total(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """log of the sum of exp(x) over all entries and devices."""
    highest = lax.stop_gradient(jnp.max(x))
    if axis_name is not None:
        highest = lax.pmax(highest, axis_name)
    powers = total(jnp.sum(jnp.exp(capped(x - highest))), axis_name)
    return highest + jnp.log(at_least_one(powers))


def first_row(rows: int, axis_name: AxisName) -> jax.Array | int:
    """Position of this device's first row among the gathered rows, when each device has `rows`."""
    return 0 if axis_name is None else lax.axis_index(axis_name) * rows


def axis_size(axis_name: AxisName) -> int:
    """Number of devices along the axis, 1 for None."""
    return 1 if axis_name is None else lax.axis_size(axis_name)


def share_of_gradient(loss: jax.Array, axis_name: AxisName) -> jax.Array:
    """The value of a loss of the global batch, with its gradient divided by the number of devices:
    what programs train on whose exchange between devices passes no gradient."""
    if axis_name is None:
        return loss
    constant = lax.stop_gradient(loss)
    return constant + (loss - constant) / axis_size(axis_name)


def gather_own(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """`gather`, with gradient to this device's rows alone."""
    every = lax.stop_gradient(gather(x, axis_name))
    return lax.dynamic_update_slice_in_dim(every, x, first_row(x.shape[0], axis_name), axis=0)


def varying(tree: Any) -> Any:
    """Every array made to vary over the axes any of them varies over, as the hand-written gradient
    needs."""
    leaves, structure = jax.tree.flatten(tree)
    axes = frozenset().union(*(axes_of(x) for x in leaves))
    return jax.tree.unflatten(structure, [spread(x, axes) for x in leaves])


def axes_of(x: Any) -> frozenset:
    """Mapped axes over which a value varies, as its type tracks them; empty if not tracked."""
    if isinstance(x, (int, float)):
        return frozenset()
    kind = jax.typeof(x)
    return kind.mat.varying if hasattr(kind, "mat") else getattr(kind, "vma", frozenset())


def spread(x: Any, axes: frozenset) -> Any:
    """x, made to vary over these axes too."""
    missing = () if isinstance(x, (int, float)) else tuple(sorted(axes - axes_of(x)))
    if not missing:
        return x
    if hasattr(lax, "pcast"):
        return lax.pcast(x, missing, to="varying")
    return lax.pvary(x, missing)  # type: ignore[attr-defined]  # its name in jax 0.8


def any_mesh(f: F) -> F:
    """f, which also takes arrays that lie on a mesh with Explicit axes, as `jax.make_mesh` makes by
    default.

    Inside f the compiler decides how arrays are split, and f sees the global batch. An output's
    axis that is as long as a sharded axis of an argument is sharded like it, all else is
    replicated; gradients are sharded as what they are gradients of.
    """

    @functools.wraps(f)
    def call(*args, **knobs):
        leaves, tree = jax.tree.flatten((args, knobs))
        mesh = _mesh_with(AxisType.Explicit, leaves)
        if mesh is None:
            return f(*args, **knobs)
        arrays = [_is_array(x) for x in leaves]
        given = [jnp.asarray(x) for x, array in zip(leaves, arrays) if array]
        if AxisType.Manual in mesh.axis_types and not _sharded_sizes(given):
            return f(*args, **knobs)  # in `jax.shard_map` over some of the axes

        def run(*given):
            given = iter(given)
            args, knobs = jax.tree.unflatten(
                tree, [next(given) if array else x for x, array in zip(leaves, arrays)]
            )
            return f(*args, **knobs)

        # In the mesh that f will see: jax 0.8 does not mix what has no mesh with Explicit axes.
        inside = mesh.update(
            axis_types=tuple(
                AxisType.Auto if kind == AxisType.Explicit else kind for kind in mesh.axis_types
            )
        )
        with jax.sharding.use_abstract_mesh(inside):
            shapes = jax.eval_shape(run, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in given))
        split = _sharded_sizes(given)
        return jax.sharding.auto_axes(
            run,
            axes=_axes(mesh, AxisType.Explicit),
            out_sharding=jax.tree.map(lambda x: _like(x.shape, split, mesh), shapes),
        )(*given)

    return call  # type: ignore[return-value]


def split_over(rows: int, *arrays: jax.Array) -> tuple[Any, tuple[str, ...]]:
    """The mesh that traced arrays lie on, and the axes over which `rows` rows are divided: the
    first ones that the compiler places (Auto) whose devices divide the rows. No axes inside
    `jax.shard_map`, under a `jax.vmap` over what is sharded, for arrays that are not traced, or
    where no mesh is known."""
    none = None, ()
    if not isinstance(rows, int) or not any(isinstance(x, jax.core.Tracer) for x in arrays):
        return none
    mesh = _mesh_with(AxisType.Auto, arrays)
    if mesh is None or AxisType.Manual in mesh.axis_types:
        return none
    names: tuple[str, ...] = ()
    for name in _axes(mesh, AxisType.Auto):
        if rows % (math.prod(mesh.shape[n] for n in names) * mesh.shape[name]):
            break
        names += (name,)
    several = math.prod(mesh.shape[n] for n in names) > 1
    return (mesh, names) if several and _free(mesh, names) else none


def num_splits(rows: int, *arrays: jax.Array) -> int:
    """Number of parts that `split_over` divides the rows into."""
    mesh, names = split_over(rows, *arrays)
    return math.prod(mesh.shape[name] for name in names) if names else 1


def is_divided(x: Any) -> bool:
    """Whether an array's type says that it is divided over a mesh, as Explicit axes do: what takes
    some of its rows then needs to say where they are to lie."""
    return any(axes is not None for axes in jax.typeof(x).sharding.spec)


def _free(mesh, names) -> bool:
    """Whether the axes can be mapped here, and are not those of what a `jax.vmap` is over."""
    rows = PartitionSpec(names)
    count = jax.ShapeDtypeStruct((math.prod(mesh.shape[n] for n in names),), jnp.float32)
    try:
        jax.eval_shape(jax.shard_map(lambda x: x, mesh=mesh, in_specs=rows, out_specs=rows), count)
    except ValueError:
        return False
    return True


def _is_array(x):
    if isinstance(x, np.ndarray):
        return x.ndim > 0
    return isinstance(x, jax.Array)


def _axes(mesh, kind):
    return tuple(name for name, type_ in zip(mesh.axis_names, mesh.axis_types) if type_ == kind)


def _mesh_with(kind, leaves):
    """The mesh in the type of the first array that has one with axes of this kind."""
    for x in leaves:
        if isinstance(x, jax.Array):
            mesh = getattr(getattr(jax.typeof(x), "sharding", None), "mesh", None)
            if mesh is not None and kind in mesh.axis_types:
                return mesh
    return None


def _sharded_sizes(arrays):
    """{length of an axis: the mesh axes it is sharded over}, of the first array where it is."""
    found: dict[int, Any] = {}
    for x in arrays:
        for size, axes in zip(x.shape, jax.typeof(x).sharding.spec):
            if axes is not None:
                found.setdefault(size, axes)
    return found


def _like(shape, split, mesh):
    spec: list[Any] = []
    for size in shape:
        axes = split.get(size)
        spec.append(None if axes in spec else axes)
    return NamedSharding(mesh, PartitionSpec(*spec))
