"""Graphs of ONNX, run by onnxruntime or onnx's evaluator, answer as the networks that they are
of."""

import numpy as np
import pytest

from cl_jax.weights import onnx_graph, programs
from tests.weights import tiny

# Of each operator of the graphs one network; the others with `-m slow`.
GRAPHS = {
    "byol": ("resnet", 33, dict(blocks=(1, 1), variant="byol", width=0.125)),
    "simclr": ("resnet", 32, dict(blocks=(1, 1), variant="simclr", width=0.125)),
    "cifar": ("resnet", 17, dict(blocks=(1, 1), stem="cifar", width=0.125)),
    "selective kernels": (
        "resnet",
        33,
        dict(blocks=(1, 1), variant="simclr", bottleneck=True, sk_ratio=0.0625, width=0.125),
    ),
    "dino at another size": ("vit", 24, dict(width=16, depth=1, heads=2, patch=8, image_size=16)),
    "mae": ("vit", 16, dict(width=16, depth=1, heads=2, patch=8, variant="mae", pool="mean")),
    "bert": ("transformer", 0, tiny.TEXT | dict(pool="cls")),
    "clip's text": ("transformer", 0, tiny.TEXT | dict(style="clip", causal=True, pool="eos")),
    "pre-norm": ("transformer", 0, tiny.TEXT | dict(style="pre_norm", pool="avg_top2")),
    "first and last": ("transformer", 0, tiny.TEXT | dict(pool="avg_first_last")),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            marks=[]
            if case in ("selective kernels", "dino at another size", "clip's text")
            else [pytest.mark.slow],
        )
        for case in GRAPHS
    ],
)
def test_graphs_of_onnx_answer_as_the_network(case, tmp_path):
    kind, side, section = GRAPHS[case]
    difference, how = programs.onnx_file(tiny.network(kind, side, **section), tmp_path)
    assert difference.largest < 1e-5 and "onnx" in how


def test_any_number_of_rows_and_a_wrong_graph_is_noticed(tmp_path):
    net = tiny.network("transformer", **tiny.TEXT)
    programs.onnx_file(net, tmp_path)
    tokens = net.inputs["tokens"].astype(np.int64)
    found, _ = onnx_graph.run(tmp_path / "model.onnx", {"tokens": tokens[:1]})
    whole, _ = onnx_graph.run(tmp_path / "model.onnx", {"tokens": tokens})
    np.testing.assert_allclose(found, whole[:1], atol=1e-6)
    other = net._replace(encoder=net.encoder.clone(pool="cls"))
    assert np.abs(other.answers(net.inputs)["h"] - whole).max() > 1e-2
