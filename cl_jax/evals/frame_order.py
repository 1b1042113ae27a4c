"""Temporal order as a probe: do features of three frames tell whether the second lies between the
others?"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cl_jax.core.seeds import generator
from cl_jax.core.shapes import check_count, check_positive
from cl_jax.data.source import Splits
from cl_jax.evals import Evaluator, Given, Needs


def make(
    *,
    function: str = "frames",
    rows: int = 2048,
    c: float = 0.1,
    iterations: int = 300,
    when: str = "always",
) -> Evaluator:
    """Accuracy of telling frames in order from frames out of order: "frame_order/accuracy", .5 at
    chance; "frame_order/raw_pixels" is that of the frames themselves.

    The question is that of Misra et al. (Shuffle and Learn, ECCV 2016, arXiv 1603.08561): of three
    frames of a clip, in order or with the first two exchanged. What a logistic regression is given
    of features f is (f_2 - f_1)(f_3 - f_2) for each dimension: a dimension that goes on as it went
    has a positive product. One triple of each clip is drawn, in order for every second clip.

    function: of the method, features [B, T, D] of every frame. rows: clips of each part at most. c:
      inverse strength of the L2 penalty. iterations: of L-BFGS at most. when: see `Evaluator`.

    Raises:
      ValueError: a count or c that is not above 0.
    """
    check_count(iterations=iterations, rows=rows)
    check_positive(c=c)

    def check(data: Splits) -> None:
        for source in data[:2]:
            _check_frames(source.read(0)["clip"].shape[0])
        if min(rows, data.train.size) < 2:
            raise ValueError(
                f"{data.train.name} has {data.train.size} clips, of which rows={rows} are used; "
                "expected two or more: one in order and one out of order."
            )

    def accuracy(parts: list[np.ndarray]) -> float:
        (x, y), (queries, truth) = (
            products(frames[:rows], seed) for seed, frames in enumerate(parts)
        )
        if not (np.isfinite(x).all() and np.isfinite(queries).all()):
            return float("nan")
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=iterations))
        return float(model.fit(x, y).score(queries, truth))

    def measure(given: Given) -> dict[str, float]:
        parts = [given.rows(function, source) for source in given.data[:2]]
        return {"frame_order/accuracy": accuracy(parts)}

    def baseline(given: Given) -> dict[str, float]:
        parts = []
        for source in given.data[:2]:
            clips = np.stack([source.read(i)["clip"] for i in range(min(rows, source.size))])
            parts.append(clips.reshape(*clips.shape[:2], -1).astype(np.float32) / 255)
        return {"frame_order/raw_pixels": accuracy(parts)}

    return Evaluator(
        measure,
        Needs(functions=(function,), fields=("clip",)),
        when=when,
        better={"frame_order/accuracy": 1},
        titles={"frame_order/accuracy": "order of frames %"},
        baseline=baseline,
        check=check,
    )


def products(frames: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What the probe is given of features [N, T, D]: ([N, D], whether in order, bool [N]).

    Raises:
      ValueError: clips of fewer than three frames.
    """
    count, times = frames.shape[:2]
    _check_frames(times)
    rng = generator(seed, 0)
    at = np.sort(np.argsort(rng.random((count, times)), axis=1)[:, :3], axis=1)
    forward = np.arange(count) % 2 == 0
    at = np.where(forward[:, None], at, at[:, [1, 0, 2]])
    first, second, third = (frames[np.arange(count), at[:, k]] for k in range(3))
    return (second - first) * (third - second), forward


def _check_frames(times: int) -> None:
    if times < 3:
        raise ValueError(f"clips have {times} frames; expected 3 or more, to ask for their order.")
