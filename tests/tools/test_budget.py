"""A shorter run: every duration keeps its share of it, and no running mean outlives it."""

import pytest
from ml_collections import ConfigDict

from cl_jax.core.errors import ConfigError
from cl_jax.tools import _budget
from cl_jax.training import configs
from cl_jax.training.defaults import UnknownVariant

EXAMPLES = 8192


def all_settings():
    """Every config at each of its data."""
    for name in configs.names():
        for variant in ("", "cifar10", "imagenet2012"):
            try:
                yield f"{name}:{variant}", configs.load(f"{name}:{variant}")
            except UnknownVariant:
                continue


ALL = dict(all_settings())


def durations(config):
    """{path: steps} of what must keep its share of a run, and {path: steps or epochs that a mean
    remembers}."""
    steps_per_epoch = config.get("steps_per_epoch", 0) or max(1, EXAMPLES // config.batch_size)
    found, means = {}, {}
    for path, section, known in _budget.sections(config):
        given = {key: one.default for key, one in known.items()} | dict(section.items())
        given = {k: v for k, v in given.items() if isinstance(v, int | float | tuple)}
        for key, value in given.items():
            if key.endswith("_epochs"):
                numbers = value if isinstance(value, tuple) else (value,)
                for place, number in enumerate(numbers):
                    found[f"{path}.{key}.{place}"] = number * steps_per_epoch
            elif key in ("freeze_steps", "warmup_steps", "ema_start") and value:
                found[f"{path}.{key}"] = value
            elif path != "optimizer" and (key.endswith("momentum") or key == "ema") and value:
                means[f"{path}.{key}"] = 1 / (1 - value) if value < 1 else float("inf")
    return found, means


@pytest.mark.parametrize("name", ALL)
def test_durations_keep_their_share_and_means_forget_their_start(name):
    config = ConfigDict(ALL[name].copy_and_resolve_references()).unlock()
    before, means_before = durations(config)
    whole = config.total_epochs
    epochs = max(2.0, 0.01 * whole)
    steps_per_epoch = config.get("steps_per_epoch", 0) or max(1, EXAMPLES // config.batch_size)
    _budget.shorten(config, epochs=epochs, examples=EXAMPLES)
    after, means = durations(config)
    assert config.total_epochs == epochs and before.keys() == after.keys()
    share = min(1.0, epochs / whole)
    # Steps and whole epochs are rounded, and one whole epoch is the least.
    slack = {path: steps_per_epoch if path.startswith("method") else 1 for path in before}
    for path, steps in before.items():
        assert abs(after[path] - share * steps) <= slack[path] + 1e-6 * steps, path
        assert after[path] <= epochs * steps_per_epoch, path
    for path, memory in means.items():
        clock = max(10, epochs * steps_per_epoch)
        assert memory <= max(1.0, clock / 10) + 1e-3 or share == 1, (path, memory)
        assert memory <= means_before[path] + 1e-9


def test_the_two_rows_that_did_not_measure_their_method():
    """SwAV's prototypes were frozen for longer than the run; DINO's teacher was its own start."""
    swav, dino = (configs.load(f"{name}:cifar10").unlock() for name in ("swav", "dino"))
    for config in (swav, dino):
        config.batch_size = 128
        _budget.shorten(config, epochs=2.0, examples=12_500)
    assert swav.optimizer.freeze_steps == 1  # 390 of 97,000 steps are 0.8 of 194
    assert dino.method.momentum == pytest.approx(1 - 1 / 19.5, abs=1e-3)
    assert dino.method.teacher_warmup_epochs == 1


def test_a_run_as_long_as_the_config_s_own_is_left_alone():
    config = configs.load("dino:cifar10").unlock()
    before = config.method.to_dict() | config.optimizer.to_dict()
    _budget.shorten(config, epochs=config.total_epochs, examples=50_000)
    assert config.method.to_dict() | config.optimizer.to_dict() == before


def test_what_cannot_be_shortened_is_refused():
    config = configs.load("pcl").unlock()
    with pytest.raises(ConfigError, match=r"method.warmup_epochs=2 counts whole epochs"):
        _budget.shorten(config, epochs=1.0, examples=EXAMPLES)
    config = configs.load("byol").unlock()
    config.method.target_interval = 4
    with pytest.raises(ConfigError, match=r"method.target_interval=4 may be a duration"):
        _budget.shorten(config, epochs=4.0, examples=EXAMPLES)


METHOD = """
from cl_jax.core.clocks import Count, PerVisit, Steps

def make(*, encoder, tx, views, run, warmup_epochs: int = 50, ramp_epochs: float = 50.0,
         momentum: PerVisit = 0.999, target_momentum=0.9999, target_start: Steps | None = 100,
         steps: Count = 12, refresh=True, restart=0.25):
    raise NotImplementedError
"""


def test_a_method_outside_the_package_says_beside_a_setting_what_it_counts(tmp_path, monkeypatch):
    (tmp_path / "clock_lab").mkdir()
    (tmp_path / "clock_lab/counted.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    config = ConfigDict(
        dict(
            total_epochs=100.0,
            batch_size=10,
            method=dict(name="clock_lab.counted", ramp_epochs=20),
            optimizer=dict(name="sgd", momentum=0.95),
        )
    )
    _budget.shorten(config, epochs=20.0, examples=100)
    assert config.method.to_dict() == dict(
        name="clock_lab.counted",
        warmup_epochs=10,
        ramp_epochs=4,
        momentum=0.5,  # of 20 visits, a tenth
        target_momentum=0.95,  # of 200 steps
        target_start=20,
    )
    assert config.optimizer.momentum == 0.95
    (tmp_path / "clock_lab/unsaid.py").write_text(METHOD.replace(": Count", ": int"))
    config.method = ConfigDict(dict(name="clock_lab.unsaid"))
    with pytest.raises(ConfigError, match=r"method.steps=12 may be .*Steps or Count of cl_jax.co"):
        _budget.shorten(config, epochs=10.0, examples=100)
