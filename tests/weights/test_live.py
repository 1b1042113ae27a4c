"""Against PyTorch, torchvision, timm and transformers themselves, where they are installed:
networks with random weights in, and out again. Nothing is downloaded."""

from typing import ClassVar

import jax
import numpy as np
import pytest

from cl_jax.core.errors import ConfigError
from cl_jax.weights import folders, importing, libraries, limits
from tests.weights import record, tiny

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def theirs():
    for name in ("torch", "torchvision", "timm", "transformers"):
        pytest.importorskip(name, exc_type=Exception)
    return record.networks()


CASES = (
    "torchvision resnet",
    "torchvision bottlenecks",
    "torchvision vit",
    "timm vit",
    "huggingface resnet",
    "huggingface vit",
    "huggingface dinov2",
)


@pytest.mark.parametrize("kind", ["pth", "old pth", "safetensors"])
@pytest.mark.parametrize("case", CASES)
def test_networks_of_the_libraries_in(theirs, case, kind, tmp_path):
    import torch

    module, answer = theirs[case]
    module, _ = record.filled(module)
    module.eval()
    path = tmp_path / "x"
    if hasattr(module, "save_pretrained"):
        if kind != "safetensors":
            pytest.skip("a folder of Hugging Face is safetensors")
        module.save_pretrained(path)
    elif kind == "safetensors":
        from safetensors.torch import save_file

        path = path.with_suffix(".safetensors")
        save_file(module.state_dict(), path)
    else:
        torch.save(
            {"state_dict": module.state_dict(), "epoch": 3},
            path,
            _use_new_zipfile_serialization=kind == "pth",
        )
    found = importing.read(path)
    encoder = importing.encoder_of(found.section)
    variables = {"params": found.params, "batch_stats": found.stats}
    images = np.random.default_rng(1).standard_normal((3, 64, 64, 3), dtype=np.float32)
    ours = jax.jit(lambda x: encoder.apply(variables, x, train=False)["h"])(images)
    with torch.no_grad():
        there = answer(module(torch.from_numpy(images).permute(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(ours, there, atol=1e-4, rtol=1e-4)


RESNET = dict(blocks=(1, 1, 1, 1))
VIT = dict(width=32, depth=2, heads=2, patch=8, image_size=32)
OUT = {
    "torchvision resnet": ("torchvision", "resnet", RESNET),
    "torchvision bottlenecks": ("torchvision", "resnet", RESNET | dict(bottleneck=True)),
    "torchvision vit": ("torchvision", "vit", VIT),
    "torchvision narrow resnet": ("torchvision", "resnet", RESNET | dict(width=0.5)),
    "timm resnet": ("timm", "resnet", RESNET),
    "timm narrow resnet": ("timm", "resnet", RESNET | dict(width=0.5, stem_width=64)),
    "timm resnet of half": ("timm", "resnet", RESNET | dict(width=0.5)),
    "timm vit": ("timm", "vit", VIT),
    "timm mean": ("timm", "vit", VIT | dict(variant="mae", pool="mean")),
    "huggingface resnet": ("huggingface", "resnet", dict(blocks=(1, 2), width=0.5)),
    "huggingface vit": ("huggingface", "vit", VIT | dict(variant="moco_v3")),
    "huggingface bert": ("huggingface", "transformer", tiny.TEXT | dict(pool="cls")),
    "huggingface clip": ("huggingface", "clip", tiny.CLIP),
}


class _Run:
    class config:
        data: ClassVar = {}


@pytest.mark.parametrize("case", OUT)
def test_what_is_exported_answers_alike_in_the_libraries(theirs, case, tmp_path):
    to, kind, section = OUT[case]
    net = tiny.network(kind, 16 if kind == "clip" else 32, **section)
    limits.refuse(net, to)
    if kind in ("transformer", "clip"):
        difference, how = folders.tokens(_Run, net, tmp_path)
    else:
        difference, how = folders.images(net, to, tmp_path)
    assert difference.largest < 1e-5
    assert how.startswith(f"by {dict(huggingface='transformers').get(to, to)} ")


def test_what_a_library_does_not_read_is_an_error(theirs, tmp_path):
    net = tiny.network("vit", 32, **VIT)
    folders.images(net, "timm", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"{")
    with pytest.raises(ConfigError, match="does not read what was written for it"):
        libraries.of("timm", "vit", net.encoder, tmp_path, net.inputs)
