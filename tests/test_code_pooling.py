"""MaxPools of codes with channels last, against onnxruntime's own."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.code_pooling import pool_channels_last
from onnxcomp.graph import remove_unused, sort_nodes
from onnxcomp.model import check_graph
from onnxcomp.runtime import open_session
from onnxcomp.testing import graph_of

POOL = """p (uint8[N, 6, H, W] x) => (uint8[N, 6, I, J] y) {{
    a = DequantizeLinear (x, scale, zero)
    [pool] b = MaxPool <{attributes}> (a)
    y = QuantizeLinear (b, {scale}, {zero})
}}"""
CONSTANTS: dict[str, Any] = {
    "scale": np.float32(0.1),
    "zero": np.uint8(7),
    "same_scale": np.float32([0.1]),
    "other_scale": np.float32(0.2),
    "other_zero": np.uint8(8),
}


def pool(attributes: str, *, scale: str = "scale", zero: str = "zero") -> gs.Graph:
    text = POOL.format(attributes=attributes, scale=scale, zero=zero)
    used = {name: CONSTANTS[name] for name in {"scale", "zero", scale, zero}}
    return graph_of(text, **used)


@pytest.mark.parametrize("scale", ["scale", "same_scale"])
@pytest.mark.parametrize(
    "attributes",
    [
        "kernel_shape = [2, 2], strides = [2, 2]",
        "kernel_shape = [3, 2], strides = [2, 1], pads = [1, 0, 1, 1], ceil_mode = 1",
        'kernel_shape = [3, 3], auto_pad = "SAME_UPPER", strides = [2, 2], storage_order = 1',
    ],
)
def test_codes_are_those_of_the_pool(attributes: str, scale: str) -> None:
    before, graph = pool(attributes, scale=scale), pool(attributes, scale=scale)
    assert pool_channels_last(graph) == 1
    remove_unused(graph)
    sort_nodes(graph)
    check_graph(graph)
    assert Counter(node.op for node in graph.nodes) == {"Transpose": 2, "NhwcMaxPool": 1}
    x = np.random.default_rng(0).integers(0, 256, (2, 6, 13, 10)).astype(np.uint8)
    (expected,), (y,) = (open_session(g, threads=1).run({"x": x}) for g in (before, graph))
    np.testing.assert_array_equal(y, expected)
    assert len(np.unique(y)) > 20


@pytest.mark.parametrize("changed", [{"scale": "other_scale"}, {"zero": "other_zero"}])
def test_codes_that_change_their_meaning_stay(changed: dict[str, str]) -> None:
    graph = pool("kernel_shape = [2, 2]", **changed)
    assert pool_channels_last(graph) == 0
    assert [node.op for node in graph.nodes] == ["DequantizeLinear", "MaxPool", "QuantizeLinear"]


def test_one_dimension_and_floats_that_are_read_stay() -> None:
    flat = POOL.replace("H, W", "W").replace("I, J", "J")
    text = flat.format(attributes="kernel_shape = [2]", scale="scale", zero="zero")
    used = {name: CONSTANTS[name] for name in ("scale", "zero")}
    assert pool_channels_last(graph_of(text, **used)) == 0
    graph = pool("kernel_shape = [2, 2]")
    graph.outputs.append(graph.nodes[1].outputs[0])
    assert pool_channels_last(graph) == 0
