"""A transformer with stochastic depth: every method of images draws it or says that it does not."""

import jax
import pytest
from ml_collections import ConfigDict

from cl_jax.core import parallel
from cl_jax.encoders import vit
from cl_jax.training import configs, experiment

VIT = dict(name="vit", width=8, depth=1, heads=1, patch=4, image_size=16, mask_token=True)
NO_TRANSFORMER = ("dim", "loco")  # they refuse every one
# Of each way to the encoder one, and those that refuse; the others with `-m slow`.
ALWAYS = ("byol", "dino", "instdisc", "mae", "moco_v3", "simclr_v1")


def of_images():
    """Configs that train one network on images, in their smallest form."""
    for name in configs.names():
        config = configs.load(f"{name}:debug")
        kinds = {view.get("kind", "image") for view in config.views.values()}
        if kinds == {"image"} and "name" in config.encoder and name not in NO_TRANSFORMER:
            yield pytest.param(f"{name}:debug", marks=[] if name in ALWAYS else [pytest.mark.slow])
    yield "supcon:imagenet2012,debug"  # the encoder is within another module


@pytest.mark.parametrize("name", of_images())
def test_drop_path_is_drawn_or_refused(name, monkeypatch):
    config = configs.load(name).unlock()
    config.devices, config.encoder = 1, ConfigDict(VIT | dict(drop_path=0.5, dtype="float32"))
    drawn, kept = [], vit.ViT._kept
    monkeypatch.setattr(vit.ViT, "_kept", lambda *args: drawn.append(args) or kept(*args))
    try:
        built = experiment.build(config)
        state = experiment.shape_of_state(built)
    except ValueError as error:
        assert "drop_path=0.5: this method does not draw it" in str(error)
        return
    rows = (config.batch_size,)
    example = built.data.train.read(0)
    batch = {name: jax.ShapeDtypeStruct(rows + x.shape, x.dtype) for name, x in example.items()}
    batch["id"] = jax.ShapeDtypeStruct(rows, "int32")
    same, each = parallel.SAME, parallel.EACH
    update = parallel.lift(built.method.update, built.mesh, (same, each, same), (same, same))
    jax.eval_shape(update, state, batch, jax.random.key(0))
    assert drawn, "a step gave the encoder no keys, and nothing was said"
