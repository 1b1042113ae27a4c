"""`population` as a method of a config: its members, their names, and which form is taken."""

import jax
import pytest

from cl_jax.methods import population


class Built(dict):
    """The section of a member, in place of its method."""

    def __init__(self, section, refresh):
        super().__init__(section)
        self.begin, self.refresh, self.order = None, refresh, None


def sections(refresh=None, **given):
    """What a population is made of, and the sections and views that its members are built of."""
    found = []

    def drawn(method, seed):
        method["drawn"] = seed
        return method

    def build(section, views=None):
        found.append((dict(section), views))
        return Built(section, refresh=refresh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(population, "seeded", drawn)
        patch.setattr(population, "population", lambda members: ("unrolled", members))
        patch.setattr(population, "vmapped", lambda make, over, names: ("vmapped", over, names))
        return population.make(
            build=build, base={"name": "simclr_v1", "out_dim": 8}, **given
        ), found


def test_one_setting_names_members_by_its_values():
    (how, members), found = sections(over={"temperature": (0.07, 0.5)}, how="unrolled")
    assert how == "unrolled" and list(members) == ["0.07", "0.5"]
    assert found[1] == ({"name": "simclr_v1", "out_dim": 8, "temperature": 0.5}, None)


def test_several_settings_make_every_combination():
    (_, members), _ = sections(over={"weight": (0.0, 1.0), "seed": (0, 1)}, how="unrolled")
    assert list(members) == [f"seed={s},weight={w}" for s in (0, 1) for w in (0, 1)]
    assert members["seed=1,weight=1"]["drawn"] == 1 and "seed" not in members["seed=1,weight=1"]


def test_a_list_has_members_of_its_own():
    (_, members), found = sections(over=({"loss": "a", "temperature": 0.5}, {"loss": "b"}))
    assert list(members) == ["a,0.5", "b"]
    assert found[1] == ({"name": "simclr_v1", "out_dim": 8, "loss": "b"}, None)


def test_views_are_sections_named_by_position():
    views = ({"a": {"size": 4}}, {"a": {"size": 8}})
    (_, members), found = sections(over={"views": views})
    assert list(members) == ["0", "1"] and [one[1] for one in found] == list(views)


def test_the_form(monkeypatch):
    numbers = {"temperature": (0.1, 0.2), "seed": (0, 1)}
    assert sections(over=numbers)[0][0] == "unrolled"  # on a CPU
    assert sections(over=numbers, how="vmapped")[0][0] == "vmapped"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert sections(over=numbers)[0][0] == "vmapped"
    assert sections(over={"out_dim": (8, 16)})[0][0] == "unrolled"
    several = ({"temperature": 0.1}, {"temperature": 0.1, "weight": 0.5})
    assert sections(over=several)[0][0] == "unrolled"
    assert sections(over=numbers, refresh=lambda: None)[0][0] == "unrolled"  # as of PCL and MiCE


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(over={}), "expected at least one setting"),
        (dict(over={"seed": ()}), "expected at least one setting"),
        (dict(over={"seed": 5}), "expected at least one setting"),
        (dict(over={"seed": (-1,)}), "seed is -1; expected an integer from 0"),
        (dict(over=5), "expected a list of members"),
        (dict(over=()), "expected a list of members"),
        (dict(over=({},)), "expected a list of members"),
        (dict(over={"seed": (1, 1)}), "expected different values"),
        (dict(over={"seed": (1, 2)}, how="mapped"), "have auto, unrolled, vmapped"),
        (dict(over={"out_dim": (8, 16)}, how="vmapped"), "seeds and floating-point settings"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        sections(**given)


def test_a_base_is_a_section():
    with pytest.raises(ValueError, match="base='simclr_v1'; expected a section"):
        population.make(build=dict, base="simclr_v1", over={"seed": (0, 1)})
