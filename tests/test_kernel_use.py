"""What really runs in integers, read from onnxruntime's profile."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from onnxcomp.calibration import Calibration
from onnxcomp.inspection import inspect
from onnxcomp.kernel_use import KernelUse, kernel_use, kernels_of
from onnxcomp.model import save_model
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.quantize_static import QuantizeStatic
from onnxcomp.runtime import Feed
from onnxcomp.tables import make_console, print_kernels
from onnxcomp.targets import resolve_target
from onnxcomp.testing import graph_of

Array = np.ndarray[Any, Any]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


FEED: Feed = {"x": normal(1, 4, 8, 8)}


def convolutions() -> gs.Graph:
    """Two quantized layers around a Tanh, which has no integer kernel."""
    text = """g (float[1, 4, 8, 8] x) => (float[1, 4, 6, 6] y) {
        [first] c = Conv <kernel_shape = [3, 3]> (x, w) [relu] r = Relu (c)
        [between] t = Tanh (r) [second] y = Conv (t, v) }"""
    graph = graph_of(text, w=normal(4, 4, 3, 3), v=normal(4, 4, 1, 1))
    context = PassContext(
        target=resolve_target("x86-vnni"), calibration=Calibration.from_source([FEED], graph)
    )
    QuantizeStatic().rewrite(graph, context, PassReport())
    return graph


@pytest.fixture(scope="module")
def use() -> KernelUse:
    return kernel_use(convolutions(), FEED)


def test_kernels_are_counted_by_what_they_work_on(use: KernelUse) -> None:
    found = {(k.op, k.kind): k for k in use.kernels}
    assert found["QLinearConv", "integer"].count == 2
    assert sorted(found["QLinearConv", "integer"].nodes) == ["first", "second"]
    assert found["Tanh", "float"].nodes == ("between",)
    assert found["QuantizeLinear", "conversion"].count == 2
    assert ("Transpose", "integer") in found  # codes laid out for the convolution
    assert sum(k.time_share for k in use.kernels) == pytest.approx(1, abs=0.01)
    kinds = ("integer", "float", "conversion", "other")
    assert sum(use.time_share(kind) for kind in kinds) == pytest.approx(1, abs=0.01)


def test_every_conversion_left_says_what_it_moves(use: KernelUse) -> None:
    found = sorted((c.op, c.tensor, c.elements) for c in use.conversions)
    assert found == [
        ("DequantizeLinear", "r", 144),
        ("DequantizeLinear", "y.float", 144),
        ("QuantizeLinear", "t", 144),
        ("QuantizeLinear", "x", 256),
    ]


def test_a_float_model_has_no_kernels_to_tell_of() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { y = Tanh (x) }")
    assert kernels_of(graph, {"x": np.zeros(2, np.float32)}) is None


def test_a_profile_changes_no_graph() -> None:
    graph = convolutions()
    names = [node.name for node in graph.nodes]
    kernel_use(graph, FEED)
    assert [node.name for node in graph.nodes] == names


def test_bodies_are_part_of_it() -> None:
    text = """g (float[4] x, bool flag) => (float[4] y) {
        [branch] y = If (flag) <
            then_branch = yes () => (float[4] p) {
                [inner] q = QuantizeLinear (x, s, z) [back] p = DequantizeLinear (q, s, z) },
            else_branch = no () => (float[4] n) { [neg] n = Neg (x) } >
    }"""
    graph = graph_of(text, s=np.float32(0.1), z=np.uint8(128))
    use = kernels_of(graph, {"x": normal(4), "flag": np.asarray(True)})
    assert use is not None
    assert sorted(c.tensor for c in use.conversions) == ["x", "x"]
    assert {k.op for k in use.kernels} == {"QuantizeLinear", "DequantizeLinear"}  # no If
    assert sum(c.time_share for c in use.conversions) == pytest.approx(1, abs=0.01)


def test_inspect_runs_a_quantized_model(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    save_model(convolutions(), path)
    found = inspect(path)
    assert found.kernels is not None
    assert {k.op for k in found.kernels.kernels if k.kind == "float"} == {"Tanh"}
    data = found.as_dict()["kernels"]
    assert data["conversions"][0].keys() == {"op", "tensor", "elements", "time_share"}
    print_kernels(make_console(), found.kernels, top=2)
    printed = capsys.readouterr().out
    assert "2 QLinearConv" in printed or "QLinearConv 2" in printed
    assert "2 more conversions" in printed
