"""A population: one method under several settings, trained side by side on the same batches."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from cl_jax.core.method import Method
from cl_jax.core.population import on_host, population, seeded, vmapped
from cl_jax.core.seeds import check_seed

HOW = ("auto", "unrolled", "vmapped")


def make(
    *,
    build: Callable[..., Method],
    base: Mapping[str, Any],
    over: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    how: str = "auto",
) -> Method:
    """Members that differ in the settings of `over`, one for each combination of its values, or one
    for each entry of a list.

        method=dict(name="population", base=dict(name="simclr_v1"), over=dict(temperature=(0.1, 1)))

    Args:
      build: (section of a method, views=sections or None) -> Method; the trainer gives it.
      base: the section of the method that all members are.
      over: setting -> its values; or a list of members, each setting -> its value, where not every
        combination is wanted. "seed" gives members draws of their own
        (`core.population.seeded`), "views" sections of views in place of the config's; any other is
        a setting of the base.
      how: "unrolled" compiles each member's step into the program; "vmapped" one step over all,
        where they differ in seeds and floating-point settings alone, the same ones, and do no work
        on the host before an epoch; "auto" takes the second where it can on an accelerator, and the
        first on a CPU.

    Members are named by their value, "0.1", or by all of them in alphabetical order of the
    settings, "seed=3,temperature=0.1", those of a list by their values, "simple,0.1"; sections by
    their position. See `core.population.population` for the State, metrics and features.

    Raises:
      ValueError: a base that is no section, no value, values that are given twice, an unknown
        `how`, members that differ in more than numbers with how="vmapped".
    """
    if not isinstance(base, Mapping):
        raise ValueError(
            f"base={base!r}; expected a section, for instance base=dict(name='simclr_v1')."
        )
    if how not in HOW:
        raise ValueError(f"how={how!r} is unknown; have {', '.join(HOW)}.")
    members, names = _combined(over) if isinstance(over, Mapping) else _of_list(over)
    for one in members:
        check_seed(one.get("seed", 0))
    if len(set(names)) < len(names):
        raise ValueError(f"members would be named {names}; expected different values.")

    def of(changes: Mapping[str, Any]) -> Method:
        settings = {key: value for key, value in changes.items() if key not in ("seed", "views")}
        method = build({**base, **settings}, views=changes.get("views"))
        return seeded(method, changes["seed"]) if "seed" in changes else method

    numbers = all(_is_number(key, value) for one in members for key, value in one.items())
    if how == "vmapped" and not numbers:
        raise ValueError(
            f"over={over}: how='vmapped' needs seeds and floating-point settings alone; use "
            "how='unrolled'."
        )
    if how == "auto":
        alike = numbers and all(one.keys() == members[0].keys() for one in members)
        can = alike and jax.default_backend() != "cpu" and not on_host(of(members[0]))
        how = "vmapped" if can else "unrolled"
    if how == "vmapped":
        return vmapped(lambda **changes: of(changes), members, names)
    return population({name: of(one) for name, one in zip(names, members)})


def _combined(
    over: Mapping[str, Sequence[Any]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """(members, names) of every combination of values, in the order in which a config is read."""
    if not over or not all(
        isinstance(values, Sequence) and len(values) for values in over.values()
    ):
        raise ValueError(
            f"over={dict(over)}; expected at least one setting with values, for instance "
            "over=dict(seed=(0, 1, 2))."
        )
    over = {key: over[key] for key in sorted(over)}
    members = [dict(zip(over, chosen)) for chosen in itertools.product(*over.values())]
    if len(over) > 1:
        return members, [
            ",".join(f"{key}={_text(value, over[key])}" for key, value in one.items())
            for one in members
        ]
    return members, [_text(value, over[key]) for one in members for key, value in one.items()]


def _of_list(over: Sequence[Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """(members, names) of the entries of a list."""
    if (
        not isinstance(over, Sequence)
        or not over
        or not all(isinstance(one, Mapping) and one for one in over)
    ):
        raise ValueError(
            f"over={over!r}; expected a list of members, each with at least one setting, for "
            "instance over=(dict(temperature=0.1), dict(temperature=1.0))."
        )
    values = {key: [one[key] for one in over if key in one] for one in over for key in one}
    names = [",".join(_text(value, values[key]) for key, value in one.items()) for one in over]
    return [dict(one) for one in over], names


def _is_number(key: str, value: Any) -> bool:
    return isinstance(value, int if key == "seed" else float) and not isinstance(value, bool)


def _text(value: Any, values: Sequence[Any]) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(list(values).index(value) if isinstance(value, Mapping) else value)
