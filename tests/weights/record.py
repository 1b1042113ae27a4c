"""Records what networks of other libraries answer: `python -m tests.weights.record` where PyTorch,
torchvision, timm and transformers are, writes vectors.npz. Weights are drawn by the tensor's name,
so that the file holds names, shapes and answers alone."""

import json
import tempfile
import zlib
from pathlib import Path

import numpy as np

EXTRA = {"ViTModel": {"add_pooling_layer": False}}
FILE = Path(__file__).with_name("vectors.npz")


def drawn(name, shape):
    """Numbers of a tensor by its name."""
    rng = np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))
    fan = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    values = rng.standard_normal(shape, dtype=np.float32) * np.float32(0.7 / max(fan, 1) ** 0.5)
    if name.endswith("running_var"):
        return np.abs(values) + np.float32(0.5)
    scale = len(shape) == 1 and name.endswith(("weight", "gamma", "lambda1"))
    return values * np.float32(0.2) + np.float32(1) if scale else values


def images(size=64):
    return np.random.default_rng(0).standard_normal((2, size, size, 3), dtype=np.float32)


def networks():
    """{case: (module, output -> features)}."""
    import timm
    import torch
    import transformers
    from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
    from torchvision.models.vision_transformer import VisionTransformer

    basic, deep = ResNet(BasicBlock, [1, 1, 1, 1]), ResNet(Bottleneck, [1, 1, 1, 1])
    theirs = VisionTransformer(64, 16, 2, 1, 64, 256)
    for network in (basic, deep):
        network.fc = torch.nn.Identity()
    theirs.heads = torch.nn.Identity()
    scaled = timm.models.vision_transformer.VisionTransformer(
        img_size=64, patch_size=16, embed_dim=64, depth=2, num_heads=1, num_classes=0,
        init_values=0.1,
    )  # fmt: skip
    sizes = dict(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, image_size=64, patch_size=16
    )
    resnet = transformers.ResNetModel(
        transformers.ResNetConfig(
            depths=[1, 1, 1, 1],
            hidden_sizes=[64, 128, 256, 512],
            layer_type="basic",
            embedding_size=64,
        )
    )
    vit = transformers.ViTModel(
        transformers.ViTConfig(intermediate_size=256, **sizes), add_pooling_layer=False
    )
    dinov2 = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    return {
        "torchvision resnet": (basic, lambda y: y),
        "torchvision bottlenecks": (deep, lambda y: y),
        "torchvision vit": (theirs, lambda y: y),
        "timm vit": (scaled, lambda y: y),
        "huggingface resnet": (resnet, lambda y: y.pooler_output[:, :, 0, 0]),
        "huggingface vit": (vit, lambda y: y.last_hidden_state[:, 0]),
        "huggingface dinov2": (dinov2, lambda y: y.last_hidden_state[:, 0]),
    }


def filled(network):
    """(the network with drawn weights, {name in its file: shape}). transformers' names in a file
    are others than those of its modules."""
    import torch
    from safetensors.torch import load_file, save_file

    if not hasattr(network, "save_pretrained"):
        tensors = {k: v for k, v in network.state_dict().items() if v.is_floating_point()}
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(drawn(name, tuple(tensor.shape))))
        return network, {name: list(tensor.shape) for name, tensor in tensors.items()}
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        tensors = {k: v for k, v in load_file(file).items() if v.is_floating_point()}
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        save_file(
            {name: torch.from_numpy(drawn(name, tuple(shape))) for name, shape in shapes.items()},
            file,
            {"format": "pt"},
        )
        return type(network).from_pretrained(
            folder, **EXTRA.get(type(network).__name__, {})
        ), shapes


def main():
    import torch

    found = {}
    for case, (network, answer) in networks().items():
        network, shapes = filled(network)
        network.eval()
        with torch.no_grad():
            images_ = torch.from_numpy(images()).permute(0, 3, 1, 2)
            found[case] = answer(network(images_)).numpy()
        found[f"{case}/names"] = np.array(json.dumps(shapes))
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
