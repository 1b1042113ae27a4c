"""Records what networks of other libraries answer: `python -m tests.weights.record` where PyTorch,
torchvision, timm and transformers are, writes vectors.npz. Weights are drawn by the tensor's name,
so that the file holds names, shapes and answers alone."""

import json
import zlib
from pathlib import Path

import numpy as np

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
    """{case: (module, images -> features)}."""
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
        "torchvision resnet": (basic, basic),
        "torchvision bottlenecks": (deep, deep),
        "torchvision vit": (theirs, theirs),
        "timm vit": (scaled, scaled),
        "huggingface resnet": (resnet, lambda x: resnet(x).pooler_output[:, :, 0, 0]),
        "huggingface vit": (vit, lambda x: vit(x).last_hidden_state[:, 0]),
        "huggingface dinov2": (dinov2, lambda x: dinov2(x).last_hidden_state[:, 0]),
    }


def main():
    import torch

    found = {}
    for case, (network, answer) in networks().items():
        tensors = {k: v for k, v in network.state_dict().items() if v.is_floating_point()}
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(drawn(name, tuple(tensor.shape))))
        network.eval()
        with torch.no_grad():
            found[case] = answer(torch.from_numpy(images()).permute(0, 3, 1, 2)).numpy()
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        found[f"{case}/names"] = np.array(json.dumps(shapes))
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()
