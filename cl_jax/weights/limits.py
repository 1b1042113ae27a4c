"""What a network has that a target cannot express, layer by layer."""

from cl_jax.core.errors import ConfigError
from cl_jax.weights.network import Network


def refuse(net: Network, to: str) -> None:
    """Raises ConfigError, with the layer, for a network that the target cannot express."""
    by_kind = {
        "resnet": _odd_resnet,
        "vit": lambda net, to: _odd_channels(net, to, "patches"),
        "transformer": _odd_transformer,
        "clip": _odd_clip,
    }
    why = by_kind[net.kind](net, to)
    if why:
        mend = (
            " Train with --config.encoder.stem=imagenet --config.encoder.variant=torchvision and a "
            "width of at most 1 for a ResNet that it has, or export to onnx."
            if net.kind == "resnet"
            else ""
        )
        raise ConfigError(f"{to} cannot express this {net.section['name']}: {why}.{mend}")


def narrow(net: Network, to: str) -> bool:
    """Whether a ResNet of a smaller width goes to the target as a part of one of width 1: all its
    channels, the stem's too, are the same share of that one's."""
    if net.kind != "resnet" or to not in ("torchvision", "timm"):
        return False
    stem = int(net.params["stem_conv1"]["kernel"].shape[-1])
    return net.encoder.width < 1 and stem == net.encoder.channels(64)


def _odd_resnet(net: Network, to: str) -> str:
    """What no name says: how a layer pads, pools or how wide it may be."""
    section = net.section
    if to in ("onnx", "stablehlo"):
        return ""
    if section.get("sk_ratio", 0):
        return "stage1_block1/sk: selective kernels"
    if section.get("variant", "torchvision") != "torchvision":
        return f"stem: the max-pool and shortcuts of variant {section['variant']}"
    if section.get("stem", "imagenet") == "cifar":
        return "stem_conv1: 3x3 without a max-pool"
    stages = len(net.encoder.stages()[0])
    if to != "huggingface" and stages != 4:
        return f"stage{min(stages, 4)}_block1: {stages} stages; huggingface has it"
    stem = int(net.params["stem_conv1"]["kernel"].shape[-1])
    if narrow(net, to):
        return _odd_channels(net, to, "stem_conv1")
    if to != "huggingface" and stem != 64:
        return f"stem_conv1: {stem} channels in place of 64; huggingface has it"
    if to == "torchvision" and section.get("width", 1.0) != 1:
        return f"stage1_block1: width {section['width']}; timm and huggingface have it"
    return _odd_channels(net, to, "stem_conv1")


def _odd_channels(net: Network, to: str, layer: str) -> str:
    if to == "torchvision" and net.channels != 3:
        return f"{layer}: {net.channels} channels of images; timm and huggingface have it"
    return ""


def _odd_transformer(net: Network, to: str) -> str:
    section = net.section
    style = section.get("style", "bert")
    if to in ("torchvision", "timm"):
        return "embedding: it reads tokens; huggingface, onnx and stablehlo do"
    if section.get("cross") and to != "stablehlo":
        return "blocks_0/cross: attention to a memory"
    if to == "onnx" and style == "t5":
        return "relative: positions by distance"
    if to == "huggingface" and style != "bert":
        return f"norms_0_0: the norms of style {style}; BertModel has those of style bert"
    if to == "huggingface" and section.get("causal"):
        return "blocks_0/attention: causal; BertModel sees tokens before and behind"
    return ""


def _odd_clip(net: Network, to: str) -> str:
    section = net.section
    if to != "huggingface":
        return "towers: two encoders in one; huggingface has CLIPModel"
    if section.get("share", "blocks") != "none":
        return "shared_blocks_0: one block for images and words; CLIPModel has share='none'"
    if section.get("stem", "patch") != "patch":
        return "early: a stem of convolutions"
    if section.get("branch"):
        return "side: a branch of convolutions"
    return ""
