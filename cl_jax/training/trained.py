"""A run read back from its workdir, and what its network says of other examples."""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cl_jax.core import parallel
from cl_jax.core.errors import ConfigError
from cl_jax.core.method import Batch, Method, State
from cl_jax.core.names import nearest
from cl_jax.core.parallel import EACH, SAME
from cl_jax.core.shapes import check_count
from cl_jax.data.embeddings import Embeddings
from cl_jax.data.source import Source, Splits, labels_of, names_of
from cl_jax.evals.evaluation import blocks, needed_fields, over_blocks
from cl_jax.training import configs, experiment, fingerprint, rebuilding, stages
from cl_jax.training.inputs import Inputs, Known, check_fields, source_of

ALL = "all"


class Trained:
    """A run: its config, its network with variables, and features of any examples.

    workdir, config: of the run. method, state: its method and the restored State; the contract of
    `cl_jax.core.method` says what they hold. encoder: the flax module that the config names (of
    several, {role: module}). variables: {"params", "batch_stats"} of the whole network that is
    evaluated, the encoder's parts under the name that the method gives it ("encoder" in most).
    mesh: the devices.

    Instances are not changed by any of their methods.
    """

    def __init__(self, workdir: Path, config: ConfigDict, built: experiment.Built, state: State):
        self.workdir, self.config, self.built, self.state = workdir, config, built, state
        self.method: Method = built.method
        self.encoder: nn.Module | dict[str, nn.Module] = built.encoder
        self.mesh = built.mesh
        self.feature: str = config.evals.get("feature", "h")
        self._compiled: dict[tuple[str, ...], Callable[..., Any]] = {}

    def __repr__(self) -> str:
        return f"<{self.config.method.name} of {self.workdir}, step {self.step}>"

    def __deepcopy__(self, memo: Any) -> "Trained":
        return self

    @property
    def step(self) -> int:
        """Updates done; 0 of an imported network."""
        return int(self.state.step)

    @property
    def variables(self) -> dict[str, Any]:
        """What `module.apply` takes: {"params", "batch_stats"}, of the teacher in methods that
        evaluate one."""
        params, stats = self.method.evaluated(self.state)
        return {"params": params, "batch_stats": stats}

    @cached_property
    def checksum(self) -> str:
        """Eight digits that tell networks apart, of the bytes of `variables`."""
        found = 0
        for leaf in jax.tree.leaves(parallel.fetch(self.variables)):
            found = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, found)
        return f"{found:08x}"

    @cached_property
    def data(self) -> Splits:
        """The run's own data, read when they are first asked for.

        Raises:
          ValueError: they are not where the config says.
          ConfigError: their source learns something else from them than the run did.
        """
        data = experiment.load_data(rebuilding.as_begun(self.config, self.workdir))
        fingerprint.check_learnt(self.workdir, data)
        return data

    @cached_property
    def example(self) -> dict[str, np.ndarray]:
        """The fields of one example of the run's data, for their types and shapes."""
        return {name: np.asarray(value) for name, value in self.built.data.train.read(0).items()}

    @cached_property
    def dimensions(self) -> dict[str, int]:
        """{feature: its width} of all features that rows have one vector of."""
        rows = 2 * self.mesh.size
        batch = {
            name: jax.ShapeDtypeStruct((rows, *value.shape), value.dtype)
            for name, value in self.example.items()
            if name in self.method.needs
        } | {"id": jax.ShapeDtypeStruct((rows,), np.int32)}
        lifted = parallel.lift(self.method.encode, self.mesh, (SAME, EACH), EACH)
        found = jax.eval_shape(lifted, self.state, batch)
        return {name: x.shape[1] for name, x in found.items() if len(x.shape) == 2}

    def embed(
        self,
        inputs: Inputs | None = None,
        *,
        features: str | Sequence[str] = "",
        batch_size: int = 0,
    ) -> Embeddings:
        """Features of examples, without augmentation.

        Args:
          inputs: images uint8 [N, H, W, C]; a folder of images, at any depth; paths of images;
            {field: array} of any modality; a `Source`; or None for the training part of the run's
            own data (`run.data.test` is a source, too).
          features: the names of features, or "all"; "" for the one that evaluations read.
          batch_size: examples at a time; 0 for that of the run's evaluations.

        Returns:
          `Embeddings`, in the order of the inputs. Images that cannot be read are left out and
          named in `about["bad"]`, {path: reason}.

        Raises:
          ConfigError: a feature that the network does not have; inputs of another type, or without
            a field that the network reads.
          ValueError: a batch_size that is not a count.
        """
        source, bad = self.source(inputs)
        parts = list(self.blocks(source, features=features, batch_size=batch_size))
        rows = {
            name: np.concatenate([part[name] for part in parts]) for name in self.names(features)
        }
        return self.embeddings(source, rows, bad)

    def embeddings(
        self, source: Source, rows: Mapping[str, np.ndarray], bad: Mapping[str, str]
    ) -> Embeddings:
        """Features of all rows of a source as `Embeddings`, without the bad ones."""
        names = np.array(names_of(source))
        good = np.flatnonzero([name not in bad for name in names.tolist()])
        labels = {
            field: labels_of(source, field)[good]
            for field in source.sizes
            if np.ndim(source.read(0)[field]) == 0
        }
        return Embeddings(
            {name: values[good] for name, values in rows.items()},
            names[good],
            labels,
            {field: tuple(source.classes[field]) for field in labels if field in source.classes},
            self.about(source) | {"bad": dict(bad)},
        )

    def about(self, source: Source) -> dict[str, Any]:
        """Which run, step and data features are of."""
        return {
            "run": str(self.workdir.resolve()),
            "step": self.step,
            "method": self.config.method.name,
            "data": source.name,
        }

    def blocks(
        self, source: Source, *, features: str | Sequence[str] = "", batch_size: int = 0
    ) -> Iterator[dict[str, np.ndarray]]:
        """{feature: rows} of a source in order, one block of examples after the other: memory is
        bounded by the batch. Arguments as in `embed`."""
        names = self.names(features)
        if batch_size:
            check_count(batch_size=batch_size)
        if names not in self._compiled:

            def chosen(state: State, batch: Batch) -> dict[str, jax.Array]:
                found = self.method.encode(state, batch)
                return {name: found[name].astype(jnp.float32) for name in names}

            self._compiled[names] = over_blocks(chosen, self.mesh)
        check_fields(source, self._data_known)
        return blocks(
            self._compiled[names],
            self.state,
            source,
            self.mesh,
            fields=needed_fields(self.method, source),
            batch_size=batch_size or self.config.evals.batch_size,
            workers=self.config.get("loading", {}).get("workers", 0),
        )

    def names(self, features: str | Sequence[str] = "") -> tuple[str, ...]:
        """The features that `features` names, each once, checked."""
        if features == ALL:
            return tuple(sorted(self.dimensions))
        if isinstance(features, str):
            asked = [features or self.feature]
        elif isinstance(features, Sequence) and all(isinstance(name, str) for name in features):
            asked = list(features)
        else:
            raise ConfigError(
                f"features is {features!r}; expected a name, a list of names or {ALL!r}."
            )
        if not asked:
            raise ConfigError(
                f"features is empty; expected one or more of {', '.join(self.dimensions)}."
            )
        for name in asked:
            if name not in self.dimensions:
                raise ConfigError(
                    f"the network of {self.workdir} has no feature {name!r}"
                    f"{nearest(name, self.dimensions)}; it has {', '.join(self.dimensions)}."
                )
        return tuple(dict.fromkeys(asked))

    def source(self, inputs: Inputs | None = None) -> tuple[Source, dict[str, str]]:
        """(inputs of any form of `embed` as a source, {name: reason} of what cannot be read; damage
        inside a file is added when the file is read)."""
        return (self.data.train, {}) if inputs is None else source_of(inputs, self._data_known)

    @cached_property
    def _data_known(self) -> Known:
        sizes = self.built.data.train.sizes
        return Known(str(self.workdir), self.config, self.method.needs, self.example, sizes)


def load(workdir: str | Path, *, best: bool = False) -> Trained:
    """A run from its workdir: trained here, or made by `cl-jax import`.

    The data of the run need not be there. All devices of this machine are used, whatever the run
    was trained on.

    Args:
      workdir: of the run; of a run in stages, of one stage, unless only one has begun.
      best: the best checkpoint by the run's evaluations in place of the newest.

    Raises:
      NotFoundError: there is no run, or it has no such checkpoint.
    """
    place = configs.folder_of_run(workdir)
    config, built, state = stages.load(place, best=best, with_data=False)
    return Trained(place, config, built, state)
