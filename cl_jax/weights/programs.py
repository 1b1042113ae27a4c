"""A network as a program with its weights: an ONNX file, or StableHLO. Both return the difference
from the run's answers, and how it was measured."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cl_jax.core.errors import ConfigError
from cl_jax.weights import onnx_graph
from cl_jax.weights.network import Difference, Network, difference, positions_of


def onnx_file(net: Network, folder: Path) -> tuple[Difference, str]:
    """model.onnx, weights inside: "images" float32 [N, C, S, S] or "tokens" int64 [N, T] to "h"."""
    if importlib.util.find_spec("onnx") is None:
        raise ConfigError("an ONNX file is written with onnx: pip install 'cl_jax[export]'.")
    import onnx

    if net.kind == "resnet":
        model = onnx_graph.resnet(net.encoder, net.params, net.stats, net.side)
    elif net.kind == "vit":
        model = onnx_graph.vit(net.encoder, net.params, positions_of(net), net.side)
    else:
        model = onnx_graph.transformer(net.encoder, net.params)
    path = folder / "model.onnx"
    onnx.save(model, path)
    inputs = net.inputs
    given = (
        {"tokens": inputs["tokens"].astype(np.int64)}
        if net.kind == "transformer"
        else {"images": inputs["images"].transpose(0, 3, 1, 2)}
    )
    found, how = onnx_graph.run(path, given)
    return difference({"h": found}, net.answers(inputs)), how


def stablehlo_file(net: Network, folder: Path) -> tuple[Difference, str]:
    """Weights inside, float32 images [N, S, S, C] or int32 tokens [N, T] to "h" [N, D], for CPU,
    GPU and TPU."""
    from jax import export

    if importlib.util.find_spec("flatbuffers") is None:
        raise ConfigError("StableHLO is written with flatbuffers: pip install 'cl_jax[export]'.")
    variables = jax.tree.map(jnp.asarray, {"params": net.params, "batch_stats": net.stats})
    (rows,) = export.symbolic_shape("n")
    inputs = net.inputs
    (value,) = inputs.values()
    found = export.export(
        jax.jit(lambda x: net.encoder.apply(variables, x, train=False)["h"]),
        platforms=("cpu", "cuda", "tpu"),
    )(jax.ShapeDtypeStruct((rows, *value.shape[1:]), value.dtype))
    path = folder / "model.stablehlo"
    path.write_bytes(found.serialize())
    again = export.deserialize(bytearray(path.read_bytes()))
    theirs = np.asarray(again.call(value))
    return difference({"h": theirs}, net.answers(inputs)), "read back by jax.export"
