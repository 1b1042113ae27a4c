"""What factories say of their settings beside the type."""

from ml_collections import ConfigDict

from cl_jax.core.annotations import Movable, movable
from cl_jax.training import configs, experiment, resuming


def test_a_factory_marks_the_files_that_may_lie_elsewhere():
    def make(*, start: "Movable[str | None]" = None, other: Movable[str] | None = None, n: int = 0):
        pass

    def unknown(*, start: "Movable[str]" = "", n: "No" = ""):  # noqa: F821
        pass

    assert movable(make) == ["start", "other"]
    assert movable(unknown) == []  # a name that is nowhere: nothing is known


def test_weights_that_a_method_starts_from_may_lie_elsewhere():
    """Also of the base of another method; they may neither come nor go."""
    own = configs.load("simcse:bert").unlock()
    whole = own.copy_and_resolve_references()
    own.method.weights = "a"
    whole.method = ConfigDict(dict(name="population", base=own.method, over=dict(seed=(0, 1))))
    for config, section in ((own, own.method), (whole, whole.method.base)):
        before, leeway = configs.plain(config), experiment.leeway(config)
        for place, same in (("b", True), ("", False)):
            section.weights = place
            changed, noted = resuming.differences(before, configs.plain(config), leeway)
            assert bool(noted) == same and bool(changed) != same
        section.weights = "a"
