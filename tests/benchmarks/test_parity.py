"""The comparison with the peer: what measures it. The peer itself is not needed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "parity"


@pytest.fixture
def parity(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    import cases
    import steps
    import trained
    import view_statistics

    yield {"cases": cases, "steps": steps, "trained": trained, "views": view_statistics}
    for name in ("cases", "steps", "trained", "view_statistics"):
        sys.modules.pop(name, None)


def test_differences_are_relative_to_the_peer_and_shapes_must_agree(parity):
    difference = parity["steps"].difference
    theirs = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    assert difference(theirs | {"more": np.ones(1)}, theirs) == 0
    assert difference({"a": np.array([3.0, 1.0]), "b": np.array([[4.0]])}, theirs) == 0.2
    with pytest.raises(ValueError, match=r"a is \(1,\) here and \(2,\) in the peer"):
        difference({"a": np.zeros(1), "b": np.zeros((1, 1))}, theirs)


def test_the_evaluator_votes_as_weighted_neighbours_do(parity):
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(300, 8)), rng.normal(size=(40, 8))
    labels = rng.integers(10, size=300)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test)]
    peer = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d) / 0.07), metric="cosine")
    expected = peer.fit(unit[0], labels).predict(unit[1])
    np.testing.assert_array_equal(parity["trained"].knn(train, labels, test, 20, 0.07), expected)


def test_geometry_is_read_from_colours(parity, tmp_path):
    """A view that takes the left half of the width and three quarters of the height, flipped."""

    def drawn(pixels, **changes):
        at = np.arange(16) + 0.5
        rows, columns = at * 24 / 16 - 0.5, at[::-1] * 16 / 16 - 0.5
        near = (
            np.clip(np.rint(rows), 0, 31).astype(int),
            np.clip(np.rint(columns), 0, 31).astype(int),
        )
        return pixels[:, near[0]][:, :, near[1]] / np.float32(255)

    (tmp_path / "data").mkdir()
    photographs = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "data" / "test.npz", image=photographs)
    parity["views"].export(tmp_path / "ours" / "views.npz", drawn)
    found = parity["views"].statistics(tmp_path / "ours" / "views.npz")
    assert found["crop: share of the area"][0] == pytest.approx(3 / 8, abs=0.02)
    assert found["crop: log of width / height"][0] == pytest.approx(np.log(2 / 3), abs=0.05)
    assert found["flipped"] == (1.0, 0.0) and found["all operators: grey"][0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simclr", "byol", "swav", "dino", "nnclr"])
def test_our_side_runs_alone(name, tmp_path):
    script = str(FOLDER / "ours.py")
    subprocess.run([sys.executable, script, name, "float32", str(tmp_path)], check=True)
    found = np.load(tmp_path / f"{name}.float32.ours.npz")
    assert all(np.isfinite(found[key]).all() for key in found.files if key.endswith("loss"))
    assert float(found["9/loss"]) != float(found["0/loss"])
