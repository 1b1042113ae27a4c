"""A run as a transformer of scikit-learn."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from cl_jax.core.errors import ConfigError
from cl_jax.training.inputs import Inputs
from cl_jax.training.trained import Trained, load


class Features(TransformerMixin, BaseEstimator):
    """A run as a transformer of scikit-learn: images in, rows of one feature out.

    `make_pipeline(Features("runs/mine"), LogisticRegression()).fit(images, labels)`. Fitting
    changes nothing in the network.

    Args:
      run: a workdir, or what `load` returned.
      feature: its name; "" for the one that evaluations read.
      best: as in `load`, where `run` is a workdir.
      batch_size: as in `Trained.embed`.
    """

    def __init__(
        self,
        run: str | Path | Trained,
        feature: str = "",
        best: bool = False,
        batch_size: int = 0,
    ):
        self.run, self.feature, self.best, self.batch_size = run, feature, best, batch_size

    def fit(self, X: Inputs, y: Any = None) -> "Features":
        """Loads the run, where that was not done; X and y are not looked at."""
        run = self.run if isinstance(self.run, Trained) else load(self.run, best=self.best)
        self.run_ = run
        (self.feature_,) = run.names(self.feature)
        return self

    def transform(self, X: Inputs) -> np.ndarray:
        """Rows [N, D] of inputs of any form of `Trained.embed`.

        Raises:
          ConfigError: an image that cannot be read: rows would not be those of the inputs.
        """
        if not hasattr(self, "run_"):
            self.fit(X)
        found = self.run_.embed(X, features=(self.feature_,), batch_size=self.batch_size)
        if bad := found.about["bad"]:
            name, reason = next(iter(bad.items()))
            raise ConfigError(f"{len(bad)} images cannot be read, such as {name}: {reason}.")
        return found[self.feature_]

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """["h0", "h1", ...]."""
        width = self.run_.dimensions[self.feature_]
        return np.array([f"{self.feature_}{i}" for i in range(width)], object)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __getstate__(self) -> dict[str, Any]:
        # Devices and compiled programs stay: another process loads the run itself.
        state = copy.copy(super().__getstate__())
        state.pop("run_", None)
        if isinstance(self.run, Trained):
            state["run"] = str(self.run.workdir)
        return state
