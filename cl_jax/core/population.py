"""Several methods that train side by side on the same batches, as one method."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from cl_jax.core import parallel
from cl_jax.core.method import Batch, Method, State, Tree, check_metrics, views_of
from cl_jax.core.sharded import choose

FIELDS = ("params", "opt", "stats", "target", "memory")  # of State, apart from its step


@struct.dataclass
class Members:
    """What a population remembers: the members' own memories, and which still train."""

    memory: Any
    alive: jax.Array  # [M] bool


def population(members: Mapping[str, Method]) -> Method:
    """The members, unrolled one after the other into one program.

    Every member gets the same batches and the same keys, so that its figures are those of a run of
    its own, to the order of summation. The State's `params`, `opt`, `stats` and `target` are tuples
    over members, and so is `memory.memory`. Metrics are named "<member>/<metric>", features
    "<feature>@<member>", and likewise what other functions return under a name; "h" is all members'
    representations side by side. "loss" is the mean over the members that train, "grad_norm" the
    norm over all of them.

    A member whose loss or gradient norm is NaN or inf keeps the State that it had before that step
    and stops; "<member>/alive" is 0 and its other metrics are NaN from then on. Only when no member
    is left is the population's loss NaN.

    Raises:
      ValueError: no member, or one that chooses the examples of an epoch itself.
    """
    group = _Group(tuple(members), tuple(members.values()))
    _check(group)
    first = group.methods[0]

    def init(key: jax.Array, batch: Batch) -> State:
        return _joined([method.init(key, batch) for method in group.methods], None)

    def update(state: State, batch: Batch, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        states, found = [], []
        for i, method in enumerate(group.methods):
            before = member(state, i)
            after, metrics = method.update(before, batch, key)
            after, metrics = _guarded(before, after, metrics, state.memory.alive[i])
            states.append(after)
            found.append(metrics)
        alive = jnp.stack([metrics["alive"] > 0 for metrics in found])
        return _joined(states, alive), _together(group.names, found)

    def evaluated(state: State) -> tuple[Tree, Tree]:
        each = [m.evaluated(member(state, i)) for i, m in enumerate(group.methods)]
        params, stats = zip(*each)
        return params, stats

    def features(
        params: Tree, stats: Tree, inputs: Sequence[Tree], train: bool
    ) -> tuple[dict[str, jax.Array], Tree]:
        each = [
            method.features(p, s, x, train)
            for method, p, s, x in zip(group.methods, params, stats, inputs)
        ]
        return _named(group.names, [f for f, _ in each]), tuple(s for _, s in each)

    def clean(batch: Batch) -> Sequence[Tree]:
        return tuple(method.clean(batch) for method in group.methods)

    def views(batch: Batch, key: jax.Array) -> Sequence[Tree]:
        return list(zip(*(views_of(method, batch, key) for method in group.methods)))

    def begin(state: State) -> State:
        own = [(method, member(state, i)) for i, method in enumerate(group.methods)]
        states = [one if method.begin is None else method.begin(one) for method, one in own]
        return _joined(states, state.memory.alive)

    def refresh(state: State, encode_all: Any, epoch: int) -> State:
        def of(index: int, method: Method) -> State:
            own = member(state, index)
            if method.refresh is None:
                return own
            return method.refresh(own, lambda f: encode_all(_OfMember(f, index)), epoch)

        states = [of(i, method) for i, method in enumerate(group.methods)]
        return _joined(states, state.memory.alive)

    def all_have(name: str) -> bool:
        return all(getattr(method, name) is not None for method in group.methods)

    return Method(
        init=init,
        update=update,
        functions={name: group.function(name) for name in group.functions()},
        needs=_union(method.needs for method in group.methods),
        wants=_union(method.wants for method in group.methods),
        features=features if all_have("features") else None,
        clean=clean if all_have("clean") else None,
        views=views if all_have("views") else None,
        begin=begin if any(m.begin is not None for m in group.methods) else None,
        refresh=refresh if any(m.refresh is not None for m in group.methods) else None,
        evaluated=evaluated,
        negatives=first.negatives,
    )


def vmapped(
    make: Callable[..., Method], over: Sequence[Mapping[str, float]], names: Sequence[str]
) -> Method:
    """As `population`, for members that differ in numbers alone, as one program over an axis.

    The State's arrays have an axis of M members in front. On an accelerator the program is smaller
    and faster than M programs; on a CPU that holds for networks without convolutions.

    Args:
      make: (**numbers) -> Method, of traced numbers: it must not look at their values.
      over: the numbers of each member, the same names in each.
      names: of the members.

    Raises:
      ValueError: no member, other names of numbers, a method that looks at the value of a number,
        or that has a `refresh` or `order`, which run on the host.
    """
    if not over or any(set(one) != set(over[0]) for one in over):
        raise ValueError(f"members are {list(over)}; expected at least one, all of the same names.")
    first = make(**over[0])
    if of_host := on_host(first):
        raise ValueError(
            f"the method has a `{of_host[0]}`, which runs on the host for one member at a time; "
            "use how='unrolled'."
        )
    values = {name: np.asarray([one[name] for one in over]) for name in over[0]}

    def each(f: Callable[..., Any], *trees: Any) -> Any:
        def one(numbers: Mapping[str, jax.Array], *trees: Any) -> Any:
            try:
                method = make(**numbers)
            except jax.errors.ConcretizationTypeError as error:
                raise ValueError(
                    f"the method looks at the value of one of {', '.join(values)} when it is "
                    "built, which one program for all members cannot have; use how='unrolled'."
                ) from error
            return f(method, *trees)

        return jax.vmap(one)({name: jnp.asarray(x) for name, x in values.items()}, *trees)

    def split(state: State) -> tuple[Tree, jax.Array]:
        trees = {name: getattr(state, name) for name in FIELDS} | {"memory": state.memory.memory}
        return trees, state.memory.alive

    def join(step: jax.Array, trees: Any, alive: jax.Array) -> State:
        return State(step, **(trees | {"memory": Members(trees["memory"], alive)}))

    def init(key: jax.Array, batch: Batch) -> State:
        def one(method: Method) -> Any:
            state = method.init(key, batch)
            return {name: getattr(state, name) for name in FIELDS}

        return join(jnp.zeros((), jnp.int32), each(one), jnp.ones(len(names), bool))

    def update(state: State, batch: Batch, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        def one(method: Method, trees: Any, alive: jax.Array) -> Any:
            before = State(state.step, **trees)
            after, metrics = method.update(before, batch, key)
            after, metrics = _guarded(before, after, metrics, alive)
            return {name: getattr(after, name) for name in FIELDS}, metrics

        trees, metrics = each(one, *split(state))
        found = [{name: x[i] for name, x in metrics.items()} for i in range(len(names))]
        return join(state.step + 1, trees, metrics["alive"] > 0), _together(names, found)

    def begin(state: State) -> State:
        # The host has the numbers of each member, and a file of weights is read into one.
        unrolled = population({name: make(**one) for name, one in zip(names, over)})
        assert unrolled.begin is not None
        return other_form(unrolled.begin(other_form(parallel.fetch(state))))

    def function(name: str) -> Callable[[State, Batch], Tree]:
        def of_all(state: State, batch: Batch) -> Tree:
            def one(method: Method, trees: Any) -> Any:
                return method.functions[name](State(state.step, **trees), batch)

            found = each(one, split(state)[0])
            rows = [jax.tree.map(lambda x: x[i], found) for i in range(len(names))]
            return _named(names, rows)

        return of_all

    def evaluated(state: State) -> tuple[Tree, Tree]:
        def one(method: Method, trees: Any) -> Any:
            return method.evaluated(State(state.step, **trees))

        found: tuple[Tree, Tree] = each(one, split(state)[0])
        return found

    def features(
        params: Tree, stats: Tree, inputs: Tree, train: bool
    ) -> tuple[dict[str, jax.Array], Tree]:
        def one(method: Method, params: Tree, stats: Tree) -> Any:
            return method.features(params, stats, inputs, train)

        found, stats = each(one, params, stats)
        rows = [{name: x[i] for name, x in found.items()} for i in range(len(names))]
        return _named(names, rows), stats

    return Method(
        init=init,
        update=update,
        functions={name: function(name) for name in first.functions},
        needs=first.needs,
        wants=first.wants,
        features=None if first.features is None else features,
        clean=first.clean,
        views=first.views,
        begin=None if first.begin is None else begin,
        evaluated=evaluated,
        negatives=first.negatives,
    )


def other_form(state: State) -> State:
    """The State of `population` as that of `vmapped`, and the reverse, of NumPy arrays: which of
    the two a population has depends on the backend, and what is read of a checkpoint must not.

    Raises:
      ValueError: members whose arrays differ in structure or shape, which have one form alone.
    """
    trees = {name: getattr(state, name) for name in FIELDS} | {"memory": state.memory.memory}
    count = len(state.memory.alive)
    if all(type(tree) is tuple and len(tree) == count for tree in trees.values()):
        trees = {
            name: jax.tree.map(lambda *leaves: np.stack(leaves), *tree)
            for name, tree in trees.items()
        }
    else:
        trees = {
            name: tuple(jax.tree.map(lambda x: x[i], tree) for i in range(count))
            for name, tree in trees.items()
        }
    return State(state.step, **(trees | {"memory": Members(trees["memory"], state.memory.alive)}))


def on_host(method: Method) -> list[str]:
    """The functions of a method that run on the host during training, for one member at a time."""
    return [name for name in ("refresh", "order") if getattr(method, name) is not None]


def seeded(method: Method, seed: Any) -> Method:
    """The method with draws of its own: `seed`, a number that may be traced, is folded into the
    keys of its start and of its steps. Batches stay those of the run."""

    def init(key: jax.Array, batch: Batch) -> State:
        return method.init(jax.random.fold_in(key, seed), batch)

    def update(state: State, batch: Batch, key: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        return method.update(state, batch, jax.random.fold_in(key, seed))

    return dataclasses.replace(method, init=init, update=update)


def member(state: State, index: int) -> State:
    """The State of one member of an unrolled population. A field that is left out of the State, as
    evaluations leave out the optimiser's, is left out of the member's."""
    trees = {name: getattr(state, name) for name in FIELDS if name != "memory"}
    own = {name: None if tree is None else tree[index] for name, tree in trees.items()}
    return State(state.step, **own, memory=state.memory.memory[index])


class _Group(NamedTuple):
    names: tuple[str, ...]
    methods: tuple[Method, ...]

    def functions(self) -> list[str]:
        """Names of functions that all members have."""
        return [
            name
            for name in self.methods[0].functions
            if all(name in method.functions for method in self.methods)
        ]

    def function(self, name: str) -> Callable[[State, Batch], Tree]:
        def of_all(state: State, batch: Batch) -> Tree:
            found = [m.functions[name](member(state, i), batch) for i, m in enumerate(self.methods)]
            return _named(self.names, found)

        return of_all


@dataclasses.dataclass(frozen=True)
class _OfMember:
    """f(State of a member, batch) as a function of the population's State; equal ones are compiled
    once."""

    f: Callable[[State, Batch], Any]
    index: int

    def __call__(self, state: State, batch: Batch) -> Any:
        return self.f(member(state, self.index), batch)


def _check(group: _Group) -> None:
    if not group.methods:
        raise ValueError("a population of no member; expected at least one.")
    for name, method in zip(group.names, group.methods):
        if method.order is not None:
            raise ValueError(
                f"{name}: the method chooses the examples of an epoch by its own State (`order`), "
                "and members of a population share their batches. Train it by itself."
            )


def _joined(states: Sequence[State], alive: jax.Array | None) -> State:
    trees = {name: tuple(getattr(state, name) for state in states) for name in FIELDS}
    alive = jnp.ones(len(states), bool) if alive is None else alive
    return State(states[0].step, **(trees | {"memory": Members(trees["memory"], alive)}))


def _guarded(
    before: State, after: State, metrics: Mapping[str, jax.Array], alive: jax.Array
) -> tuple[State, dict[str, jax.Array]]:
    """A member's State after a step, or before it where the member has stopped or stops now."""
    check_metrics(metrics, "a member of the population", ("loss", "grad_norm"))
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    trains = alive & finite
    kept = choose(trains, after, before)
    shown = {name: jnp.where(alive, x, jnp.nan) for name, x in metrics.items()}
    return dataclasses.replace(kept, step=after.step), shown | {"alive": trains.astype(jnp.float32)}


def _together(
    names: Sequence[str], found: Sequence[Mapping[str, jax.Array]]
) -> dict[str, jax.Array]:
    alive = jnp.stack([metrics["alive"] for metrics in found])

    def over_alive(name: str, power: int) -> jax.Array:
        values = jnp.stack([metrics[name] for metrics in found]) ** power
        return jnp.where(alive > 0, values, 0.0).sum()

    count = alive.sum()
    named = {
        f"{name}/{key}": x for name, metrics in zip(names, found) for key, x in metrics.items()
    }
    return named | {
        "loss": over_alive("loss", 1) / count,  # NaN where no member is left
        "grad_norm": jnp.sqrt(over_alive("grad_norm", 2)),
    }


def _named(names: Sequence[str], found: Sequence[Any]) -> dict[str, Any]:
    """{"<key>@<member>": value} of the members' dictionaries, and "h" with all members'
    representations side by side; "<member>" of what is not a dictionary."""
    out: dict[str, Any] = {}
    for name, one in zip(names, found):
        keyed = {f"{key}@{name}": x for key, x in one.items()} if isinstance(one, Mapping) else one
        out |= keyed if isinstance(keyed, Mapping) else {name: one}
    if all(isinstance(one, Mapping) and "h" in one for one in found):
        out["h"] = jnp.concatenate([one["h"] for one in found], axis=-1)
    return out


def _union(parts: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in parts for name in part))
