"""What the other libraries themselves answer with exported weights, where they are installed."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cl_jax.core.errors import ConfigError
from cl_jax.core.tokens import PAD

Answers = dict[str, np.ndarray]


def of(
    to: str, kind: str, encoder: Any, folder: Path, inputs: Mapping[str, np.ndarray]
) -> tuple[Answers, str] | None:
    """(answers by name, the library and its version) of a network in a folder; None where the
    library or PyTorch is not installed, or does not load.

    Args:
      to: "torchvision", "timm" or "huggingface".
      kind: "resnet", "vit", "transformer" or "clip".
      encoder: our module, for sizes that no file tells.
      folder: with model.safetensors.
      inputs: "images" [N, S, S, C], "tokens" [N, T].

    Raises:
      ConfigError: the library does not read the file.
    """
    called = {"huggingface": "transformers"}.get(to, to)
    try:
        torch: Any = importlib.import_module("torch")
        library = importlib.import_module(called)
    except Exception:  # a library that is there and does not load fails in any way
        return None
    if to != "huggingface":
        try:
            network = _network(library, to, kind, encoder, inputs)
        except Exception:  # another version, of another form
            return None
        if network is None:
            return None
    try:
        with torch.no_grad():
            if to == "huggingface":
                found = _transformers(torch, library, kind, encoder, folder, inputs)
            else:
                found = _by_names(torch, to, kind, encoder, network, folder, inputs)
    except Exception as error:
        raise ConfigError(
            f"{called} {library.__version__} does not read what was written for it: "
            f"{type(error).__name__}: {str(error)[:200]}. Nothing was written."
        ) from error
    return found, f"by {called} {library.__version__}"


def _images(torch: Any, inputs: Mapping[str, np.ndarray]) -> Any:
    return torch.from_numpy(np.ascontiguousarray(inputs["images"].transpose(0, 3, 1, 2)))


def _network(
    library: Any, to: str, kind: str, encoder: Any, inputs: Mapping[str, np.ndarray]
) -> Any:
    """Their network of the same sizes, without a classifier; None where its features are not
    ours."""
    torch = importlib.import_module("torch")
    side, channels = inputs["images"].shape[2:]
    if kind == "resnet":
        counts, bottleneck = encoder.stages()
        module = importlib.import_module(f"{to}.models.resnet")
        block = module.Bottleneck if bottleneck else module.BasicBlock
        settings: dict[str, Any] = {}
        if to == "timm":
            widths = tuple(encoder.channels(64 * 2**i) for i in range(len(counts)))
            settings = dict(num_classes=0, in_chans=channels, channels=widths)
        network = module.ResNet(block, list(counts), **settings)
        network.fc = torch.nn.Identity()
        return network
    module = importlib.import_module(f"{to}.models.vision_transformer")
    sizes = encoder.width, encoder.depth, encoder.heads
    if to == "timm":
        return module.VisionTransformer(side, encoder.patch, channels, 0, "token", *sizes)
    if encoder.pool == "mean":
        return None
    width, depth, heads = sizes
    hidden = int(width * encoder.mlp_ratio)
    network = module.VisionTransformer(side, encoder.patch, depth, heads, width, hidden)
    network.heads = torch.nn.Identity()
    return network


def _by_names(
    torch: Any,
    to: str,
    kind: str,
    encoder: Any,
    network: Any,
    folder: Path,
    inputs: Mapping[str, np.ndarray],
) -> Answers:
    tensors = importlib.import_module("safetensors.torch").load_file(folder / "model.safetensors")
    network.load_state_dict(tensors)
    network.eval()
    images = _images(torch, inputs)
    if kind == "vit" and encoder.pool == "mean":
        return {"h": network.forward_features(images)[:, 1:].mean(1).numpy()}
    return {"h": network(images).numpy()}


def _transformers(
    torch: Any,
    library: Any,
    kind: str,
    encoder: Any,
    folder: Path,
    inputs: Mapping[str, np.ndarray],
) -> Answers:
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    if kind == "resnet":
        network = library.ResNetModel.from_pretrained(folder)
        return {"h": network(_images(torch, inputs)).pooler_output[:, :, 0, 0].numpy()}
    if kind == "vit":
        network = library.ViTModel.from_pretrained(folder, add_pooling_layer=False)
        states = network(_images(torch, inputs)).last_hidden_state
        return {"h": (states[:, 0] if encoder.pool == "cls" else states[:, 1:].mean(1)).numpy()}
    tokens = torch.from_numpy(inputs["tokens"].astype(np.int64))
    mask = (tokens != PAD).long()
    if kind == "transformer":
        network = library.BertModel.from_pretrained(folder, add_pooling_layer=False)
        return {"tokens": network(tokens, attention_mask=mask).last_hidden_state.numpy()}
    network = library.CLIPModel.from_pretrained(folder)
    found = network(input_ids=tokens, pixel_values=_images(torch, inputs), attention_mask=mask)
    return {"image_z": found.image_embeds.numpy(), "text_z": found.text_embeds.numpy()}
