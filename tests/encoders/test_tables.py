"""Parameter counts, statistics and output shapes of the published networks, without compiling
one."""

import json
import re

import jax
import jax.numpy as jnp
import pytest

from cl_jax.encoders import alexnet, resnet
from cl_jax.heads import mlp, predictor
from cl_jax.heads.prototypes import Prototypes
from cl_jax.heads.weight_norm import DINOHead
from tests.goldens import HERE

MODELS = json.loads((HERE / "encoder_tables_A.json").read_text())["models"]


def _shapes(module, *shape, train=True):
    """(output, parameters, statistics) as shapes."""

    def init(x):
        if train is None:
            return module.init_with_output(jax.random.key(0), x)
        return module.init_with_output(jax.random.key(0), x, train=train)

    out, variables = jax.eval_shape(init, jax.ShapeDtypeStruct(shape, jnp.float32))
    return out, variables.get("params", {}), variables.get("batch_stats", {})


def _count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _stage(params, prefix):
    return _count({name: leaf for name, leaf in params.items() if name.startswith(prefix)})


def _names(pattern):
    """Models of the table; those of a hundred layers and more, which take seconds to trace, and
    those that differ from others in one number alone, with `-m slow`."""
    return [
        pytest.param(name, marks=pytest.mark.slow)
        if re.search(r"resnet\d{3}|resnet34_|byol_resnet50_[24]x", name)
        else name
        for name in sorted(MODELS)
        if re.fullmatch(pattern, name)
    ]


def _maps(features, stages=("stage1", "stage2", "stage3", "stage4")):
    return [list(features[stage].shape[1:]) for stage in stages]


@pytest.mark.slow
@pytest.mark.parametrize("name", _names(r"simclr_resnet.*"))
def test_simclr_networks(name):
    table = MODELS[name]
    depth, width, sk, cifar = re.fullmatch(
        r"simclr_resnet(\d+)_(\d+)x(_sk)?(_cifar)?", name
    ).groups()
    net = resnet.make(
        depth=int(depth),
        width=int(width),
        variant="simclr",
        stem="cifar" if cifar else "imagenet",
        sk_ratio=0.0625 if sk else 0.0,
    )
    features, params, stats = _shapes(net, 1, *table["input"])
    assert _maps(features, ("stem", "stage1", "stage2", "stage3", "stage4", "h")) == list(
        table["shapes_NHWC"].values()
    )
    parts = {
        "stem": "stem_",
        "group1": "stage1",
        "group2": "stage2",
        "group3": "stage3",
        "group4": "stage4",
    }
    assert {part: _stage(params, prefix) for part, prefix in parts.items()} == table[
        "params_by_part"
    ]
    assert (_count(params), _count(stats)) == (table["params"], table["batchnorm_running"])
    # The histogram of kernel shapes, TensorFlow's HWIO as ours.
    histogram = {}
    for leaf in jax.tree.leaves(params):
        key = "x".join(map(str, leaf.shape))
        histogram[key] = histogram.get(key, 0) + 1
    assert histogram == table["tf_shapes"]


@pytest.mark.parametrize("name", _names(r"simclr_head_.*"))
def test_simclr_heads(name):
    width, layers = map(int, re.fullmatch(r"simclr_head_(\d+)_(\d)layers", name).groups())
    (z, hiddens), params, stats = _shapes(
        mlp.make(variant="simclr", num_layers=layers, out_dim=128), 2, width
    )
    assert (_count(params), _count(stats)) == (
        MODELS[name]["params"],
        MODELS[name]["batchnorm_running"],
    )
    assert z.shape == (2, 128) and [h.shape[1] for h in hiddens] == [width] * layers + [128]


@pytest.mark.parametrize("name", _names(r"simclr_supervised_head_.*"))
def test_supervised_heads(name):
    width, classes = map(int, re.fullmatch(r"simclr_supervised_head_(\d+)_(\d+)", name).groups())
    _, params, _ = _shapes(mlp.make(variant="linear", out_dim=classes), 2, width)
    assert _count(params) == MODELS[name]["params"]


# name: (encoder settings, head)
TORCH = {
    "moco_v1_resnet50": ({"depth": 50}, mlp.make(variant="linear", out_dim=128)),
    "moco_v2_resnet50": ({"depth": 50}, mlp.make(variant="moco_v2", out_dim=128)),
    "moco_cifar_resnet18": (
        {"depth": 18, "stem": "cifar", "splits": 8},
        mlp.make(variant="linear", out_dim=128),
    ),
    "mocov3_resnet50": (
        {"depth": 50, "zero_init_last": True},
        mlp.make(variant="moco_v3", out_dim=256),
    ),
    "simsiam_resnet50": (
        {"depth": 50, "zero_init_last": True},
        mlp.make(variant="simsiam", out_dim=2048),
    ),
    "swav_resnet50_224": ({"depth": 50}, mlp.make(variant="swav", out_dim=128)),
    "swav_resnet50_96": ({"depth": 50}, mlp.make(variant="swav", out_dim=128)),
    "swav_resnet50w2_224": (
        {"depth": 50, "width": 2},
        mlp.make(variant="swav", out_dim=128, hidden_dim=8192),
    ),
    "swav_resnet50w4_224": (
        {"depth": 50, "width": 4},
        mlp.make(variant="swav", out_dim=128, hidden_dim=8192),
    ),
    "swav_resnet50w5_224": (
        {"depth": 50, "width": 5},
        mlp.make(variant="swav", out_dim=128, hidden_dim=10240),
    ),
    "instdisc_resnet18": ({"depth": 18}, mlp.make(variant="linear", out_dim=128)),
    "instdisc_resnet50": ({"depth": 50}, mlp.make(variant="linear", out_dim=128)),
    "instdisc_cifar_resnet18": (
        {"depth": 18, "stem": "cifar"},
        mlp.make(variant="linear", out_dim=128),
    ),
    "invaspread_cifar_resnet18": (
        {"depth": 18, "stem": "cifar"},
        mlp.make(variant="linear", out_dim=128),
    ),
    "invaspread_stl_resnet18": (
        {"depth": 18, "stem": "cifar"},
        mlp.make(variant="linear", out_dim=128),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCH)
def test_torchvision_networks(name):
    table, (settings, head) = MODELS[name], TORCH[name]
    features, params, stats = _shapes(resnet.make(**settings), 1, *table["input"])
    (z, _), head_params, head_stats = _shapes(head, 2, features["h"].shape[1])
    shapes = table["shapes_NHWC"]
    assert _maps(features) == [shapes[f"stage{stage}"] for stage in range(1, 5)]
    assert list(features["conv1"].shape[1:]) == shapes["stem_conv"]
    assert list(features["stem"].shape[1:]) == shapes.get("stem_pool", shapes["stem_conv"])
    count, running = _count(params) + _count(head_params), _count(stats) + _count(head_stats)
    if "prototypes" in shapes:
        scores, prototypes, _ = _shapes(
            Prototypes(shapes["prototypes"][0]), 2, z.shape[1], train=None
        )
        count += _count(prototypes)
        assert [list(z.shape[1:]), list(scores.shape[1:])] == shapes["output"]
    else:
        assert list(z.shape[1:]) == shapes["output"]
    # SimSiam's frozen bias, the only one that is not trained here, is left out.
    assert (count, running) == (table["trainable"], table["batchnorm_running"])


@pytest.mark.parametrize("name", _names(r"dino_head_\d+(_bn)?"))
def test_dino_heads(name):
    width, bn = re.fullmatch(r"dino_head_(\d+)(_bn)?", name).groups()
    logits, params, stats = _shapes(DINOHead(65536, use_bn=bool(bn)), 2, int(width))
    assert logits.shape == (2, 65536)
    assert (_count(params), _count(stats)) == (
        MODELS[name]["trainable"],
        MODELS[name]["batchnorm_running"],
    )
    _, params, _ = _shapes(DINOHead(65536, use_bn=bool(bn), norm_last_layer=False), 2, int(width))
    assert _count(params) == MODELS[name]["params"]


@pytest.mark.parametrize("name", _names(r"byol_resnet.*"))
def test_byol_networks(name):
    table = MODELS[name]
    depth, width = map(int, re.fullmatch(r"byol_resnet(\d+)_(\d)x_224", name).groups())
    features, params, _ = _shapes(
        resnet.make(depth=depth, width=width, variant="byol"), 1, *table["input"]
    )
    (z, _), projector, _ = _shapes(mlp.make(variant="byol", out_dim=256), 2, features["h"].shape[1])
    (p, _), predict, _ = _shapes(predictor.make(variant="byol", out_dim=256), 2, 256)
    parts = table["params_by_part"]
    assert _count(params) == parts[f"res_net{depth}"]
    assert (_count(projector), _count(predict)) == (parts["projector"], parts["predictor"])
    assert z.shape == p.shape == (2, 256)


def test_predictors():
    """Counts by hand: h d + d h, one bias where there is one, two for each affine norm."""
    for variant, dim, hidden, expected in (
        ("simsiam", 2048, 512, 2 * 2048 * 512 + 2 * 512 + 2048),
        ("moco_v3", 256, 4096, 2 * 256 * 4096 + 2 * 4096),
        ("moco_v3_vit", 256, 4096, 2 * 256 * 4096 + 2 * 4096),
    ):
        (p, _), params, stats = _shapes(predictor.make(variant=variant, out_dim=dim), 2, dim)
        assert _count(params) == expected and p.shape == (2, dim)
        assert _count(stats) == 2 * (hidden + (dim if variant == "moco_v3_vit" else 0))


@pytest.mark.parametrize(
    "depth, width",
    [(10, 0.5), (10, 2), *(pytest.param(50, x, marks=pytest.mark.slow) for x in (0.5, 1, 2))],
)
def test_cmc_resnets_keep_their_stem(depth, width):
    features, _, _ = _shapes(resnet.make(depth=depth, width=width, stem_width=64), 1, 224, 224, 2)
    widest = int((2048 if depth == 50 else 512) * width)
    assert features["stem"].shape == (1, 56, 56, 64) and features["h"].shape == (1, widest)


@pytest.mark.parametrize("channels", [1, 2])
def test_half_width_alexnet(channels):
    features, params, stats = _shapes(alexnet.make(), 1, 224, 224, channels)
    assert {name: leaf.shape[1:] for name, leaf in features.items()} == {
        "conv1": (27, 27, 48),
        "conv2": (13, 13, 128),
        "conv3": (13, 13, 192),
        "conv4": (13, 13, 192),
        "conv5": (6, 6, 128),
        "fc6": (2048,),
        "fc7": (2048,),
        "h": (2048,),
    }
    kernels = (
        121 * channels * 48
        + 25 * 48 * 128
        + 9 * (128 * 192 + 192 * 192 + 192 * 128)
        + 4608 * 2048
        + 2048**2
    )
    widths = 48 + 128 + 192 + 192 + 128 + 2048 + 2048
    assert _count(params) == kernels + 2 * widths + 2 * 2048  # dense biases
    assert _count(stats) == 2 * widths


def test_laptop_networks():
    features, params, _ = _shapes(resnet.make(depth=18, width=0.25, stem="cifar"), 1, 32, 32, 3)
    assert features["h"].shape == (1, 128) and _count(params) < 0.8e6
    features, _, _ = _shapes(resnet.make(blocks=[1, 1, 1], width=0.5, stem="cifar"), 1, 32, 32, 1)
    assert features["stage3"].shape == (1, 8, 8, 128) and features["h"].shape == (1, 128)
    features, _, _ = _shapes(resnet.make(depth=10, width=0.25, stem="cifar"), 1, 33, 20, 3)
    assert features["stage4"].shape == (1, 5, 3, 128)
