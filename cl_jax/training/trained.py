"""A run read back from its workdir, and what its network says of other examples."""

import copy
import hashlib
import os
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
from sklearn.base import BaseEstimator, TransformerMixin

from cl_jax.core import parallel
from cl_jax.core.errors import ConfigError
from cl_jax.core.method import Batch, Method, State
from cl_jax.core.names import nearest
from cl_jax.core.parallel import EACH, SAME
from cl_jax.data import folder
from cl_jax.data.embeddings import Embeddings
from cl_jax.data.source import Source, Splits, from_arrays, labels_of, with_channels
from cl_jax.evals.evaluation import blocks, needed_fields, over_blocks
from cl_jax.training import configs, experiment, stages
from cl_jax.training.workdir import path_of

Inputs = np.ndarray | Mapping[str, np.ndarray] | str | Path | Sequence[str | Path] | Source
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
        """
        return experiment.load_data(self.config)

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
        if names not in self._compiled:

            def chosen(state: State, batch: Batch) -> dict[str, jax.Array]:
                found = self.method.encode(state, batch)
                return {name: found[name].astype(jnp.float32) for name in names}

            self._compiled[names] = over_blocks(chosen, self.mesh)
        self._check(source)
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
        """The features that `features` names, checked."""
        if features == ALL:
            return tuple(sorted(self.dimensions))
        asked = [features or self.feature] if isinstance(features, str) else list(features)
        for name in asked:
            if name not in self.dimensions:
                raise ConfigError(
                    f"the network of {self.workdir} has no feature {name!r}"
                    f"{nearest(name, self.dimensions)}; it has {', '.join(self.dimensions)}."
                )
        return tuple(asked)

    def source(self, inputs: Inputs | None = None) -> tuple[Source, dict[str, str]]:
        """(inputs of any form of `embed` as a source, {name: reason} of what cannot be read; damage
        inside a file is added when the file is read)."""
        if inputs is None:
            return self.data.train, {}
        if isinstance(inputs, Source):
            return inputs, {}
        if isinstance(inputs, str | os.PathLike):
            if self._of_images():
                return folder.everything(str(inputs), **self._reading())
            return self._other_data(str(inputs)), {}
        if isinstance(inputs, Mapping):
            return self._of_arrays({name: np.asarray(values) for name, values in inputs.items()})
        if isinstance(inputs, Sequence) and all(isinstance(x, str | os.PathLike) for x in inputs):
            return folder.listed([str(path) for path in inputs], **self._reading())
        array = np.asarray(inputs)
        if len(self._inputs) != 1:
            raise ConfigError(
                f"one array is given and the network reads {', '.join(self._inputs)}; give "
                f"{{field: array}} of each."
            )
        return self._of_arrays({self._inputs[0]: array})

    @property
    def _inputs(self) -> list[str]:
        """The fields that the network reads, without the labels that its training needs."""
        return [name for name in self.method.needs if np.ndim(self.example.get(name, 0))]

    def _of_images(self) -> bool:
        fields = self._inputs
        return "image" in fields and all(name.split("_")[0] == "image" for name in fields)

    def _reading(self) -> dict[str, Any]:
        """How the run's images were read, for `data.folder`."""
        if "image" not in self.example:
            raise ConfigError(
                f"the network of {self.workdir} reads {', '.join(self.method.needs)}, not images; "
                "give {field: array}, or a source."
            )
        size, _, channels = self.example["image"].shape
        section = self.config.data
        more = {key: section[key] for key in ("value_range", "max_pixels") if key in section}
        return {"image_size": size, "channels": channels} | more

    def _of_arrays(self, arrays: dict[str, np.ndarray]) -> tuple[Source, dict[str, str]]:
        for name, values in arrays.items():
            known = self.example.get(name)
            if known is None or name not in self.method.needs:
                continue
            if values.ndim != known.ndim + 1 or len(values) == 0:
                raise ConfigError(
                    f"{name} is {values.dtype}{list(values.shape)}; expected {known.dtype} "
                    f"[N, {', '.join(map(str, known.shape))}], one or more rows of what the "
                    "network was trained on."
                )
            if name.split("_")[0] == "image":
                if values.dtype != np.uint8:
                    raise ConfigError(
                        f"{name} is {values.dtype}; expected uint8, 0 to 255. Of floats from 0 to "
                        "1, give numpy.rint(255 * images).astype('uint8')."
                    )
                arrays[name] = with_channels(values, known.shape[-1], name)
            elif values.dtype != known.dtype:
                if values.dtype.kind not in "iub" or known.dtype.kind not in "iu":
                    raise ConfigError(f"{name} is {values.dtype}; expected {known.dtype}.")
                arrays[name] = values.astype(known.dtype)
        known_sizes = self.built.data.train.sizes
        sizes = {name: known_sizes[name] for name in arrays if name in known_sizes}
        return from_arrays("given", arrays, sizes), {}

    def _other_data(self, path: str) -> Source:
        """Data of the run's own kind at another path, all their parts in a row."""
        section = ConfigDict(configs.plain(self.config.data))
        if "path" not in section:
            raise ConfigError(
                f"the data of {self.workdir} ({section.name}) have no path that another could "
                "replace; give {field: array}, or a source."
            )
        # Where a set may have a test part of its own, what is learnt from the training part (the
        # tokens of a text) stays: the other file is read as the test part.
        known = experiment.parameters("cl_jax.data", section.name)
        key = "test_path" if "test_path" in known else "path"
        section[key] = path
        config = ConfigDict({"data": section, "seed": self.config.seed})
        splits = experiment.load_data(config)
        if key == "test_path" or splits.test is splits.train:
            return splits.test
        return joined(path, {"train": splits.train, "test": splits.test})

    def _check(self, source: Source) -> None:
        there = source.arrays if source.arrays is not None else source.read(0)
        missing = [name for name in self.method.needs if name in self.example and name not in there]
        encoded = [name for name in self.method.needs if name in there]
        if not encoded:
            raise ConfigError(
                f"{source.name} has the fields {', '.join(there)}; the network of {self.workdir} "
                f"reads {', '.join(missing)}."
            )
        known = self.built.data.train.sizes
        for name in encoded:
            if name in known and source.sizes.get(name, known[name]) != known[name]:
                raise ConfigError(
                    f"{name} has {source.sizes[name]} values in {source.name} and {known[name]} "
                    f"in the data of {self.workdir}: the numbers do not mean the same."
                )


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
    place = path_of(workdir)
    begun = list(place.glob("*/config.json"))
    if len(begun) == 1 and not (place / "config.json").exists():
        place = begun[0].parent
    config, built, state = stages.load(place, best=best, with_data=False)
    return Trained(place, config, built, state)


def names_of(source: Source) -> list[str]:
    """What each example is called: its path, or "<source>/<number>"."""
    if source.names is not None:
        return list(source.names)
    return [f"{source.name}/{i}" for i in range(source.size)]


def checksum_of(source: Source) -> str:
    """Sixteen digits that tell sources apart by the names of their examples, in order."""
    names = "\0".join(names_of(source)).encode("utf-8", "surrogateescape")
    return hashlib.sha256(names).hexdigest()[:16]


def joined(name: str, parts: Mapping[str, Source]) -> Source:
    """Sources one after the other, with those labels that all of them have, and the label "split"
    for the part; the fields that only some have are left out."""
    sources, split = list(parts.values()), "split"
    starts = np.cumsum([0, *(source.size for source in sources)])
    fields = set.intersection(*(set(source.read(0)) for source in sources)) - {split}
    sizes = {
        field: max(source.sizes[field] for source in sources)
        for field in sources[0].sizes
        if all(field in source.sizes for source in sources)
    }

    def read(i: int) -> dict[str, np.ndarray]:
        part = int(np.searchsorted(starts, i, side="right")) - 1
        example = sources[part].read(i - int(starts[part]))
        return {field: example[field] for field in fields} | {split: np.asarray(part, np.int32)}

    def labels(field: str) -> np.ndarray:
        if field == split:
            return np.repeat(np.arange(len(sources), dtype=np.int32), np.diff(starts))
        return np.concatenate([labels_of(source, field) for source in sources])

    return Source(
        name,
        int(starts[-1]),
        read,
        sizes | {split: len(sources)},
        labels=labels,
        names=[name for source in sources for name in names_of(source)],
        classes=dict(sources[0].classes) | {split: tuple(parts)},
    )


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
