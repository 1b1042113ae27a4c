"""Geometry of features: known arrangements, the names, the draw of rows."""

import jax._src.compiler
import numpy as np
import pytest

from cl_jax.data.source import Splits, from_arrays
from cl_jax.evals import Given
from cl_jax.evals.geometry import make, measure

NAMES = {
    f"geometry/{name}"
    for name in (
        *("alignment", "uniformity", "tolerance", "tolerance_same_class", "effective_rank"),
        *("feature_std", "relative_std"),
    )
}


def test_isotropic_and_collapsed_features():
    rng = np.random.default_rng(0)
    x, labels = np.float32(rng.normal(size=(512, 32))), rng.integers(0, 4, 512)
    spread = measure(x, labels, (x, np.float32(rng.normal(size=x.shape))))
    assert set(spread) == NAMES and all(isinstance(value, float) for value in spread.values())
    assert spread["geometry/feature_std"] == pytest.approx(32**-0.5, rel=0.02)
    assert spread["geometry/uniformity"] < -3.5
    assert spread["geometry/alignment"] == pytest.approx(2, abs=0.1)
    assert spread["geometry/tolerance_same_class"] == pytest.approx(0, abs=0.02)
    assert spread["geometry/effective_rank"] > 30
    one = np.float32(np.ones((512, 1)) * rng.normal(size=(1, 32)) * rng.uniform(1, 9, (512, 1)))
    collapsed = measure(one, labels, (one, 2 * one))
    assert collapsed["geometry/feature_std"] == pytest.approx(0, abs=1e-5)
    assert collapsed["geometry/uniformity"] == pytest.approx(0, abs=1e-5)
    assert collapsed["geometry/alignment"] == pytest.approx(0, abs=1e-5)
    assert collapsed["geometry/tolerance_same_class"] == pytest.approx(1, abs=1e-5)
    same = np.mean(labels[:, None] == labels[None], where=~np.eye(512, dtype=bool))
    assert collapsed["geometry/tolerance"] == pytest.approx(same, abs=1e-5)
    assert collapsed["geometry/effective_rank"] == pytest.approx(1, abs=1e-2)


def test_uniformity_equals_the_loops():
    x = np.random.default_rng(1).normal(size=(9, 3))
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = [np.exp(-2 * np.sum((u[i] - u[j]) ** 2)) for i in range(9) for j in range(i)]
    assert measure(np.float32(x))["geometry/uniformity"] == pytest.approx(
        np.log(np.mean(pairs)), abs=1e-5
    )


def test_labels_and_pairs_may_be_missing():
    x = np.float32(np.random.default_rng(1).normal(size=(9, 3)))
    assert set(measure(x)) == NAMES - {
        "geometry/alignment",
        "geometry/tolerance",
        "geometry/tolerance_same_class",
    }


def test_two_programs_are_compiled_and_no_operation_alone(monkeypatch):
    # Of a shape that no other test has: were JAX's caches cleared, later tests would compile again.
    x = np.float32(np.random.default_rng(3).normal(size=(29, 17)))
    compiled, compile_ = [], jax._src.compiler.compile_or_get_cached
    monkeypatch.setattr(
        jax._src.compiler,
        "compile_or_get_cached",
        lambda *a, **k: compiled.append(a) or compile_(*a, **k),
    )
    measure(x, np.arange(29) % 3, (x, x[::-1]), max_rows=23)
    assert len(compiled) == 2


def test_large_sets_are_drawn_from_alike_each_time():
    x = np.float32(np.random.default_rng(2).normal(size=(200, 6)) * np.arange(1, 7))
    first, again, other = (measure(x, max_rows=64, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first["geometry/effective_rank"] == pytest.approx(
        measure(x)["geometry/effective_rank"], rel=0.1
    )


@pytest.mark.parametrize("trained", [False, True])
def test_a_test_part_of_one_example_has_no_geometry(trained):
    """As one in ten of a few pictures, which must not end a run at its first evaluation."""
    one = from_arrays("one", {"image": np.zeros((1, 2, 2, 3), np.uint8)}, {})
    fields = dict.fromkeys(Given._fields)
    fields |= dict(data=Splits(one, one), batch_size=16, seed=0, trained=trained)
    given = Given(**(fields | dict(features=lambda *_: np.ones((1, 4), np.float32))))
    assert make().measure(given) == {}
    with pytest.raises(ValueError, match="rows=1; expected at least 2"):
        make(rows=1)


def test_errors():
    with pytest.raises(ValueError, match="at least 2"):
        measure(np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match="labels has shape"):
        measure(np.ones((4, 3), np.float32), np.arange(3))
