"""Settings of an optimiser without effect, and patterns that match no parameter, are found."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

from cl_jax.core.errors import ConfigError
from cl_jax.training import optim
from cl_jax.training.optimizer_settings import check_patterns, watched, without_effect

PARAMS = {
    "encoder": {
        "conv": {"kernel": jnp.ones((3, 2))},
        "norm": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
    },
    "prototypes": jnp.ones((4, 2)),
}


def step(section):
    """The arithmetic of one update of the optimiser that a section describes, as text."""
    given = dict(name="sgd", learning_rate=0.1, batch_size=512, steps_per_epoch=2, total_steps=6)
    tx, _ = optim.build(**given | section)
    return str(jax.make_jaxpr(tx.update)(PARAMS, tx.init(PARAMS), PARAMS))


def without(section, key):
    """A section without one of its settings, "parts.NAME.KEY" or its own."""
    *above, last = key.split(".")
    if not above:
        return {name: value for name, value in section.items() if name != last}
    return section | {above[0]: without(section[above[0]], ".".join([*above[1:], last]))}


NO_EFFECT = [
    ({"name": "adamw", "momentum": 0.5}, "momentum"),
    ({"name": "adamw", "nesterov": True}, "nesterov"),
    ({"name": "lars_byol", "nesterov": True}, "nesterov"),
    ({"name": "muon", "nesterov": True}, "nesterov"),
    ({"name": "adamw", "trust_coefficient": 0.1}, "trust_coefficient"),
    ({"name": "sgd", "trust_coefficient": 0.1}, "trust_coefficient"),
    *(({"name": name, "b1": 0.5}, "b1") for name in ("sgd", "lars_simclr", "larc_sgd")),
    ({"name": "sgd", "b2": 0.5}, "b2"),
    ({"name": "lars_byol", "eps": 1e-3}, "eps"),
    *(({"name": name, "larc_clip": True}, "larc_clip") for name in ("adamw", "sgd", "lars_simclr")),
    ({"milestones_epochs": (1.0,)}, "milestones_epochs"),
    ({"schedule": "constant", "decay_factor": 0.5}, "decay_factor"),
    ({"warmup_start": 0.1}, "warmup_start"),
    ({"schedule": "step_decay", "final_learning_rate": 0.1}, "final_learning_rate"),
    ({"schedule": "constant", "final_learning_rate": 0.1}, "final_learning_rate"),
    ({"freeze_epochs": 1.0}, "freeze_epochs"),
    ({"freeze_steps": -1}, "freeze_steps"),
    ({"freeze_paths": ("norm",)}, "freeze_paths"),
    ({"name": "adamw", "parts": {"a": {"paths": ("norm",), "momentum": 0.5}}}, "parts.a.momentum"),
    ({"parts": {"a": {"paths": ("norm",), "freeze_steps": -1}}}, "parts.a.freeze_steps"),
]
FROZEN = {"freeze_paths": ("norm",)}
# Steps win over epochs, whichever was meant: also over epochs that are written down as 0.
IN_STEPS = [
    ({"warmup_steps": 3, "warmup_epochs": 1.0}, "warmup_epochs"),
    ({"warmup_steps": 3, "warmup_epochs": 0.0}, "warmup_epochs"),
    ({"warmup_steps": 0, "warmup_epochs": 1.0}, "warmup_epochs"),
    ({**FROZEN, "freeze_steps": -1, "freeze_epochs": 1.0}, "freeze_epochs"),
    ({**FROZEN, "freeze_steps": 3, "freeze_epochs": 0.0}, "freeze_epochs"),
    ({**FROZEN, "freeze_steps": 0, "freeze_epochs": 1.0}, "freeze_epochs"),
    (
        {"warmup_steps": 3, "parts": {"a": {"paths": ("norm",), "warmup_epochs": 1.0}}},
        "parts.a.warmup_epochs",
    ),
]


@pytest.mark.parametrize("section, key", [*NO_EFFECT, *IN_STEPS])
def test_a_setting_that_is_found_changes_no_update(section, key):
    found = without_effect(section)
    assert found.keys() == {key}
    assert re.match(rf"optimizer\.{key}=.* has no effect (with|beside)", found[key])
    assert without_effect(without(section, key)) == {}
    assert step(section) == step(without(section, key))


def test_a_length_in_epochs_beside_one_in_steps_names_the_mend():
    found = without_effect({"warmup_epochs": 0.0, "warmup_steps": 500})
    assert found["warmup_epochs"] == (
        "optimizer.warmup_epochs=0.0 has no effect beside warmup_steps=500, which wins. Give the "
        "length as warmup_steps, or set warmup_steps=None."
    )


@pytest.mark.parametrize(
    "section",
    [
        # a part reads what the rest does not, or inherits what it does not read
        {"name": "adamw", "momentum": 0.5, "parts": {"a": {"paths": ("norm",), "name": "sgd"}}},
        {"name": "sgd", "momentum": 0.5, "parts": {"a": {"paths": ("norm",), "name": "adamw"}}},
        {"parts": {"a": {"paths": ("norm",), "freeze_paths": ("norm",), "freeze_steps": -1}}},
        # written down at its default, or switched off
        {"name": "adamw", "momentum": 0.9, "milestones_epochs": [], "freeze_paths": []},
        {"freeze_paths": ("norm",), "freeze_epochs": 0.0},
        {"freeze_paths": ("norm",), "freeze_steps": 0},
        {"freeze_epochs": 0.0, "freeze_steps": 0},
        # a length in one of its units, for the rest and for a part
        {"warmup_epochs": 1.0, "warmup_steps": None},
        {"warmup_steps": 3, **FROZEN, "freeze_epochs": None, "freeze_steps": 2},
        {"warmup_epochs": 1.0, "parts": {"a": {"paths": ("norm",), "warmup_steps": 1}}},
        {
            "warmup_steps": 3,
            "warmup_epochs": 1.0,
            "parts": {"a": {"paths": ("norm",), "warmup_steps": None}},
        },
    ],
)
def test_what_a_part_inherits_or_a_user_switches_off_passes(section):
    assert without_effect(section) == {}
    assert step(section)


@pytest.mark.parametrize(
    "section",
    [
        {"freeze_steps": 2, "freeze_paths": ("protoypes",)},
        {"constant_lr_paths": ("norm", "predictor")},
        {"exclude_paths": ("biass",)},
        {"parts": {"a": {"paths": ("norm",)}, "b": {"paths": ("dics",)}}},
        {"parts": {"a": {"paths": ("norm",), "exclude_paths": ("^norm",)}}},
    ],
)
def test_a_pattern_that_matches_no_parameter_is_refused(section):
    with pytest.raises(ConfigError, match=r"no parameter's path contains '.*'; .*encoder/conv"):
        check_patterns(section, PARAMS)


def test_a_pattern_may_match_a_path_as_an_optimiser_sees_it_or_as_the_state_has_it():
    """The optimiser of a member of a population sees no number of the member; one of two players
    that are a pair sees the player's."""
    seen = set()
    tx = watched(optax.sgd(0.1), seen)
    assert tx.init(PARAMS) == optax.sgd(0.1).init(PARAMS)
    for pattern in ("^encoder/conv", "^1/prototypes$", "norm"):
        check_patterns({"exclude_paths": (pattern,)}, ({}, PARAMS), seen)
    with pytest.raises(ConfigError, match="the paths begin encoder/conv, encoder/norm, prototypes"):
        check_patterns({"exclude_paths": ("^2",)}, ({}, PARAMS), seen)
    players = {"players": [{}, PARAMS]}
    with pytest.raises(ConfigError, match=r"contains '\^1/encoder'; the paths begin players/1"):
        check_patterns({"exclude_paths": ("^1/encoder",)}, players)
    tx.init(tuple(players["players"]))
    check_patterns({"exclude_paths": ("^1/encoder",)}, players, seen)
