"""A ResNet, a ViT or a transformer over tokens as an ONNX graph, written operator by operator.

Operators are those of ONNX 1.12 (opset 17), in float32, with a free batch size. Images are [N, C,
S, S], as other runtimes have them; dropout, stochastic depth and the mask token are of training and
left out.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cl_jax.core.tokens import END, PAD
from cl_jax.encoders.resnet import VARIANTS, ResNet
from cl_jax.encoders.transformer import STYLES, Transformer
from cl_jax.encoders.vit import ViT

OPSET, IR = 17, 8
Tree = Mapping[str, Any]


class Graph:
    """Nodes and weights in the order in which they are added; values are called by name."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.numbers = itertools.count()

    def constant(self, value: Any) -> str:
        """The name of an array."""
        from onnx import numpy_helper

        name = f"weight{next(self.numbers)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def whole(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The name of the result of an operator."""
        return self.several(kind, inputs, 1, **attributes)[0]

    def several(
        self, kind: str, inputs: tuple[str, ...], count: int, **attributes: Any
    ) -> list[str]:
        from onnx import helper

        names = [f"value{next(self.numbers)}" for _ in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def dense(self, x: str, layer: Tree) -> str:
        y = self("MatMul", x, self.constant(layer["kernel"]))
        return self("Add", y, self.constant(layer["bias"])) if "bias" in layer else y

    def layer_norm(self, x: str, layer: Tree, epsilon: float) -> str:
        scale, bias = self.constant(layer["scale"]), self.constant(layer["bias"])
        return self("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)

    def gelu(self, x: str) -> str:
        """x (1 + erf(x / sqrt 2)) / 2."""
        half, one = self.constant(np.float32(0.5)), self.constant(np.float32(1))
        inside = self("Erf", self("Mul", x, self.constant(np.float32(0.5**0.5))))
        return self("Mul", self("Mul", x, half), self("Add", inside, one))

    def heads(self, x: str, heads: int, width: int) -> str:
        """[N, T, D] -> [N, heads, T, D / heads]."""
        apart = self("Reshape", x, self.whole(0, 0, heads, width // heads))
        return self("Transpose", apart, perm=[0, 2, 1, 3])

    def attention(self, qkv: Sequence[str], heads: int, width: int, allowed: str = "") -> str:
        """[N, T, D]; allowed: booleans [N, 1, T, T], all where there is none."""
        q, k, v = (self.heads(x, heads, width) for x in qkv)
        turned = self("Transpose", k, perm=[0, 1, 3, 2])
        scale = self.constant(np.float32((width // heads) ** 0.5))
        scores = self("Div", self("MatMul", q, turned), scale)
        if allowed:
            scores = self("Where", allowed, scores, self.constant(np.float32(-1e9)))
        mixed = self("MatMul", self("Softmax", scores, axis=-1), v)
        joined = self("Transpose", mixed, perm=[0, 2, 1, 3])
        return self("Reshape", joined, self.whole(0, 0, width))

    def model(self, given: tuple[str, type, list[Any]], found: str, width: int) -> Any:
        """The model of one input (name, type, shape) whose result `found` is called "h"."""
        import onnx
        from onnx import helper

        self.nodes.append(helper.make_node("Identity", [found], ["h"]))
        name, kind, shape = given
        of = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        model = helper.make_model(
            helper.make_graph(
                self.nodes,
                "cl_jax",
                [helper.make_tensor_value_info(name, of, shape)],
                [helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, ["N", width])],
                self.weights,
            ),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR,
            producer_name="cl_jax",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


# Images --------------------------------------


def resnet(encoder: ResNet, params: Tree, stats: Tree, side: int) -> Any:
    """The ONNX model of a ResNet: "images" [N, C, side, side] to "h" [N, D]."""
    g, variant = Graph(), VARIANTS[encoder.variant]
    channels = int(params["stem_conv1"]["kernel"].shape[2])

    def conv(x: str, kernel: np.ndarray, strides: int, side: int) -> tuple[str, int]:
        size = kernel.shape[0]
        before = (size - 1) // 2
        sides = (
            _same(side, size, strides) if variant.same_convolutions else (before, size - 1 - before)
        )
        y = g(
            "Conv",
            x,
            g.constant(kernel.transpose(3, 2, 0, 1)),
            strides=[strides] * 2,
            pads=[sides[0], sides[0], sides[1], sides[1]],
            kernel_shape=[size] * 2,
        )
        return y, (side + sum(sides) - size) // strides + 1

    def norm(x: str, at: Tree, moments: Tree) -> str:
        inputs = (at["scale"], at["bias"], moments["mean"], moments["var"])
        return g("BatchNormalization", x, *map(g.constant, inputs), epsilon=1e-5)

    def layers(x: str, block: str, number: str, strides: int, side: int) -> tuple[str, int]:
        """A convolution and its norm."""
        of = params[block] if block else params
        conv_name, norm_name = number.format("conv"), number.format("norm")
        y, side = conv(x, of[conv_name]["kernel"], strides, side)
        return norm(y, of[norm_name], (stats[block] if block else stats)[norm_name]), side

    x, size = "images", side
    for i, (_, _, strides) in enumerate(encoder.stem_convolutions(0), 1):
        x, size = layers(x, "", f"stem_{{}}{i}", strides, size)
        x = g("Relu", x)
    if encoder.stem == "imagenet":
        low, high = _same(size, 3, 2) if variant.same_pool else (1, 1)
        x = g("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[low, low, high, high])
        size = (size + low + high - 3) // 2 + 1
    counts, bottleneck = encoder.stages()
    for stage, count in enumerate(counts, 1):
        for i in range(1, count + 1):
            block, strides = f"stage{stage}_block{i}", 2 if i == 1 and stage > 1 else 1
            shortcut, before = x, size
            if "shortcut_conv" in params[block]:
                step = strides
                if encoder.sk_ratio > 0:
                    shortcut, before, step = *_half(g, shortcut, before, strides), 1
                shortcut, _ = layers(shortcut, block, "shortcut_{}", step, before)
            if bottleneck:
                y, _ = layers(x, block, "{}1", 1, size)
                y = g("Relu", y)
                if encoder.sk_ratio > 0:
                    y, size = _selective(
                        g, y, params[block]["sk"], stats[block]["sk"], conv, norm, strides, size
                    )
                else:
                    y, size = layers(y, block, "{}2", strides, size)
                    y = g("Relu", y)
                y, size = layers(y, block, "{}3", 1, size)
            else:
                y, size = layers(x, block, "{}1", strides, size)
                y, size = layers(g("Relu", y), block, "{}2", 1, size)
            x = g("Relu", g("Add", shortcut, y))
    h = g("ReduceMean", x, axes=[2, 3], keepdims=0)
    last = params[f"stage{len(counts)}_block{counts[-1]}"]
    width = last[f"norm{3 if bottleneck else 2}"]["scale"].shape[0]
    return g.model(("images", np.float32, ["N", channels, side, side]), h, width)


def _same(side: int, size: int, strides: int) -> tuple[int, int]:
    """XLA's "SAME": what is odd goes behind."""
    more = max((-(-side // strides) - 1) * strides + size - side, 0)
    return more // 2, more - more // 2


def _half(g: Graph, x: str, side: int, strides: int) -> tuple[str, int]:
    """ResNet-D's 2x2 mean before a shortcut (`resnet._pool_shortcut`)."""
    y = g(
        "AveragePool",
        x,
        kernel_shape=[2, 2],
        strides=[strides] * 2,
        pads=[0, 0, 1, 1],
        count_include_pad=int(strides > 1),
    )
    return y, (side - 1) // strides + 1


def _selective(
    g: Graph, x: str, params: Tree, stats: Tree, conv: Any, norm: Any, strides: int, side: int
) -> tuple[str, int]:
    """A selective-kernel convolution (`resnet.SKConv`)."""
    y, size = conv(x, params["conv"]["kernel"], strides, side)
    y = g("Relu", norm(y, params["norm"], stats["norm"]))
    first, second = g.several("Split", (y,), 2, axis=1)
    content = g("ReduceMean", g("Add", first, second), axes=[2, 3], keepdims=1)
    content, _ = conv(content, params["squeeze_conv"]["kernel"], 1, 1)
    content = g("Relu", norm(content, params["squeeze_norm"], stats["squeeze_norm"]))
    logits, _ = conv(content, params["mix_conv"]["kernel"], 1, 1)
    width = params["mix_conv"]["kernel"].shape[-1] // 2
    apart = g("Reshape", logits, g.whole(0, 2, width, 1, 1))
    shares = g.several("Split", (g("Softmax", apart, axis=1),), 2, axis=1)
    shares = [g("Reshape", share, g.whole(0, width, 1, 1)) for share in shares]
    return g("Add", g("Mul", shares[0], first), g("Mul", shares[1], second)), size


def vit(encoder: ViT, params: Tree, positions: np.ndarray, side: int) -> Any:
    """The ONNX model of a ViT: "images" [N, C, side, side] to "h" [N, D].

    positions: [1, 1 + P, D] for this side.
    """
    g, width = Graph(), encoder.width
    kernel = params["patches"]["kernel"]
    x = g(
        "Conv",
        "images",
        g.constant(kernel.transpose(3, 2, 0, 1)),
        g.constant(params["patches"]["bias"]),
        strides=[encoder.patch] * 2,
        kernel_shape=[encoder.patch] * 2,
    )
    x = g("Transpose", g("Reshape", x, g.whole(0, width, -1)), perm=[0, 2, 1])
    x = g("Add", x, g.constant(positions[:, 1:]))
    # the class token once a row: its shape from the patches'
    first = g("Mul", g("Slice", x, g.whole(0), g.whole(1), g.whole(1)), g.constant(np.float32(0)))
    token = g("Add", first, g.constant(params["class_token"] + positions[:, :1]))
    x = g("Concat", token, x, axis=1)
    for i in range(1, encoder.depth + 1):
        block = params[f"block{i}"]
        qkv = g.dense(g.layer_norm(x, block["norm1"], 1e-6), block["qkv"])
        mixed = g.attention(g.several("Split", (qkv,), 3, axis=2), encoder.heads, width)
        x = g("Add", x, g.dense(mixed, block["projection"]))
        y = g.gelu(g.dense(g.layer_norm(x, block["norm2"], 1e-6), block["mlp1"]))
        x = g("Add", x, g.dense(y, block["mlp2"]))
    x = g.layer_norm(x, params["norm"], 1e-6)
    if encoder.pool == "cls":
        h = g("Gather", x, g.constant(np.int64(0)), axis=1)
    else:
        patches = g("Slice", x, g.whole(1), g.whole(positions.shape[1]), g.whole(1))
        h = g("ReduceMean", patches, axes=[1], keepdims=0)
    return g.model(("images", np.float32, ["N", int(kernel.shape[2]), side, side]), h, width)


# Tokens --------------------------------------


def transformer(encoder: Transformer, params: Tree) -> Any:
    """The ONNX model of a transformer of LayerNorms: "tokens" int64 [N, T], padded with 0, to "h"
    [N, D]; T is the encoder's length."""
    g, style = Graph(), STYLES[encoder.style]
    length, width = encoder.length, encoder.width
    real = g("Not", g("Equal", "tokens", g.constant(np.int64(PAD))))  # [N, T]
    seen = g("Reshape", real, g.whole(0, 1, 1, length))
    square = np.ones((1, 1, length, length), bool)
    allowed = g("And", seen, g.constant(np.tril(square) if encoder.causal else square))
    x = g("Gather", g.constant(params["embedding"]["embedding"]), "tokens", axis=0)
    x = g("Add", x, g.constant(params["positions"][None, :length]))
    if style.embedding_norm:
        x = g("Add", x, g.constant(params["segments"][:1, None]))
        x = g.layer_norm(x, params["norm"], style.epsilon)

    def branches(i: int) -> list[Any]:
        block = params[f"blocks_{i}"]
        of = block["attention"]

        def attention(y: str) -> str:
            qkv = [g.dense(y, of[name]) for name in ("query", "key", "value")]
            return g.dense(g.attention(qkv, encoder.heads, width, allowed), of["out"])

        def mlp(y: str) -> str:
            hidden = g.dense(y, block["mlp1"])
            if style.activation == "gelu":
                return g.dense(g.gelu(hidden), block["mlp2"])
            scaled = g("Mul", hidden, g.constant(np.float32(1.702)))
            return g.dense(g("Mul", hidden, g("Sigmoid", scaled)), block["mlp2"])

        return [attention, mlp]

    layers = [x]
    for i in range(encoder.depth):
        for number, branch in enumerate(branches(i)):
            norm = params[f"norms_{i}_{number}"]
            if style.post_norm:
                x = g.layer_norm(g("Add", x, branch(x)), norm, style.epsilon)
            else:
                x = g("Add", x, branch(g.layer_norm(x, norm, style.epsilon)))
        layers.append(x)
    if not style.post_norm:
        layers[-1] = g.layer_norm(x, params["last_norm"], style.epsilon)
    h = _pooled(g, encoder.pool, layers, real, length)
    return g.model(("tokens", np.int64, ["N", length]), h, width)


def _pooled(g: Graph, pool: str, layers: list[str], real: str, length: int) -> str:
    """One vector a row (`heads.pooling.pool`, and "eos")."""
    last = layers[-1]
    if pool == "cls":
        return g("Gather", last, g.constant(np.int64(0)), axis=1)
    if pool == "eos":
        weight = _end(g, real, length)
    else:
        if pool in ("avg_top2", "avg_first_last"):
            other = layers[-2] if pool == "avg_top2" else layers[1]
            last = g("Mul", g("Add", last, other), g.constant(np.float32(0.5)))
        mask = g("Cast", real, to=1)
        count = g("ReduceSum", mask, g.whole(1), keepdims=1)
        weight = g("Div", mask, g("Max", count, g.constant(np.float32(1e-9))))
    row = g("Reshape", weight, g.whole(0, 1, length))
    return g("Squeeze", g("MatMul", row, last), g.whole(1))


def _end(g: Graph, real: str, length: int) -> str:
    """[N, T], 1 at the first end token, at the last that is not padding where there is none."""
    ends = g("Cast", g("Equal", "tokens", g.constant(np.int64(END))), to=7)
    first = g("ArgMax", ends, axis=1, keepdims=1)
    any_end = g("Cast", g("ReduceMax", ends, axes=[1], keepdims=1), to=9)
    count = g("ReduceSum", g("Cast", real, to=7), g.whole(1), keepdims=1)
    last = g("Max", g("Sub", count, g.whole(1)), g.whole(0))
    at = g("Where", any_end, first, last)
    return g("Cast", g("Equal", at, g.constant(np.arange(length, dtype=np.int64)[None])), to=1)


def run(path: Any, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, str]:
    """(the result of a model in a file, by what): ONNX Runtime where it is installed, else the
    reference evaluator of onnx."""
    try:
        import onnxruntime
    except Exception:  # not there, or it does not load
        import onnx
        from onnx.reference import ReferenceEvaluator

        found: Any = ReferenceEvaluator(str(path)).run(None, dict(inputs))
        return found[0], f"by onnx {onnx.__version__}, its reference evaluator"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))[0], f"by onnxruntime {onnxruntime.__version__}"
