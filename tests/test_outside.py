"""A method, its network, view, data, evaluator and config in a folder of their own: trained,
evaluated and verified with no other file, and nothing of the package changed."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from cl_jax import __main__ as command

NETWORK = """
import flax.linen as nn
import jax.numpy as jnp

class Flat(nn.Module):
    features: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, train):
        return {"h": nn.Dense(self.features)(x.reshape(len(x), -1))}

def make(*, features=16):
    return Flat(features)
"""

DATA = """
import numpy as np
from cl_jax.data.source import ForEvaluation, Splits, from_arrays

def make(*, size=64, scored: ForEvaluation[str] = ""):
    def part(name, seed):
        random = np.random.default_rng(seed)
        label = np.arange(size, dtype=np.int32) % 4
        colour = 60 * label[:, None, None, None] + random.integers(0, 40, (size, 4, 4, 3))
        return from_arrays(name, {"image": colour.astype(np.uint8), "label": label}, {"label": 4})
    return Splits(part("mine/train", 0), part("mine/test", 1))
"""

VIEW = """
from dataclasses import dataclass
from typing import ClassVar
import jax
import jax.numpy as jnp

@dataclass(frozen=True)
class Noise:
    strength: float
    needs: ClassVar[tuple] = ("image",)
    wants: ClassVar[tuple] = ()

    def draw(self, keys, batch):
        noise = jax.vmap(lambda key: jax.random.normal(key, batch["image"].shape[1:]))(keys)
        return self.clean(batch) + self.strength * noise

    def clean(self, batch):
        return batch["image"].astype(jnp.float32) / 255

def make(*, strength=0.1):
    return Noise(strength)
"""

METHOD = """
import jax
import jax.numpy as jnp
from cl_jax import losses
from cl_jax.core.method import Aux, Variables, from_loss
from cl_jax.core.network import Network, applier, features_of
from cl_jax.heads import mlp
from cl_jax.views import draw, fields

def make(*, encoder, tx, views, run, margin=0.5):
    network = Network(encoder, mlp.make(variant="linear", out_dim=8))
    apply = applier(network)

    def variables(key, batch):
        start = network.init(key, views[0].clean(batch), True)
        return Variables(start["params"], start.get("batch_stats", {}))

    def forward(params, stats, target, inputs, batch, key):
        rows = jnp.concatenate(inputs)
        (z, _), stats = apply(params, stats, rows, True)
        return jnp.stack(jnp.split(z, 2), axis=1), stats, None

    def loss(z, params, memory, batch, key):
        value = losses.nt_xent(z[:, 0], z[:, 1], temperature=margin, axis_name=run.axis_name)
        return value, Aux({})

    return from_loss(
        variables=variables, views=lambda batch, key: draw(views, batch, key), forward=forward,
        loss=loss, tx=tx, features=features_of(apply), clean=views[0].clean,
        axis_name=run.axis_name, **fields(views),
    )
"""

EVALUATOR = """
import numpy as np
from cl_jax.evals import Evaluator

def make(*, scale=1.0):
    def measure(given):
        rows = given.features(given.data.test, "h")
        return {"spread/mean": scale * float(np.std(rows))}
    return Evaluator(measure, better={"spread/mean": 1})
"""

CONFIG = """
from ml_collections import ConfigDict
from cl_jax.training import defaults

def get_config():
    config = defaults.get_config()
    config.data = ConfigDict(dict(name="lab.data"))
    config.views = ConfigDict(dict(both=dict(kind="lab.view", copies=2)))
    config.encoder = ConfigDict(dict(name="lab.network"))
    config.method = ConfigDict(dict(name="lab.method"))
    config.optimizer = ConfigDict(
        dict(name="adamw", learning_rate=1e-2, learning_rate_scaling="none", weight_decay=0.0)
    )
    config.evals.protocols = ConfigDict(dict(spread=dict(name="lab.spread")))
    config.evals.baselines = False
    config.batch_size = 16
    config.total_epochs = 1.0
    return config
"""


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """The folder in which commands are given, whose modules they find."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # put back what a command changes
    return tmp_path


@pytest.fixture
def lab(own_folder):
    folder = own_folder / "lab"
    folder.mkdir()
    for name, text in {
        "network": NETWORK,
        "data": DATA,
        "view": VIEW,
        "method": METHOD,
        "spread": EVALUATOR,
        "config": CONFIG,
    }.items():
        (folder / f"{name}.py").write_text(text)
    return own_folder


def test_trains_evaluates_and_verifies(lab, capsys):
    assert command.main(["train", "lab.config", "--workdir=run", "--config.data.size=48"]) == 0
    log = [json.loads(line) for line in (lab / "run" / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 3 and any("spread/mean" in row for row in log)

    changed = ["evals.protocols.spread.scale=2.0", "data.scored=other.tsv"]
    words = [f"--config.{setting}" for setting in changed]
    assert command.main(["eval", "--workdir=run", *words]) == 0
    (once,) = (row["spread/mean"] for row in log if row["step"] == 3 and "spread/mean" in row)
    assert json.loads((lab / "run" / "eval.json").read_text())["spread/mean"] == 2 * once

    capsys.readouterr()
    assert command.main(["eval", "lab/config.py", "--workdir=run"]) == 1
    assert "data.size: 48 in the workdir, 64 now" in capsys.readouterr().err

    assert command.main(["verify", "--configs=lab.config", "--devices=1,2", "--steps=3"]) == 0
    assert "1 of 1 the same on 1, 2 devices" in capsys.readouterr().out


def test_the_files_of_the_guide_to_a_new_kind_of_data_train(own_folder, capsys):
    guide = Path(__file__).resolve().parents[1] / "docs" / "guides" / "modalities.md"
    blocks = re.findall(r"^```python\n(.*?)^```", guide.read_text(), re.MULTILINE | re.DOTALL)
    for name in ("my_lab", "signals"):
        Path(name).mkdir()
    for name, text in zip(
        ("my_lab/signals.py", "my_lab/crop.py", "my_config.py"), blocks, strict=True
    ):
        Path(name).write_text(text)
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        signal = random.integers(-999, 999, (16, 500)).astype(np.int16)
        label = np.arange(16, dtype=np.int32) % 10
        np.savez(Path("signals", f"{part}.npz"), signal=signal, label=label)
    words = ["my_config.py:debug", "--workdir=run", "--config.evals.baselines=false"]
    assert command.main(["train", *words]) == 0
    assert "simclr_v1 on signals/train: 16 training examples, 16 test" in capsys.readouterr().err
    log = (own_folder / "run" / "metrics.jsonl").read_text()
    assert "knn/top1" in log and "logistic/label" in log


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("data.sizes=1", "lab.data.make has no setting 'sizes'; did you mean 'size'"),
        ("method.margins=1", "lab.method.make has no setting 'margins'; did you mean 'margin'"),
        ("method.name=lab.methods", "the module lab.methods cannot be imported"),
        ("views.both.strenght=1", "no setting 'strenght'; did you mean 'strength'"),
        ("views.both.kind=lab.views", "the module lab.views cannot be imported"),
        ("encoder.name=lab.data.x", "cannot be imported"),
        ("evals.protocols.spread.scales=1", "no setting 'scales'; did you mean 'scale'"),
        ("evals.protocols.other.k=1", "cl_jax.evals.other does not exist"),
    ],
)
def test_a_wrong_name_is_one_sentence(lab, capsys, given, words):
    assert command.main(["train", "lab.config", "--workdir=run", f"--config.{given}"]) == 1
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
