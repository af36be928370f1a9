"""Tables of layers against a clock that shows their MACs, and against onnxruntime's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.channel_preparation import prepare
from onnxcomp.channels import Channels, find_channels
from onnxcomp.concrete_shapes import with_concrete_shapes
from onnxcomp.graph import sort_nodes
from onnxcomp.graph_latency import latency_of
from onnxcomp.graph_resources import macs_of
from onnxcomp.importing import from_proto
from onnxcomp.layer_latency import Layer, LayerLatency
from onnxcomp.macs import macs_by_node
from onnxcomp.shapes import infer_shapes
from onnxcomp.testing import model_of, small_attention

BLOCK = 8
RNG = np.random.default_rng(0)


class MacClock(LayerLatency):
    """Says 1 ms for each MAC, and keeps the layers that it was asked about."""

    block = BLOCK

    def __init__(self) -> None:
        self.asked: list[Layer] = []

    def measure(self, layers: Sequence[Layer]) -> list[float]:
        self.asked += layers
        return [float(self.macs(layer)) for layer in layers]

    @staticmethod
    def macs(layer: Layer) -> int:
        """Of the layer as a graph of its own, whose shapes have to fit each other."""
        graph = gs.Graph(opset=17)
        inputs = [
            gs.Variable(f"x{i}", np.float32, shape)
            if i in layer.fed
            else gs.Constant(f"x{i}", np.zeros(shape, np.float32))
            for i, shape in enumerate(layer.shapes)
        ]
        output = gs.Variable("y", np.float32)
        graph.nodes.append(gs.Node(layer.op, "n", dict(layer.attributes), inputs, [output]))
        graph.inputs, graph.outputs = [inputs[i] for i in layer.fed], [output]
        shapes = {f"x{i}": layer.shapes[i] for i in layer.fed}
        _, types = with_concrete_shapes(graph, shapes)
        assert any("y" in found and found["y"].shape for found in types.values()), layer
        (node,) = macs_by_node(graph, shapes)
        assert node.macs is not None
        return node.macs


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(np.float32)


def analysed(model: onnx.ModelProto) -> tuple[gs.Graph, Channels]:
    graph = from_proto(model)
    infer_shapes(graph)
    prepare(graph)
    sort_nodes(graph)
    return graph, find_channels(graph)


CONVOLUTIONS = """net (float[1, 3, 8, 8] x) => (float[1, 5] y) {
    [stem] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  [act] b = Relu (a)
    [deep] c = Conv <group = 32, pads = [1, 1, 1, 1]> (b, w2, b2)
    [wide] d = Conv (c, w3)  [up] e = ConvTranspose <strides = [2, 2]> (d, w4, b4)
    [pool] f = GlobalAveragePool (e)  [flat] g = Flatten (f)
    [one] h = Gemm <transB = 1> (g, w5, b5)  [two] y = MatMul (h, w6) }"""
WEIGHTS = {
    **{"w1": normal(32, 3, 3, 3), "b1": normal(32), "w2": normal(32, 1, 3, 3), "b2": normal(32)},
    **{"w3": normal(48, 32, 1, 1), "w4": normal(48, 24, 2, 2), "b4": normal(24)},
    **{"w5": normal(40, 24), "b5": normal(40), "w6": normal(40, 5)},
}
X = {"x": (1, 3, 8, 8)}


def test_layers_that_take_as_long_as_their_macs_follow_them_at_every_size() -> None:
    """Products of two sizes are met between the knots of a bilinear table, too."""
    graph, channels = analysed(model_of(CONVOLUTIONS, **WEIGHTS))
    clock = MacClock()
    found, macs = latency_of(graph, channels, X, clock), macs_of(graph, channels, X)

    assert found.value() == macs.value()
    assert {layer.op for layer in clock.asked} == {"Conv", "ConvTranspose", "Gemm", "MatMul"}
    for _ in range(20):
        kept = {
            g.name: BLOCK * RNG.integers(1, g.size // BLOCK + 1) / g.size for g in channels.groups
        }
        assert found.value(kept) == pytest.approx(macs.value(kept))


def test_sizes_within_a_block_of_a_convolution_take_as_long_as_all_of_it() -> None:
    graph, channels = analysed(model_of(CONVOLUTIONS, **WEIGHTS))
    found = latency_of(graph, channels, X, MacClock())
    name, gemm = channels.groups[0].name, channels.groups[-1].name

    assert found.value({name: 17 / 32}) == found.value({name: 24 / 32}) > found.value({name: 0.5})
    assert found.value({gemm: 0.7}) < found.value({gemm: 0.8})


def test_products_of_activations_follow_their_macs() -> None:
    graph, channels = analysed(small_attention("torchscript"))
    shapes = {"x": (1, 6, 32), "mask": (1, 1, 1, 6)}
    found = latency_of(graph, channels, shapes, MacClock())
    macs = macs_of(graph, channels, shapes)

    kept = {group.name: 0.5 for group in channels.groups}
    assert 0 < macs.value(kept) < macs.value()
    assert found.value() == macs.value()
    assert found.value(kept) == pytest.approx(macs.value(kept))


def test_the_rest_of_the_time_follows_what_other_nodes_write() -> None:
    graph, channels = analysed(model_of(CONVOLUTIONS, **WEIGHTS))
    (stem,) = (group for group in channels.groups if group.name == "stem")
    layers = latency_of(graph, channels, X, MacClock())

    found = latency_of(graph, channels, X, MacClock(), 2 * layers.value())

    assert found.value() == pytest.approx(2 * layers.value())
    written = {"act": 32 * 64, "pool": 24}  # Flatten writes nothing
    share = written["act"] / sum(written.values())
    rest = {f: found.value({stem.name: f}) - layers.value({stem.name: f}) for f in (1.0, 0.5)}
    assert rest[0.5] == pytest.approx(rest[1.0] * (1 - share / 2))


def test_layers_that_take_longer_alone_than_the_model_are_scaled() -> None:
    graph, channels = analysed(model_of(CONVOLUTIONS, **WEIGHTS))
    kept = {channels.groups[0].name: 0.5}
    layers = latency_of(graph, channels, X, MacClock())

    found = latency_of(graph, channels, X, MacClock(), layers.value() / 4)

    assert found.value(kept) == pytest.approx(layers.value(kept) / 4)


def test_onnxruntime_runs_every_layer_that_is_asked_about(tmp_path: Path) -> None:
    graph, channels = analysed(model_of(CONVOLUTIONS, **WEIGHTS))
    stopwatch = LayerLatency(folder=tmp_path)

    found = latency_of(graph, channels, X, stopwatch)

    layers = []
    known, types = with_concrete_shapes(graph, X)
    for node in known.nodes:
        if node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            data, *weights = node.inputs
            shapes = (types[id(known)][data.name].shape or (), *(tuple(w.shape) for w in weights))
            layers.append(Layer(op=node.op, attributes=dict(node.attrs), shapes=shapes))
    assert len(layers) == 6
    assert found.value() == pytest.approx(math.fsum(stopwatch.measure(layers)))
    assert len(list(tmp_path.iterdir())) == 1
