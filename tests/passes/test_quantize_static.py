from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.calibration import Calibration
from onnxcomp.graph import Graph
from onnxcomp.importing import from_proto
from onnxcomp.model import check_graph
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.quantize_static import QuantizeStatic
from onnxcomp.runtime import Feed, open_session
from onnxcomp.targets import resolve_target

Array = np.ndarray[Any, Any]


def make_graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[Any]],
    outputs: dict[str, Sequence[Any]],
    weights: dict[str, Array],
    opset: int = 17,
) -> Graph:
    def info(name: str, shape: Sequence[Any]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))

    model = helper.make_model(
        helper.make_graph(
            list(nodes),
            "test",
            [info(*item) for item in inputs.items()],
            [info(*item) for item in outputs.items()],
            [numpy_helper.from_array(values, name) for name, values in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    return from_proto(model)


def quantize(
    graph: Graph, feeds: list[Feed], target: str = "x86-vnni", **options: Any
) -> PassReport:
    report = PassReport()
    calibration = Calibration.from_source(feeds, graph)
    context = PassContext(target=resolve_target(target), calibration=calibration)
    QuantizeStatic(**options).rewrite(graph, context, report)
    check_graph(graph)
    return report


def test_conv_with_relu_becomes_one_pair_each_side() -> None:
    rng = np.random.default_rng(0)
    graph = make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv"),
            helper.make_node("Relu", ["c"], ["y"], name="relu"),
        ],
        {"x": ["N", 3, 8, 8]},
        {"y": ["N", 4, 6, 6]},
        {
            "w": rng.standard_normal((4, 3, 3, 3), np.float32),
            "b": rng.standard_normal(4, np.float32),
        },
    )
    feeds = [{"x": rng.standard_normal((1, 3, 8, 8), np.float32)} for _ in range(4)]
    expected = [open_session(graph).run(feed)[0] for feed in feeds]
    report = quantize(graph, feeds, calibrator="minmax")
    assert report.changed == ["conv"]
    assert [node.op for node in graph.nodes].count("Relu") == 0
    assert sorted(node.op for node in graph.nodes) == (
        ["Conv"] + ["DequantizeLinear"] * 4 + ["QuantizeLinear"] * 2
    )
    session = open_session(graph)
    assert session.outputs == ["y"]
    step = max(float(want.max()) for want in expected) / 255
    for feed, want in zip(feeds, expected, strict=True):
        assert np.abs(session.run(feed)[0] - want).max() < 12 * step


def test_opset_below_13_is_skipped_with_the_reason() -> None:
    graph = make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        {"x": [1, 1, 4, 4]},
        {"y": [1, 1, 4, 4]},
        {"w": np.ones((1, 1, 1, 1), np.float32)},
        opset=12,
    )
    report = quantize(graph, [{"x": np.ones((1, 1, 4, 4), np.float32)}])
    assert not report.changed
    assert "opset 12" in report.skipped["conv"]
    assert [node.op for node in graph.nodes] == ["Conv"]


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="percentile"):
        QuantizeStatic(percentile=3)
