"""How the checkpoints of the self-supervised methods are laid out: nested dictionaries of what each
training script saves, around a network whose tensors the caller gives.

`LAYOUTS[name](network, copy)` takes {name of torchvision or timm: array} of the network that the
method evaluates, and of another copy; it returns (the tree, what stands before the names of the
first). Names of heads and of training are those of the authors' scripts.
"""

import numpy as np

HEAD = np.zeros((3, 2), np.float32)


def under(prefix, tensors):
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def sequential(tensors):
    """Of torchvision's ResNet, the names in `nn.Sequential(*resnet.children())`."""
    stem = {"conv1": "0", "bn1": "1"} | {f"layer{i}": str(i + 3) for i in range(1, 5)}
    return {
        ".".join([stem[name.split(".")[0]], *name.split(".")[1:]]): value
        for name, value in tensors.items()
    }


def in_chunks(tensors):
    """Of timm's ViT, the names of a network with block_chunks."""
    return {name.replace("blocks.", "blocks.0."): value for name, value in tensors.items()}


def scaled(tensors):
    """With DINOv2's LayerScale of ones and mask token."""
    width = tensors["cls_token"].shape[-1]
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    ones = {f"blocks.{i}.ls{n}.gamma": np.ones(width, np.float32) for i in blocks for n in (1, 2)}
    return tensors | ones | {"mask_token": np.zeros((1, width), np.float32)}


def moco(network, copy):
    """facebookresearch/moco, v1 and v2."""
    state = under("module.encoder_q.", network) | under("module.encoder_k.", copy)
    state |= {"module.encoder_q.fc.0.weight": HEAD, "module.queue": HEAD}
    tree = {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}}}
    return tree, "state_dict.module.encoder_q."


def moco_v3(network, copy):
    """facebookresearch/moco-v3."""
    state = under("module.base_encoder.", network) | under("module.momentum_encoder.", copy)
    state |= {"module.base_encoder.head.0.weight": HEAD, "module.predictor.0.weight": HEAD}
    return {"epoch": 300, "arch": "vit_small", "state_dict": state}, (
        "state_dict.module.base_encoder."
    )


def swav(network, copy):
    """facebookresearch/swav."""
    heads = {"module.projection_head.0.weight": HEAD, "module.prototypes.weight": HEAD}
    return under("module.", network) | heads, "module."


def dino(network, copy):
    """facebookresearch/dino, a checkpoint of its training."""
    student = under("module.backbone.", copy) | {"module.head.mlp.0.weight": HEAD}
    teacher = under("backbone.", network) | {"head.mlp.0.weight": HEAD}
    rest = {
        "optimizer": {"state": {0: {"exp_avg": HEAD}}},
        "epoch": 99,
        "dino_loss": {"center": HEAD},
    }
    return {"student": student, "teacher": teacher} | rest, "teacher.backbone."


def dino_released(network, copy):
    """Its released backbones."""
    return network, ""


def dinov2(network, copy):
    """facebookresearch/dinov2, teacher_checkpoint.pth of its training."""
    state = under("backbone.", in_chunks(scaled(network))) | {"dino_head.mlp.0.weight": HEAD}
    return {"teacher": state}, "teacher.backbone."


def dinov2_model(network, copy):
    """facebookresearch/dinov2, model_*.rank_0.pth."""
    state = under("student.backbone.", in_chunks(scaled(copy)))
    state |= under("teacher.backbone.", in_chunks(scaled(network)))
    return {"model": state, "iteration": 1}, "model.teacher.backbone."


def dinov2_released(network, copy):
    """Its released backbones."""
    return scaled(network), ""


def byol_pytorch(network, copy):
    """sthalles/PyTorch-BYOL."""
    online = under("encoder.", sequential(network)) | {"projetion.net.0.weight": HEAD}
    target = under("encoder.", sequential(copy)) | {"projetion.net.0.weight": HEAD}
    tree = {"online_network_state_dict": online, "target_network_state_dict": target}
    return tree, "online_network_state_dict.encoder."


def byol_lucidrains(network, copy):
    """lucidrains/byol-pytorch, the learner."""
    state = under("online_encoder.net.", network) | under("target_encoder.net.", copy)
    return state | {"online_predictor.0.weight": HEAD}, "online_encoder.net."


def byol_lightly(network, copy):
    """The module of Lightly's examples under PyTorch Lightning."""
    state = under("backbone.", sequential(network)) | under("backbone_momentum.", sequential(copy))
    tree = {"epoch": 9, "state_dict": state | {"projection_head.layers.0.weight": HEAD}}
    return tree, "state_dict.backbone."


def byol_solo(network, copy):
    """vturrisi/solo-learn."""
    state = under("backbone.", network) | under("momentum_backbone.", copy)
    return {"state_dict": state | {"classifier.weight": HEAD}}, "state_dict.backbone."


RESNETS = (
    moco, moco_v3, swav, dino, dino_released,
    byol_pytorch, byol_lucidrains, byol_lightly, byol_solo,
)  # fmt: skip
VITS = (moco_v3, dino, dino_released, dinov2, dinov2_model, dinov2_released, byol_solo)
