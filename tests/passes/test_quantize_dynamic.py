"""Dynamic INT8 against integer arithmetic in numpy, and against what onnxruntime fuses."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.exporting import to_proto
from onnxcomp.importing import from_proto
from onnxcomp.passes.base import PassContext, PassReport
from onnxcomp.passes.quantize_dynamic import QuantizeDynamic
from onnxcomp.targets import resolve_target

RANDOM = np.random.default_rng(0)


def model_of(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray[Any, Any]],
    x: list[Any],
    kind: int = TensorProto.FLOAT,
    rank: int = 2,
) -> gs.Graph:
    """A graph from x to y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8))


def quantized(graph: gs.Graph, **options: Any) -> tuple[onnx.ModelProto, PassReport]:
    report = PassReport()
    context = PassContext(target=resolve_target("x86-vnni"))
    QuantizeDynamic(**options).rewrite(graph, context, report)
    model = to_proto(graph)
    onnx.checker.check_model(model)
    return model, report


def run(model: onnx.ModelProto, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, {"x": x})[0])


def integer_product(
    x: np.ndarray[Any, Any], w: np.ndarray[Any, Any], per_channel: bool = True
) -> np.ndarray[Any, Any]:
    """x [n, in] times w [in, out] by the definitions of DynamicQuantizeLinear and MatMulInteger."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale_x = np.float32((high - low) / 255)
    zero_x = np.clip(np.rint(-low / scale_x), 0, 255)
    codes_x = np.clip(np.rint(x / scale_x) + zero_x, 0, 255)
    bound = np.abs(w).max(axis=0) if per_channel else np.abs(w).max()
    scale_w = (bound / 127).astype(np.float32)
    codes_w = np.rint(w / scale_w)
    return ((codes_x - zero_x) @ codes_w * (scale_x * scale_w)).astype(np.float32)


def weight(*shape: int) -> np.ndarray[Any, Any]:
    """Random float32 whose columns have very different sizes."""
    return np.asarray(RANDOM.standard_normal(shape) * np.logspace(-2, 1, shape[-1]), np.float32)


@pytest.mark.parametrize("per_channel", [True, False])
def test_matmul_is_the_integer_product(per_channel: bool) -> None:
    w, x = weight(40, 30), np.asarray(RANDOM.standard_normal((7, 40)), np.float32)
    graph = model_of([helper.make_node("MatMul", ["x", "w"], ["y"], "fc")], {"w": w}, ["n", 40])

    model, report = quantized(graph, per_channel=per_channel)

    assert report.changed == ["fc"]
    np.testing.assert_allclose(
        run(model, x), integer_product(x, w, per_channel), rtol=1e-5, atol=1e-5
    )
    assert {t.name: t.data_type for t in model.graph.initializer} == {
        "w.codes": TensorProto.INT8,
        "w.scale": TensorProto.FLOAT,
    }


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_keeps_alpha_beta_and_bias(transposed: int) -> None:
    w, x = weight(40, 30), np.asarray(RANDOM.standard_normal((7, 40)), np.float32)
    bias = np.asarray(RANDOM.standard_normal(30), np.float32)
    node = helper.make_node(
        "Gemm", ["x", "w", "b"], ["y"], "fc", transB=transposed, alpha=0.5, beta=3.0
    )
    stored = np.ascontiguousarray(w.T) if transposed else w

    model, _ = quantized(model_of([node], {"w": stored, "b": bias}, ["n", 40]))

    wanted = 0.5 * integer_product(x, w) + 3 * bias
    np.testing.assert_allclose(run(model, x), wanted, rtol=1e-5, atol=1e-5)


def test_rows_of_an_embedding_have_scales_of_their_own() -> None:
    table = np.ascontiguousarray(weight(64, 200).T)  # rows of very different sizes
    node = helper.make_node("Gather", ["w", "x"], ["y"], "lookup")
    rows = np.asarray([[3, 199], [0, 3]])

    model, _ = quantized(model_of([node], {"w": table}, ["n", 2], TensorProto.INT64, 3))

    error = np.abs(run(model, rows) - table[rows])
    half_a_step = np.abs(table[rows]).max(axis=-1, keepdims=True) / 127 / 2
    assert (error <= half_a_step * 1.0001).all()
    assert error.max() > 0


def test_a_shared_input_and_a_shared_weight_are_quantized_once() -> None:
    w, v = weight(40, 40), weight(40, 40)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("MatMul", ["x", "v"], ["b"], "second"),
        helper.make_node("MatMul", ["a", "w"], ["c"], "third"),
        helper.make_node("Add", ["b", "c"], ["y"], "sum"),
    ]

    model, report = quantized(model_of(nodes, {"w": w, "v": v}, ["n", 40]))

    assert report.changed == ["first", "second", "third"]
    ops = Counter(node.op_type for node in model.graph.node)
    assert ops["DynamicQuantizeLinear"] == 2
    assert len(model.graph.initializer) == 4


def test_onnxruntime_fuses_every_layer(tmp_path: Path) -> None:
    w = weight(64, 64)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("MatMul", ["b", "w"], ["y"], "second"),
    ]
    model, _ = quantized(model_of(nodes, {"w": w}, ["n", 64]))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 4

    ort.InferenceSession(model.SerializeToString(), options)

    fused = Counter(n.op_type for n in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert fused == {"DynamicQuantizeMatMul": 2, "Relu": 1}


def test_layers_inside_a_body_are_quantized_there() -> None:
    w, x = weight(40, 40), np.asarray(RANDOM.standard_normal((3, 40)), np.float32)

    def body(op: str) -> onnx.GraphProto:
        inner = [
            helper.make_node("MatMul", ["x", "w"], [f"{op}.p"], f"{op}.fc"),
            helper.make_node(op, [f"{op}.p"], [f"{op}.y"], op),
        ]
        value = helper.make_tensor_value_info(f"{op}.y", TensorProto.FLOAT, [None, None])
        return helper.make_graph(inner, op, [], [value])

    branches = {"then_branch": body("Relu"), "else_branch": body("Neg")}
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], "sum", keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"], "sign"),
        helper.make_node("If", ["c"], ["y"], "if", **branches),
    ]
    graph = model_of(nodes, {"w": w, "zero": np.zeros((), np.float32)}, ["n", 40])

    model, report = quantized(graph)

    assert sorted(report.changed) == ["Neg.fc", "Relu.fc"]
    product = integer_product(x, w)
    wanted = np.maximum(product, 0) if x.sum() > 0 else -product
    np.testing.assert_allclose(run(model, x), wanted, rtol=1e-5, atol=1e-5)
    assert {t.name for t in model.graph.initializer} == {"zero"}  # no float weight is left behind


def test_every_layer_left_alone_has_a_reason() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "small"], ["a"], "small_layer"),
        helper.make_node("MatMul", ["a", "a"], ["b"], "square"),
        helper.make_node("MatMul", ["b", "w"], ["c"], "named"),
        helper.make_node("Unsqueeze", ["c", "axes"], ["d"], "unsqueeze"),
        helper.make_node("Conv", ["d", "kernel"], ["e"], "conv"),
        helper.make_node("MatMul", ["e", "half"], ["y"], "three_axes"),
    ]
    constants = {
        "small": weight(8, 8),
        "w": weight(8, 200),
        "axes": np.asarray([0, 1]),
        "kernel": weight(1, 1, 1, 1),
        "half": weight(1, 200, 8),
    }
    graph = model_of(nodes, constants, [8, 8], rank=4)

    _, report = quantized(graph, overrides={"nam*": {"skip": True}})

    assert report.changed == []
    assert set(report.skipped) == {"small_layer", "square", "named", "conv", "three_axes"}
    assert "64 weights" in report.skipped["small_layer"]
    assert "both factors" in report.skipped["square"]
    assert "recipe" in report.skipped["named"]
    assert "ConvInteger" in report.skipped["conv"]
    assert "3 axes" in report.skipped["three_axes"]


def test_a_table_that_another_operator_reads_stays_float() -> None:
    nodes = [
        helper.make_node("Gather", ["w", "x"], ["a"], "lookup"),
        helper.make_node("Transpose", ["w"], ["t"], "transpose"),
        helper.make_node("MatMul", ["a", "t"], ["y"], "head"),
    ]
    graph = model_of(nodes, {"w": weight(100, 32)}, ["n"], TensorProto.INT64)

    _, report = quantized(graph)

    assert report.changed == []
    assert "another operator" in report.skipped["lookup"]


def test_weights_stay_within_seven_bits_where_sums_saturate() -> None:
    graph = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "fc")], {"w": weight(40, 30)}, ["n", 40]
    )
    context = PassContext(target=resolve_target("x86-avx2"))

    QuantizeDynamic().rewrite(graph, context, PassReport())

    codes = graph.tensors()["w.codes"].values
    assert np.abs(codes.astype(int)).max() == 63


def test_candidates_are_what_rewrite_changes(models: Path) -> None:
    for name in ("digits_vit", "digits_gru", "digits_resnet"):
        graph = from_proto(onnx.load(models / f"{name}.onnx"))
        wanted = QuantizeDynamic().candidates(graph)

        _, report = quantized(graph)

        assert report.changed == wanted


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="smallest_weight"):
        QuantizeDynamic(smallest_weight=-1)
