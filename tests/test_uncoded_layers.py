"""Layers that stay in float between integer ones: what onnxruntime runs, and what comes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.calibration import Calibration
from onnxcomp.fusion import optimized_operators
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.quantize_static import QuantizeStatic
from onnxcomp.runtime import Feed, open_session
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of

Array = np.ndarray[Any, Any]
SKIPPED = {"middle": {"skip": True}}


def uneven(*shape: int) -> Array:
    """Weights [out, ...] whose largest rows are a thousand times their smallest."""
    rng = np.random.default_rng(1)
    sizes = np.geomspace(1e-3, 1, shape[0], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
    return rng.standard_normal(shape, np.float32) * sizes


def levelling(*shape: int) -> Array:
    """Weights [out, in, ...] that bring channels of `uneven` weights back to one size."""
    rng = np.random.default_rng(2)
    sizes = np.geomspace(1e3, 1, shape[1], dtype=np.float32).reshape(1, -1, *[1] * (len(shape) - 2))
    return rng.standard_normal(shape, np.float32) * sizes


def feeds(*shape: int) -> list[Feed]:
    rng = np.random.default_rng(3)
    return [{"x": rng.standard_normal(shape, np.float32)} for _ in range(4)]


def convolutions(middle: str) -> gs.Graph:
    return graph_of(
        f"g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {{ a = Conv (x, u) {middle} "
        "y = Conv (c, v) }",
        u=np.random.default_rng(0).standard_normal((8, 4, 1, 1), np.float32),
        w=uneven(8, 1, 3, 3),
        v=levelling(4, 8, 1, 1),
        **({"low": np.float32(-1)} if "low" in middle else {}),
    )


def quantized(graph: gs.Graph, samples: list[Feed], target: str = "x86-vnni") -> PassReport:
    report, calibration = PassReport(), Calibration.from_source(samples, graph)
    context = PassContext(target=resolve_target(target), calibration=calibration)
    QuantizeStatic(overrides=SKIPPED, rounding="nearest", equalize=False).rewrite(
        graph, context, report
    )
    return report


MIDDLE = "Conv <group = 8, pads = [1, 1, 1, 1]> (a, w)"


@pytest.mark.parametrize(
    "middle",
    [
        f"[middle] c = {MIDDLE}",
        f"[middle] b = {MIDDLE} c = Relu (b)",
        f"[middle] b = {MIDDLE} c = Clip (b, low)",
    ],
)
@pytest.mark.parametrize("target", ["x86-vnni", "x86-avx2", "arm64"])
def test_a_convolution_between_integer_ones_runs_in_float(middle: str, target: str) -> None:
    graph, samples = convolutions(middle), feeds(1, 4, 8, 8)
    report = quantized(graph, samples, target)
    assert "override" in report.skipped["middle"]
    found = optimized_operators(graph)
    assert found["QLinearConv"] == 2
    assert found["Conv"] + found["FusedConv"] == 1
    plain = open_session(graph, optimize=False)
    (wanted,), (y,) = plain.run(samples[0]), open_session(graph).run(samples[0])
    np.testing.assert_allclose(y, wanted, rtol=0, atol=0.02 * np.abs(wanted).max())


def test_a_gemm_between_integer_ones_runs_in_float() -> None:
    graph = graph_of(
        "g (float[N, 16] x) => (float[N, 8] y, float[N, 16] z) { a = Gemm (x, u) [middle] "
        "b = Gemm (a, w) c = Relu (b) y = Gemm (c, v) z = Gemm (a, s) }",
        u=np.random.default_rng(0).standard_normal((16, 32), np.float32),
        s=np.random.default_rng(4).standard_normal((32, 16), np.float32),
        w=np.ascontiguousarray(uneven(24, 32).T),
        v=np.ascontiguousarray(levelling(8, 24).T),
    )
    quantized(graph, feeds(4, 16))
    found = optimized_operators(graph)
    assert found["QGemm"] == 3
    assert found["Gemm"] + found["FusedGemm"] == 1


def test_layers_at_the_tail_and_those_of_codes_get_no_further_node() -> None:
    graph = convolutions(f"b = {MIDDLE} c = Relu (b)")
    quantized(graph, feeds(1, 4, 8, 8))
    assert "Max" not in {node.op for node in graph.nodes}
    tail = graph_of(
        "g (float[N, 4, 8, 8] x) => (float[N, 8, 8, 8] y) { a = Conv (x, u) "
        "[middle] y = Conv (a, w) }",
        u=np.random.default_rng(0).standard_normal((8, 4, 1, 1), np.float32),
        w=uneven(8, 8, 1, 1),
    )
    quantized(tail, feeds(1, 4, 8, 8))
    assert "Max" not in {node.op for node in tail.nodes}


def test_compilers_that_choose_by_themselves_get_plain_pairs() -> None:
    graph = convolutions(f"[middle] b = {MIDDLE} c = Relu (b)")
    quantized(graph, feeds(1, 4, 8, 8), "qdq-generic")
    assert "Max" not in {node.op for node in graph.nodes}


def test_what_stayed_in_float_does_so_when_the_rest_is_quantized_already() -> None:
    graph, samples = convolutions(f"[middle] b = {MIDDLE} c = Relu (b)"), feeds(1, 4, 8, 8)
    quantized(graph, samples)
    context = PassContext(
        target=resolve_target("x86-vnni"), calibration=Calibration.from_source(samples, graph)
    )
    once, report = len(graph.nodes), PassReport()
    QuantizeStatic().rewrite(graph, context, report)
    assert not report.changed
    assert report.skipped["middle"] == "already quantized"
    assert len(graph.nodes) == once
